"""The rows of a bundle's quality table: which stages are scored, on which texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.data.words import same_query
from slmrank.evaluate.metrics import Listing
from slmrank.evaluate.table import QualityRow, ScoredRow, quality_table, read_scores
from slmrank.model.checkpoint import CHECKPOINT_FOLDER
from slmrank.model.tensor_files import count_parameters
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.score_step import OWN, Row, Text, score_step
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.stages.trained import UNLABELLED_FILE
from slmrank.pipeline.steps import Runner, Step, find_current, run

NAMES: dict[Row, str] = {
    "bm25": "BM25",
    "minilm": "MiniLM-L6, cosine",
    "base": "base, zero-shot",
    "finetuned": "fine-tuned",
    "pruned": "pruned, not recovered",
    "recovered": "pruned + recovered",
    "engine": "engine",
    "served": "engine, served over gRPC",
}
REFERENCE: Row = "finetuned"
AS_IT_IS = "base, as it is"  # the reference of a bundle that trains nothing


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """The steps of the table, by row and text, and of the small table on full texts."""

    rows: dict[tuple[Row, Text], Step]
    few_rows: dict[tuple[Row, Text], Step]

    @property
    def steps(self) -> list[Step]:
        return [*self.rows.values(), *self.few_rows.values()]


def plan_quality(bundle: Bundle, *, served: bool, on: str = OWN) -> QualityPlan:
    """The rows that a spec has. `served` scores through a server, else the engine in-process (of a
    GPU target its weights, with reference arithmetic). `on` is the name of an evaluation set."""
    spec = bundle.spec
    rows: list[tuple[Row, Text]] = [("bm25", "summary")]
    if spec.evaluate.dense_baseline:
        rows += [("minilm", "full"), ("minilm", "summary")]
    if on == OWN and spec.finetune is not None and spec.finetune.steps:  # trained here
        rows.append(("base", "summary"))
    rows.append(("finetuned", "summary"))
    if spec.prune is not None and on == OWN:
        rows.append(("pruned", "summary"))
    if spec.recover is not None:
        rows.append(("recovered", "summary"))
    rows.append(("served" if served else "engine", "summary"))
    few: list[tuple[Row, Text]] = []
    if spec.evaluate.full_text_queries:
        few = [("finetuned", "full"), ("finetuned", "few")]
    return QualityPlan(
        rows={(row, text): score_step(bundle, row, text, on) for row, text in rows},
        few_rows={(row, text): score_step(bundle, row, text, on) for row, text in few},
    )


def measure_quality(
    bundle: Bundle, plan: QualityPlan, runner: Runner
) -> tuple[list[ScoredRow], list[QualityRow], list[QualityRow]]:
    """The rows of the main table as they were scored, and the figures of both tables (the second
    is empty without full texts); the first compares with the fine-tuned model, the second with
    its first row."""
    names = dict(NAMES)
    if bundle.spec.finetune is None:
        names[REFERENCE] = AS_IT_IS
    if bundle.target.needs_gpu:
        names["engine"] = f"{bundle.target.name}, weights only"

    def scored(row: Row, text: Text, step: Step) -> ScoredRow:
        shown = "full" if row == "bm25" or text == "full" else "summary"
        return scored_row(names[row], shown, step, runner.run(step), runner.store)

    rows = [scored(*one, step) for one, step in plan.rows.items()]
    few = [scored(*one, step) for one, step in plan.few_rows.items()]
    reference = next(row for row in rows if row.name == names[REFERENCE])
    evaluate = bundle.spec.evaluate
    table = quality_table(rows, reference, evaluate)
    return rows, table, quality_table(few, few[0], evaluate) if few else []


def asked_in_training(bundle: Bundle, store: ArtifactStore, listings: Sequence[Listing]) -> int:
    """How many queries of an evaluation set the bundle trains on, judged or not, however they are
    spelled: a set of another seed may be cut across them."""
    spec = bundle.spec
    trains = []
    if spec.finetune is not None and spec.finetune.steps:
        trains.append(bundle.finetuned)
    if spec.recover is not None and spec.recover.steps:
        trains.append(bundle.recovered)
    if not trains:
        return 0
    data = run(bundle.data, store)  # it may have been cleaned away
    trained = {pair.query for pair in read_labelled(data.path).pairs["train"]}
    for step in trains:
        made = find_current(step, store)
        if made is not None and (made.path / UNLABELLED_FILE).is_file():
            text = (made.path / UNLABELLED_FILE).read_text(encoding="utf-8")
            trained.update(json.loads(text))
    asked = {same_query(listing.query) for listing in listings}
    return len(asked.intersection(map(same_query, trained)))


def queries_of(name: str, split: str, trained_on: int = 0) -> str:
    """What a table's queries are, in words: dev chose the checkpoint, and is not unseen."""
    if name == OWN:
        return "unseen queries" if split == "test" else f"{split} queries"
    if trained_on:
        return f"{name} ({trained_on} of its queries were TRAINED ON)"
    return name


def scored_row(
    name: str, text: str, step: Step, artifact: Artifact, store: ArtifactStore
) -> ScoredRow:
    """What a row of the table is computed from, out of the artifact of its step."""
    row, tokens = step.settings["row"], artifact.figures["prompt_tokens"]
    parameters = None
    if row == "minilm":
        parameters = artifact.figures["parameters"]
    elif "checkpoint" in step.inputs:
        before = step.inputs["checkpoint"]
        folder = store.path(before.kind, before.key) / CHECKPOINT_FOLDER
        parameters = count_parameters(folder)["total"] if folder.is_dir() else None
    return ScoredRow(
        name=name,
        text=text,
        listings=read_scores(artifact.path / SCORES_FILE),
        parameters=parameters,
        prompt_tokens=tokens / artifact.figures["pairs"] if tokens else None,
        probabilistic=row not in ("bm25", "minilm"),
    )
