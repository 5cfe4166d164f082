"""`control demo`: the whole chain on the shipped spec, and a short report at the end."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact, ArtifactStore, write_atomic
from slmrank.cli.display import StepDisplay, json_text, print_json, print_table
from slmrank.cli.evaluate import show_quality
from slmrank.cli.options import How, PathType, artifacts_option, open_spec, run_options, set_option
from slmrank.cli.sweep import announce, refuse_failed, show_points
from slmrank.client.answer import ItemScore, rank_order
from slmrank.client.client import RankClient
from slmrank.data.labelled import read_labelled
from slmrank.data.records import LabelledSet, Pair, group_by_query
from slmrank.evaluate.table import QualityRow
from slmrank.load.binary import find_perf_analyzer
from slmrank.load.session import running
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.measure import open_bundle_session
from slmrank.pipeline.quality import measure_quality, plan_quality, queries_of
from slmrank.pipeline.score_step import OWN
from slmrank.pipeline.steps import Runner, run
from slmrank.serving.locate import locate_tritonserver
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.shipped import shipped

SHOWN_QUERIES = 3
SHOWN_JOBS = 5


@click.command("demo")
@click.option("--spec", type=PathType, help="another spec  [default: the shipped build/demo.yaml]")
@set_option
@artifacts_option
@run_options
def demo_command(spec: Path | None, overrides: tuple[str, ...], artifacts: Path, how: How) -> None:
    """Fine-tune, prune, recover, summarise, build, serve, score and sweep, for real, and report:
    times, sizes, quality of every stage, ranked results and the sweep table.

    Five to eight minutes on two cores; a second run finds everything done.

    \b
    Example:
      control demo
      control demo --spec my-bundle.yaml
    """
    started = time.monotonic()
    path = spec or shipped("build/demo.yaml")
    opened = open_spec(path, overrides, None, artifacts)
    bundle, store = opened.bundle, opened.store
    quality = plan_quality(bundle, served=True)
    how.plan(store, [bundle.repository, *quality.steps])
    # Better now than after ten minutes of training.
    with tempfile.TemporaryDirectory() as work:
        locate_tritonserver(Path(work))
        find_perf_analyzer(Path(work))
    with StepDisplay() as display:
        runner = Runner(store, display, how.device)
        repository = runner.run(bundle.repository)
        _, rows, few = measure_quality(bundle, quality, runner)
        labelled = read_labelled(run(bundle.data, store).path)
        session = open_bundle_session(bundle, store, display)
    with Server(repository.path, ANY_PORTS, measured=True) as server:
        click.echo(f"serving on {server.url}", err=True)
        with RankClient(server.url) as client:
            ranked = [
                (query, rank_order(client.score(query, [pair.job_id for pair in pairs])))
                for query, pairs in example_queries(labelled).items()
            ]
        sweep_started = time.monotonic()
        here = replace(session, server=lambda: contextlib.nullcontext(running(server)))
        points, _ = here.sweep(announce)
        sweep_s = time.monotonic() - sweep_started
    wall_s = time.monotonic() - started
    times = [*display.timings, ("sweep", sum(one.seconds for one in points), sweep_s < 1)]
    report = _report(bundle, store, times, wall_s, rows, few, points)
    report["ranked"] = [
        {"query": query, "items": [_item(item, labelled, query) for item in items[:SHOWN_JOBS]]}
        for query, items in ranked
    ]
    target = store.root / "reports" / f"{bundle.spec.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, json_text(report) + "\n")
    if how.as_json:
        print_json(report)
    else:
        _show(report, points)
        click.echo(f"\nwall time of this run: {wall_s:.0f} s; report: {target}")
        changed = [part for one in overrides for part in ("--set", one)]
        kept = ["--artifacts", str(artifacts)] if artifacts != Path("artifacts") else []
        near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        click.echo(f"serve it: {shlex.join(['control', 'serve', str(near), *changed, *kept])}")
    refuse_failed(points)


def example_queries(labelled: LabelledSet) -> dict[str, list[Pair]]:
    """The test queries with the widest spread of grades, longest candidate lists first."""
    groups = group_by_query(labelled.pairs["test"])
    order = sorted(
        groups, key=lambda query: (-len({p.grade for p in groups[query]}), len(query), query)
    )
    return {query: groups[query] for query in order[:SHOWN_QUERIES]}


def _report(
    bundle: Bundle,
    store: ArtifactStore,
    times: list[tuple[str, float, bool]],
    wall_s: float,
    rows: list[QualityRow],
    few: list[QualityRow],
    points: list[Artifact],
) -> dict[str, Any]:
    served, engine = run(bundle.final, store), run(bundle.engine, store)
    summaries = run(bundle.summaries, store)
    return {
        "bundle": bundle.spec.name,
        "queries": queries_of(OWN, bundle.spec.evaluate.split),
        "cores": len(os.sched_getaffinity(0)),
        "wall_s": wall_s,
        "steps": [{"step": name, "seconds": s, "cached": cached} for name, s, cached in times],
        "parameters": _sizes(bundle, store),
        "description_tokens": {
            "before": summaries.figures["description_tokens_mean"],
            "after": summaries.figures["summary_tokens_mean"],
        },
        "checkpoint": served.key,
        "engine": {"key": engine.key, "parity": engine.figures["parity"]},
        "quality": rows,
        "full_text": few,
        "sweep": [{**one.manifest["settings"]["point"], **one.figures} for one in points],
    }


def _sizes(bundle: Bundle, store: ArtifactStore) -> dict[str, Any]:
    if bundle.spec.prune is None:
        return {}
    whole = bundle.pruned_with(bundle.spec.prune.stages - 1)  # the first stage starts from it
    first, last = (run(step, store).figures for step in (whole, bundle.pruned))
    before, after = first["layer_parameters_before"], last["layer_parameters_after"]
    return {
        "parameters_before": first["parameters_before"],
        "parameters_after": last["parameters_after"],
        "layer_parameters_before": before,
        "layer_parameters_after": after,
        "layer_parameters_removed": round(1 - after / before, 4),
        "relative_error": last["mean_relative_error"],  # of the last stage, where there are several
    }


def _show(report: dict[str, Any], points: list[Artifact]) -> None:
    times = [tuple(one.values()) for one in report["steps"]]
    shown = [[name, f"{s:.1f}", "cached" if cached else ""] for name, s, cached in times]
    shown.append(["total of the work", f"{sum(s for _, s, _ in times):.1f}", ""])
    print_table(f"steps on {report['cores']} cores", ["step", "seconds", ""], shown)
    tokens = report["description_tokens"]
    told = f"description tokens: {tokens['before']:.0f} -> {tokens['after']:.0f}"
    if tokens["before"]:  # none: the jobs have titles alone
        told += f" ({1 - tokens['after'] / tokens['before']:.0%} removed)"
    click.echo(told)
    sizes = report["parameters"]
    if sizes:
        click.echo(
            f"parameters: {sizes['parameters_before'] / 1e6:.1f}M -> "
            f"{sizes['parameters_after'] / 1e6:.1f}M, in the layers "
            f"{sizes['layer_parameters_before'] / 1e6:.1f}M -> "
            f"{sizes['layer_parameters_after'] / 1e6:.1f}M "
            f"({sizes['layer_parameters_removed']:.0%} removed)"
        )
        errors = ", ".join(f"{k} {v:.4f}" for k, v in sizes["relative_error"].items())
        click.echo(f"mean relative output error of the pruned MLPs: {errors}")
    parity = report["engine"]["parity"]
    click.echo(
        f"engine parity on {parity['pairs']} held-out pairs: mean |dp| "
        f"{parity['mean_abs_dp']:.4f}, largest {parity['max_abs_dp']:.3f}, "
        f"{parity['pair_order']:.1%} of pairs ordered alike\n"
    )
    show_quality(report["quality"], report["full_text"], report["queries"])
    for one in report["ranked"]:
        print_table(
            f"top {SHOWN_JOBS} for: {one['query']}",
            ["P(relevant)", "grade", "title", "job"],
            [
                [f"{item['score']:.4f}", str(item["grade"]), item["title"], item["job_id"]]
                for item in one["items"]
            ],
        )
    show_points(points)


def _item(item: ItemScore, labelled: LabelledSet, query: str) -> dict[str, Any]:
    grades = {p.job_id: p.grade for p in group_by_query(labelled.pairs["test"])[query]}
    return {
        "job_id": item.job_id,
        "score": item.score,
        "grade": grades[item.job_id],
        "title": labelled.jobs[item.job_id].title,
    }
