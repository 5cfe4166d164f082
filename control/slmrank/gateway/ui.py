"""The page: type a query, see the ranked jobs, each one's full text beside its summary, one ranker
or two side by side. Served by the gateway; it asks nothing outside of it.

Candidates come from BM25 over the bundle's own jobs, as a search engine's first stage would give
them. The page has no login: `control ui` listens on this machine unless told otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from slmrank.client.aio import AsyncRankClient
from slmrank.client.answer import rank_order
from slmrank.data.bm25 import Bm25
from slmrank.data.records import Job
from slmrank.errors import ScoreError
from slmrank.gateway.kept import kept_spans
from slmrank.gateway.shapes import scored_items, scored_parts
from slmrank.store.job_store import JobStore

FILES = Path(__file__).parent / "page"
KINDS = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
# Nothing is loaded from elsewhere, and a job's text can never become a script.
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
CANDIDATES = 24


@dataclass(frozen=True, kw_only=True)
class Side:
    """One ranker of the page: a name, who is asked, and its stored summaries."""

    name: str
    client: AsyncRankClient
    summaries: JobStore


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What the page shows: rankers, jobs with their first-stage index, queries to try, and the
    plots of the last sweep (PNG by name)."""

    sides: Sequence[Side]
    jobs: Mapping[str, Job]
    index: Bm25
    examples: Sequence[str] = ()
    plots: Mapping[str, bytes] = field(default_factory=dict)


def for_this_machine(app: Any) -> Any:
    """The application for callers that name this machine alone: a site somewhere else that gives
    its own name this machine's address would otherwise read the catalogue through the browser of
    whoever visits it (DNS rebinding)."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        asked = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        host = asked.rpartition(":")[0] or asked if not asked.endswith("]") else asked
        if scope["type"] == "http" and host.lower() not in ("localhost", "127.0.0.1", "[::1]"):
            refused = PlainTextResponse(
                f"This page answers as localhost, not as {host!a}. Behind a proxy: start it "
                "with --address 0.0.0.0, where it has no login.\n",
                403,
            )
            await refused(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def page_routes(shelf: Shelf) -> APIRouter:
    """The routes under `/ui`."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/ui")
    async def index() -> Response:
        return _file("index.html")

    @routes.get("/ui/files/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    @routes.get("/ui/plots/{name}.png")
    async def plot(name: str) -> Response:
        if name not in shelf.plots:
            raise HTTPException(404, f"there is no plot {name}")
        return Response(shelf.plots[name], media_type="image/png")

    @routes.get("/ui/about")
    async def about() -> dict[str, Any]:
        return {
            "sides": [side.name for side in shelf.sides],
            "jobs": len(shelf.jobs),
            "examples": shelf.examples,
            "plots": sorted(shelf.plots),
        }

    @routes.get("/ui/rank")
    async def rank(query: str, count: int = Query(CANDIDATES, ge=1, le=500)) -> dict[str, Any]:
        started = time.monotonic()
        # Away from the event loop: BM25 is plain Python, and a catalogue may be large.
        found = await asyncio.to_thread(lambda: shelf.index.top(query, count))
        jobs = [shelf.jobs[job_id].model_dump(exclude={"description"}) for job_id in found]
        taken = round((time.monotonic() - started) * 1000, 3)
        sides = await asyncio.gather(*(_ask(side, query, found) for side in shelf.sides))
        return {"query": query, "retrieval_ms": taken, "candidates": jobs, "sides": sides}

    @routes.get("/ui/job")
    async def job(job_id: str) -> dict[str, Any]:
        job = shelf.jobs.get(job_id)
        if job is None:
            raise HTTPException(404, f"there is no job {job_id}")
        return await asyncio.to_thread(_shown, job, shelf.sides)

    return routes


async def _ask(side: Side, query: str, job_ids: Sequence[str]) -> dict[str, Any]:
    """One ranker's order; `error` where it gave none."""
    found: dict[str, Any] = {"name": side.name, "items": [], "parts": [], "error": None}
    try:
        if job_ids:
            answer = await side.client.score(query, list(job_ids))
            found |= {"items": scored_items(rank_order(answer)), "parts": scored_parts(answer)}
    except ScoreError as error:
        found["error"] = f"{error.message}. {error.hint}"
    return found


def _shown(job: Job, sides: Sequence[Side]) -> dict[str, Any]:
    """A job's full text and its summaries by ranker. `kept`: which parts of the description are in
    one, [start, end) in characters."""
    found = [
        {
            "name": side.name,
            "summary": entry.summary,
            "summary_tokens": entry.summary_tokens,
            "source_tokens": entry.source_tokens,
            "kept": kept_spans(job.description, entry.summary),
        }
        for side in sides
        if (entry := side.summaries.get(job.job_id)) is not None
    ]
    return {"job": job, "sides": found}


def _file(name: str) -> Response:
    if name not in KINDS:
        raise HTTPException(404, f"there is no file {name}")
    headers: dict[str, Any] = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    return Response((FILES / name).read_bytes(), headers=headers, media_type=KINDS[name])
