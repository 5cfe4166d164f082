"""The summarizers that learn nothing: the first words, with and without stop words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.records import Job
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.lead import without_stop_words
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.summarize.summarizer import Fitting, Summarizer
from slmrank.tokens import Ids

TEXT = "You will weld the beams of a bridge, and you paint them in the spring. " * 5


def encode(texts: Sequence[str]) -> list[Ids]:
    return [np.zeros(len(text.split()), dtype=np.int32) for text in texts]


def fitted(method: str, budget: int) -> Summarizer:
    spec = SummarizeSpec(method=method, budget_tokens=budget)
    return SUMMARIZERS.get(method).fit(Fitting(spec=spec, jobs=[], encode=encode))


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("lead", "You will weld the beams of a bridge,"),
        ("stopwords", "weld beams bridge, paint spring. weld beams bridge,"),
    ],
)
def test_the_start_is_kept(method: str, kept: str, tmp_path: Path) -> None:
    made = fitted(method, 8)
    job = Job(job_id="a", description=TEXT)
    [summary] = made.summarize([job])
    assert summary.text == kept
    assert (summary.tokens, summary.source_tokens) == (8, len(TEXT.split()))
    made.save(tmp_path)
    spec = SummarizeSpec(method=method, budget_tokens=8)
    again = SUMMARIZERS.get(method).load(tmp_path, spec, encode)
    assert again.summarize([job]) == [summary]
    assert again.identity() == made.identity()


def test_lines_that_are_longer_when_joined_stay_apart() -> None:
    """A line end behind a sign of Han is one token with it, a blank is one more: 63 of 36."""

    def by_sign(texts: Sequence[str]) -> list[Ids]:
        return [np.zeros(len(text.replace("。\n", "。")), dtype=np.int32) for text in texts]

    description = "照顾病人。\n" * 4
    spec = SummarizeSpec(method="lead", budget_tokens=20)
    made = SUMMARIZERS.get("lead").fit(Fitting(spec=spec, jobs=[], encode=by_sign))
    [summary] = made.summarize([Job(job_id="a", description=description)])
    assert (summary.text, summary.tokens) == (description, 20)


@given(text=st.text(max_size=400), budget=st.integers(8, 40))
def test_the_budget_holds_and_a_summary_is_never_empty(text: str, budget: int) -> None:
    for method in ("lead", "stopwords"):
        [summary] = fitted(method, budget).summarize([Job(job_id="a", description=text)])
        assert summary.tokens == len(encode([summary.text])[0]) <= budget
        assert bool(summary.text) == bool(text.split())


def test_abbreviations_are_no_function_words() -> None:
    """IT was struck as a pronoun, US as another and AM as a verb."""
    text = "IT support for us: US offices, AM shift. It is we who are here"
    assert without_stop_words(text) == "IT support US offices, AM shift."
