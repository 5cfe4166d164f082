"""The artifact store: whole or absent, found by key."""

from __future__ import annotations

import errno
import json
import os
import shutil
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


def test_others_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """safetensors writes for its owner alone: a shared store was made and of no use."""
    store = ArtifactStore(tmp_path)
    umask = os.umask(0o027)
    try:
        with store.create("k", "a", {}) as draft:
            (draft.path / "w").touch(0o600)
    finally:
        os.umask(umask)
    assert (store.read("k", "a").path / "w").stat().st_mode & 0o777 == 0o640


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("slmrank.artifacts.fcntl.flock", refused)
    lock = ArtifactStore(tmp_path).lock("k", "a")
    with pytest.raises(ArtifactError, match="cannot be locked: Function not implemented"), lock:
        pass


def test_newest_first(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    for key in ("a", "b"):
        with store.create("data", key, {}):
            pass
        time.sleep(0.02)
    assert [one.key for one in store.all("data")] == ["b", "a"]


def test_newest_first_wherever_it_was_copied(tmp_path: Path) -> None:
    """rsync -r and S3 keep no times: an old measurement was the newest."""
    store = ArtifactStore(tmp_path)
    for key, created in (("new", "2026-02-02"), ("old", "2026-01-01")):
        with store.create("data", key, {}):
            pass
        path = tmp_path / "data" / key / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "created": created}))
    assert [one.key for one in store.all("data")] == ["new", "old"]


def test_a_link_in_the_place_of_an_artifact(tmp_path: Path) -> None:
    """It lies on another disk, which may be away: what was made again could not take its place."""
    store = ArtifactStore(tmp_path / "a")
    (tmp_path / "a" / "data").mkdir(parents=True)
    for target in (tmp_path / "gone", tmp_path / "there"):
        if target.name == "there":
            shutil.rmtree(tmp_path / "a" / "data" / "k")
            target.mkdir()
        (tmp_path / "a" / "data" / "k").symlink_to(target)
        with store.create("data", "k", {}):
            pass
        assert store.find("data", "k") is not None
        assert [one.name for one in (tmp_path / "a" / "data").iterdir()] == ["k"]
    assert (tmp_path / "there").is_dir()


def test_what_may_not_be_read_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(tmp_path)
    with store.create("data", "k", {}):
        pass

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        store.find("data", "k")


def test_an_artifact_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    """Verbs said to make it again, and the verb found it made."""
    store = ArtifactStore(tmp_path)
    with store.create("x", "k", {}) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text("a")
    found = store.find("x", "k")
    assert found is not None
    (found.path / "sub" / "a.txt").write_text("")
    assert store.find("x", "k") is None
    (found.path / "sub" / "a.txt").unlink()
    assert store.find("x", "k") is None
    assert store.all("x") == []
