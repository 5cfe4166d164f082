"""Whether the pods of a release keep the objective, by what a Prometheus has recorded of them."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from slmrank.deploy.monitoring import (
    MOST_FAILED,
    MOST_GIVEN_UP,
    P_METRIC,
    SCRAPE_S,
    answered_calls,
    given_up_calls,
    lost_calls,
)
from slmrank.deploy.naming import pods_matching
from slmrank.deploy.release import Release
from slmrank.errors import Refused

TIMEOUT_S = 30
# The alert's words: below this many calls a percentile is one or two of them.
FEWEST_CALLS = 100


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Calls of a release's pods in the last `window_s` seconds: how many were answered and how many
    lost, the worst pod's percentile in ms, a mean of its minutes by their calls (None: no call),
    how many calls the busiest pod answered in the minute of its average call (None: no call), and
    how many calls their callers gave up."""

    window_s: int
    calls: float
    latency_ms: float | None
    calls_a_minute: float | None = None
    lost: float = 0.0
    given_up: float = 0.0

    @property
    def failed(self) -> float:
        """Share of all calls: of one pod with ten, a single one would be above every limit."""
        return self.lost / max(self.calls + self.lost, 1.0)


def observe(
    prometheus: str, release: Release, window_s: int, replica_set: str | None = None
) -> Observed:
    """Ask a Prometheus that runs the rules of `control deploy render`, about the pods of a
    ReplicaSet: those of the release before may have had most of the calls.

    Raises Refused when it does not answer.
    """
    chosen = pods_matching(release)
    if replica_set is not None:
        chosen = f'namespace="{release.deploy.namespace}",pod=~"{replica_set}-[a-z0-9]+"'
    window, by_pod = f"{window_s}s", "sum by (pod)"
    answered = answered_calls(chosen, window, "increase", by_pod)
    lost = lost_calls(chosen, window, "increase", by_pod)
    # Each sample is of the minute before it, NaN without a call, and counts as often as calls came
    # in it: the worst one alone would refuse a canary for ten late calls of a thousand, and among
    # quiet minutes a busy one in which all are late is lost.
    busy = answered_calls(chosen, "1m", "increase", by_pod)
    p = f"max by (pod) ({P_METRIC}{{{chosen}}} >= 0)"

    def summed(samples: str) -> str:
        return f"sum_over_time(({samples})[{window}:{SCRAPE_S}s])"

    late = f"{summed(f'{p} * on (pod) {busy}')} / {summed(f'{busy} and on (pod) {p}')}"
    latency = _ask(prometheus, f"max({late})")
    calls_a_minute = _ask(
        prometheus, f"max({summed(f'{busy} * on (pod) {busy}')} / {summed(busy)})"
    )
    # They are in no percentile: the slower it is, the fewer of its calls that knows.
    given_up = _ask(prometheus, f"sum({given_up_calls(chosen, window, 'increase', by_pod)})")
    return Observed(
        window_s=window_s,
        calls=_ask(prometheus, f"sum({answered})") or 0.0,
        latency_ms=None if latency is None else 1000 * latency,
        calls_a_minute=calls_a_minute,
        # Not a mean of FAILED_METRIC over time, which counts quiet minutes, in which none fails.
        lost=_ask(prometheus, f"sum({lost})") or 0.0,
        given_up=given_up or 0.0,
    )


def judge(observed: Observed, release: Release, fewest: int = FEWEST_CALLS) -> str:
    """What was observed, in words. Raises Refused when it breaks the release's objective, or was
    too little to tell."""
    everything = observed.calls + observed.lost + observed.given_up
    if everything >= fewest and observed.given_up > MOST_GIVEN_UP * everything:
        raise Refused(
            f"callers of the canary gave up {observed.given_up:.0f} of {everything:.0f} calls "
            f"before the answer, in {observed.window_s} s",
            "`control deploy abort` takes it back; more replicas may help a slow one",
        )
    if observed.calls < fewest:
        if observed.calls + observed.lost >= fewest and observed.failed > MOST_FAILED:
            raise Refused(
                f"the canary refuses or fails {observed.lost:.0f} of "
                f"{observed.calls + observed.lost:.0f} calls in {observed.window_s} s",
                "`control deploy abort` takes it back; `control deploy status` says what is wrong",
            )
        raise Refused(
            f"the canary answered {observed.calls:.0f} calls in {observed.window_s} s: too few to "
            f"judge it, {fewest} are needed",
            "send it a larger share (`apply --canary`), look back further with --window, or wait",
        )
    if observed.latency_ms is None or observed.calls_a_minute is None:
        raise Refused(
            f"{observed.calls:.0f} calls reached the canary and Prometheus has no {P_METRIC} of "
            "them: it does not run the rules of `control deploy render`",
            "is the PrometheusRule selected (deploy.monitoring_labels)?",
        )
    needed = min(fewest, 100 / (100 - release.percentile))
    if observed.calls_a_minute < needed:
        raise Refused(
            f"the canary's busiest pod answered {observed.calls_a_minute:.1f} calls a minute: a "
            f"p{release.percentile} is measured minute by minute, and of fewer than {needed:.0f} "
            "calls it is their mean or the slowest of them",
            "send it a larger share (`apply --canary`), or accept fewer with --min-calls; "
            "--unobserved leaves it to the known answers",
        )
    told = (
        f"{observed.calls:.0f} in {observed.window_s} s, p{release.percentile} "
        f"{observed.latency_ms:.0f} ms of {release.latency_ms:g} ms, "
        f"{100 * observed.failed:.2f} % failed"
    )
    late, fails = observed.latency_ms > release.latency_ms, observed.failed > MOST_FAILED
    if late or fails:
        broken = " and ".join(
            name for name, is_so in (("is too slow", late), ("refuses or fails", fails)) if is_so
        )
        raise Refused(
            f"the canary {broken}: {told}",
            "`control deploy abort` takes it back; more replicas may help a slow one",
        )
    return told


def _ask(prometheus: str, query: str) -> float | None:
    """The value of an instant query that gives one, None when it gives none or no number."""
    url = f"{prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
            found = json.load(reply)["data"]["result"]
            value = float(found[0]["value"][1]) if found else math.nan
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Refused(
            f"the Prometheus at {prometheus} does not answer: {error}",
            "give the address that this machine reaches, such as of a kubectl port-forward",
        ) from error
    return None if math.isnan(value) else value
