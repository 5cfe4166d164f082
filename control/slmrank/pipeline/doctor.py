"""What this machine has against what each engine target needs.

`look` asks the machine once; `diagnose` is pure: facts in, findings out. A finding is ok, wrong
(with the fix) or unknown (it could not be told here, with how to find out).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from slmrank.engine.trtllm.compatibility import MODELOPT, load_compatibility, same_release
from slmrank.engine.trtllm.plan import check_spec
from slmrank.errors import ControlError
from slmrank.load.binary import find_perf_analyzer
from slmrank.machine.facts import (
    Gpu,
    cpu_features,
    docker_version,
    find_gpus,
    installed_version,
    memory_gib,
)
from slmrank.serving.locate import locate_tritonserver
from slmrank.spec.bundle import Target, TrtllmSpec

State = Literal["ok", "wrong", "unknown"]
PACKAGES = (
    "torch",
    "transformers",
    "openvino",
    "nncf",
    "nvidia-pytriton",
    "numpy",
    "nvidia-modelopt",
    "tensorrt-llm",
    "tensorrt",
)
BACKEND_FOLDER = Path("/opt/tritonserver/backends/tensorrtllm")
INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
INSIDE = "run inside the container above"
LOCAL_DISK_GIB, GPU_DISK_GIB, LOCAL_MEMORY_GIB = 5, 40, 6


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that findings rest on. `versions` holds installed packages only; sizes in GiB."""

    system: str
    architecture: str
    python: tuple[int, int]
    versions: dict[str, str]
    cpu: frozenset[str] | None
    memory_gib: float | None
    disk_gib: float
    tritonserver: str | None
    tritonserver_fault: tuple[str, str] | None
    perf_analyzer: str | None
    perf_analyzer_fault: tuple[str, str] | None
    gpus: tuple[Gpu, ...]
    no_gpu: str
    container: str | None
    trtllm_build: str | None
    backend: bool
    docker: str | None
    no_docker: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. `fix` is empty when the state is ok."""

    target: Target
    name: str
    state: State
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def look(folder: Path) -> Machine:
    """Ask this machine; `folder` is where artifacts would be written."""
    server, server_fault = _located("tritonserver")
    analyzer, analyzer_fault = _located("perf_analyzer")
    gpus, no_gpu = find_gpus()
    docker, no_docker = docker_version()
    versions = {name: installed_version(name) for name in PACKAGES}
    existing = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:2],
        versions={name: version for name, version in versions.items() if version},
        cpu=cpu_features(),
        memory_gib=memory_gib(),
        disk_gib=shutil.disk_usage(existing).free / 2**30,
        tritonserver=server,
        tritonserver_fault=server_fault,
        perf_analyzer=analyzer,
        perf_analyzer_fault=analyzer_fault,
        gpus=tuple(gpus),
        no_gpu=no_gpu,
        container=os.environ.get("NVIDIA_TRITON_SERVER_VERSION"),
        trtllm_build=shutil.which("trtllm-build"),
        backend=BACKEND_FOLDER.is_dir(),
        docker=docker,
        no_docker=no_docker,
    )


def diagnose(machine: Machine, targets: Sequence[Target], trtllm: TrtllmSpec) -> list[Finding]:
    """Findings for each target, in the order of `targets`. `trtllm` says what the GPU targets are
    planned for."""
    found: list[Finding] = []
    for target in targets:
        found += _openvino(machine) if target == "openvino" else _trtllm(machine, target, trtllm)
    return found


class _Report:
    """Collects the findings of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.findings: list[Finding] = []

    def add(self, name: str, state: State | bool, found: str, fix: str = "") -> None:
        told: State = ("ok" if state else "wrong") if isinstance(state, bool) else state
        fix = "" if told == "ok" else fix
        self.findings.append(
            Finding(target=self.target, name=name, state=told, found=found, fix=fix)
        )


def _openvino(machine: Machine) -> list[Finding]:
    report = _Report("openvino")
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
    for name, extra in (
        ("torch", "train"),
        ("transformers", "train"),
        ("openvino", "local"),
        ("nncf", "local"),
    ):
        version = machine.versions.get(name)
        report.add(
            name, bool(version), version or "not installed", f"pip install 'slmrank[{extra}]'"
        )
    _server(report, machine)
    numpy = machine.versions.get("numpy", "")
    packaged = machine.tritonserver == "nvidia-pytriton"
    report.add(
        "numpy",
        not packaged or numpy.startswith("1."),
        numpy or "not installed",
        "pip install 'numpy<2': the packaged server's string tensors break with numpy 2",
    )
    if machine.perf_analyzer_fault is None:
        report.add("perf_analyzer", True, machine.perf_analyzer or "")
    else:
        fault, fix = machine.perf_analyzer_fault
        report.add("perf_analyzer", False, fault, fix)
    if machine.cpu is None:
        report.add(
            "INT8 instructions", "unknown", "the processor's flags cannot be read", "measure"
        )
    else:
        fast = [name for name in INT8_FEATURES if name in machine.cpu]
        report.add(
            "INT8 instructions",
            "ok" if fast else "unknown",
            " ".join(fast) or "none of " + " ".join(INT8_FEATURES),
            "INT8 runs, but may be no faster: compare with engine.precision bfloat16",
        )
    _memory(report, machine)
    _disk(report, machine, LOCAL_DISK_GIB)
    return report.findings


def _trtllm(machine: Machine, target: Target, spec: TrtllmSpec) -> list[Finding]:
    report = _Report(target)
    table = load_compatibility()
    try:
        row = table.container(spec.container, spec.version)
    except ControlError as error:
        report.add("container and version", False, error.message, error.hint)
        return report.findings
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
    if target == "trtllm-llmapi":
        del wanted["tensorrt"]
    for name, version in wanted.items():
        have = machine.versions.get(name)
        told = have or "not installed"
        fits = have is not None and same_release(have, version)
        report.add(name, fits, told, f"{version} is needed: {INSIDE}")
    if target == "trtllm-engine":
        report.add(
            "trtllm-build",
            machine.trtllm_build is not None,
            machine.trtllm_build or "not on the PATH",
            f"{INSIDE}, or build with --docker",
        )
        report.add(
            "Triton backend",
            machine.backend,
            str(BACKEND_FOLDER) if machine.backend else f"no {BACKEND_FOLDER}",
            INSIDE,
        )
        report.add(
            "docker (for --docker)",
            "ok" if machine.docker else "unknown",
            machine.docker or machine.no_docker,
            "install and start Docker, or do without --docker",
        )
        if spec.quantization != "none":
            have = machine.versions.get("nvidia-modelopt")
            fix = "pip install 'slmrank[quantize]'"
            report.add("nvidia-modelopt", have == MODELOPT, have or "not installed", fix)
    if machine.tritonserver == "nvidia-pytriton":
        report.add("tritonserver", False, "only the packaged one, for CPUs", INSIDE)
    else:
        _server(report, machine)
    _disk(report, machine, GPU_DISK_GIB)
    return report.findings


def _gpu(report: _Report, machine: Machine, planned: str, capability: str, min_driver: int) -> None:
    if not machine.gpus:
        fix = "use a machine with an NVIDIA GPU, or let the Kubernetes Job build"
        report.add("GPU", False, f"none: {machine.no_gpu}", fix)
        report.add("driver", "unknown", "no GPU", f"{min_driver} or newer is needed")
        return
    fitting = [one for one in machine.gpus if not capability or one.capability == capability]
    gpu = (fitting or list(machine.gpus))[0]
    memory = f", {gpu.memory_mib / 1024:.0f} GiB" if gpu.memory_mib else ""
    told = f"{gpu.name}, compute capability {gpu.capability}{memory}"
    fix = f"the plan is for {planned} ({capability}): set engine.trtllm.gpu to this GPU's product"
    report.add("GPU", bool(fitting), told, fix)
    fix = f"install driver {min_driver} or newer"
    major = gpu.driver_major
    report.add("driver", "unknown" if major is None else major >= min_driver, gpu.driver, fix)


def _server(report: _Report, machine: Machine) -> None:
    if machine.tritonserver_fault is None:
        report.add("tritonserver", True, machine.tritonserver or "")
    else:
        fault, fix = machine.tritonserver_fault
        report.add("tritonserver", False, fault, fix)


def _memory(report: _Report, machine: Machine) -> None:
    if machine.memory_gib is None:
        report.add("memory", "unknown", "cannot be read", f"{LOCAL_MEMORY_GIB} GiB are needed")
        return
    enough = machine.memory_gib >= LOCAL_MEMORY_GIB
    fix = f"the demo needs {LOCAL_MEMORY_GIB} GiB"
    report.add("memory", enough, f"{machine.memory_gib:.0f} GiB", fix)


def _disk(report: _Report, machine: Machine, needed: int) -> None:
    fix = f"free {needed} GiB, or choose another place with --artifacts"
    report.add("free disk", machine.disk_gib >= needed, f"{machine.disk_gib:.0f} GiB", fix)


def _located(
    tool: Literal["tritonserver", "perf_analyzer"],
) -> tuple[str | None, tuple[str, str] | None]:
    """(where it comes from, None) or (None, (fault, fix))."""
    with tempfile.TemporaryDirectory(prefix="slmrank-doctor-") as work:
        try:
            if tool == "tritonserver":
                return locate_tritonserver(Path(work)).origin, None
            return find_perf_analyzer(Path(work)).version, None
        except ControlError as error:
            return None, (error.message, error.hint)
