"""One scoring call as tensors, and its failure as an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton

from slmrank.client.asked import Asked, ItemText
from slmrank.data.records import Job
from slmrank.errors import (
    DeadlineExceeded,
    InvalidQuery,
    InvalidRequest,
    Overloaded,
    ScoreError,
    ServerFault,
    Unreachable,
)
from slmrank.triton.config import (
    ANSWERED,
    ENSEMBLE,
    MAX_REQUEST_FIELDS_BYTES,
    MAX_REQUEST_TEXT_BYTES,
    counted_fields,
)

# What Triton says when a queue is full, when a request waited longer than its queue's timeout, and
# our own stage when it would.
_OVERLOAD = ("Exceeds maximum queue size", "Request timeout expired", f"{Overloaded.__name__}: ")
# And of a model that is not loaded yet, that goes because the server ends, or whose process died.
_NOT_SERVING = ("has no available versions", "is not healthy")
_HEADER_NAME, _HEADER_VALUE = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[ -~]*")
_BY_NAME: dict[str, type[ScoreError]] = {
    one.__name__: one for one in (InvalidQuery, InvalidRequest, Unreachable)
}


def explain(error: Any, url: str) -> ScoreError:
    """A failure of a call as an error that says what to do."""
    status = str(error.status() or "")
    text = str(error.message() or error).removeprefix(f"in ensemble '{ENSEMBLE}', ")
    if any(sign in text for sign in _OVERLOAD):
        text = text.removeprefix(f"{Overloaded.__name__}: ").partition(". Fix: ")[0]
        return Overloaded(
            f"{url} is overloaded and refused the request: {text.rpartition('] ')[2]}",
            "send fewer requests at a time, or add replicas",
        )
    # The stages write errors as `Kind: message. Fix: remedy`.
    name, _, rest = text.partition(": ")
    kind = _BY_NAME.get(name)
    message, _, fix = (rest if kind else text).partition(". Fix: ")
    if kind is not None:
        message = f"{url}: {message}" if kind is Unreachable else message
        return kind(message, fix or "see the server's log")
    lost = "UNAVAILABLE" in status or isinstance(error, grpc.FutureTimeoutError)
    if lost or any(sign in text for sign in _NOT_SERVING):
        return Unreachable(
            f"no answer from {url}: {text}",
            "start the server with `control serve`, or check the url",
        )
    if "DEADLINE" in status or "Deadline" in text:
        return DeadlineExceeded(
            f"no answer from {url} in time", "raise the timeout or send fewer jobs"
        )
    return ServerFault(message, fix or "see the server's log")


@dataclass(frozen=True, slots=True)
class Row:
    """A job as it is sent: encoded once, to be counted and to be sent."""

    job_id: str
    fields: bytes = b""
    text: bytes = b""


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as gRPC sends them, names in lower case. Raises InvalidRequest for those that it
    refuses, which it does with an error of its own in every call."""
    found = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()):
            raise InvalidRequest(f"{name!r} is no header's name", "use letters, digits, - _ and .")
        bytes_fit = isinstance(value, bytes) and name.lower().endswith("-bin")
        if not bytes_fit and not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
            # Not shown: it may be a token.
            raise InvalidRequest(
                f"the value of header {name!r} is not printable ASCII",
                "give a str; one that was read from a file may end with a line break: strip() it",
            )
        found[name.lower()] = value
    return found


def rows_of(jobs: Iterable[Asked]) -> list[Row]:
    """The jobs as rows, in order. Raises InvalidRequest for what is no job."""
    one = isinstance(jobs, str | bytes | Mapping | Job | ItemText)
    if one or not isinstance(jobs, Iterable):
        raise InvalidRequest(f"jobs is one {type(jobs).__name__}", "give a list, also of one")
    return [_row(job) for job in jobs]


def _row(job: Asked) -> Row:
    if isinstance(job, str):
        return Row(job)
    if isinstance(job, ItemText):
        if not job.text.strip():  # an empty one would ask for the stored job
            return Row(job.job_id, fields=b"{}")
        return Row(job.job_id, text=_encoded(job.text))
    if not isinstance(job, Job):
        raise InvalidRequest(
            f"a {type(job).__name__} is no job", "give a stored job's id, a Job or an ItemText"
        )
    fields = json.dumps(job.model_dump(exclude={"job_id"}), ensure_ascii=False)
    return Row(job.job_id, fields=_encoded(fields))


def build_inputs(query: str, rows: Sequence[Row]) -> list[Any]:
    """The request tensors of one call: query [1, 1], job_id [1, N] and, where any is given, job and
    job_text [1, N].

    A job's text that has no UTF-8 form (a lone surrogate) is sent as it is: the server gives that
    item a status. Raises InvalidRequest for such a query, or one that is no text.
    """
    if not isinstance(query, str):
        raise InvalidRequest(f"the query is a {type(query).__name__}", "give a str")
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"query is not valid Unicode at position {error.start}", "read it as UTF-8"
        ) from error
    columns = {"query": [_encoded(query)], "job_id": [_encoded(row.job_id) for row in rows]}
    if any(row.fields for row in rows):
        columns["job"] = [row.fields for row in rows]
    if any(row.text for row in rows):
        columns["job_text"] = [row.text for row in rows]
    inputs = []
    for name, values in columns.items():
        tensor = triton.InferInput(name, [1, len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array([values], dtype=np.object_))
        inputs.append(tensor)
    return inputs


def output_tensors() -> list[Any]:
    """The outputs that are asked for: score and status [1, N], and those of `Part` [1, 1]."""
    return [triton.InferRequestedOutput(tensor.name) for tensor in ANSWERED]


def split(rows: Sequence[Row], limit: int) -> Iterator[tuple[int, Sequence[Row]]]:
    """Parts of at most `limit` jobs and of as much text as a server takes at a time, each with the
    place of its first job. A job that is too much alone is sent alone, for the server to refuse."""
    start, text, fields = 0, 0, 0
    for place, row in enumerate(rows):
        own_text, own_fields = len(row.text) + len(row.fields), counted_fields(row.fields)
        if place > start and (
            place - start == limit
            or text + own_text > MAX_REQUEST_TEXT_BYTES
            or fields + own_fields > MAX_REQUEST_FIELDS_BYTES
        ):
            yield start, rows[start:place]
            start, text, fields = place, 0, 0
        text, fields = text + own_text, fields + own_fields
    if rows:
        yield start, rows[start:]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
