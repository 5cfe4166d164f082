"""Measuring sessions of a bundle, and the search over its repository's settings."""

from __future__ import annotations

from collections.abc import Callable

from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.load.session import NOT_MEASURED, Session, open_session
from slmrank.load.slo import unheld
from slmrank.load.tune import Candidate, Settings
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import Watcher, run
from slmrank.spec.reading import change_spec


def open_bundle_session(
    bundle: Bundle,
    store: ArtifactStore,
    watcher: Watcher | None = None,
    *,
    url: str | None = None,
    metrics_url: str | None = None,
) -> Session:
    """The session of a bundle's repository, which is made when missing."""
    repository = run(bundle.repository, store, watcher)
    labelled = read_labelled(run(bundle.data, store, watcher).path)
    return open_session(
        bundle.spec,
        repository.path,
        labelled,
        store,
        runtime=bundle.target.runtime,
        url=url,
        metrics_url=metrics_url,
    )


def measure_settings(
    bundle: Bundle,
    settings: Settings,
    store: ArtifactStore,
    watcher: Watcher,
    report: Callable[[str], None],
) -> Candidate:
    """Search the rate at the objective of a repository with these settings, over all cells; without
    what makes a server answer without scoring."""
    scoring = {**settings, **dict.fromkeys(NOT_MEASURED)}
    tried = Bundle(change_spec(bundle.spec, {"repository": scoring}))
    found, _ = open_bundle_session(tried, store, watcher).slo(report)
    cells = [artifact.figures for artifact in found]
    if any(cell["items_per_s"] is None for cell in cells):
        return Candidate(settings=settings, items_per_s=None, low=None, high=None, unheld=None)
    return Candidate(
        settings=settings,
        items_per_s=sum(cell["items_per_s"] for cell in cells),
        low=sum(cell["items_per_s_range"][0] for cell in cells),
        high=sum(cell["items_per_s_range"][1] for cell in cells),
        unheld=sum(unheld(cell) for cell in cells),
    )
