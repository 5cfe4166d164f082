"""Records from Parquet: a file, a folder of files, or a glob."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from slmrank.data.records import Record, checked
from slmrank.errors import DataError, needs

BATCH_ROWS = 8192


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a path below a folder is left out, as other readers of Parquet do: what begins so is
    of a writer that is not done."""
    return any(part[:1] in ("_", ".") for part in parts)


def parquet_files(path: Path) -> list[Path]:
    """The files that a path names, in name order. Raises DataError when there is none."""
    fixed = len(list(itertools.takewhile(lambda part: not set(part) & {*"*?"}, path.parts)))
    if path.is_dir():
        found = sorted(path.rglob("*.parquet"))
    elif "*" in str(path) or "?" in str(path):
        root = Path(path.anchor) if path.is_absolute() else Path()
        found = sorted(root.glob(str(path.relative_to(root) if path.is_absolute() else path)))
    else:
        found = [path] if path.is_file() else []
    found = [one for one in found if not is_hidden(one.parts[fixed:])]
    if not found:
        raise DataError(f"{path} names no Parquet file", "give a file, a folder or a glob")
    return found


def read_parquet(path: Path, model: type[Record]) -> Iterator[Record]:
    """The rows of all files as records, some thousand in memory at a time. Columns of other names
    are left out; null is a field that was not given.

    Raises DataError that names file, row and field, MissingDependencyError without pyarrow.
    """
    with needs("Parquet files need pyarrow", "parquet"):
        from pyarrow import ArrowInvalid, parquet
    for file in parquet_files(path):
        number = 0
        try:
            with parquet.ParquetFile(file) as opened:
                known = [name for name in opened.schema_arrow.names if name in model.model_fields]
                for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=known):
                    for row in batch.to_pylist():
                        number += 1
                        given = {name: value for name, value in row.items() if value is not None}
                        yield checked(model, given, f"{file}: row {number}")
        except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {error}", "check that it is Parquet") from error
