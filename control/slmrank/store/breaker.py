"""A breaker in front of something shared: after a failure nobody asks again for a while, so that
what is down costs one deadline and not one per request."""

from __future__ import annotations

import time


class Breaker:
    """Closed while calls succeed. Of one thread."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._retry_at = 0.0
        self.reason = ""
        self.failures = 0

    @property
    def up(self) -> bool:
        """Whether the last call succeeded."""
        return not self.reason

    @property
    def open(self) -> bool:
        """Whether it is too early to ask again."""
        return time.monotonic() < self._retry_at

    def failed(self, reason: str) -> None:
        self.reason = reason
        self.failures += 1
        self._retry_at = time.monotonic() + self._retry_s

    def succeeded(self) -> None:
        self.reason = ""
