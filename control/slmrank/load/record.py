"""The record of what was measured on one served configuration: points, drift, and rates at the
objective. One JSON file that `report` and `capacity` read, and that can be copied elsewhere."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, write_atomic
from slmrank.errors import SweepError
from slmrank.hashing import hash_value
from slmrank.load.slo import SloCell

RECORD = "slmrank-sweep"
FOLDER = "sweeps"
Record = dict[str, Any]


def record_path(root: Path, identity: Mapping[str, str]) -> Path:
    """Where the record of a served configuration is kept."""
    name = identity.get("bundle", "server")
    return root / FOLDER / f"{name}-{hash_value(dict(identity))[:8]}.json"


def update_record(
    path: Path,
    identity: Mapping[str, str],
    *,
    points: Sequence[Artifact] = (),
    drift: float | None = None,
    slo: Sequence[SloCell] = (),
) -> Record:
    """Add to the record and write it whole; an entry for the same cell and load is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        record = read_record(path) if path.is_file() else _empty(identity)
        for artifact in points:
            entry = _entry(artifact)
            record["points"] = [one for one in record["points"] if _cell(one) != _cell(entry)]
            record["points"].append(entry)
            record["perf_analyzer"] = artifact.manifest["versions"]["perf_analyzer"]
            record["host"] = artifact.manifest["host"]
        if drift is not None:
            record["drift"] = drift
        for cell in slo:
            made = cell.as_dict()
            same = ("items", "tokens", "query_tokens", "limit_ms", "percentile")
            record["slo"] = [
                one for one in record["slo"] if any(one[name] != made[name] for name in same)
            ]
            record["slo"].append(made)
        write_atomic(path, json.dumps(record, indent=1) + "\n")
    return read_record(path)


def read_record(path: Path) -> Record:
    """Raises SweepError when the file is no record."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != RECORD or not isinstance(record["points"], list):
            raise ValueError("another kind of file")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{path} is no sweep record: {error}", "`control sweep` prints where it wrote one"
        ) from error
    return record


def _cell(entry: Record) -> list[Any]:
    return [entry[name] for name in ("items", "tokens", "query_tokens", "load")]


def _empty(identity: Mapping[str, str]) -> Record:
    return {
        "kind": RECORD,
        "schema": 1,
        "served": dict(identity),
        "perf_analyzer": "",
        "host": {},
        "points": [],
        "drift": None,
        "slo": [],
    }


def _entry(artifact: Artifact) -> Record:
    point = artifact.manifest["settings"]["point"]
    figures = {name: value for name, value in artifact.figures.items() if name != "command"}
    return {
        "key": artifact.key,
        "created": artifact.manifest["created"],
        "items": point["items"],
        "tokens": point["tokens"],
        "query_tokens": point["query_tokens"],
        "load": point["load"],
        **figures,
        "path": str(artifact.path),
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
