"""`control verify`: whole repositories pass, any damage is named, engines must be the planned ones."""

from __future__ import annotations

import importlib.util
import json
import py_compile
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.deploy.naming import pod_manifest
from slmrank.engine.trtllm.compile import COMPILED
from slmrank.errors import ControlError, RepositoryError
from slmrank.repository.verify import Expected, read_expected, verify_engine, verify_repository

from tests.conftest import Control
from tests.deploy import releases
from tests.engine.trtllm.test_plan import plan

TAG = "0123456789ab"


@pytest.fixture
def copied(tiny_repository: Path, tmp_path: Path) -> Path:
    target = tmp_path / "repository"
    shutil.copytree(tiny_repository, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_a_whole_repository_passes(copied: Path, control: Control) -> None:
    done = control("verify", copied, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["models"] == ["prepare", "rank", "ranker"]
    assert told["bytes"] > 100_000


def test_what_a_server_left_behind_is_no_damage(copied: Path) -> None:
    for stage in ("prepare", "ranker"):
        source = copied / stage / "1" / "model.py"
        py_compile.compile(str(source))
    (copied / "prepare/1/store/lock.mdb").write_bytes(b"x")
    verify_repository(copied, read_expected(copied / "manifest.json"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def compile_another(path: Path) -> None:
    """Python runs it instead of the source, whatever that says, if its header asks for no check."""
    source = path / "planted.py"
    source.write_text("print('planted')\n")
    compiled = importlib.util.cache_from_source(str(path / "ranker/1/model.py"))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), compiled, invalidation_mode=unchecked)
    source.unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / "prepare/1/ranker.json").unlink(), "ranker.json: missing"),
        (lambda path: cut(path / "ranker/1/engine/items.bin"), "bytes instead of"),
        (lambda path: flip(path / "ranker/1/engine/items.bin"), "other content"),
        (lambda path: shutil.copytree(path / "ranker", path / "extra"), "extra/config.pbtxt: not"),
        (
            lambda path: shutil.copytree(path / "ranker/1", path / "ranker/2"),
            "ranker/2/model.py: no",
        ),
        (lambda path: shutil.rmtree(path / "ranker"), "and [0-9]+ more|missing"),
        (compile_another, r"model\.cpython-\d+\.pyc: not part of it"),
        (lambda path: (path / "ranker/2").symlink_to(path / "ranker/1"), "ranker/2: not part"),
    ],
    ids=["missing", "cut", "flipped", "model", "version", "folder", "compiled", "link"],
)
def test_any_damage_is_named(damage: Callable[[Path], Any], told: str, copied: Path) -> None:
    damage(copied)
    expected = read_expected(copied / "manifest.json")
    with pytest.raises(RepositoryError, match=told):
        verify_repository(copied, expected)


def test_a_repository_that_was_not_copied_is_named(tmp_path: Path, control: Control) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(pod_manifest(releases.cpu())["manifest.json"])
    done = control("verify", tmp_path / "repository-x", "--manifest", manifest)
    assert done.returncode == RepositoryError.exit_code
    assert "is not there" in done.stderr
    assert "copy the repository" in done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"repository": 1}'])
def test_other_files_are_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(RepositoryError, match="no manifest"):
        read_expected(tmp_path / "m.json")


def built(folder: Path, tag: str = TAG, **changes: Any) -> Path:
    store = ArtifactStore(folder)
    lineage = {
        "settings": {**asdict(plan()), **changes},
        "inputs": {},
        "code": "",
        "versions": {},
    }
    with store.create(COMPILED, tag, lineage) as draft:
        (draft.path / "rank0.engine").write_bytes(b"engine")
    return store.path(COMPILED, tag)


def test_engines_must_be_the_planned_ones(tmp_path: Path) -> None:
    expected = Expected(files={}, tag=TAG, plan=asdict(plan()))
    verify_engine(built(tmp_path / "good"), expected)
    cases: list[tuple[Path, type[ControlError], str]] = [
        (tmp_path / "none" / COMPILED / TAG, RepositoryError, "is not there"),
        (built(tmp_path / "gpu", gpu="NVIDIA-L4"), RepositoryError, "gpu is NVIDIA-L4, planned"),
        (built(tmp_path / "tag", "ffffffffffff"), RepositoryError, "tag ffffffffffff, planned"),
    ]
    half = built(tmp_path / "half")
    (half / "rank0.engine").write_bytes(b"e")
    cases.append((half, RepositoryError, "rank0.engine: 1 bytes instead of 6"))
    other = built(tmp_path / "other")
    (other / "rank0.engine").write_bytes(b"enginf")
    cases.append((other, RepositoryError, "rank0.engine: other content"))
    for path, kind, told in cases:
        with pytest.raises(kind, match=told):
            verify_engine(path, expected)


def test_an_engine_needs_a_plan_to_be_compared_with(copied: Path, tmp_path: Path) -> None:
    """Any folder of an engine was "whole, as planned" beside a repository's own manifest."""
    expected = read_expected(copied / "manifest.json")
    with pytest.raises(RepositoryError, match="names no compiled engine"):
        verify_engine(built(tmp_path / "any"), expected)
    told = json.loads((copied / "manifest.json").read_text())
    told["figures"]["engine_tag"] = TAG
    (copied / "manifest.json").write_text(json.dumps(told))
    expected = read_expected(copied / "manifest.json")
    verify_engine(built(tmp_path / "good"), expected)
    with pytest.raises(RepositoryError, match="tag ffffffffffff, planned"):
        verify_engine(built(tmp_path / "tag", "ffffffffffff"), expected)


def test_an_image_with_another_tensorrt_llm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Expected(files={}, tag=TAG, plan=asdict(plan()))
    monkeypatch.setattr("slmrank.repository.verify.installed_version", lambda name: "1.1.0")
    with pytest.raises(
        RepositoryError, match=r"built for TensorRT-LLM 1\.2\.1, this image has 1\.1\.0"
    ):
        verify_engine(built(tmp_path), expected)


def test_the_pods_manifest_is_the_repositorys_own(
    tiny_repository: Path, tmp_path: Path, control: Control
) -> None:
    """What a release writes into its ConfigMap verifies the repository that it was made from."""
    files = json.loads((tiny_repository / "manifest.json").read_text())["files"]
    repository = {"digest": "0" * 16, "configuration": "x", "files": files}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(pod_manifest(releases.cpu(repository=repository))["manifest.json"])
    done = control("verify", tiny_repository, "--manifest", manifest)
    assert done.returncode == 0, done.stderr
