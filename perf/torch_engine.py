"""The torch engine at the paper's geometries, random weights: items/s, share of the matrix peak.

    python perf/torch_engine.py --out perf/results/torch_engine.json
    python perf/torch_engine.py --geometry tiny --seconds 3 --out tiny.json   # a try on a CPU

Closed loop: the next requests are there when a pass ends. Open loop: requests come at random
(Poisson), those that wait are joined, at 0.5 to 1.0 of the closed loop's rate; the highest of these
whose p95 and p99 stay within 500 ms are told. The peak is measured in the same run, with one large
product.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from slmrank.engine.torch.runtime import ENGINE_FILE, WEIGHTS_FILE, TorchEngine, TorchInfo
from slmrank.model.placement import choose_placement

LIMIT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A Qwen3-shaped decoder and what is asked of it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    query_tokens: int
    item_tokens: int
    items: int

    @property
    def block_parameters(self) -> int:
        heads = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * self.hidden * (heads + 3 * self.intermediate)


GEOMETRIES = {
    # Qwen3-0.6B on full texts; and pruned to half of the neurons and 20 layers, on summaries.
    "596M, full text": Geometry(
        hidden=1024,
        intermediate=3072,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        query_tokens=50,
        item_tokens=950,
        items=50,
    ),
    "375M, summaries": Geometry(
        hidden=1024,
        intermediate=1536,
        layers=20,
        heads=16,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        query_tokens=50,
        item_tokens=150,
        items=50,
    ),
    "tiny": Geometry(
        hidden=256,
        intermediate=512,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=64,
        vocabulary=2000,
        query_tokens=12,
        item_tokens=40,
        items=16,
    ),
}


def write_engine(folder: Path, one: Geometry, dtype: str, batch_tokens: int) -> None:
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * 0.02).to(getattr(torch, dtype))

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=getattr(torch, dtype))

    width = one.heads * one.head_dim
    weights = {"embedding": random(one.vocabulary, one.hidden), "norm": ones(one.hidden)}
    for number in range(one.layers):
        own = {
            "input_norm": ones(one.hidden),
            "qkv": random(width + 2 * one.kv_heads * one.head_dim, one.hidden),
            "q_norm": ones(one.head_dim),
            "k_norm": ones(one.head_dim),
            "out": random(one.hidden, width),
            "mlp_norm": ones(one.hidden),
            "gate_up": random(2 * one.intermediate, one.hidden),
            "down": random(one.hidden, one.intermediate),
        }
        weights |= {f"{number}.{name}": tensor for name, tensor in own.items()}
    weights["label_row"] = random(one.hidden).float()
    steps = torch.arange(0, one.head_dim, 2) / one.head_dim
    weights["inv_freq"] = 1e6**-steps
    info = TorchInfo(
        layers=one.layers,
        heads=one.heads,
        kv_heads=one.kv_heads,
        head_dim=one.head_dim,
        norm_eps=1e-6,
        attention_scale=one.head_dim**-0.5,
        rotary_scale=1.0,
        device="auto",
        dtype=dtype,
        max_batch_tokens=batch_tokens,
    )
    save_file(weights, folder / WEIGHTS_FILE)
    (folder / ENGINE_FILE).write_text(info.model_dump_json())


def peak_tflops(device: str, dtype: torch.dtype) -> float:
    """The best of ten products of two square matrices."""
    size = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def closed_loop(score: Callable[[int], None], joined: int, seconds: float) -> float:
    """Requests/s."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        score(joined)
        done += joined
    return done / (time.perf_counter() - started)


def open_loop(score: Callable[[int], None], rate: float, seconds: float, most: int) -> list[float]:
    """Latencies (s) at a rate of requests/s; at most `most` that wait are joined."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, int(rate * seconds) + 1))
    waiting: deque[float] = deque()
    coming, latencies, started = iter(arrivals.tolist()), [], time.perf_counter()
    ahead: float | None = next(coming)
    while ahead is not None or waiting:
        now = time.perf_counter() - started
        while ahead is not None and ahead <= now:
            waiting.append(ahead)
            ahead = next(coming, None)
        if not waiting:
            time.sleep(max(0.0, (ahead or now) - now))
            continue
        taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        score(len(taken))
        ended = time.perf_counter() - started
        latencies += [ended - one for one in taken]
        if ended > 3 * seconds:
            return [*latencies, float("inf")]
    return latencies


def measure(one: Geometry, given: argparse.Namespace) -> dict[str, Any]:
    placement = choose_placement(given.device, given.dtype)
    rng = np.random.default_rng(0)

    def ids(size: int) -> Any:
        return rng.integers(1, one.vocabulary, size).astype(np.int32)

    # Every request of a kind is another one, so that nothing is found again.
    pool = [
        (ids(one.query_tokens), [ids(one.item_tokens) for _ in range(one.items)]) for _ in range(64)
    ]
    with tempfile.TemporaryDirectory() as work:
        write_engine(Path(work), one, given.dtype, given.batch_tokens)
        engine = TorchEngine(Path(work), device=given.device)
    number = 0

    def score(joined: int) -> None:
        nonlocal number
        engine.logits_of([pool[(number + step) % len(pool)] for step in range(joined)])
        number += joined

    for _ in range(3):
        score(given.joined)
    closed = [closed_loop(score, given.joined, given.seconds) for _ in range(5)]
    rate = float(np.median(closed))
    tokens = (one.query_tokens + one.items * one.item_tokens) * rate
    peak = peak_tflops(placement.device, placement.torch_dtype)
    result: dict[str, Any] = {
        "block_parameters_m": round(one.block_parameters / 1e6),
        "items_per_s": [round(one.items * each, 1) for each in sorted(closed)],
        "tokens_per_s": round(tokens),
        "peak_tflops": round(peak, 1),
        "share_of_peak": round(2 * one.block_parameters * tokens / 1e12 / peak, 3),
        "dtype": placement.dtype,
        "open_loop": [],
    }
    for share in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0):
        latencies = open_loop(score, share * rate, given.seconds, given.joined)
        found: dict[str, Any] = {"items_per_s": round(share * rate * one.items, 1)}
        if not np.isfinite(latencies).all():
            result["open_loop"].append({**found, "verdict": "not kept"})
            break
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
        for name, value in (("p50", p50), ("p95", p95), ("p99", p99)):
            found[f"{name}_ms"] = round(1000 * value, 1)
        result["open_loop"].append(found)
        for name, value in (("p95", p95), ("p99", p99)):
            if value <= LIMIT_S:
                result[f"items_per_s_at_{name}_500ms"] = found["items_per_s"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", action="append", choices=list(GEOMETRIES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--joined", type=int, default=2, help="requests in one call")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    placement = choose_placement(given.device)
    gpu = placement.device.startswith("cuda")
    device = torch.cuda.get_device_name(placement.device) if gpu else platform.processor() or "CPU"
    names = given.geometry or [name for name in GEOMETRIES if name != "tiny"]
    result = {
        "device": device,
        "torch": torch.__version__,
        "geometries": {name: measure(GEOMETRIES[name], given) for name in names},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
