"""The replicas behind a url: resolved, asked in turn, and rested when they do not answer.

gRPC can balance by itself, but not send a repetition to *another* replica, which is what a hung one
calls for: so there is a channel for each address here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmrank.errors import DeadlineExceeded, InvalidRequest, Unreachable

RESOLVE_EVERY_S = 5.0
OTHERS_S = 0.05  # how long the first name that is found waits for the others
REST_S = 2.0  # how long a replica that did not answer is passed over, where there are others
RETIRED_S = 60.0  # calls to an address that is no longer resolved may still end
LARGEST_MESSAGE = 2**31 - 1
# gRPC brings roots of its own, which know no company's authority, unless this names others.
ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Encrypted connections. `authority` is a PEM file of certificates to trust (unset: the
    system's); `certificate` and `key`, PEM files too, are shown to a server that asks who calls.
    `name` is the one that the server's certificate must have (unset: the url's).
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    name: str | None = None


@dataclass
class Replica:
    """One address with its channel; passed over until `resting_until`. `hung`: calls in a row that
    it did not answer; `calls`: how many are under way; `given_up`: another connection took its
    place."""

    address: str
    client: Any
    host: str = ""
    resting_until: float = 0.0
    hung: int = 0
    calls: int = 0
    given_up: bool = False

    def rest(self) -> None:
        self.resting_until = time.monotonic() + REST_S


@dataclass
class Replicas:
    """The replicas of `url`: `host:port`, or several of them with commas between. A name stands for
    all its addresses (IPv4 where it has any) and is resolved again every few seconds.

    Raises InvalidRequest for a url that is none, or certificates that cannot be used.
    """

    url: str
    tls: Tls | None = None
    _known: dict[str, Replica] = field(default_factory=dict)
    _last: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    _retired: list[tuple[float, Replica]] = field(default_factory=list)
    _resolving: asyncio.Task[None] | None = None
    _first: asyncio.Event = field(default_factory=asyncio.Event)
    _resolved_at: float = -RESOLVE_EVERY_S
    # Not 0: clients that make one call each would all make it to the same replica.
    _turn: int = field(default_factory=lambda: random.randrange(2**16))

    def __post_init__(self) -> None:
        self._places = parse_url(self.url)
        self._secured = tls_arguments(self.tls)
        self._read_at = _read_at(self.tls)

    async def pick(self, avoid: Collection[str] = (), deadline: float = math.inf) -> Replica:
        """The next replica in turn: one that is not in `avoid` and does not rest, while there is
        one. Raises Unreachable when no name of the url resolves, DeadlineExceeded when none did
        until `deadline` (of time.monotonic)."""
        if time.monotonic() - self._resolved_at > RESOLVE_EVERY_S and self._resolving is None:
            self._resolving = asyncio.ensure_future(self._resolve())
        if not self._known and self._resolving is not None:
            left = max(deadline - time.monotonic(), 0.0) if deadline < math.inf else None
            # The lookup goes on: a later call may find its result.
            resolving, first = self._resolving, asyncio.ensure_future(self._first.wait())
            both = resolving, first
            done, _ = await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            first.cancel()
            if done and resolving not in done:
                done, _ = await asyncio.wait([resolving], timeout=OTHERS_S)
                done = done or {first}
            if not done:
                raise DeadlineExceeded(
                    f"no name of {self.url} was resolved in time",
                    "check the name server, or give an address",
                )
            if resolving in done:
                resolving.result()
        if not self._known:
            raise Unreachable(
                f"{self.url} resolves to no address", "check the name, or start the server"
            )
        now = time.monotonic()
        known = list(self._known.values())
        others = [one for one in known if one.address not in avoid] or known
        awake = [one for one in others if one.resting_until <= now] or others
        self._turn += 1
        return awake[self._turn % len(awake)]

    def renew(self, replica: Replica) -> None:
        """Connect anew: a connection that died without a word gives no other sign."""
        if self._known.get(replica.address) is replica:
            try:
                client = self._open(replica.address, replica.host)
            except OSError:  # certificates that are being written
                return
            replica.given_up = True
            self._retire(replica.address)
            self._known[replica.address] = Replica(
                replica.address,
                client,
                replica.host,
                # Whether it was the connection or the server is not known yet.
                resting_until=replica.resting_until,
            )

    async def close(self) -> None:
        if self._resolving is not None:
            self._resolving.cancel()
            await asyncio.gather(self._resolving, return_exceptions=True)
        for replica in [*self._known.values(), *(one for _, one in self._retired)]:
            await replica.client.close()
        self._known, self._retired, self._resolving = {}, [], None
        self._first = asyncio.Event()
        self._resolved_at = -RESOLVE_EVERY_S

    async def _resolve(self) -> None:
        """Look all names up; those that cannot be keep what they had."""

        async def look_up(place: tuple[str, int]) -> dict[str, str]:
            found = await _addresses(*place) or self._last.get(place, {})
            self._last[place] = found
            if found and not self._known:  # who waits need not wait for the other names
                self._take(found)
            return found

        try:
            found: dict[str, str] = {}
            for one in await asyncio.gather(*map(look_up, self._places)):
                found |= one
            if found:
                self._take(found)
                self._resolved_at = time.monotonic()
        finally:
            self._resolving = None

    def _take(self, found: dict[str, str]) -> None:
        read, renewed = _read_at(self.tls), False
        if read != self._read_at:
            with contextlib.suppress(InvalidRequest, OSError):  # until it is written whole
                self._secured = tls_arguments(self.tls)
                self._read_at, renewed = read, True
        for address in set(self._known) - (set() if renewed else set(found)):
            self._known[address].given_up = renewed
            self._retire(address)
        for address, host in found.items():
            if address not in self._known:
                with contextlib.suppress(OSError):
                    self._known[address] = Replica(address, self._open(address, host), host)
        self._first.set()
        # A long listing on a connection that short calls gave up may still be answered.
        now = time.monotonic()
        due = [
            one for until, one in self._retired if until < now and not (one.given_up and one.calls)
        ]
        self._retired = [(until, one) for until, one in self._retired if one not in due]
        for replica in due:
            closing = asyncio.ensure_future(replica.client.close())
            closing.add_done_callback(lambda _: None)

    def _retire(self, address: str) -> None:
        self._retired.append((time.monotonic() + RETIRED_S, self._known.pop(address)))

    def _open(self, address: str, host: str) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        arguments: list[tuple[str, Any]] = [
            # Or a channel that is opened anew would go on with the connection of the old one.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.max_send_message_length", LARGEST_MESSAGE),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ]
        # The connection goes to an address; the name is what certificates, routes of a gateway and
        # exceptions from a proxy are of.
        if self.tls is not None:
            arguments.append(("grpc.ssl_target_name_override", self.tls.name or host))
        else:
            port = address.rpartition(":")[2]
            name = f"[{host}]" if ":" in host else host
            arguments.append(("grpc.default_authority", f"{name}:{port}"))
        number = ipaddress.ip_address(address.rpartition(":")[0].strip("[]").partition("%")[0])
        if number.is_loopback or urllib.request.proxy_bypass(host):
            arguments.append(("grpc.enable_http_proxy", 0))
        return InferenceServerClient(address, channel_args=arguments, **self._secured)


def parse_url(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of a url. Raises InvalidRequest."""
    places = []
    for one in url.split(","):
        host, _, port = one.strip().rpartition(":")
        if (
            not host
            or not (port.isascii() and port.isdigit())
            or not 0 < int(port) < 65536
            or "/" in host
        ):
            raise InvalidRequest(f"url {one!r} is not host:port", "write for example ranker:8001")
        places.append((host.strip("[]"), int(port)))
    return places


async def _addresses(host: str, port: int) -> dict[str, str]:
    """`address:port` of a host, each with the host's name; none when it does not resolve."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the second: a name that can be none
        return {}
    fours = [one for one in found if one[0] == socket.AF_INET]
    numbers = dict.fromkeys(str(one[4][0]) for one in fours or found)
    return {f"[{one}]:{port}" if ":" in one else f"{one}:{port}": host for one in numbers}


def tls_arguments(tls: Tls | None) -> dict[str, Any]:
    """Keyword arguments of tritonclient's clients. Raises InvalidRequest for files that cannot be
    used, or a certificate without its key: gRPC says of both only that nobody answers."""
    if tls is None:
        return {}
    if (tls.certificate is None) != (tls.key is None):
        raise InvalidRequest(
            "a client's certificate needs its key, and the key its certificate", "give both"
        )
    files = {
        "root_certificates": tls.authority,
        "certificate_chain": tls.certificate,
        "private_key": tls.key,
    }
    if tls.authority is None and ROOTS not in os.environ:
        files["root_certificates"] = _system_roots()
    given = {name: str(path) for name, path in files.items() if path is not None}
    for path in given.values():
        if not Path(path).is_file():
            raise InvalidRequest(f"{path} is not a file", "give a PEM file")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong a key must be is gRPC's to say
        if "root_certificates" in given:
            context.load_verify_locations(given["root_certificates"])
        if tls.certificate is not None:
            # gRPC takes no encrypted key; without a password here, this would ask the terminal.
            context.load_cert_chain(given["certificate_chain"], given["private_key"], password="")
    except OSError as error:
        raise InvalidRequest(
            f"{', '.join(given.values())} cannot be used: {error}",
            "give PEM files, the key without a password",
        ) from error
    return {"ssl": True, **given}


def _read_at(tls: Tls | None) -> list[int]:
    """When the files were written: certificates are renewed in place."""
    files = (tls.authority, tls.certificate, tls.key) if tls is not None else ()
    return [os.stat(one).st_mtime_ns for one in files if one is not None and Path(one).exists()]


def _system_roots() -> Path | None:
    """The file of the certificates that this system trusts, where it keeps them in one."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file) if file is not None else None
