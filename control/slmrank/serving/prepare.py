"""From a scoring request to token ids: look up job texts, encode, truncate, report per item.

One bad item never fails a request: it gets a status and no ids, and its score will be NaN. Only the
query can fail the whole request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from slmrank.errors import RepositoryError, ScoreError
from slmrank.model.checkpoint import open_prompt
from slmrank.prompt.encoder import Ids, PromptEncoder
from slmrank.store.lmdb_store import SummaryStore
from slmrank.triton.status import Status

# A longer text is cut before it is tokenised: 1 MB would hold the tokenizer for a second, and no
# item of up to 8,192 tokens needs more.
MAX_TEXT_CHARACTERS = 131_072


class JobTexts(Protocol):
    """What `prepare` asks of a summary store."""

    def ids(self, job_id: str) -> Ids | None: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Prefix ids [P], item ids end to end [sum], their lengths [N] and statuses [N]."""

    prefix_ids: Ids
    item_ids: Ids
    item_lengths: Ids
    status: Ids


class Preparer:
    """Turns one query and its jobs into ids."""

    def __init__(self, encoder: PromptEncoder, store: JobTexts, max_items: int) -> None:
        self._encoder = encoder
        self._store = store
        self._max_items = max_items

    def prepare(
        self, query: bytes, job_ids: Sequence[bytes], job_texts: Sequence[bytes] | None = None
    ) -> Prepared:
        """Encode one request. A text that is given wins over the stored one.

        Raises ScoreError for a bad query, too many jobs, or texts that do not match the ids in
        number.
        """
        if len(job_ids) > self._max_items:
            raise ScoreError(
                f"request has {len(job_ids)} jobs, the limit is {self._max_items}",
                "split the request or raise repository.max_items in the spec",
            )
        if job_texts is not None and len(job_texts) != len(job_ids):
            raise ScoreError(
                f"{len(job_texts)} job_text for {len(job_ids)} job_id",
                "send one text per job; an empty text means: use the stored one",
            )
        prefix = self._encoder.prefix(_decode_query(query))
        texts = job_texts if job_texts is not None else [b""] * len(job_ids)
        items: list[Ids] = []
        statuses: list[int] = []
        for job_id, text in zip(job_ids, texts, strict=True):
            ids, status = self._item(job_id, text)
            items.append(ids)
            statuses.append(status)
        return Prepared(
            prefix_ids=prefix.astype(np.int32),
            item_ids=np.concatenate([_NONE, *items]).astype(np.int32),
            item_lengths=np.array([len(item) for item in items], dtype=np.int32),
            status=np.array(statuses, dtype=np.int32),
        )

    def _item(self, job_id: bytes, text: bytes) -> tuple[Ids, Status]:
        if text.strip():
            try:
                decoded = text.decode("utf-8")
            except UnicodeDecodeError:
                return _NONE, Status.NOT_UTF8
            body = self._encoder.body(decoded[:MAX_TEXT_CHARACTERS])
            cut = len(decoded) > MAX_TEXT_CHARACTERS
        elif job_id:
            stored = self._store.ids(job_id.decode("utf-8", "replace"))
            if stored is None:
                return _NONE, Status.UNKNOWN_JOB
            body, cut = stored, False
        else:
            return _NONE, Status.EMPTY
        item = self._encoder.item(body)
        return item.ids, Status.TRUNCATED if item.truncated or cut else Status.OK


def open_preparer(folder: Path, max_items: int) -> Preparer:
    """The preparer over a folder with `ranker.json`, `tokenizer.json` and `store/`.

    Raises RepositoryError when the store was written for another tokenizer.
    """
    prompt = open_prompt(folder)
    store = SummaryStore(folder / "store")
    stored = store.identity().get("tokenizer_hash")
    if stored != prompt.tokenizer_hash:
        raise RepositoryError(
            f"summary store was written for tokenizer {stored}, the engine has "
            f"{prompt.tokenizer_hash}",
            "run `control summarize` and `control repo` again",
        )
    return Preparer(prompt.encoder(), store, max_items)


_NONE = np.zeros(0, dtype=np.int32)


def _decode_query(query: bytes) -> str:
    try:
        return query.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScoreError(
            f"query is not UTF-8: byte {error.start} is 0x{query[error.start]:02x}",
            "encode the query as UTF-8",
        ) from error
