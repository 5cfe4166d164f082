"""The highest open-loop rate whose latency percentile stays under the objective.

Bracketing by a fixed factor and bisection with short runs, then the same again around what they
found, with confirmation runs: several, each long enough for a queue to settle; one lucky window
does not count. Every run is a kept point, so an interrupted search goes on where it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.errors import SweepError
from slmrank.load.perf_analyzer import WINDOW_STRETCH
from slmrank.load.perf_result import MERGED_WINDOWS
from slmrank.load.points import Load
from slmrank.load.run import Bench, Subject, Task
from slmrank.spec.load import SloSpec

KIND = "slo"
STEP = 1.6
BRACKET_STEPS = 12
COARSER = 2  # the bracket of the short runs
ROUNDING = 0.005  # of two rates of three digits
START_SHARE = 0.7
SETTLING = 100  # times the objective, which a confirmation run lasts


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One run at a rate: the percentile's latency and the rate that was answered; None where the
    run gave no number (refused, late, piled up)."""

    latency_ms: float | None
    requests_per_s: float | None

    def holds(self, limit_ms: float) -> bool:
        return self.latency_ms is not None and self.latency_ms <= limit_ms


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """The result of a search: the rate (None: no rate holds), the bracket that remained, and the
    confirmation runs."""

    rate: float | None
    failed_at: float | None
    confirmations: tuple[Observed, ...]
    runs: int


def search_rate(
    measure: Callable[[float, int], Observed],
    *,
    start: float,
    limit_ms: float,
    precision: float,
    confirmations: int,
) -> FoundRate:
    """Search from `start` requests/s; `measure(rate, repeat)` runs one level (pure but for it):
    a short run where `repeat` is 0, which shows where to look, a long one where it is above.

    A rate is confirmed when every long run gives a number and more than half of them hold. Both
    ends of the bracket that remains were judged so: a queue near saturation grows for many times
    the objective. Of simulated servers, runs of 7 s promised over 2 % too much in half of the
    searches, and up to 27 %; now 4 % of searches do where the server answers 45 requests/s. Where
    it answers few, the run's length in requests counts (`SloSpec.confirmed_requests`).
    """
    runs = 0
    confirmed: dict[float, tuple[Observed, ...]] = {}

    def observe(rate: float, repeat: int) -> Observed:
        nonlocal runs
        runs += 1
        return measure(rate, repeat)

    def confirm(rate: float) -> bool:
        found: list[Observed] = []
        while len(found) < confirmations:
            found.append(observe(rate, len(found) + 1))
            failed = sum(not one.holds(limit_ms) for one in found)
            if found[-1].latency_ms is None or 2 * failed >= confirmations:
                return False
        confirmed[rate] = tuple(found)
        return True

    near, above = _bracket(
        lambda rate: observe(rate, 0).holds(limit_ms), start, STEP, COARSER * precision
    )
    if near is None:
        return FoundRate(rate=None, failed_at=above, confirmations=(), runs=runs)
    # Where nothing failed there is no other end to look for.
    steps = BRACKET_STEPS if above is not None else 1
    low, high = _bracket(confirm, near, 1 + precision, precision, steps)
    held = () if low is None else confirmed[low]
    return FoundRate(rate=low, failed_at=high, confirmations=held, runs=runs)


def _bracket(
    holds: Callable[[float], bool],
    start: float,
    step: float,
    precision: float,
    steps: int = BRACKET_STEPS,
) -> tuple[float | None, float | None]:
    """The highest rate that held and the lowest that did not, at most `precision` apart: from
    `start` by a factor, which grows to `STEP` when it is small, then bisected."""
    low, high = None, None
    rate = rounded(start)
    for _ in range(steps):
        if holds(rate):
            low = rate
        else:
            high = rate
        if low is not None and high is not None:
            break
        rate = rounded(rate * step if high is None else rate / step)
        step = max(step, min(step**2, STEP))
    while low is not None and high is not None and high / low > 1 + precision + ROUNDING:
        middle = rounded(math.sqrt(low * high))
        if middle in (low, high):
            break
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high


def rounded(rate: float) -> float:
    """Three significant digits: levels that people can read and that repeat exactly."""
    return float(f"{rate:.3g}")


def search_s(slo: SloSpec, window_ms: int) -> float:
    """Seconds that one cell takes at least: six short runs, and two rounds of confirmations. A
    server that answers few requests a second takes longer: a run lasts until there are enough."""
    starting_s = 3
    short = MERGED_WINDOWS * WINDOW_STRETCH * window_ms
    long = max(SETTLING * slo.latency_ms, short)
    confirming_s = 2 * slo.confirmations * (long / 1000 + starting_s)
    return 6 * (short / 1000 + starting_s) + confirming_s


def known_slo(store: ArtifactStore, subject: Subject, task: Task, slo: SloSpec) -> Artifact | None:
    """What was searched before for a cell; needs no server."""
    return store.find(KIND, subject.key(KIND, _settings(task, slo), task.given))


def find_slo(bench: Bench, task: Task, slo: SloSpec, report: Callable[[str], None]) -> Artifact:
    """Search one cell, or find what was searched; the load of the task's point is not used.

    Raises SweepError when one request alone cannot be measured; then nothing is kept.
    """
    settings = _settings(task, slo)
    key = bench.subject.key(KIND, settings, task.given)
    lineage = bench.lineage(settings, task.given, KIND)
    with bench.store.lock(KIND, key):
        found = known_slo(bench.store, bench.subject, task, slo)
        if found is not None and not bench.again:
            report(f"{task.point.cell}: searched before")
            return found
        with bench.store.create(KIND, key, lineage) as draft:
            draft.figures.update(_search(bench, task, slo, report))
    return bench.store.read(KIND, key)


def _settings(task: Task, slo: SloSpec) -> dict[str, Any]:
    """What decides a search, for its key."""
    return {"slo": slo.settings(), **task.measuring.settings(), "cell": task.point.cell}


def _search(
    bench: Bench, task: Task, slo: SloSpec, report: Callable[[str], None]
) -> dict[str, Any]:
    """What one instance serves at the objective, for one kind of request. `items_per_s` is the
    median over the confirmation runs, `items_per_s_range` and `latency_ms_range` their spread."""
    cell = task.point

    settled = replace(
        task.measuring,
        least_ms=SETTLING * slo.latency_ms,
        min_requests=slo.confirmed_requests,
    )

    def run(load: Load, repeat: int) -> Mapping[str, Any]:
        point = replace(cell, load=load, repeat=repeat)
        measuring = settled if repeat else task.measuring
        return bench.measure(replace(task, point=point, measuring=measuring)).figures

    def measure(rate: float, repeat: int) -> Observed:
        figures = run(Load(kind="rate", level=rate), repeat)
        if figures["verdict"] == "failed":  # says nothing of the server's speed
            raise SweepError(
                f"{cell.cell} at {rate:g} requests/s: perf_analyzer failed: "
                f"{figures.get('reason', 'no reason given')}",
                "look at the point's log, and run it again: what was measured is kept",
            )
        latency = figures.get(f"p{slo.percentile}_ms") if figures["stable"] else None
        shown = figures["verdict"] if latency is None else f"p{slo.percentile} {latency:.0f} ms"
        kind = f"confirmation {repeat}" if repeat else "short run"
        report(f"{cell.cell} at {rate:g} requests/s, {kind}: {shown}")
        answered = figures.get("requests_per_s") if figures["stable"] else None
        return Observed(latency_ms=latency, requests_per_s=answered)

    alone = run(Load(kind="concurrency", level=1), 0)
    if not alone["stable"]:
        raise SweepError(
            f"{cell.cell}: one request at a time gives no stable latency ({alone['verdict']}), so "
            "there is nothing to start from",
            "quieten the machine, or raise sweep.window_ms, and run it again",
        )
    found = FoundRate(rate=None, failed_at=None, confirmations=(), runs=1)
    # When one request alone is already too slow, no rate can hold.
    if alone["p50_ms"] <= slo.latency_ms:
        found = search_rate(
            measure,
            start=START_SHARE * alone["requests_per_s"],
            limit_ms=slo.latency_ms,
            precision=slo.precision,
            confirmations=slo.confirmations,
        )
    rates = [one.requests_per_s * cell.items for one in found.confirmations if one.requests_per_s]
    waits = [one.latency_ms for one in found.confirmations if one.latency_ms is not None]
    return {
        "items": cell.items,
        "tokens": cell.tokens,
        "query_tokens": cell.query_tokens,
        "limit_ms": slo.latency_ms,
        "percentile": slo.percentile,
        "rate": found.rate,
        "items_per_s": statistics.median(rates) if rates else None,
        "items_per_s_range": (min(rates), max(rates)) if rates else None,
        "latency_ms_range": (min(waits), max(waits)) if waits else None,
        "failed_at": found.failed_at,
        "runs": found.runs,
    }


def unheld(cell: Mapping[str, Any]) -> float:
    """The least items/s of a cell that its search did not find to hold. The range of the
    confirmations is narrower, as they ran at one rate: of one simulated server four in five pairs
    of searches lay outside of each other's."""
    tried = cell["failed_at"] * cell["items"] if cell["failed_at"] else 0.0
    held = cell["items_per_s_range"]
    return float(max(held[1] if held else 0.0, tried))
