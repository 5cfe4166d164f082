"""The step that scores the evaluation pairs by one row of the quality table."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from slmrank.artifacts import Artifact
from slmrank.data.packaged import MINILM
from slmrank.machine.host import what_computes
from slmrank.pipeline.bundle import TRAINING, Bundle
from slmrank.pipeline.data_step import STAGES
from slmrank.pipeline.stages.scores import APART, make_scores
from slmrank.pipeline.steps import Runner, Step
from slmrank.spec.compress import SummarizeSpec
from slmrank.store.registry import is_shared

Row = Literal["bm25", "minilm", "base", "finetuned", "pruned", "recovered", "engine", "served"]
Text = Literal["summary", "full", "few"]
OWN = "own"  # the bundle's own data


def score_step(
    bundle: Bundle,
    row: Row,
    text: Text = "summary",
    on: str = OWN,
    summarize: SummarizeSpec | None = None,
    *,
    whole_prompts: bool = False,
) -> Step:
    """The scores of one row, on the bundle's own pairs or on a named set's test pairs.

    `text` `full` scores whole descriptions instead of summaries; `few` the summaries of those few
    queries; `summarize` is the way to summarise where ways are compared: items are then as long as
    whole texts may be, and all queries are scored on these as well.
    `whole_prompts` reads every pair's prompt by transformers' own forward pass, as users of it do,
    instead of a query's prefix once: the same scores, in twice the time on summaries. Raises
    SpecError for a set that the spec does not name.
    """
    evaluate = bundle.spec.evaluate
    limited = text != "summary" and row != "minilm" and summarize is None
    sampled = evaluate.queries if on == OWN else evaluate.set_queries
    queries = evaluate.full_text_queries if limited else sampled
    settings: dict[str, Any] = {
        "row": row,
        "split": evaluate.split if on == OWN else "test",
        "seed": evaluate.seed if queries is not None else None,  # of the sample
        "queries": queries,
        "full_text": text == "full",
        "item_tokens": evaluate.full_text_tokens if text == "full" or summarize else None,
    }
    data = bundle.data if on == OWN else bundle.set_data(on)
    inputs: dict[str, Step] = {"data": data, "summaries": bundle.summaries_of(data, summarize)}
    tools: tuple[str, ...] = ()
    extra = "train"
    code = [f"{STAGES}.scores"]
    if row in APART:
        code.append(APART[row])
    if row == "minilm":
        inputs["checkpoint"] = bundle.base
        settings["model"] = MINILM.identity
        tools = TRAINING
    elif row in ("base", "finetuned", "pruned", "recovered"):
        inputs["checkpoint"] = getattr(bundle, row)
        settings |= {"dtype": evaluate.dtype, "whole_prompts": whole_prompts}
        tools = TRAINING
    elif row == "engine":
        inputs |= {"checkpoint": bundle.final, "engine": bundle.engine}
        tools, extra = bundle.target.tools(bundle.spec.engine)
    elif row == "served":
        inputs |= {"checkpoint": bundle.final, "repository": bundle.repository}
        # What a shared store holds at the moment is not the bundle's.
        settings["by_fields"] = on != OWN or is_shared(bundle.spec.summarize.store)
    note = {"summary": "", "full": ", full text", "few": ", few queries"}[text]
    return Step(
        kind="scores",
        title=f"scores: {row}{note}" + ("" if on == OWN else f" on {on}"),
        settings=settings,
        make=partial(make_scores, settings, bundle.target),
        inputs=inputs,
        code=tuple(code),
        tools=tools,
        extra=extra,
        bundle=bundle.spec.name,
    )


def timed_scores(step: Step, runner: Runner) -> Artifact:
    """The scores of a step, with `scoring_s` as this machine takes: what another one measured, or
    another device, is scored again."""
    from slmrank.model.placement import choose_placement

    found = runner.run(step)
    measured_on = found.figures.get("measured_on", {})
    here = what_computes()
    if "device" in measured_on:
        here["device"] = choose_placement(runner.device).device
    if measured_on and measured_on != here:
        found = runner.run(step, force=True)
    return found
