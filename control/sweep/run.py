"""Run a sweep: every point once, finished points skipped, each result kept with its evidence."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from control.artifacts import Artifact, ArtifactStore
from control.data.records import Job
from control.ranker.prompt import PromptEncoder
from control.sweep.binary import PerfAnalyzer, find_perf_analyzer
from control.sweep.perf_analyzer import LoadSettings, command_line, run_point
from control.sweep.points import Point, PointInput, make_input, point_key

KIND = "point"
Progress = Callable[[int, int, str], None]


class Running(Protocol):
    """A server to measure."""

    @property
    def url(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Points with their inputs and keys; `identity` is what the server says it serves."""

    points: tuple[Point, ...]
    inputs: tuple[PointInput, ...]
    keys: tuple[str, ...]
    settings: LoadSettings
    identity: dict[str, str]

    def pending(self, store: ArtifactStore) -> list[int]:
        """Indices of the points that have no stable result yet."""
        found = [store.find(KIND, key) for key in self.keys]
        return [
            index for index, one in enumerate(found) if one is None or not one.figures["stable"]
        ]

    def estimate_s(self, store: ArtifactStore) -> float:
        """Seconds that the pending points take when each is stable after three windows."""
        return len(self.pending(store)) * (3 * 1.2 * self.settings.window_ms / 1000 + 3)


def plan_sweep(
    points: Sequence[Point],
    settings: LoadSettings,
    identity: dict[str, str],
    jobs: Sequence[Job],
    queries: Sequence[str],
    encoder: PromptEncoder,
    *,
    requests: int,
    seed: int,
) -> SweepPlan:
    """Build inputs and keys. Raises SweepError for a point that cannot be measured as asked."""
    inputs = tuple(make_input(one, jobs, queries, encoder, requests, seed) for one in points)
    keys = tuple(
        point_key(one, identity_key(identity), asdict(settings), given.hash)
        for one, given in zip(points, inputs, strict=True)
    )
    return SweepPlan(
        points=tuple(points), inputs=inputs, keys=keys, settings=settings, identity=identity
    )


def identity_key(identity: dict[str, str]) -> str:
    """The served configuration as one text; another engine or another setting differs."""
    return "|".join(f"{name}={value}" for name, value in sorted(identity.items()))


def run_sweep(
    plan: SweepPlan,
    store: ArtifactStore,
    server: Callable[[], AbstractContextManager[Running]],
    progress: Progress,
) -> list[Artifact]:
    """Measure what is pending (the server is started only then); returns all points in order."""
    pending = plan.pending(store)
    if pending:
        with tempfile.TemporaryDirectory(prefix="slmrank-sweep-") as work, server() as running:
            analyzer = find_perf_analyzer(Path(work))
            for number, index in enumerate(pending, start=1):
                progress(number, len(pending), plan.points[index].name)
                _measure(plan, index, store, analyzer, running.url)
    found = [store.find(KIND, key) for key in plan.keys]
    return [artifact for artifact in found if artifact is not None]


def _measure(
    plan: SweepPlan, index: int, store: ArtifactStore, analyzer: PerfAnalyzer, url: str
) -> None:
    point, given, key = plan.points[index], plan.inputs[index], plan.keys[index]
    lineage: dict[str, Any] = {
        "settings": {**asdict(plan.settings), "point": asdict(point)},
        "inputs": {"served": plan.identity, "data": given.hash},
        "versions": {"perf_analyzer": analyzer.version},
        "command": command_line(analyzer, url, point, plan.settings)[1:],
        "host": {"machine": platform.machine(), "processor": _processor()},
    }
    with store.lock(KIND, key), store.create(KIND, key, lineage) as draft:
        measured = run_point(analyzer, url, point, plan.settings, given.data, draft.path)
        unstable = {"stable": False, "trusted": False}
        draft.figures.update(measured.as_dict() if measured is not None else unstable)
        draft.figures["mean_item_tokens"] = given.mean_item_tokens
        draft.figures["mean_query_tokens"] = given.mean_query_tokens


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0] if names else 'unknown'}, {len(names)} cores"
