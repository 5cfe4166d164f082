"""The artifact store: whole or absent, found by key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slmrank.artifacts import ArtifactStore, artifact_key, read_artifact
from slmrank.errors import ArtifactError


def test_an_artifact_appears_with_manifest_and_inventory(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.create("data", "k1", {"settings": {"a": 1}}) as draft:
        (draft.path / "x.txt").write_text("hello")
        draft.figures["n"] = 3
    found = store.find("data", "k1")
    assert found is not None
    assert found.figures == {"n": 3}
    assert found.manifest["files"]["x.txt"]["bytes"] == 5
    assert found.manifest["settings"] == {"a": 1}


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(RuntimeError), store.create("data", "k1", {}) as draft:
        (draft.path / "x.txt").write_text("half")
        raise RuntimeError
    assert store.find("data", "k1") is None
    assert not list((tmp_path / "data").iterdir())


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from slmrank.artifacts import ArtifactStore\n"
        "store = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
        "with store.create('data', 'k1', {}) as draft:\n"
        "    (draft.path / 'x').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    store = ArtifactStore(tmp_path)
    assert store.find("data", "k1") is None
    assert store.all("data") == []
    with store.create("data", "k1", {}):
        pass
    assert store.find("data", "k1") is not None


def test_a_folder_without_manifest_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "data" / "k1").mkdir(parents=True)
    assert ArtifactStore(tmp_path).find("data", "k1") is None
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        read_artifact(tmp_path / "data" / "k1")


def test_a_broken_manifest_is_made_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.create("data", "k1", {}):
        pass
    (tmp_path / "data" / "k1" / "manifest.json").write_text("{")
    assert store.find("data", "k1") is None
    assert store.all("data") == []
    with store.create("data", "k1", {}) as draft:
        (draft.path / "new").touch()
    assert store.find("data", "k1") is not None


def test_abandoned_drafts_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "data" / ".k1.999.tmp").mkdir(parents=True)
    with ArtifactStore(tmp_path).create("data", "k1", {}):
        pass
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["k1"]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"settings": {"a": 2}},
        {"inputs": {"data": "other"}},
        {"code": "other"},
    ],
)
def test_the_key_follows_everything_that_decides_the_content(change: dict[str, object]) -> None:
    base = {"kind": "data", "settings": {"a": 1}, "inputs": {"data": "x"}, "code": "c"}
    assert artifact_key(**base) == artifact_key(**base)  # type: ignore[arg-type]
    assert artifact_key(**base) != artifact_key(**(base | change))  # type: ignore[arg-type]


def test_newest_first(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    for key in ("a", "b"):
        with store.create("data", key, {}):
            pass
        time.sleep(0.02)
    assert [one.key for one in store.all("data")] == ["b", "a"]
