"""Changes from JSON lines."""

from __future__ import annotations

import codecs
import json
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from slmrank.store.changes import FIELD, Delivery, order_of

AHEAD = 1024
LOOK_S = 0.1


class LinesSource:
    """JSON lines of a file or of standard input, each a change. A file is read from its start every
    time: what was applied before is applied again, with the same result at its end."""

    def __init__(self, stream: BinaryIO, rejected: Path, *, follow: bool) -> None:
        self._stream, self._rejected, self._follow = stream, rejected, follow
        self._number = self._clock = 0
        self.ended = False
        self._lines: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=AHEAD)
        # Reading from a pipe waits as long as its writer, whatever the wait that was asked for.
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        taken: list[Delivery] = []
        until = time.monotonic() + wait_s
        while len(taken) < most:
            try:
                line = self._lines.get(timeout=0 if taken else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if line is None:
                self.ended = True
                break
            if isinstance(line, Exception):
                raise line
            self._number += 1
            if self._number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                # A clock that steps back would make later changes older than what they change.
                self._clock = now = max(self._clock, time.time_ns() // 1_000_000)
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

    def _read(self) -> None:
        """Put every whole line into the queue, then None: at the end of what is not followed."""
        line = b""
        try:
            while True:
                line += self._stream.readline()
                if line.endswith(b"\n"):
                    self._lines.put(line)
                    line = b""
                elif self._follow:
                    time.sleep(LOOK_S)
                else:
                    break
        except (OSError, ValueError) as error:  # unreadable, or closed by who opened it
            self._lines.put(error)
            return
        if line:
            self._lines.put(line)
        self._lines.put(None)
