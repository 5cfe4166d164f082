"""BM25 against numbers worked out by hand."""

from __future__ import annotations

import unicodedata
from typing import Literal

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
    # Worked out with bc: idf ln(1.6), two occurrences in a text of 4 words, mean 3, k1 1.2, b 0.75;
    # Lucene leaves out the constant factor k1 + 1.
    assert index.scores("nurses", ["a", "b"]) == pytest.approx([0.213638, 0.268574], abs=1e-6)
    twice = index.scores("nurse nurse", ["b"])
    assert twice[0] >= index.scores("nurse", ["b"])[0]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_forms_of_letters_are_the_same_words(form: Literal["NFC", "NFD", "NFKC"]) -> None:
    for text in ("infirmi\u00e8re de nuit", "\uac04\ud638\uc0ac", "\uff2a\uff21\uff36\uff21 dev"):
        assert words_of(unicodedata.normalize(form, text)) == words_of(text)
    job = Job(job_id="a", description="Infirmi\u00e8re de nuit")
    index = Bm25({"a": job})
    assert index.scores(unicodedata.normalize(form, "infirmi\u00e8re"), ["a"])[0] > 0


def test_words_of_unspaced_scripts_are_pairs_of_characters() -> None:
    assert words_of("\u6563\u6b65\u72d7 dogs") == ["\u6563\u6b65", "\u6b65\u72d7", "dog"]
    assert words_of("na\u00efve M\u00fcller") == ["na\u00efve", "m\u00fcller"]


def test_order_and_strangers() -> None:
    index = Bm25(JOBS)
    assert index.top("night nurse", 5) == ["a", "b"]
    assert index.scores("pilot", ["a", "c"]) == [0.0, 0.0]


def test_equal_jobs_come_by_id_and_nothing_is_no_error() -> None:
    same = {name: Job(job_id=name, description="night nurse") for name in "cab"}
    assert Bm25(same).top("nurse", 2) == ["a", "b"]
    assert Bm25(same).top("", 2) == []
    assert Bm25({}).top("nurse", 2) == []
    assert Bm25({"a": Job(job_id="a", description="...")}).scores("nurse", ["a"]) == [0.0]
