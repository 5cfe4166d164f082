"""What can compile a TensorRT-LLM engine on this machine: its own GPU and `trtllm-build`, or the
planned container through `docker run`. Elsewhere there is none, only the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmrank.engine.trtllm.compatibility import load_compatibility, same_release
from slmrank.engine.trtllm.plan import BuildPlan
from slmrank.machine.facts import Gpu, docker_version, find_gpus, installed_version, is_product

KILL_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class NoBuilder:
    """No engine can be compiled here, and why."""

    reason: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Builder:
    """`command` gives the argv of a build from the checkpoint, where the engine goes, and the file
    of kernel timings, `cancel` ends what killing it would leave behind; `environment` is added to
    this process's, `facts` go into the engine's manifest."""

    how: str
    command: Callable[[Path, Path, Path], list[str]]
    cancel: Callable[[], None]
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def find_builder(plan: BuildPlan, *, docker: bool) -> Builder | NoBuilder:
    """What compiles this plan here; `docker` asks for the planned container.

    Another GPU, version or container than planned is no builder: its engine would not load in the
    planned server.
    """
    gpus, reason = find_gpus()
    if not gpus:
        return NoBuilder(
            reason=f"no NVIDIA GPU: {reason}",
            fix="run the Kubernetes Job, or `control build` on a machine with the planned GPU",
        )
    gpu = next((one for one in gpus if _is_planned(one, plan)), None)
    if gpu is None:
        return _other_gpu(gpus, plan)
    facts: dict[str, Any] = {"gpu": gpu.name, "capability": gpu.capability, "driver": gpu.driver}
    if docker:
        server, reason = docker_version()
        if server is None:
            return NoBuilder(reason=f"no Docker engine: {reason}", fix="install and start Docker")
        return _docker_builder(plan, gpu, facts | {"image": plan.image, "docker": server})
    return _local_builder(plan, gpu, facts)


def _is_planned(gpu: Gpu, plan: BuildPlan) -> bool:
    """Of one capability are several products, and kernels are timed where they are built."""
    return gpu.capability == plan.capability and is_product(gpu.name, plan.gpu)


def _local_builder(plan: BuildPlan, gpu: Gpu, facts: dict[str, Any]) -> Builder | NoBuilder:
    fix = f"run inside {plan.image}, or add --docker"
    version = installed_version("tensorrt-llm")
    if version is None or shutil.which("trtllm-build") is None:
        return NoBuilder(reason="tensorrt_llm is not installed", fix=fix)
    tensorrt = installed_version("tensorrt")
    container = os.environ.get("NVIDIA_TRITON_SERVER_VERSION")
    wrong = [
        f"{name} {have} is here, the plan is for {planned}"
        for name, have, planned in (
            ("TensorRT-LLM", version, plan.trtllm),
            ("TensorRT", tensorrt, plan.tensorrt),
            ("container", container, plan.container),
        )
        if have is not None and not same_release(have, planned)
    ]
    if wrong:
        return NoBuilder(reason="; ".join(wrong), fix=fix)
    facts |= {"trtllm": version, "tensorrt": tensorrt, "container": container}

    def command(*paths: Path) -> list[str]:
        return plan.command(*(path.resolve() for path in paths))

    # The build takes the first visible device, which on a mixed machine may be another GPU.
    visible = {"CUDA_VISIBLE_DEVICES": gpu.uuid}
    return Builder(
        how=f"trtllm-build on {gpu.name}",
        command=command,
        cancel=lambda: None,
        environment=visible,
        facts=facts,
    )


def _docker_builder(plan: BuildPlan, gpu: Gpu, facts: dict[str, Any]) -> Builder:
    name = f"slmrank-build-{plan.hash}-{os.getpid()}"

    def command(checkpoint: Path, output: Path, timings: Path) -> list[str]:
        mounts = [
            f"{checkpoint.resolve()}:/checkpoint:ro",
            f"{output.resolve()}:/output",
            f"{timings.parent.resolve()}:/timings",
        ]
        # As the caller's user, so that the files belong to them.
        run = ["docker", "run", "--rm", "--name", name, "--gpus", f"device={gpu.uuid}"]
        run += ["--network", "none", "--shm-size", "2g", "--env", "HOME=/tmp", "--workdir", "/tmp"]
        run += ["--user", f"{os.getuid()}:{os.getgid()}"]
        for mount in mounts:
            run += ["--volume", mount]
        inner = plan.command("/checkpoint", "/output", f"/timings/{timings.name}")
        return [*run, plan.image, *inner]

    def cancel() -> None:
        # Killing the client leaves the container running, with the GPU.
        subprocess.run(
            ["docker", "kill", name], capture_output=True, timeout=KILL_TIMEOUT_S, check=False
        )

    return Builder(how=f"docker run {plan.image}", command=command, cancel=cancel, facts=facts)


def _other_gpu(gpus: list[Gpu], plan: BuildPlan) -> NoBuilder:
    here = ", ".join(sorted({f"{gpu.name} ({gpu.capability})" for gpu in gpus}))
    known = load_compatibility().gpus
    names = [name for name, one in known.items() if one == gpus[0].capability]
    fix = "build on a machine with the planned GPU, or run the Kubernetes Job"
    if names:
        labels = ", ".join(name + "..." if name.endswith("-") else name for name in names)
        fix += f"; to plan for this one, set engine.trtllm.gpu to its node label ({labels})"
    return NoBuilder(
        reason=f"the plan is for {plan.gpu} (compute capability {plan.capability}), here is {here}",
        fix=fix,
    )
