"""`control status`: made, stale with the reason, missing; and what keys do not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.status import read_status
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec, parse_spec

from tests.conftest import Control, TinyBundle


def states(bundle: Bundle, store: ArtifactStore) -> dict[str, tuple[str, str]]:
    return {one.title: (one.state, one.why) for one in read_status([bundle.repository], store)}


def test_each_artifact_is_made_stale_or_missing(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    here = states(tiny.bundle, tiny.store)
    assert {state for state, _ in here.values()} == {"made"}, here
    longer = Bundle(change_spec(tiny.bundle.spec, {"recover": {"steps": 5}}))
    found = states(longer, tiny.store)
    assert found["pruning"] == ("made", "")
    state, why = found["recovery"]
    assert state == "stale"
    assert "steps" in why
    assert found["engine"][0] == found["model repository"][0] == "stale"
    assert "checkpoint" in found["engine"][1]
    own = {name: getattr(tiny.bundle.spec.data, name) for name in ("jobs", "pairs")}
    tested = {"evaluate": {"sets": {"of-this-test": {"source": "jsonl", **own}}}}
    (asked,) = read_status(
        [Bundle(change_spec(tiny.bundle.spec, tested)).set_data("of-this-test")], tiny.store
    )
    assert asked.state == "missing"  # a set's data is no later version of the bundle's own
    values = tiny.bundle.spec.model_dump(mode="json")
    state, why = states(
        Bundle(parse_spec(values | {"data": {"source": "onet"}}, tmp_path)), tiny.store
    )["labelled data"]
    assert (state, "source jsonl -> onet" in why) == ("stale", True), why
    empty = states(tiny.bundle, ArtifactStore(tmp_path))
    assert {state for state, _ in empty.values()} == {"missing"}


@pytest.mark.slow
def test_the_command_lists_them(control: Control, tiny: TinyBundle, tiny_repository: Path) -> None:
    done = control("status", tiny.spec, "--artifacts", tiny.artifacts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made") >= 9
    change = "--set=prune.layers=1"
    done = control("status", tiny.spec, change, "--artifacts", tiny.artifacts, "--json")
    rows = {row["title"]: row for row in json.loads(done.stdout)["artifacts"]}
    assert rows["pruning"]["state"] == "stale"
    assert "layers" in rows["pruning"]["why"]
    assert rows["fine-tuning"]["state"] == "made"


def test_another_patch_release_of_a_tool_makes_nothing_again(
    tiny: TinyBundle, tiny_repository: Path, monkeypatch: Any
) -> None:
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: f"{real(name)}.9" if name == "transformers" else real(name),
    )
    bundle = Bundle(tiny.bundle.spec)
    assert bundle.repository.key == tiny.bundle.repository.key
    notes = {one.title: one.note for one in read_status([bundle.repository], tiny.store)}
    assert "transformers" in notes["fine-tuning"]


def test_stores_with_other_histories_get_the_same_summaries(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    """One store made other summaries of these jobs first, the other makes its first."""
    fresh = ArtifactStore(tmp_path / "fresh")
    used = ArtifactStore(tmp_path / "used")
    half = tmp_path / "half"
    half.mkdir()
    for name in ("jobs.jsonl", "pairs.jsonl"):
        shutil.copy2(tiny.spec.parent / name, half / name)
    pairs = (half / "pairs.jsonl").read_text().splitlines()
    (half / "pairs.jsonl").write_text("\n".join(pairs[: len(pairs) // 2]) + "\n")
    own = {"jobs": str(half / "jobs.jsonl"), "pairs": str(half / "pairs.jsonl")}
    other = Bundle(change_spec(tiny.bundle.spec, {"data": own}))
    budget = Bundle(change_spec(tiny.bundle.spec, {"summarize": {"budget_tokens": 30}}))
    for bundle in (other, budget):
        run(bundle.summaries, used)
    made = [run(tiny.bundle.summaries, store) for store in (fresh, used)]
    assert made[0].key == made[1].key
    first, second = ((one.path / "store" / "data.mdb").read_bytes() for one in made)
    assert first == second
    assert run(other.summaries, used).path != made[1].path
