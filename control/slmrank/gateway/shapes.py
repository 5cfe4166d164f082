"""Requests and answers of the rerank endpoints, in the shapes that existing clients speak.

Cohere and Jina send `documents` and read `results` with `relevance_score`; Text Embeddings
Inference sends `texts` and reads a list with `score`. Keys of theirs that mean nothing here (the
model's name, how much of a document to read) are let through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slmrank.client.answer import Answer, ItemScore, Part, rank_order
from slmrank.client.asked import Asked, read_asked
from slmrank.data.records import Job
from slmrank.errors import InvalidRequest
from slmrank.surrogates import without_surrogates
from slmrank.triton.status import Status

Document = str | dict[str, Any]
MOST_KEYS = 64
MOST_DEPTH = 64
# What is given back of a request.
Echoed = Annotated[str, BeforeValidator(without_surrogates)]


def _too_deep(value: Any) -> bool:
    """Whether lists and objects stand in more than MOST_DEPTH of each other."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for many in inner for one in many if isinstance(one, dict | list)]
    return bool(level)


class _Asked(BaseModel):
    """A request from outside. Its errors are few: one for each of a million wrong elements or keys
    took a gigabyte and held everybody for seconds."""

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_KEYS:
            raise ValueError(f"has {len(value)} keys, the limit is {MOST_KEYS}")
        if not isinstance(value, dict):
            return value
        # Many clients send what was not set as null.
        return {key: one for key, one in value.items() if one is not None}


class RerankRequest(_Asked):
    """A query and its documents: texts, ids of stored jobs, or a job's fields."""

    model_config = ConfigDict(extra="allow")

    query: str = Field(description="what was typed")
    documents: list[Document] = Field(
        default_factory=list,
        fail_fast=True,
        description="a text (summarised like a job's description), `{id}` of a stored job, or an "
        "object with title, company, location, description or text, and an id of your own",
    )
    texts: list[str] | None = Field(
        None, fail_fast=True, description="documents, as Text Embeddings Inference"
    )
    top_n: int | None = Field(None, ge=1, description="best results to return; unset: all")
    return_documents: bool | None = Field(
        None, description="unset: with a model of Jina's (jina-...), whose clients count on it"
    )
    rank_fields: list[str] | None = Field(
        None,
        fail_fast=True,
        max_length=MOST_KEYS,
        description="keys of document objects whose texts are ranked, as with Cohere",
    )
    return_text: bool = False
    raw_scores: bool = Field(False, description="log-odds instead of probabilities (TEI)")
    model: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RerankRequest:
        if self.texts is not None and self.documents:
            raise ValueError("has both texts and documents; send one of them")
        if self.gives_back and any(
            isinstance(one, dict) and _too_deep(one) for one in self.documents
        ):
            # pydantic writes no deeper one: refused before it is scored.
            raise ValueError(
                f"has a document of more than {MOST_DEPTH} levels, which is not given back; send "
                "return_documents: false"
            )
        return self

    @property
    def gives_back(self) -> bool:
        if self.return_documents is None:
            return (self.model or "").startswith("jina-")
        return self.return_documents

    @property
    def asked(self) -> list[Document]:
        return list(self.texts) if self.texts is not None else self.documents


class RerankDocument(BaseModel):
    model_config = ConfigDict(extra="allow")


class RerankResult(BaseModel):
    """One scored document; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankAnswer(BaseModel):
    """Best first. A document that could not be scored is left out and named in
    `meta.warnings`; so is one that was cut."""

    id: str
    model: str
    results: list[RerankResult]
    meta: dict[str, Any]
    usage: dict[str, int] = Field(
        default={"total_tokens": 0, "prompt_tokens": 0},
        description="for clients of Jina, which read it; tokens are not counted here",
    )


class TextScore(BaseModel):
    """One result as Text Embeddings Inference gives it."""

    index: int
    score: float
    text: Echoed | None = None


class ScoreRequest(_Asked):
    """A query and jobs, as `control score --input` reads them."""

    model_config = ConfigDict(extra="forbid")

    query: str
    jobs: list[Document] = Field(
        fail_fast=True, description="ids of stored jobs, or objects with a job's fields"
    )


class ScoredItem(BaseModel):
    """One job in the order of the request; `score` is null where the status says why."""

    index: int
    job_id: Echoed
    score: float | None
    status: int
    status_text: str


class ScoredPart(BaseModel):
    """Who scored `items` jobs from place `start` on, and milliseconds by stage."""

    start: int
    items: int
    served: dict[str, str]
    times_ms: dict[str, float]


class ScoreAnswer(BaseModel):
    query: Echoed
    items: list[ScoredItem]
    parts: list[ScoredPart]


class Problem(BaseModel):
    """An error as RFC 9457 writes it, with a remedy; `message` is where Cohere's clients look."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: Echoed
    hint: str = ""
    message: Echoed
    request_id: str


def read_document(value: Document, place: int, rank_fields: Sequence[str] | None = None) -> Asked:
    """A document as the client sends it: a text is a job's description. Beside a text, what else an
    object has is the caller's own, as with Cohere, but for an id, and title, company and location
    where they are texts; with `rank_fields` the texts of these keys are all. A number is an id as
    well. Raises InvalidRequest that names what it lacks."""
    if isinstance(value, str):
        return Job(job_id=f"#{place}", description=value)
    ids: dict[str, Any] = {key: value[key] for key in ("job_id", "id") if key in value}
    ids = {key: str(one) if type(one) is int else one for key, one in ids.items()}
    if rank_fields is not None:
        named = dict.fromkeys(rank_fields)
        texts = [value[key] for key in named if isinstance(value.get(key), str)]
        if not any(texts):
            raise InvalidRequest(
                f"document {place} has a text in none of rank_fields {', '.join(named)[:100]}",
                "name keys that documents have, or leave rank_fields out",
            )
        return Job(job_id=f"#{place}", description="\n".join(texts))
    if isinstance(value.get("text"), str):
        more = {key: value.get(key) for key in ("title", "company", "location")}
        more = {key: one for key, one in more.items() if isinstance(one, str)}
        own = next((one for one in ids.values() if one not in (None, "")), None)
        value = {"text": value["text"], **more, **({} if own is None else {"id": own})}
    else:
        value = {**value, **ids}
    return _read(value, place, "document")


def read_job(value: Document, place: int) -> Asked:
    """The same for a job: a text is a stored job's id."""
    return _read(value, place, "job")


def _read(value: Document, place: int, what: str) -> Asked:
    try:
        return read_asked(value, place)
    except InvalidRequest as error:
        raise InvalidRequest(f"{what} {place}: {error.message}", error.hint) from error


def warnings_of(items: Sequence[ItemScore]) -> list[str]:
    """What a caller should know of documents that were cut or not scored."""
    return [
        f"document {item.index}: {item.status.words}"
        for item in items
        if item.status is not Status.OK
    ]


def rerank_results(request: RerankRequest, items: Sequence[ItemScore]) -> list[RerankResult]:
    """The scored documents, best first, at most `top_n`."""
    scored = [item for item in rank_order(items) if not math.isnan(item.score)]
    return [
        RerankResult(
            index=item.index,
            relevance_score=item.score,
            document=_returned(request.asked[item.index]) if request.gives_back else None,
        )
        for item in scored[: request.top_n]
    ]


def text_scores(request: RerankRequest, items: Sequence[ItemScore]) -> list[TextScore]:
    """The same for Text Embeddings Inference, whose clients count on a score for every text: one
    that could not be scored stands last, with the least score."""
    texts = request.texts or []
    found = []
    for item in rank_order(items)[: request.top_n]:
        p = 0.0 if math.isnan(item.score) else item.score
        found.append(
            TextScore(
                index=item.index,
                score=_log_odds(p) if request.raw_scores else p,
                text=texts[item.index] if request.return_text else None,
            )
        )
    return found


def scored_items(items: Sequence[ItemScore]) -> list[ScoredItem]:
    return [ScoredItem(**item.as_dict()) for item in items]


def scored_parts(answer: Answer) -> list[ScoredPart]:
    return [ScoredPart(**part.as_dict()) for part in answer.parts]


def server_timing(parts: Sequence[Part]) -> str:
    """The header Server-Timing: milliseconds by stage, summed over the parts."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.times_ms.items():
            sums[name] = sums.get(name, 0.0) + value
    return ", ".join(f"{name};dur={value:.3f}" for name, value in sums.items())


def _returned(document: Document) -> RerankDocument:
    shown: Mapping[str, Any] = {"text": document} if isinstance(document, str) else document
    if not shown.get("text"):  # clients read a document's text
        shown = {
            **shown,
            "text": shown.get("description") or shown.get("job_text") or json.dumps(shown),
        }
    written = without_surrogates(json.dumps(shown, ensure_ascii=False))
    return RerankDocument.model_validate(json.loads(written))


def _log_odds(p: float) -> float:
    bounded = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(bounded / (1 - bounded))
