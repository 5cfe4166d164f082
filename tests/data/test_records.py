"""Reading jobs and pairs: errors name file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from slmrank.data.records import Job, Pair, read_jsonl
from slmrank.errors import DataError


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"job_id": "a"}', "description"),
        (b'{"job_id": "a", "description": "x", "titel": "y"}', "titel"),
        (b'{"job_id": "", "description": "x"}', "job_id"),
        (b'{"job_id": "a", "description": "\\ud83d"}', "surrogate"),
        (b"{", "not JSON"),
        (b'{"job_id": "a\xff", "description": "x"}', "not UTF-8"),
        (b'{"job_id": "' + b"x" * 501 + b'", "description": "x"}', "501 bytes"),
    ],
)
def test_a_broken_job_is_named_by_line(tmp_path: Path, line: bytes, text: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"job_id": "ok", "description": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"jobs.jsonl:2") as caught:
        list(read_jsonl(path, Job))
    assert text in str(caught.value)


def test_a_blank_query_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "  ", "job_id": "a", "grade": 1}\n')
    with pytest.raises(DataError, match="is blank"):
        list(read_jsonl(path, Pair))


def test_grades_stay_between_0_and_4(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "job_id": "a", "grade": 5}\n')
    with pytest.raises(DataError, match="grade"):
        list(read_jsonl(path, Pair))
