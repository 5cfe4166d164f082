"""Section `repository`: the Triton model repository."""

from __future__ import annotations

from pydantic import Field

from slmrank.spec.section import Section


class RepositorySpec(Section):
    """The Triton model repository."""

    max_batch_size: int = Field(32, ge=1, description="requests joined in one execution")
    max_queue_delay_us: int = Field(500, ge=0, description="wait for requests to join")
    max_queue_size: int = Field(
        64, ge=1, description="requests waiting in one stage; above: refused at once"
    )
    queue_timeout_us: int | None = Field(
        None,
        ge=1,
        description="longest wait in one stage; above: refused; unset: twice sweep.slo.latency_ms, "
        "because nobody waits for a request that is so far beyond the objective",
    )
    max_items: int = Field(1000, ge=1, description="jobs per request; above: refused")
    threads: int = Field(0, ge=0, description="threads of the CPU engine; 0: all cores")
    instances: int = Field(
        1, ge=1, le=64, description="processes of the CPU engine, each with its own threads"
    )
