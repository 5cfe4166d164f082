"""Files of other people: every one is loaded once, and wins over what is built in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slmrank.errors import SpecError
from slmrank.plugins import VARIABLE, load_plugins
from slmrank.registry import Registry

SHAPES: Registry[str] = Registry("shape", lambda: SHAPES.register("round", "built in"))


def test_files_of_one_name_are_both_loaded_and_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two registered as one; and one that was loaded before the built-in ones lost to them."""
    files = []
    for name in ("round", "flat"):
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "model.py")
        files[-1].write_text(
            f"from tests.test_plugins import SHAPES\nSHAPES.register({name!r}, 'mine')\n"
        )
    monkeypatch.setenv(VARIABLE, ":".join(map(str, files)))
    load_plugins()  # as reading a spec does
    assert [SHAPES.get(name) for name in ("round", "flat")] == ["mine", "mine"]


def test_a_file_that_is_not_there_or_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, told in ((None, "is no Python file"), ("1 / 0", "division by zero")):
        path = tmp_path / "mine.py"
        if content is not None:
            path.write_text(content)
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(SpecError, match=told):
            load_plugins()
        # What asks again hears of it again, and does not get what is built in.
        shapes: Registry[str] = Registry("shape", lambda: None)
        for _ in range(2):
            with pytest.raises(SpecError, match=told):
                shapes.names()


def test_a_relative_path_outlives_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relative.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "relative.py")
    load_plugins()
    monkeypatch.chdir("/")
    load_plugins()


def test_threads_that_ask_first_all_find_what_is_built_in() -> None:
    loading = threading.Barrier(8)

    def load() -> None:
        time.sleep(0.05)
        registry.register("ours", object())

    registry: Registry[object] = Registry("kind", load)

    def ask(_: int) -> object:
        loading.wait()
        return registry.get("ours")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
