"""Jobs of a file, found by id without holding their texts in memory.

Of a million jobs of 4 kB only the ids and the places of their lines are kept, some 150 MB.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

from slmrank.data.records import Job, checked
from slmrank.errors import DataError


class JobFile(Mapping[str, Job]):
    """The jobs of a `jobs.jsonl` that `write_jsonl` wrote, in file order."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when the file cannot be read or holds no job."""
        self._path = path
        self._row: dict[str, int] = {}
        self._starts = array("q")
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}", "make the data again"
            ) from error
        start = 0
        for line in self._stream:
            if line.strip():
                self._row[json.loads(line)["job_id"]] = len(self._starts)
                self._starts.append(start)
            start += len(line)
        if not self._row:
            raise DataError(f"{path} holds no jobs", "make the data again")

    def __getitem__(self, job_id: str) -> Job:
        row = self._row[job_id]
        self._stream.seek(self._starts[row])
        return checked(Job, json.loads(self._stream.readline()), f"{self._path}: job {row + 1}")

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.close()
