"""Query-independent extractive summaries under a token budget.

Sentences are chosen greedily for covered word salience per token: a monotone submodular objective
under a knapsack constraint (Lin and Bilmes, 2010, section 4), which rewards new content words and
gives nothing for repetition. A word's salience is its inverse document frequency over job
descriptions, so wording that every posting shares (benefits, how to apply) counts little.

The salience table is fitted on the jobs of the training pairs and kept with the summaries. A table
of an earlier run can be kept on purpose (`summarize.fitted`), so that a growing catalogue computes
only what changed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.code_hash import code_hash
from slmrank.data.records import Job
from slmrank.data.words import words_of
from slmrank.errors import DataError
from slmrank.hashing import hash_value
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.sentences import sentences_of, within_budget
from slmrank.summarize.summarizer import Encode, Fitting, Summary

SALIENCE_FILE = "salience.json"
COST_EXPONENT = 0.7


@dataclass(frozen=True, kw_only=True)
class Salience:
    """Weight per word (nats); words never seen weigh `unseen`, the median of the table."""

    weights: Mapping[str, float]
    unseen: float

    @property
    def hash(self) -> str:
        return hash_value([dict(self.weights), self.unseen])[:16]

    def of(self, word: str) -> float:
        return self.weights.get(word, self.unseen)


def fit_salience(jobs: Iterable[Job]) -> Salience:
    """Inverse document frequency of the words of job descriptions; words of one job are left out,
    since most of them are names. Raises DataError when there are no jobs."""
    seen: Counter[str] = Counter()
    total = 0
    for job in jobs:
        total += 1
        seen.update(set(words_of(job.description)))
    if not total:
        raise DataError("cannot fit summaries on no jobs", "give at least one job")
    weights = {
        word: round(math.log(total / count), 4)
        for word, count in sorted(seen.items())
        if count > 1 and not word.isdigit()
    }
    ordered = sorted(weights.values())
    return Salience(weights=weights, unseen=ordered[len(ordered) // 2] if ordered else 1.0)


class SalienceKind:
    """Sentences chosen by the salience of their words."""

    needs_ranker = False

    def fit(self, fitting: Fitting) -> SalienceSummarizer:
        salience = fit_salience(fitting.jobs)
        return SalienceSummarizer(salience, fitting.spec.budget_tokens, fitting.encode)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> SalienceSummarizer:
        """Raises DataError when the table is missing or broken."""
        path = folder / SALIENCE_FILE
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            salience = Salience(weights=loaded["weights"], unseen=float(loaded["unseen"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"cannot read {path}: {error}", "run `control summarize` again"
            ) from error
        return SalienceSummarizer(salience, spec.budget_tokens, encode)


@dataclass(frozen=True)
class SalienceSummarizer:
    """A salience table, a budget in tokens of the summary alone, and the tokenizer that counts."""

    salience: Salience
    budget: int
    encode: Encode

    def identity(self) -> dict[str, Any]:
        return {
            "method": "salience",
            "budget_tokens": self.budget,
            "salience": self.salience.hash,
            "code": code_hash(__name__),
        }

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        return [self._summary(job) for job in jobs]

    def _summary(self, job: Job) -> Summary:
        def shorten(_description: str, budget: int) -> str:
            return chosen_sentences(job, self.salience, budget, self.encode)

        return within_budget(job, self.budget, self.encode, shorten)

    def save(self, folder: Path) -> None:
        table = {"unseen": self.salience.unseen, "weights": dict(self.salience.weights)}
        (folder / SALIENCE_FILE).write_text(json.dumps(table), encoding="utf-8")


def chosen_sentences(job: Job, salience: Salience, budget: int, encode: Encode) -> str:
    """The sentences of one job's description that cover most in `budget` tokens, in their order;
    the start of the longest one where none fits."""
    known = set(words_of(f"{job.title} {job.company} {job.location}"))
    sentences = sentences_of(job.description)
    words = [set(words_of(sentence)) - known for sentence in sentences]
    costs = [len(encode(sentence)) for sentence in sentences]
    chosen = _cover(words, costs, salience, budget)
    text = " ".join(sentences[index] for index in chosen)
    while chosen and len(encode(text)) > budget:
        chosen.pop()
        text = " ".join(sentences[index] for index in chosen)
    return text or max(sentences, key=len, default="")


def _cover(words: list[set[str]], costs: list[int], salience: Salience, budget: int) -> list[int]:
    covered: set[str] = set()
    chosen: list[int] = []
    left = budget
    while True:
        best, best_rate = -1, 0.0
        for index, (own, cost) in enumerate(zip(words, costs, strict=True)):
            if index in chosen or cost > left or not own:
                continue
            gain = sum(salience.of(word) for word in own - covered)
            rate = gain / cost**COST_EXPONENT
            if rate > best_rate:
                best, best_rate = index, rate
        if best < 0:
            return sorted(chosen)
        chosen.append(best)
        covered |= words[best]
        left -= costs[best]
