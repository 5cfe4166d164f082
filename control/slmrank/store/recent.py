"""What was looked up a moment ago: the entries of a shared store in this process, bounded in bytes
and in age."""

from __future__ import annotations

import time
from collections import OrderedDict

from slmrank.tokens import Ids

ENTRY_BYTES = 250  # key, tuple, array header and the table's slot, beside ids and job id


class RecentIds:
    """Least recently used entries, at most `most_bytes` of them and `most_s` seconds old.

    The age bounds how long a change in the store stays unseen; 0 bytes or seconds: nothing is kept.
    """

    def __init__(self, most_bytes: int, most_s: float) -> None:
        self._most_bytes, self._most_s = most_bytes, most_s
        self._kept: OrderedDict[bytes, tuple[float, Ids]] = OrderedDict()
        self._bytes = 0

    def get(self, job_id: bytes) -> Ids | None:
        kept = self._kept.get(job_id)
        if kept is None:
            return None
        if kept[0] < time.monotonic():
            self._drop(job_id)
            return None
        self._kept.move_to_end(job_id)
        return kept[1]

    def put(self, job_id: bytes, ids: Ids) -> None:
        if not self._most_bytes or not self._most_s:
            return
        self._drop(job_id)
        # A copy: the ids of one answer are views into one array, which each would keep whole.
        self._kept[job_id] = (time.monotonic() + self._most_s, ids.copy())
        self._bytes += _size(job_id, ids)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes, as counted for the bound."""
        return self._bytes

    def _drop(self, job_id: bytes) -> None:
        kept = self._kept.pop(job_id, None)
        if kept is not None:
            self._bytes -= _size(job_id, kept[1])


def _size(job_id: bytes, ids: Ids) -> int:
    return len(job_id) + ids.nbytes + ENTRY_BYTES
