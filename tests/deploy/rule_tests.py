"""Unit tests for promtool: series of two pods, what must be recorded, and who must be called.

What is expected stands here in words and numbers of its own, so that a rule whose text, severity or
threshold changes fails.
"""

from __future__ import annotations

import math
from typing import Any

from slmrank.deploy.release import Release

STEP_S = 15
ACTIONS = {
    "SlmrankLatencyAboveObjective": (
        "page",
        "Is the deployment at maxReplicas? Raise it, or the floor (control autoscale).",
    ),
    "SlmrankRequestsFail": (
        "page",
        "Full queues mean more load than replicas: raise the floor or maxReplicas.",
    ),
    "SlmrankCallersGiveUp": (
        "page",
        "Their deadlines are shorter than its answers take: more replicas, or longer deadlines. "
        "Hedged calls that lose are among them.",
    ),
    "SlmrankUnknownJobs": ("ticket", "Summarise the new jobs and roll the repository out."),
    "SlmrankStoreUnavailable": (
        "page",
        "Start the store, or `control publish` to it; slmrank_store_up says who misses it.",
    ),
    "SlmrankChangesWait": (
        "page",
        "Read the follower's log: is the store full or away, is its catalogue published?",
    ),
    "SlmrankFollowersGone": ("page", "`control deploy status` says what keeps its pods."),
    "SlmrankChangesRejected": (
        "ticket",
        "They stand with their reasons in the stream or topic that ends with .rejected.",
    ),
    "SlmrankAboveTargetForLong": (
        "ticket",
        "The autoscaler does not follow: is it at its maximum, or are pods Pending? "
        "(control deploy status)",
    ),
    "SlmrankNotScraped": (
        "page",
        "Do the pods run (control deploy status)? Does your Prometheus select the PodMonitor "
        "(deploy.monitoring_labels), and does the NetworkPolicy let it in "
        "(deploy.monitoring_namespace)?",
    ),
    "SlmrankAutoscalerBlind": (
        "ticket",
        "The autoscaler shows <unknown>: check the rules and the metrics adapter.",
    ),
}


def promtool_tests(release: Release) -> dict[str, Any]:
    """Pod a does 60 jobs/s, 40 unknown ones beside, is late and fails one request in ten; pod b does 30 jobs/s, misses
    the store for 30, refuses one request in fifteen that nobody could answer, and of one in three its callers give up; another bundle's pod must not be counted, nor this one's in another namespace. `releases` have a capacity
    of 40 jobs/s and a burst of 1.5: replicas are added from 26.6667 on, 45 is no alarm."""
    own = {
        "app_kubernetes_io_name": "slmrank",
        "app_kubernetes_io_instance": release.name,
        "slmrank_io_track": release.track,
    }
    there = {"namespace": release.deploy.namespace}
    first, second = (f"{release.object_name}-5d8f7c9b4-{end}" for end in ("aaaaa", "bbbbb"))
    late_s = math.ceil(2 * release.latency_ms / 1000) + 1

    def series(metric: str, values: str, pod: str = first, **labels: str) -> dict[str, str]:
        return {"series": _name(metric, {**own, **there, "pod": pod, **labels}), "values": values}

    def jobs(pod: str, rate: int, status: str = "ok", **labels: str) -> dict[str, str]:
        return series("slmrank_items_total", f"0+{STEP_S * rate}x80", pod, status=status, **labels)

    def pending(model: str, count: int) -> dict[str, str]:
        return series("nv_inference_pending_request_count", f"{count}x80", model=model)

    quantile = f"0.{release.percentile}"
    given = [
        jobs(first, 60),
        jobs(second, 30),
        jobs(first, 40, "unknown_job"),
        jobs(second, 30, "store_unavailable"),
        jobs("other-5d8f7c9b4-ccccc", 999, app_kubernetes_io_instance="other"),
        jobs(first, 999, "unknown_job", namespace="elsewhere"),
        pending("rank", 9),
        pending("prepare", 1),
        pending("ranker", 4),
        series(
            "nv_inference_request_summary_us",
            f"{late_s * 1_000_000}x80",
            model="rank",
            quantile=quantile,
        ),
        series("nv_inference_request_success", f"0+{STEP_S * 9}x80", model="rank"),
        series("nv_inference_request_failure", f"0+{STEP_S}x80", model="rank", reason="OTHER"),
        *(
            series(f"nv_inference_request_{how}", f"0+{STEP_S * rate}x80", second, model=model)
            for how, model, rate in (
                ("success", "rank", 9),
                ("success", "prepare", 15),
            )
        ),
        *(
            series(
                "nv_inference_request_failure",
                f"0+{STEP_S * rate}x80",
                second,
                model=model,
                reason=reason,
            )
            for model, reason, rate in (("rank", "OTHER", 12), ("ranker", "CANCELED", 5))
        ),
        series("slmrank_invalid_requests_total", f"0+{STEP_S}x80", second),
    ]
    recorded = [
        ("slmrank_items_per_second", [(first, 60), (second, 30)]),
        ("slmrank_pending_requests", [(first, 5)]),
        ("slmrank_request_latency_seconds", [(first, late_s)]),
        ("slmrank_failed_ratio", [(first, 0.1), (second, 0)]),
    ]
    unseen = f"no pod of {release.object_name} is scraped: none runs, or none is reached"
    p = release.percentile
    called = [
        _fires(
            "SlmrankLatencyAboveObjective",
            f"p{p} of {first} is {_duration(late_s)}, the objective is {release.latency_ms:g} ms",
            {**there, "pod": first},
        ),
        _fires(
            "SlmrankRequestsFail",
            f"{first} refuses or fails up to 10% of its requests",
            {**there, "pod": first},
            (f"{release.object_name} refuses or fails up to 5.263% of its requests", there),
        ),
        _fires(
            "SlmrankCallersGiveUp",
            f"callers of {second} give up 35.71% of their calls while these wait",
            {**there, "pod": second},
        ),
        _fires("SlmrankUnknownJobs", "25% of the jobs asked for are not in the summary store", {}),
        _fires(
            "SlmrankStoreUnavailable",
            "18.75% of the jobs asked for have no score: the shared summary store is down, late or "
            "not filled",
            {},
        ),
        _fires("SlmrankNotScraped", unseen, {**own, **there}),
        _fires(
            "SlmrankAboveTargetForLong",
            "replicas do 45 items/s each, replicas are added from 26.6667 on",
            {},
        ),
        _silent("SlmrankAutoscalerBlind"),
    ]
    followers = []
    if release.deploy.watch is not None:
        followed = {
            **there,
            "slmrank_io_track": release.track,
            "app_kubernetes_io_instance": release.name,
            "app_kubernetes_io_component": "watch",
        }

        def changes(result: str, values: str) -> dict[str, str]:
            name = "slmrank_watch_changes_total"
            return {"series": _name(name, {**followed, "result": result}), "values": values}

        followers = [{"series": _name("up", followed), "values": "1x80"}]
        # Seven wait and nothing is applied; two were rejected, eleven minutes ago.
        given += [
            {"series": _name("slmrank_watch_lag", followed), "values": "7x80"},
            changes("applied", "5x80"),
            changes("rejected", "0x28 2x52"),
        ]
        gone = "no follower of changed jobs runs: scores are those of old texts"
        waiting = "changed jobs wait and none is applied: scores are those of old texts"
        called += [
            _fires("SlmrankChangesWait", waiting, {}),
            _fires("SlmrankFollowersGone", gone, followed),
            _fires("SlmrankChangesRejected", "changes of jobs could not be applied", {}),
        ]
    ours = f'namespace="{release.deploy.namespace}",pod=~"{release.object_name}-.*"'
    checks = [
        {
            "expr": f"{metric}{{{ours}}}",
            "eval_time": "10m",
            "exp_samples": [
                {"labels": _name(metric, {**there, "pod": pod}), "value": value}
                for pod, value in samples
            ],
        }
        for metric, samples in recorded
    ]
    blind = [
        _silent("SlmrankLatencyAboveObjective"),
        _silent("SlmrankRequestsFail"),
        _silent("SlmrankNotScraped"),
        _fires(
            "SlmrankAutoscalerBlind",
            "pods are scraped and slmrank_items_per_second has no value",
            {},
        ),
    ]
    # Targets that are there and down, as when all pods crash.
    down = [_fires("SlmrankNotScraped", unseen, {}), _silent("SlmrankAutoscalerBlind")]
    targets = [series("up", "0x80"), series("up", "0x80", second)]
    if release.deploy.watch is not None:
        targets.append({"series": _name("up", followed), "values": "0x80"})
        down.append(_fires("SlmrankFollowersGone", gone, {}))
        blind.append(_silent("SlmrankFollowersGone"))
    whose = {"namespace": release.deploy.namespace, "bundle": release.name, "track": release.track}
    for one in (*called, *blind, *down):
        for expected in one["exp_alerts"]:
            expected["exp_labels"] |= whose
    step = f"{STEP_S}s"
    return {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": step,
        "tests": [
            {
                "interval": step,
                "input_series": given,
                "promql_expr_test": checks,
                "alert_rule_test": called,
            },
            {
                "interval": step,
                "input_series": [series("up", "1x80"), *followers],
                "alert_rule_test": blind,
            },
            {"interval": step, "input_series": targets, "alert_rule_test": down},
        ],
    }


def _name(metric: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{metric}{{{inside}}}"


def _fires(
    alert: str, summary: str, labels: dict[str, str], *more: tuple[str, dict[str, str]]
) -> dict[str, Any]:
    severity, action = ACTIONS[alert]
    expected = [
        {
            "exp_labels": {**whose, "severity": severity},
            "exp_annotations": {"summary": told, "action": action},
        }
        for told, whose in ((summary, labels), *more)
    ]
    return {"alertname": alert, "eval_time": "18m", "exp_alerts": expected}


def _silent(alert: str) -> dict[str, Any]:
    return {"alertname": alert, "eval_time": "18m", "exp_alerts": []}


def _duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"
