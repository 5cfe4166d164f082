"""The labelled set on disk: jobs.jsonl and pairs.jsonl, from O*NET or from the user's own files."""

from __future__ import annotations

import hashlib
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
from slmrank.spec.data import JsonlData

JOBS_FILE = "jobs.jsonl"
PAIRS_FILE = "pairs.jsonl"


def read_own_set(spec: JsonlData, *, only_tested: bool = False) -> LabelledSet:
    """A user's jobs and pairs. Pairs without a split are dealt by a hash of their query, so that
    one query never stands on both sides; with `only_tested` they are all tested.

    Raises DataError for a broken line, a pair whose job is missing, or a query in two splits.
    """
    jobs_path, pairs_path = spec.jobs, spec.pairs
    jobs = read_jobs(jobs_path)
    pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    place: dict[str, Split] = {}
    for number, pair in enumerate(read_pairs(pairs_path), start=1):
        if pair.job_id not in jobs:
            raise DataError(
                f"{pairs_path}: pair {number} names job {pair.job_id!r}, which {jobs_path} lacks",
                "add the job or remove the pair",
            )
        dealt: Split = "test" if only_tested else _deal(pair.query, spec)
        split = pair.split or dealt
        if place.setdefault(pair.query, split) != split:
            raise DataError(
                f"{pairs_path}: query {pair.query!r} is in split {split!r} and "
                f"{place[pair.query]!r}",
                "keep all pairs of a query in one split",
            )
        pairs[split].append(pair.model_copy(update={"split": split}))
    needed: tuple[Split, ...] = ("test",) if only_tested else ("train", "test")
    for split in needed:
        if not pairs[split]:
            raise DataError(
                f"{pairs_path} leaves no pairs for {split!r}",
                "give more queries, or set the pairs' split field",
            )
    return LabelledSet(jobs=jobs, pairs=pairs)


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


def _deal(query: str, spec: JsonlData) -> Split:
    digest = hashlib.sha256(f"{spec.seed}:{query}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < spec.test_share:
        return "test"
    return "dev" if place < spec.test_share + spec.dev_share else "train"
