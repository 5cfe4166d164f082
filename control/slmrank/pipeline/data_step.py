"""The step that makes jobs and pairs, of any source: a bundle's own data, or a named set."""

from __future__ import annotations

from functools import partial
from typing import Any

from slmrank.data.packaged import ONET_TASKS
from slmrank.data.parquet import parquet_files
from slmrank.data.records import Job, Pair
from slmrank.pipeline.local_files import file_hash, folder_hashes
from slmrank.pipeline.stages.onet_data import make_onet_data
from slmrank.pipeline.stages.own_data import make_own_data
from slmrank.pipeline.stages.title_data import make_title_data
from slmrank.pipeline.steps import Step
from slmrank.spec.data import DataSpec, OnetDatabaseData, OwnData

STAGES = "slmrank.pipeline.stages"
TABLES = ("*.txt", "*.txt.gz")
RELEASE = (
    "put the text files of a release of the O*NET database there (onetcenter.org/database.html; "
    "the rankers in the box: 27.0)"
)


def data_step(spec: DataSpec, bundle: str, *, tested_set: str | None = None) -> Step:
    """Jobs and pairs of a source. Of a `tested_set` (its name), pairs of your own that name no
    split are all tested: nothing is trained on a set that is there to be evaluated on."""
    settings: dict[str, Any] = spec.settings()
    only_tested = tested_set is not None
    if only_tested:
        settings["set"] = tested_set
    make: Any
    if isinstance(spec, OwnData):
        for name in ("jobs", "pairs"):
            path = getattr(spec, name)
            hashes: list[Any] = (
                [file_hash(path)]
                if spec.source != "parquet"
                else [
                    # What its folders say is content as well.
                    [file_hash(file), named] if named else file_hash(file)
                    for file, named in parquet_files(path, Job if name == "jobs" else Pair)
                ]
            )
            settings[name] = hashes[0] if len(hashes) == 1 else hashes
        make, stage = partial(make_own_data, spec, only_tested=only_tested), "own_data"
    elif isinstance(spec, OnetDatabaseData):
        settings |= {"folder": folder_hashes(spec.folder, TABLES, RELEASE), "held_back": None}
        if spec.held_back is not None:
            settings["held_back"] = file_hash(spec.held_back)
        make, stage = partial(make_title_data, spec), "title_data"
    else:
        settings["table"] = file_hash(spec.table) if spec.table else ONET_TASKS.identity
        make, stage = partial(make_onet_data, spec), "onet_data"
    return Step(
        kind="data",
        title="labelled data",
        settings=settings,
        make=make,
        code=(f"{STAGES}.{stage}",),
        bundle=bundle,
        again=lambda: data_step(spec, bundle, tested_set=tested_set).settings,
    )
