"""Replicas that start late, queue and refuse: what a policy does to every request.

Each replica answers one request at a time, first come first served; clients take the ready replicas
in turn, as `round_robin` does. A request past the queue limit is refused at once, and so is one
whose answer would come later than the timeout. Replicas cost from the moment they are asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmrank.deploy.autoscale.hpa import SYNC_S
from slmrank.deploy.autoscale.situation import Situation
from slmrank.serving.depth import DepthController
from slmrank.spec.repository import DepthSpec

Floats = npt.NDArray[np.float64]
RATE_WINDOW_S = 60.0
SCRAPE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the autoscaler is told at a sync: offered items/s over the last minute and waiting
    requests, both summed over the ready pods, as scraped."""

    now: float
    items_per_s: float
    pending: int
    current: int
    ready: int


class Sizing(Protocol):
    """A policy: the number of replicas after a sync."""

    def size(self, seen: Seen) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the requests, in order of arrival: latency in seconds, NaN where refused, and
    the share of their jobs that was ranked; and (time, replicas asked for, replicas ready) at every
    change."""

    arrivals: Floats
    latencies: Floats
    ranked: Floats
    sizes: list[tuple[float, int, int]]
    replica_hours: float
    seconds: float


@dataclass(slots=True)
class _Pod:
    asked_at: float
    ready_at: float
    free_at: float = 0.0
    depth: DepthController | None = None
    # Start times of the requests that wait.
    waiting: deque[float] = field(default_factory=deque)


def run_fleet(
    arrivals: Floats,
    situation: Situation,
    policy: Sizing,
    *,
    start: int,
    seconds: float,
    depth: DepthSpec | None = None,
) -> Outcome:
    """Send every arrival through the fleet; it starts with `start` ready replicas. With `depth`
    each replica ranks fewer jobs of a request while it is late, which then takes as much less."""
    random, items = np.random.default_rng(situation.seed), situation.items
    services = situation.service_s * _spread(random, situation.jitter, len(arrivals))
    pods = [_Pod(asked_at=0.0, ready_at=0.0) for _ in range(start)]
    ready = list(pods)
    latencies, ranked = np.full(len(arrivals), np.nan), np.ones(len(arrivals))
    sizes = [(0.0, start, start)]
    spent = 0.0
    turn = 0
    next_sync = SYNC_S
    next_ready = float("inf")
    # A last moment without a request, so that the autoscaler goes on to the end.
    times, works, found = [*arrivals.tolist(), seconds], services.tolist(), latencies
    limit, timeout = situation.queue, situation.queue_timeout_s
    for number, now in enumerate(times):
        while next_sync <= now:
            if next_ready <= next_sync:
                ready = [pod for pod in pods if pod.ready_at <= next_sync]
            seen = _seen(arrivals, items, next_sync, pods, ready)
            spent += _resize(pods, policy.size(seen), next_sync, situation.cold_start_s)
            ready = [pod for pod in pods if pod.ready_at <= next_sync]
            next_ready = min((p.ready_at for p in pods if p.ready_at > next_sync), default=1e18)
            sizes.append((next_sync, len(pods), len(ready)))
            next_sync += SYNC_S
        if next_ready <= now:
            ready = [pod for pod in pods if pod.ready_at <= now]
            sizes.append((next_ready, len(pods), len(ready)))
            next_ready = min((pod.ready_at for pod in pods if pod.ready_at > now), default=1e18)
        if number == len(works):
            break
        turn = (turn + 1) % len(ready)
        pod = ready[turn]
        waiting = pod.waiting
        while waiting and waiting[0] <= now:
            waiting.popleft()
        begin = pod.free_at if pod.free_at > now else now
        work = works[number]
        if depth is not None:
            if pod.depth is None:
                pod.depth = DepthController(depth)
            pod.depth.update(begin - now, now)
            ranked[number] = pod.depth.depth(items) / items
            work *= ranked[number]
        if begin > now:
            if len(waiting) >= limit or begin - now + work > timeout:
                continue
            waiting.append(begin)
        pod.free_at = begin + work
        found[number] = pod.free_at - now
    spent += sum(seconds - pod.asked_at for pod in pods)
    return Outcome(
        arrivals=arrivals,
        latencies=latencies,
        ranked=ranked,
        sizes=sizes,
        replica_hours=spent / 3600,
        seconds=seconds,
    )


def _seen(
    arrivals: Floats, items: int, now: float, pods: Sequence[_Pod], ready: Sequence[_Pod]
) -> Seen:
    """As of the last scrape. Refused requests count as offered: `prepare` counts before the queue
    of `ranker` refuses."""
    scraped = now - now % SCRAPE_S
    first, last = np.searchsorted(arrivals, (scraped - RATE_WINDOW_S, scraped))
    window = min(RATE_WINDOW_S, scraped) or RATE_WINDOW_S
    pending = sum(sum(1 for begin in pod.waiting if begin > scraped) for pod in ready)
    return Seen(
        now=now,
        items_per_s=float(last - first) * items / window,
        pending=pending,
        current=len(pods),
        ready=len(ready),
    )


def _resize(pods: list[_Pod], wanted: int, now: float, cold_start_s: float) -> float:
    """Change `pods` to the wanted number; returns the replica seconds of those that left. The
    youngest leave first, as Kubernetes does with pods that are not ready yet."""
    for _ in range(wanted - len(pods)):
        ready_at = now + cold_start_s
        pods.append(_Pod(asked_at=now, ready_at=ready_at, free_at=ready_at))
    spent = 0.0
    while len(pods) > max(wanted, 1):
        pod = pods.pop()
        spent += max(now, pod.free_at if pod.waiting else now) - pod.asked_at
    return spent


def _spread(random: np.random.Generator, jitter: float, count: int) -> Floats:
    if jitter <= 0:
        return np.ones(count)
    shape = 1 / jitter**2
    return random.gamma(shape, 1 / shape, count)
