"""Refuse a request body above a limit while it comes in."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitedBody:
    """ASGI middleware: HTTPException 413 for a body of more than `limit` bytes, by its declared
    length or by what arrives, raised where the application reads it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope.get("headers", ())).get(b"content-length", b"")
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            if declared.isdigit() and int(declared) > self.limit:
                raise HTTPException(413, f"the request is longer than {self.limit} bytes")
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"the request is longer than {self.limit} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
