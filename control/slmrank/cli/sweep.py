"""`control sweep` and `control slo`: throughput, latency, and the rate at an objective."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.cli.display import StepDisplay, print_json, print_table, show_plan
from slmrank.cli.options import (
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    spec_argument,
)
from slmrank.client.client import RankClient
from slmrank.data.labelled import read_labelled
from slmrank.errors import SpecError, SweepError
from slmrank.load.binary import find_perf_analyzer
from slmrank.load.evidence import require_ready
from slmrank.load.perf_analyzer import LoadSettings
from slmrank.load.points import Load, Point, Pool, plan_points
from slmrank.load.record import record_path, update_record
from slmrank.load.run import Bench, Running, SweepPlan, plan_sweep, run_sweep
from slmrank.load.slo import SloCell, find_slo
from slmrank.model.checkpoint import open_prompt
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.repository.generate import ENSEMBLE, check_repository
from slmrank.serving.server import Ports, Server
from slmrank.store.lmdb_store import SummaryStore

ServerMaker = Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The grid; an axis that is None comes from the spec."""

    items: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    query_tokens: tuple[int, ...] | None = None
    concurrency: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    texts: str | None = None


def _numbers(kind: type[int] | type[float]) -> Callable[..., tuple[Any, ...] | None]:
    def parse(
        _context: click.Context, parameter: click.Parameter, text: str
    ) -> tuple[Any, ...] | None:
        if not text:
            return None
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = (kind(0),)
        if min(values) < (1 if kind is int else 1e-9):
            raise SpecError(
                f"--{str(parameter.name).replace('_', '-')} {text!r} is not a list of numbers "
                + ("from 1" if kind is int else "above 0"),
                "write it as 1,8,32",
            )
        return values

    return parse


def _cell_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option(
                "--items", default="", callback=_numbers(int), help="items per request, as 1,8,32"
            ),
            click.option(
                "--tokens", default="", callback=_numbers(int), help="tokens per item, as 32,96"
            ),
            click.option(
                "--query-tokens",
                default="",
                callback=_numbers(int),
                help="tokens per query  [default: real queries as they are]",
            ),
            click.option(
                "--texts",
                type=click.Choice(["text", "store"]),
                help="send job texts, or ids that the summary store answers",
            ),
            click.option("--url", help="measure this running server instead of starting one"),
            click.option(
                "--metrics-url", help="metrics page of that server, as http://host:8002/metrics"
            ),
        )
    ):
        command = option(command)
    return command


@click.command("sweep")
@spec_argument
@_cell_options
@click.option(
    "--concurrency", default="", callback=_numbers(int), help="requests in flight, as 1,2,4"
)
@click.option(
    "--rates", default="", callback=_numbers(float), help="open loop: requests per second, as 5,10"
)
@artifacts_option
@dry_run_option
@json_option
def sweep_command(
    spec: Path,
    items: tuple[int, ...] | None,
    tokens: tuple[int, ...] | None,
    query_tokens: tuple[int, ...] | None,
    texts: str | None,
    url: str | None,
    metrics_url: str | None,
    concurrency: tuple[int, ...] | None,
    rates: tuple[float, ...] | None,
    artifacts: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Drive the repository of SPEC with the real perf_analyzer: one process per point, over items
    per request x tokens per item x query tokens x load. Points that are done are skipped.

    Throughput and percentiles are recomputed from the exported requests inside the stable windows
    and compared with the tool's own figure. An open-loop point that sent less than 99 % of its rate
    has no number. The first point is measured again at the end, as a drift check.

    \b
    Example:
      control sweep build/demo.yaml
      control sweep build/demo.yaml --items 1,32 --tokens 64 --concurrency 1,4
      control sweep build/demo.yaml --items 8 --tokens 64 --rates 4,8
    """
    bundle, store = open_bundle(spec, artifacts)
    if dry_run and store.find(bundle.repository.kind, bundle.repository.key) is None:
        show_plan([bundle.repository], store, as_json=as_json)
        return
    if rates is not None and concurrency is None:
        concurrency = ()
    axes = Axes(
        items=items,
        tokens=tokens,
        query_tokens=query_tokens,
        concurrency=concurrency,
        rates=rates,
        texts=texts,
    )
    display = StepDisplay()
    with contextlib.closing(display):
        plan, server = prepare_sweep(bundle, store, display, axes, url, metrics_url)
    if dry_run:
        _show_sweep_plan(plan, store, as_json=as_json)
        return
    swept = run_sweep(plan, store, server, announce)
    path = record_path(store.root, plan.identity)
    update_record(path, plan.identity, points=swept.points, drift=swept.drift)
    if as_json:
        points = [_record(one) for one in swept.points]
        told = {"served": plan.identity, "points": points, "drift": swept.drift}
        print_json({**told, "record": str(path)})
    else:
        show_points(swept.points)
        if swept.drift is not None:
            click.echo(f"drift: the first point again at the end, {swept.drift:.2f} of its rate")
        click.echo(f"record: {path} (control report {path})")
    failed = [one for one in swept.points if one.figures["verdict"] == "failed"]
    if failed:
        reason = str(failed[0].figures["reason"]).splitlines()[0]
        raise SweepError(f"{len(failed)} points failed: {reason}", "run the sweep again")


@click.command("slo")
@spec_argument
@_cell_options
@click.option(
    "--latency-ms", type=click.FloatRange(min=0, min_open=True), help="limit  [default: the spec's]"
)
@click.option(
    "--percentile", type=click.Choice(["95", "99"]), help="of the latency  [default: the spec's]"
)
@artifacts_option
@dry_run_option
@json_option
def slo_command(
    spec: Path,
    items: tuple[int, ...] | None,
    tokens: tuple[int, ...] | None,
    query_tokens: tuple[int, ...] | None,
    texts: str | None,
    url: str | None,
    metrics_url: str | None,
    latency_ms: float | None,
    percentile: str | None,
    artifacts: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the highest rate of Poisson arrivals at which a latency percentile stays under the
    objective (sweep.slo of SPEC), for each kind of request: items x tokens x query tokens.

    Bracketing, bisection and confirmation runs; each run is kept, so an interrupted search goes on.

    \b
    Example:
      control slo build/demo.yaml --items 8 --tokens 64 --latency-ms 300
    """
    bundle, store = open_bundle(spec, artifacts)
    if dry_run and store.find(bundle.repository.kind, bundle.repository.key) is None:
        show_plan([bundle.repository], store, as_json=as_json)
        return
    given = bundle.spec.sweep.slo
    limit_ms = latency_ms or given.latency_ms
    percent = int(percentile or given.percentile)
    axes = Axes(
        items=items,
        tokens=tokens,
        query_tokens=query_tokens,
        concurrency=(1,),
        rates=(),
        texts=texts,
    )
    display = StepDisplay()
    with contextlib.closing(display):
        plan, server = prepare_sweep(bundle, store, display, axes, url, metrics_url)
    if dry_run:
        names = [[point.cell] for point in plan.points]
        if as_json:
            print_json({"plan": [name for (name,) in names], "limit_ms": limit_ms})
        else:
            print_table(f"would search p{percent} <= {limit_ms:g} ms for", ["cell"], names)
        return
    cells, path = search_slo(bundle, plan, store, server, limit_ms, percent)
    if as_json:
        told = {"served": plan.identity, "slo": [one.as_dict() for one in cells]}
        print_json({**told, "record": str(path)})
    else:
        show_slo(cells)
        click.echo(f"record: {path}")


def search_slo(
    bundle: Bundle,
    plan: SweepPlan,
    store: ArtifactStore,
    server: ServerMaker,
    limit_ms: float,
    percentile: int,
) -> tuple[list[SloCell], Path]:
    """Search every cell of the plan on one server, and write cells and measured points, but for
    confirmation runs, into the record; returns the cells and the record's path."""
    given = bundle.spec.sweep.slo
    plan = replace(plan, settings=replace(plan.settings, min_requests=given.requests))
    with tempfile.TemporaryDirectory(prefix="slmrank-slo-") as work, server() as running:
        bench = Bench(store, find_perf_analyzer(Path(work)), running)
        bench.warm_up(plan, 0)
        cells = [
            find_slo(
                bench,
                plan,
                cell,
                plan.inputs[index],
                limit_ms=limit_ms,
                percentile=percentile,
                precision=given.precision,
                confirmations=given.confirmations,
                told=lambda text: click.echo(text, err=True),
            )
            for index, cell in enumerate(plan.points)
        ]
    first = [one for one in bench.seen if not one.manifest["settings"]["point"]["repeat"]]
    path = record_path(store.root, plan.identity)
    update_record(path, plan.identity, points=first, slo=cells)
    return cells, path


def prepare_sweep(
    bundle: Bundle,
    store: ArtifactStore,
    display: StepDisplay,
    axes: Axes,
    url: str | None = None,
    metrics_url: str | None = None,
) -> tuple[SweepPlan, ServerMaker]:
    """The plan of a bundle's sweep, and how to get at the server that it measures.

    Raises SweepError when a running server serves another tokenizer or template.
    """
    repository = run(bundle.repository, store, display)
    labelled = read_labelled(run(bundle.data, store, display).path)
    parameters = check_repository(repository.path)[ENSEMBLE].parameters
    identity = {name: one.string_value for name, one in parameters.items()}
    if url is not None:
        require_ready(url)
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
    stored = (axes.texts or given.texts) == "store"
    folder = repository.path / "prepare" / "1"
    pool = Pool(
        jobs=list(labelled.jobs.values()),
        queries=sorted({pair.query for pair in labelled.pairs["test"]}),
        encoder=open_prompt(folder).encoder(),
        requests=given.requests,
        seed=given.seed,
        stored=SummaryStore(folder / "store").ids if stored else None,
    )
    with tempfile.TemporaryDirectory(prefix="slmrank-tool-") as work:
        tool = find_perf_analyzer(Path(work)).version
    plan = plan_sweep(_points(bundle, axes, stored=stored), _settings(bundle), identity, pool, tool)

    def server() -> AbstractContextManager[Running]:
        if url is not None:
            return _elsewhere(url, metrics_url)
        return _own(repository.path)

    return plan, server


def _points(bundle: Bundle, axes: Axes, *, stored: bool) -> list[Point]:
    given = bundle.spec.sweep
    concurrency = given.concurrency if axes.concurrency is None else axes.concurrency
    rates = given.rates if axes.rates is None else axes.rates
    loads = [Load(kind="concurrency", level=one) for one in concurrency]
    loads += [Load(kind="rate", level=one) for one in rates]
    tokens: Sequence[int | None] = [None] if stored else (axes.tokens or given.tokens)
    return plan_points(
        axes.items or given.items,
        tokens,
        loads,
        axes.query_tokens or given.query_tokens or [None],
    )


def _settings(bundle: Bundle) -> LoadSettings:
    given = bundle.spec.sweep
    return LoadSettings(
        window_ms=given.window_ms,
        trials=given.trials,
        stability_percent=given.stability_percent,
        min_requests=given.slo.requests if given.rates else 0,
    )


def announce(number: int, total: int, name: str) -> None:
    """Progress of a sweep on stderr."""
    click.echo(f"sweep {number}/{total} {name}", err=True)


def show_points(points: list[Artifact]) -> None:
    """The sweep table on stdout."""
    rows = []
    for artifact in points:
        point, figures = artifact.manifest["settings"]["point"], artifact.figures
        load = point["load"]
        sign = "" if load["kind"] == "concurrency" else "/s"
        tokens = point["tokens"] or f"~{figures['mean_item_tokens']:.0f}"
        cell = [str(point["items"]), str(tokens), f"{load['level']:g}{sign}"]
        if not figures["stable"]:
            rows.append([*cell, *["-"] * 8, figures["verdict"]])
            continue
        stage = figures["stages_us"]
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
                figures["verdict"],
            ]
        )
    columns = ["items", "tokens", "load", "items/s", "req/s", "p50 ms", "p95 ms", "p99 ms"]
    columns += ["prepare ms", "ranker ms", "queue ms", "verdict"]
    version = points[0].manifest["versions"]["perf_analyzer"] if points else ""
    print_table(f"sweep with perf_analyzer ({version})", columns, rows)


def show_slo(cells: list[SloCell]) -> None:
    """The table of rates at the objective on stdout."""
    rows = []
    for cell in cells:
        kind = [str(cell.items), str(cell.tokens or "stored"), str(cell.query_tokens or "-")]
        if cell.rate is None or cell.items_per_s_range is None or cell.latency_ms_range is None:
            rows.append([*kind, "none holds", "-", "-", "-", str(cell.runs)])
            continue
        low, high = cell.items_per_s_range
        fast, slow = cell.latency_ms_range
        rows.append(
            [
                *kind,
                f"{cell.rate:g}",
                f"{cell.items_per_s:.1f} [{low:.1f}, {high:.1f}]",
                f"{fast:.0f} to {slow:.0f}",
                f"{cell.failed_at:g}" if cell.failed_at else "-",
                str(cell.runs),
            ]
        )
    title = "no cell" if not cells else f"p{cells[0].percentile} <= {cells[0].limit_ms:g} ms"
    columns = ["items", "tokens", "query", "requests/s", "items/s per instance"]
    columns += ["confirmed ms", "failed at", "runs"]
    print_table(f"highest rate with {title}, open loop", columns, rows)


def _show_sweep_plan(plan: SweepPlan, store: ArtifactStore, *, as_json: bool) -> None:
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


@dataclass(frozen=True)
class _Measured:
    url: str
    metrics_url: str | None


@contextlib.contextmanager
def _elsewhere(url: str, metrics_url: str | None) -> Iterator[Running]:
    yield _Measured(url, metrics_url)


@contextlib.contextmanager
def _own(repository: Path) -> Iterator[Running]:
    with Server(repository, Ports(grpc=0, http=0, metrics=0)) as server:
        yield running(server)


def running(server: Server) -> Running:
    """A server that was started here, as something to measure."""
    return _Measured(server.url, f"http://{server.address}:{server.ports.metrics}/metrics")


def _record(artifact: Artifact) -> dict[str, object]:
    point = artifact.manifest["settings"]["point"]
    return {
        **{name: point[name] for name in ("items", "tokens", "query_tokens", "load")},
        **artifact.figures,
        "path": str(artifact.path),
    }
