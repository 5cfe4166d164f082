"""What was looked up or scored a moment ago: kept in this process, bounded in bytes and in age."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")
ENTRY_BYTES = 250  # key, tuple, the table's slot and the value's header, beside what they hold


class Recent(Generic[Value]):
    """Least recently used entries, at most `most_bytes` of them; `size` gives a value's bytes. With
    0 bytes nothing is kept."""

    def __init__(self, most_bytes: int, size: Callable[[Value], int]) -> None:
        self._most_bytes, self._size_of = most_bytes, size
        self._kept: OrderedDict[bytes, tuple[float, Value]] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> Value | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[0] < time.monotonic():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept[1]

    def put(self, key: bytes, value: Value, seconds: float) -> None:
        """Keep for so long, instead of what was there."""
        if not self._most_bytes or seconds <= 0:
            return
        self._drop(key)
        self._kept[key] = (time.monotonic() + seconds, value)
        self._bytes += self._entry_bytes(key, value)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes, as counted for the bound."""
        return self._bytes

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= self._entry_bytes(key, kept[1])

    def _entry_bytes(self, key: bytes, value: Value) -> int:
        return len(key) + self._size_of(value) + ENTRY_BYTES
