"""`control export`: trained rankers as small folders."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import How, Opened, PathType, run_options, spec_options
from slmrank.pipeline.card import export_rankers, require_exportable
from slmrank.pipeline.quality import asked_in_training, measure_quality, plan_quality, queries_of
from slmrank.pipeline.steps import Runner
from slmrank.pyplot import new_figure


@click.command("export")
@spec_options
@click.option("--out", type=PathType, required=True, help="folder to write `full` and `pruned` to")
@run_options
def export_command(opened: Opened, out: Path, how: How) -> None:
    """Train what SPEC says, measure it on every set of evaluate.sets, and write the adapters with
    the record of the pruning, log, plot and model card: some ten MB that rebuild the rankers.

    Take them up in another spec as finetune.adapter, prune.recorded and recover.adapter.

    \b
    Example:
      control export build/train.yaml --out my-ranker
    """
    bundle, store = opened.bundle, opened.store
    require_exportable(bundle.spec, out)  # better now than after hours of training
    plans = {
        name: plan_quality(bundle, served=False, on=name) for name in bundle.spec.evaluate.sets
    }
    kept = [bundle.final, bundle.finetuned]
    if bundle.spec.prune is not None:  # what was cleaned away is made again
        kept.append(bundle.pruned)
    kept.append(bundle.data)
    how.plan(store, [*kept, *(step for plan in plans.values() for step in plan.steps)])
    new_figure()
    with StepDisplay() as display:
        runner = Runner(store, display, how.device)
        for step in reversed(kept):
            runner.run(step)
        quality = {}
        for name, plan in plans.items():
            scored, rows, _ = measure_quality(bundle, plan, runner)
            trained_on = asked_in_training(bundle, store, scored[0].listings)
            asked = queries_of(name, bundle.spec.evaluate.split, trained_on)
            quality[asked] = rows
    written = export_rankers(bundle, store, out, quality)
    paths = [str(path) for path in written]
    show_result({"folders": paths}, *paths, as_json=how.as_json)
