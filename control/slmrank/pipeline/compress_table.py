"""What summaries cost: summarizers at equal budgets against full texts, read by one ranker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.errors import SpecError
from slmrank.evaluate.page import figures_of, interval_bars, sizes_of
from slmrank.evaluate.table import QualityRow, ScoredRow, quality_table
from slmrank.html_page import Table
from slmrank.machine.host import what_computes
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.quality import scored_row
from slmrank.pipeline.score_step import Row, score_step
from slmrank.pipeline.steps import Runner, Step
from slmrank.pyplot import plain_plot
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.reading import change_spec
from slmrank.spec.train import TrainSpec
from slmrank.summarize.registry import SUMMARIZERS

PASS_TOKENS = 4096  # 6 GB of what a 135M model keeps for its backward pass
FULL_TEXT = "full text"
OWN_RANKER = "full text, trained on it"
QUALITY = ("prompt tokens", "NDCG@10", "delta", "order", "delta order", "AUC 4 v 0", "|dp|")
COLUMNS = ("summaries", "budget", "removed", *QUALITY, "new words", "ms per job")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One summarizer at one budget, and the step that scores its texts; full text has no budget."""

    method: str
    budget: int | None
    step: Step


@dataclass(frozen=True, kw_only=True)
class CompressRow:
    """One row of the table. `removed` is the share of the descriptions' tokens that is gone,
    `new_words` the share of the summaries' words that their postings lack, `ms_per_job` what one
    summary costs (None where it was found, not made, or made on another machine)."""

    method: str
    budget: int | None
    removed: float
    new_words: float | None
    ms_per_job: float | None
    quality: QualityRow


def plan_compress_table(
    bundle: Bundle,
    scorer: Row,
    methods: Sequence[str],
    budgets: Sequence[int],
    on: str,
    *,
    own_ranker: bool = False,
) -> list[Cell]:
    """Full text first, then every method at every budget. The ranker is the bundle's at the stage
    `scorer`, so that texts change and nothing else; `own_ranker` adds a row of full text for which
    another one was trained, from the same start with the same settings.

    Raises SpecError for an unknown method or set, and for a ranker that no step trains.
    """
    own = bundle.spec.summarize
    cells = [Cell(method=FULL_TEXT, budget=None, step=score_step(bundle, scorer, "full", on, own))]
    if own_ranker:
        step = score_step(_trained_on_full(bundle, scorer), scorer, "full", on, own)
        cells.append(Cell(method=OWN_RANKER, budget=None, step=step))
    for method in methods:
        SUMMARIZERS.get(method)
        for budget in budgets:
            # Items may be as long as whole texts here: nothing is cut but by the summarizer.
            change = {"method": method, "budget_tokens": budget, "max_cut_share": 1.0}
            if method != own.method:
                change |= {"fitted": None, "options": {}}
            summarize: SummarizeSpec = own.model_copy(update=change)
            step = score_step(bundle, scorer, "summary", on, summarize)
            cells.append(Cell(method=method, budget=budget, step=step))
    return cells


def _trained_on_full(bundle: Bundle, scorer: Row) -> Bundle:
    spec = bundle.spec
    if spec.finetune is None or not spec.finetune.steps:
        raise SpecError(
            "the spec trains nothing before it prunes: its ranker cannot be trained on full texts",
            "set finetune.steps to what the ranker was trained with, and finetune.adapter: null; "
            "after pruning also recover.steps, recover.adapter: null and prune.recorded: null",
        )
    if scorer != "finetuned" and spec.recover is not None and spec.recover.adapter is not None:
        raise SpecError(
            f"recover.adapter {spec.recover.adapter} was trained for another ranker: on one that "
            "was trained on full texts it says nothing",
            "give --scorer finetuned, or set recover.adapter: null with recover.steps",
        )
    taught = spec.finetune.teacher is not None
    changes: dict[str, Any] = {"finetune": _on_full(spec, spec.finetune, taught=taught)}
    if spec.recover is not None:
        taught = spec.recover.teacher != "labels"
        changes["recover"] = _on_full(spec, spec.recover, taught=taught)
    if spec.prune is not None:
        changes["prune"] = {"recorded": None}  # chosen by what it reads
    return Bundle(change_spec(spec, changes))


def _on_full(spec: BundleSpec, section: TrainSpec, *, taught: bool) -> dict[str, Any]:
    """What a training section reads instead of summaries. Its steps, the same queries and jobs,
    have ten times the tokens: they are summed over passes that fit into memory."""
    own = {"text": "full", "text_tokens": spec.evaluate.full_text_tokens}
    if section.tokens_at_once is None and not section.shard:
        own["tokens_at_once"] = PASS_TOKENS
    return {**own, "teacher_text": "full"} if taught else own


def measure_compress_table(
    bundle: Bundle, cells: Sequence[Cell], runner: Runner
) -> list[CompressRow]:
    """Score every cell; the first is the reference of the others."""
    scored: list[ScoredRow] = []
    costs: list[tuple[float, float | None, float | None]] = []
    here = what_computes()
    for cell in cells:
        text, artifact = str(cell.budget or FULL_TEXT), runner.run(cell.step)
        scored.append(scored_row(cell.method, text, cell.step, artifact, runner.store))
        if not cell.budget:
            costs.append((0.0, None, None))
            continue
        # Scores stay where summaries were cleaned away.
        figures = runner.run(cell.step.inputs["summaries"]).figures
        whole = figures["description_tokens_mean"]  # 0: the jobs have titles alone
        removed = 1 - figures["summary_tokens_mean"] / whole if whole else 0.0
        spent = figures["ms_per_job"] if figures["measured_on"] == here else None
        costs.append((removed, figures["new_words"], spent))
    table = quality_table(scored, scored[0], bundle.spec.evaluate)
    return [
        CompressRow(
            method=cell.method,
            budget=cell.budget,
            removed=removed,
            new_words=new_words,
            ms_per_job=spent,
            quality=quality,
        )
        for cell, (removed, new_words, spent), quality in zip(cells, costs, table, strict=True)
    ]


def compress_table(rows: Sequence[CompressRow]) -> Table:
    """The rows as text."""
    cells = [
        [
            row.method,
            str(row.budget or "-"),
            f"{row.removed:.1%}" if row.budget else "-",
            *figures_of(row.quality, QUALITY),
            f"{row.new_words:.0%}" if row.new_words is not None else "-",
            f"{row.ms_per_job:.2f}" if row.ms_per_job is not None else "-",
        ]
        for row in rows
    ]
    return sizes_of(rows[0].quality), COLUMNS, cells


def draw_compress_table(rows: Sequence[CompressRow]) -> bytes:
    """A PNG: NDCG@10 lost against full text over the tokens removed, with 95 % intervals."""

    def draw(axes: Any) -> None:
        axes.axhline(0, color="#999999", linewidth=0.8, linestyle="--")
        for row in rows:
            if row.method == OWN_RANKER and row.quality.delta_ndcg10 is not None:
                axes.axhline(row.quality.delta_ndcg10.value, color="#444444", label=OWN_RANKER)
        for method in dict.fromkeys(row.method for row in rows if row.budget):
            own = sorted((row for row in rows if row.method == method), key=lambda row: row.removed)
            deltas = [
                row.quality.delta_ndcg10 for row in own if row.quality.delta_ndcg10 is not None
            ]
            interval_bars(axes, [100 * row.removed for row in own], deltas, label=method)
        axes.set_xlabel("tokens of the descriptions removed (%)")
        axes.set_ylabel("NDCG@10 against full text")
        axes.legend(frameon=False)

    return plain_plot(draw)
