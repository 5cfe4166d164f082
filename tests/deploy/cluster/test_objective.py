"""What decides on a canary: the words of the verdict, and a real Prometheus that scrapes a real server."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.client.client import RankClient
from slmrank.deploy.cluster import objective as module
from slmrank.deploy.cluster.objective import Observed, judge, observe
from slmrank.deploy.monitoring import P_METRIC, rule_groups
from slmrank.deploy.release import Release
from slmrank.errors import Refused
from slmrank.serving.ports import claim_port

from tests.build.docker_engine import end
from tests.deploy.cluster.test_apply import cpu

GOOD = Observed(window_s=300, calls=500, latency_ms=120.0, calls_a_minute=50.0, lost=0.5)


def change(**values: Any) -> Observed:
    return Observed(**{**GOOD.__dict__, **values})


def test_a_good_canary_is_told_in_a_line() -> None:
    assert judge(GOOD, cpu()) == "500 in 300 s, p95 120 ms of 500 ms, 0.10 % failed"


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        (change(latency_ms=501.0), "is too slow: "),
        (change(lost=6.0), "refuses or fails: "),
        (change(latency_ms=501.0, lost=6.0), "is too slow and refuses or fails"),
        (change(calls_a_minute=19.0), "answered 19.0 calls a minute: a p95 is measured"),
        (change(calls_a_minute=None), "does not run the rules"),
        (change(calls=99.0), "the canary answered 99 calls in 300 s: too few"),
        (change(calls=0.0, lost=120.0, latency_ms=None), "refuses or fails 120 of 120"),
        (change(calls=60.0, lost=3.0), "too few"),
        (change(given_up=500.0), "gave up 500 of 1000 calls"),
        (change(calls=3.0, given_up=3.0), "too few"),
        (change(calls=0.0, latency_ms=None), "too few"),
        (change(latency_ms=None), "does not run the rules"),
    ],
)
def test_what_breaks_the_objective_is_named(observed: Observed, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        judge(observed, cpu())
    assert caught.value.hint


def test_few_calls_are_enough_where_that_is_said() -> None:
    few = change(calls=3.0, lost=0.0, calls_a_minute=3.0)
    assert judge(few, cpu(), fewest=3).startswith("3 in 300 s")


@contextlib.contextmanager
def prometheus(folder: Path, release: Release, metrics: str) -> Iterator[str]:
    """One that scrapes `metrics` every second as a pod of the release, with the release's rules."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    groups = [{**one, "interval": "1s"} for one in rule_groups(release)]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    labels = {
        "namespace": release.deploy.namespace,
        "pod": f"{release.object_name}-5d9c8-x7k2p",
        "app_kubernetes_io_name": "slmrank",
        "app_kubernetes_io_instance": release.name,
        "slmrank_io_track": release.track,
    }
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "pods",
                "static_configs": [{"targets": [metrics], "labels": labels}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = claim_port("127.0.0.1", 0, "")
    address = f"127.0.0.1:{port}"
    command = [binary, f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        end(process)


def test_only_the_pods_of_one_replica_set_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the canary before, which the same expression found, promoted the next one."""
    asked: list[str] = []
    monkeypatch.setattr(module, "_ask", lambda _url, query: asked.append(query))
    observe("http://nowhere", cpu(track="canary"), 30, "slmrank-demo-canary-5d8f")
    assert len(asked) == 5
    assert all('pod=~"slmrank-demo-canary-5d8f-[a-z0-9]+"' in query for query in asked)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_failures_are_a_share_of_the_calls_and_not_of_the_minutes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten of a hundred calls failed in five minutes of an hour: a mean over time said 0.8 %."""
    asked: list[str] = []
    monkeypatch.setattr(module, "_ask", lambda _url, query: asked.append(query))
    release = cpu(track="canary")
    observe("http://nowhere", release, 3600)
    pod = f"{release.object_name}-5d9c8-x7k2p"
    labels = f'namespace="{release.deploy.namespace}",pod="{pod}",model="rank"'
    series = [
        (f"nv_inference_request_success{{{labels}}}", "0x50 90+90x4 450x5"),
        (f'nv_inference_request_failure{{{labels},reason="OTHER"}}', "0x50 10+10x4 50x5"),
    ]
    stage = labels.replace('"rank"', '"prepare"')
    # Triton 2.51 counts a failed call of the ensemble twice, and every call once in `prepare`.
    first = f"nv_inference_request_success{{{stage}}}"
    twice = [series[0], (series[1][0], "0x50 20+20x4 100x5"), (first, "0x50 100+100x4 500x5")]
    invalid = f"slmrank_invalid_requests_total{{{labels}}}"
    callers = [*twice, (invalid, "0x50 9+9x4 45x5")]
    assert P_METRIC in asked[0]
    latency, busiest, _, answered, lost = asked
    share = f"{lost} / ({lost} + {answered})"
    # Nine minutes with 10 fast calls each, and one with 910 late ones, in windows of a minute.
    uneven = [(series[0][0], "0x192 2.5+2.5x35 317.5+227.5x3 1000x7")]
    uneven += [(f"{P_METRIC}{{{labels}}}", "_x193 0.3x35 0.6x6 stale")]
    tests = [
        {
            "interval": interval,
            "input_series": [{"series": name, "values": values} for name, values in given],
            "promql_expr_test": [
                {
                    "expr": f"round(1000 * {expression})",
                    "eval_time": "60m",
                    "exp_samples": [{"labels": "{}", "value": wanted}],
                }
            ],
        }
        for interval, given, expression, wanted in (
            ("1m", series, share, 100),
            ("1m", twice, share, 100),
            ("1m", callers, share, 11),
            ("15s", uneven, latency, 574),
            ("15s", uneven, busiest, 573_031),
        )
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
def test_a_prometheus_tells_of_the_calls_of_a_real_server(tiny_server: Any, tmp_path: Path) -> None:
    release = cpu(name="tiny", track="canary", latency_ms=5000.0)
    metrics = f"127.0.0.1:{tiny_server.ports.metrics}"
    with prometheus(tmp_path, release, metrics) as url, RankClient(tiny_server.url) as client:
        until = time.monotonic() + 60
        found = None
        while time.monotonic() < until:
            for _ in range(10):
                client.score("nurse", ["job-1"])
            with contextlib.suppress(Refused):  # it may still be starting
                found = observe(url, release, 30)
                if found.calls > 20 and found.latency_ms is not None:
                    break
            time.sleep(1)
        assert found is not None
        assert found.calls > 20
        assert found.failed == 0
        assert found.latency_ms is not None
        assert 0 < found.latency_ms < 5000
        assert "p95" in judge(found, release, fewest=20)
        # The stable release's pods are other ones, and these were not asked.
        assert observe(url, release.on_track("stable"), 30).calls == 0
        tight = release.model_copy(update={"latency_ms": 0.001})
        with pytest.raises(Refused, match="too slow"):
            judge(found, tight, fewest=20)
