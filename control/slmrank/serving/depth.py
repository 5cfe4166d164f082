"""Ranking depth under load: how many of a request's jobs are ranked, instead of refusing requests.

The signal is the queue delay of the stage `ranker`: how long what is prepared waits until it is
started. A PI controller in velocity form moves the share of each request's jobs between a floor and
all of them; the share itself is the integrator and is clamped, so nothing winds up behind its ends.
Down is as fast as the error asks for, up is slow, so that a burst does not come in waves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmrank.spec.repository import DepthSpec
from slmrank.triton.config import DEPTH, PREPARED_AT

WORST_ERROR = -4.0  # a delay of five times the target asks for no more than that
RECENT_S = 1.0
_BOARD = struct.Struct(
    "<ddd"
)  # when the newest started request was prepared, its delay, when noted


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


class Board:
    """Three numbers that the stage `ranker` writes and `prepare` reads: both are processes of one
    server, whose id names the file."""

    def __init__(self, folder: Path = Path("/dev/shm"), server: int | None = None) -> None:
        self._path = folder / f"slmrank-depth-{os.getppid() if server is None else server}"
        # A folder that everybody may write to: nobody's link is followed.
        opened = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(opened, _BOARD.size)
            self._map = mmap.mmap(opened, _BOARD.size)
        finally:
            os.close(opened)

    def note(self, moments: Sequence[float], now_s: float) -> None:
        """Requests that were handed on at these moments are started now, all together; times of the
        monotonic clock, which is one for all processes."""
        newest = max(*moments, self.read()[0])
        _BOARD.pack_into(self._map, 0, newest, max(0.0, now_s - min(moments)), now_s)

    def note_all(self, requests: Sequence[Any], backend: Any) -> None:
        """Note the requests of one execution; `backend` is Triton's Python module."""
        tensors = (backend.get_input_tensor_by_name(one, PREPARED_AT.name) for one in requests)
        self.note([float(one.as_numpy()[0, 0]) for one in tensors], time.monotonic())

    def read(self) -> tuple[float, float, float]:
        """(when the newest started request was prepared, the last delay, when it was noted)."""
        return _BOARD.unpack_from(self._map, 0)

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class QueueDelay:
    """The delay as `prepare` knows it: of what was started last, or of what still waits."""

    def __init__(self, board: Board, forget_s: float) -> None:
        self._board, self._forget_s = board, forget_s
        self._waiting: deque[float] = deque()

    def sent(self, now_s: float) -> None:
        """A request was handed to the stage `ranker`."""
        self._waiting.append(now_s)

    def seconds(self, now_s: float) -> float:
        started, delay_s, noted = self._board.read()
        # What was refused in the queue or given up by its caller never starts: the queue's timeout
        # ends it here as well.
        while self._waiting and (
            self._waiting[0] <= started or now_s - self._waiting[0] > self._forget_s
        ):
            self._waiting.popleft()
        waiting = now_s - self._waiting[0] if self._waiting else 0.0
        return max(waiting, delay_s if now_s - noted < RECENT_S else 0.0)


def open_board(config: Mapping[str, Any]) -> Board | None:
    """The board of a stage `ranker` whose model configuration has the tensor for it."""
    has = any(one["name"] == PREPARED_AT.name for one in config["input"])
    return Board() if has else None


def open_depth(parameters: Mapping[str, Any]) -> Depth | None:
    """The depth control that the parameters of `prepare` ask for."""
    if DEPTH not in parameters:
        return None
    spec = DepthSpec.model_validate_json(parameters[DEPTH]["string_value"])
    return Depth(spec, Board(), float(parameters["queue_timeout_us"]["string_value"]) / 1e6)


class Depth:
    """What `prepare` asks: how many of a request's jobs to rank, now."""

    def __init__(self, spec: DepthSpec, board: Board, forget_s: float) -> None:
        self._controller = DepthController(spec)
        self._delay = QueueDelay(board, forget_s)
        self._board = board

    @property
    def share(self) -> float:
        return self._controller.share

    def of(self, jobs: int) -> int:
        """Call once a request."""
        now = time.monotonic()
        self._controller.update(self._delay.seconds(now), now)
        return self._controller.depth(jobs)

    def sent(self) -> float:
        """The moment at which a prepared request is handed on, for `Board.note_all`."""
        now = time.monotonic()
        self._delay.sent(now)
        return now

    def close(self) -> None:
        self._board.close()
