"""The rows of a bundle's quality table: which stages are scored, on which texts."""

from __future__ import annotations

from dataclasses import dataclass

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.evaluate.table import QualityRow, ScoredRow, quality_table, read_scores
from slmrank.model.checkpoint import CHECKPOINT_FOLDER
from slmrank.model.tensor_files import count_parameters
from slmrank.pipeline.bundle import Bundle, Row
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.steps import Step, Watcher, run

NAMES: dict[Row, str] = {
    "bm25": "BM25",
    "base": "base, zero-shot",
    "finetuned": "fine-tuned",
    "pruned": "pruned, not recovered",
    "recovered": "pruned + recovered",
    "engine": "engine",
    "served": "engine, served over gRPC",
}
REFERENCE: Row = "finetuned"


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """The steps of the table: rows on summaries, and rows on the few full-text queries."""

    rows: dict[Row, Step]
    few_rows: dict[tuple[Row, str], Step]

    @property
    def steps(self) -> list[Step]:
        return [*self.rows.values(), *self.few_rows.values()]


def plan_quality(bundle: Bundle, *, served: bool) -> QualityPlan:
    """The rows that a spec has. `served` scores through a server, else the engine in-process (of a
    GPU target its weights, with reference arithmetic)."""
    rows: list[Row] = ["bm25", "base", "finetuned"]
    if bundle.spec.prune is not None:
        rows.append("pruned")
    if bundle.spec.recover is not None:
        rows.append("recovered")
    rows.append("served" if served else "engine")
    few: dict[tuple[Row, str], Step] = {}
    if bundle.spec.evaluate.full_text_queries:
        few = {
            ("finetuned", "full"): bundle.scores("finetuned", full_text=True),
            ("finetuned", "summary"): bundle.scores("finetuned", full_queries=True),
        }
    return QualityPlan(rows={row: bundle.scores(row) for row in rows}, few_rows=few)


def measure_quality(
    bundle: Bundle,
    plan: QualityPlan,
    store: ArtifactStore,
    watcher: Watcher,
    *,
    device: str = "cpu",
) -> tuple[list[QualityRow], list[QualityRow]]:
    """Score every row and compute the two tables (the second is empty without full texts)."""
    evaluate = bundle.spec.evaluate
    names = dict(NAMES)
    if bundle.target.needs_gpu:
        names["engine"] = f"{bundle.target.name}, weights only"

    def scored(row: Row, text: str, step: Step) -> ScoredRow:
        artifact = run(step, store, watcher, device=device)
        return _scored(names[row], row, text, step, artifact, store)

    rows = [scored(row, "summary", step) for row, step in plan.rows.items()]
    few = [scored(row, text, step) for (row, text), step in plan.few_rows.items()]
    reference = rows[list(plan.rows).index(REFERENCE)]
    main = quality_table(rows, reference, evaluate.bootstrap, evaluate.seed)
    if not few:
        return main, []
    return main, quality_table(few, few[0], evaluate.bootstrap, evaluate.seed)


def _scored(
    name: str, row: Row, text: str, step: Step, artifact: Artifact, store: ArtifactStore
) -> ScoredRow:
    tokens = artifact.figures["prompt_tokens"]
    parameters = None
    if "checkpoint" in step.inputs:
        before = step.inputs["checkpoint"]
        folder = store.path(before.kind, before.key) / CHECKPOINT_FOLDER
        parameters = count_parameters(folder)["total"]
    return ScoredRow(
        name=name,
        text="full" if row == "bm25" else text,
        listings=read_scores(artifact.path / SCORES_FILE),
        parameters=parameters,
        prompt_tokens=tokens / artifact.figures["pairs"] if tokens else None,
        probabilistic=row != "bm25",
    )
