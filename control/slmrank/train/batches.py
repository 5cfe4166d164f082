"""A run's batches and learning rates, from its settings alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from slmrank.errors import DataError
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec


def learning_rate_at(step: int, spec: TrainSpec) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(spec.steps - spec.warmup_steps, 1)
    return spec.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def draw_batches(
    examples: Sequence[EncodedQuery], spec: TrainSpec, processes: int = 1
) -> Iterator[list[list[EncodedQuery]]]:
    """The run's batches one after the other, from the seed alone: a resumed run that skips what it
    did sees what it would have seen.

    A batch is a step of all processes together, in one part for each of them: `queries_per_step`
    queries, or what fits into `tokens_per_step`. Within a query, items are drawn so that different
    targets meet: the training signal of a listing is the order inside it. Raises DataError when
    there is no example.
    """
    if not examples and spec.steps:
        raise DataError("no training pairs", "add pairs with split 'train'")
    return _drawn(examples, spec, processes)


def _drawn(
    examples: Sequence[EncodedQuery], spec: TrainSpec, processes: int
) -> Iterator[list[list[EncodedQuery]]]:
    rng = random.Random(spec.seed)
    queue: list[EncodedQuery] = []
    budget = spec.tokens_per_step
    for _ in range(spec.steps):
        parts: list[list[EncodedQuery]] = [[] for _ in range(processes)]
        held = [0] * processes
        number = 0
        while budget is not None or number < spec.queries_per_step * processes:
            if not queue:
                queue = list(examples)
                rng.shuffle(queue)
                queue.reverse()
            taken = _subset(queue[-1], spec.items_per_query, rng)
            size = tokens_of(taken)
            place = number % processes if budget is None else held.index(min(held))
            # Every process needs a query, however small the budget is.
            if budget is not None and held[place] + size > budget and parts[place]:
                break
            queue.pop()
            parts[place].append(taken)
            held[place] += size
            number += 1
        yield parts


def tokens_of(example: EncodedQuery) -> int:
    """Tokens that a query costs: its prefix once, and its items."""
    return len(example.prefix) + sum(len(item) for item in example.items)


def micro_batches(
    batch: Sequence[EncodedQuery], most_tokens: int | None
) -> list[list[EncodedQuery]]:
    """The batch in parts of at most `most_tokens` each; a query's items stay together."""
    parts: list[list[EncodedQuery]] = [[]]
    held = 0
    for example in batch:
        size = tokens_of(example)
        if most_tokens is not None and parts[-1] and held + size > most_tokens:
            parts.append([])
            held = 0
        parts[-1].append(example)
        held += size
    return parts


def _subset(example: EncodedQuery, count: int, rng: random.Random) -> EncodedQuery:
    order = list(range(len(example.items)))
    rng.shuffle(order)
    by_grade: dict[int, list[int]] = {}
    for index in order:
        by_grade.setdefault(example.grades[index], []).append(index)
    chosen: list[int] = []
    while len(chosen) < min(count, len(order)):
        for group in by_grade.values():
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return example.pick(chosen)
