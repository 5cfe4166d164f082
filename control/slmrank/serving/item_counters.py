"""Offered work, for autoscaling and alerts: Triton itself counts requests, not jobs, and takes a
caller's mistakes for failures."""

from __future__ import annotations

from collections import Counter
from typing import Any

from slmrank.tokens import Ids
from slmrank.triton.status import Status


class ItemCounters:
    """Jobs by status, and tokens of those that are scored; `backend` is Triton's Python module."""

    def __init__(self, backend: Any) -> None:
        counter = backend.MetricFamily.COUNTER
        # Triton forgets a family that nobody holds.
        self._families = [
            backend.MetricFamily(name=f"slmrank_{name}", description=text, kind=counter)
            for name, text in (
                ("items_total", "Jobs asked for, by status"),
                ("item_tokens_total", "Tokens of the jobs that are scored"),
                ("invalid_requests_total", "Requests refused for what they hold"),
            )
        ]
        items, tokens, invalid = self._families
        self._items = {one: items.Metric(labels={"status": one.name.lower()}) for one in Status}
        self._refused = items.Metric(labels={"status": "refused"})
        self._tokens = tokens.Metric(labels={})
        self._invalid = invalid.Metric(labels={})

    def invalid(self) -> None:
        """Count a request that no server could answer."""
        self._invalid.increment(1)

    def refuse(self, jobs: int) -> None:
        """Count the jobs of a request that was refused before they were looked at."""
        self._refused.increment(jobs)

    def add(self, status: Ids, lengths: Ids) -> None:
        """Count the jobs of one request: statuses [N] and lengths [N] of what is scored."""
        for value, count in Counter(status.tolist()).items():
            if value in self._items:  # whoever calls a stage itself may send any number
                self._items[value].increment(count)
        self._tokens.increment(int(lengths.sum()))
