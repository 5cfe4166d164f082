"""The tensors of the stage `ranker`, as `prepare` makes them and as nobody should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.engine.fan_out import split_items, whole_prompts
from slmrank.errors import EngineError


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("prefix", "items", "lengths", "text"),
    [
        (ids(1), ids(2, 3), ids(3), "item_lengths sum to 3, item_ids has 2"),
        (ids(1), ids(2), ids(2, -1), "item_lengths holds -1"),
        (ids(), ids(2), ids(1), "there is no prefix"),
        (ids(1, 2, 3), ids(4, 5), ids(2), "a prompt has 5 tokens, the limit is 4"),
        (ids(1), ids(9), ids(1), "a token id is 9, the vocabulary has 9"),
        (ids(-4), ids(3), ids(1), "a token id is -4"),
        (ids(1), ids(2**31 - 1, -(2**31)), ids(1, 1), "a token id is -2147483648"),
    ],
)
def test_tensors_that_prepare_never_makes_are_refused(
    prefix: np.ndarray, items: np.ndarray, lengths: np.ndarray, text: str
) -> None:
    with pytest.raises(EngineError, match=text):
        split_items(prefix, items, lengths, vocab_size=9, max_tokens=4)


@given(st.lists(st.lists(st.integers(0, 8), max_size=3), max_size=9))
def test_items_come_apart_as_they_were_joined(items: list[list[int]]) -> None:
    joined, lengths = ids(*(one for item in items for one in item)), ids(*map(len, items))
    found = split_items(ids(7), joined, lengths, vocab_size=9, max_tokens=4)
    assert [item.tolist() for item in found] == items
    whole = [prompt.tolist() for prompt in whole_prompts(ids(7), found)]
    assert whole == [[7, *item] if item else [] for item in items]
