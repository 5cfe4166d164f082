"""Target `openvino`: the embedded CPU engine, built and served on any Linux machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmrank.engine.targets.base import Building, InProcessTarget
from slmrank.machine.facts import cpu_features
from slmrank.machine.inspection import Machine, Report
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec

INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
RUNTIME = "slmrank.engine.openvino.runtime"
DISK_GIB, MEMORY_GIB = 5, 6


def quickest_precision(features: frozenset[str] | None) -> str:
    """The precision that is fastest on a processor with these flags; None: they cannot be read.
    Without instructions for it INT8 is emulated: on two AVX2 cores float32 scored 1.07 to 1.18
    times its items a second (medians of seven passes of four shapes), without its error, in 2.8
    times the memory. Half weights in float32 products were no faster than INT8."""
    return "int8" if features is None or features.intersection(INT8_FEATURES) else "float32"


class OpenVinoTarget(InProcessTarget):
    name = "openvino"
    code = ("slmrank.engine.openvino.build",)
    engine_module = RUNTIME
    server_code = (RUNTIME,)
    runtime = ("openvino", "nvidia-pytriton")
    unquantized: Mapping[str, Any] = {"openvino": {"precision": "bfloat16"}}

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return ("torch", "transformers", "openvino"), "train,local"

    def settings(self, spec: BundleSpec) -> dict[str, Any]:
        return super().settings(spec) | {"precision": self.precision(spec.engine)}

    def precision(self, spec: EngineSpec) -> str:
        asked = spec.openvino.precision
        return quickest_precision(cpu_features()) if asked == "auto" else asked

    def elsewhere(self, spec: EngineSpec) -> list[dict[str, Any]]:
        """Other precisions that `auto` gives on other processors, as changes of section engine."""
        if spec.openvino.precision != "auto":
            return []
        others = {"int8", "float32"} - {self.precision(spec)}
        return [{"openvino": {"precision": one}} for one in sorted(others)]

    def write(self, building: Building) -> None:
        from slmrank.engine.openvino.build import write_openvino

        write_openvino(building, self.precision(building.spec.engine))

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        report.add(
            "platform",
            machine.system == "Linux" and machine.architecture == "x86_64",
            f"{machine.system} {machine.architecture}",
            "the packaged tritonserver runs on Linux x86-64; elsewhere use a container",
        )
        report.add(
            "python",
            machine.python in ((3, 11), (3, 12)),
            ".".join(map(str, machine.python)),
            "use Python 3.11 or 3.12: the packaged server has a backend for these",
        )
        for name, extra in (("torch", "train"), ("transformers", "train"), ("openvino", "local")):
            report.add_package(machine, name, extra)
        report.add_tool("tritonserver", machine.tritonserver)
        numpy = machine.versions.get("numpy", "")
        report.add(
            "numpy",
            not machine.packaged_server or numpy.startswith("1."),
            numpy or "not installed",
            "pip install 'numpy<2': the packaged server's string tensors break with numpy 2",
        )
        report.add_tool("perf_analyzer", machine.perf_analyzer)
        if machine.cpu is None:
            report.add("INT8 instructions", "unknown", "flags cannot be read", "measure")
        else:
            fast = [name for name in INT8_FEATURES if name in machine.cpu]
            report.add(
                "INT8 instructions",
                "ok" if fast else "unknown",
                " ".join(fast) or "none of " + " ".join(INT8_FEATURES),
                "INT8 runs, and is slower: leave engine.openvino.precision at auto",
            )
        if machine.memory_gib is None:
            report.add("memory", "unknown", "cannot be read", f"{MEMORY_GIB} GiB are needed")
        else:
            enough = machine.memory_gib >= MEMORY_GIB
            fix = f"the demo needs {MEMORY_GIB} GiB"
            report.add("memory", enough, f"{machine.memory_gib:.0f} GiB", fix)
        report.add_disk(machine, DISK_GIB)
