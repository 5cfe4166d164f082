"""BM25 against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from slmrank.data.bm25 import Bm25
from slmrank.data.records import Job
from slmrank.data.words import words_of

JOBS = {
    "a": Job(job_id="a", description="night nurse ward"),
    "b": Job(job_id="b", description="day nurse nurse ward"),
    "c": Job(job_id="c", description="truck driver"),
}


def test_the_formula() -> None:
    index = Bm25(JOBS)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * 4 / 3)
    assert index.scores("nurses", ["b"]) == [pytest.approx(idf * 2 * 2.2 / (2 + norm))]


def test_words_of_unspaced_scripts_are_pairs_of_characters() -> None:
    assert words_of("\u6563\u6b65\u72d7 dogs") == ["\u6563\u6b65", "\u6b65\u72d7", "dog"]
    assert words_of("na\u00efve M\u00fcller") == ["na\u00efve", "m\u00fcller"]


def test_order_and_strangers() -> None:
    index = Bm25(JOBS)
    assert index.top("night nurse", 5) == ["a", "b"]
    assert index.scores("pilot", ["a", "c"]) == [0.0, 0.0]
