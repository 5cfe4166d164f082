"""Score jobs over gRPC.

    with RankClient("localhost:8001") as client:
        for item in client.score("night nurse", ["29-1141.00-1", Job(job_id="new", ...)]):
            print(item.job_id, item.score, item.status)

A listing longer than the server's limit is split and put together again in the caller's order.
Scoring changes nothing on the server, so a call whose connection was lost is repeated inside the
caller's deadline, with growing, jittered pauses. A full queue is not asked again: that would keep
it full.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton

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
from slmrank.triton.status import Status

MODEL = "rank"
DEFAULT_TIMEOUT_S = 30.0
FIRST_PAUSE_S = 0.05
LARGEST_PAUSE_S = 2.0
# What Triton says when a queue is full, and when a request waited longer than its queue's timeout.
_OVERLOAD = ("Exceeds maximum queue size", "Request timeout expired")
_BY_NAME: dict[str, type[ScoreError]] = {
    one.__name__: one for one in (InvalidQuery, InvalidRequest)
}


@dataclass(frozen=True, kw_only=True)
class ItemText:
    """The text of an item exactly as it goes into the prompt, for those who format it themselves.
    A job of the store, or one sent as `Job`, has another text: title and place stand in it too."""

    text: str
    job_id: str = ""


# A job in the server's store by its id, a job by its fields, or a text of one's own.
Asked = str | Job | ItemText


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """P(relevant) of one job, NaN when it was not scored; `index` is its place in the request."""

    index: int
    job_id: str
    score: float
    status: Status


class RankClient:
    """A blocking client of the ensemble `rank`. One instance may be shared by threads.

    `timeout_s` is for a whole call with its repetitions; `retry_overload` also repeats what a full
    queue refused.
    """

    def __init__(
        self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, retry_overload: bool = False
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.retry_overload = retry_overload
        self._client: Any = triton.InferenceServerClient(url)
        self._identity: dict[str, str] | None = None

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def describe(self, *, timeout_s: float | None = None) -> dict[str, str]:
        """What answers: engine, checkpoint, template and tokenizer hashes, and limits; asked once.

        Raises Unreachable or DeadlineExceeded when the server does not answer, ServerFault when it
        has no `rank`.
        """
        if self._identity is None:
            reply = self._call(
                lambda left: self._client.get_model_config(MODEL, client_timeout=left),
                self._deadline(timeout_s),
            )
            parameters = reply.config.parameters.items()
            self._identity = {key: value.string_value for key, value in parameters}
        return dict(self._identity)

    def score(
        self, query: str, jobs: Sequence[Asked], *, timeout_s: float | None = None
    ) -> list[ItemScore]:
        """Scores in the order of `jobs`. A job that cannot be scored does not raise; its status
        says why.

        Raises InvalidQuery, InvalidRequest, Overloaded, DeadlineExceeded, Unreachable or
        ServerFault, all of them ScoreErrors.
        """
        deadline = self._deadline(timeout_s)
        left = max(deadline - time.monotonic(), 0.001)
        limit = int(self.describe(timeout_s=left).get("max_items", "1000"))
        found: list[ItemScore] = []
        for start in range(0, len(jobs), limit):
            part = jobs[start : start + limit]
            scores, statuses = self._score_part(query, part, deadline)
            found += [
                ItemScore(
                    index=start + offset,
                    job_id=id_of(job),
                    score=float(scores[offset]),
                    status=Status(int(statuses[offset])),
                )
                for offset, job in enumerate(part)
            ]
        return found

    def _score_part(self, query: str, jobs: Sequence[Asked], deadline: float) -> tuple[Any, Any]:
        inputs = build_inputs(query, jobs)
        outputs = [triton.InferRequestedOutput(name) for name in ("score", "status")]
        reply = self._call(
            lambda left: self._client.infer(MODEL, inputs, outputs=outputs, client_timeout=left),
            deadline,
        )
        return reply.as_numpy("score")[0], reply.as_numpy("status")[0]

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def _call(self, call: Callable[[float], Any], deadline: float) -> Any:
        pause = FIRST_PAUSE_S
        while True:
            try:
                return call(max(deadline - time.monotonic(), 0.001))
            except triton.InferenceServerException as error:
                failure, cause = explain(error, self.url), error
            wait = min(pause, LARGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            again = isinstance(failure, Unreachable) or (
                isinstance(failure, Overloaded) and self.retry_overload
            )
            if not again or wait >= deadline - time.monotonic():
                raise failure from cause
            time.sleep(wait)
            pause *= 2


def explain(error: Any, url: str) -> ScoreError:
    """A failure of a call as an error that says what to do."""
    status = str(error.status() or "")
    text = str(error.message() or error).removeprefix(f"in ensemble '{MODEL}', ")
    if any(sign in text for sign in _OVERLOAD):
        return Overloaded(
            f"{url} is overloaded and refused the request: {text.rpartition('] ')[2]}",
            "send fewer requests at a time, or add replicas",
        )
    if "UNAVAILABLE" in status or isinstance(error, grpc.FutureTimeoutError):
        return Unreachable(
            f"no answer from {url}: {text}",
            "start the server with `control serve`, or check the url",
        )
    if "DEADLINE" in status or "Deadline" in text:
        return DeadlineExceeded(
            f"no answer from {url} in time", "raise the timeout or send fewer jobs"
        )
    # The stages write errors as `Kind: message. Fix: remedy`.
    name, _, rest = text.partition(": ")
    kind = _BY_NAME.get(name)
    message, _, fix = (rest if kind else text).partition(". Fix: ")
    return (kind or ServerFault)(message, fix or "see the server's log")


def id_of(job: Asked) -> str:
    return job if isinstance(job, str) else job.job_id


def build_inputs(query: str, jobs: Sequence[Asked]) -> list[Any]:
    """The request tensors of one call: query [1, 1], job_id [1, N] and, where any is given, job and
    job_text [1, N].

    Raises InvalidRequest for a text that has no UTF-8 form (a lone surrogate).
    """
    columns = {"query": [query], "job_id": [id_of(job) for job in jobs]}
    if any(isinstance(job, Job) for job in jobs):
        columns["job"] = [_fields(job) if isinstance(job, Job) else "" for job in jobs]
    if any(isinstance(job, ItemText) for job in jobs):
        columns["job_text"] = [job.text if isinstance(job, ItemText) else "" for job in jobs]
    inputs = []
    for name, values in columns.items():
        tensor = triton.InferInput(name, [1, len(values)], "BYTES")
        encoded = [_encode(name, value) for value in values]
        tensor.set_data_from_numpy(np.array([encoded], dtype=np.object_))
        inputs.append(tensor)
    return inputs


def rank_order(items: Sequence[ItemScore]) -> list[ItemScore]:
    """Best first; items without a score last, in request order."""
    scored = [item for item in items if not math.isnan(item.score)]
    rest = [item for item in items if math.isnan(item.score)]
    return sorted(scored, key=lambda item: -item.score) + rest


def _fields(job: Job) -> str:
    return json.dumps(job.model_dump(exclude={"job_id"}), ensure_ascii=False)


def _encode(name: str, value: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} is not valid Unicode at position {error.start}", "read it as UTF-8"
        ) from error
