"""Summarizers that learn nothing, against which the others are measured: the first words of a
description, and the first words that are not stop words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.data.records import Job
from slmrank.data.words import is_stop_word
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.sentences import within_budget
from slmrank.summarize.summarizer import Encode, Fitting, Summary

Shorten = Callable[[str], str]


def whole(text: str) -> str:
    """The text in one line; `within_budget` keeps what fits of it."""
    return " ".join(text.split())


def without_stop_words(text: str) -> str:
    """The text without English stop words (a list of function words; other languages keep all)."""
    return " ".join(word for word in text.split() if not is_stop_word(word.strip(".,;:")))


@dataclass(frozen=True)
class LeadKind:
    """Summaries that start where the description starts. `shorten` is applied first."""

    method: str
    shorten: Shorten
    needs_ranker = False

    def fit(self, fitting: Fitting) -> Lead:
        return Lead(self, fitting.spec.budget_tokens, fitting.encode)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> Lead:
        return Lead(self, spec.budget_tokens, encode)


@dataclass(frozen=True)
class Lead:
    """A kind, a budget in tokens of the summary alone, and the tokenizer that counts."""

    kind: LeadKind
    budget: int
    encode: Encode

    def identity(self) -> dict[str, Any]:
        return {"method": self.kind.method, "budget_tokens": self.budget}

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        def shorten(jobs: Sequence[Job], _budget: int) -> list[str]:
            return [self.kind.shorten(job.description) for job in jobs]

        return within_budget(jobs, self.budget, self.encode, shorten)

    def save(self, folder: Path) -> None:
        """Nothing was learnt."""
