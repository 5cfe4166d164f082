"""The reward of summaries, and what a summarizing model earns on held-out jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmrank.data.records import Job
from slmrank.spec.compress import GenerativeSpec
from slmrank.summarize.effects import queried_jobs
from slmrank.summarize.faithfulness import FrozenRanker, length_cost
from slmrank.summarize.generative import Writer, request_of, served_text
from slmrank.summarize.new_words import new_words
from slmrank.summarize.summarizer import Fitting

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The likeliest summaries of held-out jobs: reward and its two terms by job, tokens and the
    share of words that the posting does not have, as means; a few texts."""

    name: str
    step: int
    rewards: list[float]
    divergence: float
    length_cost: float
    tokens: float
    new_words: float
    shown: list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A job with the queries by which its summaries are judged."""

    job: Job
    queries: tuple[str, ...]
    source_tokens: int


class Reward:
    """The reward of summaries, as its two terms."""

    def __init__(self, fitting: Fitting, spec: GenerativeSpec) -> None:
        assert fitting.ranker is not None
        self._fitting, self._spec = fitting, spec
        self._ranker = FrozenRanker(fitting.ranker, spec.item_tokens, fitting.device)

    def faithfulness(self, judged: Judged, summaries: Sequence[str]) -> list[float]:
        """-KL [N], a mean over the job's queries."""
        found = self._ranker.divergences(judged.job, judged.queries, summaries)
        return [-float(one) for one in found]

    def brevity(self, judged: Judged, summaries: Sequence[str]) -> list[float]:
        """-w (len(s) / len(r))^2 [N]."""
        weight = self._spec.length_weight
        return [
            -length_cost(len(ids), judged.source_tokens, weight)
            for ids in self._fitting.encode(list(summaries))
        ]

    def measure(self, name: str, step: int, folder: Path, held_out: Sequence[Judged]) -> Measured:
        """What the model in `folder` writes for held-out jobs, and what that is worth."""
        spec, encode = self._spec, self._fitting.encode
        writer = Writer(folder, self._fitting.device)
        terms: list[tuple[float, float]] = []
        words: list[float] = []
        tokens: list[int] = []
        shown = []
        for number, one in enumerate(held_out, start=1):
            request = request_of(one.job, spec.source_tokens, encode)
            written = writer.write(request, spec.tokens)
            text = served_text(one.job, written, spec, spec.tokens, encode)
            [faithful], [brief] = self.faithfulness(one, [text]), self.brevity(one, [text])
            terms.append((faithful, brief))
            words.append(len(new_words(one.job, text)) / max(len(text.split()), 1))
            tokens.append(len(encode([text])[0]))
            if number <= SHOWN:
                shown.append({"title": one.job.title, "summary": text})
            self._fitting.progress(number, len(held_out), f"held-out jobs, {name}")
        return Measured(
            name=name,
            step=step,
            rewards=[faithful + brief for faithful, brief in terms],
            divergence=-float(np.mean([faithful for faithful, _ in terms])),
            length_cost=-float(np.mean([brief for _, brief in terms])),
            tokens=float(np.mean(tokens)),
            new_words=float(np.mean(words)),
            shown=shown,
        )


def judged_jobs(fitting: Fitting, spec: GenerativeSpec) -> list[Judged]:
    """Jobs drawn among those with training queries of both kinds, held-out ones and all. Raises
    DataError when there are none."""
    half = spec.queries // 2
    drawn = queried_jobs(fitting, spec.held_out + spec.jobs, (spec.queries - half, half), spec.seed)
    sizes = fitting.encode([job.description for job, _, _ in drawn])
    return [
        Judged(job=job, queries=(*good, *bad), source_tokens=len(ids))
        for (job, (good, bad), _), ids in zip(drawn, sizes, strict=True)
    ]
