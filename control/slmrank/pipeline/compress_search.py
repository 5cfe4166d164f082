"""The cheapest combination of layers, neurons, summary budget and precision within a loss.

The reference is the unpruned model on full texts or on the spec's summaries, whichever ranks
better: a ranker that was trained on summaries is no judge of what full texts hold. Pruned models
are compared before recovery on single axes, and after it where they are candidates. Every number is
an artifact: a search that was interrupted goes on.

On the bundle's own data the dev queries choose, and the winner is checked on the test queries. On a
named set its test queries choose, and nothing is left to check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slmrank.artifacts import Artifact
from slmrank.compress.search import (
    Axes,
    Choice,
    Predicted,
    Uneven,
    combinations,
    fit_cost,
    front,
    one_by_one,
    predict,
    shortlist,
    survivors,
    uneven_widths,
    whole,
    work_of,
)
from slmrank.errors import ParityError, SpecError
from slmrank.evaluate.metrics import Interval, align, mean_ndcg, ndcg_interval, resamples
from slmrank.evaluate.table import read_scores
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, Geometry, allowed_kv_heads, read_geometry
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.score_step import OWN, Row, score_step, timed_scores
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.steps import Runner, Step
from slmrank.spec.reading import change_spec

SHRINKING = (0.9, 0.8)
LEAST_BUDGET = 8  # what summarize.budget_tokens takes
SIZES = ("layers", "intermediate_size", "kv_heads")  # what pruning changes
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate that was recovered with so many steps: its loss of NDCG@10 against the reference,
    paired, and what an item costs: predicted, or measured in the engine at the end."""

    choice: Choice
    predicted_loss: float
    steps: int
    loss: Interval
    seconds: float
    in_engine: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search did: all predictions, those tried, and the winner, where there is one, with
    its loss on queries that chose nothing, where there are such."""

    predicted: list[Predicted]
    tried: list[Tried]
    best: Tried | None
    checked: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """A bundle with its axes. `steps`: of the full recovery; `rounds`: each halves the candidates
    and doubles their steps."""

    bundle: Bundle
    on: str
    axes: Axes
    geometry: Geometry
    max_loss: float
    candidates: int
    rounds: int
    steps: int
    runner: Runner
    report: Report

    def run(self) -> Found:
        """Measure the axes, predict, recover the shortlist by halves, and check the last ones in
        the engine."""
        reference = self._reference()
        start = whole(self.axes)
        losses = {}
        for choice in one_by_one(self.axes):
            try:
                scores = self._score(choice, 0, in_engine=self._by_engine(choice))
            except ParityError as error:  # its engine would be refused in any combination
                self.report(f"{choice.words}: {error.message}")
                losses[choice] = math.inf
                continue
            losses[choice] = self._loss(scores, reference).value
            self.report(f"{choice.words}: {-losses[choice]:+.4f} NDCG@10, not recovered")
        own = self._loss(self._score(start, 0, in_engine=False), reference).value
        predicted = predict(self.axes, losses, self._works(), self._costs(), own)
        compressed = [one for one in front(predicted) if one.choice != start]
        running = shortlist(compressed, self.candidates)
        hoped = {one.choice: one.loss for one in running}
        tried: list[Tried] = []
        for number in range(1, self.rounds + 1):
            steps = max(1, self.steps >> (self.rounds - number))
            last = number == self.rounds
            after = []
            for one in running:
                try:
                    artifact = self._score(one.choice, steps, in_engine=last)
                except ParityError as error:
                    self.report(f"{one.choice.words}: {error.message}")
                    continue
                trained = steps if self.changes(one.choice, steps)["recover"] else 0
                loss = self._loss(artifact, reference)
                seconds = _seconds(artifact) if last else one.seconds
                tried.append(
                    Tried(
                        choice=one.choice,
                        predicted_loss=hoped[one.choice],
                        steps=trained,
                        loss=loss,
                        seconds=seconds,
                        in_engine=last,
                    )
                )
                self.report(f"{one.choice.words}: {-loss.value:+.4f} after {trained} steps")
                after.append(replace(one, loss=loss.value, seconds=seconds))
            running = survivors(after, self.max_loss) if after else []
        good = [one for one in tried if one.in_engine and one.loss.value <= self.max_loss]
        best = min(good, key=lambda one: one.seconds, default=None)
        checked = None if best is None else self._checked(best.choice, reference)
        return Found(predicted=predicted, tried=tried, best=best, checked=checked)

    def changes(self, choice: Choice, steps: int) -> dict[str, Any]:
        """What a choice changes of the spec but its budget; without steps it is not recovered."""
        spec, start = self.bundle.spec, whole(self.axes)
        sizes = {name: getattr(choice, name) for name in SIZES}
        changes: dict[str, Any] = {"prune": None, "recover": None}
        if any(sizes[name] != getattr(start, name) for name in SIZES):
            recover = {"adapter": None, "steps": steps} if steps else None
            if choice.kv_heads == start.kv_heads:
                sizes["kv_heads"] = None
            # One that is not recovered, or shortly, is pruned at once.
            stages = min(spec.prune.stages, max(steps, 1)) if spec.prune is not None else 1
            whole_pruning = {"recorded": None, "stages": stages}
            changes = {"prune": {**sizes, **whole_pruning}, "recover": recover}
        if choice.precision != self.bundle.target.precision(spec.engine):
            changes["engine"] = dict(self.bundle.target.unquantized or {})
        return changes

    def variant(self, choice: Choice, steps: int) -> Bundle:
        """The bundle of a choice. The ranker before pruning stays the spec's own."""
        return Bundle(change_spec(self.bundle.spec, self.changes(choice, steps)))

    def plan(self) -> list[Step]:
        """What is measured before the candidates are known."""
        return [
            *self._references(),
            *(self._step(one, 0, in_engine=self._by_engine(one)) for one in one_by_one(self.axes)),
        ]

    def uneven(self) -> list[Uneven]:
        """What widths by layer would give, for every width that was measured alone."""
        start = whole(self.axes)
        errors: dict[int, list[float]] = {start.intermediate_size: [0.0] * start.layers}
        for width in self.axes["intermediate_size"][1:]:
            bundle = self.variant(replace(start, intermediate_size=width), 0)
            pruned = self.runner.run(bundle.pruned)
            errors[width] = pruned.figures["relative_error_per_layer"]
        return [uneven_widths(errors, width) for width in list(errors)[1:-1]]

    def measured(self, found: Found) -> list[Step]:
        """The steps behind what was found, the winner's first."""
        best = found.best
        winner = [] if best is None else [self._step(best.choice, best.steps, in_engine=True)]
        return [*winner, *self.plan()]

    def _checked(self, choice: Choice, reference: Artifact) -> Interval | None:
        """The loss of a choice, as recovered in the last round, on the bundle's test queries, from
        the same reference."""
        if self.on != OWN:
            return None
        spec = change_spec(self.bundle.spec, {"evaluate": {"split": "test"}})
        asked = replace(self, bundle=Bundle(spec))
        scores = asked._score(choice, self.steps, in_engine=True)
        full, summaries = asked._references()
        step = full if reference.manifest["settings"]["full_text"] else summaries
        loss = asked._loss(scores, self.runner.run(step))
        self.report(
            f"{choice.words}: {-loss.value:+.4f} on test queries, which chose nothing"
            + (f": more than {self.max_loss}" if loss.value > self.max_loss else "")
        )
        return loss

    def _by_engine(self, choice: Choice) -> bool:
        return choice.precision != whole(self.axes).precision

    def _step(self, choice: Choice, steps: int, *, in_engine: bool) -> Step:
        bundle = self.variant(choice, steps)
        row: Row = "finetuned"
        if bundle.spec.prune is not None:
            row = "recovered" if steps else "pruned"
        row = "engine" if in_engine else row
        return self._score_step(bundle, row, choice.budget_tokens)

    def _score(self, choice: Choice, steps: int, *, in_engine: bool) -> Artifact:
        step = self._step(choice, steps, in_engine=in_engine)
        if in_engine:
            return timed_scores(step, self.runner)
        return self.runner.run(step)

    def _score_step(self, bundle: Bundle, row: Row, budget: int, full: bool = False) -> Step:
        summarize = bundle.spec.summarize.model_copy(update={"budget_tokens": budget})
        return score_step(bundle, row, "full" if full else "summary", self.on, summarize)

    def _references(self) -> list[Step]:
        start = whole(self.axes)
        plain = self.variant(start, 0)
        return [
            self._score_step(plain, "finetuned", start.budget_tokens, full)
            for full in (True, False)
        ]

    def _reference(self) -> Artifact:
        both = [self.runner.run(step) for step in self._references()]
        best = max(both, key=lambda one: mean_ndcg(read_scores(one.path / SCORES_FILE)))
        self.report("reference: " + ("full texts" if best is both[0] else "the spec's summaries"))
        return best

    def _loss(self, artifact: Artifact, reference: Artifact) -> Interval:
        base = read_scores(reference.path / SCORES_FILE)
        own = align(read_scores(artifact.path / SCORES_FILE), base)
        evaluate = self.bundle.spec.evaluate
        draws = resamples(len(base), evaluate.bootstrap, evaluate.seed)
        return -ndcg_interval(own, draws, base)

    def _item_tokens(self, budget: int) -> float:
        figures = self._score(replace(whole(self.axes), budget_tokens=budget), 0, in_engine=False)
        return float(figures.figures["item_tokens"] / figures.figures["pairs"])

    def _works(self) -> dict[Choice, float]:
        tokens = {budget: self._item_tokens(budget) for budget in self.axes["budget_tokens"]}
        every = combinations(self.axes)
        return {one: work_of(one, self.geometry, tokens[one.budget_tokens]) for one in every}

    def _costs(self) -> dict[str, tuple[float, float]]:
        """A line for each precision, through the longest and the shortest summaries; no end of it
        for one whose engine is refused."""
        budgets = self.axes["budget_tokens"]
        costs = {}
        for precision in self.axes["precision"]:
            points = []
            for budget in dict.fromkeys((budgets[0], budgets[-1])):
                choice = replace(whole(self.axes), precision=precision, budget_tokens=budget)
                try:
                    measured = self._score(choice, 0, in_engine=True)
                except ParityError:
                    break
                work = work_of(choice, self.geometry, self._item_tokens(budget))
                points.append((work, _seconds(measured)))
            costs[precision] = fit_cost(points) if points else (math.inf, 0.0)
        return costs


def require_searchable(bundle: Bundle) -> None:
    """Raises SpecError for a spec that does not prune and recover, and for a target whose engines
    do not run here."""
    spec = bundle.spec
    if spec.prune is None or spec.recover is None:
        raise SpecError(
            "the search needs sections prune and recover", "add them; their sizes are searched"
        )
    if bundle.target.unquantized is None:
        raise SpecError(
            f"the search cannot measure engine.target {bundle.target.name} here",
            "give a target whose engines run on this machine",
        )


def open_axes(
    bundle: Bundle, geometry: Geometry, given: Mapping[str, list[int]]
) -> dict[str, list[Any]]:
    """The values of every axis: those given, or a fifth less in two steps; the model's own size and
    the spec's own budget come first.

    Raises SpecError for a value above the model's.
    """
    spec = bundle.spec
    sizes = {
        "layers": (geometry.layers, 1, 1),
        "intermediate_size": (geometry.intermediate_size, 64, 64),
        "kv_heads": (geometry.kv_heads, 1, 1),
        "budget_tokens": (spec.summarize.budget_tokens, 1, LEAST_BUDGET),
    }
    heads = allowed_kv_heads(
        geometry.family, geometry.hidden_size, geometry.heads, geometry.kv_heads
    )
    axes: dict[str, list[Any]] = {}
    for name, (most, multiple, low) in sizes.items():
        smaller = (int(most * share) // multiple * multiple for share in SHRINKING)
        if name == "kv_heads":
            smaller = (max(one for one in heads if one <= max(few, 1)) for few in smaller)
        values = given.get(name) or [one for one in smaller if one >= low]
        wrong = [one for one in values if not low <= one <= most or one % multiple]
        if wrong:
            raise SpecError(
                f"{name} {wrong[0]} is not one to {most} in steps of {multiple}, from {low} on",
                "give values up to the model's own",
            )
        if name == "kv_heads" and not set(values) <= set(heads):
            raise SpecError(
                f"kv_heads {', '.join(map(str, values))}: the query heads of a Llama model must "
                f"divide its hidden size {geometry.hidden_size}",
                f"choose among {', '.join(map(str, heads))}",
            )
        axes[name] = sorted({most, *values}, reverse=True)
    plain = Bundle(change_spec(spec, {"engine": dict(bundle.target.unquantized or {})}))
    named = (bundle.target.precision(one.spec.engine) for one in (plain, bundle))
    axes["precision"] = list(dict.fromkeys(named))
    return axes


def geometry_of(bundle: Bundle, runner: Runner) -> Geometry:
    """Of the model before pruning, which is made where it is not yet."""
    return read_geometry(runner.run(bundle.finetuned).path / CHECKPOINT_FOLDER)


def _seconds(artifact: Artifact) -> float:
    return float(artifact.figures["scoring_s"] / artifact.figures["pairs"])
