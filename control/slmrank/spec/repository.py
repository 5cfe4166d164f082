"""Section `repository`: the Triton model repository."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from slmrank.spec.section import Section

MEMORY = "memory:"


def _is_place(value: str) -> str:
    if value != MEMORY and not re.fullmatch(r"rediss?://[^@\s]+", value):
        # Not shown: it may hold a password.
        raise ValueError(
            "is neither memory: nor redis://HOST:PORT/DB; user and password stand in "
            "SLMRANK_STORE_USER and SLMRANK_STORE_PASSWORD"
        )
    return value


class CacheSpec(Section):
    """Scores of pairs that were asked for a moment ago."""

    place: Annotated[str, AfterValidator(_is_place)] = MEMORY
    """`memory:` of each process of the stage `ranker`, or `redis://HOST:PORT/DB` beside it, for
    all servers"""
    ttl_s: float = Field(900.0, gt=0, description="longest life of a score, in seconds")
    jitter: float = Field(0.2, ge=0, lt=1)
    """share by which lives are shorter, at random"""
    memory_mb: int = Field(64, ge=0, description="memory of each process for it")


class DepthSpec(Section):
    """Fewer jobs of each request are ranked while the queue of the stage `ranker` is slow: the
    first ones, so callers send them in the order of their first stage."""

    target_ms: float = Field(50.0, gt=0, description="queue delay that is aimed at")
    floor: int = Field(10, ge=1, description="jobs of a request that are always ranked")
    least_share: float = Field(0.1, gt=0, le=1, description="least share of a request's jobs")
    step: int = Field(8, ge=1, description="jobs per step; the engine's batch is a good one")
    proportional: float = Field(0.1, ge=0, description="change of the share per change of error")
    integral_per_s: float = Field(0.5, gt=0, description="change of the share per error and second")
    rise_per_s: float = Field(0.1, gt=0, description="the share rises by no more a second")


class RepositorySpec(Section):
    """The Triton model repository."""

    max_batch_size: int = Field(32, ge=1, description="requests joined in one execution")
    max_queue_delay_us: int = Field(500, ge=0, description="wait for requests to join")
    max_queue_size: int = Field(64, ge=1)
    """requests that wait for the engine; above: refused at once"""
    queue_timeout_us: int | None = Field(None, ge=1)
    """longest time to an answer that is predicted when a request comes and others are before it;
    above: refused at once; unset: sweep.slo.latency_ms, the objective"""
    deferrable_queue_size: int | None = Field(None, ge=1)
    """waiting requests that callers marked as deferrable: they are answered after all others and
    refused above this number. Nothing is predicted then: requests are refused by a full queue
    of a stage, and when they waited for the time above; unset: all are alike"""
    cache: CacheSpec | None = Field(None, description="unset: every pair is scored, every time")
    depth: DepthSpec | None = None
    """ranking depth follows the load; unset: all jobs are ranked"""
    max_items: int = Field(1000, ge=1, description="jobs per request; above: refused")
    threads: int = Field(0, ge=0, description="threads of the CPU engine; 0: all cores")
    instances: int = Field(1, ge=1, le=64)
    """processes of the CPU engine, each with its own threads"""
