"""What a JSON value asks for: a stored job, a job by its fields, or a text."""

from __future__ import annotations

from typing import Any

import pytest
from slmrank.client.asked import Asked, ItemText, read_asked
from slmrank.data.records import Job
from slmrank.triton.status import Status


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("29-1", "29-1"),
        ({"id": "29-1"}, "29-1"),
        ({"job_id": "29-1", "title": None, "description": None}, "29-1"),
        # The caller's own, which has no text: not the store's job of that id.
        ({"id": "29-1", "text": ""}, Job(job_id="29-1", description="")),
        ({"job_id": "29-1", "title": "Nurse"}, Job(job_id="29-1", title="Nurse", description="")),
        ({"text": "Cares."}, Job(job_id="#3", description="Cares.")),
        ({"job_text": "Job: nurse"}, ItemText(text="Job: nurse", job_id="")),
    ],
)
def test_shapes(value: Any, asked: Asked) -> None:
    assert read_asked(value, 3) == asked


def test_a_status_of_a_newer_server_is_not_scored_and_fails_nothing() -> None:
    assert Status(42) is Status.OTHER
    assert not Status(42).scored
