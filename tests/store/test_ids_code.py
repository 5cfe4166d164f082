"""Ids as bytes: any ids come back, and damage stays where it is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from slmrank.store.ids_code import decode_ids, encode_ids

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30)


@given(st.lists(ids, max_size=6))
def test_round_trip(entries: list[list[int]]) -> None:
    stored = [encode_ids(np.array(one, dtype=np.int32)) for one in entries]
    assert [one.tolist() for one in decode_ids(stored)] == entries


@given(ids, st.binary(max_size=12), ids)
def test_damage_does_not_reach_the_neighbours(
    before: list[int], damaged: bytes, after: list[int]
) -> None:
    around = [encode_ids(np.array(one, dtype=np.int32)) for one in (before, after)]
    first, between, last = decode_ids([around[0], damaged, around[1]])
    assert first.tolist() == before
    assert last.tolist() == after
    assert between.min(initial=0) >= 0
    if not damaged or damaged[-1] >= 0x80:
        assert not len(between)


def test_an_id_that_is_too_long_is_none() -> None:
    assert [one.tolist() for one in decode_ids([b"\xff" * 5 + b"\x01", b"\x05"])] == [[], [5]]
    assert decode_ids([]) == []
    assert [one.tolist() for one in decode_ids([b""])] == [[]]


def test_small_ids_take_one_byte() -> None:
    assert (
        len(encode_ids(np.array([0, 127, 128, 16_383, 16_384], dtype=np.int32)))
        == 1 + 1 + 2 + 2 + 3
    )
