"""What a ranker answers: a score for each job, who gave it, and where the time went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.triton.config import PREPARE_US, RANKER_US, SCORE, SERVED, STATUS
from slmrank.triton.status import Status


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """P(relevant) of one job, NaN when it was not scored; `index` is its place in the request."""

    index: int
    job_id: str
    score: float
    status: Status

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: no score is null."""
        return {
            "index": self.index,
            "job_id": self.job_id,
            "score": None if math.isnan(self.score) else self.score,
            "status": int(self.status),
            "status_text": self.status.words,
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    """One call to one server: `items` jobs from place `start` on.

    `served` is what answered (engine, checkpoint, summaries, hashes of template and tokenizer).
    Seconds: `total_s` as the caller waited, repetitions included; of these `prepare_s` and
    `ranker_s` in the server's stages, where requests that were joined share one pass of the
    engine. The rest is transport and queues.
    """

    start: int
    items: int
    served: Mapping[str, str]
    total_s: float
    prepare_s: float
    ranker_s: float

    @property
    def times_ms(self) -> dict[str, float]:
        """Milliseconds by stage, for people and for headers."""
        seconds = {"total": self.total_s, "prepare": self.prepare_s, "ranker": self.ranker_s}
        return {name: round(value * 1000, 3) for name, value in seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, with milliseconds."""
        return {
            "start": self.start,
            "items": self.items,
            "served": dict(self.served),
            "times_ms": self.times_ms,
        }


class Answer(list[ItemScore]):
    """Scores in the order of the request; `parts` says who gave them: one part for each call that
    the request was split into. Replicas of two releases may answer parts of one request."""

    def __init__(self, items: Iterable[ItemScore], parts: Iterable[Part]) -> None:
        super().__init__(items)
        self.parts = tuple(parts)


def join_answers(answers: Sequence[Answer]) -> Answer:
    """The answer of all parts."""
    return Answer(
        (item for one in answers for item in one), (part for one in answers for part in one.parts)
    )


def read_reply(reply: Any, job_ids: Iterable[str], start: int, total_s: float) -> Answer:
    """The answer to one call that took `total_s`, the first of whose jobs has place `start`."""
    scores, statuses = reply.as_numpy(SCORE.name)[0], reply.as_numpy(STATUS.name)[0]
    items = [
        ItemScore(index=place, job_id=job_id, score=score, status=Status(status))
        for place, (job_id, score, status) in enumerate(
            zip(job_ids, scores.tolist(), statuses.tolist(), strict=True), start
        )
    ]
    prepare_s, ranker_s = (
        float(reply.as_numpy(one.name).flat[0]) / 1e6 for one in (PREPARE_US, RANKER_US)
    )
    part = Part(
        start=start,
        items=len(items),
        served=json.loads(reply.as_numpy(SERVED.name).flat[0]),
        total_s=total_s,
        prepare_s=prepare_s,
        ranker_s=ranker_s,
    )
    return Answer(items, (part,))


def rank_order(items: Sequence[ItemScore]) -> list[ItemScore]:
    """Best first; items without a score last, in request order."""
    scored = [item for item in items if not math.isnan(item.score)]
    rest = [item for item in items if math.isnan(item.score)]
    return sorted(scored, key=lambda item: -item.score) + rest
