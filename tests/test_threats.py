"""docs/threats.md names a test for each thing that an attacker cannot do, and these are its own."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "threats.md").read_text()
LOADERS = re.compile(
    r"\b(pickle|marshal|shelve|dill|joblib)\b|allow_pickle\s*=\s*True|yaml\.(load|unsafe_load)\("
)


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_nothing_is_unpickled() -> None:
    """torch.load appears for our own training state, and reads weights alone. `verify` reads what
    Python compiled with marshal, which runs nothing, only to compare it with what it should be."""
    files = [*(ROOT / "control").rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]
    found = [
        (path.name, match[0]) for path in files for match in LOADERS.finditer(path.read_text())
    ]
    assert set(found) == {("verify.py", "marshal")}
    verify = (ROOT / "control" / "slmrank" / "repository" / "verify.py").read_text()
    assert verify.count("marshal.") == 1
    assert "exec(" not in verify
    for path in files:
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, (path, call)
