"""Sweeps: exact lengths, a plan that resumes, and the real perf_analyzer against the real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.data.records import Job
from slmrank.errors import MissingDependencyError, SweepError
from slmrank.load.binary import PerfAnalyzer, find_perf_analyzer
from slmrank.load.evidence import joined_requests, require_ready
from slmrank.load.perf_analyzer import EMPTY, Measuring, command_line, run_point
from slmrank.load.perf_result import (
    due_requests,
    kept_share,
    merged_requests,
    percentile_cell,
    read_result,
)
from slmrank.load.points import (
    Load,
    Point,
    PointInput,
    Pool,
    arrivals_us,
    cut_text,
    make_input,
    plan_points,
)
from slmrank.load.record import gather_record, record_path
from slmrank.load.run import Bench, Running, Subject, estimate_s, find_point, run_sweep
from slmrank.load.session import Session
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.measure import open_bundle_session
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer, template_of
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.load import SweepSpec
from slmrank.spec.model import PromptSpec
from slmrank.spec.reading import change_spec
from slmrank.tokens import Ids

from tests.conftest import Control, TinyBundle

CLOSED, OPEN = Load(kind="concurrency", level=2), Load(kind="rate", level=10)
POINT = Point(items=3, tokens=24, load=CLOSED)
MEASURING = Measuring(spec=SweepSpec(window_ms=500, trials=5, stability_percent=40))
JOBS = [
    Job(job_id=f"j{n}", title="Cook", description=f"Bake bread number {n} and wash up. " * 9)
    for n in range(5)
]


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> PromptEncoder:
    return PromptEncoder(
        load_tokenizer(tokenizer_folder),
        template_of(PromptSpec()),
        max_item_tokens=80,
        max_query_tokens=30,
    )


def given_input(
    point: Point,
    encoder: PromptEncoder,
    requests: int = 6,
    seed: int = 0,
    queries: tuple[str, ...] = ("cook",),
    stored: Any = None,
) -> PointInput:
    pool = Pool(
        jobs={job.job_id: job for job in JOBS},
        queries=queries,
        encoder=encoder,
        requests=requests,
        seed=seed,
        stored=stored,
    )
    return make_input(point, pool)


def test_the_grid() -> None:
    loads = [CLOSED, Load(kind="concurrency", level=1), OPEN]
    points = plan_points([8, 1, 8], [32], loads, [None, 7])
    assert [(p.items, p.query_tokens, p.load.name) for p in points][:4] == [
        (1, None, "concurrency1"),
        (1, None, "concurrency2"),
        (1, None, "rate10"),
        (1, 7, "concurrency1"),
    ]
    assert len(points) == len({p.name for p in points}) == 12


def test_texts_have_the_asked_length(encoder: PromptEncoder) -> None:
    for tokens in (10, 24, 80):
        given = given_input(replace(POINT, tokens=tokens), encoder)
        for entry in given.data["data"]:
            assert entry["job_text"]["shape"] == [3]
            for text in entry["job_text"]["content"]:
                item = encoder.item(encoder.body(text))
                assert not item.truncated
                assert len(item.ids) == tokens
        assert given.mean_item_tokens == given.max_item_tokens == tokens


def test_texts_without_an_exact_cut_are_passed_over(encoder: PromptEncoder) -> None:
    """One more character can add two tokens; where any text has the length, all chosen have it."""

    def lengths(tokens: int, jobs: Sequence[Job]) -> set[int]:
        by_id = {job.job_id: job for job in jobs}
        pool = Pool(jobs=by_id, queries=("cook",), encoder=encoder, requests=6, seed=0, stored=None)
        entries = make_input(replace(POINT, tokens=tokens), pool).data["data"]
        texts = [text for entry in entries for text in entry["job_text"]["content"]]
        return {len(encoder.item(encoder.body(text)).ids) for text in texts}

    titles = ("Cook", "Nurse 12", "Ümläut", "C++ developer (m/f/d)")
    jobs = [Job(job_id=title, title=title, description="bread, 15 °C " * 20) for title in titles]
    mixed = 0
    for tokens in range(8, 40):
        apart = [lengths(tokens, [job]) == {tokens} for job in jobs]
        if any(apart):
            assert lengths(tokens, jobs) == {tokens}
        mixed += any(apart) and not all(apart)
    assert mixed


def test_the_pool_follows_the_seed(encoder: PromptEncoder) -> None:
    queries = ("a", "b")
    first, again, other = (given_input(POINT, encoder, seed=s, queries=queries) for s in (0, 0, 1))
    assert first.hash == again.hash != other.hash


@pytest.mark.parametrize("tokens", [1, 81])
def test_lengths_outside_the_served_limit_are_refused(encoder: PromptEncoder, tokens: int) -> None:
    with pytest.raises(SweepError, match=f"tokens {tokens} is outside"):
        given_input(replace(POINT, tokens=tokens), encoder)


def test_a_text_that_is_too_short_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(SweepError, match="fewer than 50 tokens"):
        cut_text("short", 50, lambda text: len(encoder.body(text)))


@pytest.mark.parametrize("tokens", [1, 9, 30])
def test_queries_have_the_asked_length(encoder: PromptEncoder, tokens: int) -> None:
    queries = ("night nurse in Reno", "welder")
    given = given_input(replace(POINT, query_tokens=tokens), encoder, queries=queries)
    empty = encoder.max_prompt_tokens - encoder.max_item_tokens - encoder.max_query_tokens
    sizes = {len(encoder.prefix(one["query"]["content"][0])) for one in given.data["data"]}
    assert sizes == {tokens + empty}
    assert given.mean_query_tokens == tokens
    with pytest.raises(SweepError, match="query tokens 31 is above the served limit 30"):
        given_input(replace(POINT, query_tokens=31), encoder)


def test_stored_jobs_are_sent_by_id_with_their_true_tokens(encoder: PromptEncoder) -> None:
    known: dict[str, Ids] = {
        "j1": encoder.body("a b c"),
        "j2": encoder.body("a longer text of some words"),
    }
    given = given_input(
        replace(POINT, tokens=None),
        encoder,
        stored=lambda names: [known.get(name) for name in names],
    )
    for entry in given.data["data"]:
        assert "job_text" not in entry
        assert set(entry["job_id"]["content"]) <= set(known)
    assert given.max_item_tokens == len(encoder.item(known["j2"]).ids)
    with pytest.raises(SweepError, match="no summary store"):
        given_input(replace(POINT, tokens=None), encoder)
    with pytest.raises(SweepError, match="holds none of the jobs"):
        given_input(replace(POINT, tokens=None), encoder, stored=lambda names: [None] * len(names))


def test_arrivals_are_poisson_with_the_exact_mean() -> None:
    gaps = arrivals_us(25.0, 400, 10, "seed")
    assert sum(gaps) / len(gaps) == pytest.approx(40_000, rel=1e-3)
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1), "an exponential's deviation is its mean"
    assert gaps == arrivals_us(25.0, 400, 10, "seed") != arrivals_us(25.0, 400, 10, "other")
    # What is measured is the start of the schedule.
    assert sum(gaps[:400]) / 400 == pytest.approx(40_000, rel=1e-3)


def test_another_engine_runtime_tool_or_setting_is_another_point(encoder: PromptEncoder) -> None:
    first = Subject(identity={"engine": "a"}, versions={"openvino": "1"}, tool="t")
    given = given_input(POINT, encoder)
    keys = {
        subject.key("point", settings, data)
        for subject, settings, data in [
            (first, {}, given),
            (replace(first, identity={"engine": "b"}), {}, given),
            (replace(first, versions={"openvino": "2"}), {}, given),
            (replace(first, tool="u"), {}, given),
            (first, {"window_ms": 1}, given),
            (first, {}, given_input(POINT, encoder, seed=1)),
        ]
    }
    assert len(keys) == 6


def test_the_command_uses_bare_file_names() -> None:
    analyzer = PerfAnalyzer(path=Path("/x/perf_analyzer"), version="v", environment={})
    argv = command_line(analyzer, "h:1", POINT, MEASURING)
    for flag in ("-f", "--profile-export-file", "--input-data"):
        assert "/" not in argv[argv.index(flag) + 1]
    assert argv[argv.index("--concurrency-range") + 1] == "2"
    # Cold requests stay out of the first window (trap 6), and throughput is not divided by whole
    # seconds (trap 2).
    assert argv[argv.index("--warmup-request-count") + 1] == "4"
    assert not [word for word in argv if word == "--request-count"]


def test_an_open_loop_is_sent_asynchronously_on_our_schedule() -> None:
    # The synchronous default waits for answers and still reports the asked rate (trap 4).
    analyzer = PerfAnalyzer(path=Path("/x/perf_analyzer"), version="v", environment={})
    argv = command_line(analyzer, "h:1", replace(POINT, load=OPEN), MEASURING)
    assert "-a" in argv
    assert argv[argv.index("--request-intervals") + 1] == "arrivals_us.txt"
    assert "--concurrency-range" not in argv
    assert "--request-rate-range" not in argv
    wide = replace(MEASURING, min_requests=90).window_for(replace(POINT, load=OPEN))
    assert wide * 3 * 1.2 / 1000 * 10 >= 90
    assert MEASURING.window_for(POINT) == 500


def export(ends_ms: list[int], borders_ms: list[int]) -> dict[str, Any]:
    requests = [
        {"timestamp": (end - 5) * 10**6, "response_timestamps": [end * 10**6]} for end in ends_ms
    ]
    borders = [border * 10**6 for border in borders_ms]
    return {"experiments": [{"requests": requests, "window_boundaries": borders}]}


def test_only_requests_that_end_in_the_last_three_windows_count() -> None:
    given = export([5, 50, 150, 250, 350, 450], [0, 100, 200, 300, 400])
    latencies, ended, begin, end = merged_requests(given)
    assert (ended / 1e6).tolist() == [150, 250, 350]
    assert (end - begin) / 1e9 == pytest.approx(0.3)
    assert latencies.tolist() == [5.0] * 3


def test_a_figure_that_disagrees_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(export([50, 150, 250], [0, 100, 200, 300])))
    for reported, trusted in ((10.0, True), (12.0, False)):
        (tmp_path / "latency.csv").write_text(f"Concurrency,Inferences/Second\n2,{reported}\n")
        measured = read_result(tmp_path, POINT, 100)
        assert measured.requests_per_s == pytest.approx(10.0)
        assert measured.items_per_s == pytest.approx(30.0)
        assert measured.verdict == ("ok" if trusted else "disagrees")


def sent(times_ms: list[float], borders_ms: list[int]) -> dict[str, Any]:
    """An export of requests sent at these times, each answered at once."""
    requests = [
        {"timestamp": int(ms * 10**6), "response_timestamps": [int(ms * 10**6) + 1]}
        for ms in times_ms
    ]
    return {
        "experiments": [
            {"requests": requests, "window_boundaries": [border * 10**6 for border in borders_ms]}
        ]
    }


def test_a_late_request_has_waited_since_it_was_due() -> None:
    """The tool was held up for 25 ms: what it sent late is not counted as quickly answered."""
    schedule = [10_000] * 8
    given = sent([0, 10, 45, 45, 45, 50, 60], [0, 100])
    latencies, *_ = merged_requests(given, schedule)
    assert latencies.round(2).tolist() == [0, 0, 25, 15, 5, 0, 0]
    assert merged_requests(given)[0].max() < 0.01


def test_a_percentile_has_a_request_beyond_it() -> None:
    figures = {"requests": 20, "p50_ms": 7.2, "p95_ms": 9.6, "p99_ms": 9.9}
    assert [percentile_cell(figures, one) for one in (50, 95, 99)] == ["7", "10", "-"]
    assert percentile_cell(figures | {"requests": 19}, 95) == "-"
    assert percentile_cell(figures | {"requests": 100}, 99) == "10"


def test_a_schedule_that_was_not_kept_gives_no_number(tmp_path: Path) -> None:
    schedule = [10_000] * 40
    kept = sent([10.0 * number for number in range(30)], [0, 100, 200, 300])
    late = sent([12.0 * number for number in range(25)], [0, 100, 200, 300])
    assert kept_share(kept, schedule) == pytest.approx(1.0)
    assert kept_share(late, schedule) == pytest.approx(10 / 12)
    point = replace(POINT, load=Load(kind="rate", level=100))
    for export_, verdict in ((kept, "ok"), (late, "late")):
        (tmp_path / "profile.json").write_text(json.dumps(export_))
        rate = len(export_["experiments"][0]["requests"]) / 0.3
        (tmp_path / "latency.csv").write_text(f"Request Rate,Inferences/Second\n9,{rate}\n")
        assert read_result(tmp_path, point, 100, schedule).verdict == verdict


def test_requests_that_were_due_but_never_answered_are_an_overload(tmp_path: Path) -> None:
    schedule = [10_000] * 16
    # Every answered request was sent in time; every second one is missing from the export.
    given = sent([10.0 * number for number in range(15)], [0, 100, 200, 300])
    assert due_requests(given, schedule, 0, 300 * 10**6) == 31
    (tmp_path / "profile.json").write_text(json.dumps(given))
    (tmp_path / "latency.csv").write_text("Request Rate,Inferences/Second\n9,50\n")
    point = replace(POINT, load=Load(kind="rate", level=100))
    measured = read_result(tmp_path, point, 100, schedule)
    assert measured.verdict == "overload"
    assert measured.backlog == 16


def parallel(
    servers: int, service_s: float, rate: float, seed: str, window_s: float = 2.4
) -> tuple[dict[str, Any], list[int]]:
    """The export of a server of `servers` equal places with exponential spread, and the schedule:
    the run begins with nothing under way, and what is not answered at its end is not exported."""
    rng = np.random.default_rng(int(seed))
    block = round(rate * 3 * window_s)
    schedule = arrivals_us(rate, block, 4, seed)
    end = 3 * window_s
    times = np.cumsum(np.resize(schedule, 3 * block)) / 1e6
    free = [0.0] * servers
    requests = []
    for due in times[times < end]:
        place = int(np.argmin(free))
        free[place] = max(due, free[place]) + service_s * rng.uniform(0.5, 1.5)
        if free[place] < end:
            requests.append((due, free[place]))
    borders = [int(number * window_s * 1e9) for number in range(4)]
    exported = [
        {"timestamp": int(due * 1e9), "response_timestamps": [int(done * 1e9)]}
        for due, done in requests
    ]
    return {"experiments": [{"requests": exported, "window_boundaries": borders}]}, schedule


@pytest.mark.parametrize(
    ("servers", "service_s", "rate", "verdict"),
    [
        (64, 0.45, 20, "ok"),  # nine under way at the end: they were taken for a backlog
        (64, 0.4, 100, "ok"),
        (16, 0.35, 30, "ok"),
        (1, 0.05, 12, "ok"),
        (1, 0.05, 30, "overload"),
        (16, 0.35, 70, "overload"),
    ],
)
def test_what_is_under_way_in_a_parallel_server_is_no_backlog(
    tmp_path: Path, servers: int, service_s: float, rate: float, verdict: str
) -> None:
    found = []
    for seed in range(20):
        given, schedule = parallel(servers, service_s, rate, f"{seed}")
        (tmp_path / "profile.json").write_text(json.dumps(given))
        answered = len(given["experiments"][0]["requests"]) / 7.2
        (tmp_path / "latency.csv").write_text(f"Request Rate,Inferences/Second\n9,{answered}\n")
        point = replace(POINT, load=Load(kind="rate", level=rate))
        found.append(read_result(tmp_path, point, 2400, schedule).verdict)
    assert found.count(verdict) >= 19, found  # one may miss by chance


def fake_tool(tmp_path: Path, script: str) -> PerfAnalyzer:
    path = tmp_path / "perf_analyzer"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return PerfAnalyzer(path=path, version="fake", environment={})


def test_a_tool_that_says_0_without_a_row_is_not_believed(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    # The wheels' launcher always ends with 0 (trap 1).
    given = given_input(POINT, encoder, requests=2)
    with pytest.raises(SweepError, match="no readable export"):
        run_point(fake_tool(tmp_path, "exit 0"), "h:1", POINT, MEASURING, given.data, tmp_path)


def test_a_killed_tool_is_started_once_more_and_then_told(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    given = given_input(POINT, encoder, requests=2)
    tool = fake_tool(tmp_path, "echo x >> tries; kill -9 $$")
    outcome = run_point(tool, "h:1", POINT, MEASURING, given.data, tmp_path)
    assert (outcome.verdict, outcome.stable) == ("failed", False)
    assert "killed by signal 9" in outcome.reason
    assert (tmp_path / "tries").read_text() == "x\nx\n"
    assert "requests_per_s" not in outcome.as_dict()


def test_an_unstable_tool_is_tried_with_wider_windows_and_has_no_number(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    given = given_input(POINT, encoder, requests=2)
    tool = fake_tool(tmp_path, 'echo "$@" >> argv; echo "WARNING: not stable"; exit 2')
    outcome = run_point(tool, "h:1", POINT, MEASURING, given.data, tmp_path)
    assert outcome.verdict == "unstable"
    assert outcome.warnings == ("WARNING: not stable",)
    windows = [
        line.split(" -p ")[1].split()[0] for line in (tmp_path / "argv").read_text().splitlines()
    ]
    assert windows == ["500", "1000"]
    assert not {"p95_ms", "items_per_s"} & set(outcome.as_dict())


def test_windows_that_no_request_ends_in_are_widened_until_one_does(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    given = given_input(POINT, encoder, requests=2)
    text = "No valid requests recorded within time interval. Please use a larger time window."
    tool = fake_tool(tmp_path, f'echo "$@" >> argv; echo "{text}"; exit 3')
    outcome = run_point(tool, "h:1", POINT, MEASURING, given.data, tmp_path)
    assert (outcome.verdict, outcome.reason) == ("unstable", EMPTY)
    windows = [
        line.split(" -p ")[1].split()[0] for line in (tmp_path / "argv").read_text().splitlines()
    ]
    assert windows == ["500", "1000", "2000", "4000"]


def test_refused_requests_are_a_verdict_with_what_to_change(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    given = given_input(POINT, encoder, requests=2)
    tool = fake_tool(tmp_path, "echo 'Failed: Exceeds maximum queue size'; exit 99")
    outcome = run_point(tool, "h:1", replace(POINT, load=OPEN), MEASURING, given.data, tmp_path)
    assert outcome.verdict == "refused"
    tool = fake_tool(tmp_path, "echo 'Thread [0] had error: overloaded: 64 wait'; exit 99")
    closed = run_point(tool, "h:1", POINT, MEASURING, given.data, tmp_path)
    assert closed.verdict == "refused"
    assert closed.reason.endswith("at this load: overloaded: 64 wait")


def test_the_real_batch_size_comes_from_the_servers_counts() -> None:
    before = {"ranker": {"requests": 10, "executions": 10}}
    after = {
        "ranker": {"requests": 40, "executions": 20},
        "other": {"requests": 1, "executions": 1},
    }
    assert joined_requests(before, after) == {"ranker": 3.0}
    assert joined_requests(after, after) == {}


def test_an_export_with_raw_length_prefixes_is_read(tmp_path: Path) -> None:
    text = json.dumps(export([50, 150, 250], [0, 100, 200, 300]) | {"version": "@"})
    (tmp_path / "profile.json").write_bytes(text.encode().replace(b"@", b"\x80\x00\x00\x07"))
    (tmp_path / "latency.csv").write_text("Concurrency,Inferences/Second\n2,10\n")
    assert read_result(tmp_path, POINT, 100).requests == 3


def test_missing_rows_and_empty_windows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no readable export"):
        read_result(tmp_path, POINT, 100)
    (tmp_path / "profile.json").write_text(json.dumps(export([50], [0, 100])))
    with pytest.raises(SweepError, match="wrote no row"):
        read_result(tmp_path, POINT, 100)
    (tmp_path / "profile.json").write_text(json.dumps(export([], [0, 100])))
    with pytest.raises(SweepError, match="no request"):
        read_result(tmp_path, POINT, 100)


def test_a_binary_that_does_not_start_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "perf_analyzer"
    monkeypatch.setenv("PERF_ANALYZER", str(broken))
    for reason in ("cannot open libx.so", "libc.so.6: version GLIBC_2.38 not found"):
        broken.write_text(f"#!/bin/sh\necho '{reason}' >&2\nexit 1\n")
        broken.chmod(0o755)
        with pytest.raises(MissingDependencyError, match=reason):
            find_perf_analyzer(tmp_path)


@pytest.mark.perf
def test_no_server_is_an_error_and_never_a_number(encoder: PromptEncoder, tmp_path: Path) -> None:
    given = given_input(POINT, encoder, requests=2)
    with pytest.raises(SweepError, match="ended with status"):
        run_point(
            find_perf_analyzer(tmp_path), "127.0.0.1:1", POINT, MEASURING, given.data, tmp_path
        )


@pytest.mark.perf
@pytest.mark.triton
def test_a_real_sweep_and_its_resume(
    control: Control, tiny: TinyBundle, tiny_repository: Path
) -> None:
    done = control("sweep", tiny.spec, "--artifacts", tiny.artifacts, "--json")
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [(p["items"], p["tokens"]) for p in points] == [(1, 24), (4, 24)]
    for point in points:
        assert point["stable"], point
        assert point["mean_item_tokens"] == 24
        assert point["requests_per_execution"]["ranker"] == pytest.approx(1.0)
        assert point["items_per_s"] == pytest.approx(point["requests_per_s"] * point["items"])
        assert 0 < point["p50_ms"] <= point["p95_ms"] <= point["p99_ms"]
        assert set(point["stages_us"]) == {"prepare", "ranker"}
        kept = {path.name for path in Path(point["path"]).iterdir()}
        assert {"input.json", "latency.csv", "profile.json.gz", "perf_analyzer.txt"} <= kept
        # Stage CSVs hold averages alone; the percentiles are in the metrics page (trap 7).
        metrics = (Path(point["path"]) / "metrics.txt").read_text()
        assert 'nv_inference_queue_summary_us{model="ranker"' in metrics
        assert 'quantile="0.95"' in metrics
        config = json.loads((Path(point["path"]) / "served_config.json").read_text())
        assert set(config) == {"rank", "prepare", "ranker"}
        counts = json.loads((Path(point["path"]) / "triton_statistics.json").read_text())
        assert counts["after"]["ranker"]["requests"] > counts["before"]["ranker"]["requests"]
        manifest = json.loads((Path(point["path"]) / "manifest.json").read_text())
        assert manifest["host"]["cores"] >= 1
        assert "sha256" in manifest["versions"]["perf_analyzer"]
    assert 0.2 < json.loads(done.stdout)["drift"] < 5
    again = control("sweep", tiny.spec, "--artifacts", tiny.artifacts, "--json")
    assert json.loads(again.stdout)["points"] == points
    assert "sweep 1/" not in again.stderr
    table = control("sweep", tiny.spec, "--artifacts", tiny.artifacts).stdout
    assert "items/s" in table
    assert "p99 ms" in table


@pytest.mark.long
@pytest.mark.perf
@pytest.mark.triton
def test_a_sweep_of_a_running_server(control: Control, tiny: TinyBundle, tiny_server: Any) -> None:
    flags = ("--url", tiny_server.url, "--set", "sweep.items=[2]", "--artifacts", tiny.artifacts)
    done = control("sweep", tiny.spec, *flags, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["served"]["engine"] == tiny.bundle.engine.key
    assert [point["items"] for point in result["points"]] == [2]


def session_of(tiny: TinyBundle, *items: int) -> Session:
    spec = change_spec(tiny.bundle.spec, {"sweep": {"items": list(items)}})
    return open_bundle_session(Bundle(spec), tiny.store)


def test_another_server_or_machine_is_another_measurement(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmrank.load import session

    monkeypatch.setattr(session, "_identity_of", lambda url, identity: identity)
    store = ArtifactStore(tmp_path)

    def opened(url: str | None = None) -> Session:
        made = open_bundle_session(tiny.bundle, tiny.store, url=url)
        return replace(made, store=store)

    first = opened()
    for task in first.tasks:
        subject = first.subject
        lineage = {
            "settings": task.settings,
            "inputs": subject.inputs(task.given),
            "versions": {**subject.versions, "perf_analyzer": "v"},
            "host": {},
        }
        key = subject.key("point", task.settings, task.given)
        with store.create("point", key, lineage) as draft:
            draft.figures.update({"verdict": "ok", "stable": True})
    assert not opened().pending
    assert replace(opened(), again=True).pending == first.tasks  # behind one address, say
    for other in (opened("a:8001"), opened("b:8001")):
        assert other.pending == other.tasks
        assert gather_record(store, other.subject)["points"] == []
    assert len(gather_record(store, first.subject)["points"]) == len(first.tasks)
    monkeypatch.setattr(session, "what_computes", lambda: {"processor": "another"})
    assert opened().pending
    paths = {record_path(tmp_path, {}, url) for url in (None, "a:8001", "b:8001")}
    assert len(paths) == 3


def test_a_session_says_what_is_left(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    session = replace(session_of(tiny, 1, 2, 3), store=ArtifactStore(tmp_path))
    assert [task.point.items for task in session.pending] == [1, 2, 3]
    assert estimate_s(session.pending) > 0
    assert run_sweep([], session.store, session.subject, _no_server, _silent) == []


def test_an_unstable_point_is_measured_again(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    session = replace(session_of(tiny, 1, 2), store=ArtifactStore(tmp_path))
    for task, verdict in zip(session.tasks, ("ok", "unstable"), strict=True):
        key = session.subject.key("point", task.settings, task.given)
        with session.store.create("point", key, {}) as draft:
            draft.figures["verdict"] = verdict
    assert [task.point.items for task in session.pending] == [2]


def test_another_rate_leaves_closed_loops_measured(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    session = replace(session_of(tiny, 1), store=ArtifactStore(tmp_path))
    for task in session.tasks:
        key = session.subject.key("point", task.settings, task.given)
        with session.store.create("point", key, {}) as draft:
            draft.figures["verdict"] = "ok"
    more = replace(session, spec=session.spec.model_copy(update={"rates": [3.0]}))
    assert [task.point.load.kind for task in more.pending] == ["rate"]


def _no_server() -> Any:
    raise AssertionError("nothing is pending, no server is needed")


def _silent(_number: int, _total: int, _name: str) -> None: ...


def test_axes_must_be_numbers(control: Control, tiny: TinyBundle) -> None:
    done = control("sweep", tiny.spec, "--set", "sweep.items=[1,x]")
    assert done.returncode == 2
    assert "sweep.items" in done.stderr


@pytest.mark.long
@pytest.mark.perf
@pytest.mark.triton
def test_an_open_loop_on_the_real_server(
    control: Control, tiny: TinyBundle, tiny_repository: Path
) -> None:
    # A server of its own: it is driven far beyond what it can answer.
    with Server(tiny_repository, ANY_PORTS) as server:
        base = ["sweep", tiny.spec, "--url", server.url, "--artifacts", tiny.artifacts, "--json"]
        changes = ["items=[2]", "tokens=[24]", "rates=[8,2500]", "concurrency=[]"]
        done = control(*base, *(f"--set=sweep.{one}" for one in changes))
    assert done.returncode == 0, done.stderr
    slow, fast = json.loads(done.stdout)["points"]
    assert slow["verdict"] == "ok", slow
    assert slow["achieved"] == pytest.approx(1.0, abs=0.02)
    assert fast["verdict"] in ("late", "overload", "refused"), fast
    assert "items_per_s" not in fast


@pytest.mark.perf
@pytest.mark.triton
def test_stored_summaries_and_query_lengths_are_swept(
    control: Control, tiny: TinyBundle, tiny_server: Any
) -> None:
    metrics = f"http://127.0.0.1:{tiny_server.ports.metrics}/metrics"
    done = control(
        "sweep",
        tiny.spec,
        "--url",
        tiny_server.url,
        "--metrics-url",
        metrics,
        "--json",
        "--set=sweep.items=[3]",
        "--set=sweep.texts=store",
        "--set=sweep.query_tokens=[9]",
        "--artifacts",
        tiny.artifacts,
    )
    assert done.returncode == 0, done.stderr
    (point,) = json.loads(done.stdout)["points"]
    assert point["tokens"] is None
    assert 10 < point["mean_item_tokens"] < 96
    assert (Path(point["path"]) / "metrics.txt").is_file()


@pytest.mark.triton
def test_no_server_and_an_unready_model_are_errors(tiny_server: Any) -> None:
    with pytest.raises(SweepError, match="no Triton answers"):
        require_ready("127.0.0.1:1")
    with pytest.raises(SweepError, match="'nothing' at .* is not ready"):
        require_ready(tiny_server.url, "nothing")


def test_a_wrong_url_is_an_error(control: Control, tiny: TinyBundle, tiny_repository: Path) -> None:
    done = control("sweep", tiny.spec, "--url", "127.0.0.1:1", "--artifacts", tiny.artifacts)
    assert done.returncode == 10
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.triton
def test_a_tool_that_fails_beside_a_healthy_server_gives_a_failed_point(
    tiny: TinyBundle, tiny_server: Any, tmp_path: Path
) -> None:
    session = replace(session_of(tiny, 1), store=ArtifactStore(tmp_path / "store"))
    (task,) = session.tasks

    def bench(url: str) -> Bench:
        return Bench(
            store=session.store,
            subject=session.subject,
            analyzer=fake_tool(tmp_path, "exit 99"),
            running=Running(url=url),
        )

    found = bench(tiny_server.url).measure(task)
    assert found.figures["verdict"] == "failed"
    assert "status 99" in found.figures["reason"]
    assert find_point(session.store, session.subject, task) is None
    with pytest.raises(SweepError, match="no Triton answers"):
        bench("127.0.0.1:1").measure(task)


@pytest.mark.triton
def test_the_first_run_is_thrown_away(
    tiny: TinyBundle, tiny_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first seconds of a server, and of a rate, are not what it does later (trap 5).
    session = session_of(tiny, 1)
    folders: list[Path] = []

    def remember(*given: Any) -> Any:
        folders.append(given[-1])
        raise SweepError("not here", "")

    monkeypatch.setattr("slmrank.load.run.run_point", remember)
    swept = run_sweep(
        session.tasks,
        ArtifactStore(tmp_path),
        session.subject,
        lambda: nullcontext(Running(url=tiny_server.url)),
        _silent,
    )
    assert [one.figures["verdict"] for one in swept] == ["failed"]
    assert [tmp_path in folder.parents for folder in folders] == [False, True]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.perf
@pytest.mark.triton
def test_a_grid_survives_kill_9_of_tool_and_driver(
    control: Control, tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    """3 x 3 x 2 points; perf_analyzer is killed once, then the driver; nothing is measured twice."""
    command = [str(Path(sys.executable).parent / "control"), "sweep", str(tiny.spec)]
    changes = ["items=[1,2,3]", "tokens=[16,24,32]", "concurrency=[1,2]"]
    command += [f"--set=sweep.{one}" for one in changes]
    artifacts = tmp_path / "artifacts"
    shutil.copytree(tiny.artifacts, artifacts, symlinks=True)
    shutil.rmtree(artifacts / "point", ignore_errors=True)
    command += ["--artifacts", str(artifacts)]
    store = ArtifactStore(artifacts)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        _wait(lambda: len(store.all("point")) >= 2)
        tool = _wait(lambda: _descendant(driver.pid, "perf_analyzer"))
        os.kill(tool, signal.SIGKILL)
        _wait(lambda: len(store.all("point")) >= 6)
        driver.kill()
        driver.communicate()
    finished = {one.key: one.manifest["created"] for one in store.all("point")}
    assert 6 <= len(finished) < 18
    assert all(one.figures["verdict"] != "failed" for one in store.all("point"))
    done = control(*command[1:], "--json", timeout_s=400)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert len(points) == 18
    assert all(point["stable"] for point in points)
    later = {one.key: one.manifest["created"] for one in store.all("point")}
    assert {key: later[key] for key in finished} == finished, "a finished point was measured again"
    again = control(*command[1:], "--json")
    assert "sweep 1/" not in again.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.perf
@pytest.mark.triton
def test_a_server_that_dies_ends_the_sweep_without_a_number(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(tiny.artifacts, artifacts, symlinks=True)
    shutil.rmtree(artifacts / "point", ignore_errors=True)
    command = [str(Path(sys.executable).parent / "control"), "sweep", str(tiny.spec)]
    command += ["--set=sweep.items=[1,2,3]", "--set=sweep.tokens=[16,24]"]
    command += ["--artifacts", str(artifacts)]
    store = ArtifactStore(artifacts)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        _wait(lambda: store.all("point"))
        os.kill(_wait(lambda: _descendant(driver.pid, "tritonserver")), signal.SIGKILL)
        _, said = driver.communicate(timeout=120)
    assert driver.returncode == 10, said
    assert "no Triton answers" in said
    assert 1 <= len(store.all("point")) < 6
    assert all(one.figures["stable"] for one in store.all("point"))


def _descendant(pid: int, name: str) -> int | None:
    """The pid of a running child, or child's child, with this command name."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            numbers = [int(one) for one in child.read_text().split()]
        except OSError:
            continue
        for number in numbers:
            try:
                command = Path(f"/proc/{number}/comm").read_text().strip()
            except OSError:
                continue
            if command == name:
                return number
            below = _descendant(number, name)
            if below is not None:
                return below
    return None


def _wait(condition: Any, timeout_s: float = 200) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")
