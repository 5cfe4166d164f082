"""Sections `summarize` and `prune`: shorter texts, a smaller model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FieldSerializationInfo,
    field_serializer,
    model_validator,
)

from slmrank.spec.section import Section, multiple_of_64


class GenerativeSpec(Section):
    """Training of method `generative`: supervised on the summaries of method `ranker`, then by
    reinforcement against the frozen ranker."""

    source_tokens: int = Field(256, ge=16, le=8192)
    """tokens of a description that the model reads"""
    tokens: int = Field(48, ge=8, le=2048, description="longest summary in training")
    new_words: bool = True
    """false: words of a summary that the posting does not have are struck out"""
    rank: int = Field(16, ge=1, description="rank of the LoRA adapter")
    jobs: int = Field(400, ge=4, description="training jobs, drawn among those with queries")
    held_out: int = Field(24, ge=2, description="further jobs on which the reward is measured")
    queries: int = Field(4, ge=2, description="queries of a job in the reward, half of them good")
    item_tokens: int = Field(1024, ge=64, description="tokens of a posting that the ranker reads")
    warm_up_epochs: float = Field(2.0, ge=0, description="passes over the jobs before the reward")
    warm_up_learning_rate: float = Field(2e-4, gt=0)
    steps: int = Field(120, ge=0, description="optimizer steps by reinforcement")
    learning_rate: float = Field(3e-4, gt=0)
    batch_size: int = Field(12, ge=2, description="summaries in one pass")
    samples: int = Field(6, ge=2, description="summaries of a job that are compared")
    gradient_accumulation_steps: int = Field(1, ge=1)
    steps_per_generation: int = Field(4, ge=1)
    """passes that one sampling feeds, each with its own batch_size summaries: the later ones learn
    from what an older policy wrote"""
    temperature: float = Field(0.8, gt=0)
    loss: Literal["dr_grpo", "luspo"] = "luspo"
    """how tokens are summed, neither of which favours short answers as the plain GRPO loss does:
    the reward pays for shortness already"""
    length_weight: float = Field(0.4, ge=0, description="w of the length term (the paper's: 0.4)")
    seed: int = 0

    @model_validator(mode="after")
    def _off_policy(self) -> GenerativeSpec:
        if self.steps_per_generation <= self.gradient_accumulation_steps:
            raise ValueError(
                f"generative.steps_per_generation {self.steps_per_generation} must be above "
                f"generative.gradient_accumulation_steps {self.gradient_accumulation_steps}: where "
                "one update takes all that was sampled, every importance ratio is 1, and "
                "sequence-level sampling (GSPO) has no effect"
            )
        if self.batch_size * self.steps_per_generation % self.samples:
            raise ValueError(
                f"generative.batch_size {self.batch_size} x steps_per_generation "
                f"{self.steps_per_generation} must be a multiple of generative.samples "
                f"{self.samples}"
            )
        return self


class SummarizeSpec(Section):
    """Query-independent summaries of job descriptions, and the store that keeps them."""

    method: str = "salience"
    """summarizer: `salience` (sentences that cover rare words), `ranker` (phrases that move a
    trained ranker's p), `generative` (a language model trained against it), `lead` (the first
    words), `stopwords` (the first words that are no stop words), or the name of a registered
    one"""
    budget_tokens: int = Field(56, ge=8, le=2048, description="longest summary of a description")
    learn_jobs: int = Field(150, ge=1)
    """jobs on which method `ranker` measures what phrases do to p"""
    max_cut_share: float = Field(0.02, ge=0, le=1)
    """share of jobs whose title, place and summary may exceed prompt.max_item_tokens, and are
    cut; above: refused"""
    fitted: Path | None = None
    """folder of an earlier summarizer artifact, used instead of fitting one: its summaries stay
    as they are when the catalogue changes"""
    store: str = "lmdb:"
    """where servers read summaries: `lmdb:` inside the bundle, or `redis://HOST:PORT/DB`, which
    `control publish` fills"""
    generative: GenerativeSpec | None = None
    """of method `generative`; unset: its defaults"""
    options: dict[str, Any] = Field(default_factory=dict)
    """settings of a summarizer that was registered elsewhere"""

    @field_serializer("generative")
    def _as_asked(
        self, own: GenerativeSpec | None, info: FieldSerializationInfo
    ) -> dict[str, Any] | None:
        """With a fitted summarizer, what is not set is as it was trained: it stays unset."""
        if own is None:
            return None
        return own.model_dump(exclude_unset=info.exclude_unset or self.fitted is not None)

    def carried(self) -> str:
        """JSON for a process that has the fitted summarizer: of `generative` what is set."""
        asked = self.generative and self.generative.model_dump(exclude_unset=True)
        values = self.model_dump(mode="json", exclude={"fitted", "generative"})
        return json.dumps({**values, "generative": asked})

    def generative_settings(self) -> dict[str, Any]:
        """What of `generative` a summarizer depends on: all, or with `fitted` what is set."""
        own = self.generative or GenerativeSpec()
        return own.model_dump(exclude_unset=True) if self.fitted is not None else own.settings()


class PruneSpec(Section):
    """Structured pruning: whole layers go, then OSSCAR chooses among the MLP neurons and, where
    asked for, the heads of the others."""

    # No defaults: what is two thirds of one model is all of another.
    intermediate_size: Annotated[int, Field(ge=64), AfterValidator(multiple_of_64)]
    """MLP neurons kept per layer; a multiple of 64"""
    layers: int = Field(ge=1, description="layers kept")
    kv_heads: int | None = Field(None, ge=1)
    """key/value heads kept per layer, each with the query heads that read it; unset: all"""
    select: Literal["last", "importance"] = "last"
    """layers that go: the last ones, or those without which the ranker's own p moves least"""
    importance_prompts: int = Field(
        64, ge=1, description="of calibration_prompts, for that measurement"
    )
    stages: int = Field(1, ge=1, le=16)
    """prune in so many equal parts, each followed by its share of recover.steps; 1: all at once,
    then all steps"""
    recorded: Path | None = None
    """pruning.json of an earlier pruning of the same model: its layers, neurons and calibration
    prompts are used, and what is kept is not chosen again"""
    method: Literal["osscar", "magnitude", "magnitude_refit"] = "osscar"
    """selection and refit; the others are baselines"""
    calibration_prompts: int = Field(192, ge=4, description="training prompts for calibration")
    damping: float = Field(0.01, gt=0, description="ridge on the Hessian, share of its mean diag")
    neurons_per_round: int = Field(16, ge=1, description="neurons dropped between two updates")
    seed: int = Field(0, ge=0, description="seed of the calibration sample")

    @model_validator(mode="after")
    def _chosen_here(self) -> PruneSpec:
        if self.stages > 1 and self.recorded is not None:
            raise ValueError("prune.recorded is pruned at once; set prune.stages: 1, or no record")
        return self
