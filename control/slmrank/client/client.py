"""Score jobs over gRPC.

    with RankClient("localhost:8001") as client:
        for item in client.score("night nurse", ["29-1141.00-1", Job(job_id="new", ...)]):
            print(item.job_id, item.score, item.status)

The blocking form of `AsyncRankClient`, which says how calls are split, repeated and balanced.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, Unpack

from slmrank.client.aio import AsyncRankClient, ClientOptions
from slmrank.client.answer import Answer
from slmrank.client.asked import Asked
from slmrank.errors import Unreachable

Result = TypeVar("Result")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_forked = False


def _after_fork() -> None:
    global _lock, _forked
    _lock, _forked = threading.Lock(), _loop is not None


# gRPC's asyncio does not survive a fork: a call in the child waited for ever.
os.register_at_fork(after_in_child=_after_fork)


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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        _wait_for(self._asking.close())

    def describe(self, *, timeout_s: float | None = None) -> dict[str, str]:
        """See `AsyncRankClient.describe`."""
        return _wait_for(self._asking.describe(timeout_s=timeout_s))

    def score(
        self,
        query: str,
        jobs: Iterable[Asked],
        *,
        timeout_s: float | None = None,
        deferrable: bool = False,
    ) -> Answer:
        """See `AsyncRankClient.score`."""
        call = self._asking.score(query, jobs, timeout_s=timeout_s, deferrable=deferrable)
        return _wait_for(call)


def _wait_for(call: Coroutine[Any, Any, Result]) -> Result:
    """Run on the event loop of this process's clients; a caller that is interrupted cancels it."""
    try:
        future = asyncio.run_coroutine_threadsafe(call, _running_loop())
    except BaseException:
        call.close()
        raise
    try:
        return future.result()
    except concurrent.futures.CancelledError as error:
        raise Unreachable("the client was closed during the call", "close it later") from error
    except BaseException:
        future.cancel()
        raise


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    if _forked:
        raise Unreachable(
            "this process was forked from one that had used a client",
            "make clients after the fork, or start processes by `spawn`",
        )
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="slmrank-client", daemon=True).start()
    return _loop
