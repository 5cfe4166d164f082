"""A run's batches and learning rates, from its settings alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from slmrank.errors import DataError
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec


def learning_rate_at(step: int, spec: TrainSpec) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(spec.steps - spec.warmup_steps, 1)
    return spec.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def draw_batches(examples: Sequence[EncodedQuery], spec: TrainSpec) -> list[list[EncodedQuery]]:
    """The whole run's batches, from the seed alone: a resumed run sees what it would have seen.

    Within a query, items are drawn so that different targets meet: the training signal of a
    listing is the order inside it. Raises DataError when there is no example.
    """
    rng = random.Random(spec.seed)
    if not examples and spec.steps:
        raise DataError("no training pairs", "add pairs with split 'train'")
    queue: list[EncodedQuery] = []
    batches = []
    for _ in range(spec.steps):
        while len(queue) < spec.queries_per_step:
            refill = list(examples)
            rng.shuffle(refill)
            queue += refill
        taken, queue = queue[: spec.queries_per_step], queue[spec.queries_per_step :]
        batches.append([_subset(example, spec.items_per_query, rng) for example in taken])
    return batches


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
