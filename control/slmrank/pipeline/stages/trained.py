"""Make `finetuned` and `recovered`: one training run each, with or without a teacher."""

from __future__ import annotations

import json
from pathlib import Path

from slmrank.artifacts import write_atomic
from slmrank.data.labelled import read_labelled
from slmrank.errors import CheckpointError, DataError
from slmrank.model.checkpoint import ADAPTER_FOLDER, Checkpoint, open_checkpoint
from slmrank.pipeline.stages.inputs import checkpoint_of, read_in_full, split_queries
from slmrank.pipeline.steps import Making
from slmrank.processes import is_first
from slmrank.prompt.corpus import EncodedQuery, corpus_figures
from slmrank.spec.train import TrainSpec
from slmrank.train.log import LOG_FILE, write_log

UNLABELLED_FILE = "unlabelled_queries.json"  # what was trained on beside the pairs' own queries


def make_trained(spec: TrainSpec, teacher_path: Path | None, making: Making) -> None:
    from slmrank.model.placement import choose_placement
    from slmrank.model.reference import load_model, save_model
    from slmrank.train.adapter import read_note, write_note
    from slmrank.train.sft import train
    from slmrank.train.temperature import apply_temperature, calibrate

    student = checkpoint_of(making.inputs["student"])
    placement = choose_placement(making.device)
    digests = {name: artifact.digest for name, artifact in making.inputs.items()}
    teacher = None
    if "teacher" in making.inputs:
        teacher = load_model(checkpoint_of(making.inputs["teacher"]), placement)
    elif teacher_path is not None:
        teacher = load_model(_same_prompt(open_checkpoint(teacher_path), student), placement)
        digests["teacher"] = str(making.draft.lineage["settings"]["teacher"])
    full_tokens = spec.text_tokens if spec.text == "full" else None
    queries: list[EncodedQuery] = []
    if spec.steps:
        more = spec.unlabelled_queries
        queries = split_queries(
            making, student, "train", 0, unlabelled=more, full_tokens=full_tokens
        )
    scored = (spec.steps and spec.dev_every) or spec.calibration_queries
    dev = split_queries(making, student, "dev", 0, full_tokens=full_tokens) if scored else []
    if scored and not dev:
        raise DataError(
            "the data has no dev pairs to evaluate or calibrate on",
            "raise data.dev_share, or unset dev_every and calibration_queries",
        )
    teacher_reads = None
    if teacher is not None and spec.teacher_text != spec.text:
        teacher_reads = read_in_full(making, student, spec.text_tokens)
    ranker = load_model(student, placement)
    temperature = None
    if spec.adapter is not None:
        temperature = read_note(spec.adapter, student.template)
    adapter = making.draft.path / ADAPTER_FOLDER
    figures = train(
        ranker,
        queries,
        spec,
        making.draft.work,
        lambda step, steps, loss: making.watcher.progress(step, steps, f"loss {loss:.3f}"),
        inputs=digests,
        teacher=teacher,
        teacher_reads=teacher_reads,
        dev=dev,
        adapter_folder=adapter,
        logs=making.store.root / "logs" / making.draft.work.name,
    )
    if not is_first():
        return
    if spec.calibration_queries is not None:
        figures["calibration"] = calibrate(ranker, dev[: spec.calibration_queries])
        temperature = figures["calibration"]["temperature"]
    elif temperature is not None:
        apply_temperature(ranker, temperature)
    if adapter.is_dir():
        write_note(adapter, student.template, temperature)
    if spec.unlabelled_queries:
        labelled = read_labelled(making.inputs["data"].path)
        judged = {pair.query for pair in labelled.pairs["train"]}
        asked = sorted({one.query for one in queries} - judged)
        write_atomic(making.draft.path / UNLABELLED_FILE, json.dumps(asked) + "\n")
        figures["unlabelled_queries"] = len(asked)  # fewer, where the jobs' words gave no more
    if figures.get("log"):
        write_log(making.draft.path / LOG_FILE, figures.pop("log"))
    save_model(ranker, student, making.draft.path)
    making.draft.figures.update({**figures, "device": placement.device, **corpus_figures(queries)})


def _same_prompt(teacher: Checkpoint, student: Checkpoint) -> Checkpoint:
    """The teacher, when it reads the student's ids. Raises CheckpointError otherwise."""
    for name in ("tokenizer_hash", "template", "labels"):
        theirs, ours = getattr(teacher, name), getattr(student, name)
        if theirs != ours:
            raise CheckpointError(
                f"teacher {teacher.path} has {name} {theirs}, the student has {ours}",
                "use a teacher that was imported with the same tokenizer and prompt section",
            )
    return teacher
