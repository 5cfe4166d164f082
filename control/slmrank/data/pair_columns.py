"""Judged pairs as columns: some 25 bytes a pair, where an object takes 600."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from slmrank.data.records import MAX_GRADE, Pair, Split


class Names:
    """Distinct texts by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str) -> int:
        found = self._number.setdefault(text, len(self.texts))
        if found == len(self.texts):
            self.texts.append(text)
        return found


class PairColumns(Sequence[Pair]):
    """Pairs of one split, read-only but for `append`; a pair is made when it is asked for. Splits
    may share the names of their jobs."""

    def __init__(self, split: Split, job_ids: Names | None = None) -> None:
        self.split = split
        self._queries, self._kinds, self._groups = Names(), Names(), Names()
        self._job_ids = job_ids or Names()
        self._query, self._job = array("i"), array("i")
        self._grade, self._target = array("b"), array("d")
        self._kind, self._group = array("i"), array("i")

    def append(self, pair: Pair) -> None:
        # Prompts join white space: what differs in it alone is one query.
        self._query.append(self._queries.number(" ".join(pair.query.split())))
        self._job.append(self._job_ids.number(pair.job_id))
        self._grade.append(pair.grade)
        self._target.append(math.nan if pair.target is None else pair.target)
        self._kind.append(-1 if pair.kind is None else self._kinds.number(pair.kind))
        self._group.append(-1 if pair.group is None else self._groups.number(pair.group))

    def groups(self) -> list[str]:
        """The distinct groups."""
        return self._groups.texts

    def contradicted(self) -> Pair | None:
        """A pair that says of its query and its job another thing than an earlier one."""
        if not len(self):
            return None
        both, order = self._sorted()
        grade, target = np.frombuffer(self._grade, np.int8), np.frombuffer(self._target)
        says = np.where(np.isnan(target), grade / MAX_GRADE, target)[order]
        # Grades too, where both have a target: one alone may be nothing but the nearest to it.
        exact = ~np.isnan(target[order])
        graded = exact[1:] & exact[:-1] & (np.diff(grade[order]) != 0)
        other = (np.diff(both) == 0) & ((np.diff(says) != 0) | graded)
        return self._at(int(order[1:][other].min())) if other.any() else None

    def drop_repeated(self) -> int:
        """Keep the first of the pairs that have one query and one job; returns how many went."""
        if not len(self):
            return 0
        both, order = self._sorted()
        kept = np.ones(len(self), dtype=bool)
        kept[order[1:][np.diff(both) == 0]] = False
        if not kept.all():
            for name, column in vars(self).items():
                if isinstance(column, array):
                    rest = np.array(column)[kept]
                    setattr(self, name, array(column.typecode, rest.tobytes()))
        return int((~kept).sum())

    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
        """Query and job of every pair as one number, sorted, and the places that they come from;
        of equal ones the first comes first."""
        queries, jobs = np.frombuffer(self._query, np.int32), np.frombuffer(self._job, np.int32)
        both = queries.astype(np.int64) << 32 | jobs
        order = np.argsort(both, kind="stable")
        return both[order], order

    @overload
    def __getitem__(self, place: int) -> Pair: ...

    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...

    def __getitem__(self, place: int | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return [self._at(one) for one in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"pair {place} of {len(self)}")
        return self._at(place)

    def __len__(self) -> int:
        return len(self._grade)

    def __iter__(self) -> Iterator[Pair]:
        return (self._at(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def _at(self, place: int) -> Pair:
        kind, group, target = self._kind[place], self._group[place], self._target[place]
        values: dict[str, Any] = {
            "query": self._queries.texts[self._query[place]],
            "job_id": self._job_ids.texts[self._job[place]],
            "grade": self._grade[place],
            "target": None if math.isnan(target) else target,
            "split": self.split,
            "kind": None if kind < 0 else self._kinds.texts[kind],
            "group": None if group < 0 else self._groups.texts[group],
        }
        return Pair.model_construct(**values)
