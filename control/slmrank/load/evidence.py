"""What is kept beside a measured point: Triton's own counts before and after, the configuration as
served, the metrics page, and the machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
from tritonclient import grpc as triton

from slmrank.errors import SweepError
from slmrank.triton.config import ENSEMBLE

TIMEOUT_S = 10.0
QUIET_S, QUIET_LIMIT_S = 3.0, 300.0
STAGES = ("prepare", "ranker", "tensorrt_llm")
COUNTS_FILE = "triton_statistics.json"
CONFIG_FILE = "served_config.json"
METRICS_FILE = "metrics.txt"


def require_ready(url: str, model: str = "rank") -> None:
    """Raises SweepError when no server answers there, or its model is not ready."""
    with _asking(url) as client:
        ready = client.is_model_ready(model, client_timeout=TIMEOUT_S)
    if not ready:
        raise SweepError(f"the model {model!r} at {url} is not ready", "look at the server's log")


@contextlib.contextmanager
def _asking(url: str) -> Iterator[Any]:
    """A client of the server. Raises SweepError when it does not answer."""
    try:
        with triton.InferenceServerClient(url) as client:
            yield client
    except (triton.InferenceServerException, grpc.RpcError) as error:
        raise SweepError(
            f"no Triton answers at {url}: {str(error).splitlines()[0]}",
            "start one with `control serve`, or correct --url (host:port of gRPC)",
        ) from error


def read_counts(url: str) -> dict[str, dict[str, int]]:
    """Per model: requests answered (`requests`), executions, and microseconds of queue and compute,
    since the server started. Raises SweepError when the server does not answer."""
    with _asking(url) as client:
        told = client.get_inference_statistics(as_json=True, client_timeout=TIMEOUT_S)
    counts: dict[str, dict[str, int]] = {}
    for model in told.get("model_stats", []):
        stats = model.get("inference_stats", {})
        counts[model["name"]] = {
            "requests": int(model.get("inference_count", 0)),
            "executions": int(model.get("execution_count", 0)),
            "failed": int(stats.get("fail", {}).get("count", 0)),
            "queue_us": int(stats.get("queue", {}).get("ns", 0)) // 1000,
            "compute_us": int(stats.get("compute_infer", {}).get("ns", 0)) // 1000,
        }
    return counts


def wait_quiet(url: str) -> None:
    """Return once the server answers nothing more, after QUIET_LIMIT_S at the latest: it goes on
    with what it has even where nobody waits for it any more."""
    until = time.monotonic() + QUIET_LIMIT_S
    before = read_counts(url)
    while time.monotonic() < until:
        # Counts move when a pass ends: for as long as two of the slowest stage take.
        each = [one["compute_us"] / max(one["executions"], 1) / 1e6 for one in before.values()]
        time.sleep(max(QUIET_S, 2 * max(each, default=0.0)))
        now = read_counts(url)
        if now == before:
            return
        before = now


def joined_requests(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> dict[str, float]:
    """Requests per execution of each stage between two readings: the real batch size."""
    found = {}
    for name in STAGES:
        start, end = before.get(name, {}), after.get(name, {})
        executions = end.get("executions", 0) - start.get("executions", 0)
        if executions > 0:
            found[name] = (end["requests"] - start.get("requests", 0)) / executions
    return found


def served_config(url: str) -> dict[str, Any]:
    """The configuration of the ensemble and of each of its stages, as the server returns it (its
    list of all models needs a key)."""
    found: dict[str, Any] = {}
    with _asking(url) as client:
        names = [ENSEMBLE]
        for name in names:
            reply = client.get_model_config(name, as_json=True, client_timeout=TIMEOUT_S)
            found[name] = reply["config"]
            stages = found[name].get("ensemble_scheduling", {}).get("step", [])
            names += [one["model_name"] for one in stages if one["model_name"] not in names]
    return found


def scrape_metrics(url: str | None) -> str | None:
    """The Prometheus page at `url`, None where there is none to be had."""
    if url is None:
        return None
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return text


def load_average() -> list[float]:
    """What else the machine did over 1, 5 and 15 minutes; asked at every point."""
    return [round(one, 2) for one in os.getloadavg()]
