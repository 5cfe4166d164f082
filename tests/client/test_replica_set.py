"""Where a client connects: names, several addresses, turns, certificates."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
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


def test_a_name_that_hangs_does_not_hold_an_address_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        look_up = loop.getaddrinfo

        async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
            if host == "slow.example":
                await asyncio.sleep(30)
            return await look_up(host, port, **options)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        started = time.monotonic()
        replicas = Replicas("slow.example:8001,127.0.0.1:8001")
        found = (await replicas.pick(deadline=started + 10)).address
        await replicas.close()
        return found, time.monotonic() - started

    address, seconds = asyncio.run(asked())
    assert address == "127.0.0.1:8001"
    assert seconds < 5


def test_a_connection_that_died_is_made_anew_and_certificates_are_read_again(
    tmp_path: Path,
) -> None:
    for name in ("one", "other"):
        openssl = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout k"
        subprocess.run(
            [*openssl.split(), "-out", name], cwd=tmp_path, check=True, capture_output=True
        )
    authority = tmp_path / "ca.crt"
    authority.write_bytes((tmp_path / "one").read_bytes())

    async def picked() -> list[Any]:
        replicas = Replicas("127.0.0.1:1", tls=Tls(authority=authority))
        first = await replicas.pick()
        first.rest()
        replicas.renew(first)
        replicas.renew(first)  # by a call that began before
        second = await replicas.pick()
        assert second.resting_until == first.resting_until

        async def looked_up_again() -> Any:
            replicas._resolved_at = -10.0
            await replicas.pick()
            await asyncio.sleep(0.1)
            return await replicas.pick()

        # Half-written, or away for a moment: what is connected stays.
        authority.write_bytes(b"-----BEGIN")
        assert await looked_up_again() is second
        authority.unlink()
        assert await looked_up_again() is second
        replicas.renew(second)
        assert await replicas.pick() is second
        authority.write_bytes((tmp_path / "other").read_bytes())
        os.utime(authority, ns=(1, 1))
        third = await looked_up_again()
        # A long call outlives the connection that short ones gave up.
        first.calls = 1
        replicas._retired = [(0.0, one) for _, one in replicas._retired]
        await looked_up_again()
        assert first in [one for _, one in replicas._retired]
        found = [first.client, second.client, third.client, await replicas.pick()]
        await replicas.close()
        return [*found[:3], found[3].client]

    first, second, third, last = asyncio.run(picked())
    assert first is not second is not third is last


def test_clients_that_make_one_call_each_do_not_all_make_it_to_one_replica() -> None:
    async def first() -> str:
        replicas = Replicas("127.0.0.1:1,127.0.0.2:1")
        found = (await replicas.pick()).address
        await replicas.close()
        return found

    assert len({asyncio.run(first()) for _ in range(40)}) == 2  # by chance once in 10^12


@pytest.mark.parametrize("excepted", ["localhost", ""])
def test_a_call_names_the_host_and_asks_no_proxy_where_it_is_excepted(
    monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    """Routes of a gateway match the name, not the address that was looked up for it."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", excepted)  # this machine always is

    def what_comes() -> bytes:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(5)
            connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # empty HTTP/2 settings
            found = b""
            while b"ServerLive" not in found:
                found += connection.recv(65536)
            return found

    async def ask() -> bytes:
        replicas = Replicas(f"localhost:{port}")
        reading = asyncio.ensure_future(asyncio.to_thread(what_comes))
        client = (await replicas.pick()).client
        asking = asyncio.ensure_future(client.is_server_live(client_timeout=5))
        found = await reading
        await asyncio.gather(asking, return_exceptions=True)
        await replicas.close()
        return found

    with listening:
        assert f"localhost:{port}".encode() in asyncio.run(ask())


def test_the_systems_certificates_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's own roots know no authority of a company's."""
    roots = ssl.get_default_verify_paths().cafile
    if roots is None:
        pytest.skip("this system keeps its certificates in no single file")
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    assert tls_arguments(Tls())["root_certificates"] == roots
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(tmp_path))
    assert "root_certificates" not in tls_arguments(Tls())


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
