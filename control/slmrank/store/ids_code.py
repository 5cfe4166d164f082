"""Token ids as bytes for a shared store: variable-length, seven bits a byte, lowest first.

A tokenizer's ids are by frequency, so most of a summary needs one or two bytes instead of four
(measured against zstd and fixed widths in perf/shared_store.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slmrank.tokens import EMPTY, Ids

MOST_BYTES = 5  # of one id below 2**31
_PLACES = 7 * np.arange(MOST_BYTES)


def encode_ids(ids: Ids) -> bytes:
    """The bytes of ids >= 0."""
    values = ids.astype(np.int64)[:, None] >> _PLACES
    used = values > 0
    used[:, 0] = True
    groups = (values & 0x7F).astype(np.uint8)
    groups[:, :-1] |= np.where(used[:, 1:], np.uint8(0x80), np.uint8(0))
    return groups[used].tobytes()


def decode_ids(stored: Sequence[bytes]) -> list[Ids]:
    """The ids of each entry, all in one pass; an empty array for bytes that cannot be any."""
    # An entry whose last byte does not end an id would run into the next one.
    whole = [one if one and one[-1] < 0x80 else b"" for one in stored]
    raw: npt.NDArray[np.uint8] = np.frombuffer(b"".join(whole), dtype=np.uint8)
    if not len(raw):
        return [EMPTY] * len(stored)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    parts = (raw & 0x7F).astype(np.int64)
    values = parts[starts]
    for place in range(1, min(int(sizes.max()), MOST_BYTES)):
        longer = np.flatnonzero(sizes > place)
        values[longer] |= parts[starts[longer] + place] << (7 * place)
    damaged = (sizes > MOST_BYTES) | (values >= 2**31)
    ids = values.astype(np.int32)
    bounds = np.searchsorted(ends, np.cumsum([len(one) for one in whole]))
    stops = bounds.tolist()
    pairs = zip([0, *stops[:-1]], stops, strict=True)
    if not damaged.any():  # a look at each entry takes half a millisecond in 500
        return [ids[start:stop] for start, stop in pairs]
    return [EMPTY if damaged[start:stop].any() else ids[start:stop] for start, stop in pairs]
