"""A user's own jobs and pairs, as JSONL or Parquet, and how they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from slmrank.data.parquet import read_parquet
from slmrank.data.records import (
    SPLITS,
    Job,
    LabelledSet,
    Pair,
    Split,
    jobs_by_id,
    read_jobs,
    read_pairs,
)
from slmrank.errors import DataError
from slmrank.spec.data import OwnData


def read_own_set(spec: OwnData, *, only_tested: bool = False) -> LabelledSet:
    """A user's jobs and pairs. Pairs without a split are dealt by a hash of their query or, where
    pairs name groups, of what hangs together by them, so that no query and no group stands on both
    sides; with `only_tested` they are all tested.

    Raises DataError for a broken record, a pair whose job is missing, or a query in two splits.
    """
    if spec.source == "parquet":
        jobs = jobs_by_id(read_parquet(spec.jobs, Job), spec.jobs)
        listed = list(read_parquet(spec.pairs, Pair))
    else:
        jobs, listed = read_jobs(spec.jobs), read_pairs(spec.pairs)
    together = _together(listed)
    pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    place: dict[str, Split] = {}
    for number, pair in enumerate(listed, start=1):
        if pair.job_id not in jobs:
            raise DataError(
                f"{spec.pairs}: pair {number} names job {pair.job_id!r}, which {spec.jobs} lacks",
                "add the job or remove the pair",
            )
        dealt: Split = "test" if only_tested else _deal(together[pair.query], spec)
        split = pair.split or dealt
        if place.setdefault(pair.query, split) != split:
            raise DataError(
                f"{spec.pairs}: query {pair.query!r} is in split {split!r} and "
                f"{place[pair.query]!r}",
                "keep all pairs of a query in one split",
            )
        pairs[split].append(pair.model_copy(update={"split": split}))
    _check_groups(pairs, spec.pairs)
    needed: tuple[Split, ...] = ("test",) if only_tested else ("train", "test")
    for split in needed:
        if not pairs[split]:
            raise DataError(
                f"{spec.pairs} leaves no pairs for {split!r}",
                "give more queries, or set the pairs' split field",
            )
    return LabelledSet(jobs=jobs, pairs=pairs)


def _together(pairs: Sequence[Pair]) -> dict[str, str]:
    """Query -> the name of what hangs together with it: itself, or the first by name of the groups
    that its pairs share with other queries' pairs (a union of sets)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for pair in pairs:
        query = root(f"q{pair.query}")
        if pair.group is not None:
            group = root(f"g{pair.group}")
            # The smaller name leads, so that the order of the records decides nothing.
            parent[max(query, group)] = min(query, group)
    return {pair.query: root(f"q{pair.query}")[1:] for pair in pairs}


def _check_groups(pairs: dict[Split, list[Pair]], path: Path) -> None:
    """Raises DataError when splits that the pairs themselves name part a group."""
    seen: dict[str, Split] = {}
    for split, members in pairs.items():
        for pair in members:
            if pair.group is not None and seen.setdefault(pair.group, split) != split:
                raise DataError(
                    f"{path}: group {pair.group!r} is in split {split!r} and {seen[pair.group]!r}",
                    "keep a group in one split, or leave the split field out",
                )


def _deal(name: str, spec: OwnData) -> Split:
    digest = hashlib.sha256(f"{spec.seed}:{name}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < spec.test_share:
        return "test"
    return "dev" if place < spec.test_share + spec.dev_share else "train"
