"""Target `torch`: PyTorch inside the server, on an NVIDIA GPU or a CPU; pip installs all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact
from slmrank.engine.parity import Scorer
from slmrank.engine.targets.base import Building, DeployFacts, EngineTarget, in_process_stage
from slmrank.machine.inspection import Machine, Report
from slmrank.model.checkpoint import Checkpoint
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec
from slmrank.triton.config import RANKER, ModelConfig, Queue, ranker_model

RUNTIME = "slmrank.engine.torch.runtime"


class TorchTarget(EngineTarget):
    name = "torch"
    code = ("slmrank.engine.torch.build",)
    server_code = (RUNTIME,)
    runtime = ("torch", "nvidia-pytriton")
    unquantized: Mapping[str, Any] = {}

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return ("torch", "transformers", "safetensors"), "train"

    def precision(self, spec: EngineSpec) -> str:
        return spec.torch.dtype

    def build(self, building: Building) -> dict[str, Any]:
        from slmrank.engine.torch.build import build_torch

        return build_torch(building)

    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        from slmrank.engine.torch.runtime import TorchEngine

        loaded = TorchEngine(engine, device="auto")
        return lambda query: loaded.logits(query.prefix, query.items)

    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        own = spec.repository
        parameters = {
            "runtime": RUNTIME,
            "threads": str(own.threads),
            "vocab_size": str(checkpoint.geometry.vocab_size),
            "max_tokens": str(checkpoint.encoder().max_prompt_tokens),
        }
        return {RANKER: ranker_model(own.max_batch_size, queue, parameters, own.instances)}

    def stage(self) -> Path:
        return in_process_stage()

    def links(self, engine: Path) -> dict[str, Path]:
        return {f"{RANKER}/1/engine": engine}

    def deploy_facts(self, spec: BundleSpec, engine: Artifact) -> DeployFacts:
        return DeployFacts(gpu=spec.engine.torch.device == "cuda")

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        for name in ("torch", "transformers", "safetensors"):
            version = machine.versions.get(name)
            report.add(
                name, bool(version), version or "not installed", "pip install 'slmrank[train]'"
            )
        report.add_tool("tritonserver", machine.tritonserver, machine.tritonserver_fault)
        names = ", ".join(gpu.name for gpu in machine.gpus)
        report.add(
            "GPU",
            "ok" if names else "unknown",
            names or "none: it runs on the CPU, slower than the target openvino",
            "install torch for CUDA on a machine with an NVIDIA GPU",
        )
