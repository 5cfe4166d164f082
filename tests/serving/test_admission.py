"""Admission by predicted wait: the line, the shared page, and what a stage tells of its pace."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.errors import Overloaded, ServerError, Unreachable
from slmrank.serving import admission
from slmrank.serving.admission import (
    Admission,
    Board,
    Line,
    NoAdmission,
    NoMeter,
    Pace,
    PaceMeter,
    open_admission,
    open_meter,
)
from slmrank.serving.pass_cost import PassCost

MILLISECOND = Pace(seconds_per_token=0.001)


def test_with_nothing_before_it_any_request_is_right() -> None:
    Line(0.1, 4).take(1.0, 10**6, Pace())
    Line(0.1, 4).take(1.0, 10**6, MILLISECOND)


def test_a_request_is_taken_while_its_answer_is_predicted_in_time() -> None:
    line = Line(0.5, 64)
    line.take(1.0, 200, MILLISECOND)
    busy = Pace(seconds_per_token=0.001, started=1.0)
    with pytest.raises(Overloaded, match="about 501 ms, the objective is 500 ms"):
        line.take(1.0, 301, busy)
    line.take(1.001, 299, busy)
    # The second has waited for 100 ms of its 500: whoever is joined with it makes it late.
    with pytest.raises(Overloaded):
        line.take(1.1, 3, busy)
    # It was started: nobody is joined with it any more, and 300 ms of its work are left.
    line.take(1.2, 200, Pace(seconds_per_token=0.001, started=1.001, finished=1, finished_at=1.2))


def test_more_instances_take_more() -> None:
    def taken(instances: int, joined: int, fixed_s: float = 0.0) -> int:
        line = Line(1.0, 64, joined)
        pace = Pace(seconds_per_token=0.001, fixed_s=fixed_s, instances=instances)
        for count in range(64):
            try:
                line.take(1.0, 100, pace)
            except Overloaded:
                return count
        return 64

    assert taken(1, 64) == 10
    # All that waits is one pass of one instance: 19 were taken, and answered after 1.9 s.
    assert taken(2, 64) == 10
    assert taken(2, 1) == 20
    # Every pass has its fixed part.
    assert taken(1, 1, 0.1) == 5
    assert taken(1, 2, 0.1) == 6
    assert taken(1, 64, 0.1) == 9
    # What runs on two is done in half of the time.
    line = Line(1.0, 64)
    for ticket in (1.0, 1.001):
        line.take(ticket, 800, Pace())
    busy = Pace(seconds_per_token=0.001, started=1.001, instances=2)
    line.take(1.002, 190, busy)
    with pytest.raises(Overloaded):
        line.take(1.002, 20, busy)


def test_before_a_pace_is_known_requests_are_only_counted() -> None:
    line = Line(0.5, 2)
    for at in (1.0, 1.001, 1.002):
        line.take(at, 10**6, Pace(started=1.0))
    with pytest.raises(Overloaded, match="the limit is 2"):
        line.take(1.003, 1, Pace(started=1.0))


def test_so_many_may_wait() -> None:
    line = Line(None, 2)
    for at in (1.0, 1.001, 1.002):
        line.take(at, 10, Pace(started=1.0))
    with pytest.raises(Overloaded, match="2 requests are waiting, the limit is 2"):
        line.take(1.003, 10, Pace(started=1.0))
    line.take(1.004, 10, Pace(started=1.001))


def test_what_never_came_holds_nobody() -> None:
    # Cancelled on its way: an idle ranker would have had it.
    line = Line(0.5, 64)
    line.take(1.0, 10**6, MILLISECOND)
    with pytest.raises(Overloaded):
        line.take(1.05, 1, MILLISECOND)
    line.take(1.11, 1, MILLISECOND)
    # Lost while the ranker works: passed by the next one.
    line = Line(0.5, 64)
    line.take(1.0, 10**6, MILLISECOND)
    line.take(1.2, 1, Pace(seconds_per_token=0.001, started=1.1, finished=1.1, finished_at=1.15))
    # The ranker died with it.
    line = Line(0.5, 64)
    line.take(1.0, 1, MILLISECOND)
    dead = Pace(seconds_per_token=0.001, started=1.0, finished=0.5)
    with pytest.raises(Overloaded):
        line.take(2.0, 501, dead)
    line.take(32.0, 10**6, dead)


class Instance:
    """One `ranker` that joins all that wait: `seconds` of the tokens of a pass, and `ended` hears
    of every pass: what was joined as (arrival, tokens), when it began and ended."""

    def __init__(
        self,
        seconds: Callable[[int], float],
        ended: Callable[[list[tuple[float, int]], float, float], None],
    ) -> None:
        self._seconds, self._ended = seconds, ended
        self._waiting: list[tuple[float, int]] = []
        self._working: list[tuple[float, int]] = []
        self._begins = self._ends = 0.0
        self.seen = Pace()

    def work(self, until: float) -> None:
        while True:
            if self._working:
                if self._ends > until:
                    return
                self._ended(self._working, self._begins, self._ends)
                self._working = []
                self.seen = replace(self.seen, finished=self.seen.started, finished_at=self._ends)
            if not self._waiting:
                return
            self._working, self._waiting = self._waiting, []
            self._begins = max(self.seen.finished_at, self._working[0][0])
            self._ends = self._begins + self._seconds(sum(one for _, one in self._working))
            self.seen = replace(self.seen, started=self._working[-1][0])

    def offer(self, line: Line, now: float, tokens: int, **cost: float) -> bool:
        """Whether the line takes a request, with what a pass and a token cost; then it waits here
        or is worked on."""
        try:
            line.take(now, tokens, replace(self.seen, **cost))
        except Overloaded:
            return False
        self._waiting.append((now, tokens))
        self.work(now)
        return True


@given(
    st.lists(
        st.tuples(st.floats(0, 0.3), st.integers(1, 400)),
        min_size=1,
        max_size=40,
    )
)
def test_with_a_steady_pace_every_answer_comes_in_time(arrivals: list[tuple[float, int]]) -> None:
    """One instance that works as predicted and joins all that wait: nobody's answer is late but
    that of one that came to an idle server."""
    rate, limit = 0.001, 0.5
    line, now = Line(limit, 64), 1.0

    def ended(joined: list[tuple[float, int]], _begins: float, ends: float) -> None:
        alone = len(joined) == 1 and joined[0][1] * rate > limit
        assert alone or all(ends - at <= limit + 1e-9 for at, _ in joined)

    ranker = Instance(lambda tokens: rate * tokens, ended)
    for gap, tokens in arrivals:
        now += gap + 1e-6
        ranker.work(now)
        ranker.offer(line, now, tokens, seconds_per_token=rate)
    ranker.work(math.inf)


class Requests:
    """Stand-ins for Triton's requests and its Python module."""

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: np.array(request[name]))


def request(ticket: float, tokens: int) -> dict[str, Any]:
    return {"prepared_at": [[ticket]], "item_ids": [[5] * (tokens - 1)], "prefix_ids": [[7]]}


def test_the_page_carries_the_pace_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "page"
    assert Board(path).pace() == Pace()
    meter, seen = PaceMeter(Board(path), 3, Requests), Board(path)
    ticket = time.monotonic()
    with meter.passing([request(ticket - 1, 4), request(ticket, 6)]):
        during = seen.pace()
        time.sleep(0.05)
    after = seen.pace()
    assert (during.started, during.finished, after.finished) == (ticket, 0.0, ticket)
    assert after.finished_at > ticket
    assert 0.005 <= after.seconds_per_token < 0.5
    assert after.instances == 1
    with PaceMeter(Board(path), 4, Requests).passing([request(ticket, 1)]):
        assert seen.pace().instances == 2


@pytest.mark.parametrize("ticket", [math.nan, math.inf, 1e18, -5.0])
def test_a_ticket_that_somebody_made_up_changes_nothing(tmp_path: Path, ticket: float) -> None:
    board = Board(tmp_path / "page")
    meter = PaceMeter(board, 0, Requests)
    now = time.monotonic()
    with meter.passing([request(ticket, 4), request(now, 4)]):
        pass
    assert board.pace().finished == now
    before = board.rows.copy()
    with meter.passing([request(ticket, 400)]):
        assert (board.rows == before).all()
    assert (board.rows == before).all()


def test_tensors_of_another_shape_fail_nobody_else(tmp_path: Path) -> None:
    """Triton passes on a batch of none: the pass of all that were joined with it failed."""
    board = Board(tmp_path / "page")
    now = time.monotonic()
    none = {"prepared_at": [now], "item_ids": [5], "prefix_ids": [7]}
    with PaceMeter(board, 0, Requests).passing([none, request(now, 4)]):
        pass
    assert board.pace().finished == now


def test_a_request_that_others_overtook_sets_nothing_back(tmp_path: Path) -> None:
    board = Board(tmp_path / "page")
    meter, now = PaceMeter(board, 0, Requests), time.monotonic()
    with meter.passing([request(now, 4)]):
        pass
    before = board.pace()
    for ticket in (now - 5, 1.0):  # the second one was made up
        with meter.passing([request(ticket, 10**6)]):
            during = board.pace()
            # The ranker is seen to be busy, and what waits for it is not forgotten.
            assert during.started > during.finished >= now
        after = board.pace()
        assert now < after.started == after.finished < now + 1e-6
        assert (after.fixed_s, after.seconds_per_token) == (
            before.fixed_s,
            before.seconds_per_token,
        )


def test_an_idle_instance_takes_what_another_one_has_no_time_for(tmp_path: Path) -> None:
    board = Board(tmp_path / "page")
    cost = PassCost()
    for tokens in (100, 200, 300) * 20:
        cost.learn(tokens, tokens / 1000)
    for instance in (0, 1):
        board.start(instance, 1.0)
        board.finish(instance, 1.0, 1.5, cost)
    line = Line(0.5, 64)
    line.take(2.0, 350, board.pace())
    board.start(0, 2.0)
    line.take(2.1, 350, board.pace())
    board.start(1, 2.1)
    with pytest.raises(Overloaded):  # both work now
        line.take(2.2, 350, board.pace())


@pytest.mark.parametrize("pass_s", [0.003, 0.02])
def test_what_waited_too_long_to_be_read_stays_refused_until_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pass_s: float
) -> None:
    """Requests of 30 ms of reading, three times as many as can be read: each refusal counted as a
    break, and what was taken had waited for up to 40 s."""
    clock = [1000.0]
    stand_in = SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr("slmrank.serving.admission.time", stand_in)
    board = Board(tmp_path / "page")
    door = Admission(Line(1.0, 10_000), board, patience_s=1.0)
    rng = random.Random(0)
    due, free, waits = 1000.0, 0.0, []
    working: list[tuple[float, float]] = []  # ticket, end
    for _ in range(3000):
        due += rng.expovariate(100)
        clock[0] = max(clock[0], due) + 0.0001
        while working and working[0][1] <= clock[0]:
            ticket, end = working.pop(0)
            board.start(0, ticket)
            board.finish(0, ticket, end, PassCost())
        try:
            with door.entered():
                clock[0] += 0.03
                ticket = door.take(10)
        except Overloaded:
            clock[0] += 0.0003
            continue
        free = max(clock[0], free) + pass_s
        working.append((ticket, free))
        waits.append(clock[0] - due)
    assert len(waits) > 300
    assert max(waits) < 1.5


def test_a_large_listing_is_taken_among_small_requests() -> None:
    """60 tokens a hundred times a second, 25,000 once a second, at half of what the ranker can: by
    one slope through zero 34 of 74 were refused, with words of three seconds."""
    rng, cost, limit_s = random.Random(1), PassCost(), 0.5
    arrivals = [(at / 100 + rng.random() / 100, 60) for at in range(6000)]
    arrivals += [(at + rng.random(), 25_000) for at in range(60)]
    line, refused, worst_s = Line(limit_s, 64), Counter[int](), 0.0

    def ended(joined: list[tuple[float, int]], begins: float, ends: float) -> None:
        nonlocal worst_s
        cost.learn(sum(tokens for _, tokens in joined), ends - begins)
        worst_s = max(worst_s, *(ends - at for at, _ in joined))

    ranker = Instance(lambda tokens: (0.005 + tokens * 1e-6) * rng.uniform(0.9, 1.2), ended)
    for at, tokens in sorted(arrivals):
        ranker.work(1.0 + at)
        taken = ranker.offer(
            line,
            1.0 + at,
            tokens,
            fixed_s=cost.slack * cost.fixed_s,
            seconds_per_token=cost.slack * cost.seconds_per_token,
        )
        refused[tokens] += not taken
    assert refused[25_000] <= 3
    assert refused[60] <= 60
    assert worst_s < limit_s


def test_a_pass_costs_a_fixed_part_and_a_part_for_each_token() -> None:
    cost = PassCost()
    cost.learn(100, 0.011)
    assert cost.seconds_per_token == pytest.approx(0.00011)  # one size says nothing of another
    assert cost.slack == pytest.approx(2.5)
    for tokens in (100, 900, 300, 5000) * 20:
        cost.learn(tokens, 0.01 + tokens * 1e-5)
    assert cost.fixed_s == pytest.approx(0.01, rel=0.02)
    assert cost.seconds_per_token == pytest.approx(1e-5, rel=0.02)
    assert cost.slack < 1.05
    for _ in range(1000):  # a large one in a thousand is still known
        cost.learn(100, 0.011)
    assert cost.fixed_s + 5000 * cost.seconds_per_token == pytest.approx(0.06, rel=0.05)
    for _ in range(1000):  # and follows what the small ones cost
        cost.learn(100, 0.022)
    assert cost.fixed_s + 5000 * cost.seconds_per_token == pytest.approx(0.12, rel=0.05)
    for tokens in (100, 900, 300, 5000) * 60:  # a slower machine is learnt
        cost.learn(tokens, 0.02 + tokens * 2e-5)
    assert cost.fixed_s == pytest.approx(0.02, rel=0.05)
    assert cost.seconds_per_token == pytest.approx(2e-5, rel=0.05)


def test_one_slow_pass_does_not_refuse_what_comes_after_it() -> None:
    """The first pass of a server, or a stall, refused requests for 10 to 40 s at half load."""
    for slow, normal in ((0, 3.0), (200, 5.0)):
        cost = PassCost()
        for number in range(slow + 6):
            cost.learn(1000, normal if number == slow else 0.1)
        assert cost.fixed_s + 1000 * cost.seconds_per_token < 0.2
    for _ in range(12):  # a machine that really became slower is followed
        cost.learn(1000, 0.4)
    assert cost.slack * (cost.fixed_s + 1000 * cost.seconds_per_token) > 0.35


def test_what_a_cache_knew_costs_nothing_and_is_no_measure_of_a_token(tmp_path: Path) -> None:
    """Half of the pairs cached, at 44 % load: 16 % of the requests were refused."""
    board = Board(tmp_path / "page")
    meter = PaceMeter(board, 0, Requests)
    ids = np.zeros(10, dtype=np.int32)
    for _ in range(3):
        with meter.passing([request(time.monotonic(), 40)]):
            meter.scored([(ids, [ids])])
            time.sleep(0.02)
    full = board.pace().seconds_per_token
    for _ in range(3):  # all of it was known
        with meter.passing([request(time.monotonic(), 40)]):
            meter.scored([])
    pace = board.pace()
    assert 0.02 / 40 <= full < 5 * 0.02 / 40  # half of 40 tokens took 0.02 s: 0.001 s for each
    assert pace.seconds_per_token == pytest.approx(full / 2, rel=0.1)


def test_a_lone_caller_is_not_taken_for_a_queue(tmp_path: Path) -> None:
    """`prepare` for 150 ms, `ranker` for 3: 25 of 60 were refused, of one caller who waits for each
    answer."""
    board = Board(tmp_path / "page")
    door = Admission(Line(0.5, 64), board, 0.05)
    cost = PassCost()
    for _ in range(20):
        with door.entered():
            time.sleep(0.02)
            ticket = door.take(100)
        board.start(0, ticket)
        board.finish(0, ticket, time.monotonic(), cost)
        time.sleep(0.003)
    # Those that wait come at once: the last one was not answered when the next is read.
    with pytest.raises(Overloaded, match="faster than they can be read"):
        for _ in range(20):
            with door.entered():
                time.sleep(0.02)
                door.take(100)


def test_a_failed_pass_is_a_finished_one(tmp_path: Path) -> None:
    board = Board(tmp_path / "page")
    now = time.monotonic()
    with (
        pytest.raises(ZeroDivisionError),
        PaceMeter(board, 0, Requests).passing([request(now, 4)]),
    ):
        raise ZeroDivisionError
    assert board.pace().finished == now


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "page").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        Board(tmp_path / "page")
    assert target.read_text() == "kept"


def test_requests_without_a_break_are_refused_until_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock.now)
    door = Admission(Line(None, 64), Board(tmp_path / "page"), 1.0)
    for _ in range(10):
        with door.entered():
            clock.now += 0.1  # long texts
        clock.now += 0.0005
    for _ in range(20):
        with pytest.raises(Overloaded, match="faster than they can be read"), door.entered():
            pass
        clock.now += 0.0005
    clock.now += 0.0105
    with door.entered():
        pass


@pytest.mark.parametrize("gap_s", [0.0006, 0.0015])
def test_what_is_slow_to_be_handed_over_is_no_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap_s: float
) -> None:
    """Megabytes of text, one request behind the other: nothing of the gaps is idle."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock.now)
    door, refused = Admission(Line(None, 64), Board(tmp_path / "page"), 1.0), 0
    for _ in range(200):
        try:
            with door.entered():
                clock.now += 0.02
        except Overloaded:
            refused += 1
        clock.now += gap_s
    assert refused > 100


def test_a_steady_stream_that_leaves_it_idle_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gap is long, and four fifths of the time nothing is done."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock.now)
    door = Admission(Line(None, 64), Board(tmp_path / "page"), 1.0)
    for _ in range(2000):
        with door.entered():
            clock.now += 0.0003
        clock.now += 0.0012


def test_stages_open_what_their_parameters_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SHARED", tmp_path)
    assert isinstance(open_admission({}), NoAdmission)
    assert isinstance(open_meter({}, "ranker_0_0", Requests), NoMeter)
    value = json.dumps({"limit_s": 0.5, "max_waiting": 3})
    parameters = {"admission": {"string_value": value}}
    door, meter = open_admission(parameters), open_meter(parameters, "ranker_0_5", Requests)
    assert os.listdir(tmp_path) == [admission.board_path(os.getppid()).name]
    first = door.take(10)
    with meter.passing([request(first, 10)]):
        for _ in range(3):
            door.take(10)
        with pytest.raises(Overloaded, match="the limit is 3"):
            door.take(10)
    # A server that is measured only counts.
    monkeypatch.setenv(admission.SWITCH, "off")
    measured = open_admission(parameters)
    assert isinstance(measured, Admission)
    assert measured._patience_s == math.inf
    for _ in range(3):
        measured.take(10**9)
    with pytest.raises(Overloaded, match="the limit is 3"):
        measured.take(1)


def test_a_server_that_leaves_answers_what_it_took_and_no_more(tmp_path: Path) -> None:
    board = Board(tmp_path / "page")
    board.leave()  # of an earlier server of this number
    door, seen = Admission(Line(None, 64), board, 1.0), Board(tmp_path / "page")
    assert seen.quiet(time.monotonic())
    with door.entered():
        seen.leave()
        assert not seen.quiet(time.monotonic())  # it is being read
        ticket = door.take(10)
    assert not seen.quiet(ticket)
    board.start(0, ticket)
    assert not seen.quiet(ticket + 60)
    board.finish(0, ticket, ticket + 60, PassCost())
    assert seen.quiet(ticket + 60)
    with pytest.raises(Unreachable, match="stopping"), door.entered():
        raise AssertionError("it was let in")
    assert seen.quiet(ticket + 60)
    lost = door.take(10)  # cancelled on its way
    assert not seen.quiet(lost + 0.01)
    assert seen.quiet(lost + 61)


def test_another_users_page_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.touch(0o666)
    path.chmod(0o666)
    with pytest.raises(ServerError, match="not this user's alone"):
        Board(path)
