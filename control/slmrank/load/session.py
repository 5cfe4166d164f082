"""A measuring session over one repository: which points, drawn from what, on which server.

`sweep` and `slo` are what the verbs of these names do; the command line only parses and prints.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.client.client import RankClient
from slmrank.data.records import LabelledSet
from slmrank.errors import SweepError
from slmrank.load.binary import find_perf_analyzer
from slmrank.load.evidence import require_ready, scrape_metrics
from slmrank.load.perf_analyzer import Measuring
from slmrank.load.points import Load, PointInput, Pool, make_input, plan_points
from slmrank.load.record import write_record
from slmrank.load.run import (
    OpenServer,
    Progress,
    Running,
    Subject,
    Task,
    open_bench,
    pending_tasks,
    run_sweep,
)
from slmrank.load.slo import find_slo, known_slo
from slmrank.machine.facts import installed_version
from slmrank.machine.host import what_computes
from slmrank.model.checkpoint import open_ranker_file
from slmrank.repository.generate import read_identity
from slmrank.serving.ports import reach_directly
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.load import SweepSpec
from slmrank.store.registry import open_reader
from slmrank.triton.config import PREPARE


@dataclass(frozen=True, kw_only=True)
class Session:
    """`subject` is what is measured, `server` how to get at it, `pool` what requests are drawn
    from. `again`: what was measured before counts as not measured."""

    spec: SweepSpec
    subject: Subject
    pool: Pool
    store: ArtifactStore
    server: OpenServer
    again: bool = False

    @cached_property
    def tasks(self) -> list[Task]:
        """The points of the spec's grid. Raises SweepError for one that cannot be measured."""
        loads = [Load(kind="concurrency", level=level) for level in self.spec.concurrency]
        loads += [Load(kind="rate", level=rate) for rate in self.spec.rates]
        return self._tasks(loads)

    @cached_property
    def cells(self) -> list[Task]:
        """One task for each kind of request, whose load the search for a rate chooses."""
        return self._tasks([Load(kind="concurrency", level=1)])

    @property
    def pending(self) -> list[Task]:
        """The points that have no final result yet."""
        if self.again:
            return self.tasks
        return pending_tasks(self.tasks, self.store, self.subject)

    @property
    def searched(self) -> list[Artifact | None]:
        """What was found for each cell; None: it is still to be searched."""
        if self.again:
            return [None] * len(self.cells)
        return [known_slo(self.store, self.subject, task, self.spec.slo) for task in self.cells]

    def sweep(self, progress: Progress) -> tuple[list[Artifact], Path]:
        """Measure every point; returns them in order, and the record's file."""
        points = run_sweep(
            self.tasks, self.store, self.subject, self.server, progress, again=self.again
        )
        return points, write_record(self.store, self.subject)

    def slo(self, report: Callable[[str], None]) -> tuple[list[Artifact], Path]:
        """Search the rate at the objective of every cell; returns what was found, and the
        record's file. The server is started only when a cell was not searched before."""
        slo = self.spec.slo
        found = [artifact for artifact in self.searched if artifact is not None]
        if len(found) < len(self.cells):
            with open_bench(self.store, self.subject, self.server, again=self.again) as bench:
                bench.warm_up(self.cells[0])
                found = [find_slo(bench, task, slo, report) for task in self.cells]
        return found, write_record(self.store, self.subject)

    def _tasks(self, loads: Sequence[Load]) -> list[Task]:
        spec = self.spec
        measuring = Measuring(spec=spec, min_requests=spec.slo.needed_requests)
        tokens: Sequence[int | None] = [None] if spec.texts == "store" else spec.tokens
        points = plan_points(spec.items, tokens, loads, spec.query_tokens or [None])
        # Loads of one cell share its input.
        inputs: dict[str, PointInput] = {}
        tasks = []
        for point in points:
            if point.cell not in inputs:
                inputs[point.cell] = make_input(point, self.pool)
            tasks.append(Task(point=point, given=inputs[point.cell], measuring=measuring))
        return tasks


# What makes a server answer without scoring: its rates are no rates of scored pairs.
NOT_MEASURED = {
    "cache": "a sweep repeats its pairs",
    "depth": "under load it ranks a part of each request",
}


def open_session(
    spec: BundleSpec,
    repository: Path,
    labelled: LabelledSet,
    store: ArtifactStore,
    *,
    runtime: Sequence[str] = (),
    url: str | None = None,
    metrics_url: str | None = None,
) -> Session:
    """The session of a repository, on a server of its own or on the running one at `url`.

    `runtime` names distributions whose versions decide the speed of a server here. Raises
    SweepError when a running server serves another tokenizer or template.
    """
    identity = read_identity(repository)
    if url is not None:
        host = url.rpartition(":")[0].strip("[]")
        if host in ("localhost", "::1") or host.startswith("127."):
            reach_directly(host)
        # Another server of the same engine is another measurement.
        identity, versions = _identity_of(url, identity), {"server": url}
        if metrics_url is not None and scrape_metrics(metrics_url) is None:
            raise SweepError(
                f"there is no metrics page at {metrics_url}",
                "give the whole address, such as http://HOST:8002/metrics, or leave it out",
            )
    else:
        versions = {name: installed_version(name) or "none" for name in runtime}
        versions |= what_computes()
    for setting, what in NOT_MEASURED.items():
        if setting in identity:
            raise SweepError(
                f"the server has repository.{setting}, and {what}: the rate would be none of the "
                "engine's",
                f"measure a repository without it: --set repository.{setting}=null",
            )
    folder = repository / PREPARE / "1"
    stored = None
    if spec.sweep.texts == "store":
        stored = open_reader(spec.summarize.store, folder).ids_many
    pool = Pool(
        jobs=labelled.jobs,
        queries=sorted({pair.query for pair in labelled.pairs["test"]}),
        encoder=open_ranker_file(folder).encoder(),
        requests=spec.sweep.requests,
        seed=spec.sweep.seed,
        stored=stored,
    )
    with tempfile.TemporaryDirectory(prefix="slmrank-tool-") as work:
        tool = find_perf_analyzer(Path(work)).version

    @contextlib.contextmanager
    def server() -> Iterator[Running]:
        if url is not None:
            yield Running(url=url, metrics_url=metrics_url)
            return
        with Server(repository, ANY_PORTS, measured=True) as own:
            yield running(own)

    return Session(
        spec=spec.sweep,
        subject=Subject(identity=identity, versions=versions, tool=tool),
        pool=pool,
        store=store,
        server=server,
    )


def running(server: Server) -> Running:
    """A server that was started here, as something to measure."""
    metrics = f"http://{server.address}:{server.ports.metrics}/metrics"
    return Running(url=server.url, metrics_url=metrics)


def _identity_of(url: str, wanted: dict[str, str]) -> dict[str, str]:
    require_ready(url)
    with RankClient(url) as client:
        served = client.describe()
    for name in ("tokenizer_hash", "prompt_hash", "max_item_tokens"):
        if served.get(name) != wanted[name]:
            raise SweepError(
                f"{url} serves {name} {served.get(name)}, the spec's repository has "
                f"{wanted[name]}: texts could not be cut to length",
                "give the spec that the server was made from",
            )
    return served
