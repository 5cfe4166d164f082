"""What an engine target is: everything about one way to run the ranker, in one object.

A target knows its section of the spec, what building it needs, how it is built and scored in this
process, which Triton models serve it, and what a machine must have for it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact
from slmrank.engine.parity import Scorer, check_parity
from slmrank.machine.inspection import Machine, Report
from slmrank.model.checkpoint import Checkpoint
from slmrank.prompt.corpus import EncodedQuery
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec
from slmrank.triton.config import RANKER, ModelConfig, Queue, ranker_model


@dataclass(frozen=True, kw_only=True)
class Building:
    """What a target builds from: `calibration(n)` gives training queries with n items in all,
    `held_out` those of the parity gate; files go into `folder`."""

    spec: BundleSpec
    checkpoint: Checkpoint
    calibration: Callable[[int], list[EncodedQuery]]
    held_out: Sequence[EncodedQuery]
    folder: Path
    report: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DeployFacts:
    """What a cluster must know of an engine: the key of a compiled one and the bytes loaded beside
    the repository, where compiled engines are mounted, the build plan, the GPU product; `gpu`: its
    pods get one although the target runs without."""

    gpu: bool = False
    tag: str | None = None
    bytes: int = 0
    engines: str | None = None
    plan: Mapping[str, Any] | None = None
    gpu_product: str | None = None


class EngineTarget(ABC):
    """One way to run the ranker. `code` are the modules that build it, `server_code` those that run
    inside the server beside its stage; `runtime` the distributions whose versions decide its speed.
    `compiled_elsewhere`: `build` gives a plan, which is compiled where its GPU is. `unquantized` is
    the change of section `engine` that leaves quantisation out, where an engine runs anywhere."""

    name: str
    needs_gpu: bool = False
    compiled_elsewhere: bool = False
    code: tuple[str, ...] = ()
    server_code: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    unquantized: Mapping[str, Any] | None = None

    def settings(self, spec: BundleSpec) -> dict[str, Any]:
        """What decides the engine: another target's settings do not."""
        return spec.engine.section.settings()

    def serving_settings(self, spec: BundleSpec) -> dict[str, Any]:
        """What decides the repository beside the engine."""
        return {}

    def check(self, spec: EngineSpec) -> None:  # noqa: B027
        """Refuse what needs no model to be refused, before anything is trained: SpecError."""

    @abstractmethod
    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        """(distributions that building needs, the extra that brings them)."""

    @abstractmethod
    def precision(self, spec: EngineSpec) -> str:
        """Such as int8: stands in reports."""

    def elsewhere(self, spec: EngineSpec) -> list[dict[str, Any]]:
        """Changes of section engine by which other machines would build from the same spec."""
        return []

    @abstractmethod
    def build(self, building: Building) -> dict[str, Any]:
        """Build into `building.folder`, behind the parity gate; returns figures.

        Raises ParityError when its scores leave the tolerance.
        """

    def check_parity(self, building: Building) -> dict[str, Any]:
        """The figures of the parity gate over what was built. Raises ParityError."""
        building.report("check parity")
        scorer = self.open_scorer(building.folder, building.checkpoint)
        limits = building.spec.engine.parity
        return check_parity(building.checkpoint, scorer, building.held_out, limits, building.report)

    @abstractmethod
    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        """Score with the engine directory in this process. Where its kernels need hardware that is
        not here: its weights with reference arithmetic."""

    @abstractmethod
    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        """The Triton models of the stage `ranker`, by name. `figures` are the engine's."""

    def stage(self) -> Path:
        """The `model.py` of the stage `ranker`."""
        folder = f"{RANKER}_{self.name.replace('-', '_')}"
        return shipped("model_repository") / folder / "1" / "model.py"

    def links(self, engine: Path) -> dict[str, Path]:
        """Folders to put into the repository: path inside it -> where it lies now."""
        return {}

    def identity(self, figures: Mapping[str, Any]) -> dict[str, str]:
        """What a server adds to its description."""
        return {}

    def deploy_facts(self, spec: BundleSpec, engine: Artifact) -> DeployFacts:
        return DeployFacts()

    @abstractmethod
    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        """Add what a machine has, and lacks, for this target."""


class InProcessTarget(EngineTarget):
    """An engine that runs inside the process of its stage, and so in this one as well.

    `engine_module` has `open_engine(folder, threads)`, whose engine answers `logits` and
    `logits_of`.
    """

    engine_module: str

    @abstractmethod
    def write(self, building: Building) -> None:
        """Put the engine's files into `building.folder`."""

    def build(self, building: Building) -> dict[str, Any]:
        self.write(building)
        figures = self.check_parity(building)
        size = sum(path.stat().st_size for path in building.folder.iterdir())
        return {"built": True, "bytes": size, **figures}

    def open_engine(self, engine: Path) -> Any:
        return importlib.import_module(self.engine_module).open_engine(engine, threads=0)

    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        loaded = self.open_engine(engine)
        return lambda query: loaded.logits(query.prefix, query.items)

    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        own = spec.repository
        parameters = {"runtime": self.engine_module, "threads": str(own.threads)} | prompt_limits(
            checkpoint
        )
        return {RANKER: ranker_model(own.max_batch_size, queue, parameters, own.instances)}

    def stage(self) -> Path:
        return shipped("model_repository") / f"{RANKER}_in_process" / "1" / "model.py"

    def links(self, engine: Path) -> dict[str, Path]:
        return {f"{RANKER}/1/engine": engine}


def prompt_limits(checkpoint: Checkpoint) -> dict[str, str]:
    """What a stage `ranker` holds the prompts of its callers to (`split_items`)."""
    return {
        "vocab_size": str(checkpoint.geometry.vocab_size),
        "max_tokens": str(checkpoint.encoder().max_prompt_tokens),
    }
