"""Releases for tests, without a model behind them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from slmrank.deploy.release import Release

from tests.engine.trtllm.test_plan import plan

CPU_IMAGE = f"slmrank-cpu@sha256:{'a' * 64}"
GPU_IMAGE = f"slmrank-gpu@sha256:{'b' * 64}"


def values(**changes: Any) -> dict[str, Any]:
    """A CPU release as plain values; `changes` replace whole keys, `deploy` is merged."""
    deploy = {"image": CPU_IMAGE, **changes.pop("deploy", {})}
    return {
        "name": "demo",
        "latency_ms": 500.0,
        "percentile": 95,
        "engine": {"target": "openvino", "tag": "0123456789ab", "bytes": 0, "needs_gpu": False},
        "repository": {
            "digest": "0123456789abcdef",
            "configuration": "fedcba9876543210",
            "files": {
                "rank/config.pbtxt": {"sha256": "1" * 64, "bytes": 2000},
                "ranker/1/engine/items.bin": {"sha256": "2" * 64, "bytes": 300_000_000},
            },
        },
        "known_answers": [
            {"query": "night nurse", "job_id": "job-1", "p": 0.75},
            {"query": "night nurse", "job_id": "job-2", "p": 0.25},
        ],
        "capacity": {"items_per_s": 40.0, "source": "measured"},
        "max_queue_size": 16,
        "queue_timeout_us": 1_000_000,
        "deploy": deploy,
        **changes,
    }


def cpu(**changes: Any) -> Release:
    return Release.model_validate(values(**changes))


def gpu(product: str = "NVIDIA-H200", tag: str = "ba9876543210", **changes: Any) -> Release:
    """A release with a compiled engine."""
    deploy = {"image": GPU_IMAGE, **changes.pop("deploy", {})}
    engine = {
        "target": "trtllm-engine",
        "tag": tag,
        "needs_gpu": True,
        "gpu_product": product,
        "bytes": 750_000_000,
        "plan": asdict(plan(gpu=product)),
    }
    return cpu(engine=engine, deploy=deploy, **changes)
