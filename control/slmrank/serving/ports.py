"""A port to listen on."""

from __future__ import annotations

import errno
import socket

from slmrank.errors import ServerError


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


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
