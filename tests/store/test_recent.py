"""What was looked up a moment ago."""

from __future__ import annotations

import time

import numpy as np
from slmrank.store.recent import ENTRY_BYTES, Recent
from slmrank.tokens import Ids

IDS = np.arange(10, dtype=np.int32)


def of_ids(most_bytes: int) -> Recent[Ids]:
    return Recent(most_bytes, lambda ids: ids.nbytes)


def test_the_least_recently_used_goes_first() -> None:
    one = len(b"a") + IDS.nbytes + ENTRY_BYTES
    recent = of_ids(2 * one)
    for name in (b"a", b"b"):
        recent.put(name, IDS, 60)
    assert recent.get(b"a") is not None
    recent.put(b"c", IDS, 60)
    assert recent.get(b"b") is None
    assert recent.get(b"a") is not None
    assert recent.size == 2 * one
    recent.put(b"c", IDS[:5], 60)
    assert recent.size == 2 * one - IDS[5:].nbytes
    recent.clear()
    assert recent.size == 0


def test_what_is_old_is_gone() -> None:
    recent = of_ids(1 << 20)
    recent.put(b"a", IDS, 0.05)
    assert recent.get(b"a") is not None
    time.sleep(0.06)
    assert recent.get(b"a") is None
    assert recent.size == 0


def test_nothing_is_kept_where_nothing_may_be() -> None:
    for recent, seconds in ((of_ids(0), 60), (of_ids(1 << 20), 0)):
        recent.put(b"a", IDS, seconds)
        assert recent.get(b"a") is None
