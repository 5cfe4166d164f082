"""What is asked of a ranker: a job of its store, a job by its fields, or a text of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from slmrank.data.records import Job
from slmrank.errors import InvalidRequest

_KEYS = frozenset(Job.model_fields)
_SHAPES = (
    "a job is a stored job's id, or an object of strings: job_id (or id), title, company, "
    "location, description (or text); or job_id and job_text, an item as it goes into the prompt"
)


@dataclass(frozen=True, kw_only=True)
class ItemText:
    """The text of an item exactly as it goes into the prompt, for those who format it themselves.
    A job of the store, or one sent as `Job`, has another text: title and place stand in it too."""

    text: str
    job_id: str = ""


# A job in the server's store by its id, a job by its fields, or a text of one's own.
Asked = str | Job | ItemText


def _kind(value: Any) -> str:
    """Short, and for lists in lists without going into them."""
    named = "a list" if isinstance(value, list) else "an object"
    return named if isinstance(value, list | dict) else json.dumps(value)[:80]


def read_asked(value: Any, place: int) -> Asked:
    """What a JSON value asks for; a job that names no id is called `#place`.

    Raises InvalidRequest that says what is wrong with it.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InvalidRequest(f"{_kind(value)} is not a job", _SHAPES)
    given = {key: one for key, one in value.items() if one not in (None, "")}
    wrong = next((key for key, one in given.items() if not isinstance(one, str)), None)
    if wrong is not None:
        raise InvalidRequest(f"{wrong[:80]} is {_kind(given[wrong])}, not a string", _SHAPES)
    for name, other in (("id", "job_id"), ("text", "description")):
        if name in given and other not in given:
            given[other] = given.pop(name)
    if "job_text" in given and set(given) <= {"job_id", "job_text"}:
        return ItemText(text=given["job_text"], job_id=given.get("job_id", ""))
    # With an empty text it is the caller's own.
    if {key for key, one in value.items() if one is not None} <= {"id", "job_id"}:
        return str(given.get("job_id", ""))
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        named = ", ".join(key[:80] for key in unknown[:5])  # what was sent may be megabytes
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InvalidRequest(f"unknown keys {named}{more}", _SHAPES)
    try:
        return Job.model_validate({"job_id": f"#{place}", "description": "", **given})
    except ValidationError as error:
        raise InvalidRequest(str(error.errors()[0]["msg"]), _SHAPES) from error
