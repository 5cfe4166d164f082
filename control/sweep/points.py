"""The grid of a sweep, and the input file of each point.

One point = items per request x tokens per item x concurrency, on one repository. Job texts are real
texts cut with the served tokenizer to the exact token count; queries are real queries. The pool is
drawn by a seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from control.data.records import Job
from control.errors import SweepError
from control.hashing import hash_value
from control.ranker.prompt import PromptEncoder, job_text


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell: N items a request, tokens per item (closing question included), closed loop of
    `concurrency` requests."""

    items: int
    tokens: int
    concurrency: int

    @property
    def name(self) -> str:
        return f"items{self.items}-tokens{self.tokens}-concurrency{self.concurrency}"


@dataclass(frozen=True, kw_only=True)
class PointInput:
    """What perf_analyzer reads, and the true token counts of what it sends."""

    data: dict[str, Any]
    mean_item_tokens: float
    max_item_tokens: int
    mean_query_tokens: float

    @property
    def hash(self) -> str:
        return hash_value(self.data)[:16]


def plan_points(
    items: Sequence[int], tokens: Sequence[int], concurrency: Sequence[int]
) -> list[Point]:
    """Every combination, lightest first."""
    grid = itertools.product(sorted(set(items)), sorted(set(tokens)), sorted(set(concurrency)))
    return [Point(items=i, tokens=t, concurrency=c) for i, t, c in grid]


def point_key(point: Point, repository: str, settings: dict[str, Any], data: str) -> str:
    """Identity of a measured point: another engine or input is another point."""
    identity = {"point": asdict(point), "repository": repository}
    return hash_value(identity | {"settings": settings, "data": data})[:16]


def cut_text(text: str, tokens: int, encoder: PromptEncoder) -> str:
    """A prefix of a text that encodes to exactly `tokens` ids, as near as words allow.

    Raises SweepError when the text is too short.
    """
    low, high = 0, len(text)
    if len(encoder.body(text)) < tokens:
        raise SweepError(f"a text has fewer than {tokens} tokens", "sweep fewer tokens")
    while low < high:
        middle = (low + high) // 2
        if len(encoder.body(text[:middle])) < tokens:
            low = middle + 1
        else:
            high = middle
    return text[:low]


def make_input(
    point: Point,
    jobs: Sequence[Job],
    queries: Sequence[str],
    encoder: PromptEncoder,
    requests: int,
    seed: int,
) -> PointInput:
    """A pool of distinct requests for one point.

    Raises SweepError when `tokens` leaves no room beside the closing question, is above the served
    limit (the server would cut the texts and measure another point), or no job text is long enough.
    """
    closing = encoder.max_item_tokens - encoder.max_body_tokens
    wanted = point.tokens - closing
    if wanted < 1 or point.tokens > encoder.max_item_tokens:
        raise SweepError(
            f"tokens {point.tokens} is outside {closing + 1} to {encoder.max_item_tokens}",
            "change sweep.tokens, or prompt.max_item_tokens in the spec",
        )
    rng = random.Random(f"{seed}/{point.items}/{point.tokens}")
    texts = [text for text in (job_text(j, j.description) for j in jobs) if len(text) > wanted]
    rng.shuffle(texts)
    cut: list[str] = []
    for text in texts:
        if len(cut) == requests * point.items:
            break
        if len(encoder.body(text)) >= wanted:
            cut.append(cut_text(text, wanted, encoder))
    if not cut:
        raise SweepError(f"no job text has {wanted} tokens", "sweep fewer tokens")
    entries, lengths, query_lengths = [], [], []
    for number in range(requests):
        query = rng.choice(queries)
        chosen = [cut[(number * point.items + one) % len(cut)] for one in range(point.items)]
        lengths += [len(encoder.item(encoder.body(text)).ids) for text in chosen]
        query_lengths.append(len(encoder.prefix(query)))
        entries.append(
            {
                "query": {"content": [query], "shape": [1]},
                "job_id": {"content": [""] * point.items, "shape": [point.items]},
                "job_text": {"content": chosen, "shape": [point.items]},
            }
        )
    return PointInput(
        data={"data": entries},
        mean_item_tokens=sum(lengths) / len(lengths),
        max_item_tokens=max(lengths),
        mean_query_tokens=sum(query_lengths) / len(query_lengths),
    )
