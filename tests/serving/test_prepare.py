"""From request to ids: one bad item never fails the request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slmrank.errors import ScoreError
from slmrank.prompt.encoder import Ids, PromptEncoder, PromptTemplate, load_tokenizer
from slmrank.serving.prepare import Preparer
from slmrank.triton.status import Status


class Stored:
    def __init__(self, encoder: PromptEncoder) -> None:
        self._bodies = {"known": encoder.body("a stored text"), "long": encoder.body("w " * 90)}

    def ids(self, job_id: str) -> Ids | None:
        return self._bodies.get(job_id)


@pytest.fixture
def preparer(tokenizer_folder: Path) -> Preparer:
    encoder = PromptEncoder(
        load_tokenizer(tokenizer_folder), PromptTemplate(), max_item_tokens=40, max_query_tokens=30
    )
    return Preparer(encoder, Stored(encoder), max_items=8)


def test_statuses_and_lengths(preparer: Preparer) -> None:
    ids = [b"known", b"unknown", b"", b"known", b"long", b"x"]
    texts = [b"", b"", b" ", b"given text", b"", b"\xff\xfe"]
    prepared = preparer.prepare(b"nurse", ids, texts)
    assert [Status(one) for one in prepared.status] == [
        Status.OK,
        Status.UNKNOWN_JOB,
        Status.EMPTY,
        Status.OK,
        Status.TRUNCATED,
        Status.NOT_UTF8,
    ]
    scored = [Status(one).scored for one in prepared.status]
    assert [length > 0 for length in prepared.item_lengths] == scored
    assert prepared.item_lengths.sum() == len(prepared.item_ids)


def test_a_given_text_wins_over_the_stored_one(preparer: Preparer) -> None:
    stored = preparer.prepare(b"nurse", [b"known"])
    given = preparer.prepare(b"nurse", [b"known"], [b"another text here"])
    assert not np.array_equal(stored.item_ids, given.item_ids)


def test_a_huge_text_is_cut_fast(preparer: Preparer) -> None:
    prepared = preparer.prepare(b"nurse", [b""], [b"word " * 400_000])
    assert Status(prepared.status[0]) is Status.TRUNCATED


@pytest.mark.parametrize(
    ("query", "ids", "texts", "text"),
    [
        (b"\xc3\x28", [b"known"], None, "not UTF-8: byte 0 is 0xc3"),
        (b" ", [b"known"], None, "empty"),
        (b"q", [b"a"] * 9, None, "9 jobs, the limit is 8"),
        (b"q", [b"a", b"b"], [b"t"], "1 job_text for 2 job_id"),
    ],
)
def test_bad_requests(
    preparer: Preparer, query: bytes, ids: list[bytes], texts: list[bytes] | None, text: str
) -> None:
    with pytest.raises(ScoreError, match=text):
        preparer.prepare(query, ids, texts)
