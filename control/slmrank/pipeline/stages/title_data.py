"""Make `data` from a release of the O*NET database."""

from __future__ import annotations

from slmrank.data.labelled import write_labelled
from slmrank.data.leakage import words_in_titles
from slmrank.data.onet_database import read_database, read_held_back
from slmrank.data.packaged import ONET_TASKS
from slmrank.data.title_set import build_title_set
from slmrank.pipeline.steps import Making
from slmrank.spec.data import OnetDatabaseData


def make_title_data(spec: OnetDatabaseData, making: Making) -> None:
    occupations = read_database(spec.folder)
    held_back = read_held_back(spec.held_back, occupations) if spec.held_back else None
    labelled = build_title_set(occupations, held_back, spec)
    figures = making.draft.figures
    figures.update(write_labelled(making.draft.path, labelled))
    figures["query_words_in_title"] = words_in_titles(labelled)
    figures["held_back"] = len({one.code for one in occupations} & (held_back or set()))
    figures["attribution"] = ONET_TASKS.attribution
