"""Make `data` from the O*NET tables."""

from __future__ import annotations

from slmrank.data.example_set import build_example_set
from slmrank.data.labelled import write_labelled
from slmrank.data.leakage import words_in_titles
from slmrank.data.onet import read_occupations
from slmrank.data.packaged import ONET_TASKS, downloads, fetch
from slmrank.pipeline.steps import Making
from slmrank.spec.data import OnetData


def make_onet_data(spec: OnetData, making: Making) -> None:
    table = spec.table or fetch(ONET_TASKS, downloads(making.store.root))
    occupations = read_occupations(table)
    if spec.occupations is not None:
        occupations = occupations.thinned(spec.occupations)
    labelled = build_example_set(occupations, spec)
    making.draft.figures.update(write_labelled(making.draft.path, labelled))
    making.draft.figures["query_words_in_title"] = words_in_titles(labelled)
    making.draft.figures["attribution"] = ONET_TASKS.attribution
