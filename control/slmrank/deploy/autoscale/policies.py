"""Autoscaling policies, all through the same port of the HPA: they differ in what they ask for."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slmrank.deploy.autoscale.fleet import Seen
from slmrank.deploy.autoscale.hpa import Autoscaler, propose
from slmrank.deploy.autoscale.traces import STEP_S

TREND_WINDOW_S = 300.0


@dataclass(kw_only=True)
class Reactive:
    """Items/s per replica against a target, and optionally requests that wait; the larger counts.
    This is what the shipped HPA does; its floor is the autoscaler's minimum."""

    autoscaler: Autoscaler
    target_items_per_s: float
    target_pending: float | None = None

    def size(self, seen: Seen) -> int:
        return self.autoscaler.step(seen.now, seen.current, self.proposals(seen))

    def proposals(self, seen: Seen) -> list[int]:
        given = {"current": seen.current, "ready": seen.ready}
        asked = [propose(seen.items_per_s, self.target_items_per_s, **given)]
        if self.target_pending is not None:
            asked.append(propose(seen.pending, self.target_pending, **given))
        return asked


@dataclass(kw_only=True)
class Trend(Reactive):
    """Reactive on the load that a straight line through the last minutes reaches one cold start
    from now."""

    horizon_s: float
    _past: deque[tuple[float, float]] = field(default_factory=deque)

    def proposals(self, seen: Seen) -> list[int]:
        self._past.append((seen.now, seen.items_per_s))
        while self._past[0][0] < seen.now - TREND_WINDOW_S:
            self._past.popleft()
        ahead = max(seen.items_per_s, self._forecast(seen.now))
        expected = math.ceil(round(ahead / self.target_items_per_s, 9))
        return [*super().proposals(seen), expected]

    def _forecast(self, now: float) -> float:
        if len(self._past) < 4:
            return 0.0
        times = np.array([at - now for at, _ in self._past])
        rates = np.array([rate for _, rate in self._past])
        slope, level = np.polyfit(times, rates, 1)
        return float(level + slope * self.horizon_s)


@dataclass(kw_only=True)
class Scheduled(Reactive):
    """Reactive, with the floor that the same time of an earlier day would have needed."""

    history: npt.NDArray[np.float64]
    horizon_s: float

    def proposals(self, seen: Seen) -> list[int]:
        first = int(seen.now / STEP_S)
        last = first + max(1, math.ceil(self.horizon_s / STEP_S)) + 1
        places = np.arange(first, last) % len(self.history)
        needed = float(self.history[places].max()) / self.target_items_per_s
        return [*super().proposals(seen), math.ceil(round(needed, 9))]
