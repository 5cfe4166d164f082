"""`control evaluate`: the quality table."""

from __future__ import annotations

import click

from slmrank.cli.display import StepDisplay, print_json, print_table, show_plan
from slmrank.cli.options import (
    Opened,
    device_option,
    dry_run_option,
    json_option,
    spec_options,
)
from slmrank.evaluate.metrics import Interval
from slmrank.evaluate.table import QualityRow
from slmrank.pipeline.quality import NAMES, REFERENCE, measure_quality, plan_quality


@click.command("evaluate")
@spec_options
@click.option("--served", is_flag=True, help="score the engine row through a real server")
@device_option
@dry_run_option
@json_option
def evaluate_command(
    opened: Opened, served: bool, device: str, dry_run: bool, as_json: bool
) -> None:
    """Measure NDCG@10, AUC (grade 4 against 0) and mean |dp| of every stage of SPEC.

    Rows: BM25, base, fine-tuned, pruned, recovered, engine, on summaries; of a GPU target without
    --served, the engine's weights with reference arithmetic. With
    evaluate.full_text_queries, the fine-tuned model also on the full texts of that many queries.
    Intervals are 95 % bootstrap intervals over queries, differences are paired.

    \b
    Example:
      control evaluate build/demo.yaml
      control evaluate build/demo.yaml --set evaluate.split=dev
    """
    plan = plan_quality(opened.bundle, served=served)
    if dry_run:
        show_plan(plan.steps, opened.store, as_json=as_json)
        return
    with StepDisplay() as display:
        rows, few = measure_quality(opened.bundle, plan, opened.store, display, device=device)
    if as_json:
        print_json(
            {"rows": [row.as_dict() for row in rows], "full_text": [row.as_dict() for row in few]}
        )
        return
    show_quality(rows, few)


def show_quality(rows: list[QualityRow], few: list[QualityRow]) -> None:
    """Both quality tables on stdout."""
    reference = NAMES[REFERENCE]
    title = f"quality on {rows[0].queries} unseen queries, {rows[0].pairs} pairs"
    print_table(f"{title} (delta and |dp| against '{reference}')", _COLUMNS, _cells(rows))
    if few:
        print_table(
            f"full text against summaries, {few[0].queries} queries, {few[0].pairs} pairs "
            "(the model was trained on summaries; delta and |dp| against the first row)",
            _COLUMNS,
            _cells(few),
        )


_COLUMNS = ("row", "text", "parameters", "prompt tokens", "NDCG@10", "delta", "AUC 4 v 0", "|dp|")


def _cells(rows: list[QualityRow]) -> list[list[str]]:
    return [
        [
            row.name,
            row.text,
            f"{row.parameters / 1e6:.1f}M" if row.parameters else "-",
            f"{row.prompt_tokens:.0f}" if row.prompt_tokens else "-",
            _interval(row.ndcg10),
            _interval(row.delta_ndcg10, signed=True),
            _interval(row.auc),
            f"{row.mean_abs_dp:.3f}" if row.mean_abs_dp is not None else "-",
        ]
        for row in rows
    ]


def _interval(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
