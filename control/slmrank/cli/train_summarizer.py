"""`control train-summarizer`: a language model that writes summaries, trained by the ranker."""

from __future__ import annotations

import click

from slmrank.cli.measured_page import Measurement, measured_options
from slmrank.cli.options import force_option
from slmrank.pipeline.summarizer_page import draw_history, history_table, read_history, samples_of
from slmrank.summarize.policy import require_trl

METHOD = "generative"


@click.command("train-summarizer")
@force_option
@measured_options
def train_summarizer_command(asked: Measurement, force: bool) -> None:
    """Train the language model of summarize.method generative: supervised on the summaries of
    method ranker, then by reinforcement (TRL's GRPO trainer, ratios of whole sequences: GSPO).

    The reward of a summary is -KL(p(.|q, summary) || p(.|q, posting)), a mean over queries of the
    job, less summarize.generative.length_weight (0.4) times the squared share of the tokens that it
    keeps. The ranker is the one that SPEC trains, frozen; where SPEC's own method needs a ranker,
    one that is trained on summaries of the default method. Settings are summarize.generative.*; a
    run that was killed goes on. Needs slmrank[rl].

    Use what was trained by summarize: {method: generative, fitted: FOLDER}.

    \b
    Example:
      control train-summarizer build/demo.yaml --set summarize.generative.steps=60
      control compress-table build/demo.yaml --set summarize.generative.steps=60 \\
        --methods ranker,generative --budgets 36
    """
    bundle = asked.opened.bundle
    spec = bundle.spec
    step = bundle.summarizer_of(
        spec.summarize.model_copy(update={"method": METHOD, "fitted": None, "options": {}})
    )
    asked.plan(asked.opened.store, [step], force=force)
    require_trl()  # better now than after the ranker was trained
    made = asked.opened.run(step, force=force, device=asked.device)
    history, fitted = read_history(made.path), made.path.resolve()
    note = (
        "Reward of the likeliest summaries of held-out jobs, in nats. gain: paired by job, with "
        "the standard error of the mean. "
        f"Use it: summarize: {{method: {METHOD}, fitted: {fitted}}}"
    )
    asked.show_page(
        f"summarizer-{spec.name}",
        f"A summarizer trained by the ranker: {spec.name}",
        [note, *samples_of(history)],
        history_table(history),
        draw_history(history),
        [dict(one) for one in history["held_out"]],
        [step],
        fitted=str(fitted),
    )
    use = f"--set summarize.method={METHOD} --set summarize.fitted={fitted}"
    click.echo(f"use it: {use}", err=True)
