"""A release of the O*NET database in text form: tab-separated tables, plain or gzip.

File names are read in either of the two forms that are about: `Alternate Titles.txt` as it is
downloaded, `alternate_titles.txt.gz` as it is often kept.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from slmrank.errors import DataError

CODE = "O*NET-SOC Code"
# Relatedness tier -> grade of that occupation's jobs.
TIERS = {"Primary-Short": 3, "Primary-Long": 2, "Supplemental": 1}
LEAST_TASKS = 5
# A table and its columns, by the names that it has had: the second ones since release 30.3.
Tables = Mapping[str, tuple[str, ...]]
TECHNOLOGY = {"Technology Skills": ("Example",), "Software Skills": ("Workplace Example",)}
TITLES = {
    "Alternate Titles": ("Alternate Title", "Short Title"),
    "Job Titles": ("Job Title", "Short Title"),
}


@dataclass(kw_only=True)
class TitledOccupation:
    """An occupation with what people call it. `titles` are alternate and reported ones, without
    those that another occupation has too; `related` is occupation code -> grade 1 to 3."""

    code: str
    title: str
    description: str
    titles: list[str] = field(default_factory=list)
    short_titles: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    technologies: list[str] = field(default_factory=list)
    related: dict[str, int] = field(default_factory=dict)


def read_database(folder: Path) -> list[TitledOccupation]:
    """The occupations that have tasks and titles, in code order.

    Raises DataError for a missing table or column.
    """
    known: dict[str, TitledOccupation] = {}
    for code, title, description in _rows(folder, {"Occupation Data": ("Title", "Description")}):
        known[code] = TitledOccupation(code=code, title=title, description=description)
    rows = partial(_known_rows, folder, known)
    for code, task in rows({"Task Statements": ("Task",)}):
        known[code].tasks.append(task)
    for code, example in rows(TECHNOLOGY):
        known[code].technologies.append(example)
    for code, other, tier in rows(
        {"Related Occupations": ("Related O*NET-SOC Code", "Relatedness Tier")}
    ):
        known[code].related[other] = TIERS.get(tier, 1)
    owners: dict[str, set[str]] = {}
    named: list[tuple[str, str, bool]] = []
    for code, title, form in rows(TITLES):
        named.append((code, title, False))
        if form != "n/a":
            named.append((code, form, True))
    for code, title in rows({"Sample of Reported Titles": ("Reported Job Title",)}):
        named.append((code, title, False))
    for code, title, _ in named:
        owners.setdefault(title.lower(), set()).add(code)
    for code, title, short in named:
        if len(owners[title.lower()]) == 1 and title.lower() != known[code].title.lower():
            kept = known[code].short_titles if short else known[code].titles
            if title not in kept:
                kept.append(title)
    return [one for _, one in sorted(known.items()) if len(one.tasks) >= LEAST_TASKS and one.titles]


def read_held_back(path: Path, occupations: Sequence[TitledOccupation]) -> frozenset[str]:
    """Occupation codes, one a line; `#` starts a remark. Raises DataError when none is known."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "check data.held_back") from error
    codes = frozenset(line.partition("#")[0].strip() for line in lines) - {""}
    if not codes & {one.code for one in occupations}:
        raise DataError(f"{path} names no occupation of the release", "one code a line, 11-1011.00")
    return codes


def _known_rows(
    folder: Path, known: Mapping[str, object], tables: Tables
) -> Iterator[tuple[str, ...]]:
    """The rows of a table about occupations. Raises DataError for a code that is none's."""
    for code, *more in _rows(folder, tables):
        if code not in known:
            raise DataError(
                f"{folder}: table {_named(tables)} names occupation {code!r}, which Occupation "
                "Data lacks",
                "give tables of one release",
            )
        yield (code, *more)


def _named(tables: Tables) -> str:
    return " or ".join(map(repr, tables))


def _rows(folder: Path, tables: Tables) -> Iterator[tuple[str, ...]]:
    """(code, columns ...) of every row of the table that goes by one of these names."""
    named = {
        folder / f"{name}.txt{end}": columns
        for table, columns in tables.items()
        for name in (table, table.lower().replace(" ", "_"))
        for end in ("", ".gz")
    }
    path = next((path for path in named if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has no table {_named(tables)} ({' or '.join(one.name for one in named)})",
            "give the folder of an O*NET database release in text form (27.0 is tested)",
        )
    columns = named[path]
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            missing = [name for name in (CODE, *columns) if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} lacks the columns {', '.join(missing)}", "use the release's"
                )
            for row in rows:
                if None in row.values():
                    raise DataError(
                        f"{path}:{rows.line_num} has too few columns", "download it again"
                    )
                yield (row[CODE], *(row[name] for name in columns))
        except (EOFError, OSError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise DataError(f"cannot read {path}: {error}", "download it again") from error
