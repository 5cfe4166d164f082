"""The verbs that make one artifact each, from data to the model repository. They differ only in the
step that they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import click

from slmrank.cli.display import show_artifact
from slmrank.cli.options import How, Opened, force_option, run_options, spec_options
from slmrank.errors import MissingDependencyError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import Step
from slmrank.train.log import LOG_FILE, read_log
from slmrank.train.plot import draw_log


def _verb(
    name: str, text: str, choose: Callable[[Bundle], Step], example: str = "", *, alone: bool = True
) -> click.Command:
    """`example`: options of an example; `alone`: the shipped spec without them is one too."""

    @spec_options
    @force_option
    @run_options
    def command(opened: Opened, force: bool, how: How) -> None:
        step = choose(opened.bundle)
        how.plan(opened.store, [step], force=force)
        made = opened.run(step, force=force, device=how.device)
        show_artifact(made, as_json=how.as_json)
        if (made.path / LOG_FILE).is_file() and not how.as_json:
            plot = opened.store.root / "reports" / f"{name}-{made.key[:8]}.png"
            with contextlib.suppress(MissingDependencyError):
                title = f"{opened.bundle.spec.name}, {name}"
                image = draw_log(read_log(made.path / LOG_FILE), title)
                try:
                    plot.parent.mkdir(parents=True, exist_ok=True)
                    plot.write_bytes(image)
                except OSError as error:  # of what was trained nothing is lost
                    plot.unlink(missing_ok=True)
                    click.echo(f"no plot was written: {error}", err=True)
                else:
                    click.echo(f"plot: {plot}")

    given = [*([""] if alone else []), *([f" {example}"] if example else [])]
    lines = "".join(f"\n  control {name} build/demo.yaml{one}" for one in given)
    help_text = f"{text}\n\n\b\nExample:{lines}"
    return click.command(name, help=help_text)(command)


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
    "--set trim.tokens=16384",
    alone=False,
)

finetune_command = _verb(
    "finetune",
    "Fine-tune the base model of SPEC on its labelled pairs: KL to grade/4, or to a teacher's p "
    "(finetune.teacher), on the two label logits at the last prompt token.\n\nInterrupted runs "
    "resume from their last saved state.",
    lambda bundle: bundle.finetuned,
    "--set finetune.adapter=null --set finetune.steps=64 --set finetune.teacher=my-ranker",
)

prune_command = _verb(
    "prune",
    "Prune the fine-tuned model of SPEC: OSSCAR chooses MLP neurons and refits the down "
    "projection in closed form; layers go from the end or by importance (prune.select), or "
    "as prune.recorded says. The figures compare OSSCAR's output "
    "error with magnitude pruning, with and without refit.",
    lambda bundle: bundle.pruned,
)

recover_command = _verb(
    "recover",
    "Distil the fine-tuned model of SPEC into the pruned one: the target is the unpruned model's "
    "p, or the grades with recover.teacher: labels.",
    lambda bundle: bundle.recovered,
)

repo_command = _verb(
    "repo",
    "Generate the Triton model repository of SPEC: the ensemble rank = prepare -> ranker. Names, "
    "data types and dims of the ensemble graph are checked before anything is written.\n\n"
    "An engine that is compiled elsewhere is not copied in: the configuration points to where it "
    "lies on the serving machine.",
    lambda bundle: bundle.repository,
)
