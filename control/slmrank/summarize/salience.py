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
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from slmrank.data.records import Job
from slmrank.data.words import words_of
from slmrank.errors import DataError
from slmrank.hashing import hash_value
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.sentences import headline_words, sentences_of, within_budget
from slmrank.summarize.summarizer import Encode, Fitting, Summary

SALIENCE_FILE = "salience.json"
COST_EXPONENT = 0.7
STEPS = 10_000  # in a nat


@dataclass(frozen=True, kw_only=True)
class Salience:
    """Weight per word (nats); words never seen weigh `unseen`, the median of the table."""

    weights: Mapping[str, float]
    unseen: float

    @property
    def hash(self) -> str:
        return hash_value([dict(self.weights), self.unseen])[:16]

    def of(self, word: str) -> float:
        """The mean weight of what a word consists of (`words_of`)."""
        own = words_of(word)
        summed = sum(self.weights.get(one, self.unseen) for one in own)
        return summed / len(own) if own else self.unseen

    @cached_property
    def _steps(self) -> dict[str, int]:
        return {word: round(weight * STEPS) for word, weight in self.weights.items()}

    def steps_of(self, words: Iterable[str]) -> int:
        """The summed weight of words, in steps of the table's last decimal: a sum of whole numbers
        does not depend on the order, which sets do not keep."""
        unseen = round(self.unseen * STEPS)
        return sum([self._steps.get(word, unseen) for word in words])


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
        word: round(math.log(total / count) * STEPS) / STEPS
        for word, count in sorted(seen.items())
        if count > 1 and not word.isdigit()
    }
    ordered = sorted(weights.values())
    return Salience(weights=weights, unseen=ordered[len(ordered) // 2] if ordered else 1.0)


def write_salience(folder: Path, salience: Salience) -> None:
    table = {"unseen": salience.unseen, "weights": dict(salience.weights)}
    (folder / SALIENCE_FILE).write_text(json.dumps(table), encoding="utf-8")


def read_salience(folder: Path) -> Salience:
    """What `write_salience` wrote. Raises DataError when it is missing or broken."""
    path = folder / SALIENCE_FILE
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return Salience(weights=loaded["weights"], unseen=float(loaded["unseen"]))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: {error}", "run `control summarize` again") from error


class SalienceKind:
    """Sentences chosen by the salience of their words."""

    needs_ranker = False

    def fit(self, fitting: Fitting) -> SalienceSummarizer:
        salience = fit_salience(fitting.jobs)
        return SalienceSummarizer(salience, fitting.spec.budget_tokens, fitting.encode)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> SalienceSummarizer:
        """Raises DataError when the table is missing or broken."""
        return SalienceSummarizer(read_salience(folder), spec.budget_tokens, encode)


@dataclass(frozen=True)
class SalienceSummarizer:
    """A salience table, a budget in tokens of the summary alone, and the tokenizer that counts."""

    salience: Salience
    budget: int
    encode: Encode

    def identity(self) -> dict[str, Any]:
        return {"method": "salience", "budget_tokens": self.budget, "salience": self.salience.hash}

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        def shorten(jobs: Sequence[Job], budget: int) -> list[str]:
            return chosen_sentences(jobs, self.salience, budget, self.encode)

        return within_budget(jobs, self.budget, self.encode, shorten)

    def save(self, folder: Path) -> None:
        write_salience(folder, self.salience)


def chosen_sentences(
    jobs: Sequence[Job], salience: Salience, budget: int, encode: Encode
) -> list[str]:
    """Of each job, the sentences of the description that cover most in `budget` tokens, in their
    order. Where these take less than half of it, the start of the longest one follows: a posting
    may be one paragraph."""
    pieces = [sentences_of(job.description) for job in jobs]
    sizes = (len(ids) for ids in encode([one for sentences in pieces for one in sentences]))
    texts, left = [], []
    for job, sentences in zip(jobs, pieces, strict=True):
        known = headline_words(job)
        words = [set(words_of(sentence)) - known for sentence in sentences]
        chosen = _cover(words, list(islice(sizes, len(sentences))), salience, budget)
        texts.append(" ".join(sentences[index] for index in chosen))
        left.append([sentences[index] for index in chosen])
    for place, ids in enumerate(encode(texts)):
        size, chosen_ones = len(ids), left[place]
        while chosen_ones and size > budget:
            chosen_ones.pop()
            texts[place] = " ".join(chosen_ones)
            size = len(encode([texts[place]])[0])
        longest = max(pieces[place], key=len, default="")
        if 2 * size < budget and longest not in chosen_ones:
            texts[place] = f"{texts[place]} {longest}".strip()
    return texts


def _cover(words: list[set[str]], costs: list[int], salience: Salience, budget: int) -> list[int]:
    """Which sentences; `words` loses what is covered."""
    gains = [salience.steps_of(own) for own in words]
    open_ones = [index for index, own in enumerate(words) if own]
    chosen: list[int] = []
    left = budget
    while True:
        best, best_rate = -1, 0.0
        for index in open_ones:
            rate = gains[index] / costs[index] ** COST_EXPONENT if costs[index] <= left else 0.0
            if rate > best_rate:
                best, best_rate = index, rate
        if best < 0:
            return sorted(chosen)
        chosen.append(best)
        left -= costs[best]
        open_ones.remove(best)
        for index in open_ones:
            again = words[index] & words[best]
            words[index] -= again
            gains[index] -= salience.steps_of(again)
