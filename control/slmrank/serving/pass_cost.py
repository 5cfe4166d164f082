"""What a pass of `ranker` costs: a fixed part and a part for each token, learnt from passes.

Least squares over the recent ones, each newer one weighing more; where these are of one size, the
proportion of before. One slope through zero, which a small request's fixed cost makes steep,
refused large listings at half load.
"""

from __future__ import annotations

KEPT = 0.98  # weight of all passes before beside a new one: some 50 count
# Smoothing of the relative error, and how much of it is added, as TCP's retransmission timer does
# (RFC 6298); half of the first prediction is doubted.
_BETA, _DEVIATIONS, _FIRST_ERROR = 1 / 4, 3.0, 0.5
_MOST_AT_ONCE = 4.0  # times of what was predicted
_LEAST_SPREAD = 1e-3  # of the tokens: below, the passes are of one size and say nothing of another


class PassCost:
    """seconds = fixed_s + tokens x seconds_per_token of the tokens that are scored, how far off
    that has been, and `share`: how many of those that were asked for are scored."""

    def __init__(self) -> None:
        self.fixed_s = self.seconds_per_token = 0.0
        self.share = 1.0
        self._learnt = 0
        self._error = _FIRST_ERROR
        self._asked = self._scored = 0.0
        self._forget()

    def _forget(self) -> None:
        self._passes = self._tokens = self._squares = self._seconds = self._products = 0.0

    @property
    def slack(self) -> float:
        """What a prediction is multiplied by to be cautious."""
        return 1.0 + _DEVIATIONS * self._error

    def learn(self, tokens: int, seconds: float, asked: int | None = None) -> None:
        """A pass that scored so many tokens, of `asked` ones where some were known, took so long;
        one that scored none tells their share alone."""
        self._asked = KEPT * self._asked + (tokens if asked is None else asked)
        self._scored = KEPT * self._scored + tokens
        self.share = self._scored / self._asked if self._asked else 1.0
        if not tokens:
            return
        self._learnt += 1
        if self._learnt == 2:  # the first one compiles kernels
            self._forget()
        elif self._learnt > 2:
            predicted = self.fixed_s + tokens * self.seconds_per_token
            error = abs(seconds - predicted) / max(predicted, seconds, 1e-9)
            self._error += _BETA * (error - self._error)
            # A stall is none of the next passes' matter; a slower machine is followed by steps.
            seconds = min(seconds, _MOST_AT_ONCE * max(predicted, 1e-9))
        self._passes = KEPT * self._passes + 1
        self._tokens = KEPT * self._tokens + tokens
        self._squares = KEPT * self._squares + tokens * tokens
        self._seconds = KEPT * self._seconds + seconds
        self._products = KEPT * self._products + tokens * seconds
        spread = self._passes * self._squares - self._tokens**2
        if spread > _LEAST_SPREAD * self._passes * self._squares:
            slope = (self._passes * self._products - self._tokens * self._seconds) / spread
            self.seconds_per_token = max(slope, 0.0)
            fixed = self._seconds - self.seconds_per_token * self._tokens
            self.fixed_s = max(fixed / self._passes, 0.0)
            return
        known = self._passes * self.fixed_s + self._tokens * self.seconds_per_token
        if known and self._passes > 1:
            # What large ones cost is kept, however rare they are, and follows the rest.
            self.fixed_s *= self._seconds / known
            self.seconds_per_token *= self._seconds / known
        else:
            self.fixed_s, self.seconds_per_token = 0.0, self._seconds / self._tokens
