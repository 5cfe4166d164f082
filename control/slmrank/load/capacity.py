"""From items/s at the objective to replicas: how many at most, how many at least, and the target of
an autoscaler. The formulas are part of the result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from slmrank.errors import SweepError

FORMULAS = (
    "reached = 1 + (burst - 1) * min(1, cold_start / ramp)   (ramp 0: the burst comes at once)",
    "floor   = ceil(load * reached / per_instance)   carries what comes while new replicas start",
    "peak    = ceil(load * burst / per_instance)     carries the whole burst",
    "target  = per_instance / reached                items/s per replica for the autoscaler",
)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Replicas for a load. Rates in items per second, times in seconds."""

    load: float
    burst: float
    cold_start_s: float
    ramp_s: float
    per_instance: float
    reached: float
    floor: int
    peak: int
    target: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "formulas": list(FORMULAS)}


def plan_capacity(
    *, load: float, burst: float, cold_start_s: float, ramp_s: float, per_instance: float
) -> Capacity:
    """`per_instance`: items/s of one instance at the objective. `burst`: the largest load over
    `load`; `ramp_s`: how long it takes to get there. Raises SweepError for values without sense."""
    wrong = [
        f"{name} {value:g} {rule}"
        for name, value, rule, fine in (
            ("load", load, "must be above 0", load > 0),
            ("burst", burst, "must be 1 or more", burst >= 1),
            ("cold start", cold_start_s, "must be 0 or more", cold_start_s >= 0),
            ("ramp", ramp_s, "must be 0 or more", ramp_s >= 0),
            ("items/s per instance", per_instance, "must be above 0", per_instance > 0),
        )
        if not fine
    ]
    if wrong:
        raise SweepError("; ".join(wrong), "correct the value")
    share = 1.0 if ramp_s == 0 else min(1.0, cold_start_s / ramp_s)
    reached = 1 + (burst - 1) * (share if cold_start_s > 0 else 0.0)
    return Capacity(
        load=load,
        burst=burst,
        cold_start_s=cold_start_s,
        ramp_s=ramp_s,
        per_instance=per_instance,
        reached=reached,
        floor=_ceil(load * reached / per_instance),
        peak=_ceil(load * burst / per_instance),
        target=per_instance / reached,
    )


def _ceil(value: float) -> int:
    # 3.0000000001 replicas are 3: the figures are measured to two digits.
    return max(1, math.ceil(round(value, 6)))
