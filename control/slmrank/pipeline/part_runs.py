"""Offline work on a big table, part by part: in this process, or by actors on a Ray cluster.

The output stands in a folder named by everything that decides it. A part counts when its
done-marker is there; a manifest, written last, names the parts of a whole run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from slmrank.data.parts import Part, Place, done_parts, drop_part, mark_done
from slmrank.errors import DataError, needs
from slmrank.hashing import hash_value

# Readers of Parquet folders (pyarrow, Spark) leave out what begins with `_`.
MANIFEST, SOURCE = "_manifest.json", "_source"
LOCAL, RAY = "local", "ray"
Told = Callable[[int, int], None]


class PartWorker(Protocol):
    """Does one part after the other; what it needs is opened once."""

    identity: dict[str, Any]

    def do(self, part: Part, target: Place) -> None:
        """Write the table of a part."""


def run_parts(
    make_worker: Callable[[], PartWorker],
    parts: Sequence[Part],
    source: str,
    target: str,
    *,
    on: str = LOCAL,
    workers: int = 1,
    told: Told = lambda _done, _total: None,
) -> dict[str, Any]:
    """Do the parts of a table that are not done; returns figures.

    `on`: `local`, one process; `ray`, actors on a Ray of this machine; or `ray://HOST:PORT`.
    `make_worker` runs in each of them. Raises what a worker raises; what was finished stays. Raises
    DataError where the output of another table stands: its parts would be dropped.
    """
    own = make_worker()
    out = Place(target).below(hash_value(own.identity)[:16])  # of all that this identity decides
    out.make()
    done = done_parts(out, parts)
    left = [part for part in parts if part.name not in done]
    total = sum(part.rows for part in parts)
    new = sum(part.rows for part in left)
    names = [part.name for part in parts]
    _claim(out, source)
    manifest = {"identity": own.identity, "rows": total, "parts": names}
    text = json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"
    # What is no longer asked for, as the jobs of a file that was deleted, must not be read, nor
    # what a run left that was stopped.
    for name in set(out.tables()) - set(names):
        drop_part(out, name)
    whole = not left and out.read(MANIFEST) == text
    if not whole:
        out.drop(MANIFEST)  # parts of another content may take the place of those that it names
    started = time.perf_counter()
    made: Iterable[int] = (_do(own, part, out) for part in left)
    if on != LOCAL:
        made = _on_ray(make_worker, own.identity, left, out, on, workers)
    rows = total - new
    told(rows, total)
    for count in made:
        rows += count
        told(rows, total)
    if not whole:
        with out.write(MANIFEST) as stream:
            stream.write(text)
    seconds = time.perf_counter() - started
    return {
        "rows": total,
        "parts": len(parts),
        "found": len(done),
        "done": new,
        "rows_per_s": round(new / seconds, 1) if new else None,
        "out": out.url,
    }


def _claim(out: Place, source: str) -> None:
    """Note whose output a folder holds, before there is any: a run may end half-way. Raises
    DataError where it is another table's."""
    url = source if "://" in source else str(Path(source).resolve())
    if Place(source).holds(out):
        raise DataError(
            f"{out.url} lies inside of {url}: it would be read as a part of the table next time",
            "give an --out beside it",
        )
    known = (out.read(SOURCE) or b"").decode().strip()
    if known not in ("", url):
        raise DataError(
            f"{out.url} holds the output of {known}, whose place that of {url} would take",
            f"give another --out, or delete that folder; where it is the same table at another "
            f"place, delete {SOURCE} in it",
        )
    if not known:
        with out.write(SOURCE) as stream:
            stream.write(f"{url}\n".encode())


def _do(worker: PartWorker, part: Part, out: Place) -> int:
    """Do a part and mark it; returns its rows. An earlier mark goes first: a run that is killed in
    the middle of a table, this one or one beside it, must not leave it as done. What another run
    has done meanwhile stays: it may have ended and told of it."""
    if done_parts(out, [part]):
        return part.rows
    drop_part(out, part.name)
    started = time.perf_counter()
    worker.do(part, out)
    mark_done(out, part, {"seconds": round(time.perf_counter() - started, 3)})
    return part.rows


def read_manifest(folder: str) -> dict[str, Any]:
    """Identity, rows and parts of a whole run. Raises DataError when it is none."""
    try:
        return dict(json.loads(Place(folder).read(MANIFEST) or b""))
    except ValueError as error:  # it is not whole
        raise DataError(
            f"{folder} holds no {MANIFEST}: nothing was written there, or not to the end",
            "run the same command again, and give the folder that it names",
        ) from error


def _on_ray(
    make_worker: Callable[[], PartWorker],
    identity: dict[str, Any],
    parts: Sequence[Part],
    out: Place,
    address: str,
    workers: int,
) -> Iterator[int]:
    """Rows of each part, as they are finished by actors; Ray starts an actor that died again."""
    with needs(f"--on {address} needs ray", "ray"):
        import ray
        from ray.util import ActorPool

    class Actor:
        """What makes the worker travels with the class, so that it can be made again anywhere."""

        def __init__(self) -> None:
            os.environ["RAYON_NUM_THREADS"] = "1"  # an actor has one core; tokenizers take all
            self._worker = make_worker()

        def do(self, part: Part) -> int:
            if self._worker.identity != identity:  # here: Ray hides what __init__ raises
                raise DataError(
                    f"a machine of {address} would make another output than this one: "
                    f"{self._worker.identity} instead of {identity}",
                    "give all the same slmrank and artifacts; where processors differ, set "
                    "engine.openvino.precision",
                )
            return _do(self._worker, part, out)

    options: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    if address != RAY:
        options = {"address": address}
    elif "RAY_ADDRESS" in os.environ:
        options = {}  # inside a cluster, as the entrypoint of a Ray job
    try:
        ray.init(log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DataError(
            f"no Ray answers at {address}: {error}",
            "check the address (ray://HOST:10001), and that its Ray has this one's version",
        ) from error
    try:
        actor = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Actor)
        pool = ActorPool([actor.remote() for _ in range(workers)])
        yield from pool.map_unordered(lambda one, part: one.do.remote(part), list(parts))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise DataError(
            f"workers of {address} died more than three times: {error}",
            "give them more memory, and run the same command again: what is done is kept",
        ) from error
    finally:
        ray.shutdown()
