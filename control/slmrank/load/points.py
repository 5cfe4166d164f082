"""The grid of a sweep, and the input of each point.

One point = items per request x tokens per item x query tokens x load, on one repository. Job texts
are real texts cut with the served tokenizer to the exact token count, or job ids that the server
looks up; queries are real queries, cut to an exact count where asked. Pool and arrivals are drawn
by a seed.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from slmrank.data.records import Job
from slmrank.errors import InvalidQuery, SweepError
from slmrank.hashing import hash_value
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import job_text
from slmrank.tokens import Ids

NEARBY = 40
QUERY_TRIES = 50
LoadKind = Literal["concurrency", "rate"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Closed loop of `level` requests in flight, or open loop of `level` requests per second with
    Poisson arrivals."""

    kind: LoadKind
    level: float

    @property
    def name(self) -> str:
        return f"{self.kind}{self.level:g}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell. `tokens` counts the closing question, None: stored summaries as they are;
    `query_tokens` None: queries as they are. `repeat` tells runs of the same cell apart."""

    items: int
    tokens: int | None
    load: Load
    query_tokens: int | None = None
    repeat: int = 0

    @property
    def cell(self) -> str:
        """The point without its load."""
        text = f"items{self.items}-"
        text += "stored" if self.tokens is None else f"tokens{self.tokens}"
        return text + (f"-query{self.query_tokens}" if self.query_tokens else "")

    @property
    def name(self) -> str:
        return f"{self.cell}-{self.load.name}" + (f"-run{self.repeat}" if self.repeat else "")


@dataclass(frozen=True, kw_only=True)
class PointInput:
    """What perf_analyzer reads, and the true token counts of what it sends."""

    data: dict[str, Any]
    mean_item_tokens: float
    max_item_tokens: int
    mean_query_tokens: float

    @cached_property
    def hash(self) -> str:
        return hash_value(self.data)[:16]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What inputs are drawn from. `stored` gives jobs' stored ids, for the store mode."""

    jobs: Mapping[str, Job]
    queries: Sequence[str]
    encoder: PromptEncoder
    requests: int
    seed: int
    stored: Callable[[Sequence[str]], list[Ids | None]] | None = None


def plan_points(
    items: Sequence[int],
    tokens: Sequence[int | None],
    loads: Sequence[Load],
    query_tokens: Sequence[int | None] = (None,),
) -> list[Point]:
    """Every combination, lightest first."""
    grid = itertools.product(
        sorted(set(items)),
        sorted(set(tokens), key=lambda one: one or 0),
        sorted(set(query_tokens), key=lambda one: one or 0),
        sorted(set(loads), key=lambda one: (one.kind, one.level)),
    )
    return [Point(items=i, tokens=t, query_tokens=q, load=load) for i, t, q, load in grid]


def arrivals_us(rate: float, block: int, blocks: int, seed: str) -> list[int]:
    """Gaps in microseconds between Poisson arrivals, in blocks each of which has the exact mean
    rate: of a schedule that has it as a whole, its first third misses it by a tenth."""
    rng = random.Random(seed)
    found: list[int] = []
    for _ in range(blocks):
        gaps = [rng.expovariate(1.0) for _ in range(block)]
        scale = block / sum(gaps) / rate * 1e6
        found += [max(1, round(gap * scale)) for gap in gaps]
    return found


def cut_text(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """A prefix of a text that `count` finds to have exactly `tokens` tokens, as near as characters
    allow.

    Raises SweepError when the text is too short.
    """
    if count(text) < tokens:
        raise SweepError(f"a text has fewer than {tokens} tokens", "sweep fewer tokens")
    low = bisect_left(range(len(text)), tokens, key=lambda end: count(text[:end]))
    # One more character can change the count by two, or lower it: the exact one may lie nearby.
    near = sorted(
        range(max(1, low - NEARBY), min(len(text), low + NEARBY) + 1), key=lambda e: abs(e - low)
    )
    exact = next((end for end in near if count(text[:end]) == tokens), low)
    return text[:exact]


def make_input(point: Point, pool: Pool) -> PointInput:
    """A pool of distinct requests for one point.

    Raises SweepError when `tokens` leaves no room beside the closing question, is above the served
    limit (the server would cut the texts and measure another point), or no text is long enough.
    """
    rng = random.Random(f"{pool.seed}/{point.items}/{point.tokens}/{point.query_tokens}")
    total = pool.requests * point.items
    if point.tokens is None:
        chosen_ids, sizes = _stored_jobs(pool, total, rng)
        texts = [""] * len(chosen_ids)
    else:
        texts = _cut_jobs(pool, point.tokens, total, rng)
        chosen_ids = [""] * len(texts)
        sizes = [len(pool.encoder.item(pool.encoder.body(text)).ids) for text in texts]
    queries = _queries(pool, point.query_tokens, rng)
    entries, lengths, query_lengths = [], [], []
    for number in range(pool.requests):
        query = queries[number % len(queries)]
        places = [(number * point.items + one) % len(texts) for one in range(point.items)]
        lengths += [sizes[place] for place in places]
        query_lengths.append(_query_tokens(pool, query))
        entry = {
            "query": {"content": [query], "shape": [1]},
            "job_id": {"content": [chosen_ids[one] for one in places], "shape": [point.items]},
        }
        if point.tokens is not None:
            entry["job_text"] = {"content": [texts[one] for one in places], "shape": [point.items]}
        entries.append(entry)
    return PointInput(
        data={"data": entries},
        mean_item_tokens=sum(lengths) / len(lengths),
        max_item_tokens=max(lengths),
        mean_query_tokens=sum(query_lengths) / len(query_lengths),
    )


def _cut_jobs(pool: Pool, tokens: int, count: int, rng: random.Random) -> list[str]:
    encoder = pool.encoder
    closing = encoder.max_item_tokens - encoder.max_body_tokens
    wanted = tokens - closing
    if wanted < 1 or tokens > encoder.max_item_tokens:
        raise SweepError(
            f"tokens {tokens} is outside {closing + 1} to {encoder.max_item_tokens}",
            "change sweep.tokens, or prompt.max_item_tokens in the spec",
        )
    names = list(pool.jobs)
    rng.shuffle(names)
    exact: list[str] = []
    near: list[str] = []  # where one more character adds two tokens, no cut is exact
    for name in names:  # read one by one: a million texts are gigabytes
        if len(exact) == count:
            break
        job = pool.jobs[name]
        text = job_text(job, job.description)
        if len(text) > wanted and len(encoder.body(text)) >= wanted:
            cut = cut_text(text, wanted, lambda one: len(encoder.body(one)))
            (exact if len(encoder.body(cut)) == wanted else near).append(cut)
    if not exact and not near:
        raise SweepError(f"no job text has {wanted} tokens", "sweep fewer tokens")
    return exact or near


def _stored_jobs(pool: Pool, count: int, rng: random.Random) -> tuple[list[str], list[int]]:
    """Job ids that the store holds, and the true tokens of their items."""
    if pool.stored is None:
        raise SweepError("no summary store to draw job ids from", "use sweep.texts text")
    names = list(pool.jobs)
    rng.shuffle(names)
    drawn = names[:count]
    stored = zip(drawn, pool.stored(drawn), strict=True)
    known = [(name, ids) for name, ids in stored if ids is not None]
    found = [name for name, _ in known]
    sizes = [len(pool.encoder.item(ids).ids) for _, ids in known]
    if not found:
        raise SweepError("the summary store holds none of the jobs", "run `control summarize`")
    return found, sizes


def _query_tokens(pool: Pool, query: str) -> int:
    """Tokens of a query without the instruction around it. Raises InvalidQuery."""
    encoder = pool.encoder
    fixed = encoder.max_prompt_tokens - encoder.max_item_tokens - encoder.max_query_tokens
    return len(encoder.prefix(query)) - fixed


def _queries(pool: Pool, tokens: int | None, rng: random.Random) -> list[str]:
    """Real queries; with `tokens`, joined and cut to that many tokens."""
    if tokens is None:
        return [rng.choice(pool.queries) for _ in range(pool.requests)]

    def count(text: str) -> int:
        try:
            return _query_tokens(pool, text)
        except InvalidQuery as error:
            # Blank, or above the limit; the search only asks which side it is on.
            return 0 if "empty" in error.message else pool.encoder.max_query_tokens + 1

    if tokens > pool.encoder.max_query_tokens:
        raise SweepError(
            f"query tokens {tokens} is above the served limit {pool.encoder.max_query_tokens}",
            "change sweep.query_tokens, or prompt.max_query_tokens in the spec",
        )
    made: list[str] = []
    for _ in range(pool.requests * QUERY_TRIES):
        if len(made) == pool.requests:
            break
        words = rng.choice(pool.queries)
        while count(words) < tokens:
            words += " " + rng.choice(pool.queries)
        cut = cut_text(words, tokens, count)
        if count(cut) == tokens:
            made.append(cut)
    if not made:
        raise SweepError(f"no query has exactly {tokens} tokens", "ask for another number")
    return made
