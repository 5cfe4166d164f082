"""A breaker in front of something shared: after a failure nobody asks again for a while, so that
what is down costs one deadline and not one per request.

A deadline does not hold everything: a name server that hangs held a look-up of 50 ms for two
seconds. So the pause is also so many times as long as the failure took.
"""

from __future__ import annotations

import time

PAUSES = 10  # at most a tenth of the time goes into failures


class Breaker:
    """Closed while calls succeed. Of one thread, which looks whether it is `open` before it
    asks."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._retry_at = self._asked_at = 0.0
        self.reason = ""
        self.failures = 0

    @property
    def up(self) -> bool:
        """Whether the last call succeeded."""
        return not self.reason

    @property
    def open(self) -> bool:
        """Whether it is too early to ask again."""
        self._asked_at = time.monotonic()
        return self._asked_at < self._retry_at

    def failed(self, reason: str) -> None:
        self.reason = reason
        self.failures += 1
        now = time.monotonic()
        self._retry_at = now + max(self._retry_s, PAUSES * (now - self._asked_at))

    def succeeded(self) -> None:
        self.reason = ""
