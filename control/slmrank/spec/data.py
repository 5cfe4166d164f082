"""Sections `data`: where jobs and graded pairs come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slmrank.spec.section import Section


def _shares(spec: Any) -> Any:
    if spec.test_share + spec.dev_share >= 1:
        raise ValueError(
            f"test_share {spec.test_share:g} and dev_share {spec.dev_share:g} leave nothing to "
            "train on; lower one"
        )
    return spec


class CandidateSpec(Section):
    train: int = Field(8, ge=2, description="jobs judged per training query")
    dev: int = Field(16, ge=2, description="jobs judged per development query")
    test: int = Field(16, ge=2, description="jobs judged per test query")


class OnetData(Section):
    """The example job-search set, built from the O*NET tables."""

    source: Literal["onet"]
    table: Path | None = Field(None, description="Task_DWA.csv; unset: out of the PyPI package")
    seed: int = Field(0, ge=0, description="seed of postings, queries, splits and candidates")
    postings_per_occupation: int = Field(2, ge=1, le=50, description="postings per occupation")
    queries_per_occupation: int = Field(3, ge=1, le=50, description="queries per occupation")
    candidates: CandidateSpec = Field(default_factory=CandidateSpec)
    test_share: float = Field(0.2, gt=0, lt=0.8, description="share of occupations only tested")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of occupations for calibration")
    occupations: int | None = Field(None, ge=20)
    """use only this many occupations, spread evenly; unset: all"""

    _leave_some = model_validator(mode="after")(_shares)


QueryKind = Literal["title", "short", "tool", "vacancy", "duty", "title_duty"]
# As often as they stand here.
QUERY_KINDS: tuple[QueryKind, ...] = (
    *("title",) * 5,
    *("short", "tool", "duty", "title_duty"),
    *("vacancy",) * 3,
)


class OnetDatabaseData(Section):
    """Titles that people search by, from a release of the O*NET database (onetcenter.org, text)."""

    source: Literal["onet-database"]
    folder: Path = Field(description="folder of the release's text files, plain or gzip")
    held_back: Path | None = None
    """file with occupation codes, one a line: they alone are the test split"""
    seed: int = Field(0, ge=0, description="seed of postings, queries, splits and candidates")
    postings_per_occupation: int = Field(2, ge=1, le=50, description="postings per occupation")
    queries_per_occupation: int = Field(8, ge=1, le=200, description="queries per occupation")
    query_kinds: tuple[QueryKind, ...] = Field(QUERY_KINDS, min_length=1)
    """kinds of queries; one named twice comes twice as often"""
    entry_share: float = Field(0.25, ge=0, le=1)
    """share of training and dev postings in the form of a taxonomy's entry: official title,
    description, tasks"""
    candidates: CandidateSpec = Field(default_factory=CandidateSpec)
    test_share: float = Field(0.2, gt=0, lt=0.8)
    """share of occupations only tested, without held_back"""
    dev_share: float = Field(0.1, ge=0, lt=0.5)
    """share of the others for calibration"""


class OwnData(Section):
    """Your own jobs and judged pairs: a JSON object a line, or Parquet files, folders or globs."""

    source: Literal["jsonl", "parquet"]
    jobs: Path = Field(description="job_id, title, company, location, description")
    pairs: Path
    """query, job_id, grade 0..4 or target 0..1, optional split, kind, group"""
    seed: int = Field(0, ge=0, description="seed of the split for queries that name none")
    test_share: float = Field(0.2, gt=0, lt=0.8, description="share of queries only tested")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of queries for calibration")

    _leave_some = model_validator(mode="after")(_shares)


DataSpec = Annotated[OnetData | OnetDatabaseData | OwnData, Field(discriminator="source")]
