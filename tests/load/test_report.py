"""Reports: what is drawn, compared and written, and how the page looks in a browser."""

from __future__ import annotations

import copy
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from slmrank.errors import SweepError
from slmrank.load.compare import compare
from slmrank.load.figures import draw, pareto_front, stable_points, title_of
from slmrank.load.page import comparison_tables, write_report
from slmrank.load.record import read_record

from tests.conftest import Control

ABSENT = object()


def point(items: int, tokens: int, level: float, kind: str = "concurrency", **changes: Any) -> Any:
    rate = 40.0 * items / (items + 1) * 32 / tokens * min(level, 2)
    made = {
        "key": f"{items}/{tokens}/{kind}/{level}",
        "created": "2026-01-01T00:00:00+00:00",
        "items": items,
        "tokens": tokens,
        "query_tokens": None,
        "load": {"kind": kind, "level": level},
        "stable": True,
        "verdict": "ok",
        "items_per_s": rate,
        "requests": 150,
        "requests_per_s": rate / items,
        "mean_ms": 20.0 * level,
        "p50_ms": 18.0 * level,
        "p95_ms": 30.0 * level * tokens / 32,
        "p99_ms": 40.0 * level,
        "stages_us": {
            "prepare": {"queue": 100.0, "compute": 900.0},
            "ranker": {"queue": 2000.0 * level, "compute": 15000.0},
        },
        "requests_per_execution": {"ranker": 1.2},
    }
    return made | changes


def record(**changes: Any) -> Any:
    unstable = point(8, 96, 4, stable=False, verdict="unstable", reason="no three windows alike")
    made = {
        "kind": "slmrank-sweep",
        "schema": 1,
        "served": {
            "bundle": "demo",
            "engine_target": "openvino",
            "precision": "int8",
            "checkpoint": "0123456789abcdef",
            "engine": "fedcba9876543210",
        },
        "perf_analyzer": "tritonclient 2.50.0",
        "host": {
            "cores": 2,
            "processor": "Some CPU",
            "memory_gib": 24,
            "system": "Linux",
            "gpus": [],
        },
        "points": [
            *(point(i, t, c) for i in (1, 8) for t in (32, 96) for c in (1, 2)),
            point(8, 32, 5.5, "rate"),
            unstable,
        ],
        "drift": 0.98,
        "slo": [
            {
                "items": 8,
                "tokens": 32,
                "query_tokens": None,
                "limit_ms": 200,
                "percentile": 95,
                "rate": 5.5,
                "items_per_s": 44.0,
                "items_per_s_range": [42.0, 46.0],
                "latency_ms_range": [150.0, 190.0],
                "failed_at": 6.1,
                "runs": 9,
            }
        ],
    }
    return made | changes


def test_the_title_names_model_engine_and_machine() -> None:
    assert title_of(record()) == "demo 01234567, openvino int8, 2 cores Some CPU"
    gpu = record(host={"cores": 16, "gpus": [{"name": "NVIDIA H200"}]})
    assert title_of(gpu).endswith("NVIDIA H200")


def test_the_front_holds_what_nothing_beats() -> None:
    points = stable_points(record())
    front = pareto_front(points)
    assert front
    for one in front:
        assert not [
            p
            for p in points
            if p["p95_ms"] <= one["p95_ms"] and p["items_per_s"] > one["items_per_s"]
        ]
    for p in points:
        assert [
            one
            for one in front
            if one["p95_ms"] <= p["p95_ms"] and one["items_per_s"] >= p["items_per_s"]
        ], "what stands in the front, or something as good"
    assert [p["items_per_s"] for p in front] == sorted(p["items_per_s"] for p in front)
    assert len(stable_points(record())) == 9, "the unstable point has no place in a plot"


@pytest.mark.long
@pytest.mark.slow
def test_every_plot_is_drawn_and_repeats_to_the_byte() -> None:
    first, second = draw(record()), draw(record())
    assert set(first) == {"latency-throughput", "items-per-second", "stage-times", "pareto"}
    assert first == second
    for image in first.values():
        assert image.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", image[16:24])
        assert width > 700
        assert height > 250
    assert set(draw(record(points=[]))) == set()
    assert "items-per-second" not in draw(record(points=[point(1, 32, 1)]))


def test_two_records_are_compared_point_by_point() -> None:
    slower = copy.deepcopy(record())
    for one in slower["points"]:
        if one["stable"]:
            one["items_per_s"] /= 2
            one["p95_ms"] *= 3
    slower["points"].pop(0)
    slower["slo"][0] |= {"items_per_s": 22.0, "items_per_s_range": [20.0, 24.0]}
    slower["slo"][0]["failed_at"] /= 2
    found = compare(record(), slower)
    assert len(found.ratios) == 8
    # Of an open loop the rate is what was asked for: its p95 tells.
    closed = [one.items_per_s for one in found.ratios if one.items_per_s is not None]
    assert closed == pytest.approx([0.5] * len(closed))
    assert len(closed) == sum("in flight" in one.name for one in found.ratios) < 8
    assert all(one.p95 == pytest.approx(3) for one in found.ratios)
    assert found.median == found.low == found.high == pytest.approx(0.5)
    ((name, first, second, apart),) = found.slo
    assert (first, second, apart) == (44.0, 22.0, True)
    assert comparison_tables(found)[1][2] == [[name, "44.0", "22.0", "0.50", "yes"]]
    assert found.alone == (1, 0)
    assert comparison_tables(found)[0][0].endswith("(beside 1 of the first alone)")
    slower["slo"][0] |= {"items_per_s": None, "items_per_s_range": None, "failed_at": 0.5}
    lost = comparison_tables(compare(record(), slower))[1][2]
    assert lost == [[name, "44.0", "none holds", "-", "yes"]]
    assert name == "8 x 32 tokens, p95 <= 200 ms"
    assert compare(record(), record(points=[], slo=[])).median is None
    # What held once may lie in the bracket of the other search; and of six requests the 95th
    # percentile is the slowest.
    near = copy.deepcopy(record())
    near["slo"][0] |= {"items_per_s": 47.0, "items_per_s_range": [46.5, 47.5]}
    near["points"][0]["requests"] = 6
    found = compare(record(), near)
    assert not found.slo[0][-1]
    assert found.ratios[0].p95 is None
    assert comparison_tables(found)[0][2][0][-1] == "-"


@pytest.mark.slow
def test_the_page_stands_alone_and_tells_everything(tmp_path: Path) -> None:
    nasty = record()
    nasty["served"]["bundle"] = "<b>&"
    written = write_report(tmp_path, [nasty])
    assert {path.name for path in written} == {
        "report.html",
        "report.md",
        "latency-throughput.png",
        "items-per-second.png",
        "stage-times.png",
        "pareto.png",
    }
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert all(link.startswith("data:") for link in links)
    for text in (page, (tmp_path / "report.md").read_text()):
        assert "44.0 [42.0, 46.0]" in text
        assert "no three windows alike" in text
        assert "tritonclient 2.50.0" in text
        assert "0.98 of its rate" in text


@pytest.mark.long
@pytest.mark.slow
def test_a_comparison_is_written(tmp_path: Path, control: Control) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record()))
    out = tmp_path / "out"
    done = control("report", tmp_path / "a.json", tmp_path / "b.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "1.00 [1.00, 1.00]" in (out / "report.md").read_text()
    assert (out / "pareto-2.png").is_file()
    assert control("report", tmp_path / "a.json", "--json").returncode == 0
    assert (tmp_path / "a" / "report.html").is_file()
    assert control("report", tmp_path / "a.json", tmp_path / "b.json").returncode == 0
    assert (tmp_path / "a-against-b" / "report.html").is_file()
    assert "1.00 [1.00, 1.00]" not in (tmp_path / "a" / "report.md").read_text()
    too_many = control("report", *[tmp_path / "a.json"] * 3)
    assert too_many.returncode == 2
    (tmp_path / "c.json").write_text('{"kind": "other", "points": []}')
    wrong = control("report", tmp_path / "c.json")
    assert wrong.returncode == 10
    assert "is no sweep record" in wrong.stderr
    with pytest.raises(SweepError, match="is no sweep record"):
        read_record(tmp_path / "none.json")


@pytest.mark.slow
def test_a_browser_shows_the_whole_page(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    write_report(tmp_path, [record()])
    picture = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--window-size=1100,3400", f"--screenshot={picture}"]
    subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/report.html"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    from PIL import Image

    with Image.open(picture) as image:
        grey = image.convert("L")
        assert grey.size == (1100, 3400)
        used = grey.point(lambda value: 255 * (value < 250)).getbbox()
    assert used is not None
    left, _, right, bottom = used
    # Content down to the table of points, nothing pushed out of the window.
    assert bottom > 2200
    assert left > 10
    assert right < 1095


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"points": [{"items": 1}]}, "one of its points has no tokens"),
        ({"slo": [{}]}, "one of its slo has no items"),
        ({"served": None}, "another kind of file"),
        ({"kind": "slmrank-sweep", "drift": ABSENT}, "it has no drift"),
    ],
)
def test_a_record_without_its_keys_is_none(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record()))
    assert read_record(path) == record()
    changed = {name: one for name, one in record(**changes).items() if one is not ABSENT}
    path.write_text(json.dumps(changed))
    with pytest.raises(SweepError, match=text):
        read_record(path)


@pytest.mark.parametrize("load", ["inf", "nan", "0", "-3"])
def test_a_load_is_a_number(control: Control, tmp_path: Path, load: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record()))
    result = control("capacity", str(path), "--load", load)
    assert result.returncode == 2
    assert "--load" in result.stderr
