"""The bundle spec: one YAML file that says what is built, from what, and how it is served.

Each field's description is its documentation (`control spec --schema` prints it). Unknown keys are
errors. Units stand in the names. Paths are relative to the spec file.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from slmrank.spec.compress import PruneSpec, SummarizeSpec
from slmrank.spec.data import DataSpec
from slmrank.spec.deploy import DeploySpec
from slmrank.spec.engine import EngineSpec
from slmrank.spec.load import SweepSpec
from slmrank.spec.model import BaseSpec, PromptSpec, TrimSpec
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
    finetune: FinetuneSpec = Field(default_factory=FinetuneSpec)
    prune: PruneSpec | None = None
    recover: RecoverSpec | None = None
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec)
    engine: EngineSpec = Field(default_factory=EngineSpec)
    repository: RepositorySpec = Field(default_factory=RepositorySpec)
    sweep: SweepSpec = Field(default_factory=SweepSpec)
    deploy: DeploySpec = Field(default_factory=DeploySpec)

    @property
    def queue_timeout_us(self) -> int:
        """Longest wait in one stage of the repository, in microseconds."""
        own = self.repository.queue_timeout_us
        return own if own is not None else round(2 * self.sweep.slo.latency_ms * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> BundleSpec:
        if self.recover is not None and self.prune is None:
            raise ValueError("recover needs a prune section; add one or remove recover")
        if self.summarize.budget_tokens >= self.prompt.max_item_tokens:
            raise ValueError(
                f"summarize.budget_tokens {self.summarize.budget_tokens} does not fit into "
                f"prompt.max_item_tokens {self.prompt.max_item_tokens} beside title, place and "
                "closing question: every summary would be cut; raise the second or lower the first"
            )
        return self
