"""Sections `finetune` and `recover`: training runs, and section `evaluate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from slmrank.spec.data import DataSpec
from slmrank.spec.section import Section


class LoraSpec(Section):
    """Train a low-rank adapter and merge it, instead of all weights."""

    rank: int = Field(16, ge=1, le=512, description="rank of every update")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")


class TrainSpec(Section):
    """One training run: KL to the soft target on the two label logits."""

    adapter: Path | None = None
    """adapter folder (peft's format) to start from; further steps train it"""
    steps: int = Field(64, ge=0, description="optimizer steps; 0 only merges the adapter")
    lora: LoraSpec | None = Field(None, description="train an adapter; unset: all of the layers")
    list_loss: Literal["ranknet", "listnet"] | None = None
    """loss on the order inside a query, added to the KL"""
    list_weight: float = Field(0.5, gt=0, description="weight of list_loss")
    queries_per_step: int = Field(4, ge=1, description="queries in a step of each process")
    tokens_per_step: int | None = Field(None, ge=16)
    """instead of queries_per_step: as many queries as have this many tokens"""
    tokens_at_once: int | None = Field(None, ge=16)
    """tokens of one forward pass; a larger step is summed over several, and a query's jobs stay
    together. A 135M model keeps 1.5 MB of each token until the backward pass: set this where
    items are long"""
    items_per_query: int = Field(4, ge=1, description="jobs per query in a step")
    shard: bool = False
    """split weights, gradients and optimizer state among the processes (FSDP2) instead of
    copying them (DDP): for models that a GPU cannot train alone"""
    learning_rate: float = Field(5e-5, gt=0, description="peak rate of AdamW, cosine to a tenth")
    warmup_steps: int = Field(8, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """evaluate and keep the moving average of the weights over about 1 / (1 - ema_decay) steps
    instead of the last ones; unset: the last ones"""
    seed: int = Field(0, ge=0, description="seed of batches")
    checkpoint_every: int = Field(16, ge=1, description="steps between resumable states")
    dev_every: int | None = Field(None, ge=1)
    """steps between evaluations on dev, and one at the end; the last that is within noise of the
    best is kept; unset: none"""
    dev_queries: int = Field(64, ge=1, description="dev queries of such an evaluation")
    logger: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """where losses also go while it trains (tensorboard's files: below ARTIFACTS/logs); the
    package must be installed"""
    calibration_queries: int | None = Field(None, ge=1)
    """dev queries on which one temperature is fitted after training, so that p means what it
    says; unset: none, or the one of the adapter, also after further steps"""
    text: Literal["summary", "full"] = "summary"
    """what is read of a job: its summary, as servers do, or its whole description"""
    teacher_text: Literal["summary", "full"] = "summary"
    """what the teacher reads of it: full texts teach what summaries leave out, if the teacher
    was trained on them"""
    text_tokens: int = Field(1024, ge=64, description="tokens of an item that is a full text")
    unlabelled_queries: int = Field(0, ge=0)
    """at most so many further queries, made of the training jobs' own words, with jobs that nobody
    judged for them: the teacher alone says their p"""
    patience: int | None = Field(None, ge=1)
    """evaluations without a better NDCG@10 after which training stops"""

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes out: not where losses go nor how often a state is
        kept, and no paths, whose content counts."""
        told = ["logger", "checkpoint_every"]
        if self.list_loss is None:
            told.append("list_weight")
        if "full" not in (self.text, self.teacher_text):
            told.append("text_tokens")
        return {
            name: value
            for name, value in self.settings().items()
            if name not in told and not isinstance(getattr(self, name), Path)
        }

    @model_validator(mode="after")
    def _without_effect(self) -> TrainSpec:
        if self.adapter is not None and self.lora is not None:
            raise ValueError(
                "an adapter has its own rank and alpha: lora beside it does nothing; leave one out"
            )
        if self.patience is not None and self.dev_every is None:
            raise ValueError(
                "patience counts evaluations on dev, and there are none; set dev_every, or leave "
                "patience out"
            )
        if self.shard and self.tokens_at_once is not None:
            raise ValueError(
                "tokens_at_once splits a step into as many passes as its queries need, and with "
                "shard: true all processes must take equally many; lower tokens_per_step, and "
                "leave tokens_at_once out"
            )
        return self

    @field_validator("steps")
    @classmethod
    def _steps_or_adapter(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("adapter") is None:
            raise ValueError("0 steps train nothing; give an adapter to merge, or 1 or more steps")
        return value

    def _check_teacher(self, lacking: str | None) -> None:
        """`lacking`: what would give a teacher, where there is none."""
        if lacking is not None and self.unlabelled_queries:
            raise ValueError(
                f"unlabelled_queries have no grades to learn from; set {lacking}, or 0 of them"
            )
        if lacking is not None and self.teacher_text == "full":
            raise ValueError(f"teacher_text: full is for a teacher; set {lacking}, or leave it out")
        if lacking is None and (self.text, self.teacher_text) == ("full", "summary"):
            raise ValueError(
                "a teacher that reads summaries teaches nothing about full texts; set "
                "teacher_text: full beside text: full"
            )


class FinetuneSpec(TrainSpec):
    """Fine-tuning of the base model."""

    teacher: Path | None = None
    """ranker checkpoint to distil from: its p is the target; unset: grade / 4"""

    @model_validator(mode="after")
    def _who_says(self) -> FinetuneSpec:
        self._check_teacher(None if self.teacher else "finetune.teacher: FOLDER of a checkpoint")
        if self.teacher is not None and not self.steps:
            raise ValueError("0 steps learn nothing from a teacher; give steps, or no teacher")
        return self


class RecoverSpec(TrainSpec):
    """Distillation into the pruned model."""

    teacher: Literal["finetuned", "labels"] = "finetuned"
    """target: the unpruned fine-tuned model's p, or the grades"""

    @model_validator(mode="after")
    def _who_says(self) -> RecoverSpec:
        self._check_teacher(None if self.teacher != "labels" else "recover.teacher: finetuned")
        return self


class EvaluateSpec(Section):
    """Quality on held-out queries."""

    sets: dict[str, DataSpec] = Field(default_factory=dict)
    """other sets to evaluate on, by name, each with a source as in `data`: `control evaluate
    SPEC --set NAME`"""
    dense_baseline: bool = False
    """also a row of all-MiniLM-L6-v2, the bi-encoder that a ranker must beat"""

    split: Literal["dev", "test"] = Field("test", description="which pairs")
    queries: int | None = Field(None, ge=1, description="sample of queries; unset: all")
    set_queries: int | None = Field(None, ge=1)
    """sample of queries of each named set; unset: all"""
    full_text_queries: int = Field(0, ge=0)
    """queries also scored on full texts; 0: none (it is slow on a CPU)"""
    full_text_tokens: int = Field(1024, ge=64, description="item limit of the full-text rows")
    dtype: Literal["float32", "bfloat16"] = "float32"
    """precision of the reference scorer"""
    bootstrap: int = Field(2000, ge=100, description="resamples over queries for the intervals")
    seed: int = Field(0, ge=0, description="seed of sample and bootstrap")

    @field_validator("sets")
    @classmethod
    def _named(cls, sets: dict[str, DataSpec]) -> dict[str, DataSpec]:
        for name in sets:
            if name == "own" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(
                    f"{name!r} is no name of a set: letters, digits, dot, dash and underscore, and "
                    "not own, which is the bundle's own pairs"
                )
        return sets
