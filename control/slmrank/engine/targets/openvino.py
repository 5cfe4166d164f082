"""Target `openvino`: the embedded CPU engine, built and served on any Linux machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmrank.engine.targets.base import Building, InProcessTarget
from slmrank.machine.inspection import Machine, Report
from slmrank.spec.engine import EngineSpec

INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
RUNTIME = "slmrank.engine.openvino.runtime"
DISK_GIB, MEMORY_GIB = 5, 6


class OpenVinoTarget(InProcessTarget):
    name = "openvino"
    code = ("slmrank.engine.openvino.build",)
    engine_module = RUNTIME
    server_code = (RUNTIME,)
    runtime = ("openvino", "nvidia-pytriton")
    unquantized: Mapping[str, Any] = {"openvino": {"precision": "bfloat16"}}

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return ("torch", "transformers", "openvino", "nncf"), "local"

    def precision(self, spec: EngineSpec) -> str:
        return spec.openvino.precision

    def write(self, building: Building) -> None:
        from slmrank.engine.openvino.build import write_openvino

        write_openvino(building)

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
        extras = {"torch": "train", "transformers": "train", "openvino": "local", "nncf": "local"}
        for name, extra in extras.items():
            version = machine.versions.get(name)
            fix = f"pip install 'slmrank[{extra}]'"
            report.add(name, bool(version), version or "not installed", fix)
        report.add_tool("tritonserver", machine.tritonserver, machine.tritonserver_fault)
        numpy = machine.versions.get("numpy", "")
        report.add(
            "numpy",
            not machine.packaged_server or numpy.startswith("1."),
            numpy or "not installed",
            "pip install 'numpy<2': the packaged server's string tensors break with numpy 2",
        )
        report.add_tool("perf_analyzer", machine.perf_analyzer, machine.perf_analyzer_fault)
        if machine.cpu is None:
            report.add("INT8 instructions", "unknown", "flags cannot be read", "measure")
        else:
            fast = [name for name in INT8_FEATURES if name in machine.cpu]
            report.add(
                "INT8 instructions",
                "ok" if fast else "unknown",
                " ".join(fast) or "none of " + " ".join(INT8_FEATURES),
                "INT8 runs, but may be no faster: compare with engine.openvino.precision bfloat16",
            )
        if machine.memory_gib is None:
            report.add("memory", "unknown", "cannot be read", f"{MEMORY_GIB} GiB are needed")
        else:
            enough = machine.memory_gib >= MEMORY_GIB
            fix = f"the demo needs {MEMORY_GIB} GiB"
            report.add("memory", enough, f"{machine.memory_gib:.0f} GiB", fix)
        report.add_disk(machine, DISK_GIB)
