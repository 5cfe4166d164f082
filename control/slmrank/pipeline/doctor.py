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
from collections.abc import Callable, Sequence
from pathlib import Path

from slmrank.engine.targets.registry import TARGETS
from slmrank.engine.trtllm.diagnosis import BACKEND_FOLDER
from slmrank.errors import ControlError
from slmrank.load.binary import find_perf_analyzer
from slmrank.machine.facts import (
    cpu_features,
    docker_version,
    find_gpus,
    installed_version,
    memory_gib,
)
from slmrank.machine.inspection import Fault, Finding, Machine, Report
from slmrank.serving.locate import locate_tritonserver
from slmrank.spec.engine import EngineSpec

# Beside what the targets name.
_PACKAGES = ("nvidia-pytriton", "numpy", "nvidia-modelopt", "tensorrt")


def look(folder: Path) -> Machine:
    """Ask this machine; `folder` is where artifacts would be written."""
    gpus, no_gpu = find_gpus()
    docker, no_docker = docker_version()
    targets = [TARGETS.get(name) for name in TARGETS.names()]
    packages = {*_PACKAGES, *(one for target in targets for one in target.runtime)}
    packages |= {one for target in targets for one in target.tools(EngineSpec())[0]}
    versions = {name: installed_version(name) for name in sorted(packages)}
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:2],
        versions={name: version for name, version in versions.items() if version},
        cpu=cpu_features(),
        memory_gib=memory_gib(),
        disk_gib=shutil.disk_usage(existing).free / 2**30,
        tritonserver=_located(lambda work: locate_tritonserver(work).origin),
        perf_analyzer=_located(lambda work: find_perf_analyzer(work).version),
        gpus=tuple(gpus),
        no_gpu=no_gpu,
        container=os.environ.get("NVIDIA_TRITON_SERVER_VERSION"),
        trtllm_build=shutil.which("trtllm-build"),
        backend=BACKEND_FOLDER.is_dir(),
        docker=docker,
        no_docker=no_docker,
    )


def diagnose(machine: Machine, targets: Sequence[str], spec: EngineSpec) -> list[Finding]:
    """Findings for each target, in the order of `targets`."""
    found: list[Finding] = []
    for name in targets:
        report = Report(name)
        TARGETS.get(name).diagnose(machine, spec, report)
        found += report.findings
    return found


def _located(find: Callable[[Path], str]) -> str | Fault:
    """Where it comes from, or what is wrong."""
    with tempfile.TemporaryDirectory(prefix="slmrank-doctor-") as work:
        try:
            return find(Path(work))
        except ControlError as error:
            return error.message, error.hint
