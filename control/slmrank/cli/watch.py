"""`control watch`: changes of single jobs, served within seconds."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import Opened, json_option, source_options
from slmrank.errors import SpecError, needs
from slmrank.pipeline.follow import Followed, follow_bundle, follow_repository
from slmrank.store.sources import SOURCES, Reading, open_source

SAY_S = 10.0
RESULTS = ("applied", "outdated", "rejected")


@click.command("watch")
@source_options
@click.option(
    "--from",
    "place",
    default="redis-stream",
    metavar="SOURCE",
    help="redis-stream[:NAME] on the store's server (default name slmrank:CATALOGUE:changes), "
    "kafka://HOST:9092[,HOST:9092]/TOPIC[?group=NAME], jsonl:FILE, or jsonl:- for standard input",
)
@click.option("--follow", is_flag=True, help="wait for lines that are added to the file")
@click.option("--until-idle", is_flag=True, help="stop when nothing waits any more")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="serve Prometheus metrics")
@click.option("--metrics-address", default="127.0.0.1")
@json_option
def watch_command(
    source: Opened | Path,
    place: str,
    follow: bool,
    until_idle: bool,
    metrics_port: int | None,
    metrics_address: str,
    as_json: bool,
) -> None:
    """Summarise new, changed and deleted jobs as they come and put them into the shared store of
    SOURCE, which is a spec or a repository folder; servers score them within seconds, without a
    restart. Publish the catalogue first.

    A message is {"job": {"job_id": ..., "title": ..., "description": ...}} or {"delete": JOB_ID}.
    It is applied at least once, and never over a newer one of the same job. What is no such message
    is kept with its reason: in the stream or topic NAME.rejected, in FILE.rejected, or for standard
    input in the file stdin.rejected of the working folder.

    \b
    Example:
      redis-cli XADD slmrank:jobs:changes '*' change '{"delete": "job-17"}'
      control watch build/demo.yaml --set 'summarize.store=redis://localhost:6379/0'
    """
    SOURCES.get(place.partition(":")[0])  # before summaries are made
    if isinstance(source, Path):
        follower = follow_repository(source)
    else:
        with StepDisplay() as display:
            follower = follow_bundle(source.bundle, source.store, display)
    gauges = _metrics(metrics_address, metrics_port) if metrics_port is not None else None
    said = time.monotonic()

    def told(counts: Followed, lag: int | None) -> None:
        nonlocal said
        if gauges is not None:
            gauges(counts, lag)
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            click.echo(_line(counts, lag), err=True)

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda _signal, _frame: follower.stop())
    reading = Reading(store_url=follower.url, group=follower.group, follow=follow)
    with open_source(place, reading) as changes:
        click.echo(f"following {place} into {follower.url}", err=True)
        follower.follow(changes, told, until_idle=until_idle)
    values = dataclasses.asdict(follower.counts)
    for name in ("delays_s", "failure"):
        values.pop(name)
    show_result(values, _line(follower.counts, None), as_json=as_json)


def _line(counts: Followed, lag: int | None) -> str:
    waiting = "" if lag is None else f", {lag} wait"
    return (
        f"{counts.applied} changes applied, {counts.outdated} older than what was there, "
        f"{counts.rejected} rejected{waiting}"
        + (f"; waiting for the store: {counts.failure}" if counts.failure else "")
    )


def _metrics(address: str, port: int) -> Callable[[Followed, int | None], None]:
    """Serve what the follower does as metrics; returns what updates them."""
    with needs("--metrics-port needs prometheus-client", "redis"):
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            start_http_server,
        )
    registry = CollectorRegistry()
    changes = Counter("slmrank_watch_changes", "Messages, by result", ["result"], registry=registry)
    failures = Counter("slmrank_watch_failures", "Failed calls of the store", registry=registry)
    waiting = Gauge("slmrank_watch_lag", "Messages that wait", registry=registry)
    delay = Histogram(
        "slmrank_watch_delay_seconds",
        "From message to store",
        buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 600),
        registry=registry,
    )
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        raise SpecError(
            f"cannot listen on {address}:{port}: {error.strerror}", "give another --metrics-port"
        ) from error
    before = Followed()
    for name in RESULTS:  # 0 from the start: of a first sample nobody sees an increase
        changes.labels(name)

    def told(counts: Followed, lag: int | None) -> None:
        nonlocal before
        for name in RESULTS:
            changes.labels(name).inc(getattr(counts, name) - getattr(before, name))
        failures.inc(counts.failures - before.failures)
        if lag is not None or not counts.failure:  # what nobody knows is no old lag
            waiting.set(math.nan if lag is None else lag)
        for seconds in counts.delays_s:
            delay.observe(seconds)
        counts.delays_s = []
        before = dataclasses.replace(counts)

    return told
