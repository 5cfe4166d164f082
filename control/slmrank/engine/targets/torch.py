"""Target `torch`: PyTorch inside the server, on an NVIDIA GPU or a CPU; pip installs all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact
from slmrank.engine.targets.base import Building, DeployFacts, InProcessTarget
from slmrank.machine.inspection import Machine, Report
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec

RUNTIME = "slmrank.engine.torch.runtime"


class TorchTarget(InProcessTarget):
    name = "torch"
    code = ("slmrank.engine.torch.build",)
    engine_module = RUNTIME
    server_code = (RUNTIME,)
    runtime = ("torch", "nvidia-pytriton")
    unquantized: Mapping[str, Any] = {}

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return ("torch", "transformers", "safetensors"), "train"

    def precision(self, spec: EngineSpec) -> str:
        return spec.torch.dtype

    def write(self, building: Building) -> None:
        from slmrank.engine.torch.build import write_torch

        write_torch(building)

    def open_engine(self, engine: Path) -> Any:
        from slmrank.engine.torch.runtime import TorchEngine

        return TorchEngine(engine, device="auto")  # the server may be another machine

    def deploy_facts(self, spec: BundleSpec, engine: Artifact) -> DeployFacts:
        return DeployFacts(gpu=spec.engine.torch.device == "cuda")

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        for name in ("torch", "transformers", "safetensors"):
            report.add_package(machine, name, "train")
        report.add_tool("tritonserver", machine.tritonserver)
        names = ", ".join(gpu.name for gpu in machine.gpus)
        report.add(
            "GPU",
            "ok" if names else "unknown",
            names or "none: it runs on the CPU, slower than the target openvino",
            "install torch for CUDA on a machine with an NVIDIA GPU",
        )
