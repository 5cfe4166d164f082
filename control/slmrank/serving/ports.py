"""A port to listen on."""

from __future__ import annotations

import errno
import os
import socket

from slmrank.errors import ServerError


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def numeric(address: str) -> str:
    """The number of an address, IPv4 where it has one: Triton's HTTP and metrics services take no
    names, and listen where nobody can connect. Raises ServerError when it has none."""
    try:
        found = socket.getaddrinfo(address.strip("[]"), 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"{address} is no address: {error}", "give an address of this machine"
        ) from error
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])


def in_url(address: str) -> str:
    """An address as it stands before `:port`."""
    return f"[{address}]" if ":" in address else address


def of_evhtp(address: str) -> str:
    """An address as libevhtp reads it, which serves Triton's HTTP and metrics: another one it binds
    to 255.255.255.255."""
    return f"ipv6:{address}" if ":" in address else address


def reach_directly(host: str) -> None:
    """Keep this process and its children from asking a proxy for `host`: gRPC, urllib and
    perf_analyzer all take `http_proxy` for a server on this machine too."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if host not in known.split(","):
        os.environ["no_proxy"] = f"{known},{host}".lstrip(",")


def claim_port(address: str, port: int, flag: str) -> int:
    """`port`, or a free one for 0. Raises ServerError when it is in use."""
    with socket.socket(family_of(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            hint = f"stop what listens there, or choose another port with {flag} (0 picks one)"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                hint = "give an address of this machine"
            raise ServerError(
                f"port {port} on {address} cannot be used: {error.strerror}", hint
            ) from error
        chosen: int = probe.getsockname()[1]
    return chosen
