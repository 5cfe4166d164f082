"""Where a client connects: names, several addresses, turns, certificates."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from slmrank.client import replicas as module
from slmrank.client.aio import AsyncRankClient
from slmrank.client.replicas import Replicas, Tls, parse_url, tls_arguments
from slmrank.errors import DeadlineExceeded, InvalidRequest, Unreachable


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("ranker:8001", [("ranker", 8001)]),
        ("10.0.0.1:8001, b:8002", [("10.0.0.1", 8001), ("b", 8002)]),
        ("[::1]:8001", [("::1", 8001)]),
    ],
)
def test_addresses(url: str, places: list[tuple[str, int]]) -> None:
    assert parse_url(url) == places


@pytest.mark.parametrize(
    "url", ["", "ranker", "http://ranker:8001", "a:1,b", "a:99999", "a:-1", "a:²"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="is not host:port"):
        parse_url(url)


def test_replicas_take_turns_and_a_resting_one_is_passed_over() -> None:
    async def turns() -> tuple[Counter[str], Counter[str], set[str]]:
        replicas = Replicas("127.0.0.1:1,127.0.0.2:1,127.0.0.3:1")
        even = Counter([(await replicas.pick()).address for _ in range(30)])
        tired = await replicas.pick()
        tired.rest()
        rested = Counter([(await replicas.pick()).address for _ in range(30)])
        assert tired.address not in rested
        # Better a resting one than the one that is to be avoided, and better that than none.
        others = [one for one in even if one != tired.address]
        left = {(await replicas.pick(others)).address, (await replicas.pick(list(even))).address}
        assert tired.address in left
        await replicas.close()
        return even, rested, left

    even, rested, _ = asyncio.run(turns())
    assert set(even.values()) == {10}
    assert set(rested.values()) == {15}


def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    at = ["10.0.0.1", "10.0.0.2"]

    async def asked() -> list[set[str]]:
        loop = asyncio.get_running_loop()

        async def getaddrinfo(_host: str, port: int, **_: Any) -> Any:
            if not at:
                raise socket.gaierror("no such name")
            return [(socket.AF_INET, None, None, "", (one, port)) for one in at]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(module, "RESOLVE_EVERY_S", 0.0)
        replicas = Replicas("ranker:8001")
        seen = []
        for now in (["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], []):
            at[:] = now
            await replicas.pick()
            await asyncio.sleep(0.01)
            seen.append({(await replicas.pick()).address for _ in range(4)})
        await replicas.close()
        return seen

    first, second, kept = asyncio.run(asked())
    assert first == {"10.0.0.1:8001", "10.0.0.2:8001"}
    assert second == {"10.0.0.2:8001", "10.0.0.3:8001"} == kept


def test_a_name_that_fails_keeps_its_addresses_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing: list[str] = []

    async def asked() -> set[str]:
        async def getaddrinfo(host: str, port: int, **_: Any) -> Any:
            if host in failing:
                raise socket.gaierror("try again")
            return [(socket.AF_INET, None, None, "", (f"10.0.0.{ord(host) - 96}", port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(module, "RESOLVE_EVERY_S", 0.0)
        replicas = Replicas("a:8001,b:8001")
        await replicas.pick()
        failing.append("b")
        await replicas.pick()
        await asyncio.sleep(0.01)
        found = {(await replicas.pick()).address for _ in range(6)}
        await replicas.close()
        return found

    assert asyncio.run(asked()) == {"10.0.0.1:8001", "10.0.0.2:8001"}


def test_a_name_that_is_none_is_told() -> None:
    async def ask() -> None:
        await Replicas("no-such-host.invalid:8001").pick()

    with pytest.raises(Unreachable, match="resolves to no address"):
        asyncio.run(ask())


def test_a_failed_lookup_is_repeated_inside_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> str:
        looked = 0

        async def getaddrinfo(*_: Any, **__: Any) -> Any:
            nonlocal looked
            looked += 1
            if looked == 1:
                raise OSError("no name server")
            return [(socket.AF_INET, 1, 6, "", ("10.0.0.1", 8001))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        replicas = Replicas("ranker:8001")
        with pytest.raises(Unreachable):
            await replicas.pick()
        found = (await replicas.pick()).address
        await replicas.close()
        return found

    assert asyncio.run(asked()) == "10.0.0.1:8001"


def test_a_name_server_that_hangs_is_no_longer_than_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask() -> float:
        async def getaddrinfo(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(30)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        started = time.monotonic()
        async with AsyncRankClient("ranker:8001", timeout_s=0.2) as client:
            with pytest.raises(DeadlineExceeded, match="resolved in time"):
                await client.score("nurse", ["a"])
        return time.monotonic() - started

    assert asyncio.run(ask()) < 5


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "client.pem"
    path.touch()
    with pytest.raises(InvalidRequest, match="needs its key"):
        tls_arguments(Tls(certificate=path))
    with pytest.raises(InvalidRequest, match="ca.pem is not a file"):
        tls_arguments(Tls(authority=tmp_path / "ca.pem"))
    path.write_text("hello")
    with pytest.raises(InvalidRequest, match=r"client.pem cannot be used"):
        tls_arguments(Tls(authority=path))
    with pytest.raises(InvalidRequest, match=r"client.pem cannot be used"):
        tls_arguments(Tls(certificate=path, key=path))
    openssl = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout x -out x.crt"
    subprocess.run(openssl.split(), cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "x.crt").open("ab") as both:
        both.write((tmp_path / "x").read_bytes())
    path = tmp_path / "x.crt"
    given = tls_arguments(Tls(authority=path, certificate=path, key=path))
    assert given["ssl"]
    assert given["root_certificates"] == str(path)
