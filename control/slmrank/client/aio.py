"""Score jobs over gRPC from asyncio.

    async with AsyncRankClient("ranker:8001") as client:
        for item in await client.score("night nurse", ["29-1141.00-1", Job(job_id="new", ...)]):
            print(item.job_id, item.score, item.status)

A listing longer than the server's limit is split, a bounded number of parts is in flight, and the
answers stand in the caller's order. Replicas are asked in turn. Scoring changes nothing on the
server, so a call whose connection was lost is repeated inside the caller's deadline, on another
replica where there is one, with growing, jittered pauses. A full queue is not asked again: that
would keep it full.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from tritonclient.utils import InferenceServerException

from slmrank.client.answer import Answer, join_answers, read_reply
from slmrank.client.asked import Asked
from slmrank.client.replicas import Replica, Replicas, Tls
from slmrank.client.request import (
    Row,
    build_inputs,
    checked_headers,
    explain,
    output_tensors,
    rows_of,
    split,
)
from slmrank.client.tracing import call_span
from slmrank.errors import DeadlineExceeded, InvalidRequest, Overloaded, ScoreError, Unreachable
from slmrank.triton.config import DEFERRABLE, ENSEMBLE

DEFAULT_TIMEOUT_S = 30.0
PARTS_IN_FLIGHT = 4
FIRST_PAUSE_S = 0.05
LONGEST_S = 1e8  # gRPC takes a deadline beyond its clock for one that is past
FAIR_S = 1.0  # who has not answered in so long may hang
HUNG = 2  # calls in a row that a replica did not answer: its connection may be dead
LARGEST_PAUSE_S = 2.0
HEDGES, HEDGED_SHARE = 10.0, 0.1  # second requests at once, and of all calls in the long run
LOWERED_S = 60.0  # a limit that one replica told holds for all of them
_TOO_MANY = re.compile(r"jobs, the limit is (\d+)")
Ask = Callable[[Any, float], Awaitable[Any]]  # a tritonclient and the seconds that are left


class ClientOptions(TypedDict, total=False):
    """What both clients take beside the url; see `AsyncRankClient`."""

    timeout_s: float
    retry_overload: bool
    hedge_s: float | None
    parts_in_flight: int
    tls: Tls | None
    headers: Mapping[str, str] | None


class AsyncRankClient:
    """A client of the ensemble `rank`; one instance serves all tasks of one event loop.

    `url` is `host:port`, or several of them with commas between; a name stands for all its
    addresses. `timeout_s` is for a whole call with its repetitions; `retry_overload` also repeats
    what a full queue refused, as the parts of a split listing do. With `hedge_s`, a part that has
    no answer after that time is sent once more, to another replica where there is one, and the
    first answer counts; where all of them are slow, ten times, and then for a tenth of the calls.
    `headers` go with every call, for example `{"authorization": "Bearer ..."}`.

    Raises InvalidRequest for a url that is none, certificates that cannot be used, or headers that
    gRPC does not send.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_overload: bool = False,
        hedge_s: float | None = None,
        parts_in_flight: int = PARTS_IN_FLIGHT,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if parts_in_flight < 1:
            raise InvalidRequest(
                f"{parts_in_flight} parts in flight would wait for ever", "give 1 or more"
            )
        self.url = url
        self.timeout_s = timeout_s
        self.retry_overload = retry_overload
        self.hedge_s = hedge_s
        self.parts_in_flight = parts_in_flight
        self._spare = HEDGES  # second requests that may be sent
        self._replicas = Replicas(url, tls)
        self._headers = checked_headers(headers or {})
        self._identity: dict[str, str] | None = None
        self._lowered = (0, 0.0)  # jobs in one request, and until when
        self._closes = 0

    async def __aenter__(self) -> AsyncRankClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._closes += 1  # calls that run end as cancelled, and reconnect to nobody
        await self._replicas.close()

    async def describe(self, *, timeout_s: float | None = None) -> dict[str, str]:
        """What answers: engine, checkpoint, template and tokenizer hashes, and limits. Always
        asked: it tells whether the server answers now.

        Raises Unreachable or DeadlineExceeded when the server does not answer, ServerFault when it
        has no `rank`.
        """
        self._identity = await self._asked_identity(self._deadline(timeout_s))
        return dict(self._identity)

    async def score(
        self,
        query: str,
        jobs: Iterable[Asked],
        *,
        timeout_s: float | None = None,
        deferrable: bool = False,
    ) -> Answer:
        """Scores in the order of `jobs`, with who gave them and how long that took. A job that
        cannot be scored does not raise; its status says why. A `deferrable` call waits for all
        others, and is refused first (repository.deferrable_queue_size).

        Raises InvalidQuery, InvalidRequest, Overloaded, DeadlineExceeded, Unreachable or
        ServerFault, all of them ScoreErrors.
        """
        deadline = self._deadline(timeout_s)
        limit = await self._limit(deadline)
        rows = rows_of(jobs)
        with call_span(self.url, len(rows)) as span:
            how: dict[str, Any] = {"headers": {**self._headers, **span.headers} or None}
            if deferrable:
                how["priority"] = DEFERRABLE
            try:
                answer = await self._score_rows(query, rows, limit, deadline, how)
            except InvalidRequest as refused:
                # Another release may have taken over, or answer beside this one, whose limit is
                # lower; which of them tells its limit when it is asked is chance.
                told = _TOO_MANY.search(refused.message)
                now = max(int(told[1]), 1) if told else limit
                if now >= min(limit, len(rows)):
                    raise
                self._lowered = (now, time.monotonic() + LOWERED_S)
                answer = await self._score_rows(query, rows, now, deadline, how)
            span.answered(answer)
        return answer

    async def _score_rows(
        self, query: str, rows: Sequence[Row], limit: int, deadline: float, how: Mapping[str, Any]
    ) -> Answer:
        parts = list(split(rows, limit))
        free = asyncio.Semaphore(self.parts_in_flight)

        async def scored(start: int, part: Sequence[Row]) -> Answer:
            async with free:
                started = time.monotonic()
                inputs, outputs = build_inputs(query, part), output_tensors()

                async def ask(client: Any, left: float) -> Any:
                    return await client.infer(
                        ENSEMBLE, inputs, outputs=outputs, client_timeout=left, **how
                    )

                # The parts of one listing are each other's overload: they wait for each other.
                reply = await self._call(ask, deadline, patient=len(parts) > 1)
            taken_s = time.monotonic() - started
            return read_reply(reply, (row.job_id for row in part), start, taken_s)

        if len(parts) == 1:  # the usual case needs no tasks
            return await scored(*parts[0])
        tasks = [asyncio.ensure_future(scored(*part)) for part in parts]
        try:
            return join_answers(await asyncio.gather(*tasks))
        finally:
            await _end(tasks)

    async def _limit(self, deadline: float) -> int:
        """Most jobs in one request."""
        if self._identity is None:
            self._identity = await self._asked_identity(deadline)
        most = int(self._identity.get("max_items", "1000"))
        lowered, until = self._lowered
        return min(most, lowered) if time.monotonic() < until else most

    async def _asked_identity(self, deadline: float) -> dict[str, str]:
        async def ask(client: Any, left: float) -> Any:
            return await client.get_model_config(
                ENSEMBLE, client_timeout=left, headers=self._headers or None
            )

        parameters = (await self._call(ask, deadline)).config.parameters.items()
        return {key: value.string_value for key, value in parameters}

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    async def _call(self, ask: Ask, deadline: float, *, patient: bool = False) -> Any:
        failed: list[str] = []
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await self._hedged(ask, deadline, failed)
            except ScoreError as error:
                failure = error
            if isinstance(failure, Unreachable | InvalidRequest):
                self._identity = None  # what comes back, or took over, may be another release
            wait = min(pause, LARGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            again = isinstance(failure, Unreachable) or (
                isinstance(failure, Overloaded) and (self.retry_overload or patient)
            )
            if not again or wait >= deadline - time.monotonic():
                raise failure
            await asyncio.sleep(wait)
            pause *= 2

    async def _hedged(self, ask: Ask, deadline: float, failed: list[str]) -> Any:
        """One call, and a second one where the first takes long. Addresses that could not be
        reached are added to `failed`."""
        first = await self._replicas.pick(failed, deadline)
        if self.hedge_s is None:
            return await self._ask(ask, first, deadline, failed)
        self._spare = min(HEDGES, self._spare + HEDGED_SHARE)
        tasks = {asyncio.ensure_future(self._ask(ask, first, deadline, failed))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.hedge_s)
            if not done:
                first.rest()
                other = await self._replicas.pick([*failed, first.address], deadline)
                # When all of them are slow, a second request for each would make them slower.
                free = other.resting_until <= time.monotonic()
                # A lone server that is slow needs no second request.
                if other is not first and (free or self._spare >= 1):
                    self._spare -= not free
                    tasks.add(asyncio.ensure_future(self._ask(ask, other, deadline, failed)))
            while True:
                done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                answered = [task for task in done if task.exception() is None]
                if answered or not left:
                    return (answered or list(done))[0].result()
                tasks = left
        finally:
            await _end(tasks)

    async def _ask(self, ask: Ask, replica: Replica, deadline: float, failed: list[str]) -> Any:
        left = min(max(deadline - time.monotonic(), 0.001), LONGEST_S)
        closes = self._closes
        replica.calls += 1
        try:
            answer = await ask(replica.client, left)
            replica.hung = 0
            return answer
        except InferenceServerException as error:
            failure = explain(error, replica.address)
            # One that hangs gives no other sign; a caller in a hurry says nothing of a replica.
            hangs = isinstance(failure, DeadlineExceeded) and left >= FAIR_S
            if isinstance(failure, Unreachable) or hangs:
                replica.rest()
                failed.append(replica.address)
            if hangs:
                replica.hung += 1
                if replica.hung >= HUNG:
                    self._replicas.renew(replica)
            raise failure from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling() or closes != self._closes:
                raise
            # The connection was closed under the call: its address is no longer the host's.
            replica.rest()
            failed.append(replica.address)
            raise Unreachable(
                f"the connection to {replica.address} was closed", "repeat the call"
            ) from error
        finally:
            replica.calls -= 1


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel what still runs and hear how all of it ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
