"""What a simulation is about: a release, its capacity and queues, and the traffic that meets it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmrank.deploy.autoscale.hpa import Rules
from slmrank.deploy.autoscale.traces import HOURS, KINDS, Trace, make_trace, read_trace
from slmrank.deploy.release import Release
from slmrank.deploy.scaling import behavior
from slmrank.deploy.sizing import target_items_per_s
from slmrank.errors import DataError
from slmrank.load.capacity import Capacity, plan_capacity
from slmrank.spec.deploy import ScalingSpec
from slmrank.spec.load import SimulateSpec
from slmrank.spec.repository import DepthSpec


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything beside trace and policy. `capacity_items_per_s`: what one replica serves at the
    objective; times in seconds; `jitter`: the standard deviation of the service time over its mean;
    `queue`, `queue_timeout_s`: waiting requests of one replica, and time to an answer, beyond which
    a request is refused; `floor` and `maximum` are planned for the trace, `rendered` those of the
    release; `ndcg_of`: (share of jobs ranked, measured NDCG@10)."""

    capacity_items_per_s: float
    target_items_per_s: float
    items: int
    limit_s: float
    service_s: float
    jitter: float
    cold_start_s: float
    queue: int
    queue_timeout_s: float
    pending: int
    floor: int
    maximum: int
    rendered: tuple[int, int]
    behavior: Mapping[str, Rules]
    seed: int
    depth: DepthSpec
    ndcg_of: tuple[tuple[float, float], ...] = ()


def open_trace(spec: SimulateSpec, history: Path | None) -> Trace:
    """The synthetic trace or the file that a spec names. Raises DataError for neither."""
    if spec.trace in KINDS:
        if history is not None:
            raise DataError(
                f"a history is for a trace of your own, not for {spec.trace}", "leave it out"
            )
        hours = spec.hours or HOURS[spec.trace]
        return make_trace(spec.trace, load=spec.load, burst=spec.burst, hours=hours, seed=spec.seed)
    unused = sorted({"load", "burst", "hours"} & spec.model_fields_set)
    if unused:
        raise DataError(f"--{unused[0]} is for a synthetic trace, not for a file", "leave it out")
    path = Path(spec.trace)
    if not path.is_file():
        raise DataError(
            f"--trace {spec.trace!r} is neither a file nor one of {', '.join(KINDS)}",
            "give a CSV with the columns seconds and items_per_s",
        )
    return read_trace(path, history)


def plan_situation(
    release: Release, spec: SimulateSpec, trace: Trace
) -> tuple[Situation, Capacity]:
    """The situation, and the plan by formula for the trace's ordinary and largest load.

    Raises DataError when a request takes longer than the objective.
    """
    synthetic = spec.trace in KINDS
    capacity, scaling = release.capacity.items_per_s, release.deploy.scaling
    limit_s = release.latency_ms / 1000
    peak = float(trace.rates.max())
    base = max(spec.load if synthetic else float(np.median(trace.rates)), 1e-9)
    slow = synthetic and spec.trace != "burst"
    plan = plan_capacity(
        base,
        capacity,
        ScalingSpec(
            burst=max(1.0, peak / base),
            cold_start_s=spec.cold_start_s,
            ramp_s=trace.seconds / 3 if slow else 0.0,
        ),
    )
    service_s = (
        spec.service_ms / 1000
        if spec.service_ms is not None
        else service_for(capacity, spec.items, limit_s, release.percentile)
    )
    if service_s > limit_s:
        raise DataError(
            f"a request takes {service_s * 1000:.0f} ms alone, the objective is "
            f"{release.latency_ms:g} ms",
            "correct --service-ms or the objective",
        )
    target = target_items_per_s(release)
    floor = spec.floor or plan.floor
    # What is asked for holds for planned floors too: there may be no more GPUs.
    maximum = spec.maximum or max(math.ceil(peak / target) + 1, floor)
    situation = Situation(
        capacity_items_per_s=capacity,
        target_items_per_s=target,
        items=spec.items,
        limit_s=limit_s,
        service_s=service_s,
        jitter=spec.jitter,
        cold_start_s=spec.cold_start_s,
        queue=spec.queue or release.max_queue_size,
        queue_timeout_s=release.queue_timeout_us / 1e6,
        pending=scaling.pending,
        floor=min(floor, maximum),
        maximum=maximum,
        rendered=(scaling.min_replicas, scaling.max_replicas),
        behavior=behavior(release),
        seed=spec.seed,
        depth=_depth(spec, limit_s, service_s),
        ndcg_of=read_depth_table(spec.depth_table) if spec.depth_table else (),
    )
    return situation, plan


def _depth(spec: SimulateSpec, limit_s: float, service_s: float) -> DepthSpec:
    """Depth control for the objective: half of what it leaves beside a request's own time is for
    waiting, and a quarter of the jobs is always ranked."""
    target_ms = spec.depth_target_ms or max(1.0, 500 * (limit_s - service_s))
    part = max(1, spec.items // 4)
    return DepthSpec(target_ms=target_ms, floor=part, step=part)


def read_depth_table(path: Path) -> tuple[tuple[float, float], ...]:
    """(share ranked, NDCG@10) from the JSON of `control depth-table`. Raises DataError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return tuple(
            (float(row["name"].removesuffix("%")) / 100, float(row["ndcg10"]["value"]))
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no depth table: {error}", "give the JSON that `control depth-table` wrote"
        ) from error


def service_for(capacity_items_per_s: float, items: int, limit_s: float, percentile: int) -> float:
    """The service time of a request, in seconds, with which one replica just meets the objective at
    its capacity: an M/D/1 queue whose waiting time is simulated (Lindley). For when nothing better
    was measured.

    Raises DataError when no service time does.
    """
    gap = items / capacity_items_per_s
    random = np.random.default_rng(0)
    gaps = random.exponential(gap, 40_000)

    def latency(service: float) -> float:
        steps = np.concatenate([[0.0], service - gaps])
        walk = np.cumsum(steps)
        waits = walk - np.minimum.accumulate(walk)
        return float(np.percentile(waits + service, percentile))

    low, high = 0.0, min(gap * 0.999, limit_s)
    if latency(high) <= limit_s:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if latency(middle) <= limit_s else (low, middle)
    if low <= 0:
        raise DataError(
            f"no service time meets {limit_s:g} s at {capacity_items_per_s:g} items/s",
            "give --service-ms",
        )
    return low
