"""A big table in parts: rows of Parquet files on any file system that pyarrow knows, so that what
is done by one worker, or was done before a kill, is done whole."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slmrank.data.parquet import batches_of, columns_in, given, is_hidden, reading
from slmrank.data.records import Record, checked
from slmrank.errors import DataError, needs
from slmrank.validation import holds_password

PART_ROWS = 1000
BATCH_ROWS = 256
GROUP_ROWS = 65_536
COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of one file, which is called `stem` among those of its table. `file_bytes`
    and `file_ns`: a file that changed is another."""

    file: str
    stem: str
    start: int
    rows: int
    file_bytes: int
    file_ns: int

    @property
    def name(self) -> str:
        return f"{self.stem}-{self.start:09d}"


def url_below(url: str, name: str) -> str:
    """The url of NAME in the folder `url`, whose query stays at the end."""
    head, mark, query = url.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


class Place:
    """A folder or file by path or url (`s3://bucket/jobs`), through `pyarrow.fs`."""

    def __init__(self, url: str) -> None:
        with needs("a catalogue in parts needs pyarrow", "parquet"):
            from pyarrow import fs
        if holds_password(url):  # not shown, and not noted beside what is made of it
            raise DataError(
                "a url has a password in it",
                "give the credentials in the environment, such as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY",
            )
        self.url = url
        self._fs: Any
        self._kinds = fs
        with self._reaching():
            if "://" in url:
                self._fs, self.path = fs.FileSystem.from_uri(url)
            else:
                self._fs, self.path = fs.LocalFileSystem(), os.path.abspath(url)
                self._fs.get_file_info(url)  # refuses `gs:/jobs`, which below a folder is a path

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """What the file system says, as DataError."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot reach {self.url}: {error}",
                "give a path, or a url that pyarrow.fs knows (s3://, gs://, hdfs://), with its "
                "credentials in the environment",
            ) from error

    def holds(self, other: Place) -> bool:
        """Whether a place is this folder, or lies inside of it."""
        paths = [
            PurePosixPath(os.path.realpath(one.path) if "://" not in one.url else one.path)
            for one in (other, self)
        ]
        return bool(self._fs.equals(other._fs)) and paths[0].is_relative_to(paths[1])

    def files(self) -> list[tuple[str, int, int]]:
        """(path, bytes, time of change in ns) of the Parquet files here, by name. Raises DataError
        when there is none."""
        with self._reaching():
            info = self._fs.get_file_info(self.path)
            found = [info]
            if info.type == self._kinds.FileType.Directory:
                found = self._fs.get_file_info(self._kinds.FileSelector(self.path, recursive=True))
        named = sorted(
            (one.path, one.size, one.mtime_ns)
            for one in found
            if (one is info or one.path.endswith(".parquet"))
            and one.type != self._kinds.FileType.Directory
            and (one is info or not is_hidden(one.path.removeprefix(self.path).split("/")))
        )
        if self.path.endswith((".jsonl", ".json", ".csv")):
            raise DataError(
                f"{self.path} is no Parquet, which is read in parts",
                "write it as Parquet, as with pyarrow.parquet.write_table(pyarrow.json.read_json("
                "'jobs.jsonl'), 'jobs.parquet')",
            )
        if not named or info.type == self._kinds.FileType.NotFound:
            raise DataError(
                f"{self.path} names no Parquet file", "give a file, or a folder or url with some"
            )
        return named

    def tables(self) -> list[str]:
        """Names of the tables directly in this folder, without `.parquet`."""
        with self._reaching():
            found = self._fs.get_file_info(self._kinds.FileSelector(self.path))
        return [
            one.base_name.removesuffix(".parquet")
            for one in found
            if one.base_name.endswith(".parquet")
        ]

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Bytes of each file here, None where there is none."""
        with self._reaching():
            found = self._fs.get_file_info([f"{self.path}/{name}" for name in names])
        sizes: list[int | None] = [one.size for one in found]
        return sizes

    def open(self, path: str) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self._fs.open_input_file(path))

    def make(self) -> None:
        with self._reaching():
            self._fs.create_dir(self.path, recursive=True)

    def write(self, name: str) -> Any:
        """A new file below this folder, opened for writing."""
        return self._fs.open_output_stream(f"{self.path}/{name}")

    @contextlib.contextmanager
    def table(self, name: str, schema: Any) -> Iterator[Callable[[Any], None]]:
        """A function that adds a pyarrow table to NAME.parquet below this folder. Row groups are
        large: with one of 256 rows for each pass, reading took 14 times as long."""
        import pyarrow as pa
        from pyarrow import parquet

        held: list[Any] = []
        with (
            self.write(f"{name}.parquet") as stream,
            parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
        ):

            def add(table: Any) -> None:
                held.append(table)
                if sum(one.num_rows for one in held) >= GROUP_ROWS:
                    flush()

            def flush() -> None:
                writer.write_table(pa.concat_tables(held))
                held.clear()

            yield add
            if held:
                flush()

    def read(self, name: str) -> bytes | None:
        """The bytes of a file below this folder, None when there is none."""
        try:
            with self._reaching(), self._fs.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file below this folder to `path`. Raises DataError when it is not there."""
        with (
            self._reaching(),
            self._fs.open_input_stream(f"{self.path}/{name}") as source,
            path.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, COPY_BYTES)

    def put(self, path: Path, name: str) -> None:
        """Copy the file `path` below this folder."""
        with self._reaching(), path.open("rb") as source, self.write(name) as sink:
            shutil.copyfileobj(source, sink, COPY_BYTES)

    def drop(self, name: str) -> None:
        """Remove a file below this folder, where there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self.path}/{name}")

    def below(self, name: str) -> Place:
        place = copy.copy(self)
        place.path = f"{self.path}/{name}"
        place.url = url_below(self.url, name)
        return place


def plan_parts(source: Place, rows: int = PART_ROWS, *, cut_groups: bool = False) -> list[Part]:
    """The parts of a table: runs of whole row groups with at least `rows` rows where the file has
    as many, or with `cut_groups` exactly as many, for rows that are small and take long.

    Raises DataError for what is no Parquet, or two files whose parts would have one name.
    """
    parts: list[Part] = []
    for path, size, changed_ns in source.files():
        with reading(path), source.open(path) as opened:
            counts = [count for count in _group_rows(opened) if count]
        # Writers of partitioned tables give files of all partitions one name.
        below = path.removeprefix(source.path).strip("/") or path.rsplit("/", 1)[-1]
        stem = below.removesuffix(".parquet").replace("/", "-")
        start = held = 0
        for count in [rows] * (-(-sum(counts) // rows)) if cut_groups else counts:
            held += count
            if held >= rows or start + held >= sum(counts):
                held = min(held, sum(counts) - start)
                facts = {"file_bytes": size, "file_ns": changed_ns}
                parts.append(Part(file=path, stem=stem, start=start, rows=held, **facts))
                start, held = start + held, 0
    named = Counter(part.name for part in parts)
    twice = next((name for name, count in named.items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"two files below {source.path} would give a part {twice!r}", "rename one of them"
        )
    return parts


def read_part(source: Place, part: Part, model: type[Record]) -> Iterator[list[Record]]:
    """The records of a part, some hundred in memory at a time.

    Raises DataError that names file and row.
    """
    named = columns_in(part.file.removeprefix(source.path).split("/")[:-1], model)
    with reading(part.file), source.open(part.file) as opened:
        groups, first, before = [], 0, None
        for number, count in enumerate(_group_rows(opened)):
            if first < part.start + part.rows and first + count > part.start:
                groups.append(number)
                before = first if before is None else before
            first += count
        row = part.start
        begin = part.start - (before or 0)
        for batch in batches_of(opened, model, BATCH_ROWS, groups, begin, part.rows):
            records = []
            for values in batch:
                row += 1
                place = f"{part.file}: row {row}"
                records.append(checked(model, named | given(values), place))
            yield records


def _group_rows(opened: Any) -> list[int]:
    metadata = opened.metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def done_parts(target: Place, parts: Sequence[Part]) -> set[str]:
    """Names of the parts of which a finished run stands in the folder, with its table as it was."""
    told = {part.name: found for part in parts if (found := _note_of(target, part)) is not None}
    sizes = target.sizes([f"{name}.parquet" for name in told]) if told else []
    return {
        name
        for (name, found), size in zip(told.items(), sizes, strict=True)
        if size is not None and size == found.get("table_bytes", size)
    }


def _note_of(target: Place, part: Part) -> dict[str, Any] | None:
    """What `mark_done` wrote for this very part."""
    written = target.read(_marker(part.name))
    if written is None:
        return None
    try:
        found: dict[str, Any] = json.loads(written)
    except ValueError:
        return None
    # However the table's place was named: bytes and time of change tell its content apart.
    known = {**found, "file": str(found.get("file", "")).rsplit("/", 1)[-1]}
    asked = {**asdict(part), "file": part.file.rsplit("/", 1)[-1]}
    return found if all(known.get(name) == value for name, value in asked.items()) else None


def mark_done(target: Place, part: Part, figures: dict[str, Any]) -> None:
    """The last thing of a part: without it the part is made again."""
    [size] = target.sizes([f"{part.name}.parquet"])
    told = {**asdict(part), "table_bytes": size, **figures}
    with target.write(_marker(part.name)) as stream:
        stream.write(json.dumps(told, sort_keys=True).encode() + b"\n")


def drop_part(target: Place, name: str) -> None:
    """Remove the table of a part and its marker."""
    target.drop(_marker(name))
    target.drop(f"{name}.parquet")


def _marker(name: str) -> str:
    return f"_{name}.done"  # readers of Parquet folders leave out what begins with `_`
