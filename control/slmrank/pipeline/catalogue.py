"""Offline work on a big catalogue: summaries of every job, part by part, here or on a Ray cluster.

A worker holds tokenizer and summarizer once. The output stands in a folder named by everything that
decides a summary: a changed summarizer, budget or tokenizer is a new output, and a run that was
killed goes on with the parts that have no done-marker.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import ArtifactStore
from slmrank.data.parts import Part, Place, done_parts, mark_done, plan_parts, read_part
from slmrank.errors import DataError, MissingDependencyError
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, RANKER_FILE, open_ranker_file
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.summarize.summarizer import FITTED_FOLDER, identity_of, summarize_entries

TOKENIZER_FILE = "tokenizer.json"
CATALOGUE = "catalogue.json"
Told = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What a worker needs, as bytes by path, so that it can be sent to any machine."""

    spec: str
    files: Mapping[str, bytes]


def make_kit(bundle: Bundle, store: ArtifactStore) -> Kit:
    """Tokenizer, prompt and fitted summarizer of a bundle; they are made when they are missing."""
    fitted = run(bundle.summarizer, store).path / FITTED_FOLDER
    checkpoint = run(bundle.base, store).path / CHECKPOINT_FOLDER
    files = {name: (checkpoint / name).read_bytes() for name in (RANKER_FILE, TOKENIZER_FILE)}
    for path in sorted(fitted.rglob("*")):
        if path.is_file():
            files[f"{FITTED_FOLDER}/{path.relative_to(fitted)}"] = path.read_bytes()
    return Kit(spec=bundle.spec.summarize.model_dump_json(exclude={"fitted"}), files=files)


class Worker:
    """Summarises parts."""

    def __init__(self, kit: Kit, source: str, target: str) -> None:
        spec = SummarizeSpec.model_validate_json(kit.spec)
        with tempfile.TemporaryDirectory(prefix="slmrank-kit-") as work:
            for name, content in kit.files.items():
                path = Path(work) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            ranker = open_ranker_file(Path(work))
            self._encoder = ranker.encoder()
            self._summarizer = SUMMARIZERS.get(spec.method).load(
                Path(work) / FITTED_FOLDER, spec, self._encoder.body
            )
        self.identity = identity_of(ranker.tokenizer_hash, self._encoder, self._summarizer)
        self._source = Place(source)
        self._target = Place(target).below(hash_value(self.identity)[:16])

    @property
    def target(self) -> Place:
        return self._target

    def summarize(self, part: Part) -> int:
        """Write a part and its marker; returns its rows."""
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema(
            [
                ("job_id", pa.string()),
                ("summary", pa.string()),
                ("ids", pa.list_(pa.int32())),
                ("summary_tokens", pa.int32()),
                ("source_tokens", pa.int32()),
            ]
        )
        started, rows = time.perf_counter(), 0
        with (
            self._target.write(f"{part.name}.parquet") as stream,
            parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
        ):
            for jobs in read_part(self._source, part):
                entries = summarize_entries(jobs, self._summarizer, self._encoder)
                columns = [
                    [job.job_id for job in jobs],
                    [entry.summary for entry in entries],
                    [entry.ids for entry in entries],
                    [entry.summary_tokens for entry in entries],
                    [entry.source_tokens for entry in entries],
                ]
                writer.write_table(pa.table(columns, schema=schema))
                rows += len(jobs)
        seconds = round(time.perf_counter() - started, 3)
        mark_done(self._target, part, {"seconds": seconds})
        return rows


def summarize_catalogue(
    bundle: Bundle,
    store: ArtifactStore,
    source: str,
    target: str,
    *,
    on: str = "local",
    workers: int = 1,
    told: Told = lambda _done, _total: None,
) -> dict[str, Any]:
    """Summaries of the jobs of `source` (Parquet; path or url) below `target`.

    `on`: `local`, one process; `ray`, actors on a Ray of this machine; or `ray://HOST:PORT`.
    Raises DataError with file and row for what is no job; what was finished before stays.
    """
    kit = make_kit(bundle, store)
    own = Worker(kit, source, target)
    parts = plan_parts(Place(source))
    own.target.make()
    done = done_parts(own.target, parts)
    left = [part for part in parts if part.name not in done]
    total = sum(part.rows for part in parts)
    rows = total - sum(part.rows for part in left)
    if left:
        own.target.drop(CATALOGUE)  # parts of another content may take the place of named ones
    found = {"jobs": total, "parts": len(parts), "found": len(done)}
    started = time.perf_counter()
    made: Iterable[int] = map(own.summarize, left)
    if on != "local":
        made = _on_ray(on, workers, kit, source, target, left)
    told(rows, total)
    for count in made:
        rows += count
        told(rows, total)
    if left or own.target.read(CATALOGUE) is None:
        manifest = {"identity": own.identity, "jobs": total, "parts": [one.name for one in parts]}
        with own.target.write(CATALOGUE) as stream:
            stream.write(json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n")
    seconds = time.perf_counter() - started
    new = sum(part.rows for part in left)
    rate = round(new / seconds, 1) if new else None
    return {**found, "summarized": new, "jobs_per_s": rate, "out": own.target.path}


def catalogue_entries(folder: str) -> tuple[dict[str, Any], int, Iterator[list[tuple[str, Any]]]]:
    """(identity, rows, batches of (job id, ids)) of a finished output folder.

    Raises DataError when it is none.
    """
    place = Place(folder)
    written = place.read(CATALOGUE)
    if written is None:
        raise DataError(
            f"{folder} holds no {CATALOGUE}: nothing was summarised there, or not to the end",
            "run `control summarize --jobs ... --out ...`; give the folder that it names",
        )
    manifest = json.loads(written)

    def batches() -> Iterator[list[tuple[str, Any]]]:
        for name in manifest["parts"]:
            with place.open(f"{place.path}/{name}.parquet") as opened:
                for batch in opened.iter_batches(1000, columns=["job_id", "ids"]):
                    ids = batch.column("ids")
                    values = ids.flatten().to_numpy(zero_copy_only=False)
                    bounds = ids.offsets.to_numpy() - ids.offsets[0].as_py()
                    yield [
                        (job_id, values[start:end])
                        for job_id, start, end in zip(
                            batch.column("job_id").to_pylist(), bounds, bounds[1:], strict=False
                        )
                    ]

    return dict(manifest["identity"]), int(manifest["jobs"]), batches()


def _on_ray(
    address: str, workers: int, kit: Kit, source: str, target: str, parts: Sequence[Part]
) -> Iterator[int]:
    """Rows of each part, as they are finished by actors; Ray starts an actor that died again."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise MissingDependencyError(
            f"--on {address} needs ray: {error}", "pip install 'slmrank[ray]'"
        ) from error
    here = address == "ray"
    options = {"num_cpus": workers, "include_dashboard": False} if here else {"address": address}

    class Actor(Worker):
        """The kit travels with the class, so that an actor can be started again anywhere."""

        def __init__(self) -> None:
            super().__init__(kit, source, target)

    ray.init(log_to_driver=False, logging_level="error", **options)
    try:
        actor = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Actor)
        pool = ActorPool([actor.remote() for _ in range(workers)])
        yield from pool.map_unordered(lambda one, part: one.summarize.remote(part), list(parts))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        ray.shutdown()
