"""From a scoring request to token ids: look up or summarise jobs, encode, cut, report per item.

A job comes as an id (looked up in the store), as its fields (summarised and formatted by the code
that filled the store, so that the ids are the same), or as an item's text, taken as it is. One bad
item never fails a request: it gets a status and no ids, and its score will be NaN. Only the query
can fail the whole request.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from slmrank.data.records import Job
from slmrank.errors import InvalidQuery, InvalidRequest, RepositoryError, StoreUnavailable
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import open_ranker_file
from slmrank.prompt.encoder import PromptEncoder
from slmrank.spec.compress import SummarizeSpec
from slmrank.store.job_store import (
    SharedReader,
    SummaryReader,
    Traffic,
    read_identity,
    require_tokenizer,
)
from slmrank.store.registry import open_reader
from slmrank.summarize.registry import load_summarizer
from slmrank.summarize.summarizer import Summarizer, identity_of, summarize_entries
from slmrank.tokens import EMPTY, Ids
from slmrank.triton.config import (
    MAX_REQUEST_FIELDS_BYTES,
    MAX_REQUEST_TEXT_BYTES,
    MAX_TEXT_CHARACTERS,
    counted_fields,
)
from slmrank.triton.status import Status

SUMMARIES_FILE = "summaries.json"
JOB_FIELDS = ("title", "company", "location", "description")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Prefix ids [P], item ids end to end [sum], their lengths [N] and statuses [N]."""

    prefix_ids: Ids
    item_ids: Ids
    item_lengths: Ids
    status: Ids


class Preparer:
    """Turns one query and its jobs into ids."""

    def __init__(
        self, encoder: PromptEncoder, store: SummaryReader, summarizer: Summarizer, max_items: int
    ) -> None:
        self._encoder = encoder
        self._store = store
        self._shared = store if isinstance(store, SharedReader) else None
        self._summarizer = summarizer
        self._max_items = max_items

    def traffic(self) -> Traffic | None:
        """What the shared store was asked so far; None for an embedded one."""
        return None if self._shared is None else self._shared.traffic()

    def prepare(
        self,
        query: bytes,
        job_ids: Sequence[bytes],
        jobs: Sequence[bytes] | None = None,
        job_texts: Sequence[bytes] | None = None,
    ) -> Prepared:
        """Encode one request. `jobs` holds a job's fields as a JSON object, `job_texts` the text of
        an item as it goes into the prompt; an empty entry means: not sent. A text wins over fields,
        fields over the stored job.

        Raises InvalidQuery for a bad query, InvalidRequest for too many jobs, too much text or
        columns of different length.
        """
        if len(job_ids) > self._max_items:
            raise InvalidRequest(
                f"request has {len(job_ids)} jobs, the limit is {self._max_items}",
                "split the request or raise repository.max_items in the spec",
            )
        for name, column in (("job", jobs), ("job_text", job_texts)):
            if column is not None and len(column) != len(job_ids):
                raise InvalidRequest(
                    f"{len(column)} {name} for {len(job_ids)} job_id",
                    f"send one {name} per job_id; an empty one means: use the stored job",
                )
        sizes = (
            (sum(map(len, (*(jobs or ()), *(job_texts or ())))), MAX_REQUEST_TEXT_BYTES, "text"),
            (sum(map(counted_fields, jobs or ())), MAX_REQUEST_FIELDS_BYTES, "fields"),
        )
        for size, most, what in sizes:
            if size > most:
                raise InvalidRequest(
                    f"the request has {size} bytes of {what}, the limit is {most}",
                    "send fewer jobs at a time, or ids of stored ones",
                )
        prefix = self._encoder.prefix(_decode_query(query))
        empty = [b""] * len(job_ids)
        columns = zip(job_ids, jobs or empty, job_texts or empty, strict=True)
        items, statuses = [], []
        for body, status in self._bodies(list(columns)):
            ids = EMPTY
            if body is not None:
                item = self._encoder.item(body)
                ids = item.ids
                status = Status.TRUNCATED if item.truncated else status
            items.append(ids)
            statuses.append(status)
        return Prepared(
            prefix_ids=prefix.astype(np.int32),
            item_ids=np.concatenate([EMPTY, *items]).astype(np.int32),
            item_lengths=np.array([len(item) for item in items], dtype=np.int32),
            status=np.array(statuses, dtype=np.int32),
        )

    def _bodies(
        self, asked: Sequence[tuple[bytes, bytes, bytes]]
    ) -> list[tuple[Ids | None, Status]]:
        """Body ids and status of each (id, fields, text); the store is asked once."""
        found: list[tuple[Ids | None, Status]] = [(None, Status.EMPTY)] * len(asked)
        stored: list[int] = []
        sent: list[tuple[int, Job, Status]] = []
        texts: list[tuple[int, str]] = []
        for place, (job_id, fields, text) in enumerate(asked):
            if text.strip():
                decoded, status = _read_text(text)
                found[place] = (None, status)
                if decoded is not None:
                    texts.append((place, decoded))
            elif fields.strip():
                job, status = _read_job(fields)
                found[place] = (None, status)
                if job is not None:
                    sent.append((place, job, status))
            elif job_id:
                stored.append(place)
        names = [asked[place][0].decode("utf-8", "replace") for place in stored]
        try:
            looked_up = self._store.ids_many(names) if names else []
        except StoreUnavailable:
            for place in stored:
                found[place] = (None, Status.STORE_UNAVAILABLE)
            stored, looked_up = [], []
        # One look over all of them: a look at each of 500 entries takes a millisecond.
        whole = self._are_ids(
            np.concatenate([EMPTY, *(one for one in looked_up if one is not None)])
        )
        for place, ids in zip(stored, looked_up, strict=True):
            if ids is None:
                found[place] = (None, Status.UNKNOWN_JOB)
            elif not len(ids) or not (whole or self._are_ids(ids)):
                found[place] = (None, Status.BAD_ENTRY)
            else:
                found[place] = (ids, Status.OK)
        if sent:
            jobs = [job for _, job, _ in sent]
            entries = summarize_entries(jobs, self._summarizer, self._encoder)
            for (place, _, status), entry in zip(sent, entries, strict=True):
                # Of blanks alone; a place is text enough, as it is in the store.
                found[place] = (entry.ids, status) if len(entry.ids) else (None, Status.EMPTY)
        bodies = self._encoder.bodies([text for _, text in texts])
        for (place, _), body in zip(texts, bodies, strict=True):
            found[place] = (body, found[place][1])
        return found

    def _are_ids(self, ids: Ids) -> bool:
        return bool(ids.min(initial=0) >= 0 and ids.max(initial=0) < self._encoder.vocab_size)


@dataclass(frozen=True, kw_only=True)
class Summarizing:
    """How a repository summarises: section `summarize` of its spec, and what it fitted."""

    folder: Path
    spec: SummarizeSpec
    tokenizer_hash: str
    encoder: PromptEncoder
    summarizer: Summarizer

    def own_identity(self) -> dict[str, Any]:
        """Of the summaries that would be made here."""
        return identity_of(self.tokenizer_hash, self.encoder, self.summarizer)

    def shared_identity(self) -> dict[str, Any]:
        """Of the summaries that its servers read from a shared store. Raises RepositoryError when
        those are not what the summarizer here would make."""
        identity = read_identity(self.folder)
        if hash_value(identity) != hash_value(self.own_identity()):
            raise RepositoryError(
                f"{self.folder} was made by an slmrank that summarises in another way",
                "run `control repo` again with this one, or use that one",
            )
        return identity


def read_summarizing(folder: Path) -> Summarizing:
    """What the folder of the stage `prepare` says. Raises RepositoryError for another one."""
    ranker = open_ranker_file(folder)
    try:
        written = (folder / SUMMARIES_FILE).read_text(encoding="utf-8")
        spec = SummarizeSpec.model_validate_json(written)
    except (OSError, ValidationError) as error:
        raise RepositoryError(
            f"{folder} has no usable {SUMMARIES_FILE}: {error}", "run `control repo` again"
        ) from error
    encoder = ranker.encoder()
    return Summarizing(
        folder=folder,
        spec=spec,
        tokenizer_hash=ranker.tokenizer_hash,
        encoder=encoder,
        summarizer=load_summarizer(folder, spec, encoder),
    )


def open_preparer(folder: Path, max_items: int) -> Preparer:
    """The preparer over a folder with `ranker.json`, `tokenizer.json`, `summaries.json` (section
    `summarize` of the spec), what the summarizer fitted, and an embedded store.

    Raises RepositoryError when store or summarizer are not those that the engine was made for.
    """
    found = read_summarizing(folder)
    store = open_reader(found.spec.store, folder)
    require_tokenizer(store, found.tokenizer_hash)
    identity = store.identity()
    own = found.own_identity()
    other = [name for name, value in own.items() if identity.get(name) != value]
    if other == ["code"]:  # an image that was upgraded: what is stored is as good as before
        other = []
        print(
            "the stored summaries were made by another slmrank: jobs that are sent by their fields "
            "may score otherwise until `control repo` ran with this one",
            file=sys.stderr,
        )
    if other:
        raise RepositoryError(
            f"the store's summaries have another {', '.join(other)} than the summarizer beside it",
            "run `control summarize` and `control repo` again",
        )
    return Preparer(found.encoder, store, found.summarizer, max_items)


def _read_job(fields: bytes) -> tuple[Job | None, Status]:
    """A job from the JSON of its fields; the id does not enter the prompt."""
    try:
        decoded = fields.decode("utf-8")
    except UnicodeDecodeError:
        return None, Status.NOT_UTF8
    try:
        values = json.loads(decoded)
        if not isinstance(values, dict) or not set(values) <= {"job_id", *JOB_FIELDS}:
            return None, Status.BAD_JOB
        cut = any(len(str(value)) > MAX_TEXT_CHARACTERS for value in values.values())
        values = {name: _shortened(values.get(name)) for name in JOB_FIELDS}
        job = Job.model_validate({**values, "job_id": "sent"})
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # no half surrogate pairs
    except (ValueError, RecursionError):
        return None, Status.BAD_JOB
    return job, Status.TRUNCATED if cut else Status.OK


def _read_text(text: bytes) -> tuple[str | None, Status]:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return None, Status.NOT_UTF8
    if not decoded.strip():  # blanks that are no ASCII
        return None, Status.EMPTY
    cut = len(decoded) > MAX_TEXT_CHARACTERS
    return decoded[:MAX_TEXT_CHARACTERS], Status.TRUNCATED if cut else Status.OK


def _shortened(value: object) -> object:
    if value is None:  # many producers write what they do not know so
        return ""
    return value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else value


def _decode_query(query: bytes) -> str:
    try:
        return query.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidQuery(
            f"query is not UTF-8: byte {error.start} is 0x{query[error.start]:02x}",
            "encode the query as UTF-8",
        ) from error
