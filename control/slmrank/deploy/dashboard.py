"""The Grafana dashboard: load, latency against the objective, refusals, queues, replicas."""

from __future__ import annotations

from typing import Any

from slmrank.deploy.monitoring import FAILED_METRIC, P_METRIC
from slmrank.deploy.naming import pods_matching, series_of
from slmrank.deploy.release import Release
from slmrank.deploy.scaling import ITEMS_METRIC, PENDING_METRIC
from slmrank.deploy.sizing import target_items_per_s
from slmrank.hashing import hash_value

WIDTH, HEIGHT = 12, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard(release: Release) -> dict[str, Any]:
    """A dashboard for `grafana/provisioning` or the sidecar's label `grafana_dashboard`."""
    name, namespace = release.object_name, release.deploy.namespace
    pods = pods_matching(release)
    ours = series_of(release)
    target, limit = target_items_per_s(release), release.latency_ms / 1000
    deployment = f'namespace="{namespace}",deployment="{name}"'
    items = f"(rate(slmrank_items_total{{{ours}}}[5m]))"
    by_status = f"sum by (status) {items} / ignoring (status) group_left () sum {items}"
    replicas = {
        f"kube_deployment_status_replicas_available{{{deployment}}}": "available",
        f"kube_deployment_spec_replicas{{{deployment}}}": "asked",
    }
    stages = {
        _mean_seconds("queue", ours): "{{model}} waiting",
        _mean_seconds("compute_infer", ours): "{{model}} computing",
    }
    tokens = f"sum(rate(slmrank_item_tokens_total{{{ours}}}[1m]))"

    def by_pod(metric: str) -> dict[str, str]:
        return {f"{metric}{{{pods}}}": "{{pod}}"}

    panels = [
        _panel("Items per second", "short", by_pod(ITEMS_METRIC), target),
        _panel(f"p{release.percentile} of a request", "s", by_pod(P_METRIC), limit),
        _panel("Waiting requests", "short", by_pod(PENDING_METRIC), release.deploy.scaling.pending),
        _panel("Refused or failed", "percentunit", by_pod(FAILED_METRIC), 0.01),
        _panel("Replicas", "short", replicas),
        _panel("Jobs by status", "percentunit", {by_status: "{{status}}"}),
        _panel("Time of a request by stage", "s", stages),
        _panel("Tokens per second", "short", {tokens: "item tokens"}),
    ]
    for number, panel in enumerate(panels):
        panel["id"] = number + 1
        place = {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT}
        panel["gridPos"] = {**place, "w": WIDTH, "h": HEIGHT}
    return {
        "uid": hash_value([namespace, name])[:40],
        "title": f"{namespace}/{name}: {release.engine.target} ranker",
        "tags": ["slmrank"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _mean_seconds(phase: str, ours: str) -> str:
    """Mean time of one request in a phase of each stage."""
    stages = f'{ours},model=~"prepare|ranker"'
    spent = f"rate(nv_inference_{phase}_duration_us{{{stages}}}[1m])"
    requests = f"rate(nv_inference_request_success{{{stages}}}[1m])"
    return f"sum by (model) ({spent}) / sum by (model) ({requests}) / 1e6"


def _panel(
    title: str, unit: str, queries: dict[str, str], threshold: float | None = None
) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if threshold is not None:
        steps.append({"color": "red", "value": round(threshold, 3)})
    return {
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"thresholdsStyle": {"mode": "line" if threshold else "off"}},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(queries.items())
        ],
    }
