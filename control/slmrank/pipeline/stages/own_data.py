"""Make `data` from a user's own jobs and pairs."""

from __future__ import annotations

from slmrank.data.labelled import read_own_set, write_labelled
from slmrank.pipeline.steps import Making
from slmrank.spec.data import JsonlData


def make_own_data(spec: JsonlData, making: Making, *, only_tested: bool = False) -> None:
    labelled = read_own_set(spec, only_tested=only_tested)
    making.draft.figures.update(write_labelled(making.draft.path, labelled))
