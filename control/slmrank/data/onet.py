"""O*NET occupations: titles, task statements and the detailed work activities behind them.

Reads the table `Task_DWA.csv` (UTF-8 with BOM; one row per task and activity).
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slmrank.errors import DataError

COLUMNS = ("O*NET-SOC Code", "Title", "Task ID", "Task", "DWA ID", "DWA Title")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One duty of an occupation and the ids of the work activities that it stands for."""

    text: str
    activities: tuple[str, ...]


@dataclass(kw_only=True)
class Occupation:
    """One O*NET-SOC occupation, for example 25-2031.00 Secondary School Teachers."""

    code: str
    title: str
    tasks: tuple[Task, ...]

    @cached_property
    def activities(self) -> frozenset[str]:
        return frozenset(activity for task in self.tasks for activity in task.activities)


@dataclass(frozen=True, kw_only=True)
class Occupations:
    """The whole table: occupations in code order, activity titles and activity rarity."""

    occupations: tuple[Occupation, ...]
    activity_titles: dict[str, str]
    rarity: dict[str, float]  # inverse document frequency over occupations, nats

    def thinned(self, count: int) -> Occupations:
        """At most `count` occupations, evenly spaced in code order so that every branch stays."""
        total = len(self.occupations)
        if count >= total:
            return self
        kept = tuple(self.occupations[index * total // count] for index in range(count))
        return Occupations(
            occupations=kept, activity_titles=self.activity_titles, rarity=self.rarity
        )


def _readable(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    """The rows of the table. Raises DataError for what is none of text, or lacks a column."""
    try:
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"{path} lacks the columns {', '.join(missing)}", "use Task_DWA.csv")
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", "save it as UTF-8, with commas") from error


def read_occupations(path: Path) -> Occupations:
    """Read the table. Raises DataError when a column is missing or no row is left."""
    tasks: dict[str, dict[str, tuple[str, list[str]]]] = {}
    titles: dict[str, str] = {}
    activity_titles: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        for row in _readable(rows, path):
            values = [row[name] for name in COLUMNS]
            if None in values:
                raise DataError(f"{path}:{rows.line_num} has too few columns", "use Task_DWA.csv")
            code, title, task_id, text, activity, activity_title = values
            titles[code] = title
            activity_titles[activity] = activity_title.rstrip(".")
            tasks.setdefault(code, {}).setdefault(task_id, (text, []))[1].append(activity)
    if not tasks:
        raise DataError(f"{path} holds no rows", "use Task_DWA.csv")
    occupations = tuple(
        Occupation(
            code=code,
            title=titles[code],
            tasks=tuple(
                Task(text=text, activities=tuple(activities))
                for text, activities in tasks[code].values()
            ),
        )
        for code in sorted(tasks)
    )
    return Occupations(
        occupations=occupations, activity_titles=activity_titles, rarity=_rarity(occupations)
    )


def _rarity(occupations: tuple[Occupation, ...]) -> dict[str, float]:
    counts = Counter(activity for one in occupations for activity in one.activities)
    return {name: math.log(len(occupations) / count) for name, count in counts.items()}
