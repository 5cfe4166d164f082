"""Refuse a request body above a limit of bytes, or of time, while it comes in."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SLOWEST = 64 * 1024  # bytes a second


class LimitedBody:
    """ASGI middleware: HTTPException 413 for a body of more than `limit` bytes, by its declared
    length or by what arrives, and 408 for one that is not there within `limit_s` and as long as
    what arrived may take at SLOWEST, raised where the application reads it. Who sends half of a
    request holds a place among those in flight."""

    def __init__(self, app: ASGIApp, limit: int, limit_s: float) -> None:
        self.app = app
        self.limit, self.limit_s = limit, limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope.get("headers", ())).get(b"content-length", b"")
        seen, whole = 0, False
        until = time.monotonic() + self.limit_s

        async def counted() -> Message:
            nonlocal seen, whole
            if declared.isdigit() and int(declared) > self.limit:
                raise HTTPException(413, f"the request is longer than {self.limit} bytes")
            if whole:  # what comes now is that the caller has gone
                return await receive()
            try:
                left_s = max(0.0, until + seen / SLOWEST - time.monotonic())
                message = await asyncio.wait_for(receive(), left_s)
            except TimeoutError as error:
                told = f"the request stopped coming: {seen} bytes so far"
                raise HTTPException(408, told) from error
            whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"the request is longer than {self.limit} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
