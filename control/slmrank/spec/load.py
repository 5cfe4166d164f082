"""Sections `sweep` and `simulate`: measured load, and simulated traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from slmrank.spec.section import Section


class SloSpec(Section):
    """The service-level objective, and how exactly its rate is searched."""

    latency_ms: float = Field(500, gt=0, description="limit of the request latency")
    percentile: Literal[95, 99] = Field(95, description="which percentile must stay below it")
    requests: int = Field(80, ge=20)
    """requests behind a 95th percentile, five times as many behind a 99th; windows are widened
    to hold them; a run that confirms a rate holds five times as many (at 2 requests/s: 200 s)"""
    confirmations: int = Field(3, ge=1, le=9, description="runs that must hold at the found rate")
    precision: float = Field(0.1, gt=0.01, lt=1)
    """width of the final bracket, share of the rate"""

    @property
    def needed_requests(self) -> int:
        """As many above the percentile, whichever it is: of 80 the 99th lies between the two
        slowest, and was too low by a tenth (four fifths of simulated searches)."""
        return self.requests * 5 // (100 - self.percentile)

    @property
    def confirmed_requests(self) -> int:
        """Of simulated servers that answer 2 requests/s, runs of 100 requests promised over a sixth
        too much in 23 % of searches, runs of 400 in 4 %."""
        return 5 * self.needed_requests


class SweepSpec(Section):
    """Load points: items per request x tokens per item x query tokens x load."""

    items: list[PositiveInt] = Field(default_factory=lambda: [1, 8], min_length=1)
    tokens: list[PositiveInt] = Field(default_factory=lambda: [32, 96], min_length=1)
    """tokens per item, closing question included; not used with texts: store"""
    query_tokens: list[PositiveInt] = Field(default_factory=list)
    """tokens per query; empty: real queries as they are"""
    concurrency: list[PositiveInt] = Field(default_factory=lambda: [1, 2])
    """closed loop: requests in flight"""
    rates: list[PositiveFloat] = Field(default_factory=list)
    """open loop: requests per second, Poisson arrivals"""
    texts: Literal["text", "store"] = "text"
    """text: job texts cut to exact lengths; store: job ids, looked up as in service"""
    window_ms: int = Field(2000, ge=200, description="measurement window of perf_analyzer (-p)")
    trials: int = Field(6, ge=3, description="windows tried before a point counts as unstable")
    stability_percent: float = Field(15, gt=0, description="allowed spread of three windows (-s)")
    requests: int = Field(24, ge=2, description="distinct requests in the input pool of a point")
    seed: int = Field(0, ge=0, description="seed of the pool and of the arrivals")
    slo: SloSpec = Field(default_factory=SloSpec)

    @model_validator(mode="after")
    def _loaded(self) -> SweepSpec:
        if not self.concurrency and not self.rates:
            raise ValueError("sweep needs a load: fill concurrency or rates")
        return self


class SimulateSpec(Section):
    """Traffic for `control autoscale simulate`. Times in seconds, loads in items per second."""

    trace: str = "diurnal"
    """diurnal, burst, ramp, or a CSV with columns seconds, items_per_s"""
    load: float = Field(160.0, gt=0, description="base items/s of a synthetic trace")
    burst: float = Field(3.0, ge=1, description="largest over base load of a synthetic trace")
    hours: float | None = Field(None, gt=0)
    """length of a synthetic trace; unset: diurnal 24, burst, ramp 2"""
    cold_start_s: float = Field(90.0, ge=0, description="decision to serving, of a new replica")
    items: int = Field(4, ge=1, description="jobs in a request")
    service_ms: float | None = Field(None, gt=0)
    """time of a request in an idle replica; unset: what just meets the objective at the capacity"""
    jitter: float = Field(0.1, ge=0, le=2)
    """spread of that time, standard deviation over mean"""
    queue: int | None = Field(None, ge=1)
    """waiting requests of a replica above which it refuses; unset: the release's"""
    floor: int | None = Field(None, ge=1)
    """minimum of the floor policies; unset: by `control capacity`"""
    maximum: int | None = Field(None, ge=1, description="most replicas; unset: enough for the peak")
    depth_target_ms: float | None = Field(None, gt=0)
    """queue delay that depth control aims at; unset: half of what the objective leaves beside a
    request's own time"""
    depth_table: Path | None = None
    """JSON of `control depth-table`: what ranking fewer jobs costs"""
    attainment: float = Field(0.99, ge=0.5, le=1)
    """share of requests that must meet the objective"""
    seed: int = Field(0, ge=0, description="seed of load and arrivals")

    @model_validator(mode="after")
    def _floor_below_maximum(self) -> SimulateSpec:
        if self.floor is not None and self.maximum is not None and self.floor > self.maximum:
            raise ValueError(f"floor {self.floor} is above maximum {self.maximum}")
        return self
