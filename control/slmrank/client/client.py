"""Score jobs over gRPC.

    with RankClient("localhost:8001") as client:
        for item in client.score("night nurse", [JobRef(job_id="29-1141.00-1")]):
            print(item.job_id, item.score, item.status)

A listing longer than the server's limit is split and put together again in the caller's order.
Scoring changes nothing on the server, so a refused or lost call is repeated inside the caller's
deadline: UNAVAILABLE only, with growing, jittered pauses.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton

from slmrank.errors import ScoreError
from slmrank.triton.status import Status

MODEL = "rank"
DEFAULT_TIMEOUT_S = 30.0
FIRST_PAUSE_S = 0.05
LARGEST_PAUSE_S = 2.0
# What Triton says when a queue is full, and when a request waited longer than its queue's timeout.
_OVERLOAD = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True, kw_only=True)
class JobRef:
    """A job to score: an id in the summary store, or a text, which then wins."""

    job_id: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ItemScore:
    """P(relevant) of one job, NaN when it was not scored; `index` is its place in the request."""

    index: int
    job_id: str
    score: float
    status: Status


class RankClient:
    """A blocking client of the ensemble `rank`. One instance may be shared by threads."""

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._client: Any = triton.InferenceServerClient(url)
        self._max_items: int | None = None

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
        """What answers: engine, checkpoint, template and tokenizer hashes, and limits.

        Raises ScoreError when the server cannot be reached or has no `rank`.
        """
        deadline = self._deadline(timeout_s)
        reply = self._call(
            lambda left: self._client.get_model_config(MODEL, client_timeout=left), deadline
        )
        return {key: one.string_value for key, one in reply.config.parameters.items()}

    def score(
        self, query: str, jobs: Sequence[JobRef], *, timeout_s: float | None = None
    ) -> list[ItemScore]:
        """Scores in the order of `jobs`.

        Raises ScoreError when the query is refused, the server cannot be reached or the deadline
        passes. A job that cannot be scored does not raise; its status says why.
        """
        deadline = self._deadline(timeout_s)
        if self._max_items is None:
            left = max(deadline - time.monotonic(), 0.001)
            self._max_items = int(self.describe(timeout_s=left).get("max_items", "1000"))
        found: list[ItemScore] = []
        for start in range(0, len(jobs), self._max_items):
            part = jobs[start : start + self._max_items]
            scores, statuses = self._score_part(query, part, deadline)
            for offset, job in enumerate(part):
                found.append(
                    ItemScore(
                        index=start + offset,
                        job_id=job.job_id,
                        score=float(scores[offset]),
                        status=Status(int(statuses[offset])),
                    )
                )
        return found

    def _score_part(self, query: str, jobs: Sequence[JobRef], deadline: float) -> tuple[Any, Any]:
        inputs = build_inputs(query, jobs)
        outputs = [triton.InferRequestedOutput(name) for name in ("score", "status")]
        reply = self._call(
            lambda left: self._client.infer(MODEL, inputs, outputs=outputs, client_timeout=left),
            deadline,
        )
        return reply.as_numpy("score")[0], reply.as_numpy("status")[0]

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def _call(self, call: Any, deadline: float) -> Any:
        pause = FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            try:
                return call(max(left, 0.001))
            except triton.InferenceServerException as error:
                failure = error
            left = deadline - time.monotonic()
            wait = min(pause, LARGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            if not _unavailable(failure) or wait >= left:
                raise self._explain(failure) from failure
            time.sleep(wait)
            pause *= 2

    def _explain(self, error: Any) -> ScoreError:
        status = str(error.status() or "")
        text = str(error.message() or error).removeprefix(f"in ensemble '{MODEL}', ")
        if any(sign in text for sign in _OVERLOAD):
            told = text.rpartition("] ")[2]
            return ScoreError(
                f"{self.url} is overloaded and refused the request: {told}",
                "send fewer requests at a time, or add replicas",
            )
        if "UNAVAILABLE" in status:
            return ScoreError(
                f"no answer from {self.url}: {text}",
                "start the server with `control serve`, or check the url",
            )
        if "DEADLINE" in status or "Deadline" in text:
            return ScoreError(
                f"no answer from {self.url} in time", "raise the timeout or send fewer jobs"
            )
        message, _, fix = text.partition(". Fix: ")
        return ScoreError(message, fix or "see the server's log")


def build_inputs(query: str, jobs: Sequence[JobRef]) -> list[Any]:
    """The request tensors of one call: query [1, 1], job_id and, if any is given, job_text [1, N].

    Raises ScoreError for a text that has no UTF-8 form (a lone surrogate).
    """
    columns = {"query": [query], "job_id": [job.job_id for job in jobs]}
    if any(job.text for job in jobs):
        columns["job_text"] = [job.text for job in jobs]
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


def _encode(name: str, value: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ScoreError(
            f"{name} is not valid Unicode at position {error.start}", "read it as UTF-8"
        ) from error


def _unavailable(error: Any) -> bool:
    return "UNAVAILABLE" in str(error.status() or "") or isinstance(error, grpc.FutureTimeoutError)
