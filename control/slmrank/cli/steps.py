"""The verbs that make one artifact each, from data to the pruned and recovered model. They differ
only in the step that they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from slmrank.cli.display import StepDisplay, show_artifact, show_plan
from slmrank.cli.options import (
    PathType,
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    spec_argument,
)
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import Step, run


def _verb(
    name: str, text: str, choose: Callable[..., Step], options: tuple[Any, ...] = ()
) -> click.Command:
    @spec_argument
    @artifacts_option
    @click.option("--force", is_flag=True, help="make it again although nothing changed")
    @dry_run_option
    @json_option
    def command(
        spec: Path, artifacts: Path, force: bool, dry_run: bool, as_json: bool, **given: Any
    ) -> None:
        bundle, store = open_bundle(spec, artifacts)
        step = choose(bundle, **given)
        if dry_run:
            show_plan([step], store, as_json=as_json)
            return
        display = StepDisplay()
        try:
            artifact = run(step, store, display, force=force)
        finally:
            display.close()
        show_artifact(artifact, as_json=as_json)

    for option in options:
        command = option(command)
    example = f"\n\n\b\nExample:\n  control {name} build/demo.yaml"
    return click.command(name, help=text + example)(command)


data_command = _verb(
    "data",
    "Build the labelled set of SPEC: the example set from O*NET, or your own jobs and pairs.\n\n"
    "The split is by occupation (by query for your own pairs), so that no test query or test "
    "occupation is seen in training.",
    lambda bundle: bundle.data,
)

import_command = _verb(
    "import",
    "Bring the base model of SPEC in as a ranker checkpoint: a plain Hugging Face directory plus "
    "ranker.json with the prompt template, its label tokens and hashes.",
    lambda bundle: bundle.imported,
)

trim_command = _verb(
    "trim",
    "Trim the vocabulary of the base model of SPEC: embedding, head and tokenizer together. Texts "
    "that use only kept tokens score exactly as before; the figures say how many do.",
    lambda bundle: bundle.trimmed,
)

summarize_command = _verb(
    "summarize",
    "Summarise the job descriptions of SPEC under the token budget into an LMDB store.\n\n"
    "Summaries do not depend on queries. A later run copies every job that did not change.",
    lambda bundle: bundle.summaries,
)


def _finetune(bundle: Bundle, teacher: Path | None) -> Step:
    return (bundle.taught_by(teacher) if teacher is not None else bundle).finetuned


finetune_command = _verb(
    "finetune",
    "Fine-tune the base model of SPEC on its labelled pairs: KL to grade/4 on the two label "
    "logits at the last prompt token.\n\nInterrupted runs resume from their last saved state.",
    _finetune,
    (
        click.option(
            "--teacher",
            type=PathType,
            help="ranker checkpoint whose p replaces the grades as the target",
        ),
    ),
)

prune_command = _verb(
    "prune",
    "Prune the fine-tuned model of SPEC: OSSCAR chooses MLP neurons and refits the down "
    "projection in closed form; the last blocks are removed. The figures compare OSSCAR's output "
    "error with magnitude pruning, with and without refit.",
    lambda bundle: bundle.pruned,
)

recover_command = _verb(
    "recover",
    "Fine-tune the pruned model of SPEC; the target is the unpruned fine-tuned model's p, or the "
    "grades with recover.teacher: labels.",
    lambda bundle: bundle.recovered,
)
