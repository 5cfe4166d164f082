"""What was looked up a moment ago."""

from __future__ import annotations

import time

import numpy as np
from slmrank.store.recent import ENTRY_BYTES, RecentIds

IDS = np.arange(10, dtype=np.int32)


def test_the_least_recently_used_goes_first() -> None:
    one = len(b"a") + IDS.nbytes + ENTRY_BYTES
    recent = RecentIds(2 * one, 60)
    for name in (b"a", b"b"):
        recent.put(name, IDS)
    assert recent.get(b"a") is not None
    recent.put(b"c", IDS)
    assert recent.get(b"b") is None
    assert recent.get(b"a") is not None
    assert recent.size == 2 * one
    recent.put(b"c", IDS[:5])
    assert recent.size == 2 * one - IDS[5:].nbytes
    recent.clear()
    assert recent.size == 0


def test_what_is_old_is_gone() -> None:
    recent = RecentIds(1 << 20, 0.05)
    recent.put(b"a", IDS)
    assert recent.get(b"a") is not None
    time.sleep(0.06)
    assert recent.get(b"a") is None
    assert recent.size == 0


def test_nothing_is_kept_where_nothing_may_be() -> None:
    for recent in (RecentIds(0, 60), RecentIds(1 << 20, 0)):
        recent.put(b"a", IDS)
        assert recent.get(b"a") is None
