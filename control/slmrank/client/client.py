"""Score jobs over gRPC.

    with RankClient("localhost:8001") as client:
        for item in client.score("night nurse", ["29-1141.00-1", Job(job_id="new", ...)]):
            print(item.job_id, item.score, item.status)

The blocking form of `AsyncRankClient`, which says how calls are split, repeated and balanced.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

from slmrank.client.aio import AsyncRankClient, ClientOptions
from slmrank.client.answer import Answer
from slmrank.client.asked import Asked

Result = TypeVar("Result")
_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process id: a fork has no running thread


class RankClient:
    """A blocking client of the ensemble `rank`, with the options of `AsyncRankClient`. One instance
    may be shared by threads."""

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        self._asking = AsyncRankClient(url, **options)

    @property
    def url(self) -> str:
        return self._asking.url

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
        _wait_for(self._asking.close())

    def describe(self, *, timeout_s: float | None = None) -> dict[str, str]:
        """See `AsyncRankClient.describe`."""
        return _wait_for(self._asking.describe(timeout_s=timeout_s))

    def score(
        self,
        query: str,
        jobs: Sequence[Asked],
        *,
        timeout_s: float | None = None,
        deferrable: bool = False,
    ) -> Answer:
        """See `AsyncRankClient.score`."""
        call = self._asking.score(query, jobs, timeout_s=timeout_s, deferrable=deferrable)
        return _wait_for(call)


def _wait_for(call: Coroutine[Any, Any, Result]) -> Result:
    """Run on the event loop of this process's clients; a caller that is interrupted cancels it."""
    future = asyncio.run_coroutine_threadsafe(call, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="slmrank-client", daemon=True).start()
    return loop
