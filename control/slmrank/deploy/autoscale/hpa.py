"""The HorizontalPodAutoscaler's algorithm (autoscaling/v2), as a value that can be stepped.

A port of what kube-controller-manager does with a metric of type Pods or with a total: ratio to the
target with a tolerance, pending pods counted as idle, stabilisation windows, then policies per
period. Source: kubernetes/pkg/controller/podautoscaler (horizontal.go, replica_calculator.go) of
1.36. Times are seconds on any clock that only moves forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rules = Mapping[str, Any]  # of one direction, whole, as a manifest has them
TOLERANCE = 0.1
SYNC_S = 15.0


def propose(
    total: float, target: float, *, current: int, ready: int, tolerance: float = TOLERANCE
) -> int:
    """Replicas for a metric whose values over the `ready` pods sum to `total`, with `target` for
    the average of one pod. The others (`current` - `ready`) give no metric yet: they count as idle
    when the answer is to add, and as loaded to the target when it is to remove."""
    if ready <= 0:
        return current
    ratio = total / ready / target
    if current > ready and ratio > 1:
        again = total / current / target
        if abs(again - 1) <= tolerance or again < 1:
            return current
        return math.ceil(_rounded(again * current))
    if abs(ratio - 1) <= tolerance:
        return current
    if current > ready:
        again = (total + (current - ready) * target) / current / target
        if abs(again - 1) <= tolerance or again > 1:
            return current
        return math.ceil(_rounded(again * current))
    return math.ceil(_rounded(ratio * ready))


@dataclass(kw_only=True)
class Autoscaler:
    """State of one HPA between two syncs; `behavior` is the `spec.behavior` of its manifest."""

    minimum: int
    maximum: int
    behavior: Mapping[str, Rules]
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _added: list[tuple[float, int]] = field(default_factory=list)
    _removed: list[tuple[float, int]] = field(default_factory=list)

    def step(self, now: float, current: int, proposals: Sequence[int]) -> int:
        """The size after this sync: the largest proposal, stabilised, limited by the policies and
        the bounds."""
        wanted = max(proposals, default=current)
        if current < self.minimum:
            wanted = self.minimum
        elif current > self.maximum:
            wanted = self.maximum
        else:
            wanted = self._limited(now, current, self._stabilised(now, current, wanted))
        change = wanted - current
        if change > 0:
            longest = _longest(self.behavior["scaleUp"])
            self._added = [*_recent(self._added, now, longest), (now, change)]
        elif change < 0:
            longest = _longest(self.behavior["scaleDown"])
            self._removed = [*_recent(self._removed, now, longest), (now, -change)]
        return wanted

    def _stabilised(self, now: float, current: int, wanted: int) -> int:
        """Up goes by the smallest answer of its window, down by the largest of its own. The size
        that was found counts as the first answer."""
        if not self._recommended:
            self._recommended.append((now, current))
        up = self.behavior["scaleUp"]["stabilizationWindowSeconds"]
        down = self.behavior["scaleDown"]["stabilizationWindowSeconds"]
        least = min([wanted, *(size for at, size in self._recommended if at > now - up)])
        most = max([wanted, *(size for at, size in self._recommended if at > now - down)])
        kept = max(up, down)
        self._recommended = [one for one in self._recommended if one[0] > now - kept]
        self._recommended.append((now, wanted))
        return min(max(current, least), most)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        if wanted > current:
            limit = self._limit(now, current, self.behavior["scaleUp"], up=True)
            return min(wanted, self.maximum, max(limit, current))
        if wanted < current:
            limit = self._limit(now, current, self.behavior["scaleDown"], up=False)
            return max(wanted, self.minimum, min(limit, current))
        return current

    def _limit(self, now: float, current: int, rules: Rules, *, up: bool) -> int:
        if rules["selectPolicy"] == "Disabled":
            return current
        limits: list[int] = []
        for policy in rules["policies"]:
            value, since = policy["value"], now - policy["periodSeconds"]
            added = sum(size for at, size in self._added if at > since)
            removed = sum(size for at, size in self._removed if at > since)
            start = current - added + removed
            if policy["type"] == "Pods":
                limits.append(start + value if up else start - value)
            elif up:
                limits.append(math.ceil(_rounded(start * (1 + value / 100))))
            else:
                limits.append(math.floor(_rounded(start * (1 - value / 100))))
        # Max is the largest change: upwards the largest limit, downwards the smallest.
        return max(limits) if (rules["selectPolicy"] == "Max") == up else min(limits)


def _longest(rules: Rules) -> float:
    """Changes of a direction are forgotten after its longest period."""
    return max((policy["periodSeconds"] for policy in rules["policies"]), default=0.0)


def _recent(events: Sequence[tuple[float, int]], now: float, longest: float) -> list[Any]:
    return [one for one in events if one[0] > now - longest]


def _rounded(value: float) -> float:
    # 3.0000000001 pods are 3 pods.
    return round(value, 9)
