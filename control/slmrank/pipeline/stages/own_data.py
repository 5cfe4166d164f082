"""Make `data` from a user's own jobs and pairs."""

from __future__ import annotations

from slmrank.data.own_set import write_own_set
from slmrank.pipeline.steps import Making
from slmrank.spec.data import OwnData


def make_own_data(spec: OwnData, making: Making, *, only_tested: bool = False) -> None:
    figures = write_own_set(
        spec,
        making.draft.path,
        lambda done, what: making.watcher.progress(done, 0, f"{done:,} {what}"),
        only_tested=only_tested,
    )
    making.draft.figures.update(figures)
