"""What counts as other code, and that it reaches the keys."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from slmrank import code_hash as code_hash_module
from slmrank.code_hash import _uses, code_hash, significant_text
from slmrank.data import wording
from slmrank.errors import SpecError
from slmrank.load.run import code_of

from tests.conftest import ROOT

SOURCE = '''"""About it."""

import math


def area(radius):
    """In square metres."""
    # Half of it is elsewhere.
    return math.pi * radius**2  # exact
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""About it."""', '"""Something\n\nelse."""'),
        ("    # Half of it is elsewhere.\n", ""),
        ("  # exact", "  # nearly"),
        ('    """In square metres."""\n', ""),
        ("\n\n\ndef", "\n\n\n\n\ndef"),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(old: str, new: str) -> None:
    assert old in SOURCE
    assert significant_text(SOURCE.replace(old, new)) == significant_text(SOURCE)


def test_code_and_texts_count() -> None:
    for old, new in (("radius**2", "radius**3"), ("math.pi", "3.14"), ("area", "volume")):
        assert significant_text(SOURCE.replace(old, new)) != significant_text(SOURCE)
    assert significant_text('x = "# a"') != significant_text('x = "# b"')


def test_what_is_imported_counts() -> None:
    train = code_hash("slmrank.train.sft")
    assert code_hash("slmrank.train.sft", "slmrank.model.decoder") == train, "imported already"
    assert code_hash("slmrank.train.sft", "slmrank.compress.osscar") != train


def test_a_file_that_a_module_names_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(wording.__file__)
    assert [file.name for file in _uses(source)[1]] == ["phrases.yaml"]
    module = tmp_path / "named.py"
    module.write_text('TABLE, OTHER = "table.csv", "a file.csv"\n')
    monkeypatch.setitem(sys.modules, "named", SimpleNamespace(__file__=str(module)))
    keys = set()
    for content in ("a", "b"):
        (tmp_path / "table.csv").write_text(content)
        _uses.cache_clear()
        keys.add(code_hash("named"))
    assert len(keys) == 2


def test_where_a_plugin_lies_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for folder in ("here", "there"):
        module = tmp_path / folder / "1" / "mine.py"
        module.parent.mkdir(parents=True)
        module.write_text("x = 1\n")
        monkeypatch.setitem(sys.modules, folder, SimpleNamespace(__file__=str(module)))
        keys.add((code_hash(folder), code_hash(files=(module,))))
    assert len(keys) == 1


def test_code_that_is_not_loaded_yet_counts_and_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key depended on what the process had imported."""
    (tmp_path / "mine_of_a_test").mkdir()
    for name in ("__init__", "build"):
        (tmp_path / "mine_of_a_test" / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_hash("mine_of_a_test.build")
    (tmp_path / "mine_of_a_test" / "build.py").write_text("x = 22\n")
    code_hash_module._LOADED.clear()  # as a process of its own
    assert code_hash("mine_of_a_test.build") != before
    with pytest.raises(SpecError, match=r"no module mine_of_a_test\.biuld"):
        code_hash("mine_of_a_test.biuld")


def test_what_searches_a_rate_decides_it() -> None:
    assert len({code_of("point"), code_of("slo"), code_hash("slmrank.load.perf_analyzer")}) == 3


KEYS = """
import json, sys
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import in_order
from slmrank.shipped import shipped
from slmrank.spec.reading import load_spec
bundle = Bundle(load_spec(shipped("build/demo.yaml")))
print(json.dumps({step.title: step.key for step in in_order(bundle.repository)}))
"""


@pytest.mark.long
@pytest.mark.slow
def test_comments_keep_every_key_and_code_changes_those_that_run_it(tmp_path: Path) -> None:
    for name in ("control", "build", "model_repository"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def keys() -> dict[str, str]:
        import json

        done = subprocess.run(
            [sys.executable, "-B", "-c", KEYS],
            env={"PYTHONPATH": str(tmp_path / "control")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, str] = json.loads(done.stdout)
        return found

    before = keys()
    assert len(before) == 9
    package = tmp_path / "control" / "slmrank"
    for path in package.rglob("*.py"):
        path.write_text(path.read_text() + "\n# A remark.\n")
    stage = tmp_path / "model_repository" / "prepare" / "1" / "model.py"
    stage.write_text("# A remark.\n" + stage.read_text())
    assert keys() == before
    osscar = package / "compress" / "osscar.py"
    osscar.write_text(osscar.read_text() + "\nEXTRA = 1\n")
    changed = {title for title, key in keys().items() if key != before[title]}
    assert changed == {"pruning", "recovery", "engine", "model repository"}
    # Both stages are files called model.py, and bring what they import.
    for path in (stage, package / "engine" / "fan_out.py", package / "serving" / "depth.py"):
        before = keys()
        path.write_text(path.read_text() + "\nEXTRA = 1\n")
        assert {title for title, key in keys().items() if key != before[title]} == {
            "model repository"
        }, path


def test_an_edit_counts_once_it_is_loaded_and_code_in_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook both kept the summaries of the code before."""
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own_of_a_test.py"
    own.write_text("x = 1\n")
    module = importlib.import_module("own_of_a_test")
    before = code_hash("own_of_a_test")
    own.write_text("x = 22\n")
    assert code_hash("own_of_a_test") == before  # what runs is what was
    importlib.reload(module)
    assert code_hash("own_of_a_test") != before
    monkeypatch.setitem(sys.modules, "of_a_notebook", ModuleType("of_a_notebook"))
    with pytest.raises(SpecError, match="is in no file"):
        code_hash("of_a_notebook")
