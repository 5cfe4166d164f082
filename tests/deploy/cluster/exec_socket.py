"""The API server's end of `exec`: a websocket that carries a command's streams, each frame begins with
the number of its stream (v4.channel.k8s.io). It cannot say that standard input has ended."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

SALT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, CLOSE = 2, 8


def serve_exec(handler: BaseHTTPRequestHandler, command: list[str], cut_after: int | None) -> None:
    """Run `command` here and carry its streams; `cut_after`: the connection breaks once that many
    bytes of standard input have come."""
    key = handler.headers["Sec-WebSocket-Key"]
    accepted = base64.b64encode(hashlib.sha1((key + SALT).encode()).digest()).decode()
    handler.send_response(101, "Switching Protocols")
    for name, value in (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accepted),
        ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
    ):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.flush()
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    cut = threading.Event()

    def feed() -> None:
        assert process.stdin is not None
        taken = 0
        while (frame := _read_frame(handler.rfile)) is not None:
            taken += len(frame)
            try:
                process.stdin.write(frame[1:])
                process.stdin.flush()
            except OSError:
                continue  # it ended before its input did
            if cut_after is not None and taken > cut_after:
                break
        if cut_after is not None:
            cut.set()
            process.stdin.close()

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    assert process.stdout is not None
    assert process.stderr is not None
    said = {1: process.stdout.read(), 2: process.stderr.read()}
    status = process.wait()
    if not cut.is_set():
        for channel, content in said.items():
            if content:
                _send(handler.wfile, BINARY, bytes([channel]) + content)
        _send(handler.wfile, BINARY, b"\x03" + json.dumps(_ended(status)).encode())
        _send(handler.wfile, CLOSE, struct.pack(">H", 1000))
        feeding.join(10)  # until the other side has hung up as well
    handler.close_connection = True


def _ended(status: int) -> dict[str, Any]:
    if status == 0:
        return {"status": "Success"}
    causes = [{"reason": "ExitCode", "message": str(status)}]
    return {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}


def _read_frame(stream: Any) -> bytes | None:
    """The content of the next data frame, None at the end of the connection."""
    try:
        head = stream.read(2)
        if len(head) < 2 or head[0] & 15 == CLOSE:
            return None
        size = head[1] & 127
        if size > 125:
            size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
        mask = stream.read(4)
        content = stream.read(size)
    except OSError:
        return None
    repeated = (mask * (len(content) // 4 + 1))[: len(content)]
    mixed = int.from_bytes(content, "big") ^ int.from_bytes(repeated, "big")
    return mixed.to_bytes(len(content), "big")


def _send(stream: Any, kind: int, content: bytes) -> None:
    size = len(content)
    if size < 126:
        head = bytes([128 | kind, size])
    elif size < 1 << 16:
        head = bytes([128 | kind, 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([128 | kind, 127]) + size.to_bytes(8, "big")
    stream.write(head + content)
    stream.flush()
