"""`perf/bench.py` on the tiny bundle: ours beside a peer that runs, one that ends, one that cannot be
made."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT, TinyBundle

PEERS = ROOT / "perf" / "peers"
ENDS = """
import sys
from worker import main

def start(setting):
    def score(requests):
        sys.exit("no such instruction on this processor")
    return score, {"precision": "none"}

main(start)
"""
ABSENT = '# /// script\n# dependencies = ["no-such-distribution-of-ours"]\n# ///\n'


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "perf")
    import bench

    return bench


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: ModuleType) -> Path:
    """Our peer, and transformers' with the packages of this environment."""
    folder = tmp_path / "peers"
    folder.mkdir()
    for name in ("worker.py", "peer_slmrank.py"):
        shutil.copy2(PEERS / name, folder / name)
    theirs = (PEERS / "peer_transformers.py").read_text().partition("# ///\n")[2]
    (folder / "peer_transformers.py").write_text(theirs)
    monkeypatch.setattr(sys.modules["peers.process"], "HERE", folder)
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_equal_scores_first_then_rates_and_faults(
    tiny: TinyBundle, bench: ModuleType, peers: Path, tmp_path: Path
) -> None:
    (peers / "peer_ends.py").write_text(ENDS)
    (peers / "peer_absent.py").write_text(ABSENT)
    asked = ["--shape=40x4", "--rounds=3", "--minutes=1", "--threads=1"]
    places = {
        "artifacts": tiny.artifacts,
        "environments": tmp_path / "made",
        "out": tmp_path / "page",
    }
    asked += [f"--{name}={path}" for name, path in places.items()]
    done = CliRunner().invoke(bench.main, [str(tiny.spec), *asked], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "page" / "bench.json").read_text())
    # It takes what was faster a moment ago, which a busy machine makes bfloat16 now and then.
    bound = {"float32": 1e-6, "bfloat16": 1e-2}[found["precision"]["transformers"]]
    assert found["agreement"]["transformers"]["mean_abs_dp"] < bound
    assert found["agreement"]["slmrank"]["mean_abs_dp"] < 0.05
    assert "no such instruction" in found["agreement"]["ends"]["fault"]
    assert "no-such-distribution-of-ours" in found["faults"]["absent"]
    (shape,) = found["shapes"].values()
    assert {name: len(one) for name, one in shape["seconds"].items()} == {
        "slmrank": 3,
        "transformers": 3,
    }
    page = (tmp_path / "page" / "bench.md").read_text()
    assert "no such instruction on this processor" in page
    assert (tmp_path / "page" / "bench.png").stat().st_size > 5000


def test_every_peer_names_its_packages_and_ours_needs_none(bench: ModuleType) -> None:
    process = sys.modules["peers.process"]
    names = process.peer_names()
    assert {"slmrank", "transformers", "onnxruntime"} <= set(names)
    for name in names:
        wanted = process.requirements((PEERS / f"peer_{name}.py").read_text())
        assert all("==" in one for one in wanted), name
        assert bool(wanted) == (name != "slmrank"), name


def test_a_shape_that_is_none_is_refused(bench: ModuleType) -> None:
    done = CliRunner().invoke(bench.main, ["spec.yaml", "--shape", "54"])
    assert done.exit_code == 2
    assert "'54' is not TOKENSxITEMS, such as 54x32" in done.output


LATE = """
import sys, time
from worker import main

def start(setting):
    def score(requests):
        time.sleep(requests[0].prefix[0])
        return [0.5] * len(requests[0].items)
    return score, {}

main(start)
"""


def test_a_late_answer_is_nobodys(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pass that took too long, every figure of a peer was of the request before."""
    process = sys.modules["peers.process"]
    shutil.copy2(PEERS / "worker.py", tmp_path / "worker.py")
    (tmp_path / "peer_late.py").write_text(LATE)
    monkeypatch.setattr(process, "HERE", tmp_path)
    monkeypatch.setattr(process, "PASS_TIMEOUT_S", 1)
    setting = {"threads": 1, "yes": 1, "no": 2}
    peer = process.Peer("late", tmp_path / "made", tmp_path, setting, tmp_path)

    def asked(seconds: int) -> bench.Request:  # type: ignore[name-defined]
        return bench.Request(prefix=[seconds], items=[[1]], query="q", texts=["t"])

    assert peer.score([asked(0)])[1] == [0.5]
    for seconds in (3, 0):
        with pytest.raises(process.PeerFault, match="no answer within 1 s"):
            peer.score([asked(seconds)])


def test_a_shape_that_no_text_fills_is_named(bench: ModuleType) -> None:
    class Unspaced:
        def body(self, text: str) -> list[int]:
            return [0] * len(text)

        def item(self, ids: list[int]) -> Any:
            return SimpleNamespace(ids=[*ids, 0])

    work = object.__new__(bench.Work)
    work._encoder, work._random = Unspaced(), random.Random(0)
    work._texts, work._queries = ["x" * 100], ["q"]
    with pytest.raises(click.ClickException, match="no run of words"):
        work._body(32)
