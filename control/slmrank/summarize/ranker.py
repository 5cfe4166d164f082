"""Summaries of phrases that a trained ranker reads for.

`fit` measures what phrases do to the ranker's p (`effects`), and distils that into one weight per
token of the vocabulary: ridge regression on the base model's own token embeddings, so that words
that no training posting had are weighed by what they are near to. A summary then costs no forward
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from slmrank.data.records import Job
from slmrank.data.words import is_stop_word
from slmrank.errors import DataError
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.effects import Effect, Embeddings, measure_effects
from slmrank.summarize.phrases import PhraseScorer, Weights, clauses_of, ids_of_words
from slmrank.summarize.salience import fit_salience, read_salience, write_salience
from slmrank.summarize.sentences import headline_words, within_budget
from slmrank.summarize.summarizer import Encode, Fitting, Summary

WEIGHTS_FILE = "token_weights.npy"
DIRECTIONS = 96  # of the embeddings, by variance
RIDGE = 300.0
MAX_EFFECT = 3.0  # nats; beyond it a phrase is the title in other words


class RankerKind:
    """Phrases chosen by what they do to a ranker's p."""

    needs_ranker = True

    def fit(self, fitting: Fitting) -> RankerSummarizer:
        """Raises DataError without training queries that tell jobs apart."""
        effects, table = measure_effects(fitting)
        weights = distil(effects, table, fitting.encode)
        scorer = PhraseScorer(weights, fit_salience(fitting.jobs), fitting.encode)
        return RankerSummarizer(scorer, fitting.spec.budget_tokens)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> RankerSummarizer:
        """Raises DataError when the weights are missing or broken."""
        path = folder / WEIGHTS_FILE
        try:
            weights = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read {path}: {error}", "run `control summarize` again"
            ) from error
        scorer = PhraseScorer(weights, read_salience(folder), encode)
        return RankerSummarizer(scorer, spec.budget_tokens)


@dataclass(frozen=True)
class RankerSummarizer:
    """A scorer of phrases and a budget in tokens of the summary alone."""

    scorer: PhraseScorer
    budget: int

    def identity(self) -> dict[str, Any]:
        return {
            "method": "ranker",
            "budget_tokens": self.budget,
            "weights": sha256(self.scorer.weights.tobytes()).hexdigest()[:16],
            "salience": self.scorer.salience.hash,
        }

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        def shorten(jobs: Sequence[Job], budget: int) -> list[str]:
            return [
                self.scorer.choose(job.description, budget, headline_words(job)) for job in jobs
            ]

        return within_budget(jobs, self.budget, self.scorer.encode, shorten)

    def save(self, folder: Path) -> None:
        np.save(folder / WEIGHTS_FILE, self.scorer.weights, allow_pickle=False)
        write_salience(folder, self.scorer.salience)


def distil(effects: Sequence[Effect], table: Embeddings, encode: Encode) -> Weights:
    """A weight per token [V] from measured effects and the embedding table [V, E].

    A phrase of n words that are no stop words has the features sum(words) / sqrt(n), a word the
    mean of its tokens' embeddings, whitened along the directions of most variance. Linear
    throughout, so that a token's weight is all that is kept. Raises DataError without a phrase.
    """
    centred = table - table.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(centred, rowvar=False))
    last = slice(-min(DIRECTIONS, len(variances)), None)
    reduced = centred @ (directions[:, last] / np.sqrt(variances[last]))
    features, targets = [], []
    for one in effects:
        words = [word for part in clauses_of(one.phrase) for word in part if not is_stop_word(word)]
        if words:
            summed = sum(reduced[ids].mean(axis=0) for ids in ids_of_words(words, encode))
            features.append(summed / np.sqrt(len(words)))
            targets.append(np.clip(one.effect, -MAX_EFFECT, MAX_EFFECT))
    if not features:
        raise DataError(
            "the descriptions hold no phrase that the ranker could judge",
            "use summarize.method salience",
        )
    x, y = np.array(features), np.array(targets)
    middle, mean = x.mean(axis=0), y.mean()
    gram = (x - middle).T @ (x - middle) + RIDGE * np.eye(x.shape[1])
    slope = np.linalg.solve(gram, (x - middle).T @ (y - mean))
    weights: Weights = (reduced @ slope + (mean - middle @ slope)).astype(np.float32)
    return weights
