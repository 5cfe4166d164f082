"""Compare autoscaling policies on one trace: share of requests within the objective, refusals,
cost, and the floor that a burst needs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.deploy.autoscale.fleet import Outcome, Sizing, run_fleet
from slmrank.deploy.autoscale.hpa import Autoscaler
from slmrank.deploy.autoscale.policies import Reactive, Scheduled, Trend
from slmrank.deploy.autoscale.situation import Situation
from slmrank.deploy.autoscale.traces import Trace
from slmrank.errors import DataError
from slmrank.spec.repository import DepthSpec

# Without shedding a request waits as long as its client does.
PATIENCE_S = 30.0
NO_LIMIT = 1_000_000
MOST_REQUESTS = 20_000_000
PLANNED = "floor + shedding + pending"
RENDERED = "as in the manifests"  # the same, between the release's own bounds


@dataclass(frozen=True, kw_only=True)
class Result:
    """One policy on one trace. Shares are of all offered requests, refused ones included; p99 is of
    those answered, in seconds, as is `ranked`, the mean share of a request's jobs, and `ndcg`, what
    that costs by a measured table (None without one)."""

    policy: str
    within: float
    refused: float
    p99_s: float
    replica_hours: float
    most_replicas: int
    floor: int
    requests: int
    ranked: float
    ndcg: float | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The fewest and the most replicas, whether requests are refused, how replicas follow, and
    whether depth does."""

    floor: int
    most: int
    sheds: bool
    sizing: Sizing
    depth: DepthSpec | None = None


def policies_of(situation: Situation, trace: Trace) -> dict[str, Policy]:
    """The compared policies by name. `reactive` has the floor that the trace's quiet load needs,
    the others with a floor have the planned one, and `as in the manifests` the release's bounds."""
    quiet = float(np.percentile(trace.rates, 5))
    most = situation.maximum
    low = min(max(1, math.ceil(quiet / situation.target_items_per_s)), most)

    def policy(
        floor: int,
        sheds: bool,
        kind: type[Reactive] = Reactive,
        *,
        most: int = most,
        depth: DepthSpec | None = None,
        **more: Any,
    ) -> Policy:
        scaler = Autoscaler(minimum=floor, maximum=most, behavior=situation.behavior)
        target = situation.target_items_per_s
        sizing = kind(autoscaler=scaler, target_items_per_s=target, **more)
        return Policy(floor=floor, most=most, sheds=sheds, sizing=sizing, depth=depth)

    horizon, floor = situation.cold_start_s + 30, situation.floor
    pending, (least, last) = situation.pending, situation.rendered
    compared = {
        "reactive": policy(low, False),
        "reactive + shedding": policy(low, True),
        "reactive + shedding + depth": policy(low, True, depth=situation.depth),
        "trend": policy(low, False, Trend, horizon_s=horizon),
        "floor": policy(floor, False),
        "floor + shedding": policy(floor, True),
        PLANNED: policy(floor, True, target_pending=pending),
        RENDERED: policy(least, True, most=last, target_pending=pending),
    }
    if (history := trace.history) is not None:
        compared["scheduled"] = policy(low, False, Scheduled, history=history, horizon_s=horizon)
    return compared


def compare(
    situation: Situation, trace: Trace, report: Callable[[str], None]
) -> tuple[list[Result], dict[str, Outcome]]:
    """Every policy on the same arrivals and service times. Raises DataError for a trace without
    requests, or with more than can be simulated."""
    arrivals = arrivals_of(situation, trace)
    results, outcomes = [], {}
    for name, policy in policies_of(situation, trace).items():
        report(name)
        outcome = _run(situation, trace, arrivals, policy)
        results.append(_result(name, policy.floor, outcome, situation))
        outcomes[name] = outcome
    return results, outcomes


def find_floor(
    situation: Situation, trace: Trace, attainment: float, report: Callable[[str], None]
) -> tuple[int | None, list[tuple[int, float]]]:
    """The least floor with which the planned policy keeps `attainment` of the requests within the
    objective, by bisection, and (floor, share) of what was tried. None: not with any floor up to
    what carries the trace's peak, or the most replicas where that is less."""
    arrivals = arrivals_of(situation, trace)
    tried: dict[int, float] = {}

    def share(floor: int) -> float:
        if floor not in tried:
            report(f"floor {floor}")
            given = replace(situation, floor=floor)
            policy = policies_of(given, trace)[PLANNED]
            outcome = _run(given, trace, arrivals, policy)
            tried[floor] = _result(PLANNED, policy.floor, outcome, given).within
        return tried[floor]

    peak = math.ceil(float(trace.rates.max()) / situation.capacity_items_per_s) + 1
    high = min(max(1, peak), situation.maximum)
    if share(high) < attainment:
        return None, sorted(tried.items())
    low = 1 + bisect_left(range(1, high), True, key=lambda floor: share(floor) >= attainment)
    return low, sorted(tried.items())


def arrivals_of(situation: Situation, trace: Trace) -> npt.NDArray[np.float64]:
    expected = trace.mean * trace.seconds / situation.items
    if expected > MOST_REQUESTS:
        raise DataError(
            f"the trace holds {expected:.0f} requests, at most {MOST_REQUESTS} are simulated",
            "lower --load or --hours",
        )
    arrivals = trace.arrivals(situation.items, situation.seed)
    if not len(arrivals):
        raise DataError("the trace holds no request", "raise --load or --hours")
    return arrivals


def per_minute(outcome: Outcome, limit_s: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(offered requests, share within the objective) of each minute; NaN where none came."""
    edges = np.arange(0, outcome.seconds + 60, 60)
    good = np.nan_to_num(outcome.latencies, nan=np.inf) <= limit_s
    offered, _ = np.histogram(outcome.arrivals, edges)
    kept, _ = np.histogram(outcome.arrivals[good], edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        return offered, np.where(offered > 0, kept / offered, np.nan)


def _run(
    situation: Situation, trace: Trace, arrivals: npt.NDArray[np.float64], policy: Policy
) -> Outcome:
    limited = situation
    if not policy.sheds:
        limited = replace(situation, queue=NO_LIMIT, queue_timeout_s=PATIENCE_S)
    first = float(trace.rates[: max(1, len(trace.rates) // 100)].mean())
    least = max(policy.floor, math.ceil(first / situation.target_items_per_s))
    start = min(least, policy.most)
    return run_fleet(
        arrivals, limited, policy.sizing, start=start, seconds=trace.seconds, depth=policy.depth
    )


def _result(name: str, floor: int, outcome: Outcome, situation: Situation) -> Result:
    latencies = outcome.latencies
    answered = latencies[~np.isnan(latencies)]
    ranked = outcome.ranked[~np.isnan(latencies)]
    ndcg = None
    if situation.ndcg_of and len(ranked):
        shares, values = zip(*sorted(situation.ndcg_of), strict=True)
        ndcg = float(np.interp(ranked, shares, values).mean())
    return Result(
        policy=name,
        within=float((np.nan_to_num(latencies, nan=np.inf) <= situation.limit_s).mean()),
        refused=float(np.isnan(latencies).mean()),
        p99_s=float(np.percentile(answered, 99)) if len(answered) else math.nan,
        replica_hours=outcome.replica_hours,
        most_replicas=max(size for _, size, _ in outcome.sizes),
        floor=floor,
        requests=len(latencies),
        ranked=float(ranked.mean()) if len(ranked) else math.nan,
        ndcg=ndcg,
    )


def best(results: Sequence[Result], attainment: float) -> Result | None:
    """The cheapest policy that keeps the attainment, None when none does."""
    kept = [one for one in results if one.within >= attainment]
    return min(kept, key=lambda one: one.replica_hours, default=None)
