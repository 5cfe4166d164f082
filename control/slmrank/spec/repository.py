"""Section `repository`: the Triton model repository."""

from __future__ import annotations

from pydantic import Field

from slmrank.spec.section import Section


class CacheSpec(Section):
    """Scores of pairs that were asked for a moment ago."""

    place: str = Field(
        "memory:",
        description="`memory:` of each process of the stage `ranker`, or `redis://HOST:PORT/DB` "
        "beside it, for all servers",
    )
    ttl_s: float = Field(900.0, gt=0, description="longest life of a score, in seconds")
    jitter: float = Field(
        0.2, ge=0, lt=1, description="share by which lives are shorter, at random"
    )
    memory_mb: int = Field(64, ge=0, description="memory of each process for it")


class RepositorySpec(Section):
    """The Triton model repository."""

    max_batch_size: int = Field(32, ge=1, description="requests joined in one execution")
    max_queue_delay_us: int = Field(500, ge=0, description="wait for requests to join")
    max_queue_size: int = Field(
        64, ge=1, description="requests waiting in one stage; above: refused at once"
    )
    deferrable_queue_size: int | None = Field(
        None,
        ge=1,
        description="of these, requests that callers marked as deferrable: they are answered after "
        "all others and refused above this number; unset: they are like the others",
    )
    queue_timeout_us: int | None = Field(
        None,
        ge=1,
        description="longest wait in one stage; above: refused; unset: twice sweep.slo.latency_ms, "
        "because nobody waits for a request that is so far beyond the objective",
    )
    cache: CacheSpec | None = Field(None, description="unset: every pair is scored, every time")
    max_items: int = Field(1000, ge=1, description="jobs per request; above: refused")
    threads: int = Field(0, ge=0, description="threads of the CPU engine; 0: all cores")
    instances: int = Field(
        1, ge=1, le=64, description="processes of the CPU engine, each with its own threads"
    )
