"""Ranking depth under load: how many of a request's jobs are ranked, instead of refusing requests.

The stage `ranker` decides when it starts a request, so that what waited longest is cut by what is
known last. The signal is the queue delay: how long ago `prepare` handed it on. A PI controller in
velocity form moves the share of each request's jobs between a floor and all of them; the share
itself is the integrator and is clamped, so nothing winds up behind its ends. Down is as fast as the
error asks for, up is slow, so that a burst does not come in waves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmrank.serving.admission import ticket_of
from slmrank.serving.item_counters import ItemCounters
from slmrank.spec.repository import DepthSpec
from slmrank.tokens import EMPTY, Ids
from slmrank.triton.config import DEPTH, PREPARED_AT, PREPARED_STATUS, STATUS
from slmrank.triton.status import Status

WORST_ERROR = -4.0  # a delay of five times the target asks for no more than that
RECENT_S = 1.0
SCORED = (Status.OK, Status.TRUNCATED)


class DepthController:
    """The share of a request's jobs that is ranked, from queue delays."""

    def __init__(self, spec: DepthSpec) -> None:
        self._spec = spec
        self._error = 0.0
        self._at: float | None = None
        self.share = 1.0

    def update(self, delay_s: float, now_s: float) -> float:
        """The share in [spec.least_share, 1] at a time, after a delay was observed."""
        spec = self._spec
        error = max(WORST_ERROR, (spec.target_ms - 1000 * delay_s) / spec.target_ms)
        passed_s = 0.0 if self._at is None else max(0.0, now_s - self._at)
        if error < 0:
            passed_s = min(passed_s, RECENT_S)  # one late request tells nothing of the time before
        step = spec.proportional * (error - self._error) + spec.integral_per_s * error * passed_s
        if error >= 0:
            step = max(0.0, step)  # 3 ms after none cut 8 jobs of 40, at a target of 50 ms
        self._error, self._at = error, now_s
        rise = min(step, spec.rise_per_s * passed_s)
        self.share = min(1.0, max(spec.least_share, self.share + rise))
        return self.share

    def depth(self, jobs: int) -> int:
        """How many of so many jobs are ranked: whole steps, never below the floor."""
        if self.share >= 1.0:
            return jobs
        steps = int(jobs * self.share) // self._spec.step
        return min(jobs, max(self._spec.floor, steps * self._spec.step))


class FullDepth:
    """All jobs of every request, where the spec has no `repository.depth`."""

    def begin(self, requests: Sequence[Any]) -> list[int | None]:
        return [None] * len(requests)

    def answer(self, request: Any, depth: int | None, lengths: Ids) -> list[Any]:
        return []


class Depth:
    """How many of each request's jobs are ranked; `backend` is Triton's Python module."""

    def __init__(self, spec: DepthSpec, backend: Any, instance_name: str) -> None:
        self._controller = DepthController(spec)
        self._last = 0.0  # the newest ticket that was started
        self._backend = backend
        self._items = ItemCounters(backend)
        self._family = backend.MetricFamily(
            name="slmrank_depth_share",
            description="Share of a request's jobs that is ranked",
            kind=backend.MetricFamily.GAUGE,
        )
        self._share = self._family.Metric(labels={"stage_instance": instance_name})

    def begin(self, requests: Sequence[Any]) -> list[int | None]:
        """The depth of each of these requests, which are started now, all together."""
        now = time.monotonic()
        tickets = [ticket_of(self._tensor(one, PREPARED_AT.name)) for one in requests]
        # Those of before were made up, or overtaken by requests of higher priority: neither says
        # how long the queue is.
        waiting = [one for one in tickets if self._last < one <= now]
        if waiting:
            self._last = max(waiting)
            self._share.set(self._controller.update(now - min(waiting), now))
        statuses = (self._tensor(one, PREPARED_STATUS.name) for one in requests)
        return [self._controller.depth(status.shape[-1]) for status in statuses]

    def answer(self, request: Any, depth: int | None, lengths: Ids) -> list[Any]:
        """Output tensors beside the scores: each job's status [1, N]. `lengths` [N] are those of
        `prepare`; the request is counted."""
        assert depth is not None
        status = self._tensor(request, PREPARED_STATUS.name)[0]
        if len(status) != len(lengths):  # made up by whoever calls the stage itself
            status = np.zeros(len(lengths), dtype=np.int32)
        status = not_ranked(status, depth)
        self._items.add(status, lengths[:depth])
        return [self._backend.Tensor(STATUS.name, status[np.newaxis])]

    def _tensor(self, request: Any, name: str) -> Any:
        return self._backend.get_input_tensor_by_name(request, name).as_numpy()


def open_depth(
    parameters: Mapping[str, Any], backend: Any, instance_name: str = ""
) -> Depth | FullDepth:
    """The depth control that the parameters of a stage `ranker` ask for; every instance has its
    own."""
    if DEPTH not in parameters:
        return FullDepth()
    return Depth(
        DepthSpec.model_validate_json(parameters[DEPTH]["string_value"]), backend, instance_name
    )


def first_items(items: Sequence[Ids], depth: int | None) -> list[Ids]:
    """The first `depth` items, and none of the ids of the others."""
    return [*items[:depth], *([EMPTY] * len(items[depth:] if depth is not None else ()))]


def not_ranked(status: Ids, depth: int) -> Ids:
    """Statuses [N] when only the first `depth` are ranked: one that has another fault keeps it."""
    behind = (np.arange(len(status)) >= depth) & np.isin(status, SCORED)
    return np.where(behind, int(Status.NOT_RANKED), status).astype(np.int32)
