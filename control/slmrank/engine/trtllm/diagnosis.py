"""What a machine needs for TensorRT-LLM, whichever target runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slmrank.engine.trtllm.compatibility import load_compatibility, same_release
from slmrank.engine.trtllm.plan import check_spec
from slmrank.errors import ControlError
from slmrank.machine.inspection import Machine, Report
from slmrank.spec.engine import TrtllmSpec

BACKEND_FOLDER = Path("/opt/tritonserver/backends/tensorrtllm")
INSIDE = "run inside the container above"
DISK_GIB = 40


def diagnose_trtllm(
    machine: Machine, spec: TrtllmSpec, report: Report, *, packages: Sequence[str]
) -> bool:
    """Container, GPU, driver, packages, server and disk; False when the container itself is wrong
    and nothing more can be said."""
    table = load_compatibility()
    try:
        row = table.container(spec.container, spec.version)
    except ControlError as error:
        report.add("container and version", False, error.message, error.hint)
        return False
    image = table.image_of(row.container, spec.container_digest)
    inside = f"TensorRT-LLM {row.trtllm}, TensorRT {row.tensorrt}, CUDA {row.cuda}"
    report.add("container and version", True, f"{inside} in {image}")
    capability = ""
    try:
        capability = table.capability(spec.gpu)
        check_spec(spec)
    except ControlError as error:
        report.add("planned GPU", False, error.message, error.hint)
    _gpu(report, machine, spec.gpu, capability, row.min_driver)
    if machine.container is None:
        report.add("running in", "unknown", "not NVIDIA's container", INSIDE)
    else:
        same = machine.container == row.container
        report.add("running in", same, f"container {machine.container}", INSIDE)
    wanted = {"tensorrt-llm": row.trtllm, "tensorrt": row.tensorrt}
    for name in packages:
        have = machine.versions.get(name)
        fits = have is not None and same_release(have, wanted[name])
        report.add(name, fits, have or "not installed", f"{wanted[name]} is needed: {INSIDE}")
    if machine.packaged_server:
        report.add("tritonserver", False, "only the packaged one, for CPUs", INSIDE)
    else:
        report.add_tool("tritonserver", machine.tritonserver)
    report.add_disk(machine, DISK_GIB)
    return True


def _gpu(report: Report, machine: Machine, planned: str, capability: str, min_driver: int) -> None:
    if not machine.gpus:
        fix = "use a machine with an NVIDIA GPU, or let the Kubernetes Job build"
        report.add("GPU", False, f"none: {machine.no_gpu}", fix)
        report.add("driver", "unknown", "no GPU", f"{min_driver} or newer is needed")
        return
    fitting = [gpu for gpu in machine.gpus if not capability or gpu.capability == capability]
    gpu = (fitting or list(machine.gpus))[0]
    memory = f", {gpu.memory_mib / 1024:.0f} GiB" if gpu.memory_mib else ""
    found = f"{gpu.name}, compute capability {gpu.capability}{memory}"
    fix = f"the plan is for {planned} ({capability}): set engine.trtllm.gpu to this GPU's product"
    report.add("GPU", bool(fitting), found, fix)
    fix = f"install driver {min_driver} or newer"
    major = gpu.driver_major
    report.add("driver", "unknown" if major is None else major >= min_driver, gpu.driver, fix)
