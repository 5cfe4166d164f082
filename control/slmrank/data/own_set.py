"""A user's own jobs and pairs, as JSONL or Parquet, and how they are split. Records go from file to
file one at a time; what stays in memory are ids, and columns of numbers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from slmrank.data.labelled import JOBS_FILE, write_pairs
from slmrank.data.pair_columns import PairColumns
from slmrank.data.parquet import read_parquet
from slmrank.data.records import SPLITS, Job, Pair, Record, Split, read_jsonl, write_jsonl
from slmrank.data.words import same_query
from slmrank.errors import DataError
from slmrank.spec.data import OwnData

Progress = Callable[[int, str], None]
PROGRESS_EVERY = 10_000
LARGE = 0.02  # of the queries: what is larger is not left to chance
LEAST_DEALT = 20  # of fewer queries, one large group is chance


def write_own_set(
    spec: OwnData, target: Path, progress: Progress, *, only_tested: bool = False
) -> dict[str, Any]:
    """Check a user's jobs and pairs and write them as a labelled set; returns its figures.

    Pairs without a split go where another one of their query or group says, or are dealt by a hash
    of their query, however it is spelled, or, where pairs name groups, of what hangs together by
    them, so that no query and no group stands on both sides; with `only_tested` they are all
    tested. A judgment that is given again counts once. `progress` hears the number of records so
    far and what they are.

    Raises DataError for a broken record, a pair whose job is missing, or a query in two splits.
    """
    known: set[str] = set()
    write_jsonl(target / JOBS_FILE, _once(_records(spec, spec.jobs, Job, progress), spec, known))
    if not known:
        raise DataError(f"{spec.jobs} holds no jobs", "write one record per job")
    named: dict[str, Split | None] = {}
    together = _together(_noting(_records(spec, spec.pairs, Pair, progress), named))
    chosen = {together(name): split for name, split in named.items() if split is not None}
    free = Counter(hung for name in named if (hung := together(name)) not in chosen)
    dealt_whole = {} if only_tested else _deal_whole(free, spec)
    pairs = {split: PairColumns(split) for split in SPLITS}
    place: dict[str, Split] = {}
    dealt_together: Counter[str] = Counter()
    for number, pair in enumerate(_records(spec, spec.pairs, Pair, progress), start=1):
        if pair.job_id not in known:
            raise DataError(
                f"{spec.pairs}: pair {number} names job {pair.job_id!r}, which {spec.jobs} lacks",
                "add the job or remove the pair",
            )
        name = same_query(pair.query)
        hung = together(name)
        dealt: Split = "test" if only_tested else dealt_whole.get(hung) or _deal(hung, spec)
        split = pair.split or (dealt if only_tested else chosen.get(hung, dealt))
        if hung not in chosen and name not in place:
            dealt_together[hung] += 1
        if place.setdefault(name, split) != split:
            raise DataError(
                f"{spec.pairs}: query {pair.query!r} is in split {split!r} and {place[name]!r}",
                "keep all pairs of a query in one split",
            )
        pairs[split].append(pair)
    if not only_tested:
        _check_dealt(dealt_together, spec)
    for members in pairs.values():
        twice = members.contradicted()
        if twice is not None:
            raise DataError(
                f"{spec.pairs} judges job {twice.job_id!r} in two ways for query {twice.query!r}",
                "keep one of the judgments, or their mean as `target`",
            )
    _check_groups(pairs, spec.pairs)
    repeated = sum(members.drop_repeated() for members in pairs.values())
    needed: tuple[Split, ...] = ("test",) if only_tested else ("train", "test")
    for split in needed:
        if not len(pairs[split]):
            raise DataError(
                f"{spec.pairs} leaves no pairs for {split!r}",
                "give more queries, or set the pairs' split field",
            )
    return {"jobs": len(known), "repeated": repeated, **write_pairs(target, pairs.items())}


def _records(
    spec: OwnData, path: Path, model: type[Record], progress: Progress
) -> Iterator[Record]:
    read = read_parquet if spec.source == "parquet" else read_jsonl
    for number, record in enumerate(read(path, model), start=1):
        if number % PROGRESS_EVERY == 0:
            progress(number, f"{model.__name__.lower()}s")
        yield record


def _once(jobs: Iterable[Job], spec: OwnData, known: set[str]) -> Iterator[Job]:
    """The jobs, whose ids go into `known`. Raises DataError when two have one id, or
    one has no text."""
    for number, job in enumerate(jobs, start=1):
        if job.job_id in known:
            raise DataError(
                f"{spec.jobs}: job {number}: job_id {job.job_id!r} appears twice",
                "make job ids unique",
            )
        texts = (job.title, job.company, job.location, job.description)
        if not any(text.strip() for text in texts):
            raise DataError(
                f"{spec.jobs}: job {number}: {job.job_id!r} has no text: a server scores none",
                "give it a title or a description, or leave it out",
            )
        known.add(job.job_id)
        yield job


def _noting(pairs: Iterable[Pair], named: dict[str, Split | None]) -> Iterator[Pair]:
    """The pairs, whose queries go into `named`, with the split that they name."""
    for pair in pairs:
        name = same_query(pair.query)
        named[name] = named.get(name) or pair.split
        yield pair


def _together(pairs: Iterable[Pair]) -> Callable[[str], str]:
    """Query, as `same_query` names it -> the name of what hangs together with it: itself behind a
    `q`, or behind a `g` the first by name of the groups that its pairs share with other queries'
    pairs (a union of sets)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for pair in pairs:
        if pair.group is not None:
            query, group = root(f"q{same_query(pair.query)}"), root(f"g{pair.group}")
            # The smaller name leads, so that the order of the records decides nothing.
            parent[max(query, group)] = min(query, group)
    return lambda name: root(f"q{name}") if f"q{name}" in parent else f"q{name}"


def _check_dealt(dealt: Counter[str], spec: OwnData) -> None:
    """Raises DataError where what hangs together leaves too little for the splits."""
    (name, most), *_ = dealt.most_common(1) or [("", 0)]
    share = most / max(dealt.total(), 1)
    if dealt.total() >= LEAST_DEALT and share > 1 - spec.test_share / 2:
        raise DataError(
            f"{spec.pairs}: {share:.0%} of the queries hang together by the groups of their pairs "
            f"({name[1:]!r} is one): test_share {spec.test_share:g} cannot be parted from them",
            "name as group what all pairs of a query share (not each job's employer), or give the "
            "pairs' split",
        )


def _check_groups(pairs: dict[Split, PairColumns], path: Path) -> None:
    """Raises DataError when splits that the pairs themselves name part a group."""
    seen: dict[str, Split] = {}
    for split, members in pairs.items():
        for group in members.groups():
            if seen.setdefault(group, split) != split:
                raise DataError(
                    f"{path}: group {group!r} is in split {split!r} and {seen[group]!r}",
                    "keep a group in one split, or leave the split field out",
                )


def _deal_whole(queries: Counter[str], spec: OwnData) -> dict[str, Split]:
    """The split of each of what hangs together, where some of it is large (`queries` by name): by
    chance alone a group of 60 % of the queries may be all that is tested, and of six none. In the
    order of their hashes they fill test, then dev, as far as their shares; one more than half over
    is left to the next. Empty where all are small: then a group stays where it is, whatever comes
    to the others."""
    total = queries.total()
    if not total or max(queries.values()) <= LARGE * total:
        return {}
    places: dict[str, Split] = dict.fromkeys(queries, "train")
    left = sorted(queries, key=lambda name: _place(name, spec))
    shares: tuple[tuple[Split, float], ...] = (("test", spec.test_share), ("dev", spec.dev_share))
    for split, share in shares:
        wanted, held = share * total, 0
        for name in left:
            if held + queries[name] / 2 <= wanted:
                places[name] = split
                held += queries[name]
        left = [name for name in left if places[name] == "train"]
        if not held and wanted and len(left) > 1:
            least = min(left, key=lambda name: (queries[name], _place(name, spec)))
            places[least] = split
            left.remove(least)
    return places


def _place(name: str, spec: OwnData) -> float:
    """Where the hash of a name, without its first letter, lies in [0, 1)."""
    digest = hashlib.sha256(f"{spec.seed}:{name[1:]}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _deal(name: str, spec: OwnData) -> Split:
    place = _place(name, spec)
    if place < spec.test_share:
        return "test"
    return "dev" if place < spec.test_share + spec.dev_share else "train"
