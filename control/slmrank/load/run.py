"""Run a sweep: every point once, finished points skipped, each result kept with its evidence."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.errors import SweepError
from slmrank.load.binary import PerfAnalyzer, find_perf_analyzer
from slmrank.load.evidence import (
    CONFIG_FILE,
    COUNTS_FILE,
    METRICS_FILE,
    host_facts,
    joined_requests,
    load_average,
    read_counts,
    require_ready,
    scrape_metrics,
    served_config,
)
from slmrank.load.perf_analyzer import FINAL, LoadSettings, run_point
from slmrank.load.points import Load, Point, PointInput, Pool, make_input, point_key

KIND = "point"
DRIFT_REPEAT = 1_000_000
WARM_UP = LoadSettings(window_ms=300, trials=3, stability_percent=100_000)
Progress = Callable[[int, int, str], None]


class Running(Protocol):
    """A server to measure; `metrics_url` None: its metrics page is not known."""

    @property
    def url(self) -> str: ...

    @property
    def metrics_url(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Points with their inputs; `identity` is what the server says it serves."""

    points: tuple[Point, ...]
    inputs: tuple[PointInput, ...]
    settings: LoadSettings
    identity: dict[str, str]
    tool: str

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The identity of each point's measurement: engine, tool, settings and input."""
        settings = {**asdict(self.settings), "perf_analyzer": self.tool}
        return tuple(
            point_key(one, identity_key(self.identity), settings, given.hash)
            for one, given in zip(self.points, self.inputs, strict=True)
        )

    def pending(self, store: ArtifactStore) -> list[int]:
        """Indices of the points that have no final result yet."""
        found = [store.find(KIND, key) for key in self.keys]
        return [
            index
            for index, one in enumerate(found)
            if one is None or one.figures["verdict"] not in FINAL
        ]

    def estimate_s(self, store: ArtifactStore) -> float:
        """Seconds that the pending points take when each is stable after three windows."""
        windows = (self.settings.window_for(self.points[index]) for index in self.pending(store))
        return sum(3 * 1.2 * window / 1000 + 3 for window in windows)

    def only(self, points: Sequence[Point], inputs: Sequence[PointInput]) -> SweepPlan:
        """The same plan over other points."""
        return replace(self, points=tuple(points), inputs=tuple(inputs))


def plan_sweep(
    points: Sequence[Point],
    settings: LoadSettings,
    identity: dict[str, str],
    pool: Pool,
    tool: str,
) -> SweepPlan:
    """Build the inputs. Raises SweepError for a point that cannot be measured as asked."""
    # Loads of one cell share its input.
    cells = {point.cell: point for point in points}
    made = {cell: make_input(point, pool) for cell, point in cells.items()}
    return SweepPlan(
        points=tuple(points),
        inputs=tuple(made[point.cell] for point in points),
        settings=settings,
        identity=identity,
        tool=tool,
    )


def identity_key(identity: dict[str, str]) -> str:
    """The served configuration as one text; another engine or another setting differs."""
    return "|".join(f"{name}={value}" for name, value in sorted(identity.items()))


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Finished points in order, and the drift check where one was made: the first point measured
    again at the end, as a ratio of throughputs."""

    points: list[Artifact]
    drift: float | None


class Bench:
    """A running server and the tool, ready to measure; points go into the store."""

    def __init__(self, store: ArtifactStore, analyzer: PerfAnalyzer, running: Running) -> None:
        self.store = store
        self.analyzer = analyzer
        self.running = running
        self.seen: list[Artifact] = []
        self._host = host_facts()

    def warm_up(self, plan: SweepPlan, index: int) -> None:
        """Run one point and throw it away: the first requests after a start compile kernels."""
        point = replace(plan.points[index], load=Load(kind="concurrency", level=1))
        with tempfile.TemporaryDirectory(prefix="slmrank-warm-") as folder:
            data = plan.inputs[index].data
            # Nothing of it is used, so a tool that finds no figure in it is no fault.
            with contextlib.suppress(SweepError):
                run_point(self.analyzer, self.running.url, point, WARM_UP, data, Path(folder))
        require_ready(self.running.url)

    def measure(self, plan: SweepPlan, index: int, *, again: bool = False) -> Artifact:
        """Measure one point, or find it. A tool that fails beside a healthy server gives a point
        with the verdict `failed`; raises SweepError when the server is gone."""
        key = plan.keys[index]
        with self.store.lock(KIND, key):
            found = self.store.find(KIND, key)
            if found is None or found.figures["verdict"] not in FINAL or again:
                self._measure(plan, index, key)
                found = self.store.find(KIND, key)
        assert found is not None
        self.seen.append(found)
        return found

    def _measure(self, plan: SweepPlan, index: int, key: str) -> None:
        point, given, url = plan.points[index], plan.inputs[index], self.running.url
        require_ready(url)
        before = read_counts(url)
        lineage: dict[str, Any] = {
            "settings": {**asdict(plan.settings), "point": asdict(point)},
            "inputs": {"served": plan.identity, "data": given.hash},
            "versions": {"perf_analyzer": self.analyzer.version},
            "host": {**self._host, "load_average": load_average()},
        }
        with self.store.create(KIND, key, lineage) as draft:
            try:
                outcome = run_point(
                    self.analyzer, url, point, plan.settings, given.data, draft.path
                )
                draft.figures.update(outcome.as_dict())
                draft.figures["command"] = list(outcome.command)
            except SweepError as error:
                require_ready(url)
                draft.figures.update(
                    {"verdict": "failed", "stable": False, "trusted": False}
                    | {"reason": error.message, "warnings": []}
                )
            after = read_counts(url)
            draft.figures["requests_per_execution"] = joined_requests(before, after)
            draft.figures["mean_item_tokens"] = given.mean_item_tokens
            draft.figures["max_item_tokens"] = given.max_item_tokens
            draft.figures["mean_query_tokens"] = given.mean_query_tokens
            counts = {"before": before, "after": after}
            (draft.path / COUNTS_FILE).write_text(json.dumps(counts, indent=1) + "\n")
            config = json.dumps(served_config(url), indent=1)
            (draft.path / CONFIG_FILE).write_text(config + "\n")
            metrics = scrape_metrics(self.running.metrics_url)
            if metrics is not None:
                (draft.path / METRICS_FILE).write_text(metrics)


def run_sweep(
    plan: SweepPlan,
    store: ArtifactStore,
    server: Callable[[], AbstractContextManager[Running]],
    progress: Progress,
) -> Swept:
    """Measure what is pending (the server is started only then); returns all points in order.

    Raises SweepError when the server does not answer; what was measured stays.
    """
    pending = plan.pending(store)
    drift = None
    if pending:
        with tempfile.TemporaryDirectory(prefix="slmrank-sweep-") as work, server() as running:
            require_ready(running.url)
            bench = Bench(store, find_perf_analyzer(Path(work)), running)
            bench.warm_up(plan, pending[0])
            for number, index in enumerate(pending, start=1):
                progress(number, len(pending), plan.points[index].name)
                bench.measure(plan, index)
            drift = _drift(plan, bench, pending, progress)
    found = [store.find(KIND, key) for key in plan.keys]
    return Swept(points=[artifact for artifact in found if artifact is not None], drift=drift)


def _drift(plan: SweepPlan, bench: Bench, pending: list[int], progress: Progress) -> float | None:
    """Throughput of the first measured closed-loop point at the end, over that at the beginning."""
    # Another run of an open loop has other arrivals: only a closed loop repeats itself.
    closed = [one for one in pending if plan.points[one].load.kind == "concurrency"]
    if len(pending) < 2 or not closed:
        return None
    first = bench.store.find(KIND, plan.keys[closed[0]])
    if first is None or not first.figures["stable"]:
        return None
    again = replace(plan.points[closed[0]], repeat=DRIFT_REPEAT)
    progress(len(pending), len(pending), "drift check: the first point again")
    last = bench.measure(plan.only([again], [plan.inputs[closed[0]]]), 0, again=True)
    if not last.figures["stable"]:
        return None
    ratio: float = last.figures["requests_per_s"] / first.figures["requests_per_s"]
    return ratio
