"""What this machine has, asked without importing or changing anything: GPUs, packages, tools.

Every question that cannot be answered returns None or a reason; nothing here raises.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

QUESTION_TIMEOUT_S = 20.0
_QUERY = "name,compute_cap,driver_version,memory.total,uuid"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; `memory_mib` in MiB, `capability` such as 9.0; None where the driver does not
    tell."""

    name: str
    capability: str
    driver: str
    memory_mib: int | None
    uuid: str

    @property
    def driver_major(self) -> int | None:
        major = self.driver.split(".")[0]
        return int(major) if major.isdigit() else None


def is_product(name: str, label: str) -> bool:
    """Whether a GPU of this name has the node label nvidia.com/gpu.product, which may end with how
    it is shared (`-SHARED`, `-MIG-1g.18gb`): an L40S is no L4."""
    return f"{label}-".startswith(f"{name.replace(' ', '-')}-")


def find_gpus() -> tuple[list[Gpu], str]:
    """The NVIDIA GPUs, and the reason when there are none."""
    answer, reason = ask(["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"])
    if answer is None:
        return [], reason
    gpus = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5:
            name, capability, driver, memory, uuid = fields
            gpus.append(
                Gpu(
                    name=name,
                    capability=capability,
                    driver=driver,
                    memory_mib=int(memory) if memory.isdigit() else None,
                    uuid=uuid,
                )
            )
    return gpus, "" if gpus else f"nvidia-smi names none: {answer.strip()[:80]!r}"


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; its package is not imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def docker_version() -> tuple[str | None, str]:
    """(version of the answering Docker engine, "") or (None, the reason)."""
    answer, reason = ask(["docker", "version", "--format", "{{.Server.Version}}"])
    if answer is not None and answer.strip():
        return answer.strip(), ""
    return None, reason or "docker names no server"


def ask(command: list[str]) -> tuple[str | None, str]:
    """(stdout, "") of a command that succeeds, or (None, the reason)."""
    if shutil.which(command[0]) is None:
        return None, f"{command[0]} not found"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUESTION_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{command[0]}: {error}"
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return None, f"{command[0]} failed: {said[-1] if said else done.returncode}"
    return done.stdout, ""


def cpu_features() -> frozenset[str] | None:
    """The processor's flags, or None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(("flags", "Features")):  # the second on ARM
            return frozenset(line.partition(":")[2].split())
    return None


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy: those of its affinity, or fewer under a CPU limit.

    A container sees every core of its node; one thread on each under a limit of two is throttled
    for most of every period.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """The CPU limit in cores, from cgroup v2 or v1, or None."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((cgroup / name).read_text() for name in names).split()
            if words[0] in ("max", "-1"):
                return None
            return int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return None


def memory_gib() -> float | None:
    """The machine's memory in GiB, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        return None
