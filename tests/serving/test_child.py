"""A child ends with its parent's process, not with the thread that started it."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest
from slmrank.serving.child import KEPT_LINES, Child, fault_lines

ENVIRONMENT = {"PATH": "/usr/bin"}


def test_it_outlives_the_thread_that_started_it() -> None:
    made: list[Child] = []
    asked = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    thread = threading.Thread(target=lambda: made.append(Child(asked, ENVIRONMENT)))
    thread.start()
    thread.join()
    (child,) = made
    until = time.monotonic() + 20
    while "up" not in child.log() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    assert child.process.poll() is None
    child.process.terminate()
    child.process.wait(10)


def test_its_last_lines_are_kept_and_handed_on() -> None:
    heard = io.StringIO()
    many = f"for n in range({KEPT_LINES + 5}): print(n)"
    child = Child([sys.executable, "-c", many], ENVIRONMENT, heard)
    child.process.wait(20)
    lines = child.log().split()
    assert (lines[0], len(lines)) == ("5", KEPT_LINES)
    assert len(heard.getvalue().split()) == KEPT_LINES + 5


def test_what_cannot_be_started_says_so() -> None:
    child = Child(["/nowhere/tritonserver"], ENVIRONMENT)
    child.process.wait(20)
    assert "No such file" in fault_lines(child.log())


def test_who_does_not_listen_any_more_stops_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    child = Child([sys.executable, "-c", "print(1); print(2)"], ENVIRONMENT, closed)
    assert child.process.wait(20) == 0
    assert child.log() == "1\n2\n"
    with pytest.raises(ValueError, match="closed"):
        closed.write("x")
