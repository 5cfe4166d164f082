"""Records from Parquet: a file, a folder of files, or a glob."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel

from slmrank.data.records import Record, checked
from slmrank.errors import DataError, needs

BATCH_ROWS = 8192
NAMES = ("job_id", "job_ids", "group", "kind")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a path below a folder is left out, as other readers of Parquet do: what begins so is
    of a writer that is not done."""
    return any(part[:1] in ("_", ".") for part in parts)


def columns_in(parts: Iterable[str], model: type[BaseModel]) -> dict[str, str]:
    """The fields of a record that the folders of its file name, as writers of partitioned tables
    keep them: `split=test`."""
    named = (part.partition("=") for part in parts)
    return {
        name: unquote(value)
        for name, mark, value in named
        if mark and name in model.model_fields and value != NO_VALUE
    }


@contextlib.contextmanager
def reading(file: object) -> Iterator[None]:
    """What pyarrow says of a file, as DataError."""
    try:
        yield
    except (OSError, ValueError) as error:  # its own errors are either, or both
        raise DataError(f"cannot read {file}: {error}", "check that it is Parquet") from error


def batches_of(
    opened: Any,
    model: type[BaseModel],
    rows: int,
    groups: Sequence[int] | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of an opened file, or of some of its row groups: the model's fields of each. Or of
    these `count` from row `first` on: others become no objects, and none behind them is read."""
    known = [name for name in opened.schema_arrow.names if name in model.model_fields]
    row, end = 0, math.inf if count is None else first + count
    for batch in opened.iter_batches(rows, row_groups=groups, columns=known):
        begin, stop = max(first - row, 0), min(end - row, batch.num_rows)
        row += batch.num_rows
        if begin < stop:
            rows_of_batch: list[dict[str, Any]] = batch.slice(begin, int(stop) - begin).to_pylist()
            yield rows_of_batch
        if row >= end:
            return


def parquet_files(path: Path, model: type[BaseModel]) -> list[tuple[Path, dict[str, str]]]:
    """The files that a path names, in name order, each with the fields that its folders below the
    path name. Raises DataError when there is none."""
    if path.is_dir():
        named = [path]
    elif has_magic(str(path)) and not path.exists():
        root = Path(path.anchor) if path.is_absolute() else Path()
        named = [*root.glob(str(path.relative_to(root) if path.is_absolute() else path))]
    else:
        named = [path]
    whole = itertools.takewhile(lambda part: path.exists() or not has_magic(part), path.parts)
    fixed = len(list(whole))
    # A folder of one table may be named like a file.
    below = (_tables_below(one) if one.is_dir() else [one] for one in named)
    # A file that links name as well is one, with what the folders say that say most.
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for one in sorted(itertools.chain.from_iterable(below)):
        if one.is_file() and not is_hidden(one.parts[fixed:]):
            named_by, real = columns_in(one.parts[fixed:-1], model), os.path.realpath(one)
            if real not in found or len(named_by) > len(found[real][1]):
                found[real] = one, named_by
    if not found:
        raise DataError(f"{path} names no Parquet file", "give a file, a folder or a glob")
    return sorted(found.values(), key=lambda one: one[0])


def _tables_below(folder: Path) -> Iterator[Path]:
    """The `*.parquet` in a folder and in those below it that are not hidden, by links too, unless
    these lead to a folder above."""
    for place, below, names in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {os.path.realpath(one) for one in (here, *here.parents)}
        known = (name for name in below if not is_hidden([name]))
        below[:] = [name for name in known if os.path.realpath(here / name) not in above]
        yield from (here / name for name in names if name.endswith(".parquet"))


def read_parquet(path: Path, model: type[Record]) -> Iterator[Record]:
    """The rows of all files as records, some thousand in memory at a time, with what partitioned
    tables keep in their folders' names. Columns of other names are left out; null is a field that
    was not given.

    Raises DataError that names file, row and field, MissingDependencyError without pyarrow.
    """
    with needs("Parquet files need pyarrow", "parquet"):
        from pyarrow import parquet
    for file, named in parquet_files(path, model):
        number = 0
        with reading(file), parquet.ParquetFile(file) as opened:
            for rows in batches_of(opened, model, BATCH_ROWS):
                for row in rows:
                    number += 1
                    yield checked(model, named | given(row), f"{file}: row {number}")


def given(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its nulls; ids that are whole numbers, as warehouses keep them, as texts."""
    return {
        name: _as_text(value) if name in NAMES else value
        for name, value in row.items()
        if value is not None
    }


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return str(value) if type(value) is int else value
