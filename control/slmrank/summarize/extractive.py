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
import re
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
from slmrank.summarize.summarizer import CountTokens, Fitting, Summary

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_BULLET = re.compile(r"^[\s\-*\u2022\u00b7\d.)]*(?=\w)")
SALIENCE_FILE = "salience.json"
COST_EXPONENT = 0.7
MIN_WORDS = 3


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


class ExtractiveKind:
    """Sentences chosen by the salience of their words."""

    needs_ranker = False

    def fit(self, fitting: Fitting) -> Extractive:
        salience = fit_salience(fitting.jobs)
        return Extractive(salience, fitting.spec.budget_tokens, fitting.count_tokens)

    def load(self, folder: Path, spec: SummarizeSpec, count_tokens: CountTokens) -> Extractive:
        """Raises DataError when the table is missing or broken."""
        path = folder / SALIENCE_FILE
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            salience = Salience(weights=loaded["weights"], unseen=float(loaded["unseen"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"cannot read {path}: {error}", "run `control summarize` again"
            ) from error
        return Extractive(salience, spec.budget_tokens, count_tokens)


@dataclass(frozen=True)
class Extractive:
    """A salience table, a budget in tokens of the summary alone, and the tokenizer that counts."""

    salience: Salience
    budget: int
    count_tokens: CountTokens

    def identity(self) -> dict[str, Any]:
        return {
            "method": "extractive",
            "budget_tokens": self.budget,
            "salience": self.salience.hash,
            "code": code_hash(__name__),
        }

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        return [summarize(job, self.salience, self.budget, self.count_tokens) for job in jobs]

    def save(self, folder: Path) -> None:
        table = {"unseen": self.salience.unseen, "weights": dict(self.salience.weights)}
        (folder / SALIENCE_FILE).write_text(json.dumps(table), encoding="utf-8")


def sentences_of(text: str) -> list[str]:
    """Sentences and list entries of a description, without bullets, in order."""
    pieces = (_BULLET.sub("", piece).strip() for piece in _SENTENCE_END.split(text))
    kept = (piece for piece in pieces if not piece.endswith(":"))
    return [piece for piece in kept if len(words_of(piece)) >= MIN_WORDS]


def summarize(job: Job, salience: Salience, budget: int, count_tokens: CountTokens) -> Summary:
    """The summary of one job in at most `budget` tokens.

    A description that fits is kept whole; one without usable sentences is cut at word borders.
    """
    source_tokens = count_tokens(job.description)
    if source_tokens <= budget:
        text = " ".join(job.description.split())
        return Summary(text=text, tokens=count_tokens(text), source_tokens=source_tokens)
    known = set(words_of(f"{job.title} {job.company} {job.location}"))
    sentences = sentences_of(job.description)
    words = [set(words_of(sentence)) - known for sentence in sentences]
    costs = [count_tokens(" " + sentence) for sentence in sentences]
    chosen = _cover(words, costs, salience, budget)
    text = " ".join(sentences[index] for index in chosen)
    while chosen and count_tokens(text) > budget:
        chosen.pop()
        text = " ".join(sentences[index] for index in chosen)
    if not chosen:
        text = _cut_words(max(sentences, key=len, default=job.description), budget, count_tokens)
    return Summary(text=text, tokens=count_tokens(text), source_tokens=source_tokens)


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


def _cut_words(text: str, budget: int, count_tokens: CountTokens) -> str:
    words = text.split()
    if words and count_tokens(words[0]) > budget:
        # One word above the budget: a script without spaces. Cut by characters.
        words = list(words[0])
        joint = ""
    else:
        joint = " "
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(joint.join(words[:middle])) <= budget:
            low = middle
        else:
            high = middle - 1
    return joint.join(words[:low])
