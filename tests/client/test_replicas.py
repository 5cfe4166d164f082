"""Two real replicas: one ends, one hangs, one comes back, and the caller does not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slmrank.client.aio import AsyncRankClient
from slmrank.client.client import RankClient
from slmrank.serving.server import ANY_PORTS, Ports, Server

pytestmark = [pytest.mark.triton, pytest.mark.slow]
JOBS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def replicas(tiny_repository: Path) -> Iterator[tuple[Server, Server]]:
    with Server(tiny_repository, ANY_PORTS) as one, Server(tiny_repository, ANY_PORTS) as other:
        yield one, other


async def ask_often(client: AsyncRankClient, times: int, at_once: int = 4) -> list[float]:
    """Seconds of each call."""
    free = asyncio.Semaphore(at_once)

    async def once(number: int) -> float:
        async with free:
            started = time.monotonic()
            await client.score(f"night nurse {number}", JOBS)
            return time.monotonic() - started

    return await asyncio.gather(*(once(number) for number in range(times)))


@pytest.mark.long
def test_a_hung_replica_costs_no_more_than_the_hedge_delay(
    replicas: tuple[Server, Server],
) -> None:
    async def slowest() -> tuple[float, float]:
        url = ",".join(server.url for server in replicas)
        async with AsyncRankClient(url, hedge_s=0.2, timeout_s=20) as client:
            quiet = max(await ask_often(client, 40))
            assert replicas[1].pid is not None
            os.kill(replicas[1].pid, signal.SIGSTOP)
            try:
                return quiet, max(await ask_often(client, 40))
            finally:
                os.kill(replicas[1].pid, signal.SIGCONT)

    quiet, hung = asyncio.run(slowest())
    # Half of the calls, and some of the repetitions' places in the turn, are the hung one's.
    assert hung < 0.2 + max(quiet, 0.1) * 4 + 1.0, (quiet, hung)


@pytest.mark.long
def test_no_call_fails_while_replicas_are_replaced(
    replicas: tuple[Server, Server], tiny_repository: Path
) -> None:
    first, second = replicas

    async def replaced() -> list[float]:
        url = f"{first.url},{second.url}"
        async with AsyncRankClient(url, timeout_s=30) as client:
            asked = asyncio.ensure_future(ask_often(client, 600, at_once=2))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(first.stop)
            again = Ports(grpc=int(first.url.rpartition(":")[2]), http=0, metrics=0)
            with Server(tiny_repository, again):
                await asyncio.to_thread(second.stop)
                return await asked

    assert len(asyncio.run(replaced())) == 600


@pytest.mark.long
def test_a_server_that_comes_back_is_described_again(tiny_repository: Path) -> None:
    with Server(tiny_repository, ANY_PORTS) as server, RankClient(server.url) as client:
        before = client.describe()
        port = int(server.url.rpartition(":")[2])
        server.stop()
        with Server(tiny_repository, Ports(grpc=port, http=0, metrics=0)):
            assert len(client.score("nurse", JOBS)) == 3
            assert client._asking._identity is None or client.describe() == before
            assert client.describe() == before
