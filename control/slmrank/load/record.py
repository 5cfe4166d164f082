"""The record of what was measured on one served configuration: points, drift, and rates at the
objective. One JSON file, gathered from the artifact store, that `report`, `capacity` and `deploy`
read, and that can be copied elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore, write_atomic
from slmrank.errors import SweepError
from slmrank.hashing import hash_value
from slmrank.load.run import DRIFT_REPEAT, Subject, identity_key
from slmrank.load.run import KIND as POINT
from slmrank.load.slo import KIND as SLO

RECORD = "slmrank-sweep"
FOLDER = "sweeps"
Record = dict[str, Any]
CELL = ("items", "tokens", "query_tokens")
_POINT = (*CELL, "load", "stable")
_RATE = (
    *(*CELL, "limit_ms", "percentile", "rate", "failed_at"),
    *("items_per_s", "items_per_s_range", "latency_ms_range"),
)


def record_path(root: Path, identity: Mapping[str, str], url: str | None = None) -> Path:
    """Where the record of a served configuration is kept: on servers of our own, or on a given
    one."""
    name = identity.get("bundle", "server")
    named = dict(identity) if url is None else {**identity, "server": url}
    return root / FOLDER / f"{name}-{hash_value(named)[:8]}.json"


def write_record(store: ArtifactStore, subject: Subject) -> Path:
    """Gather what the store holds of a subject and write it; returns the file."""
    path = record_path(store.root, subject.identity, subject.versions.get("server"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(gather_record(store, subject), indent=1) + "\n")
    return path


def gather_record(store: ArtifactStore, subject: Subject) -> Record:
    """The newest measurement of every cell and load, without confirmation runs; of this subject,
    on this machine or this server, alone."""
    served, identity = identity_key(subject.identity), subject.identity

    def measured(kind: str) -> list[Artifact]:
        return [
            one
            for one in store.all(kind)
            if one.manifest["inputs"]["served"] == served
            and subject.versions.items() <= one.manifest.get("versions", {}).items()
        ]

    points: dict[str, Artifact] = {}
    repeats: dict[str, Artifact] = {}
    for artifact in measured(POINT):
        point = artifact.manifest["settings"]["point"]
        place = json.dumps([point[name] for name in (*CELL, "load")])
        if point["repeat"] == 0:
            points.setdefault(place, artifact)
        elif point["repeat"] == DRIFT_REPEAT:
            repeats.setdefault(place, artifact)
    cells: dict[str, Record] = {}
    for artifact in measured(SLO):
        cell = dict(artifact.figures)
        place = json.dumps([cell[name] for name in (*CELL, "limit_ms", "percentile")])
        cells.setdefault(place, cell)
    newest = next(iter(points.values()), None)
    return {
        "kind": RECORD,
        "schema": 1,
        "served": dict(identity),
        "perf_analyzer": newest.manifest["versions"]["perf_analyzer"] if newest else "",
        # Of a running server (`--url`) it is the machine that asked it, which decides nothing.
        "server": subject.versions.get("server"),
        "host": newest.manifest["host"] if newest and "server" not in subject.versions else {},
        "points": [_entry(artifact) for artifact in reversed(points.values())],
        "drift": _drift(points, repeats),
        "slo": list(reversed(cells.values())),
    }


def read_record(path: Path) -> Record:
    """Raises SweepError when the file is no record."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != RECORD or not isinstance(record["served"], dict):
            raise ValueError("another kind of file")
        absent = {"perf_analyzer", "host", "drift"} - set(record)
        if absent:
            raise ValueError(f"it has no {min(absent)}")
        for part, keys in (("points", _POINT), ("slo", _RATE)):
            lacking = next((key for one in record[part] for key in keys if key not in one), None)
            if lacking is not None:
                raise ValueError(f"one of its {part} has no {lacking}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SweepError(
            f"{path} is no sweep record: {error}", "`control sweep` prints where it wrote one"
        ) from error
    return record


def _drift(points: Mapping[str, Artifact], repeats: Mapping[str, Artifact]) -> float | None:
    """Throughput of the newest repeated point at the end of its sweep, over that at the start."""
    for place, again in repeats.items():
        first = points.get(place)
        if first is None or first.manifest["created"] > again.manifest["created"]:
            continue  # measured anew since, perhaps on another day
        if first.figures["stable"] and again.figures["stable"]:
            ratio: float = again.figures["requests_per_s"] / first.figures["requests_per_s"]
            return ratio
    return None


def _entry(artifact: Artifact) -> Record:
    point = artifact.manifest["settings"]["point"]
    figures = {name: value for name, value in artifact.figures.items() if name != "command"}
    return {
        "key": artifact.key,
        "created": artifact.manifest["created"],
        **{name: point[name] for name in (*CELL, "load")},
        **figures,
        "path": str(artifact.path),
    }
