"""The numbers of the manifests that follow from the engine, each with its reason (k8s/README.md
repeats them for people)."""

from __future__ import annotations

import math

from slmrank.deploy.release import Release
from slmrank.load.capacity import autoscaler_target
from slmrank.triton.config import RANKER

MIB = 2**20
# A shared disk that several new pods read at once; a local one has ten times that.
DISK_BYTES_PER_S = 50 * MIB
LEAST_STARTUP_S = 600
PROBE_PERIOD_S = 10
GRACE_MARGIN_S = 5
MOST_ANSWER_S = 3600  # of `control serve --drain`
SHM_GPU_MIB, SHM_CPU_MIB = 1024, 256


def loaded_bytes(release: Release) -> int:
    """What is read from disk before the first score."""
    return release.repository.bytes + release.engine.bytes


def startup_budget_s(release: Release) -> int:
    """Until the startup probe gives up: the spec's, else twice the time to read the engine from a
    slow disk and two minutes, never under ten minutes. A probe that kills a slow load starts it
    again from zero."""
    needed: float | None = release.deploy.rollout.startup_s
    if needed is None:
        needed = max(LEAST_STARTUP_S, 120 + 2 * loaded_bytes(release) / DISK_BYTES_PER_S)
    return math.ceil(needed / PROBE_PERIOD_S) * PROBE_PERIOD_S


def progress_deadline_s(release: Release) -> int:
    """Above the startup budget, or a rollout fails while its pods may still start."""
    return startup_budget_s(release) + release.deploy.rollout.pull_s


def drain_s(release: Release) -> int:
    """Time for running requests: the spec's, at least what one may take."""
    return max(release.deploy.rollout.drain_s, longest_answer_s(release))


def longest_answer_s(release: Release) -> int:
    """Twice the objective, or what is let in at the most; an hour, where that is no limit."""
    longest = max(2 * release.latency_ms / 1000, release.queue_timeout_us / 1e6)
    return min(math.ceil(longest), MOST_ANSWER_S)


def grace_period_s(release: Release) -> int:
    """preStop + drain + 5: the kubelet's SIGKILL must come last."""
    return release.deploy.rollout.pre_stop_s + drain_s(release) + GRACE_MARGIN_S


def shm_mib(release: Release) -> int:
    """/dev/shm of the pod: tensors between Triton and its Python stages. It counts as memory."""
    return SHM_GPU_MIB if release.on_gpu else SHM_CPU_MIB


def memory_mib(release: Release) -> int:
    """Host memory, request and limit: twice what each process of the engine loads, 1 GiB for
    server, tokenizer and activations, the shared memory and the score caches, in steps of 256 MiB.
    The demo's server (315 MB engine) stood at 1.2 GB after its first requests, this gives 2 GiB."""
    given = release.deploy.placement.memory_gib
    if given is not None:
        return math.ceil(given * 1024)
    engine = release.engine.bytes + sum(
        one.bytes for name, one in release.repository.files.items() if name.startswith(f"{RANKER}/")
    )
    loaded = loaded_bytes(release) + (release.instances - 1) * engine
    needed = 2 * loaded / MIB + 1024 + shm_mib(release) + release.cache_mib
    if release.on_gpu:
        needed += 8192  # CUDA context, TensorRT-LLM and its pinned buffers
    return math.ceil(needed / 256) * 256


def target_items_per_s(release: Release) -> float:
    """Items per second of one replica at which replicas are added: by `control capacity`."""
    return autoscaler_target(release.capacity.items_per_s, release.deploy.scaling)
