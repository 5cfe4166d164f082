"""Run an HTTP application until it is stopped."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from slmrank.errors import ServerError, SpecError, needs
from slmrank.serving.ports import claim_port, family_of, in_url

GRACE_S = 10
LEAVING_S = 2.0  # after SIGTERM, in which callers learn that their connections will close

GATEWAY = ("the gateway needs its own packages", "gateway")  # of `needs`


def listen(
    app: Any,
    place: tuple[str, int],
    said: Callable[[str], str],
    *,
    answer_s: float = GRACE_S - 1,
    **options: Any,
) -> None:
    """Serve `app` at (address, port; 0: a free one), print `said` of `address:port`, and end on
    SIGTERM or Ctrl-C when running requests are answered, each in at most `answer_s`. After SIGTERM,
    as long as callers hold connections and at most for LEAVING_S, every answer asks them to close
    theirs: one that is closed from here may have the next request on its way. `options` are
    uvicorn's."""
    with needs(*GATEWAY):
        import uvicorn
    leaving_until = math.inf

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start" and leaving_until < math.inf:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await app(scope, receive, told)

    class Server(uvicorn.Server):  # type: ignore[misc]
        def handle_exit(self, sig: int, frame: Any) -> None:
            nonlocal leaving_until
            if sig != signal.SIGINT:
                leaving_until = min(leaving_until, time.monotonic() + LEAVING_S)
            else:
                super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            gone = not self.server_state.connections or time.monotonic() >= leaving_until
            self.should_exit |= leaving_until < math.inf and gone
            return bool(await super().on_tick(counter))

    grace_s = max(GRACE_S, math.ceil(answer_s) + 1)
    config = uvicorn.Config(
        leaving, log_level="warning", timeout_graceful_shutdown=grace_s, **options
    )
    try:
        config.load()
    except OSError as error:
        raise SpecError(
            f"the certificate or its key does not load: {error}", "give two PEM files"
        ) from error
    # It listens before it says so: whoever reads the line can connect.
    address = place[0]
    port = claim_port(*place, "--port")
    listening = socket.create_server((address, port), family=family_of(address))
    click.echo(said(f"{in_url(address)}:{port}"))
    sys.stdout.flush()
    server = Server(config)
    # Until uvicorn listens to it; which then raises what ended it once more: that is no failure.
    signal.signal(signal.SIGTERM, server.handle_exit)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, server.handle_exit)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        raise ServerError("the page or gateway did not start", "the lines above are uvicorn's own")
