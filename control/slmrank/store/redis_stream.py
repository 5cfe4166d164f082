"""Changes from a stream of the store's own server."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from slmrank.store.changes import FIELD, REJECTED_SUFFIX, Delivery, order_of
from slmrank.store.redis_address import RedisAddress, asking, connect

# What another consumer took and has not finished for so long is taken over: it is gone.
ABANDONED_MS = 30_000


class StreamSource:
    """A stream of the store's own server, read as one of a group: `XADD STREAM * change JSON`."""

    ended = False

    def __init__(self, address: RedisAddress, stream: str, group: str) -> None:
        self._client = connect(address, timeout_s=10.0)
        self._stream, self._group, self._place = stream, group, address.place
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._looked_s = -float(ABANDONED_MS)
        with self._asking():
            self._join()

    @property
    def dead_letters(self) -> str:
        return f"{self._stream}{REJECTED_SUFFIX}"

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        from redis.exceptions import ResponseError

        with self._asking():
            try:
                return self._take(most, wait_s)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._join()  # the server came back empty
                return []

    def _join(self) -> None:
        from redis.exceptions import ResponseError

        try:
            self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _take(self, most: int, wait_s: float) -> list[Delivery]:
        # Own and others' unfinished ones first: they are older.
        if time.monotonic() - self._looked_s > ABANDONED_MS / 3000:
            found = self._client.xautoclaim(
                self._stream, self._group, self._name, ABANDONED_MS, "0", count=most
            )[1]
            # Before version 7, what was trimmed meanwhile is among them as nothing.
            found = [one for one in found if one[0] is not None]
            if found:
                return [_delivery(*one) for one in found]
            self._looked_s = time.monotonic()
        told = self._client.xreadgroup(
            self._group, self._name, {self._stream: ">"}, count=most, block=int(1000 * wait_s)
        )
        return [_delivery(*one) for _, messages in told or () for one in messages]

    def reject(self, delivery: Delivery, reason: str) -> None:
        letter = {"id": delivery.token, "reason": reason, FIELD: delivery.raw}
        with self._asking():
            self._client.xadd(self.dead_letters, letter)

    def done(self, deliveries: Sequence[Delivery]) -> None:
        with self._asking():
            self._client.xack(self._stream, self._group, *(one.token for one in deliveries))

    def lag(self) -> int | None:
        with self._asking():
            if not self._client.exists(self._stream):  # until `take` makes it again
                return None
            groups = self._client.xinfo_groups(self._stream)
        own: dict[str, Any] = next(
            (one for one in groups if one["name"] == self._group.encode()), {}
        )
        # Redis before 7 does not say, and no version does after the stream was cut in the middle.
        return None if own.get("lag") is None else int(own["lag"]) + int(own["pending"])

    def _asking(self) -> AbstractContextManager[None]:
        return asking(f"the stream {self._stream} in {self._place}", "is the server running?")


def _delivery(token: bytes, fields: dict[bytes, bytes] | None) -> Delivery:
    milliseconds, number = (int(one) for one in token.decode().split("-"))
    return Delivery(
        token=token.decode(),
        order=order_of(milliseconds, number),
        sent_ms=milliseconds,
        raw=(fields or {}).get(FIELD.encode(), b""),
    )
