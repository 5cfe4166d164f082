"""Changes from JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from slmrank.store.changes import FIELD, Delivery, order_of


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
