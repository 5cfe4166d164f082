"""Summaries of a big catalogue. A worker holds tokenizer and summarizer; a changed summarizer,
budget or tokenizer is a new output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slmrank.artifacts import ArtifactStore
from slmrank.data.parquet import reading
from slmrank.data.parts import Part, Place, plan_parts, read_part
from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, RANKER_FILE, open_ranker_file
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.part_runs import read_manifest, run_parts
from slmrank.pipeline.steps import run
from slmrank.serving.prepare import read_summarizing
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.registry import load_summarizer
from slmrank.summarize.summarizer import FITTED_FOLDER, identity_of, placed, summarize_entries
from slmrank.tokens import Ids
from slmrank.triton.config import PREPARE

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What a worker needs, tokenizer, prompt and fitted summarizer, as bytes by path, so that it
    can be sent to any machine."""

    spec: str
    files: Mapping[str, bytes]


def kit_of_bundle(bundle: Bundle, store: ArtifactStore) -> Kit:
    """Of a spec; its fitted summarizer is made when it is missing."""
    return Kit(
        spec=bundle.spec.summarize.carried(),
        files=_files(
            run(bundle.base, store).path / CHECKPOINT_FOLDER, run(bundle.summarizer, store).path
        ),
    )


def kit_of_repository(repository: Path) -> Kit:
    """Of a repository of `control repo`, whose summaries these will be."""
    folder = repository / PREPARE / "1"
    return Kit(spec=read_summarizing(folder).spec.carried(), files=_files(folder, folder))


def _files(checkpoint: Path, fitted: Path) -> dict[str, bytes]:
    files = {name: (checkpoint / name).read_bytes() for name in (RANKER_FILE, TOKENIZER_FILE)}
    for path in sorted((fitted / FITTED_FOLDER).rglob("*")):
        if path.is_file():
            files[str(path.relative_to(fitted))] = path.read_bytes()
    return files


class SummaryWorker:
    """Summarises the jobs of `source`."""

    def __init__(self, kit: Kit, source: str, device: str = "auto") -> None:
        spec = SummarizeSpec.model_validate_json(kit.spec)
        # As long as the worker: a summarizer may read its weights when it first needs them.
        self._work = tempfile.TemporaryDirectory(prefix="slmrank-kit-")
        work = Path(self._work.name)
        for name, content in kit.files.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        ranker = open_ranker_file(work)
        self._encoder = ranker.encoder()
        self._summarizer = placed(load_summarizer(work, spec, self._encoder), device)
        self.identity = identity_of(ranker.tokenizer_hash, self._encoder, self._summarizer)
        self._source = Place(source)

    def do(self, part: Part, target: Place) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [
                ("job_id", pa.string()),
                ("summary", pa.string()),
                ("ids", pa.list_(pa.int32())),
                ("summary_tokens", pa.int32()),
                ("source_tokens", pa.int32()),
            ]
        )
        row = part.start
        with target.table(part.name, schema) as add:
            for jobs in read_part(self._source, part, Job):
                entries = summarize_entries(jobs, self._summarizer, self._encoder)
                for job, entry in zip(jobs, entries, strict=True):
                    row += 1
                    if not len(entry.ids):
                        raise DataError(
                            f"{part.file}: row {row}: job {job.job_id!r} has no text: a server "
                            "scores none",
                            "give it a title or a description, or leave it out",
                        )
                columns = [[job.job_id for job in jobs]]
                columns += ([getattr(one, name) for one in entries] for name in schema.names[1:])
                add(pa.table(columns, schema=schema))


def summarize_catalogue(
    kit: Kit, source: str, target: str, *, device: str = "auto", **how: Any
) -> dict[str, Any]:
    """Summaries of the jobs of `source` (Parquet; path or url) below `target`; `how` as `run_parts`
    takes it. Raises DataError with file and row for what is no job, and where there is none: what
    is published from nothing would take the place of a whole catalogue."""
    parts = plan_parts(Place(source))
    if not parts:
        raise DataError(f"{source} holds no jobs", "check what wrote it: one row is one job")
    return run_parts(partial(SummaryWorker, kit, source, device), parts, source, target, **how)


def catalogue_entries(folder: str) -> tuple[dict[str, Any], int, Iterator[list[tuple[str, Ids]]]]:
    """(identity, rows, batches of (job id, ids)) of what `summarize_catalogue` wrote to its end.

    Raises DataError when it is none.
    """
    manifest, place = read_manifest(folder), Place(folder)
    if not manifest["rows"]:
        raise DataError(f"{folder} holds no jobs", "summarise a table that has some")

    def batches() -> Iterator[list[tuple[str, Ids]]]:
        held = 0
        for name in manifest["parts"]:
            path = f"{place.path}/{name}.parquet"
            # Here: whoever writes them would take a fault of theirs for one of the store.
            with reading(path), place.open(path) as opened:
                held += opened.metadata.num_rows
                for batch in opened.iter_batches(1000, columns=["job_id", "ids"]):
                    lists = batch.column("ids")
                    values = lists.flatten().to_numpy(zero_copy_only=False)
                    bounds = lists.offsets.to_numpy() - lists.offsets[0].as_py()
                    names = batch.column("job_id").to_pylist()
                    yield [
                        (job_id, values[start:end])
                        for job_id, start, end in zip(names, bounds[:-1], bounds[1:], strict=True)
                    ]
        if held != manifest["rows"]:
            raise DataError(
                f"{folder} holds {held} of {manifest['rows']} jobs",
                "run the command that wrote it again: it makes what is missing",
            )

    return manifest["identity"], int(manifest["rows"]), batches()
