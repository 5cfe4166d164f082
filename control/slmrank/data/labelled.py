"""The labelled set on disk: jobs.jsonl and pairs.jsonl."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from slmrank.data.records import (
    SPLITS,
    Job,
    LabelledSet,
    Pair,
    Split,
    read_jobs,
    read_pairs,
    write_jsonl,
)
from slmrank.errors import DataError

JOBS_FILE = "jobs.jsonl"
PAIRS_FILE = "pairs.jsonl"


def write_labelled(target: Path, labelled: LabelledSet) -> dict[str, Any]:
    """Write the two files; returns figures with sizes and grade distributions.

    Raises DataError when a query occurs in two splits.
    """
    seen: dict[str, str] = {}
    for split, pairs in labelled.pairs.items():
        for pair in pairs:
            if seen.setdefault(pair.query, split) != split:
                raise DataError(f"query {pair.query!r} is in two splits", "change the seed")
    write_jsonl(target / JOBS_FILE, labelled.jobs.values())
    write_jsonl(target / PAIRS_FILE, (one for split in SPLITS for one in labelled.pairs[split]))
    return {
        "jobs": len(labelled.jobs),
        "pairs": {split: len(labelled.pairs[split]) for split in SPLITS},
        "queries": {split: len({p.query for p in labelled.pairs[split]}) for split in SPLITS},
        "grades": {
            split: dict(sorted(Counter(str(p.grade) for p in labelled.pairs[split]).items()))
            for split in SPLITS
        },
    }


def read_labelled(folder: Path) -> LabelledSet:
    """Read what `write_labelled` wrote."""
    jobs: dict[str, Job] = read_jobs(folder / JOBS_FILE)
    pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for pair in read_pairs(folder / PAIRS_FILE):
        if pair.split is None:
            raise DataError(f"{folder / PAIRS_FILE} holds a pair without split", "rebuild the data")
        pairs[pair.split].append(pair)
    return LabelledSet(jobs=jobs, pairs=pairs)
