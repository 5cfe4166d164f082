"""An HTTP application that runs until it is stopped."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

PROGRAM = """
import asyncio, signal, sys
from slmrank.cli.listening import listen

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, which is kept

async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(0.5)
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

listen(app, (sys.argv[1], 0), lambda where: where, lifespan="off")
"""


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", PROGRAM, request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("[::1]:" if ":" in request.param else "127.0.0.1:")
        yield process, int(line.rpartition(":")[2])
        process.kill()


@pytest.mark.slow
def test_callers_hear_that_their_connection_will_close(
    listening: tuple[subprocess.Popen[str], int],
) -> None:
    """Whoever asked again on the same one was reset."""
    process, port = listening
    host = "127.0.0.1" if "127.0.0.1" in process.args else "::1"  # type: ignore[operator]
    running, idle = (http.client.HTTPConnection(host, port, timeout=10) for _ in range(2))
    idle.request("GET", "/")
    idle.getresponse().read()
    running.request("GET", "/")
    os.kill(process.pid, signal.SIGTERM if host == "127.0.0.1" else signal.SIGHUP)
    for connection in (running, idle):
        if connection is idle:
            connection.request("GET", "/")
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b"ok")
        assert reply.headers["connection"] == "close"
    assert process.wait(timeout=10) == 0
