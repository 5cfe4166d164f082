"""The simulation of policies: queues that textbooks know, and the findings that the manifests rest on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slmrank.deploy.autoscale.fleet import Outcome, Seen, run_fleet
from slmrank.deploy.autoscale.simulate import Result, best, compare, find_floor, policies_of
from slmrank.deploy.autoscale.situation import Situation, read_depth_table, service_for
from slmrank.deploy.autoscale.traces import KINDS, Trace, make_trace, read_trace
from slmrank.errors import DataError
from slmrank.pyplot import COLORS
from slmrank.spec.repository import DepthSpec

from tests.conftest import Control
from tests.deploy import releases
from tests.deploy.autoscale.test_hpa import DEFAULT

pytestmark = pytest.mark.slow
PLANNED = "floor + shedding + pending"


class Fixed:
    """Never changes the size."""

    def size(self, seen: Seen) -> int:
        return seen.current


class Jump:
    """Asks for more once."""

    def size(self, seen: Seen) -> int:
        return max(seen.current, 3)


def situation(**changes: object) -> Situation:
    given = Situation(
        capacity_items_per_s=40,
        items=4,
        limit_s=0.5,
        service_s=0.08,
        jitter=0.1,
        cold_start_s=120,
        queue=8,
        queue_timeout_s=1.0,
        target_items_per_s=24,
        pending=8,
        floor=8,
        maximum=60,
        rendered=(2, 8),
        behavior=DEFAULT,
        seed=0,
        depth=DepthSpec(target_ms=210, floor=1, step=1),
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def alone(**changes: object) -> Situation:
    """For requests of one job."""
    return situation(items=1, **changes)


def by_name(results: list[Result]) -> dict[str, Result]:
    return {one.policy: one for one in results}


def quiet(note: str) -> None: ...


def test_one_replica_is_an_m_d_1_queue() -> None:
    """Pollaczek-Khinchine: the mean wait at load r is s * r / (2 * (1 - r))."""
    service, load = 0.1, 0.7
    trace = Trace(name="flat", rates=np.full(2000, load / service))
    arrivals = trace.arrivals(1, seed=1)
    outcome = run_fleet(
        arrivals,
        alone(service_s=service, jitter=0, cold_start_s=1, queue=10**6, queue_timeout_s=1e6),
        Fixed(),
        start=1,
        seconds=trace.seconds,
    )
    wait = float(outcome.latencies.mean()) - service
    assert wait == pytest.approx(service * load / (2 * (1 - load)), rel=0.06)
    assert outcome.replica_hours == pytest.approx(trace.seconds / 3600)


def test_new_replicas_serve_after_the_cold_start_and_cost_from_the_start() -> None:
    arrivals = np.arange(0, 400, 0.5)
    outcome = run_fleet(
        arrivals,
        alone(service_s=0.01, jitter=0, cold_start_s=100, queue=5, queue_timeout_s=1),
        Jump(),
        start=1,
        seconds=400.0,
    )
    ready = [(at, ready) for at, _, ready in outcome.sizes]
    assert max(count for at, count in ready if at < 115) == 1
    assert max(count for at, count in ready if at >= 115) == 3
    assert outcome.replica_hours * 3600 == pytest.approx(400 + 2 * (400 - 15))


def flood(queue: int, timeout_s: float, jitter: float) -> Outcome:
    """50 requests a second for one replica that answers 10."""
    trace = Trace(name="flood", rates=np.full(30, 50.0))
    return run_fleet(
        trace.arrivals(1, seed=0),
        alone(service_s=0.1, jitter=jitter, cold_start_s=1, queue=queue, queue_timeout_s=timeout_s),
        Fixed(),
        start=1,
        seconds=trace.seconds,
    )


def test_a_full_queue_refuses_and_keeps_the_rest_fast() -> None:
    outcome = flood(4, 10, jitter=0)
    refused = np.isnan(outcome.latencies)
    assert refused.mean() == pytest.approx(0.8, abs=0.03)
    assert np.nanmax(outcome.latencies) <= 0.1 * (4 + 2)


def test_what_would_be_answered_too_late_is_refused_at_once() -> None:
    """By the whole time to an answer, as a server does: by its wait alone 6 % were late."""
    outcome = flood(100, 0.5, jitter=0.2)
    assert 0.4 < np.nanmax(outcome.latencies) <= 0.5


def test_the_autoscaler_goes_on_after_the_last_request() -> None:
    rates = np.concatenate([np.full(360, 160.0), np.zeros(3 * 360)])
    results, _ = compare(situation(floor=1), Trace(name="quiet", rates=rates), quiet)
    # One hour at ten replicas and three at few: not forty hours.
    assert by_name(results)["reactive"].replica_hours < 16


def test_depth_instead_of_refusals_and_what_it_costs() -> None:
    trace = make_trace("burst", load=160, burst=3, hours=0.5, seed=0)
    table = ((0.0, 0.5), (1.0, 0.7))
    results, outcomes = compare(situation(ndcg_of=table), trace, quiet)
    found = by_name(results)
    without, with_it = found["reactive + shedding"], found["reactive + shedding + depth"]
    assert with_it.within > without.within + 0.02
    assert with_it.refused < without.refused / 2
    assert without.ranked == 1.0
    assert without.ndcg == pytest.approx(0.7)
    assert 0.25 < with_it.ranked < 1
    assert with_it.ndcg == pytest.approx(0.5 + 0.2 * with_it.ranked)
    calm = outcomes["reactive + shedding + depth"]
    assert calm.ranked[calm.arrivals < 120].mean() > 0.95


def test_a_depth_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "depth.json"
    rows = [{"name": "100%", "ndcg10": {"value": 0.7}}, {"name": "0%", "ndcg10": {"value": 0.5}}]
    path.write_text(json.dumps({"rows": rows}))
    assert read_depth_table(path) == ((1.0, 0.7), (0.0, 0.5))
    for text in ("{", '{"rows": [{"name": "all"}]}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is no depth table"):
            read_depth_table(path)


def test_bursts_are_a_matter_of_floor_and_shedding() -> None:
    trace = make_trace("burst", load=160, burst=4, hours=1, seed=0)
    results, _ = compare(situation(floor=18), trace, quiet)
    found = by_name(results)
    assert set(found) >= {"reactive", "trend", "scheduled", "floor + shedding", PLANNED}
    assert found["reactive"].within < 0.9
    assert found["trend"].within < 0.95
    assert found[PLANNED].within > 0.99
    assert found["reactive"].p99_s > 5
    assert found["reactive + shedding"].p99_s < 0.9
    assert found["floor"].replica_hours > found["reactive"].replica_hours
    assert len({one.requests for one in results}) == 1


def test_a_slow_ramp_needs_no_floor() -> None:
    trace = make_trace("ramp", load=160, burst=3, hours=1, seed=0)
    results, _ = compare(situation(floor=1), trace, quiet)
    assert by_name(results)["reactive"].within > 0.99
    cheapest = best(results, 0.99)
    assert cheapest is not None
    assert cheapest.policy == "reactive"
    assert best(results, 1.01) is None


def test_the_least_floor_is_found_and_one_less_does_not_do() -> None:
    trace = make_trace("burst", load=160, burst=4, hours=1, seed=0)
    floor, tried = find_floor(situation(), trace, 0.99, quiet)
    assert floor is not None
    shares = dict(tried)
    assert shares[floor] >= 0.99
    below, _ = compare(situation(floor=floor - 1), trace, quiet)
    assert by_name(below)[PLANNED].within < 0.99
    none, _ = find_floor(situation(service_s=0.6), trace, 0.99, quiet)
    assert none is None


def test_the_same_seed_gives_the_same_result() -> None:
    trace = make_trace("diurnal", load=80, burst=2, hours=0.5, seed=3)
    first, _ = compare(situation(), trace, quiet)
    second, _ = compare(
        situation(), make_trace("diurnal", load=80, burst=2, hours=0.5, seed=3), quiet
    )
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_traces_reach_their_peak_and_their_arrivals_have_the_rate(kind: str) -> None:
    trace = make_trace(kind, load=100, burst=3, hours=2, seed=0)
    assert 250 < trace.rates.max() < 360
    arrivals = trace.arrivals(4, seed=0)
    assert len(arrivals) * 4 == pytest.approx(trace.mean * trace.seconds, rel=0.02)
    assert (np.diff(arrivals) >= 0).all()
    assert trace.history is not None
    assert not np.array_equal(trace.history, trace.rates)


def test_a_csv_is_a_trace_and_bad_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "monday.csv"
    path.write_text("seconds,items_per_s\n0,10\n100,20\n200,20\n")
    trace = read_trace(path)
    assert trace.name == "monday"
    # Means of ten seconds each.
    assert trace.rates[0] == pytest.approx(10.5)
    assert trace.rates[5] == pytest.approx(15.5)
    spikes = "".join(f"{n},{1000 if n % 10 in (3, 4, 5) else 10}\n" for n in range(101))
    path.write_text("\ufeffseconds,items_per_s\n" + spikes, encoding="utf-8")
    assert read_trace(path).rates.mean() == pytest.approx(307, abs=1)
    path.write_text("seconds,items_per_s\n0,10\n100,20\n200,20\n")
    assert trace.history is None
    for text, told in (
        ("seconds,items_per_s\n0,10\n5,x\n", ":3: no numbers"),
        ("a,b\n0,10\n", "no numbers"),
        ("seconds,items_per_s\n0,10\n0,10\n", "does not grow"),
        ("seconds,items_per_s\n0,10\n5,-1\n", "is no load"),
        ("seconds,items_per_s\n0,10\n5,nan\n", "is no load"),
        ("seconds,items_per_s\n0,10\n", "1 rows"),
        ("seconds,items_per_s\n0,1\n1e12,1\n", "days long"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=told):
            read_trace(path)
    with pytest.raises(DataError, match="no trace"):
        make_trace("noon", load=1, burst=1, hours=1, seed=0)


def test_a_history_stands_beside_the_same_time_of_day(tmp_path: Path) -> None:
    """Sunday from midnight on was laid beside a Monday that starts at eight."""
    for name, first, last in (("monday", 8, 20), ("sunday", 0, 24)):
        rows = [f"{hour * 3600},{100 if hour < 12 else 300}\n" for hour in range(first, last + 1)]
        (tmp_path / f"{name}.csv").write_text("seconds,items_per_s\n" + "".join(rows))
    trace = read_trace(tmp_path / "monday.csv", tmp_path / "sunday.csv")
    assert trace.history is not None
    assert np.allclose(trace.history, trace.rates)
    # 24 hourly rows end at 23:00: an hour was lost with every day.
    for name, days in (("days", 4), ("day", 1)):
        rows = [f"{h * 3600},{900 if h % 24 == 12 else 100}\n" for h in range(24 * days)]
        (tmp_path / f"{name}.csv").write_text("seconds,items_per_s\n" + "".join(rows))
    trace = read_trace(tmp_path / "days.csv", tmp_path / "day.csv")
    assert trace.history is not None
    peaks = np.flatnonzero(trace.history == trace.history.max()) * 10 / 3600 % 24
    assert np.allclose(peaks, 12, atol=0.1)
    # A little more than a day: the hours that the second one lacks are those of the first.
    rows = [f"{hour * 3600},{10 + hour}\n" for hour in range(6, 31)]
    (tmp_path / "more.csv").write_text("seconds,items_per_s\n" + "".join(rows))
    rows = [f"{hour * 3600},1\n" for hour in range(25)]
    (tmp_path / "today.csv").write_text("seconds,items_per_s\n" + "".join(rows))
    trace = read_trace(tmp_path / "today.csv", tmp_path / "more.csv")
    assert trace.history is not None
    hourly = trace.history[:: round(3600 / 10)][:24]
    assert np.allclose(hourly[7:], np.arange(17, 34), atol=0.2)
    assert hourly[:6].min() > 30  # the night after


def test_no_policy_has_more_replicas_than_were_given() -> None:
    trace = make_trace("burst", load=160, burst=4, hours=0.5, seed=0)
    found, _ = compare(situation(maximum=3, floor=3, rendered=(1, 3)), trace, quiet)
    assert {one.most_replicas for one in found} <= {1, 2, 3}
    least, tried = find_floor(situation(maximum=3, floor=3), trace, 0.999, quiet)
    assert least is None
    assert max(floor for floor, _ in tried) == 3


def test_the_manifests_own_bounds_are_one_of_the_policies() -> None:
    given = replace(situation(), rendered=(2, 3))
    trace = make_trace("burst", load=40, burst=4, hours=0.5, seed=0)
    policies = policies_of(given, trace)
    rendered = policies["as in the manifests"]
    assert trace.history is not None
    assert len(policies) <= len(COLORS), "each has a line of its own"
    assert (rendered.floor, rendered.most) == (2, 3)


def test_the_service_time_just_meets_the_objective() -> None:
    service = service_for(40, 4, 0.5, 95)
    assert 0.05 < service < 0.1
    assert service_for(40, 4, 50, 95) > service
    # One that an idle replica just meets leaves no more than itself.
    assert service_for(40, 4, 0.02, 95) < 0.02


@pytest.mark.long
def test_the_command_reports_and_draws(tmp_path: Path, control: Control) -> None:
    release = tmp_path / "release.yaml"
    release.write_text(releases.cpu().to_yaml())
    given = ("--trace", "burst", "--hours", "0.5", "--find-floor", "--artifacts", tmp_path)
    done = control("autoscale", "simulate", release, *given)
    assert done.returncode == 0, done.stderr
    assert "as in the manifests" in done.stdout
    assert "least floor for 99%" in done.stdout
    report = json.loads((tmp_path / "autoscale/burst.json").read_text())
    assert len(report["policies"]) == 9
    assert (tmp_path / "autoscale/burst.png").read_bytes().startswith(b"\x89PNG")
    done = control("autoscale", "simulate", release, *given, "--no-plot", "--json")
    assert json.loads(done.stdout)["floor_by_search"] == report["floor_by_search"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--trace", "nothing.csv"], 3, "neither a file nor one of"),
        (["--service-ms", "900"], 3, "the objective is 500 ms"),
        (["--load", "-1"], 2, "--load Input should be greater than 0"),
        (["--load", "1e9"], 3, "requests, at most"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: list[str], code: int, told: str, tmp_path: Path, control: Control
) -> None:
    release = tmp_path / "release.yaml"
    release.write_text(releases.cpu().to_yaml())
    done = control("autoscale", "simulate", release, *arguments, "--artifacts", tmp_path)
    assert done.returncode == code
    assert told in done.stderr
