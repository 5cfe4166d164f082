"""What an inspection of a machine gives: its facts, and findings about what a target needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slmrank.machine.facts import Gpu

State = Literal["ok", "wrong", "unknown"]
Fault = tuple[str, str]  # (what is wrong, what to do)


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
    tritonserver: str | Fault
    perf_analyzer: str | Fault
    gpus: tuple[Gpu, ...]
    no_gpu: str
    container: str | None
    trtllm_build: str | None
    backend: bool
    docker: str | None
    no_docker: str

    @property
    def packaged_server(self) -> bool:
        """Whether the server is the one for CPUs inside nvidia-pytriton."""
        return self.tritonserver == "nvidia-pytriton"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. `fix` is empty when the state is ok."""

    target: str
    name: str
    state: State
    found: str
    fix: str = ""


class Report:
    """Collects the findings of one target."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.findings: list[Finding] = []

    def add(self, name: str, state: State | bool, found: str, fix: str = "") -> None:
        """`state` True is ok, False is wrong; `fix` says what to do unless it is ok."""
        if isinstance(state, bool):
            state = "ok" if state else "wrong"
        finding = Finding(
            target=self.target,
            name=name,
            state=state,
            found=found,
            fix="" if state == "ok" else fix,
        )
        self.findings.append(finding)

    def add_tool(self, name: str, found: str | Fault) -> None:
        """A tool that was looked for: where it is, or why it was not found."""
        told, fix = (found, "") if isinstance(found, str) else found
        self.add(name, isinstance(found, str), told, fix)

    def add_package(self, machine: Machine, name: str, extra: str) -> None:
        """A distribution that the extra brings."""
        version = machine.versions.get(name, "not installed")
        self.add(name, name in machine.versions, version, f"pip install 'slmrank[{extra}]'")

    def add_disk(self, machine: Machine, needed_gib: int) -> None:
        fix = f"free {needed_gib} GiB, or choose another place with --artifacts"
        enough = machine.disk_gib >= needed_gib
        self.add("free disk", enough, f"{machine.disk_gib:.0f} GiB", fix)
