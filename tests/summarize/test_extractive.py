"""Summaries: under budget, about the work, the same for every query, only changes recomputed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.prompt.encoder import PromptEncoder, PromptTemplate, load_tokenizer
from slmrank.summarize.build_store import SummarySettings, build_store
from slmrank.summarize.extractive import Salience, fit_salience, sentences_of, summarize

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


def words(text: str) -> int:
    return len(text.split())


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
    assert summary.tokens == words(summary.text)


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


def test_text_without_spaces_is_summarised() -> None:
    sentence = "\u6211\u4eec\u62db\u8058\u62a4\u58eb\u7167\u987e\u75c5\u4eba\u3002"
    own = Job(job_id="a", description=sentence * 30)
    salience = Salience(weights={}, unseen=1.0)
    summary = summarize(own, salience, 20, len)
    assert summary.text == sentence
    assert summarize(own, salience, 5, len).text == sentence[:5]


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(DataError, match="no jobs"):
        fit_salience([])


@pytest.fixture
def build(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, object]]]:
    encoder = PromptEncoder(
        load_tokenizer(tokenizer_folder), PromptTemplate(), max_item_tokens=90, max_query_tokens=30
    )

    def make(
        name: str, jobs: dict[str, Job], earlier: Path | None = None
    ) -> tuple[Path, dict[str, object]]:
        target = tmp_path / name
        target.mkdir()
        settings = SummarySettings(method="extractive", budget_tokens=24, tokenizer_hash="t")
        return target, build_store(
            jobs, sorted(JOBS), encoder, settings, target, earlier, lambda *_: None
        )

    return make


def test_another_catalogue_gets_its_own_table(
    build: Callable[..., tuple[Path, dict[str, object]]],
) -> None:
    first, figures = build("first", JOBS)
    other = {
        key: one.model_copy(update={"description": f"Quite another text {key}. " * 30})
        for key, one in JOBS.items()
    }
    _, again = build("second", other, first)
    assert again["salience"] != figures["salience"]
    assert again["reused"] == 0


def test_only_changed_jobs_are_computed(
    build: Callable[..., tuple[Path, dict[str, object]]],
) -> None:
    first, figures = build("first", JOBS)
    assert figures["computed"] == 24
    changed = JOBS | {
        "j3": JOBS["j3"].model_copy(update={"description": BOILERPLATE + "Fly small planes."}),
        "new": job(99, "Sail large ships across the sea."),
    }
    del changed["j5"]
    second, figures = build("second", changed, first)
    assert (figures["computed"], figures["reused"]) == (2, 22)
    from slmrank.store.lmdb_store import SummaryStore

    with SummaryStore(second / "store") as store:
        assert store.ids("j5") is None
        entry = store.get("j3")
        assert entry is not None
        assert "planes" in entry.summary
