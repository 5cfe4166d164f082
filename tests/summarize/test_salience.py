"""Summaries: under budget, about the work, the same for every query, only changes recomputed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer, template_of
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.model import PromptSpec
from slmrank.store.registry import open_store
from slmrank.summarize.build_store import build_store, require_room
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.summarize.salience import Salience, SalienceSummarizer, fit_salience
from slmrank.summarize.sentences import sentences_of
from slmrank.summarize.summarizer import Encode, Fitting, Summary
from slmrank.tokens import Ids

BOILERPLATE = (
    "We offer paid time off and a friendly team. Apply now using the button on this page. "
)


def job(number: int, work: str) -> Job:
    return Job(
        job_id=f"j{number}", title="Worker", company="Acme", description=BOILERPLATE * 3 + work
    )


WORK = [
    "Weld steel beams on tall bridges every morning.",
    "Teach children to read and write in small groups.",
    "Repair diesel engines of buses and heavy trucks.",
    "Bake bread and cakes for hotels before dawn.",
]
JOBS = {one.job_id: one for one in (job(n, WORK[n % 4] + f" Shift {n}.") for n in range(24))}


def words(texts: Sequence[str]) -> list[Ids]:
    """An id per word."""
    split = [text.split() for text in texts]
    return [np.array([hash(word) % 1000 for word in one], dtype=np.int32) for one in split]


def characters(texts: Sequence[str]) -> list[Ids]:
    return [np.zeros(len(text), dtype=np.int32) for text in texts]


def summarize(job: Job, salience: Salience, budget: int, encode: Encode) -> Summary:
    return SalienceSummarizer(salience, budget, encode).summarize([job])[0]


@pytest.fixture(scope="module")
def salience() -> Salience:
    return fit_salience(JOBS.values())


def test_the_work_is_kept_and_the_wording_is_not(salience: Salience) -> None:
    for number in range(4):
        text = summarize(JOBS[f"j{number}"], salience, 10, words).text
        assert text == WORK[number]


@given(st.text(max_size=600), st.integers(1, 60))
def test_the_budget_holds_for_any_text(text: str, budget: int) -> None:
    salience = Salience(weights={}, unseen=1.0)
    summary = summarize(Job(job_id="a", description=text), salience, budget, words)
    assert summary.tokens <= budget
    assert summary.tokens == len(words([summary.text])[0])


def test_a_short_description_is_kept_whole(salience: Salience) -> None:
    summary = summarize(Job(job_id="a", description="Bake  bread\nat night."), salience, 10, words)
    assert summary.text == "Bake bread at night."


def test_repetition_gains_nothing(salience: Salience) -> None:
    text = "Weld steel beams on bridges. " * 4 + "Repair diesel engines of trucks. " + BOILERPLATE
    summary = summarize(Job(job_id="a", description=text), salience, 10, words)
    assert summary.text == "Weld steel beams on bridges. Repair diesel engines of trucks."


def test_sentences_lose_bullets_and_headings() -> None:
    text = "What you will do:\n- Weld steel beams.\n\u2022 Bake fresh bread.\n2) Drive big trucks."
    assert sentences_of(text) == ["Weld steel beams.", "Bake fresh bread.", "Drive big trucks."]


@pytest.mark.parametrize(
    "sentence",
    [
        "10,000 employees work here.",
        "24/7 phone support given.",
        "401k plan with match.",
        "80% travel is needed.",
        "3D artist for games.",
        "5 years of experience.",
    ],
)
def test_numbers_at_the_start_are_no_bullets(sentence: str) -> None:
    marks = ["", "- ", "12. ", "3) ", "\u2022 1) "]
    assert sentences_of("\n".join(mark + sentence for mark in marks)) == [sentence] * len(marks)


def test_lines_of_signs_cost_nothing() -> None:
    lines = ["-" * 5000, "* " * 3000 + "!", "1.  " * 2000 + "("]
    started = time.monotonic()
    assert sentences_of("\n".join(["Weld steel beams.", *lines])) == ["Weld steel beams."]
    assert time.monotonic() - started < 2


def test_list_marks_without_a_space_go_too() -> None:
    text = (
        "1.Weld steel beams.\n2)Bake fresh bread.\n3\u3001 Drive big trucks.\n4.5 tons are lifted."
    )
    kept = ["Weld steel beams.", "Bake fresh bread.", "Drive big trucks.", "4.5 tons are lifted."]
    assert sentences_of(text) == kept


def test_a_heading_before_text_without_spaces_is_not_all_that_is_left() -> None:
    duties = "\u8d1f\u8d23\u533b\u9662\u75c5\u4eba\u7684\u62a4\u7406\uff0c" * 12
    own = Job(job_id="a", description="\u5c97\u4f4d\u804c\u8d23\uff1a\n" + duties)
    for method in (Salience(weights={}, unseen=1.0), Salience(weights={"\u62a4": 2.0}, unseen=1.0)):
        assert 18 <= summarize(own, method, 20, characters).tokens <= 20


def test_text_without_spaces_is_summarised() -> None:
    sentence = "\u6211\u4eec\u62db\u8058\u62a4\u58eb\u7167\u987e\u75c5\u4eba\u3002"
    own = Job(job_id="a", description=sentence * 30)
    salience = Salience(weights={}, unseen=1.0)
    summary = summarize(own, salience, 20, characters)
    assert summary.text == sentence
    assert summarize(own, salience, 5, characters).text == sentence[:5]


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(DataError, match="no jobs"):
        fit_salience([])


Build = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def build(tokenizer_folder: Path, tmp_path: Path) -> Build:
    encoder = PromptEncoder(
        load_tokenizer(tokenizer_folder),
        template_of(PromptSpec()),
        max_item_tokens=90,
        max_query_tokens=30,
    )
    spec = SummarizeSpec(budget_tokens=24)

    def make(
        name: str, jobs: dict[str, Job], fit_on: dict[str, Job] = JOBS, earlier: str | None = None
    ) -> tuple[Path, dict[str, Any]]:
        fitting = Fitting(spec=spec, jobs=[*fit_on.values()], encode=encoder.bodies)
        summarizer = SUMMARIZERS.get("salience").fit(fitting)
        target = open_store("lmdb:", tmp_path / name, write=True)
        found = [open_store("lmdb:", tmp_path / earlier)] if earlier else []
        identity = {"tokenizer_hash": "t", **summarizer.identity()}
        figures = build_store(jobs, encoder, summarizer, identity, target, found, lambda *_: None)
        for store in (target, *found):
            store.close()
        return tmp_path / name, figures

    return make


def test_items_that_would_be_cut_are_counted_and_refused(
    build: Build, tokenizer_folder: Path
) -> None:
    """A title of its own length in front of a summary that fits the budget exactly."""
    long = {
        key: one.model_copy(update={"title": "senior " * 40 + one.title}) if key < "j2" else one
        for key, one in JOBS.items()
    }
    _, figures = build("cut", long)
    cut = sum(key < "j2" for key in long)
    assert figures["items_cut"] == cut > 0
    encoder = PromptEncoder(
        load_tokenizer(tokenizer_folder),
        template_of(PromptSpec()),
        max_item_tokens=90,
        max_query_tokens=30,
    )
    allowed = SummarizeSpec(budget_tokens=24, max_cut_share=1.0)
    require_room(figures, allowed, encoder)
    with pytest.raises(DataError, match=f"{cut} of 24 items") as caught:
        require_room(figures, SummarizeSpec(budget_tokens=24, max_cut_share=0.1), encoder)
    assert "prompt.max_item_tokens" in caught.value.hint


def test_another_table_reuses_nothing(build: Build) -> None:
    build("first", JOBS)
    other = {
        key: one.model_copy(update={"description": f"Quite another text {key}. " * 30})
        for key, one in JOBS.items()
    }
    _, again = build("second", JOBS, other, "first")
    assert again["reused"] == 0


def test_only_changed_jobs_are_computed_and_the_bytes_do_not_depend_on_it(build: Build) -> None:
    _, figures = build("first", JOBS)
    assert figures["computed"] == 24
    changed = JOBS | {
        "j3": JOBS["j3"].model_copy(update={"description": BOILERPLATE + "Fly small planes."}),
        "j99": job(99, "Sail large ships across the sea."),
    }
    del changed["j5"]
    second, figures = build("second", changed, JOBS, "first")
    assert (figures["computed"], figures["reused"]) == (2, 22)
    store = open_store("lmdb:", second)
    assert store.ids_many(["j5"]) == [None]
    entry = store.get("j3")
    assert entry is not None
    assert "planes" in entry.summary
    store.close()
    fresh, figures = build("fresh", changed)
    assert figures["reused"] == 0
    data = Path("store") / "data.mdb"
    assert (fresh / data).read_bytes() == (second / data).read_bytes()
