"""The ladder: what each step from a plain language model to the served engine costs and gives.

One rung changes one thing against the rung before it. Quality is measured on the same queries for
every rung, the rate through a served repository (rungs before the first engine: the time that
transformers takes for the same prompts, sorted by length). Every number is an artifact, so that an
interrupted ladder goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.errors import SpecError
from slmrank.evaluate.page import figures_of, sizes_of
from slmrank.evaluate.table import QualityRow, ScoredRow, quality_table
from slmrank.html_page import Table
from slmrank.load.perf_result import known_percentile
from slmrank.load.session import NOT_MEASURED
from slmrank.model.checkpoint import CHECKPOINT_FOLDER
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.measure import open_bundle_session
from slmrank.pipeline.quality import scored_row
from slmrank.pipeline.score_step import Row, Text, score_step, timed_scores
from slmrank.pipeline.steps import Runner, Step
from slmrank.pyplot import new_figure, png_of
from slmrank.spec.reading import change_spec

QUALITY = ("prompt tokens", "NDCG@10", "delta", "order", "delta order", "AUC 4 v 0")
COLUMNS = ("rung", "parameters", "MB", *QUALITY, "items/s", "p95 ms", "times", "times engine")
OWN_ENGINE = "+ engine"
UNPRUNED: dict[str, Any] = {"prune": None, "recover": None}
LISTINGS = 3  # that end in a window of measurement
REFERENCE = 1  # the rung that ratios are against: transformers as people run it


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One variant of the bundle: the row that scores it, on summaries or full texts, and whether it
    is served."""

    name: str
    bundle: Bundle
    row: Row
    full_text: bool
    served: bool

    def scores(self, on: str) -> Step:
        own = self.bundle.spec.summarize
        text: Text = "full" if self.full_text else "summary"
        return score_step(self.bundle, self.row, text, on, own, whole_prompts=not self.served)


@dataclass(frozen=True, kw_only=True)
class LadderRow:
    """One rung's figures. `bytes` are those of weights or engine on disk; `p95_ms` is the latency
    of one listing, None where nothing is served; `ratio` is against transformers in bfloat16,
    `engine_ratio` against the engine on full texts."""

    name: str
    parameters: int | None
    bytes: int | None
    quality: QualityRow
    items_per_s: float | None
    p95_ms: float | None
    ratio: float | None
    engine_ratio: float | None


def plan_ladder(bundle: Bundle) -> list[Rung]:
    """The rungs that a spec has. Raises SpecError where it does not prune, or where its engine does
    not run on the machine that measures the first rungs."""
    spec = bundle.spec
    if spec.prune is None or spec.recover is None:
        raise SpecError(
            "the ladder needs sections prune and recover", "add them, or use `control evaluate`"
        )
    plain = bundle.target.unquantized
    if plain is None:
        raise SpecError(
            f"the ladder cannot be measured for engine.target {bundle.target.name}",
            "give a target whose engines run on this machine",
        )

    def variant(*changes: Mapping[str, Any]) -> Bundle:
        return Bundle(change_spec(spec, *changes)) if changes else bundle

    engine = {"engine": plain}
    whole: dict[str, Any] = {} if is_trained_trimmed(bundle) else {"trim": None}
    wide, narrow = ({"evaluate": {"dtype": one}} for one in ("float32", "bfloat16"))
    last = bundle.target.precision(spec.engine)
    rungs: list[tuple[str, tuple[Mapping[str, Any], ...], str, bool]] = [
        ("transformers float32, full text", (UNPRUNED, whole, wide), "finetuned", True),
        ("transformers bfloat16, full text", (UNPRUNED, whole, narrow), "finetuned", True),
        (OWN_ENGINE, (UNPRUNED, whole, engine), "engine", True),
        ("+ summaries", (UNPRUNED, whole, engine), "engine", False),
    ]
    if whole and spec.trim is not None:
        rungs.append((f"+ {spec.trim.tokens} tokens", (UNPRUNED, engine), "engine", False))
    rungs.append(("+ pruned and recovered", (engine,), "engine", False))
    if bundle.target.precision(variant(engine).spec.engine) != last:
        rungs.append((f"+ {last}", (), "engine", False))
    return [
        Rung(
            name=name,
            bundle=variant(*changes),
            row=row,  # type: ignore[arg-type]
            full_text=full,
            served=row == "engine",
        )
        for name, changes, row, full in rungs
    ]


def is_trained_trimmed(bundle: Bundle) -> bool:
    """Whether the ranker, or a summarizer that is given, was trained with a vocabulary that is cut:
    with the whole one it would be another one, hours away."""
    spec = bundle.spec
    trained = spec.finetune is not None and spec.finetune.steps > 0
    return spec.trim is not None and (trained or spec.summarize.fitted is not None)


def measure_ladder(
    rungs: Sequence[Rung], on: str, items: int, runner: Runner, report: Callable[[str], None]
) -> list[LadderRow]:
    """Quality of every rung first, then the rates, one server after the other."""
    scored: list[ScoredRow] = []
    made: list[Artifact] = []
    sizes: list[int | None] = []
    for rung in rungs:
        step = rung.scores(on)
        artifact = timed_scores(step, runner)
        made.append(artifact)
        sizes.append(_bytes(step, runner.store))
        text = "full" if rung.full_text else "summary"
        scored.append(scored_row(_named(rung, artifact), text, step, artifact, runner.store))
    table = quality_table(scored, scored[0], rungs[0].bundle.spec.evaluate)
    speeds: list[tuple[float | None, float | None]] = []
    for rung, artifact in zip(rungs, made, strict=True):
        if rung.served and _is_servable(rung, report):
            speeds.append(_served(rung, artifact, items, runner, report))
        else:
            speeds.append((artifact.figures["pairs"] / artifact.figures["scoring_s"], None))
    base = speeds[REFERENCE][0]
    [own] = [rate for rung, (rate, _) in zip(rungs, speeds, strict=True) if rung.name == OWN_ENGINE]
    return [
        LadderRow(
            name=quality.name,
            parameters=quality.parameters,
            bytes=size,
            quality=quality,
            items_per_s=rate,
            p95_ms=p95,
            ratio=rate / base if rate and base else None,
            engine_ratio=rate / own if rate and own else None,
        )
        for size, quality, (rate, p95) in zip(sizes, table, speeds, strict=True)
    ]


def _named(rung: Rung, artifact: Artifact) -> str:
    """The rung, and what it ran in where the processor has no products of its type."""
    ran = artifact.figures.get("dtype", "float32")
    asked = rung.bundle.spec.evaluate.dtype
    return rung.name if rung.served or ran == asked else f"{rung.name} (run in {ran})"


def _bytes(step: Step, store: ArtifactStore) -> int | None:
    """Of a rung's engine, or else of its weights; None where these were cleaned away."""
    held = step.inputs.get("engine")
    before = held or step.inputs["checkpoint"]
    folder = store.path(before.kind, before.key) / ("" if held else CHECKPOINT_FOLDER)
    weights = [one for one in folder.rglob("*") if one.suffix in (".bin", ".safetensors")]
    return sum(one.stat().st_size for one in weights) or None


def _whole(rung: Rung) -> Bundle:
    """The rung's bundle, whose repository takes texts as long as it scores."""
    spec = rung.bundle.spec
    tokens = max(spec.prompt.max_item_tokens, spec.evaluate.full_text_tokens)
    wide = {"prompt": {"max_item_tokens": tokens}}
    return Bundle(change_spec(spec, wide)) if rung.full_text else rung.bundle


def _is_servable(rung: Rung, report: Callable[[str], None]) -> bool:
    """Whether the rung's ranker can be served with its texts: the limit of items is part of what a
    ranker is trained as, and another one would be another ranker, hours away."""
    trained = rung.bundle.spec.finetune
    same = _whole(rung).finetuned.key == rung.bundle.finetuned.key
    if same or trained is None or not trained.steps:
        return True
    tokens = rung.bundle.spec.evaluate.full_text_tokens
    report(
        f"{rung.name}: its rate is the engine's in this process; with prompt.max_item_tokens "
        f"{tokens} from the start full texts could be served"
    )
    return False


def _served(
    rung: Rung, artifact: Artifact, items: int, runner: Runner, report: Callable[[str], None]
) -> tuple[float | None, float | None]:
    """(items/s, p95 ms) of listings of `items` jobs, one in flight: stored summaries, or texts as
    long as the full ones are on average."""
    own = rung.bundle.spec.sweep
    # A listing of full texts takes half a minute: in windows of a second none of them would end,
    # and a queue that is twice the objective would time out behind the one that warms up.
    listing_ms = 1000 * items * artifact.figures["scoring_s"] / artifact.figures["pairs"]
    change: dict[str, Any] = {
        "items": [items],
        "concurrency": [1],
        "rates": [],
        "window_ms": max(own.window_ms, round(LISTINGS * listing_ms)),
        "slo": {"latency_ms": max(own.slo.latency_ms, round(LISTINGS * listing_ms))},
    }
    if rung.full_text:
        mean = artifact.figures["item_tokens"] / artifact.figures["pairs"]
        change |= {"texts": "text", "tokens": [max(1, round(mean))]}
    else:
        change |= {"texts": "store"}
    unkept = {"repository": dict.fromkeys(NOT_MEASURED)}
    bundle = Bundle(change_spec(_whole(rung).spec, {"sweep": change}, unkept))

    session = open_bundle_session(bundle, runner.store, runner.watcher)
    points, _ = session.sweep(lambda _number, _total, point: report(f"{rung.name}: {point}"))
    figures = points[0].figures
    if "items_per_s" not in figures:
        report(f"{rung.name}: no rate ({figures['verdict']})\n{figures.get('reason', '')}")
        return None, None
    return figures["items_per_s"], known_percentile(figures, 95)


def ladder_table(rows: Sequence[LadderRow]) -> Table:
    """The rows as text."""
    cells = [
        [
            row.name,
            *figures_of(row.quality, ["parameters"]),
            f"{row.bytes / 1e6:.0f}" if row.bytes else "-",
            *figures_of(row.quality, QUALITY),
            f"{row.items_per_s:.3g}" if row.items_per_s else "-",
            f"{row.p95_ms:.0f}" if row.p95_ms else "-",
            *(f"{one:.1f}" if one else "-" for one in (row.ratio, row.engine_ratio)),
        ]
        for row in rows
    ]
    return sizes_of(rows[0].quality), COLUMNS, cells


def draw_ladder(rows: Sequence[LadderRow]) -> bytes:
    """A PNG: the rate of every rung on a logarithmic axis, and what it lost, with its interval."""
    figure = new_figure(figsize=(10.0, 0.6 * len(rows) + 1.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = list(range(len(rows)))[::-1]
    rates = [row.items_per_s or 0.0 for row in rows]
    left.barh(places, rates, color="#4477aa")
    left.set_xscale("log")
    left.set_yticks(places, [row.name for row in rows])
    left.set_xlabel("items/s")
    for place, rate in zip(places, rates, strict=True):
        left.annotate(f" {rate:.3g}", (rate, place), va="center", fontsize=8)
    right.axvline(0, color="#999999", linewidth=0.8, linestyle="--")
    for place, row in zip(places, rows, strict=True):
        delta = row.quality.delta_ndcg10
        if delta is not None:
            spread = [[delta.value - delta.low], [delta.high - delta.value]]
            right.errorbar([delta.value], [place], xerr=spread, fmt="o", color="#ee6677", capsize=3)
    right.set_xlabel("NDCG@10 against the first rung")
    right.locator_params(axis="x", nbins=5)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    return png_of(figure)
