"""One spec with other values: what settings of pruning and training do to quality.

How a loss falls with the steps of recovery, one shot against stages, an adapter against all
weights, the last layers against the least important ones: each is a grid over keys of the spec, and
every cell an artifact like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.errors import SpecError
from slmrank.evaluate.page import figures_of, interval_bars, sizes_of
from slmrank.evaluate.table import QualityRow, quality_table
from slmrank.html_page import Table
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.quality import NAMES, REFERENCE, scored_row
from slmrank.pipeline.score_step import Row, score_step
from slmrank.pipeline.steps import Runner, Step
from slmrank.pyplot import plain_plot
from slmrank.spec.reading import change_spec, nested, read_override

ASKED = ("split", "seed", "queries")  # of the settings of a row: which queries are asked

Values = dict[str, Any]  # by dotted key
WIDE = 8.0  # an axis whose values differ by more than this factor is logarithmic


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One combination: its values, and the step that scores it."""

    values: Values
    step: Step


@dataclass(frozen=True, kw_only=True)
class Varied:
    """A variant's row, and how many pairs its last training saw."""

    values: Values
    row: QualityRow
    pairs: int | None


def read_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`recover.steps=[20, 60]`, once for every key, as values by key. Raises SpecError for another
    form."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key = text.partition("=")[0].strip()
        values: Any = read_override(text, "--vary")
        for part in key.split("."):
            values = values[part]
        if not isinstance(values, list) or not values:
            raise SpecError(
                f"--vary {text!r} gives no list of values", "write --vary recover.steps=[20,60]"
            )
        if key in grid:
            raise SpecError(f"--vary names {key} twice", "give its values in one list")
        grid[key] = values
    return grid


def plan_variants(
    bundle: Bundle, grid: Mapping[str, Sequence[Any]], row: Row, on: str
) -> list[Variant]:
    """Every combination of the grid's values. Raises SpecError for values that do not fit a spec,
    for a row that it does not have, and for a set that it does not name."""
    variants: list[Variant] = []
    reference = reference_step(bundle, on)
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        changed = Bundle(change_spec(bundle.spec, *(nested(*one) for one in values.items())))
        step = score_step(changed, row, on=on)
        same = all(step.settings[name] == reference.settings[name] for name in ASKED)
        if not same or step.inputs["data"].key != reference.inputs["data"].key:
            raise SpecError(
                f"{words_of_values(values)} changes which queries are asked: its row could not be "
                "compared with the others",
                "vary what makes the ranker, or evaluate by itself",
            )
        variants.append(Variant(values=values, step=step))
    return variants


def reference_step(bundle: Bundle, on: str) -> Step:
    """The scores that all are compared with: the spec's own ranker before pruning, on the texts
    that it was trained on."""
    trained = bundle.spec.finetune
    if trained is not None and trained.text == "full":
        return score_step(bundle, REFERENCE, "full", on, bundle.spec.summarize)
    return score_step(bundle, REFERENCE, on=on)


def measure_variants(
    bundle: Bundle, variants: Sequence[Variant], on: str, runner: Runner
) -> list[Varied]:
    """One row for each variant, behind that of the ranker before pruning, whose values are none."""
    step = reference_step(bundle, on)
    full = step.settings["full_text"]
    name = NAMES[REFERENCE] + (", full text" if full else "")
    text = "full" if full else "summary"
    reference = scored_row(name, text, step, runner.run(step), runner.store)
    rows, pairs = [reference], [None]
    for variant in variants:
        artifact = runner.run(variant.step)
        name = words_of_values(variant.values)
        rows.append(scored_row(name, "summary", variant.step, artifact, runner.store))
        trained = variant.step.inputs["checkpoint"]
        made = runner.store.find(trained.kind, trained.key)  # it may have been cleaned away
        pairs.append(made.figures.get("pairs") if made is not None else None)
    table = quality_table(rows, reference, bundle.spec.evaluate)
    values: list[Values] = [{}, *(variant.values for variant in variants)]
    return [
        Varied(values=one, row=quality, pairs=seen)
        for one, quality, seen in zip(values, table, pairs, strict=True)
    ]


def words_of_values(values: Values) -> str:
    """`recover.steps 20, prune.select importance`."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def vary_table(rows: Sequence[Varied]) -> Table:
    """The rows as text."""
    keys = list(rows[-1].values)
    figures = ("NDCG@10", "delta", "AUC 4 v 0", "order", "|dp|")
    cells = []
    for one in rows:
        row = one.row
        named = [str(one.values.get(key, "-")) for key in keys]
        if not one.values:
            named[0] = row.name
        cells.append(
            [
                *named,
                *figures_of(row, ["parameters"]),
                str(one.pairs) if one.pairs else "-",
                *figures_of(row, figures),
            ]
        )
    return sizes_of(rows[0].row), (*keys, "parameters", "pairs seen", *figures), cells


def draw_variants(rows: Sequence[Varied]) -> bytes:
    """A PNG: NDCG@10 lost against the ranker before pruning, over the first key's values, a line
    for every combination of the others."""
    varied = [one for one in rows if one.values]
    key, *others = varied[0].values
    lines: dict[str, list[Varied]] = {}
    for one in varied:
        name = words_of_values({other: one.values[other] for other in others})
        lines.setdefault(name, []).append(one)
    sizes = [one.values[key] for one in varied]
    if all(isinstance(size, int | float) for size in sizes):
        sizes.sort()
        for line in lines.values():
            line.sort(key=lambda one: one.values[key])
    places = list(dict.fromkeys(map(str, sizes)))
    numbers = all(isinstance(size, int | float) and size > 0 for size in sizes)

    def draw(axes: Any) -> None:
        for name, line in lines.items():
            deltas = [one.row.delta_ndcg10 for one in line if one.row.delta_ndcg10 is not None]
            losses = [-delta for delta in deltas]
            at = [
                one.values[key] if numbers else places.index(str(one.values[key])) for one in line
            ]
            interval_bars(axes, at, losses, label=name or None)
        if not numbers:
            axes.set_xticks(range(len(places)), places)
        elif max(sizes) > WIDE * min(sizes):
            axes.set_xscale("log")
            axes.set_xticks(list(dict.fromkeys(sizes)), places)
            axes.minorticks_off()
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_xlabel(key)
        axes.set_ylabel("NDCG@10 lost against the ranker before pruning")
        if others:
            axes.legend(frameon=False)

    return plain_plot(draw)
