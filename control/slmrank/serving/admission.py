"""Admission by predicted wait: a request that would miss the objective is refused when it comes.

Triton's own limits refuse by count, or after a wait, and slow down what they let in (see
slmrank.triton.config.Queue). Here `prepare` predicts, from the tokens that stand before a request
and the pace at which `ranker` works, when it would be answered. The stages are processes of one
server; they share a page of memory, to which each instance of `ranker` writes a row of its own.
`prepared_at` is a request's ticket: what was taken and never came (cancelled, lost with its
process) is passed by the next one, or forgotten.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmrank.errors import Overloaded, ServerError, Unreachable
from slmrank.serving.pass_cost import PassCost
from slmrank.tokens import Ids
from slmrank.triton.config import ADMISSION, PREPARED_AT

SWITCH = "SLMRANK_ADMISSION"  # `off`: only counted, for a server whose rate is measured
SHARED = Path("/dev/shm")
# An idle `ranker` has what comes at once; what it did not see for so long does not come.
LOST_S = 0.1
FORGET_S, FORGET_LIMITS = 30.0, 10.0  # when it died with a request
# `prepare` is idle between two requests when nothing waits for it: all of a gap but what Triton
# takes to hand the next one over. A break is a long gap, or a large part of the time in all: to
# hand over megabytes takes a millisecond longer, and is none.
HAND_OVER_S, IDLE_S, IDLE_SHARE, LEAST_PATIENCE_S = 0.0005, 0.01, 0.1, 1.0
_INSTANCES, _FIELDS = 64, 8
_STARTED, _FINISHED, _FINISHED_AT, _FIXED, _PER_TOKEN = range(5)
# The door's own row, which starts nothing.
_DOOR = _INSTANCES - 1
_LEAVING, _READING, _TAKEN = range(_PER_TOKEN + 1, _FIELDS)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How `ranker` works: the last ticket that it started and finished and when, and cautious
    numbers of seconds a pass and a token (both 0.0: not known yet), over so many instances, of
    which `busy` work (None: all)."""

    started: float = 0.0
    finished: float = 0.0
    finished_at: float = 0.0
    fixed_s: float = 0.0
    seconds_per_token: float = 0.0
    instances: int = 1
    busy: int | None = None

    @property
    def known(self) -> bool:
        return self.fixed_s + self.seconds_per_token > 0


class Line:
    """The requests that were taken and not answered yet. `limit_s`: the longest predicted time to
    an answer, None: any; `max_waiting`: how many of them `ranker` has not started; `joined`: how
    many it takes in one pass."""

    def __init__(self, limit_s: float | None, max_waiting: int, joined: int = 64) -> None:
        self._limit_s, self._max_waiting, self._joined = limit_s, max_waiting, joined
        self._forget_s = max(FORGET_S, FORGET_LIMITS * (limit_s or 0.0))
        self._taken: deque[tuple[float, int]] = deque()

    def check(self, now: float, tokens: int, pace: Pace) -> None:
        """Raises Overloaded when too many wait already, or when the answer of a request with so
        many tokens, or of one that may be joined with it, is predicted too late. With nothing
        before it, and before a pace is known, any request is right."""
        while self._taken and self._is_gone(now, self._taken[0][0], pace):
            self._taken.popleft()
        waiting = sum(ticket > pace.started for ticket, _ in self._taken)
        if waiting >= self._max_waiting:
            raise _overloaded(f"{waiting} requests are waiting, the limit is {self._max_waiting}")
        if self._limit_s is None or not self._taken or not pace.known:
            return
        wait_s = self._predict(now, tokens, pace)
        if wait_s > self._limit_s:
            raise _overloaded(
                f"an answer would take about {1000 * wait_s:.0f} ms, "
                f"the objective is {1000 * self._limit_s:.0f} ms"
            )

    def take(self, now: float, tokens: int, pace: Pace) -> None:
        """Take a request with the ticket `now`. Raises Overloaded, see `check`."""
        self.check(now, tokens, pace)
        self._taken.append((now, tokens))

    def _is_gone(self, now: float, ticket: float, pace: Pace) -> bool:
        if ticket <= pace.finished or now - ticket > self._forget_s:
            return True
        idle = pace.started == pace.finished
        return idle and now - max(ticket, pace.finished_at) > LOST_S

    def _predict(self, now: float, tokens: int, pace: Pace) -> float:
        """Seconds from the first of those that are joined with this one to their answer.

        Instances share what runs, and the passes of what waits. All that waits is one pass, of one
        instance, up to `joined` requests: others stay idle meanwhile. Where as many are idle as
        there are passes, nothing waits for what runs.
        """
        running = [one for ticket, one in self._taken if ticket <= pace.started]
        waiting = [(ticket, one) for ticket, one in self._taken if ticket > pace.started]
        waiting.append((now, tokens))
        passes = math.ceil(len(waiting) / self._joined)
        idle = 0 if pace.busy is None else pace.instances - pace.busy
        left_s = 0.0
        if running and passes > idle:
            work_s = pace.fixed_s + sum(running) * pace.seconds_per_token / pace.instances
            working_s = now - max(self._taken[0][0], pace.finished_at)
            left_s = max(work_s - working_s, 0.0)
        at_once = min(passes, pace.instances)
        own_s = sum(one for _, one in waiting) * pace.seconds_per_token / at_once
        first, _ = waiting[(passes - 1) * self._joined]  # of the last pass
        return now - first + left_s + math.ceil(passes / at_once) * pace.fixed_s + own_s


def ticket_of(prepared_at: Any) -> float:
    """The ticket in a request's tensor; NaN, which is none, where its shape is not [1, 1]: a call
    of the stage itself must not fail those that are joined with it."""
    return float(prepared_at[0, 0]) if prepared_at.shape == (1, 1) else math.nan


def _overloaded(what: str) -> Overloaded:
    return Overloaded(what, "send fewer requests at a time, or add replicas")


class Board:
    """The shared page: a row of doubles for each instance of `ranker`, which alone writes it, and
    one for the door and whoever closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
        try:
            found = os.fstat(handle)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise ServerError(
                    f"{path} is not this user's alone (owner {found.st_uid}, mode "
                    f"{found.st_mode & 0o777:o}): remove it; times in it would open and close the "
                    "door here",
                    f"rm {path}",
                )
            size = _INSTANCES * _FIELDS * 8
            os.ftruncate(handle, size)
            page = mmap.mmap(handle, size)
        finally:
            os.close(handle)
        self.rows = np.frombuffer(page, dtype=np.float64).reshape(_INSTANCES, _FIELDS)
        self.door = self.rows[_DOOR]

    def pace(self) -> Pace:
        """Of all instances together; the slowest one's seconds."""
        # As lists: of so few numbers, numpy's maxima take three times as long.
        seen = self.rows[self.rows[:, _STARTED] > 0].tolist()
        if not seen:
            return Pace()
        most = [max(column) for column in zip(*seen, strict=True)]
        return Pace(
            started=most[_STARTED],
            finished=most[_FINISHED],
            finished_at=most[_FINISHED_AT],
            fixed_s=most[_FIXED],
            seconds_per_token=most[_PER_TOKEN],
            instances=len(seen),
            busy=sum(row[_STARTED] > row[_FINISHED] for row in seen),
        )

    def leave(self) -> None:
        """The server is about to end: what is not being read already is refused."""
        self.door[_LEAVING] = 1.0

    def quiet(self, now: float) -> bool:
        """Nothing that was taken waits for its scores; what was cancelled does not come."""
        pace = self.pace()
        if self.door[_READING] or pace.busy:
            return False
        last = float(self.door[_TAKEN])
        return last <= pace.finished or now - max(last, pace.finished_at) > LOST_S

    def start(self, instance: int, ticket: float) -> None:
        self.rows[instance, _STARTED] = ticket

    def finish(self, instance: int, ticket: float, now: float, cost: PassCost) -> None:
        row = self.rows[instance]
        row[_FIXED] = cost.slack * cost.fixed_s
        row[_PER_TOKEN] = cost.slack * cost.seconds_per_token * cost.share
        row[_FINISHED_AT], row[_FINISHED] = now, ticket


class Admission:
    """The door, in `prepare`, which has one request at a time. `patience_s`: how long it may be
    busy without a break."""

    def __init__(self, line: Line, board: Board, patience_s: float) -> None:
        self._line, self._board, self._patience_s = line, board, patience_s
        board.rows[:] = 0.0  # an earlier server of this number may have been killed in a pass
        self._busy_since = self._left = self._idle_s = self._ticket = 0.0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Around all that is done for a request, from before its texts are read. Raises Overloaded
        when it would be refused at any length, and when requests came without a break for so long
        that what waits here is old: then all are refused until none waits; Unreachable when the
        server is about to end."""
        door = self._board.door
        door[_READING] = 1.0
        now = time.monotonic()
        gap_s = max(0.0, now - self._left - HAND_OVER_S)
        self._idle_s += gap_s
        many = self._idle_s > max(IDLE_S, IDLE_SHARE * (now - self._busy_since))
        pace = self._board.pace()
        # A lone caller comes again when what he asked for is answered; what waits comes at once.
        answered = 0 < self._ticket <= pace.finished and now - pace.finished_at > HAND_OVER_S
        self._ticket = 0.0  # of the request just before alone: after a refusal nothing is answered
        if gap_s > IDLE_S or many or answered:
            self._busy_since, self._idle_s = now, 0.0
        try:
            if door[_LEAVING]:
                raise Unreachable("the server is stopping", "call another one")
            if now - self._busy_since > self._patience_s:
                raise _overloaded("requests come faster than they can be read")
            self._line.check(now, 0, pace)
            yield
        finally:
            self._left = time.monotonic()
            door[_READING] = 0.0

    def take(self, tokens: int) -> float:
        """The ticket of the request, which has so many tokens. Raises Overloaded, see Line."""
        now = time.monotonic()
        self._line.take(now, tokens, self._board.pace())
        self._ticket = self._board.door[_TAKEN] = now
        return now

    def close(self) -> None:
        """The server ends."""
        self._board.path.unlink(missing_ok=True)


class NoAdmission:
    """Everything is taken, where Triton's own limits refuse."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def take(self, tokens: int) -> float:
        return time.monotonic()

    def close(self) -> None: ...


class PaceMeter:
    """What an instance of `ranker` tells of its passes; `backend` is Triton's Python module."""

    def __init__(self, board: Board, instance: int, backend: Any) -> None:
        self._board, self._instance, self._backend = board, instance, backend
        self._cost, self._last = PassCost(), 0.0
        self._scored: int | None = None

    @contextlib.contextmanager
    def passing(self, requests: Sequence[Any]) -> Iterator[None]:
        """Around the execution of some requests, which are answered together."""
        started = time.monotonic()
        tickets = [ticket_of(self._tensor(one, PREPARED_AT.name)) for one in requests]
        # Whoever calls the stage itself may send any number.
        ticket = max((one for one in tickets if 0 < one <= started), default=0.0)
        tokens = sum(
            self._tensor(one, "item_ids").size + self._tensor(one, "prefix_ids").size
            for one in requests
        )
        self._scored = None
        if not ticket:  # nothing that `prepare` took
            yield
            return
        new = ticket > self._last
        # What was overtaken by others of higher priority, or made up, sets nothing back and is
        # nothing to learn from; the ranker is busy with it all the same.
        self._last = ticket if new else math.nextafter(self._last, math.inf)
        self._board.start(self._instance, self._last)
        try:
            yield
        finally:
            now = time.monotonic()
            if new:
                asked = max(tokens, 1)
                scored = asked if self._scored is None else min(self._scored, asked)
                self._cost.learn(scored, now - started, asked)
            self._board.finish(self._instance, self._last, now, self._cost)

    def scored(self, missing: Sequence[tuple[Ids, Sequence[Ids]]]) -> None:
        """What the engine was asked for in this pass: neither what a cache knew nor what depth
        control left out. May be said for each request."""
        tokens = sum(len(prefix) + sum(map(len, items)) for prefix, items in missing)
        self._scored = (self._scored or 0) + tokens

    def _tensor(self, request: Any, name: str) -> Any:
        return self._backend.get_input_tensor_by_name(request, name).as_numpy()


class NoMeter:
    """Nobody asks for the pace."""

    def passing(self, requests: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def scored(self, missing: Sequence[tuple[Ids, Sequence[Ids]]]) -> None: ...


def open_admission(parameters: Mapping[str, Any]) -> Admission | NoAdmission:
    """The door that the parameters of the stage `prepare` ask for."""
    if ADMISSION not in parameters:
        return NoAdmission()
    given = json.loads(parameters[ADMISSION]["string_value"])
    patience_s = max(LEAST_PATIENCE_S, 2 * given["limit_s"])
    if os.environ.get(SWITCH) == "off":
        given["limit_s"], patience_s = None, math.inf
    return Admission(Line(**given), Board(board_path(os.getppid())), patience_s)


def open_meter(
    parameters: Mapping[str, Any], instance_name: str, backend: Any
) -> PaceMeter | NoMeter:
    """The meter that the parameters of a stage `ranker` ask for; `instance_name` is Triton's
    (`ranker_0_3`)."""
    if ADMISSION not in parameters:
        return NoMeter()
    return PaceMeter(
        Board(board_path(os.getppid())), int(instance_name.rpartition("_")[2]), backend
    )


def board_path(server: int) -> Path:
    """The stages are children of their server, and its number is one of its container. What an
    earlier server of that number left is cleared by the door, which all requests pass."""
    return SHARED / f"slmrank-pace-{os.stat('/proc/self/ns/pid').st_ino}-{server}"
