"""Two records side by side: the same cells and loads, as ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from slmrank.load.figures import cell_name, cell_of, key_of, point_name, stable_points
from slmrank.load.perf_result import known_percentile
from slmrank.load.record import Record
from slmrank.load.slo import unheld


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One point of both records: second over first. An open loop has no ratio of rates: a server
    that holds the rate answers at the rate that was asked for, however fast it is."""

    name: str
    first: float
    second: float
    items_per_s: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ratios of the points that both hold, with their median and range; how many points one holds
    `alone`; and the rates at the same objective, None where none holds: (cell, first, second,
    whether each holds where the other does not)."""

    ratios: list[Ratio]
    median: float | None
    low: float | None
    high: float | None
    alone: tuple[int, int]
    slo: list[tuple[str, float | None, float | None, bool]]


def compare(first: Record, second: Record) -> Comparison:
    """Pure; points that only one record holds are counted."""
    others = {key_of(point): point for point in stable_points(second)}
    ours = stable_points(first)
    ratios = []
    for point in ours:
        other = others.get(key_of(point))
        if other is None:
            continue
        a, b = point["items_per_s"], other["items_per_s"]
        p95 = _ratio(known_percentile(other, 95), known_percentile(point, 95))
        name = point_name(point)
        ratio = b / a if point["load"]["kind"] == "concurrency" else None
        ratios.append(Ratio(name=name, first=a, second=b, items_per_s=ratio, p95=p95))
    values = sorted(one.items_per_s for one in ratios if one.items_per_s is not None)
    return Comparison(
        ratios=ratios,
        median=statistics.median(values) if values else None,
        low=values[0] if values else None,
        high=values[-1] if values else None,
        alone=(len(ours) - len(ratios), len(others) - len(ratios)),
        slo=_slo(first, second),
    )


def _ratio(second: float | None, first: float | None) -> float | None:
    return second / first if first and second else None


def _slo(first: Record, second: Record) -> list[tuple[str, float | None, float | None, bool]]:
    def named(record: Record) -> dict[tuple[Any, ...], Record]:
        return {(*cell_of(one), one["limit_ms"], one["percentile"]): one for one in record["slo"]}

    def low(one: Record) -> float:
        return float(one["items_per_s_range"][0]) if one["items_per_s"] else 0.0

    ours, theirs = named(first), named(second)
    found = []
    for key in ours.keys() & theirs.keys():
        a, b = ours[key], theirs[key]
        name = f"{cell_name(key[:3])}, p{key[4]} <= {key[3]:g} ms"
        apart = unheld(a) < low(b) or unheld(b) < low(a)
        found.append((name, a["items_per_s"], b["items_per_s"], apart))
    return sorted(found, key=lambda one: one[0])
