"""Measure points: each once, finished ones found, every result kept with its evidence."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore, artifact_key
from slmrank.code_hash import code_hash
from slmrank.errors import SweepError
from slmrank.hashing import hash_value
from slmrank.load.binary import PerfAnalyzer, find_perf_analyzer
from slmrank.load.evidence import (
    CONFIG_FILE,
    COUNTS_FILE,
    METRICS_FILE,
    joined_requests,
    load_average,
    read_counts,
    require_ready,
    scrape_metrics,
    served_config,
    wait_quiet,
)
from slmrank.load.perf_analyzer import Measuring, run_point
from slmrank.load.perf_result import FINAL
from slmrank.load.points import Load, Point, PointInput
from slmrank.machine.host import host_facts
from slmrank.spec.load import SweepSpec

KIND = "point"
DRIFT_REPEAT = 1_000_000
WARM_UP = Measuring(spec=SweepSpec(window_ms=300, trials=3, stability_percent=100_000))
MODULES = {KIND: "slmrank.load.run"}  # of other kinds: their own name
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server to measure; `metrics_url` None: its metrics page is not known."""

    url: str
    metrics_url: str | None = None


OpenServer = Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, by what: the server's description of itself, the versions of what runs it
    (another runtime, another machine, or another server where one is given, is another
    measurement), and the tool."""

    identity: Mapping[str, str]
    versions: Mapping[str, str]
    tool: str

    def inputs(self, given: PointInput) -> dict[str, str]:
        return {"served": identity_key(self.identity), "data": given.hash}

    def key(self, kind: str, settings: Mapping[str, Any], given: PointInput) -> str:
        """The key of a measurement of this subject."""
        decisive = {**settings, "perf_analyzer": self.tool, "versions": dict(self.versions)}
        return artifact_key(kind, decisive, self.inputs(given), code_of(kind))


def code_of(kind: str) -> str:
    """Hash of the code that makes measurements of a kind: a search is more than its points."""
    return code_hash(MODULES.get(kind, f"slmrank.load.{kind}"))


def identity_key(identity: Mapping[str, str]) -> str:
    """The served configuration as one hash; another engine or another setting differs."""
    return hash_value(dict(identity))[:16]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One point with its input and how it is measured."""

    point: Point
    given: PointInput
    measuring: Measuring

    @property
    def settings(self) -> dict[str, Any]:
        closed = self.point.load.kind == "concurrency"
        return {**self.measuring.settings(closed_loop=closed), "point": asdict(self.point)}


@dataclass(kw_only=True)
class Bench:
    """A running server and the tool, ready to measure; points go into the store. `again`: also what
    was measured before."""

    store: ArtifactStore
    subject: Subject
    analyzer: PerfAnalyzer
    running: Running
    again: bool = False
    host: dict[str, Any] = field(default_factory=host_facts)

    def lineage(
        self, settings: Mapping[str, Any], given: PointInput, kind: str = KIND, **host: Any
    ) -> dict[str, Any]:
        """What the manifest of a measurement of a kind says beside its figures."""
        return {
            "settings": settings,
            "inputs": {**self.subject.inputs(given), "identity": dict(self.subject.identity)},
            "code": code_of(kind),
            "versions": {**self.subject.versions, "perf_analyzer": self.analyzer.version},
            "host": {**self.host, **host},
        }

    def warm_up(self, task: Task) -> None:
        """Run one point and throw it away: the first requests after a start compile kernels."""
        point = replace(task.point, load=Load(kind="concurrency", level=1))
        # Nothing of it is used, so a tool that finds no figure in it is no fault.
        with (
            tempfile.TemporaryDirectory(prefix="slmrank-warm-") as folder,
            contextlib.suppress(SweepError),
        ):
            url = self.running.url
            run_point(self.analyzer, url, point, WARM_UP, task.given.data, Path(folder))
        require_ready(self.running.url)

    def measure(self, task: Task, *, again: bool = False) -> Artifact:
        """Measure one point, or find it. A tool that fails beside a healthy server gives a point
        with the verdict `failed`; raises SweepError when the server is gone."""
        key = self.subject.key(KIND, task.settings, task.given)
        with self.store.lock(KIND, key):
            found = find_point(self.store, self.subject, task)
            if found is None or again or self.again:
                self._measure(task, key)
                found = self.store.read(KIND, key)
        return found

    def _measure(self, task: Task, key: str) -> None:
        given, url = task.given, self.running.url
        require_ready(url)
        before = read_counts(url)
        lineage = self.lineage(task.settings, given, load_average=load_average())
        with self.store.create(KIND, key, lineage) as draft:
            try:
                outcome = run_point(
                    self.analyzer, url, task.point, task.measuring, given.data, draft.path
                )
                draft.figures.update(outcome.as_dict())
                draft.figures["command"] = list(outcome.command)
                if outcome.verdict == "overload" and outcome.measured is None:
                    wait_quiet(url)
            except SweepError as error:
                require_ready(url)
                draft.figures.update(
                    {"verdict": "failed", "stable": False}
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


@contextlib.contextmanager
def open_bench(
    store: ArtifactStore, subject: Subject, server: OpenServer, *, again: bool = False
) -> Any:
    """A bench over a server that is opened for it."""
    with tempfile.TemporaryDirectory(prefix="slmrank-sweep-") as work, server() as running:
        require_ready(running.url)
        analyzer = find_perf_analyzer(Path(work))
        yield Bench(store=store, subject=subject, analyzer=analyzer, running=running, again=again)


def find_point(store: ArtifactStore, subject: Subject, task: Task) -> Artifact | None:
    """The finished measurement of a point, None when there is none that would not be repeated."""
    found = store.find(KIND, subject.key(KIND, task.settings, task.given))
    return None if found is None or found.figures["verdict"] not in FINAL else found


def pending_tasks(tasks: Sequence[Task], store: ArtifactStore, subject: Subject) -> list[Task]:
    """The tasks that have no final result yet."""
    return [task for task in tasks if find_point(store, subject, task) is None]


def run_sweep(
    tasks: Sequence[Task],
    store: ArtifactStore,
    subject: Subject,
    server: OpenServer,
    progress: Progress,
    *,
    again: bool = False,
) -> list[Artifact]:
    """Measure what is pending, or all `again` (the server is started only then); returns all points
    in order.

    The first closed-loop point is measured again at the end, as a drift check. Raises SweepError
    when the server does not answer; what was measured stays.
    """
    pending = list(tasks) if again else pending_tasks(tasks, store, subject)
    if pending:
        with open_bench(store, subject, server, again=again) as bench:
            bench.warm_up(pending[0])
            for number, task in enumerate(pending, start=1):
                progress(number, len(pending), task.point.name)
                bench.measure(task)
            # Another run of an open loop has other arrivals: only a closed loop repeats itself.
            closed = [task for task in pending if task.point.load.kind == "concurrency"]
            if len(pending) > 1 and closed:
                progress(len(pending), len(pending), "drift check: the first point again")
                first = replace(closed[0], point=replace(closed[0].point, repeat=DRIFT_REPEAT))
                bench.measure(first, again=True)
    keys = [subject.key(KIND, task.settings, task.given) for task in tasks]
    found = [store.find(KIND, key) for key in keys]
    return [artifact for artifact in found if artifact is not None]


def estimate_s(tasks: Sequence[Task]) -> float:
    """Seconds that points take when each is stable after three windows."""
    windows = (task.measuring.window_for(task.point) for task in tasks)
    return sum(3 * 1.2 * window / 1000 + 3 for window in windows)
