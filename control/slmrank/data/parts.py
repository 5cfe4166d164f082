"""A big catalogue in parts: rows of Parquet files on any file system that pyarrow knows, a run of
row groups each, so that what is done by one worker, or was done before a kill, is done whole."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slmrank.data.records import Job, checked
from slmrank.errors import DataError, MissingDependencyError

PART_ROWS = 1000
BATCH_ROWS = 256
DONE = ".done"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive row groups of one file. `file_bytes`: a file that changed is another one."""

    file: str
    first_group: int
    groups: int
    rows: int
    file_bytes: int

    @property
    def name(self) -> str:
        stem = self.file.rsplit("/", 1)[-1].removesuffix(".parquet")
        return f"{stem}-{self.first_group:05d}"


class Place:
    """A folder or file by path or url (`s3://bucket/jobs`), through `pyarrow.fs`."""

    def __init__(self, url: str) -> None:
        try:
            from pyarrow import fs
        except ImportError as error:
            raise MissingDependencyError(
                "a catalogue in parts needs pyarrow", "pip install 'slmrank[parquet]'"
            ) from error
        self._fs: Any
        if "://" in url:
            self._fs, self.path = fs.FileSystem.from_uri(url)
        else:
            self._fs, self.path = fs.LocalFileSystem(), url
        self._kinds = fs

    def files(self) -> list[tuple[str, int]]:
        """(path, bytes) of the Parquet files here, by name. Raises DataError when there is none."""
        info = self._fs.get_file_info(self.path)
        found = [info]
        if info.type == self._kinds.FileType.Directory:
            found = self._fs.get_file_info(self._kinds.FileSelector(self.path, recursive=True))
        named = sorted((one.path, one.size) for one in found if one.path.endswith(".parquet"))
        if not named or info.type == self._kinds.FileType.NotFound:
            raise DataError(
                f"{self.path} names no Parquet file", "give a file, or a folder or url with some"
            )
        return named

    def open(self, path: str) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self._fs.open_input_file(path))

    def make(self) -> None:
        self._fs.create_dir(self.path, recursive=True)

    def write(self, name: str) -> Any:
        """A new file below this folder, opened for writing."""
        return self._fs.open_output_stream(f"{self.path}/{name}")

    def read(self, name: str) -> bytes | None:
        """The bytes of a file below this folder, None when there is none."""
        try:
            with self._fs.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def drop(self, name: str) -> None:
        """Remove a file below this folder, where there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self.path}/{name}")

    def below(self, name: str) -> Place:
        place = object.__new__(Place)
        place._fs, place._kinds, place.path = self._fs, self._kinds, f"{self.path}/{name}"
        return place


def plan_parts(source: Place, rows: int = PART_ROWS) -> list[Part]:
    """The parts of a catalogue, each of at least `rows` rows where its file has as many.

    Raises DataError for what is no Parquet, or two files whose parts would have one name.
    """
    parts: list[Part] = []
    for path, size in source.files():
        try:
            with source.open(path) as opened:
                counts = [
                    opened.metadata.row_group(number).num_rows
                    for number in range(opened.metadata.num_row_groups)
                ]
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}", "check that it is Parquet") from error
        first = held = 0
        for number, count in enumerate(counts):
            held += count
            if held >= rows or number == len(counts) - 1:
                groups = number + 1 - first
                parts.append(
                    Part(file=path, first_group=first, groups=groups, rows=held, file_bytes=size)
                )
                first, held = number + 1, 0
    names = [part.name for part in parts]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"two files below {source.path} would give a part {twice!r}", "rename one of them"
        )
    return parts


def read_part(source: Place, part: Part) -> Iterator[list[Job]]:
    """The jobs of a part, some hundred in memory at a time. Raises DataError with file and row."""
    number = 0
    with source.open(part.file) as opened:
        known = [name for name in opened.schema_arrow.names if name in Job.model_fields]
        groups = list(range(part.first_group, part.first_group + part.groups))
        for batch in opened.iter_batches(BATCH_ROWS, row_groups=groups, columns=known):
            jobs = []
            for row in batch.to_pylist():
                number += 1
                given = {name: value for name, value in row.items() if value is not None}
                where = f"{part.file}: row {number} from row group {part.first_group}"
                jobs.append(checked(Job, given, where))
            yield jobs


def is_done(target: Place, part: Part) -> bool:
    """Whether a finished run of this very part stands in the folder."""
    written = target.read(part.name + DONE)
    if written is None:
        return False
    try:
        found: dict[str, Any] = json.loads(written)
    except ValueError:
        return False
    return all(found.get(name) == value for name, value in asdict(part).items())


def mark_done(target: Place, part: Part, figures: dict[str, Any]) -> None:
    """The last thing of a part: without it the part is made again."""
    with target.write(part.name + DONE) as stream:
        stream.write(json.dumps({**asdict(part), **figures}, sort_keys=True).encode() + b"\n")


def done_parts(target: Place, parts: Sequence[Part]) -> set[str]:
    """Names of the finished ones."""
    return {part.name for part in parts if is_done(target, part)}
