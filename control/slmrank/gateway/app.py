"""The rerank endpoint: HTTP in, gRPC to the replicas out. Nothing is kept between requests.

Errors are problem JSON (RFC 9457) with a remedy and the request's id. A body above the limit is
refused while it is read; requests above the limit of those in flight are refused at once, so that
an overload is heard by its callers and does not pile up here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Counted
from starlette.exceptions import HTTPException

from slmrank.client.aio import AsyncRankClient
from slmrank.client.answer import Answer
from slmrank.client.asked import Asked
from slmrank.client.tracing import continued
from slmrank.errors import (
    ControlError,
    DeadlineExceeded,
    InvalidQuery,
    InvalidRequest,
    Overloaded,
    ScoreError,
    Unreachable,
)
from slmrank.gateway.body import LimitedBody
from slmrank.gateway.shapes import (
    Document,
    Problem,
    RerankAnswer,
    RerankRequest,
    ScoreAnswer,
    ScoreRequest,
    TextScore,
    read_document,
    read_job,
    rerank_results,
    scored_items,
    scored_parts,
    server_timing,
    text_scores,
    warnings_of,
)
from slmrank.gateway.ui import Shelf, page_routes
from slmrank.spec.repository import RepositorySpec

_LOG = logging.getLogger(__name__)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATUS: dict[type[ScoreError], tuple[int, str]] = {
    InvalidQuery: (422, "Invalid query"),
    InvalidRequest: (422, "Invalid request"),
    Overloaded: (503, "Overloaded"),
    Unreachable: (503, "No server"),
    DeadlineExceeded: (504, "No answer in time"),
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of them."""
    shape = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {code: {"description": HTTPStatus(code).phrase, "content": shape} for code in codes}


_POSTING: dict[str, Any] = {
    "responses": _problems(400, 401, 408, 413, 422, 500, 502, 503, 504),
    "dependencies": [Security(HTTPBearer(auto_error=False))],  # checked before; this documents it
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for. `tokens`: bearer tokens that are let in, or what says them now;
    none: everybody."""

    max_documents: int = RepositorySpec.model_fields["max_items"].default
    max_request_bytes: int = 8 * 2**20
    max_in_flight: int = 256
    body_s: float = 10.0
    health_timeout_s: float = 2.0
    tokens: Sequence[str] | Callable[[], Sequence[str]] = ()


def make_app(client: AsyncRankClient, limits: Limits, shelf: Shelf | None = None) -> FastAPI:
    """The application over one client, and the page over a shelf; all clients are closed at the
    end."""
    registry = CollectorRegistry()
    kept: dict[str, Any] = {"namespace": "slmrank_gateway", "registry": registry}
    requests = Counted("requests", "requests by route and status", ["route", "status"], **kept)
    seconds = Histogram("seconds", "seconds of a request", ["route"], buckets=_SECONDS, **kept)
    documents_by = Counted("documents", "documents by how scoring ended", ["status"], **kept)
    in_flight = 0
    posted: set[str] = set()  # the paths below
    clients = [client, *(side.client for side in (shelf.sides if shelf else ()))]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for one in clients:
            await one.close()

    app = FastAPI(title="slmrank gateway", version="1", lifespan=lifespan)

    # Added first, it is the inner one: its exception is heard by the handlers below.
    app.add_middleware(LimitedBody, limit=limits.max_request_bytes, limit_s=limits.body_s)

    @app.middleware("http")
    async def around(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        nonlocal in_flight
        started = time.monotonic()
        given = request.headers.get("x-request-id", "")
        request.state.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        asked = request.method == "POST"
        if asked and not _let_in(request, limits.tokens):
            response: Response = problem(
                request, 401, "Not let in", "the bearer token is not known", "send a known one"
            )
            response.headers["www-authenticate"] = "Bearer"
        elif asked and in_flight >= limits.max_in_flight:
            failure = Overloaded(
                f"{in_flight} requests are in flight, the limit", "send again later"
            )
            response = _failed(request, failure)
        else:
            in_flight += asked
            try:
                response = await call_next(request)
            except Exception:
                # Here, and not behind everything, so that it is counted and has a name.
                _LOG.exception("request %s failed", request.state.id)
                told = "the gateway itself failed", "see its log"
                response = problem(request, 500, "The gateway failed", *told)
            finally:
                in_flight -= asked
        response.headers["x-request-id"] = request.state.id
        if asked:
            # What is refused here was not routed.
            route = request.url.path if request.url.path in posted else "other"
            requests.labels(route, str(response.status_code)).inc()
            seconds.labels(route).observe(time.monotonic() - started)
        return response

    @app.exception_handler(ScoreError)
    async def score_failed(request: Request, error: ScoreError) -> Response:
        return _failed(request, error)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"][1:]) or "body"
        hint = "see /docs for the shape of a request"
        if "json" not in request.headers.get("content-type", ""):
            hint = "send content-type: application/json"
        return problem(request, 422, "Invalid request", f"{where}: {first['msg']}", hint)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        hint = "see /docs"
        if error.status_code == 400:  # what comes is no JSON
            hint = "send one JSON object in UTF-8, not compressed; see /docs"
        told = str(error.detail)
        return problem(request, error.status_code, told, told, hint, **(error.headers or {}))

    @app.exception_handler(ControlError)
    async def not_there(request: Request, error: ControlError) -> Response:
        return problem(request, 503, "Not available", error.message, error.hint)

    async def ask(
        query: str,
        documents: Sequence[Document],
        read: Callable[[Document, int], Asked],
        request: Request,
        response: Response,
    ) -> Answer:
        if not documents:
            raise InvalidRequest("there are no documents", "send at least one")
        if len(documents) > limits.max_documents:
            raise InvalidRequest(
                f"{len(documents)} documents, the limit is {limits.max_documents}",
                "send fewer, the best of the retrieval before",
            )
        asked = [read(one, place) for place, one in enumerate(documents)]
        with continued(request.headers):
            answer = await _unless_gone(request, client.score(query, asked))
        for status, count in Counter(item.status for item in answer).items():
            documents_by.labels(status.name.lower()).inc(count)
        response.headers["server-timing"] = server_timing(answer.parts)
        return answer

    @app.post("/v1/rerank", **_POSTING, response_model_exclude_none=True)
    @app.post("/v2/rerank", **_POSTING, response_model_exclude_none=True)
    @app.post("/rerank", **_POSTING, response_model_exclude_none=True)
    async def rerank(
        body: RerankRequest, request: Request, response: Response
    ) -> RerankAnswer | list[TextScore]:
        """Score documents for a query and return them best first."""
        read = functools.partial(read_document, rank_fields=body.rank_fields)
        items = await ask(body.query, body.asked, read, request, response)
        told = warnings_of(items)
        if body.texts is not None:
            if told:
                response.headers["x-warnings"] = "; ".join(told[:20])
            return text_scores(body, items)
        return RerankAnswer(
            id=request.state.id,
            model=items.parts[0].served.get("bundle", "rank"),
            results=rerank_results(body, items),
            meta={"api_version": {"version": "2"}, **({"warnings": told} if told else {})},
        )

    @app.post("/v1/score", **_POSTING)
    async def score(body: ScoreRequest, request: Request, response: Response) -> ScoreAnswer:
        """Score jobs for a query, in the order in which they were sent."""
        answer = await ask(body.query, body.jobs, read_job, request, response)
        return ScoreAnswer(query=body.query, items=scored_items(answer), parts=scored_parts(answer))

    @app.get("/health/live")
    @app.head("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/health", responses=_problems(500, 502, 503, 504))
    @app.head("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        """A server behind this answers, too; what it serves."""
        return await client.describe(timeout_s=limits.health_timeout_s)

    @app.get("/metrics", include_in_schema=False)
    async def page() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    posted.update(
        one.path
        for one in app.routes
        if isinstance(one, APIRoute) and "POST" in (one.methods or ())
    )
    if shelf is not None:
        app.include_router(page_routes(shelf))
    return app


def problem(
    request: Request, status: int, title: str, detail: str, hint: str, **headers: str
) -> Response:
    """An error as problem JSON."""
    content = Problem(
        title=title,
        status=status,
        detail=detail,
        hint=hint,
        message=f"{detail}. {hint}" if hint else detail,
        request_id=getattr(request.state, "id", ""),
    )
    return JSONResponse(
        content.model_dump(), status, headers, media_type="application/problem+json"
    )


async def _unless_gone(request: Request, scoring: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer, for whose sake nobody works when the caller went away: one that gives up early
    and asks again would have its load doubled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    scored, left = asyncio.ensure_future(scoring), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({scored, left}, return_when=asyncio.FIRST_COMPLETED)
        if scored.done() or left.exception() is not None:
            return await scored
    finally:
        for task in (scored, left):
            task.cancel()
        await asyncio.gather(scored, left, return_exceptions=True)
    raise HTTPException(499, "the caller went away before its answer")


def _failed(request: Request, error: ScoreError) -> Response:
    status, title = _STATUS.get(type(error), (502, "The server failed"))
    later = {"retry-after": "1"} if status == 503 else {}
    return problem(request, status, title, error.message, error.hint, **later)


def _let_in(request: Request, given_out: Sequence[str] | Callable[[], Sequence[str]]) -> bool:
    tokens = given_out() if callable(given_out) else given_out
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # All are compared, in constant time each, so that nothing is learnt from how long it takes.
    known = [hmac.compare_digest(given.encode(), one.encode()) for one in tokens]
    return not tokens or (kind.lower() == "bearer" and any(known))
