"""From items/s at the objective to replicas: how many at least, how many at most, and the target of
the autoscaler. One formula, for `control capacity` and for the manifests; it is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from slmrank.errors import SweepError
from slmrank.load.figures import cell_name, cell_of
from slmrank.load.record import CELL, Record
from slmrank.spec.deploy import ScalingSpec
from slmrank.spec.load import SweepSpec

FORMULAS = (
    "reached = 1 + (burst - 1) * min(1, cold_start / ramp)   (ramp 0: the burst comes at once)",
    "floor   = ceil(load * reached / per_replica)    carries what comes while new replicas start",
    "peak    = ceil(load * burst / per_replica)      carries the whole burst",
    "target  = per_replica / reached                 items/s per replica for the autoscaler",
)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Replicas for a load. Rates in items per second; `reached`: the share of the ordinary load
    that comes before a new replica serves."""

    load: float
    per_instance: float
    scaling: ScalingSpec
    reached: float
    floor: int
    peak: int
    target: float

    def as_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in asdict(self).items() if name != "scaling"}
        return {**own, "deploy": {"scaling": self.deploy_scaling()}, "formulas": list(FORMULAS)}

    def deploy_scaling(self) -> dict[str, Any]:
        """What a spec's section deploy.scaling must say, so that the manifests follow this plan."""
        given = self.scaling
        return {
            "items_per_s": rounded_down(self.per_instance),
            "min_replicas": self.floor,
            "max_replicas": max(self.peak, self.floor),
            "burst": given.burst,
            "cold_start_s": given.cold_start_s,
            "ramp_s": given.ramp_s,
        }


def rounded_down(rate: float) -> float:
    """A rate to four digits, never more than was measured: a large model on a CPU has less than one
    item a second, and 0.0 is no rate."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 3)
    return float(f"{math.floor(rate / unit + 1e-9) * unit:.4g}")


def reached_share(scaling: ScalingSpec) -> float:
    """Load over the ordinary one when the first new replica serves."""
    share = 1.0 if scaling.ramp_s == 0 else min(1.0, scaling.cold_start_s / scaling.ramp_s)
    return 1 + (scaling.burst - 1) * (share if scaling.cold_start_s > 0 else 0.0)


def autoscaler_target(per_instance: float, scaling: ScalingSpec) -> float:
    """Items/s of one replica at which replicas are added: what is left below the capacity carries
    a burst while they start."""
    return per_instance / reached_share(scaling)


def plan_capacity(load: float, per_instance: float, scaling: ScalingSpec) -> Capacity:
    """`per_instance`: items/s of one instance at the objective; `scaling` says what bursts and cold
    starts are like. Raises SweepError for rates that are not above 0."""
    for name, value in (("load", load), ("items/s per replica", per_instance)):
        if not value > 0:
            raise SweepError(f"{name} {value:g} must be above 0", "correct the value")
    reached = reached_share(scaling)
    return Capacity(
        load=load,
        per_instance=per_instance,
        scaling=scaling,
        reached=reached,
        floor=_ceil(load * reached / per_instance),
        peak=_ceil(load * scaling.burst / per_instance),
        target=autoscaler_target(per_instance, scaling),
    )


def asked_for(record: Record, name: str, sweep: SweepSpec) -> Record:
    """A record with the kinds of request that a spec sweeps: it holds every one that was ever
    searched for. Raises SweepError when it holds others alone."""
    tokens: list[int | None] = [None] if sweep.texts == "store" else [*sweep.tokens]
    queries: list[int | None] = [*sweep.query_tokens] or [None]
    kinds = list(product(sweep.items, tokens, queries))
    asked = [cell for cell in record["slo"] if cell_of(cell) in kinds]
    if record["slo"] and not asked:
        other = "; ".join(dict.fromkeys(cell_name(cell_of(cell)) for cell in record["slo"]))
        raise SweepError(
            f"{name} holds rates of requests of {other}, and the spec's section sweep names others",
            "give it the sizes that were measured (--set sweep.items=...), or measure its own",
        )
    return {**record, "slo": asked}


def slowest_cell(record: Record, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with the lowest rate among those whose values are the `wanted` ones: which kind of
    request comes is not ours to choose. Its lower end of the measured spread is what counts.

    Raises SweepError when there is none, for several objectives, and for a kind of request that
    meets the same objective at no rate: no number of replicas helps it.
    """
    cells = [
        cell for cell in record["slo"] if all(cell[key] == value for key, value in wanted.items())
    ]
    held = [cell for cell in cells if cell["items_per_s_range"]]
    if not held:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items()) or "any objective"
        raise SweepError(
            f"{name} holds no rate for {asked}", "run `control slo` with that objective first"
        )
    objectives = sorted({(one["percentile"], one["limit_ms"]) for one in held})
    if len(objectives) > 1:
        told = ", ".join(f"p{percentile} <= {limit:g} ms" for percentile, limit in objectives)
        raise SweepError(
            f"{name} holds several objectives: {told}", "choose with --latency-ms and --percentile"
        )
    slowest: dict[str, Any] = min(held, key=lambda cell: cell["items_per_s_range"][0])
    for cell in cells:
        same = all(cell[key] == slowest[key] for key in ("limit_ms", "percentile"))
        if same and not cell["items_per_s_range"]:
            kind = ", ".join(f"{key} {cell[key]}" for key in CELL if cell.get(key) is not None)
            raise SweepError(
                f"{name}: requests of {kind} meet p{cell['percentile']:g} <= "
                f"{cell['limit_ms']:g} ms at no rate",
                "raise the objective, search it again (`control slo --force`), or leave them out",
            )
    return slowest


def _ceil(value: float) -> int:
    # 3.0000000001 replicas are 3: the figures are measured to two digits.
    return max(1, math.ceil(round(value, 6)))
