"""The reward of summaries (the paper's, section 3), and what a summarizing model earns on held-out
jobs.

Its first term says how far a summary moves a frozen ranker: for a query q, a posting r and its
summary s it is -KL(p(.|q, s) || p(.|q, r)) of the two-token answer, a mean over several queries of
the job, good ones and bad ones: with one kind alone the easy cases would decide. The second term
pays for length: -w (len(s) / len(r))^2, with w = 0.4 in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmrank.data.records import Job
from slmrank.model.probability import probability
from slmrank.prompt.corpus import EncodedQuery
from slmrank.prompt.template import job_text
from slmrank.spec.compress import GenerativeSpec
from slmrank.summarize.effects import queried_jobs
from slmrank.summarize.generative import Writer, request_of, served_text
from slmrank.summarize.new_words import new_words
from slmrank.summarize.summarizer import Fitting

SHOWN = 3
# A summary that makes the ranker sure of the opposite costs at most 4.6 nats, so that one query
# does not outweigh a hundred.
CLIP = 0.01
Floats = npt.NDArray[np.float64]


def divergence(summary: Floats, full: Floats) -> Floats:
    """KL(summary || full) in nats of answers with P("yes") [N] and [N]."""
    p, r = np.clip(summary, CLIP, 1 - CLIP), np.clip(full, CLIP, 1 - CLIP)
    found: Floats = p * np.log(p / r) + (1 - p) * np.log((1 - p) / (1 - r))
    return found


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


class FrozenRanker:
    """A trained ranker that reads whole postings and summaries. `item_tokens`: longest item; a
    posting is cut there."""

    def __init__(self, folder: Path, item_tokens: int, device: str) -> None:
        from slmrank.model.checkpoint import open_checkpoint
        from slmrank.model.placement import choose_placement
        from slmrank.model.reference import load_model

        checkpoint = open_checkpoint(folder)
        self._encoder = checkpoint.encoder(item_tokens)
        self._ranker = load_model(checkpoint, choose_placement(device, "bfloat16"))
        self._full: dict[tuple[str, str], float] = {}

    def divergences(self, job: Job, queries: Sequence[str], summaries: Sequence[str]) -> Floats:
        """Mean KL [N] over the queries, of every summary of a job."""
        summed: Floats = np.zeros(len(summaries))
        for query in queries:
            known = self._full.get((job.job_id, query))
            if known is None:
                # Apart: beside it the summaries are padded towards the posting's length (1.4 times
                # the time for six of them).
                [known] = self._probabilities(query, [job_text(job, job.description)])
                self._full[job.job_id, query] = known
            found = self._probabilities(query, [job_text(job, text) for text in summaries])
            summed += divergence(found, np.array(known))
        return summed / len(queries)

    def _probabilities(self, query: str, texts: Sequence[str]) -> Floats:
        from slmrank.model.batch_tensors import query_logits

        items = tuple(self._encoder.item(ids).ids for ids in self._encoder.bodies(texts))
        asked = EncodedQuery.unjudged(query, self._encoder.prefix(query), items)
        found: Floats = probability(query_logits(self._ranker, asked)).astype(np.float64)
        return found


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
        weight, source = self._spec.length_weight, max(judged.source_tokens, 1)
        encoded = self._fitting.encode(list(summaries))
        return [-weight * (len(ids) / source) ** 2 for ids in encoded]

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
