"""Ask a running server for its known answers and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slmrank.client.answer import ItemScore
from slmrank.data.records import Job
from slmrank.engine.known_answers import KnownAnswer
from slmrank.errors import WrongAnswer

# INT8 kernels of two processors differ by less; a wrong model or store by far more.
TOLERANCE = 0.05
Score = Callable[[str, Sequence[str | Job]], Sequence[ItemScore]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A known answer beside what the server said; `p` is None where it gave no score."""

    known: KnownAnswer
    p: float | None

    @property
    def gap(self) -> float:
        return math.inf if self.p is None else abs(self.p - self.known.p)


def compare_known(
    score: Score, answers: Sequence[KnownAnswer], tolerance: float = TOLERANCE
) -> list[Compared]:
    """Ask for every known answer. Raises WrongAnswer that lists each one further away than
    `tolerance`, beside what `score` raises."""
    compared: list[Compared] = []
    for query in dict.fromkeys(one.query for one in answers):
        wanted = [one for one in answers if one.query == query]
        given = score(
            query, [Job.model_validate(one.job) if one.job else one.job_id for one in wanted]
        )
        for known, item in zip(wanted, given, strict=True):
            p = None if math.isnan(item.score) else item.score
            compared.append(Compared(known=known, p=p))
    wrong = [one for one in compared if not one.gap <= tolerance]
    if wrong:
        told = "; ".join(
            f"{one.known.job_id}: {'no score' if one.p is None else format(one.p, '.4f')}, "
            f"known {one.known.p:.4f}"
            for one in wrong
        )
        raise WrongAnswer(
            f"{len(wrong)} of {len(compared)} known answers are off by more than {tolerance:g}: "
            f"{told}",
            "the server runs another engine, tokenizer or summary store than the one that was "
            "checked; deploy the repository as it was generated",
        )
    return compared
