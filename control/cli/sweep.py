"""`control sweep`: measure throughput and latency over items x tokens x concurrency."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click

from control.artifacts import Artifact, ArtifactStore
from control.cli.display import StepDisplay, print_json, print_table, show_plan
from control.cli.options import (
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    spec_argument,
)
from control.client.client import RankClient
from control.data.labelled import read_labelled
from control.errors import SpecError, SweepError
from control.pipeline.bundle import Bundle
from control.pipeline.steps import run
from control.ranker.checkpoint import open_prompt
from control.repo.generate import ENSEMBLE, check_repository
from control.serve.server import Ports, Server
from control.sweep.perf_analyzer import LoadSettings
from control.sweep.points import plan_points
from control.sweep.run import Running, SweepPlan, plan_sweep, run_sweep


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The grid; empty axes come from the spec."""

    items: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = ()


def _numbers(_context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise SpecError(
            f"--{parameter.name} {text!r} is not a list of numbers from 1", "write it as 1,8,32"
        )
    return values


@click.command("sweep")
@spec_argument
@click.option("--items", default="", callback=_numbers, help="items per request, as 1,8,32")
@click.option("--tokens", default="", callback=_numbers, help="tokens per item, as 32,96")
@click.option("--concurrency", default="", callback=_numbers, help="requests in flight, as 1,2,4")
@click.option("--url", help="measure this running server instead of starting one")
@artifacts_option
@dry_run_option
@json_option
def sweep_command(
    spec: Path,
    items: tuple[int, ...],
    tokens: tuple[int, ...],
    concurrency: tuple[int, ...],
    url: str | None,
    artifacts: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Drive the repository of SPEC with the real perf_analyzer: one process per point, over items
    per request x tokens per item x concurrency. Points that are done are skipped.

    Throughput and percentiles are recomputed from the exported requests inside the stable windows
    and compared with the tool's own figure.

    \b
    Example:
      control sweep build/demo.yaml
      control sweep build/demo.yaml --items 1,32 --tokens 64 --concurrency 1,4
    """
    bundle, store = open_bundle(spec, artifacts)
    if dry_run and store.find(bundle.repository.kind, bundle.repository.key) is None:
        show_plan([bundle.repository], store, as_json=as_json)
        return
    display = StepDisplay()
    axes = Axes(items=items, tokens=tokens, concurrency=concurrency)
    with contextlib.closing(display):
        plan, server = prepare_sweep(bundle, store, display, axes, url)
    if dry_run:
        pending = plan.pending(store)
        seconds = plan.estimate_s(store)
        points = [
            {"point": one.name, "state": "to be measured" if n in pending else "cached"}
            for n, one in enumerate(plan.points)
        ]
        if as_json:
            print_json({"plan": points, "estimate_s": seconds})
        else:
            title = f"{len(pending)} of {len(points)} points to measure, about {seconds:.0f} s"
            print_table(title, ["point", "state"], [list(one.values()) for one in points])
        return
    found = run_sweep(plan, store, server, announce)
    if as_json:
        print_json({"served": plan.identity, "points": [_record(one) for one in found]})
    else:
        show_points(found)


def prepare_sweep(
    bundle: Bundle, store: ArtifactStore, display: StepDisplay, axes: Axes, url: str | None = None
) -> tuple[SweepPlan, Callable[[], AbstractContextManager[Running]]]:
    """The plan of a bundle's sweep, and how to get at the server that it measures.

    Raises SweepError when a running server serves another tokenizer or template.
    """
    repository = run(bundle.repository, store, display)
    labelled = read_labelled(run(bundle.data, store, display).path)
    parameters = check_repository(repository.path)[ENSEMBLE].parameters
    identity = {name: one.string_value for name, one in parameters.items()}
    if url is not None:
        with RankClient(url) as client:
            served = client.describe()
        for name in ("tokenizer_hash", "prompt_hash", "max_item_tokens"):
            if served.get(name) != identity[name]:
                raise SweepError(
                    f"{url} serves {name} {served.get(name)}, the spec's repository has "
                    f"{identity[name]}: texts could not be cut to length",
                    "give the spec that the server was made from",
                )
        identity = served
    given = bundle.spec.sweep
    plan = plan_sweep(
        plan_points(
            axes.items or given.items,
            axes.tokens or given.tokens,
            axes.concurrency or given.concurrency,
        ),
        LoadSettings(
            window_ms=given.window_ms,
            trials=given.trials,
            stability_percent=given.stability_percent,
        ),
        identity,
        list(labelled.jobs.values()),
        sorted({pair.query for pair in labelled.pairs["test"]}),
        open_prompt(repository.path / "prepare" / "1").encoder(),
        requests=given.requests,
        seed=given.seed,
    )

    def server() -> AbstractContextManager[Running]:
        if url is not None:
            return _elsewhere(url)
        return Server(repository.path, Ports(grpc=0, http=0, metrics=0))

    return plan, server


def announce(number: int, total: int, name: str) -> None:
    """Progress of a sweep on stderr."""
    click.echo(f"sweep {number}/{total} {name}", err=True)


def show_points(points: list[Artifact]) -> None:
    """The sweep table on stdout."""
    rows = []
    for artifact in points:
        point, figures = artifact.manifest["settings"]["point"], artifact.figures
        cell = [str(point[name]) for name in ("items", "tokens", "concurrency")]
        if not figures["stable"]:
            rows.append([*cell, *["-"] * 8, "unstable"])
            continue
        stage = figures["stages_us"]
        verdict = "ok" if figures["trusted"] else "disagrees"
        rows.append(
            [
                *cell,
                f"{figures['items_per_s']:.1f}",
                f"{figures['requests_per_s']:.2f}",
                f"{figures['p50_ms']:.0f}",
                f"{figures['p95_ms']:.0f}",
                f"{figures['p99_ms']:.0f}",
                *(
                    f"{stage[name]['compute'] / 1000:.1f}" if name in stage else "-"
                    for name in ("prepare", "ranker")
                ),
                f"{stage['ranker']['queue'] / 1000:.1f}" if "ranker" in stage else "-",
                verdict,
            ]
        )
    columns = ["items", "tokens", "conc.", "items/s", "req/s", "p50 ms", "p95 ms", "p99 ms"]
    columns += ["prepare ms", "ranker ms", "queue ms", "verdict"]
    version = points[0].manifest["versions"]["perf_analyzer"] if points else ""
    print_table(f"sweep with perf_analyzer ({version})", columns, rows)


@dataclass(frozen=True)
class _Elsewhere:
    url: str


@contextlib.contextmanager
def _elsewhere(url: str) -> Iterator[Running]:
    yield _Elsewhere(url)


def _record(artifact: Artifact) -> dict[str, object]:
    return {
        **artifact.manifest["settings"]["point"],
        **artifact.figures,
        "path": str(artifact.path),
    }
