"""The bundle spec: one YAML file that says what is built, from what, and how it is served.

Each field's description is its documentation (`control spec --schema` prints it). Unknown keys are
errors. Units stand in the names. Paths are relative to the spec file.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from slmrank.spec.compress import PruneSpec, SummarizeSpec
from slmrank.spec.data import DataSpec
from slmrank.spec.deploy import DeploySpec
from slmrank.spec.engine import EngineSpec
from slmrank.spec.load import SweepSpec
from slmrank.spec.model import PRESET_ITEM_TOKENS, PRESETS, BaseSpec, PromptSpec, TrimSpec, wording
from slmrank.spec.repository import RepositorySpec
from slmrank.spec.section import Section
from slmrank.spec.train import EvaluateSpec, FinetuneSpec, RecoverSpec


class BundleSpec(Section):
    """A whole bundle. Leave `trim`, `prune` and `recover` out to serve the fine-tuned model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="name in reports")
    data: DataSpec
    base: BaseSpec = Field(default_factory=BaseSpec)
    prompt: PromptSpec = Field(default_factory=PromptSpec)
    trim: TrimSpec | None = None
    summarize: SummarizeSpec = Field(default_factory=SummarizeSpec)
    finetune: FinetuneSpec | None = Field(default_factory=FinetuneSpec)
    """fine-tuning; with base.preset only where this section is given"""
    prune: PruneSpec | None = None
    recover: RecoverSpec | None = None
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec)
    engine: EngineSpec = Field(default_factory=EngineSpec)
    repository: RepositorySpec = Field(default_factory=RepositorySpec)
    sweep: SweepSpec = Field(default_factory=SweepSpec)
    deploy: DeploySpec = Field(default_factory=DeploySpec)

    @property
    def wording(self) -> PromptSpec:
        """The prompt that the model is asked with: the preset's, or the prompt section's."""
        return wording(self.base, self.prompt)

    @property
    def queue_timeout_us(self) -> int:
        """Longest predicted time to an answer of the repository, in microseconds."""
        own = self.repository.queue_timeout_us
        return own if own is not None else round(self.sweep.slo.latency_ms * 1000)

    @property
    def full_texts(self) -> dict[str, int]:
        """`full_tokens`: tokens of whole descriptions, where the ranker that is served was trained
        on these; empty where it reads summaries."""
        last = self.recover or self.finetune
        whole = last is not None and last.text == "full"
        return {"full_tokens": last.text_tokens} if last is not None and whole else {}

    @model_validator(mode="before")
    @classmethod
    def _as_it_is(cls, values: Any) -> Any:
        """A public reranker is not trained unless it is asked for, and its items have room for its
        closing question."""
        base = values.get("base") if isinstance(values, dict) else None
        preset = base.get("preset") if isinstance(base, dict) else None
        if preset in (None, "plain"):
            return values
        prompt = values.get("prompt", {})
        if str(preset) in PRESET_ITEM_TOKENS and isinstance(prompt, dict):
            prompt = {"max_item_tokens": PRESET_ITEM_TOKENS[str(preset)], **prompt}
            values = {**values, "prompt": prompt}
        return {"finetune": None, **values}

    @model_validator(mode="after")
    def _consistent(self) -> BundleSpec:
        fields, own = PromptSpec.model_fields, self.prompt.model_fields_set
        if own == set(fields):  # a spec that was written out with its defaults is the same spec
            own = {name for name in own if getattr(self.prompt, name) != fields[name].default}
        own = own & set(PRESETS[self.base.preset])
        if own:
            raise ValueError(
                f"prompt.{min(own)} cannot be set beside base.preset {self.base.preset}, "
                "whose wording it is; remove the key, or use base.preset: plain"
            )
        asked = self.base.instruction != BaseSpec.model_fields["instruction"].default
        if asked and "{instruction}" not in PRESETS[self.base.preset].get("prefix", ""):
            raise ValueError(
                f"base.instruction does nothing: the wording of base.preset {self.base.preset} "
                "has no instruction; leave it out"
            )
        if "{query}" in self.base.instruction:
            raise ValueError("base.instruction cannot hold {query}, which has its own place")
        if self.recover is not None and self.prune is None:
            raise ValueError("recover needs a prune section; add one or remove recover")
        stages = self.prune.stages if self.prune is not None else 1
        if stages > 1 and (self.recover is None or self.recover.steps < stages):
            raise ValueError(
                f"prune.stages {stages} needs a recover section of {stages} steps or more: one "
                "stage is recovered before the next"
            )
        if stages > 1 and self.recover is not None and self.recover.adapter is not None:
            raise ValueError(
                "recover.adapter is of a model that was pruned at once; set prune.stages: 1, or "
                "no adapter"
            )
        if self.summarize.budget_tokens >= self.prompt.max_item_tokens:
            raise ValueError(
                f"summarize.budget_tokens {self.summarize.budget_tokens} does not fit into "
                f"prompt.max_item_tokens {self.prompt.max_item_tokens} beside title, place and "
                "closing question: every summary would be cut; raise the second or lower the first"
            )
        return self
