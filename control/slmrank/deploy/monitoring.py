"""What is scraped, what is recorded for the autoscaler, and when somebody is called.

The autoscaler's metrics exist only through these rules, so both come from one place and one test.
"""

from __future__ import annotations

from typing import Any

from slmrank.deploy.naming import (
    COMPONENT,
    INSTANCE,
    NAME,
    Object,
    pods_matching,
    selector,
    series_of,
)
from slmrank.deploy.parts import monitored
from slmrank.deploy.release import Release
from slmrank.deploy.scaling import ITEMS_METRIC, PENDING_METRIC
from slmrank.deploy.sizing import target_items_per_s
from slmrank.triton.config import ENSEMBLE, PREPARE, RANKER

SCRAPE_S = 15
WINDOW = "1m"
OFFERED = "ok|truncated|not_ranked|refused"  # what more replicas would have scored
P_METRIC = "slmrank_request_latency_seconds"
FAILED_METRIC = "slmrank_failed_ratio"
MOST_FAILED = 0.01
# Of a pod or of a release in five minutes: one of 50 is above the share, as often as half of it is
# lost, and of 20 pods that each lose two of 60 none reaches it.
FEWEST_LOST = 5
FEWEST_GIVEN_UP_OF = 50  # calls in five minutes: two of an idle pod's two are nobody's trouble
MOST_GIVEN_UP = 0.2  # a client that hedges at its 95th percentile gives up one call in twenty
# (name, how long it holds, severity): (expression, what is so, what to do)
Alerts = dict[tuple[str, str, str], tuple[str, str, str]]


def pod_monitor(release: Release) -> Object:
    """Scrapes every pod that serves, also those that KServe makes. The labels that it copies are
    what the rules below select by."""
    chosen = {key: value for key, value in selector(release).items() if key != COMPONENT}
    serving = {"key": COMPONENT, "operator": "In", "values": ["serve", "kserve"]}
    spec = {
        "selector": {"matchLabels": chosen, "matchExpressions": [serving]},
        "podTargetLabels": [NAME, INSTANCE, "slmrank.io/engine", "slmrank.io/track"],
        "podMetricsEndpoints": [
            {"port": "metrics", "path": "/metrics", "interval": f"{SCRAPE_S}s"}
        ],
    }
    return monitored(release, "PodMonitor", release.object_name, "monitoring", spec)


def answered_calls(pods: str, window: str, over: str, by: str) -> str:
    """Calls of the chosen pods that were answered with scores, in PromQL: summed `by`, `over`
    (rate, increase) a window."""
    return f'{by} ({over}(nv_inference_request_success{{{pods},model="{ENSEMBLE}"}}[{window}]))'


def given_up_calls(pods: str, window: str, over: str, by: str) -> str:
    """Calls that were cancelled, or whose callers' deadline passed, before the engine began with
    them, in PromQL: what the stages say of them, for the ensemble does not. One that ends while it
    is worked on counts as answered, with its time."""
    chosen = f'{pods},model=~"{PREPARE}|{RANKER}",reason="CANCELED"'
    counted = f"{by} ({over}(nv_inference_request_failure{{{chosen}}}[{window}]))"
    return f"({counted} or 0 * {answered_calls(pods, window, over, by)})"


def lost_calls(pods: str, window: str, over: str, by: str) -> str:
    """Calls that failed or were refused for want of room; neither those that no server could answer
    (`slmrank_invalid_requests_total`) nor those that their callers gave up: a hedged call's loser
    and one caller's mistakes are no fault of a release."""

    def summed(metric: str, model: str = "", more: str = "") -> str:
        chosen = f'{pods},model="{model}"' if model else pods
        return f"{by} ({over}({metric}{{{chosen}{more}}}[{window}]))"

    answered = answered_calls(pods, window, over, by)
    ended = summed("nv_inference_request_success", PREPARE)
    ended_badly = summed("nv_inference_request_failure", PREPARE)
    # A server of an earlier release does not count them.
    invalid = f"({summed('slmrank_invalid_requests_total')} or 0 * {answered})"
    excused = f"{invalid} - {given_up_calls(pods, window, over, by)}"
    # Triton 2.51 counts a failed call of an ensemble twice, for the reason OTHER whatever it was
    # (cancelled, refused), and each call once in its first stage: what came there and was not
    # answered is lost, as far as the counter of failures goes.
    counted = summed("nv_inference_request_failure", ENSEMBLE)
    came = f"({ended} + ({ended_badly} or 0 * {ended}))"
    missing = f"clamp_min({came} - {answered} - {excused}, 0)"
    counted = f"clamp_min({counted} - {excused}, 0)"
    return f"(({missing} < {counted}) or {counted})"


def rule_groups(release: Release) -> list[dict[str, Any]]:
    """Recording rules and alerts, as promtool reads them."""
    ours = f'app_kubernetes_io_name="slmrank",{series_of(release)}'
    quantile = f"0.{release.percentile}"
    by_pod = "sum by (namespace, pod)"
    name = release.object_name
    pods = pods_matching(release)
    answered = answered_calls(ours, WINDOW, "rate", by_pod)
    lost = lost_calls(ours, WINDOW, "rate", by_pod)
    given_up = given_up_calls(ours, "5m", "rate", by_pod)
    lost_5m = lost_calls(ours, "5m", "rate", by_pod)
    answered_5m = answered_calls(ours, "5m", "rate", by_pod)

    def fail(now: str, lost: str, answered: str) -> str:
        share = f"{lost} / clamp_min({answered} + {lost}, 1e-9)"
        return f"({share} > {MOST_FAILED:g} and {lost} * 300 >= {FEWEST_LOST} and {now})"

    still = f"{FAILED_METRIC}{{{pods}}} > {MOST_FAILED:g}"
    anywhere = "sum by (namespace)"
    pod_fails = fail(still, lost_5m, answered_5m)
    release_fails = fail(
        f"count by (namespace) ({still})", f"{anywhere} ({lost_5m})", f"{anywhere} ({answered_5m})"
    )
    all_calls = f"{answered_5m} + {given_up} + ({lost_5m} or 0 * {given_up})"
    unknown = f'slmrank_items_total{{{ours},status="unknown_job"}}'
    unavailable = f'slmrank_items_total{{{ours},status="store_unavailable"}}'
    all_items = f"slmrank_items_total{{{ours}}}"
    offered = f'slmrank_items_total{{{ours},status=~"{OFFERED}"}}'
    waiting = f'nv_inference_pending_request_count{{{ours},model=~"prepare|ranker|tensorrt_llm"}}'
    times = f'nv_inference_request_summary_us{{{ours},model="rank",quantile="{quantile}"}}'
    recorded = {
        ITEMS_METRIC: f"{by_pod} (rate({offered}[{WINDOW}]))",
        PENDING_METRIC: f"{by_pod} ({waiting})",
        P_METRIC: f"max by (namespace, pod) ({times}) / 1e6",
        FAILED_METRIC: f"{lost} / clamp_min({answered} + {lost}, 1e-9)",
    }
    seconds = release.latency_ms / 1000
    target = target_items_per_s(release)
    alerts: Alerts = {
        ("SlmrankLatencyAboveObjective", "5m", "page"): (
            f"{P_METRIC}{{{pods}}} > {seconds:g}",
            f"p{release.percentile} of {{{{ $labels.pod }}}} is "
            "{{ $value | humanizeDuration }}, "
            f"the objective is {release.latency_ms:g} ms",
            "Is the deployment at maxReplicas? Raise it, or the floor (control autoscale).",
        ),
        ("SlmrankRequestsFail", "2m", "page"): (
            f"{pod_fails} or {release_fails}",
            f"{{{{ or $labels.pod `{name}` }}}} refuses or fails up to "
            "{{ $value | humanizePercentage }} of its requests",
            "Full queues mean more load than replicas: raise the floor or maxReplicas.",
        ),
        ("SlmrankCallersGiveUp", "5m", "page"): (
            f"{given_up} / clamp_min({all_calls}, 1e-9) > {MOST_GIVEN_UP:g} "
            f"and ({all_calls}) * 300 > {FEWEST_GIVEN_UP_OF}",
            "callers of {{ $labels.pod }} give up {{ $value | humanizePercentage }} of their calls "
            "while these wait",
            "Their deadlines are shorter than its answers take: more replicas, or longer "
            "deadlines. Hedged calls that lose are among them.",
        ),
        ("SlmrankUnknownJobs", "10m", "ticket"): (
            f"sum(rate({unknown}[5m])) / clamp_min(sum(rate({all_items}[5m])), 1e-9) > 0.01",
            "{{ $value | humanizePercentage }} of the jobs asked for are not in the summary store",
            "Summarise the new jobs and roll the repository out.",
        ),
        ("SlmrankStoreUnavailable", "2m", "page"): (
            f"sum(rate({unavailable}[5m])) / clamp_min(sum(rate({all_items}[5m])), 1e-9) > 0.001",
            "{{ $value | humanizePercentage }} of the jobs asked for have no score: the shared "
            "summary store is down, late or not filled",
            "Start the store, or `control publish` to it; slmrank_store_up says who misses it.",
        ),
        ("SlmrankAboveTargetForLong", "10m", "ticket"): (
            f"avg({ITEMS_METRIC}{{{pods}}}) > {target * 1.5:g}",
            "replicas do {{ $value | humanize }} items/s each, replicas are added from "
            f"{target:g} on",
            "The autoscaler does not follow: is it at its maximum, or are pods Pending? "
            "(control deploy status)",
        ),
        ("SlmrankNotScraped", "10m", "page"): (
            # What was scraped once stays as a target that is down.
            f"absent(up{{{ours}}}) or sum(up{{{ours}}}) == 0",
            f"no pod of {name} is scraped: none runs, or none is reached",
            "Do the pods run (control deploy status)? Does your Prometheus select the PodMonitor "
            "(deploy.monitoring_labels), and does the NetworkPolicy let it in "
            "(deploy.monitoring_namespace)?",
        ),
        ("SlmrankAutoscalerBlind", "5m", "ticket"): (
            f"sum(up{{{ours}}}) > 0 unless on () (count({ITEMS_METRIC}{{{pods}}}) > 0)",
            "pods are scraped and " + ITEMS_METRIC + " has no value",
            "The autoscaler shows <unknown>: check the rules and the metrics adapter.",
        ),
    }
    if release.deploy.watch is not None:
        alerts |= _follower_alerts(release)
    whose = {"namespace": release.deploy.namespace, "bundle": release.name, "track": release.track}
    return [
        {
            "name": f"{name}.autoscaling",
            "interval": f"{SCRAPE_S}s",
            "rules": [{"record": record, "expr": expr} for record, expr in recorded.items()],
        },
        # A sum has no labels of its pods, and Alertmanager takes two alerts of one name and no more
        # for one.
        {
            "name": f"{name}.alerts",
            "rules": [
                {
                    "alert": alert,
                    "expr": expr,
                    "for": wait,
                    "labels": {"severity": severity, **whose},
                    "annotations": {"summary": summary, "action": action},
                }
                for (alert, wait, severity), (expr, summary, action) in alerts.items()
            ],
        },
    ]


def _follower_alerts(release: Release) -> Alerts:
    own = f'{{{series_of(release)},app_kubernetes_io_component="watch"}}'
    done = f"sum(rate(slmrank_watch_changes_total{own}[5m]))"
    refused = f"sum(increase(slmrank_watch_failures_total{own}[2m]))"
    changes = "slmrank_watch_changes_total" + own.replace("}", ',result="rejected"}')
    return {
        ("SlmrankChangesWait", "5m", "page"): (
            # A store that is away does not say how many wait; what failed is soon forgotten.
            f"(max(slmrank_watch_lag{own}) > 0 or {refused} > 0) and {done} == 0",
            "changed jobs wait and none is applied: scores are those of old texts",
            "Read the follower's log: is the store full or away, is its catalogue published?",
        ),
        ("SlmrankFollowersGone", "10m", "page"): (
            # They say themselves how many changes wait: without them nobody does.
            f"absent(up{own}) or sum(up{own}) == 0",
            "no follower of changed jobs runs: scores are those of old texts",
            "`control deploy status` says what keeps its pods.",
        ),
        ("SlmrankChangesRejected", "0m", "ticket"): (
            # A follower that starts rejects before it is scraped: a first sample has no increase.
            f"sum(increase({changes}[15m])) > 0 or sum({changes} unless "
            f"last_over_time({changes}[1d] offset 15m)) > 0",
            "changes of jobs could not be applied",
            "They stand with their reasons in the stream or topic that ends with .rejected.",
        ),
    }


def prometheus_rule(release: Release) -> Object:
    """The rules for the Prometheus operator."""
    spec = {"groups": rule_groups(release)}
    return monitored(release, "PrometheusRule", release.object_name, "monitoring", spec)


def adapter_values() -> dict[str, Any]:
    """Values of the prometheus-adapter chart that turn the recorded series into pod metrics."""
    custom = [
        {
            "seriesQuery": f'{metric}{{namespace!="",pod!=""}}',
            "resources": {"overrides": {one: {"resource": one} for one in ("namespace", "pod")}},
            "name": {"matches": metric, "as": metric},
            "metricsQuery": "sum by (<<.GroupBy>>) (<<.Series>>{<<.LabelMatchers>>})",
        }
        for metric in (ITEMS_METRIC, PENDING_METRIC)
    ]
    return {"rules": {"default": False, "custom": custom}}
