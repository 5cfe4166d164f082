"""Messages of changed jobs, their order, and lines that are still being written."""

from __future__ import annotations

import io
import json
import threading
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


def test_lines_until_the_end_and_what_is_rejected(tmp_path: Path) -> None:
    source = LinesSource(io.BytesIO(b"one\n\ntwo\nthree"), tmp_path / "rejected", follow=False)
    taken = source.take(2, 1.0)
    assert [one.raw for one in taken] == [b"one\n", b"two\n"]
    assert taken[0].order < taken[1].order
    assert not source.ended
    assert [one.raw for one in source.take(9, 1.0)] == [b"three"]
    assert source.ended
    source.reject(Delivery(token="2", order="", sent_ms=0, raw=b"tw\xff\n"), "no job")
    letter = json.loads((tmp_path / "rejected").read_text())
    assert letter == {"line": 2, "reason": "no job", "change": "tw\ufffd"}


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
