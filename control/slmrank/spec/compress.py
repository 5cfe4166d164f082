"""Sections `summarize` and `prune`: shorter texts, a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from slmrank.spec.section import Section, multiple_of_64


class SummarizeSpec(Section):
    """Query-independent summaries of job descriptions, and the store that keeps them."""

    method: str = Field(
        "salience",
        description="summarizer: `salience` (sentences that cover rare words), `ranker` (phrases "
        "that move a trained ranker's p), `lead` (the first words), `stopwords` (the first words "
        "that are no stop words), or the name of a registered one",
    )
    budget_tokens: int = Field(56, ge=8, le=2048, description="longest summary of a description")
    learn_jobs: int = Field(
        150, ge=1, description="jobs on which method `ranker` measures what phrases do to p"
    )
    max_cut_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of jobs whose title, place and summary may exceed "
        "prompt.max_item_tokens, and are cut; above: refused",
    )
    fitted: Path | None = Field(
        None,
        description="folder of an earlier summarizer artifact, used instead of fitting one: its "
        "summaries stay as they are when the catalogue changes",
    )
    store: str = Field(
        "lmdb:",
        description="where servers read summaries: `lmdb:` inside the bundle, or "
        "`redis://HOST:PORT/DB`, which `control publish` fills",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of a summarizer that was registered elsewhere"
    )


class PruneSpec(Section):
    """Structured pruning: whole layers go, then OSSCAR chooses among the MLP neurons and, where
    asked for, the heads of the others."""

    intermediate_size: int = Field(
        1024, ge=64, description="MLP neurons kept per layer; a multiple of 64"
    )
    layers: int = Field(24, ge=1, description="layers kept")
    kv_heads: int | None = Field(
        None,
        ge=1,
        description="key/value heads kept per layer, each with the query heads that read it; "
        "unset: all",
    )
    select: Literal["last", "importance"] = Field(
        "last",
        description="layers that go: the last ones, or those without which the ranker's own p "
        "moves least",
    )
    importance_prompts: int = Field(64, ge=1, description="training prompts for that measurement")
    recorded: Path | None = Field(
        None,
        description="pruning.json of an earlier pruning of the same model: its layers, neurons and "
        "calibration prompts are used; only the closed-form refit runs",
    )
    method: Literal["osscar", "magnitude", "magnitude_refit"] = Field(
        "osscar", description="selection and refit; the others are baselines"
    )
    calibration_prompts: int = Field(192, ge=4, description="training prompts for calibration")
    damping: float = Field(0.01, gt=0, description="ridge on the Hessian, share of its mean diag")
    neurons_per_round: int = Field(16, ge=1, description="neurons dropped between two updates")
    seed: int = Field(0, description="seed of the calibration sample")

    @field_validator("intermediate_size")
    @classmethod
    def _aligned(cls, value: int) -> int:
        return multiple_of_64("prune.intermediate_size", value)
