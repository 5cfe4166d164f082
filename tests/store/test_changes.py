"""Messages of changed jobs, their order, and lines that are still being written."""

from __future__ import annotations

import codecs
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from slmrank.errors import DataError
from slmrank.store.change_lines import LinesSource
from slmrank.store.changes import Delivery, order_of, read_change


def test_messages() -> None:
    job = {"job_id": "a", "title": "Nurse", "description": "Cares."}
    assert read_change(json.dumps({"job": job}).encode()).job_id == "a"
    gone = read_change(b'{"delete": "b"}')
    assert (gone.job, gone.job_id) == (None, "b")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"{", "JSON"),
        (b"{}", "either job or delete"),
        (b'{"job": {"job_id": "a", "description": ""}, "delete": "a"}', "either job or delete"),
        (b'{"job": {"job_id": "a"}}', "job.description"),
        (b'{"job": {"job_id": "a", "description": "x", "salary": 3}}', "job.salary"),
        (b'{"delete": ""}', "delete"),
        (b'{"remove": "a"}', "remove"),
        (b"\xff", "JSON"),
    ],
)
def test_what_is_no_message(raw: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_change(raw)


def test_orders_compare_as_texts() -> None:
    made = [
        order_of(9),
        order_of(10, 3),
        order_of(10, 20),
        order_of(10),
        order_of(1_700_000_000_000),
    ]
    assert made == sorted(made)


def test_a_byte_order_mark_is_no_change(tmp_path: Path) -> None:
    lines = io.BytesIO(codecs.BOM_UTF8 + b"one\r\ntwo\r\n")
    source = LinesSource(lines, tmp_path / "rejected", follow=False)
    taken = source.take(1, 1.0) + source.take(1, 1.0)
    assert [one.raw.strip() for one in taken] == [b"one", b"two"]


def test_lines_until_the_end_and_what_is_rejected(tmp_path: Path) -> None:
    source = LinesSource(io.BytesIO(b"one\n\ntwo\nthree"), tmp_path / "rejected", follow=False)
    taken = source.take(2, 1.0)
    taken += source.take(2 - len(taken), 1.0) if len(taken) < 2 else []
    assert [one.raw for one in taken] == [b"one\n", b"two\n"]
    assert [one.token for one in taken] == ["1", "3"]  # a blank line is a line
    assert taken[0].order < taken[1].order
    assert not source.ended
    assert [one.raw for one in source.take(9, 1.0)] == [b"three"]
    assert source.take(9, 1.0) == []
    assert source.ended
    source.reject(Delivery(token="2", order="", sent_ms=0, raw=b"tw\xff\n"), "no job")
    letter = json.loads((tmp_path / "rejected").read_text())
    assert letter == {"line": 2, "reason": "no job", "change": "tw\ufffd"}


def test_a_pipe_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    """64 lines had to come before the first one was applied."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as stream, os.fdopen(theirs, "wb", buffering=0) as writer:
        source = LinesSource(stream, tmp_path / "rejected", follow=False)
        writer.write(b"one\ntw")
        started = time.perf_counter()
        assert [one.raw for one in source.take(64, 30.0)] == [b"one\n"]
        assert source.take(64, 0.05) == []
        assert time.perf_counter() - started < 15
        writer.write(b"o\n")
        assert [one.raw for one in source.take(64, 30.0)] == [b"two\n"]
        writer.close()
        assert source.take(64, 30.0) == []
        assert source.ended


def test_a_line_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    path.write_bytes(b"first\nhal")
    with path.open("rb") as stream:
        source = LinesSource(stream, tmp_path / "rejected", follow=True)
        assert [one.raw for one in source.take(9, 0.1)] == [b"first\n"]
        assert source.take(9, 0.1) == []

        def finish() -> None:
            with path.open("ab") as more:
                more.write(b"f\nlast\n")

        threading.Timer(0.2, finish).start()
        found = source.take(9, 5.0) + source.take(9, 0.1)
        assert [one.raw for one in found] == [b"half\n", b"last\n"]
    assert not source.ended


def test_lines_stay_in_order_when_the_clock_steps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([5_000_000_000, 4_000_000_000])
    source = LinesSource(io.BytesIO(b"one\ntwo\n"), tmp_path / "rejected", follow=False)
    monkeypatch.setattr(time, "time_ns", lambda: next(now))
    first, second = source.take(1, 1.0) + source.take(1, 1.0)
    assert first.order < second.order
