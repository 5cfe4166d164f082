"""Recording rules and alerts by promtool, and the metric names by the real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.client.client import RankClient
from slmrank.deploy.dashboard import dashboard
from slmrank.deploy.monitoring import adapter_values, rule_groups
from slmrank.deploy.release import Release
from slmrank.deploy.scaling import ITEMS_METRIC, PENDING_METRIC
from slmrank.errors import InvalidQuery

from tests.deploy import releases
from tests.deploy.rule_tests import promtool_tests

RECORDED = {
    ITEMS_METRIC,
    PENDING_METRIC,
    "slmrank_request_latency_seconds",
    "slmrank_failed_ratio",
}
# Not ours: Prometheus itself and kube-state-metrics.
FOREIGN = {"up", "kube_deployment_status_replicas_available", "kube_deployment_spec_replicas"}


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_alert_says_whose_it_is() -> None:
    """Alertmanager takes two alerts of one name without other labels for one."""

    def labels(release: Release) -> list[dict[str, str]]:
        rules = [rule for group in rule_groups(release) for rule in group["rules"]]
        return [rule["labels"] for rule in rules if "alert" in rule]

    one, other = labels(releases.cpu()), labels(releases.cpu(track="canary"))
    assert {(each["namespace"], each["bundle"], each["track"]) for each in one} == {
        ("slmrank", "demo", "stable")
    }
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))


def test_jobs_that_depth_control_cut_are_offered_load() -> None:
    (items,) = (
        rule["expr"]
        for group in rule_groups(releases.cpu())
        for rule in group["rules"]
        if rule.get("record") == ITEMS_METRIC
    )
    assert "not_ranked" in items


def write(folder: Path, release: Release) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": rule_groups(release)}))
    (folder / "rules.test.yaml").write_text(yaml.safe_dump(promtool_tests(release)))


@pytest.mark.parametrize(
    "release",
    [
        releases.cpu(),
        releases.cpu(track="canary", percentile=99, latency_ms=120.0),
        releases.gpu(name="jobs", deploy={"namespace": "search"}),
        releases.cpu(store_ports=[6379], deploy={"watch": {}}),
    ],
    ids=["cpu", "canary", "gpu", "followed"],
)
def test_rules_and_alerts_pass_their_tests(release: Release, tmp_path: Path) -> None:
    write(tmp_path, release)
    done = promtool("check", "rules", "--lint-fatal", "rules.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("test", "rules", "rules.test.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("pods", "answered", "lost", "alerts"),
    [
        (1, "0+12.5x120", "0x7 1x3 2x3 3x100", 0),  # three of 150 calls, in three minutes
        (1, "0+12.5x120", "0+1x120", 2),  # four a minute: the pod, and the release
        (1, "0+12.5x120", "0x7 40x113", 0),  # a roll-out that failed for some seconds, and is over
        (1, "0+12.5x120", "0x100 0+12x20", 2),  # all of them, at the end
        (20, "0+2.4x120", "0+0.075x120", 1),  # each loses three of 96: no pod, but the release
    ],
)
def test_lost_calls_page_where_they_are_many(
    tmp_path: Path, pods: int, answered: str, lost: str, alerts: int
) -> None:
    release = releases.cpu()
    write(tmp_path, release)
    series = {}
    for pod in range(pods):
        labels = (
            f'namespace="{release.deploy.namespace}",pod="{release.object_name}-5d8f-{pod}",'
            f'app_kubernetes_io_name="slmrank",slmrank_io_track="{release.track}",'
            f'app_kubernetes_io_instance="{release.name}",model="rank"'
        )
        series[f"nv_inference_request_success{{{labels}}}"] = answered
        series[f'nv_inference_request_failure{{{labels},reason="OTHER"}}'] = lost
    # At any time: an alert that fired is a call in the night, whatever came after it.
    firing = 'ALERTS{alertname="SlmrankRequestsFail",alertstate="firing"}'
    test = {
        "interval": "15s",
        "input_series": [{"series": one, "values": of} for one, of in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count(count_over_time({firing}[30m:15s]))",
                "eval_time": "30m",
                "exp_samples": [{"labels": "{}", "value": alerts}] if alerts else [],
            }
        ],
    }
    both = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "own.test.yaml").write_text(yaml.safe_dump(both))
    done = promtool("test", "rules", "own.test.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_store_that_is_away_pages_and_one_that_is_back_does_not(tmp_path: Path) -> None:
    """Who was caught up, or has just started, knows of none that waits."""
    release = releases.cpu(store_ports=[6379], deploy={"watch": {}})
    write(tmp_path, release)
    labels = (
        f'namespace="{release.deploy.namespace}",slmrank_io_track="{release.track}",'
        f'app_kubernetes_io_instance="{release.name}",app_kubernetes_io_component="watch"'
    )
    firing = 'count(ALERTS{alertname="SlmrankChangesWait",alertstate="firing"})'
    tests = []
    for failures, fires in (("0x20 3+3x50", True), ("0x20 3+3x3 12x50", False)):
        series = {
            f"slmrank_watch_failures_total{{{labels}}}": failures,
            f"slmrank_watch_lag{{{labels}}}": "0x80",
            f'slmrank_watch_changes_total{{{labels},result="applied"}}': "5x80",
        }
        tests.append(
            {
                "interval": "15s",
                "input_series": [{"series": one, "values": of} for one, of in series.items()],
                "promql_expr_test": [
                    {
                        "expr": firing,
                        "eval_time": "14m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
        )
    both = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "own.test.yaml").write_text(yaml.safe_dump(both))
    done = promtool("test", "rules", "own.test.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("unknown_job", "unknown"),
        ("[1m]", "[20m]"),
        ("prepare|ranker", "rank"),
        ("> 40", "> 50"),
        ("> 0.01", "> 0.2"),
        ("severity: page", "severity: ticket"),
        ("/ 1e6", "/ 1e3"),
        ("for: 10m", "for: 30m"),
    ],
)
def test_a_wrong_rule_fails_its_test(tmp_path: Path, old: str, new: str) -> None:
    write(tmp_path, releases.cpu())
    rules = tmp_path / "rules.yaml"
    text = rules.read_text()
    assert old in text
    rules.write_text(text.replace(old, new))
    done = promtool("test", "rules", "rules.test.yaml", folder=tmp_path)
    assert done.returncode != 0, f"{old} -> {new}"


@pytest.mark.triton
def test_every_metric_that_is_queried_exists(tiny_server: Any) -> None:
    """By the real server's page after one request; recorded names by the rules."""
    with RankClient(tiny_server.url) as client:
        client.score("nurse", ["job-1", "no-such-job"])
        with pytest.raises(InvalidQuery):
            client.score("", ["job-1"])
    page = f"http://127.0.0.1:{tiny_server.ports.metrics}/metrics"
    with urllib.request.urlopen(page, timeout=10) as reply:
        text = reply.read().decode()
    served = set(re.findall(r"^(\w+)[{ ]", text, flags=re.MULTILINE))
    queries = [rule["expr"] for group in rule_groups(releases.cpu()) for rule in group["rules"]]
    panels = dashboard(releases.cpu())["panels"]
    queries += [one["expr"] for panel in panels for one in panel["targets"]]
    asked = {
        name for query in queries for name in re.findall(r"\b((?:nv|slmrank|kube)_\w+|up)\{", query)
    }
    assert {"nv_inference_pending_request_count", "slmrank_items_total"} <= asked
    assert asked - served - RECORDED - FOREIGN == set()
    # The counters count jobs by status, also before anybody asked for such a job.
    assert re.search(r'^slmrank_items_total\{status="unknown_job"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^slmrank_items_total\{status="not_utf8"\} \d', text, re.MULTILINE)
    assert re.search(r"^slmrank_item_tokens_total [1-9]", text, re.MULTILINE)
    assert re.search(r"^slmrank_invalid_requests_total [1-9]", text, re.MULTILINE)


def test_the_adapter_offers_what_the_autoscaler_asks_for() -> None:
    names = [one["name"]["as"] for one in adapter_values()["rules"]["custom"]]
    assert names == [ITEMS_METRIC, PENDING_METRIC]


def test_the_dashboard_is_plain_json_with_a_threshold_at_the_objective() -> None:
    made = dashboard(releases.cpu())
    assert json.loads(json.dumps(made)) == made
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    latency = made["panels"][1]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert latency[-1]["value"] == 0.5
