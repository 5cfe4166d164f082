"""Sweeps: exact lengths, a plan that resumes, and the real perf_analyzer against the real server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control.artifacts import ArtifactStore
from control.cli.display import StepDisplay
from control.cli.sweep import Axes, prepare_sweep
from control.data.records import Job
from control.errors import MissingDependencyError, SweepError
from control.ranker.prompt import PromptEncoder, PromptTemplate, load_tokenizer
from control.sweep.binary import PerfAnalyzer, find_perf_analyzer
from control.sweep.perf_analyzer import (
    LoadSettings,
    command_line,
    merged_requests,
    read_result,
    run_point,
)
from control.sweep.points import Point, cut_text, make_input, plan_points, point_key
from control.sweep.run import run_sweep
from tests.conftest import Control, TinyBundle

POINT = Point(items=3, tokens=24, concurrency=2)
SETTINGS = LoadSettings(window_ms=500, trials=5, stability_percent=40)
JOBS = [
    Job(job_id=f"j{n}", title="Cook", description=f"Bake bread number {n} and wash up. " * 9)
    for n in range(5)
]


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> PromptEncoder:
    return PromptEncoder(
        load_tokenizer(tokenizer_folder), PromptTemplate(), max_item_tokens=80, max_query_tokens=30
    )


def test_the_grid() -> None:
    points = plan_points([8, 1, 8], [32], [2, 1])
    assert [(p.items, p.concurrency) for p in points] == [(1, 1), (1, 2), (8, 1), (8, 2)]


def test_texts_have_the_asked_length(encoder: PromptEncoder) -> None:
    for tokens in (10, 24, 80):
        given = make_input(replace(POINT, tokens=tokens), JOBS, ["cook"], encoder, 6, 0)
        for entry in given.data["data"]:
            assert entry["job_text"]["shape"] == [3]
            for text in entry["job_text"]["content"]:
                item = encoder.item(encoder.body(text))
                assert not item.truncated
                assert len(item.ids) == tokens
        assert given.mean_item_tokens == given.max_item_tokens == tokens


def test_the_pool_follows_the_seed(encoder: PromptEncoder) -> None:
    first, again, other = (make_input(POINT, JOBS, ["a", "b"], encoder, 6, s) for s in (0, 0, 1))
    assert first.hash == again.hash != other.hash


@pytest.mark.parametrize("tokens", [1, 81])
def test_lengths_outside_the_served_limit_are_refused(encoder: PromptEncoder, tokens: int) -> None:
    with pytest.raises(SweepError, match=f"tokens {tokens} is outside"):
        make_input(replace(POINT, tokens=tokens), JOBS, ["cook"], encoder, 2, 0)


def test_a_text_that_is_too_short_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(SweepError, match="fewer than 50 tokens"):
        cut_text("short", 50, encoder)


def test_another_engine_is_another_point() -> None:
    keys = {
        point_key(POINT, "engine-a", {}, "d"),
        point_key(POINT, "engine-b", {}, "d"),
        point_key(POINT, "engine-a", {"window_ms": 1}, "d"),
        point_key(POINT, "engine-a", {}, "e"),
        point_key(replace(POINT, items=4), "engine-a", {}, "d"),
    }
    assert len(keys) == 5


def test_the_command_uses_bare_file_names() -> None:
    analyzer = PerfAnalyzer(path=Path("/x/perf_analyzer"), version="v", environment={})
    argv = command_line(analyzer, "h:1", POINT, SETTINGS)
    for flag in ("-f", "--profile-export-file", "--input-data"):
        assert "/" not in argv[argv.index(flag) + 1]
    assert argv[argv.index("--concurrency-range") + 1] == "2"


def export(ends_ms: list[int], borders_ms: list[int]) -> dict[str, Any]:
    requests = [
        {"timestamp": (end - 5) * 10**6, "response_timestamps": [end * 10**6]} for end in ends_ms
    ]
    borders = [border * 10**6 for border in borders_ms]
    return {"experiments": [{"requests": requests, "window_boundaries": borders}]}


def test_only_requests_that_end_in_the_last_three_windows_count() -> None:
    given = export([5, 50, 150, 250, 350, 450], [0, 100, 200, 300, 400])
    latencies, span_s = merged_requests(given)
    assert len(latencies) == 3
    assert span_s == pytest.approx(0.3)
    assert latencies.tolist() == [5.0] * 3


def test_a_figure_that_disagrees_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(export([50, 150, 250], [0, 100, 200, 300])))
    for reported, trusted in ((10.0, True), (12.0, False)):
        (tmp_path / "latency.csv").write_text(f"Concurrency,Inferences/Second\n2,{reported}\n")
        measured = read_result(tmp_path, POINT, 100)
        assert measured.requests_per_s == pytest.approx(10.0)
        assert measured.items_per_s == pytest.approx(30.0)
        assert measured.trusted is trusted


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
    given = make_input(POINT, JOBS, ["cook"], encoder, 2, 0)
    with pytest.raises(SweepError, match="ended with status"):
        run_point(
            find_perf_analyzer(tmp_path), "127.0.0.1:1", POINT, SETTINGS, given.data, tmp_path
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
        assert point["items_per_s"] == pytest.approx(point["requests_per_s"] * point["items"])
        assert 0 < point["p50_ms"] <= point["p95_ms"] <= point["p99_ms"]
        assert set(point["stages_us"]) == {"prepare", "ranker"}
        kept = {path.name for path in Path(point["path"]).iterdir()}
        assert {"input.json", "latency.csv", "profile.json.gz", "perf_analyzer.txt"} <= kept
    again = control("sweep", tiny.spec, "--artifacts", tiny.artifacts, "--json")
    assert json.loads(again.stdout)["points"] == points
    assert "sweep 1/" not in again.stderr
    table = control("sweep", tiny.spec, "--artifacts", tiny.artifacts).stdout
    assert "items/s" in table
    assert "p99 ms" in table


@pytest.mark.perf
@pytest.mark.triton
def test_a_sweep_of_a_running_server(control: Control, tiny: TinyBundle, tiny_server: Any) -> None:
    flags = ("--url", tiny_server.url, "--items", "2", "--artifacts", tiny.artifacts)
    done = control("sweep", tiny.spec, *flags, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["served"]["engine"] == tiny.bundle.engine.key
    assert [point["items"] for point in result["points"]] == [2]


def test_a_plan_says_what_is_left(tiny: TinyBundle, tiny_repository: Path, tmp_path: Path) -> None:
    plan, _ = prepare_sweep(tiny.bundle, tiny.store, StepDisplay(), Axes(items=(1, 2, 3)))
    empty = ArtifactStore(tmp_path)
    assert plan.pending(empty) == [0, 1, 2]
    assert plan.estimate_s(empty) > 0
    assert run_sweep(replace(plan, points=(), inputs=(), keys=()), empty, _no_server, _silent) == []


def test_an_unstable_point_is_measured_again(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    plan, _ = prepare_sweep(tiny.bundle, tiny.store, StepDisplay(), Axes(items=(1, 2)))
    store = ArtifactStore(tmp_path)
    for key, stable in zip(plan.keys, (True, False), strict=True):
        with store.create("point", key, {}) as draft:
            draft.figures["stable"] = stable
    assert plan.pending(store) == [1]


def _no_server() -> Any:
    raise AssertionError("nothing is pending, no server is needed")


def _silent(_number: int, _total: int, _name: str) -> None: ...


def test_axes_must_be_numbers(control: Control, tiny: TinyBundle) -> None:
    done = control("sweep", tiny.spec, "--items", "1,x")
    assert done.returncode == 2
    assert "--items '1,x'" in done.stderr
