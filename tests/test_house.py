"""The house: floors of folders, sizes of files, names of targets, and what the package offers."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import slmrank

from tests.conftest import ROOT

PACKAGE = ROOT / "control" / "slmrank"
# A folder imports from folders of lower floors only. "" are the modules beside the folders.
FLOORS = [
    [""],
    ["spec", "machine"],
    ["data"],
    ["store", "evaluate"],
    ["prompt"],
    ["model", "triton"],
    ["summarize"],
    ["train", "compress", "engine"],
    ["client", "repository"],
    ["gateway"],
    ["serving"],
    ["load"],
    ["pipeline", "deploy"],
    ["cli"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LONGEST_FILE = 350


def folder_of(parts: tuple[str, ...]) -> str:
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else ""


def imports(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line, module below the package) of every import, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{one.name}" for one in node.names]
        parts = [tuple(one.split(".")) for one in names]
        found += [(node.lineno, one[1:]) for one in parts if one[0] == "slmrank"]
    return found


def upward(root: Path) -> list[str]:
    wrong = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside.parts == ("__init__.py",):
            continue  # the lazy public names
        own = inside.parts[0] if len(inside.parts) > 1 else ""
        for line, module in imports(path):
            other = folder_of(module)
            if other != own and FLOOR[other] >= FLOOR[own]:
                wrong.append(f"{inside}:{line} imports {'.'.join(module)}")
    return wrong


def test_every_folder_has_a_floor() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(FLOOR) - {""}


def test_no_import_goes_up_or_in_a_circle() -> None:
    assert upward(PACKAGE) == []


def test_an_import_that_goes_up_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.py").write_text("def f():\n    from slmrank.cli import main\n")
    assert upward(tmp_path) == ["data/bad.py:2 imports cli.main"]


def test_files_are_short() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: size for path, size in sizes.items() if size > LONGEST_FILE} == {}


def test_targets_are_named_in_their_own_folder_and_the_spec_alone() -> None:
    literal = re.compile(r"""["'](openvino|trtllm-engine|trtllm-llmapi)["']""")
    allowed = (PACKAGE / "engine" / "targets", PACKAGE / "spec")
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        if not any(path.is_relative_to(one) for one in allowed)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if literal.search(line)
    ]
    assert found == []


def test_nothing_outside_the_store_knows_lmdb() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "store" not in path.parents]
    text = {path.name: path.read_text() for path in files}
    assert [name for name, one in text.items() if re.search(r"\bimport lmdb|lmdb_store", one)] == []


def test_no_child_runs_python_between_fork_and_exec() -> None:
    """Beside threads that call into gRPC, 26 of 1,500 such children died before they began."""
    found = [path.name for path in PACKAGE.rglob("*.py") if "preexec_fn=" in path.read_text()]
    assert found == []


def test_the_public_names_are_these() -> None:
    assert slmrank.__all__ == [
        "Answer",
        "AsyncRankClient",
        "ControlError",
        "DeadlineExceeded",
        "InvalidQuery",
        "InvalidRequest",
        "ItemScore",
        "ItemText",
        "Job",
        "Overloaded",
        "Pair",
        "Part",
        "RankClient",
        "ScoreError",
        "ServerFault",
        "Status",
        "Tls",
        "Unreachable",
        "__version__",
        "rank_order",
    ]
    assert all(getattr(slmrank, name) is not None for name in slmrank.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        slmrank.nothing  # noqa: B018


def test_users_type_checkers_see_the_types() -> None:
    assert (Path(slmrank.__file__).parent / "py.typed").is_file()


def test_what_is_looked_up_and_called_needs_no_training_package() -> None:
    """The public names, and the keys of every artifact of a spec."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "openvino", "scipy"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
import slmrank
assert all(getattr(slmrank, name) for name in slmrank.__all__)
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import in_order
from slmrank.shipped import shipped
from slmrank.spec.reading import load_spec
bundle = Bundle(load_spec(shipped("build/demo.yaml")))
print(len({step.key for step in in_order(bundle.repository)}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "9"


@pytest.mark.long
@pytest.mark.slow
def test_the_wheel_holds_slmrank_alone_beside_the_library_named_control(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "artifacts", "tests", "onet-database")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {one for one in tops if not one.endswith(".dist-info")} == {"slmrank"}
    # The Python Control Systems Library, whose import name is `control`.
    site = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--target", str(site), str(wheel), "control"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the package index has no 'control' here: {done.stderr.strip()[-200:]}")
    assert (site / "slmrank" / "client" / "client.py").is_file()
    assert (site / "control" / "xferfcn.py").is_file()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import slmrank; print(slmrank.__file__)"
    run = [sys.executable, "-S", "-c", code, str(site)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(site)), done.stderr


def test_what_the_documentation_names_is_there() -> None:
    lost = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "perf/README.md"]:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`(results/[\w./-]+\.\w+|docs/[\w./-]+\.md|tests/[\w./-]+\.py)`", text)
        linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        for name in {*named, *linked}:
            if not ((page.parent / name).exists() or (ROOT / name).exists()):
                lost.append(f"{page.relative_to(ROOT)}: {name}")
    assert lost == []


def test_the_wheel_brings_what_is_kept_of_build_and_nothing_beside_it() -> None:
    """A release of the O*NET database that lay there went into wheel and image."""
    listed = ["git", "-C", str(ROOT), "ls-files", "build"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout:
        pytest.skip("no git checkout")
    kept = {"/".join(name.split("/")[:2]) for name in done.stdout.split()}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    brought = hatch["build"]["targets"]["wheel"]["force-include"]
    assert {name for name in brought if name.startswith("build")} == kept
    assert all(target == f"slmrank/_shipped/{name}" for name, target in brought.items())
