"""Make `data` from a user's own jobs and pairs."""

from __future__ import annotations

from slmrank.data.labelled import write_labelled
from slmrank.data.own_set import read_own_set
from slmrank.pipeline.steps import Making
from slmrank.spec.data import OwnData


def make_own_data(spec: OwnData, making: Making, *, only_tested: bool = False) -> None:
    labelled = read_own_set(spec, only_tested=only_tested)
    making.draft.figures.update(write_labelled(making.draft.path, labelled))
