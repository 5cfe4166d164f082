"""`control compress-search` on the tiny bundle, for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slmrank.spec.reading import load_spec

from tests.conftest import Control, TinyBundle

AXES = ("--layers", "2", "--neurons", "128,64", "--kv-heads", "1", "--budgets", "20")
FEW = ("--candidates", "2", "--rounds", "2", "--steps", "2")


@pytest.mark.long
@pytest.mark.slow
def test_the_cheapest_within_a_loss_becomes_a_spec(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    command = ("compress-search", tiny.spec, "--artifacts", tiny.artifacts, *AXES, *FEW)
    done = control(*command, "--max-loss", "1", "--out", tmp_path, "--json", timeout_s=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = told["rows"]
    # Dev queries chose; the loss on the test queries is told beside.
    assert told["checked"]["low"] <= told["checked"]["value"] <= told["checked"]["high"]
    page = next(tmp_path.glob("*.html")).read_text()
    assert "with 128 neurons on average would leave" in page
    assert "On the test queries the winner loses" in page
    assert [(row["steps"], row["in_engine"]) for row in rows] == [(1, False)] * 2 + [(2, True)]
    written = next(tmp_path.glob("*.yaml"))
    found = load_spec(written)
    best = rows[-1]["choice"]
    assert found.prune is not None
    assert found.recover is not None
    assert found.recover.steps == 2
    sizes = (found.prune.layers, found.prune.intermediate_size, found.summarize.budget_tokens)
    assert sizes == (best["layers"], best["intermediate_size"], best["budget_tokens"])
    assert found.data.source == "jsonl"
    assert found.data.jobs.resolve() == tiny.jobs.resolve()
    assert "items/s in process" in written.read_text()
    assert "The dev queries of the spec's own data chose" in written.read_text()
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    planned = control(*command, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "cached" in planned.stdout
    assert "48 combinations are predicted" in planned.stderr
    # What was measured is kept.
    again = control(
        *command, "--max-loss", "1", "--out", tmp_path / "again", "--json", timeout_s=600
    )
    assert again.returncode == 0, again.stderr
    assert "made in" not in again.stderr
    assert json.loads(again.stdout)["rows"] == rows
    # Nothing passes a limit that nothing can meet. The round before the last is the same; what
    # stays after it lost least instead of being the cheapest, and may be another.
    none = control(*command, "--max-loss", "-1", "--out", tmp_path / "none", timeout_s=600)
    assert none.returncode == 1
    made = [
        line.split("made in")[0].strip() for line in none.stderr.splitlines() if "made in" in line
    ]
    assert made in ([], ["recovery", "engine", "scores: engine"])
    assert "nothing that was tried loses at most -1" in none.stderr
    assert not list((tmp_path / "none").glob("*.yaml"))


@pytest.mark.slow
def test_what_cannot_be_searched_is_refused(control: Control, tiny: TinyBundle) -> None:
    command = ("compress-search", tiny.spec, "--artifacts", tiny.artifacts)
    for wrong, words in (
        (("--set", "recover=null"), "sections prune and recover"),
        (("--layers", "99"), "layers 99 is not one to"),
        (("--neurons", "100"), "in steps of 64"),
        (("--budgets", "many"), "no list of whole numbers"),
    ):
        done = control(*command, *wrong)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
