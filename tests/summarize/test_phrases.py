"""Phrases: what is one, and which are taken."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.records import Job
from slmrank.data.words import _kept_parts, words_of
from slmrank.errors import DataError
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.effects import Effect
from slmrank.summarize.phrases import PhraseScorer, clauses_of
from slmrank.summarize.ranker import RankerKind, RankerSummarizer, distil
from slmrank.summarize.salience import Salience
from slmrank.tokens import Ids

VOCABULARY = ["weld", "beams", "paint", "dental", "insurance", "team", "friendly"]


def encode(texts: Sequence[str]) -> list[Ids]:
    return [encode_one(text) for text in texts]


def encode_one(text: str) -> Ids:
    """An id per word and per sign; unknown words are the last one."""
    pieces = text.replace(",", " ,").replace(".", " .").split()
    known = {word: place for place, word in enumerate(VOCABULARY)}
    return np.array([known.get(piece.lower(), len(VOCABULARY)) for piece in pieces], dtype=np.int32)


EVEN = Salience(weights={}, unseen=9.0)  # every word is rare


def scorer(salience: Salience = EVEN, **worth: float) -> PhraseScorer:
    weights = np.full(len(VOCABULARY) + 1, -1.0, dtype=np.float32)
    for word, value in worth.items():
        weights[VOCABULARY.index(word)] = value
    return PhraseScorer(weights, salience, encode)


def test_clauses_end_at_signs_and_keep_names_whole() -> None:
    text = "- Write C++ and .NET code (with CI/CD), node.js.\nWe're R&D; A.I. too"
    assert clauses_of(text) == [
        ["Write", "C++", "and", ".NET", "code"],
        ["with", "CI/CD"],
        ["node.js"],
        ["We're", "R&D"],
        ["A.I"],
        ["too"],
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("अस्पताल में नर्स की देखभाल।", [["अस्पताल", "में", "नर्स", "की", "देखभाल"]]),
        (
            "Re\u0301sume\u0301 et me\u0301dicaments",
            [["Re\u0301sume\u0301", "et", "me\u0301dicaments"]],
        ),
        ("the nurse\u2019s aide isn\u2019t", [["the", "nurse\u2019s", "aide", "isn\u2019t"]]),
        ("مُمَرِّضة، طبيب؟", [["مُمَرِّضة"], ["طبيب"]]),
    ],
    ids=["vowel signs", "accents", "apostrophe", "vowels"],
)
def test_marks_are_part_of_their_words(text: str, words: list[list[str]]) -> None:
    """Python counts none of them as one: summaries held every syllable for itself."""
    assert clauses_of(text) == words
    told = (
        unicodedata.normalize("NFKC", " ".join(words[0]))
        .lower()
        .replace("\u2019s", "")
        .replace("\u2019", " ")
    )
    assert set(words_of(text)) >= {one for one in told.split() if not one.endswith("s")}


def test_a_long_word_is_not_kept() -> None:
    found = scorer(weld=3)
    found.of("weld")
    found.of("x" * 5000)
    assert set(found._known) == {"weld"}
    before = _kept_parts.cache_info().currsize
    assert len(words_of("護" * 5000)) == 4999
    assert _kept_parts.cache_info().currsize == before


def test_the_phrases_that_say_most_are_taken_in_order_and_once() -> None:
    text = "Friendly team, dental insurance. You weld the beams, weld beams, and you paint."
    found = scorer(weld=3, beams=2, paint=1)
    assert found.choose(text, 6) == "weld beams, paint"
    assert found.choose(text, 2) == "weld beams"
    assert scorer().choose(text, 6) == ""


def test_a_word_costs_what_it_costs_behind_a_blank() -> None:
    """Alone it has other tokens, and a budget that counts them is a fifth too small."""

    def as_bytes_do(texts: Sequence[str]) -> list[Ids]:
        unknown = np.array([len(VOCABULARY)], dtype=np.int32)
        return [np.concatenate([unknown[: text[:1].isalpha()], encode_one(text)]) for text in texts]

    plain = scorer(weld=3, beams=2, paint=1)
    cut = PhraseScorer(plain.weights, EVEN, as_bytes_do)
    assert cut.of("weld") == plain.of("weld")
    assert cut.choose("Weld beams, paint team.", 5) == "Weld beams, paint"


def test_what_every_posting_says_is_worth_little() -> None:
    """Of the texts of equal opportunity half stood in summaries of 96 tokens, at the cost of 0.02
    NDCG@10: no phrase of them means anything to a query."""
    common = Salience(weights={"weld": 0.1, "beam": 0.1}, unseen=9.0)
    text = "You weld beams, and you paint."
    assert scorer(weld=3, beams=2, paint=1).choose(text, 2) == "weld beams"
    assert scorer(common, weld=3, beams=2, paint=1).choose(text, 2) == "paint"
    # What says less than nothing is not worth more for being common.
    assert scorer(common).of("weld") == scorer().of("weld")


def test_what_the_headline_says_is_not_said_again() -> None:
    made = RankerSummarizer(scorer(weld=3, beams=2, paint=1), 2)
    job = Job(job_id="a", description="weld beams, paint, team")
    headed = job.model_copy(update={"title": "Weld beams"})
    assert [one.text for one in made.summarize([job, headed])] == ["weld beams", "paint"]


def test_a_word_is_worth_less_in_a_sentence_that_says_nothing() -> None:
    """`dental` stands in a sentence about the work, and in one about benefits."""
    text = "Team, friendly team. Dental beams weld. Dental team, friendly insurance team, team."
    found = scorer(weld=3, beams=2, dental=0.2, team=-0.5)
    assert found.choose(text, 3) == "Dental beams weld"
    alone = [rate for rate, place, words, _ in found._candidates(text) if words == ["Dental"]]
    assert len(alone) == 2
    assert alone[0] > alone[1]


def test_a_job_without_a_phrase_worth_saying_keeps_its_start() -> None:
    made = RankerSummarizer(scorer(), 4)
    [summary] = made.summarize([Job(job_id="a", description="dental insurance team " * 5)])
    assert summary.text == "dental insurance team dental"


@given(text=st.text(max_size=300), budget=st.integers(8, 30))
def test_the_budget_holds_for_any_text(text: str, budget: int) -> None:
    found = scorer(weld=3, beams=2, paint=1)
    [summary] = RankerSummarizer(found, budget).summarize([Job(job_id="a", description=text)])
    assert summary.tokens == len(encode_one(summary.text)) <= budget


def test_every_kept_word_stands_in_the_posting() -> None:
    text = "We weld heavy beams. The friendly team will paint, weld and bake. " * 3
    words = {word.strip(".,") for word in text.split()}
    kept = scorer(weld=3, beams=2, paint=1, team=0.5).choose(text, 12)
    assert {word.strip(",") for word in kept.split()} <= words


def test_effects_are_distilled_into_what_tokens_say() -> None:
    """Words near to those with an effect get one too, though no phrase had them."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(len(VOCABULARY) + 1, 4)).astype(np.float32)
    table[VOCABULARY.index("paint")] = table[VOCABULARY.index("weld")] + 0.05
    effects = [
        Effect(phrase="weld beams", effect=3.0),
        Effect(phrase="weld", effect=2.5),
        Effect(phrase="dental insurance", effect=-0.5),
        Effect(phrase="friendly team", effect=0.0),
    ] * 500
    weights = distil(effects, table, encode)
    of = dict(zip(VOCABULARY, weights.tolist(), strict=False))
    assert min(of["weld"], of["paint"]) > max(of["dental"], of["insurance"], of["team"]) + 0.5
    with pytest.raises(DataError, match="no phrase that the ranker could judge"):
        distil([], table, encode)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token_weights"):
        RankerKind().load(tmp_path, SummarizeSpec(), encode)
    (tmp_path / "token_weights.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="token_weights"):
        RankerKind().load(tmp_path, SummarizeSpec(), encode)
    made = RankerSummarizer(scorer(weld=3), 8)
    made.save(tmp_path)
    assert RankerKind().load(tmp_path, SummarizeSpec(), encode).identity() == {
        **made.identity(),
        "budget_tokens": SummarizeSpec().budget_tokens,
    }
    (tmp_path / "salience.json").unlink()  # as an earlier release fitted it
    with pytest.raises(DataError, match=r"salience\.json") as caught:
        RankerKind().load(tmp_path, SummarizeSpec(), encode)
    assert "control summarize" in caught.value.hint
