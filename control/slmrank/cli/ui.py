"""`control ui`: a page in the browser over one bundle, or two side by side."""

from __future__ import annotations

import contextlib
from itertools import islice
from pathlib import Path

import click

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.cli.listening import GATEWAY, listen
from slmrank.cli.options import PathType, artifacts_option, open_spec, set_option
from slmrank.client.aio import AsyncRankClient
from slmrank.data.bm25 import Bm25
from slmrank.data.labelled import read_labelled
from slmrank.data.records import LabelledSet
from slmrank.errors import MissingDependencyError, needs
from slmrank.load.figures import draw
from slmrank.load.record import read_record, record_path
from slmrank.repository.generate import read_identity
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.store.job_store import JobStore
from slmrank.store.registry import open_store

EXAMPLES = 8


@click.command("ui")
@click.argument("specs", type=PathType, nargs=-1, required=True)
@set_option
@click.option("--address", default="127.0.0.1", help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0: a free port")
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="gRPC address of a running server, one for each spec; without it servers are started",
)
@click.option(
    "--jobs",
    "most_jobs",
    type=click.IntRange(1),
    default=20_000,
    help="jobs of the first spec's data that the page's own BM25 looks through",
)
@artifacts_option
def ui_command(
    specs: tuple[Path, ...],
    overrides: tuple[str, ...],
    address: str,
    port: int,
    urls: tuple[str, ...],
    most_jobs: int,
    artifacts: Path,
) -> None:
    """Look at a ranker: type a query, see the ranked jobs with scores, moves against BM25 and the
    times of each stage, and each job's full text with what its summary keeps. With two SPECS both
    rank the same candidates side by side; the jobs are those of the first.

    What is missing of a spec is made; `--set` changes the last spec, so that one file is enough to
    compare two settings. The page has no login: it listens on this machine unless told otherwise.

    \b
    Example:
      control ui build/demo.yaml
      control ui build/demo.yaml build/demo.yaml --set engine.openvino.precision=bfloat16
    """
    if len(specs) > 2:
        raise click.UsageError(f"{len(specs)} specs given, the page shows one or two")
    if urls and len(urls) != len(specs):
        raise click.UsageError(f"{len(urls)} --url for {len(specs)} specs: give one for each")
    with needs(*GATEWAY):
        from slmrank.gateway.app import Limits, make_app
        from slmrank.gateway.ui import Shelf, Side, for_this_machine
    given = [*[() for _ in specs[:-1]], overrides]
    opened = [
        open_spec(path, changes, None, artifacts)
        for path, changes in zip(specs, given, strict=True)
    ]
    repositories = [one.run(one.bundle.repository) for one in opened]
    labelled = read_labelled(opened[0].run(opened[0].bundle.data).path)
    jobs = dict(islice(labelled.jobs.items(), most_jobs))
    with contextlib.ExitStack() as stack:
        started = urls or [
            stack.enter_context(Server(repository.path, ANY_PORTS)).url
            for repository in repositories
        ]
        stores: dict[Path, JobStore] = {}  # LMDB opens a folder once in a process
        sides = []
        for number, (one, url) in enumerate(zip(opened, started, strict=True)):
            path = one.run(one.bundle.summaries).path
            if path not in stores:
                reading = open_store(one.bundle.spec.summarize.store, path)
                stores[path] = stack.enter_context(contextlib.closing(reading))
            name = one.bundle.spec.name
            if len({each.bundle.spec.name for each in opened}) < len(opened):
                name = f"{name} {'AB'[number]}"
            sides.append(Side(name=name, client=AsyncRankClient(url), summaries=stores[path]))
        shelf = Shelf(
            sides=sides,
            jobs=jobs,
            index=Bm25(jobs),
            examples=_examples(labelled),
            plots=_plots(opened[0].store, repositories[0], urls[0] if urls else None),
        )
        app = make_app(sides[0].client, Limits(), shelf)
        listen(
            for_this_machine(app) if address in ("127.0.0.1", "::1", "localhost") else app,
            (address, port),
            lambda where: f"open http://{where}/ui",
            answer_s=sides[0].client.timeout_s,
        )


def _examples(labelled: LabelledSet) -> list[str]:
    """A few queries that no training saw."""
    queries = dict.fromkeys(pair.query for pair in labelled.pairs["test"])
    return list(islice(queries, EXAMPLES))


def _plots(store: ArtifactStore, repository: Artifact, url: str | None) -> dict[str, bytes]:
    """The plots of the last sweep of what is served, here or at `url`; none without one, or without
    matplotlib."""
    path = record_path(store.root, read_identity(repository.path), url)
    if not path.is_file():
        return {}
    try:
        return draw(read_record(path))
    except MissingDependencyError:
        return {}
