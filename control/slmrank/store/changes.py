"""Changes of single jobs, and where they come from: a Redis stream or JSON lines.

A source delivers every change at least once. Each has an order, which grows; the store applies one
only where it has seen nothing newer of that job, so that a repeated or a late one changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.store.redis_address import RedisAddress, asking, connect

GROUP = "slmrank"
FIELD = "change"
# What another consumer took and has not finished for so long is taken over: it is gone.
ABANDONED_MS = 30_000
REJECTED_SUFFIX = ".rejected"


class Change(BaseModel):
    """One message: `{"job": {...}}` for a new or changed job, or `{"delete": "JOB_ID"}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Job | None = None
    delete: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> Change:
        if (self.job is None) == (self.delete is None):
            raise ValueError("must have either job or delete")
        return self

    @property
    def job_id(self) -> str:
        return self.job.job_id if self.job is not None else str(self.delete)


def read_change(raw: bytes) -> Change:
    """Raises DataError that says what is wrong with the message."""
    try:
        return Change.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "message"
        raise DataError(
            f"{name}: {first['msg']}", 'send {"job": {...}} or {"delete": "JOB_ID"}'
        ) from error


def order_of(milliseconds: int, number: int = 99_999_999) -> str:
    """The order of the number-th change of a millisecond; orders compare as texts."""
    return f"{milliseconds:015d}-{number:08d}"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message as a source gave it. `sent_ms`: when it was written there, Unix time."""

    token: str
    order: str
    sent_ms: int
    raw: bytes


class ChangeSource(Protocol):
    """Where changes come from; errors are StoreUnavailable."""

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        """The next messages, in order; none after `wait_s`."""

    def reject(self, delivery: Delivery, reason: str) -> None:
        """Keep a message that cannot be applied where a person finds it."""

    def done(self, deliveries: Sequence[Delivery]) -> None:
        """These need not be delivered again."""

    def lag(self) -> int | None:
        """Messages that wait; None where nobody knows."""

    @property
    def ended(self) -> bool:
        """There will be no more."""


class StreamSource:
    """A stream of the store's own server, read as one of a group: `XADD STREAM * change JSON`."""

    ended = False

    def __init__(self, address: RedisAddress, stream: str) -> None:
        from redis.exceptions import ResponseError

        self._client = connect(address, timeout_s=10.0)
        self._stream, self._place = stream, address.place
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._looked_s = -float(ABANDONED_MS)
        with self._asking():
            try:
                self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    @property
    def dead_letters(self) -> str:
        return f"{self._stream}{REJECTED_SUFFIX}"

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        with self._asking():
            # Own and others' unfinished ones first: they are older.
            if time.monotonic() - self._looked_s > ABANDONED_MS / 3000:
                found = self._client.xautoclaim(
                    self._stream, GROUP, self._name, ABANDONED_MS, "0", count=most
                )[1]
                if found:
                    return [_delivery(*one) for one in found]
                self._looked_s = time.monotonic()
            told = self._client.xreadgroup(
                GROUP, self._name, {self._stream: ">"}, count=most, block=int(1000 * wait_s)
            )
        return [_delivery(*one) for _, messages in told or () for one in messages]

    def reject(self, delivery: Delivery, reason: str) -> None:
        letter = {"id": delivery.token, "reason": reason, FIELD: delivery.raw}
        with self._asking():
            self._client.xadd(self.dead_letters, letter)

    def done(self, deliveries: Sequence[Delivery]) -> None:
        with self._asking():
            self._client.xack(self._stream, GROUP, *(one.token for one in deliveries))

    def lag(self) -> int | None:
        with self._asking():
            groups = self._client.xinfo_groups(self._stream)
        own = next(one for one in groups if one["name"] == GROUP.encode())
        # Redis before 7 does not say, and no version does after the stream was cut in the middle.
        return None if own.get("lag") is None else int(own["lag"]) + int(own["pending"])

    def _asking(self) -> AbstractContextManager[None]:
        return asking(f"the stream {self._stream} in {self._place}", "is the server running?")


class LinesSource:
    """JSON lines of a file or of standard input, each a change. A file is read from its start every
    time: what was applied before is applied again, with the same result at its end."""

    def __init__(self, stream: BinaryIO, rejected: Path, *, follow: bool) -> None:
        self._stream, self._rejected, self._follow = stream, rejected, follow
        self._number = 0
        self._part = b""
        self.ended = False

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        taken: list[Delivery] = []
        until = time.monotonic() + wait_s
        while len(taken) < most and not self.ended:
            line = self._line()
            if line is None:
                if taken or time.monotonic() >= until:
                    break
                time.sleep(min(0.1, wait_s))
            elif line.strip():
                now = time.time_ns() // 1_000_000
                self._number += 1
                order = order_of(now, self._number % 100_000_000)
                taken.append(Delivery(token=str(self._number), order=order, sent_ms=now, raw=line))
        return taken

    def reject(self, delivery: Delivery, reason: str) -> None:
        letter = {"line": int(delivery.token), "reason": reason}
        with self._rejected.open("a", encoding="utf-8") as stream:
            raw = delivery.raw.decode("utf-8", "replace").rstrip("\n")
            stream.write(json.dumps({**letter, FIELD: raw}, ensure_ascii=False) + "\n")

    def done(self, deliveries: Sequence[Delivery]) -> None: ...

    def lag(self) -> int | None:
        return None

    def _line(self) -> bytes | None:
        """The next whole line, or None when there is none yet."""
        if not self._follow:
            line = self._stream.readline()
            self.ended = not line
            return line or None
        line = self._part + self._stream.readline()
        whole = line.endswith(b"\n")
        self._part = b"" if whole else line
        return line if whole else None


def _delivery(token: bytes, fields: dict[bytes, bytes] | None) -> Delivery:
    milliseconds, number = (int(one) for one in token.decode().split("-"))
    return Delivery(
        token=token.decode(),
        order=order_of(milliseconds, number),
        sent_ms=milliseconds,
        raw=(fields or {}).get(FIELD.encode(), b""),
    )
