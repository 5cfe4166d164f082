"""Run an HTTP application until it is stopped."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import click

from slmrank.errors import ServerError, SpecError, needs
from slmrank.serving.ports import claim_port

GRACE_S = 10


GATEWAY = ("the gateway needs its own packages", "gateway")  # of `needs`


def listen(app: Any, place: tuple[str, int], said: Callable[[str], str], **options: Any) -> None:
    """Serve `app` at (address, port; 0: a free one), print `said` of `address:port`, and end on
    SIGTERM or Ctrl-C when running requests are answered. `options` are uvicorn's."""
    with needs(*GATEWAY):
        import uvicorn
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S, **options)
    try:
        config.load()
    except OSError as error:
        raise SpecError(
            f"the certificate or its key does not load: {error}", "give two PEM files"
        ) from error
    # It listens before it says so: whoever reads the line can connect.
    address = place[0]
    listening = socket.create_server((address, claim_port(*place, "--port")))
    click.echo(said(f"{address}:{listening.getsockname()[1]}"))
    sys.stdout.flush()
    # uvicorn raises the signal that ended it once more, after the last answer; that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        raise ServerError("the page or gateway did not start", "the lines above are uvicorn's own")
