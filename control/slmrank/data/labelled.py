"""The labelled set on disk: jobs.jsonl and pairs.jsonl. Neither is ever whole in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmrank.data.job_file import JobFile
from slmrank.data.pair_columns import Names, PairColumns
from slmrank.data.records import SPLITS, LabelledSet, Pair, Split, read_jsonl, write_jsonl
from slmrank.errors import DataError

JOBS_FILE = "jobs.jsonl"
PAIRS_FILE = "pairs.jsonl"


def write_labelled(target: Path, labelled: LabelledSet) -> dict[str, Any]:
    """Write the two files; returns figures with sizes and grade distributions.

    Raises DataError when a query occurs in two splits.
    """
    write_jsonl(target / JOBS_FILE, labelled.jobs.values())
    return {"jobs": len(labelled.jobs), **write_pairs(target, labelled.pairs.items())}


def write_pairs(target: Path, pairs: Iterable[tuple[Split, Iterable[Pair]]]) -> dict[str, Any]:
    """Write `pairs.jsonl`, splits in the order of SPLITS; see `write_labelled`."""
    seen: dict[str, Split] = {}
    sizes: dict[Split, Counter[str]] = {}
    given = dict(pairs)

    def counted() -> Iterable[Pair]:
        for split in SPLITS:
            sizes[split] = Counter()
            for pair in given[split]:
                if seen.setdefault(pair.query, split) != split:
                    raise DataError(f"query {pair.query!r} is in two splits", "change the seed")
                sizes[split][str(pair.grade)] += 1
                yield pair

    write_jsonl(target / PAIRS_FILE, counted())
    queries = Counter(seen.values())
    return {
        "pairs": {split: sizes[split].total() for split in SPLITS},
        "queries": {split: queries[split] for split in SPLITS},
        "grades": {split: dict(sorted(sizes[split].items())) for split in SPLITS},
    }


def read_labelled(folder: Path) -> LabelledSet:
    """Read what `write_labelled` wrote."""
    job_ids = Names()
    pairs = {split: PairColumns(split, job_ids) for split in SPLITS}
    for pair in read_jsonl(folder / PAIRS_FILE, Pair):
        if pair.split is None:
            raise DataError(f"{folder / PAIRS_FILE} holds a pair without split", "rebuild the data")
        pairs[pair.split].append(pair)
    return LabelledSet(jobs=JobFile(folder / JOBS_FILE), pairs=pairs)
