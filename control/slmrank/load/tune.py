"""Search the settings that a repository exposes for the most items/s at the objective.

Coordinate descent from the spec's own settings: one axis after the other, the best value stays.
Every candidate is a repository of its own, searched on its own server, so every number is a kept
artifact and the search resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

Settings = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings that were tried, and the items/s of one instance at the objective, summed over the
    cells, with the spread of what held, and `unheld`, what did not; None where a cell met it at no
    rate."""

    settings: Settings
    items_per_s: float | None
    low: float | None
    high: float | None
    unheld: float | None

    def beats(self, other: Candidate) -> bool:
        """By the median, where the other did not hold: noise is no reason to change."""
        if self.items_per_s is None:
            return False
        if other.items_per_s is None or other.unheld is None:
            return True
        return self.items_per_s > other.unheld


def descend(
    start: Settings,
    axes: Mapping[str, Sequence[int]],
    measure: Callable[[Settings], Candidate],
    cores: int,
) -> Iterator[Candidate]:
    """Yield candidates as they are measured; the first is `start` (pure but for `measure`). Where
    an instance takes all cores, several of them share these: each with all would only lose."""
    best = measure(start)
    yield best
    for name, values in axes.items():
        for value in values:
            if value == best.settings.get(name):
                continue
            changed = {**best.settings, name: value}
            if name == "instances" and value > 1 and best.settings.get("threads") == 0:
                changed["threads"] = max(1, cores // value)
            tried = measure(changed)
            yield tried
            if tried.beats(best):
                best = tried


def winner(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate that `descend` ended with."""
    return reduce(lambda best, one: one if one.beats(best) else best, candidates)


def default_axes(cores: int, given: Settings) -> dict[str, list[int]]:
    """What is tried on a machine with this many cores."""
    threads = sorted({1, max(1, cores // 2), cores})
    axes = {
        "instances": [1, *([2] if cores > 1 else [])],
        "threads": threads,
        "max_queue_delay_us": [0, 500, 5000],
        "max_batch_size": [1, 8, 32],
    }
    return {name: values for name, values in axes.items() if name in given}
