"""Trained rankers as small folders: written by one bundle, taken up by another."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slmrank.errors import SpecError
from slmrank.pipeline import card
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.card import export_rankers, require_exportable
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec, load_spec

from tests.conftest import Control, TinyBundle

SMALL = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def spec(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with adapters instead of whole weights, and a set to measure on."""
    values: dict[str, Any] = yaml.safe_load(tiny.spec.read_text())
    own = {name: str(tiny.spec.parent / f"{name}.jsonl") for name in ("jobs", "pairs")}
    values["name"] = "boxed"  # `status` of the tiny bundle knows earlier artifacts by the name
    values["data"] |= own
    values["finetune"] |= {"lora": SMALL, "dev_every": 2}
    values["recover"] |= {"lora": SMALL, "steps": 4, "learning_rate": 2e-3}
    values["prune"] |= {"select": "importance"}
    folder = tmp_path_factory.mktemp("boxed")
    pairs = [json.loads(line) for line in Path(own["pairs"]).read_text().splitlines()]
    mixed = folder / "mixed.jsonl"
    mixed.write_text("".join(f"{json.dumps({**one, 'split': None})}\n" for one in pairs))
    values["evaluate"]["sets"] = {
        "held": {"source": "jsonl", **own},
        "mixed": {"source": "jsonl", "jobs": own["jobs"], "pairs": str(mixed)},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def box(spec: Path, tiny: TinyBundle, control: Control) -> Path:
    target = spec.parent / "ranker"
    done = control("export", spec, "--artifacts", tiny.artifacts, "--out", target, "--json")
    assert done.returncode == 0, done.stderr
    folders = [Path(one).name for one in json.loads(done.stdout)["folders"]]
    assert folders == ["full", "pruned"]
    return target


def boxed(spec: Path, box: Path, **more: Any) -> Bundle:
    """Another bundle that starts from the folders and trains nothing."""
    values: dict[str, Any] = yaml.safe_load(spec.read_text())
    values["finetune"] = {"adapter": str(box / "full"), "steps": 0}
    values["prune"] = {
        **{name: values["prune"][name] for name in ("intermediate_size", "layers")},
        "recorded": str(box / "pruned" / "pruning.json"),
    }
    values["recover"] = {"adapter": str(box / "pruned"), "steps": 0}
    path = spec.parent / "boxed.yaml"
    path.write_text(yaml.safe_dump(values | more))
    return Bundle(load_spec(path))


def weights(bundle: Bundle, kind: str, tiny: TinyBundle) -> Any:
    from safetensors.numpy import load_file

    folder = run(getattr(bundle, kind), tiny.store).path
    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.mark.long
@pytest.mark.slow
def test_the_card_says_what_it_is(box: Path) -> None:
    for name in ("full", "pruned"):
        card = (box / name / "README.md").read_text()
        for text in ("Data: your own", "## Quality on held", "4 steps"):
            assert text in card
        assert "O*NET" not in card  # what we know of our own rankers is not said of others
        assert (box / name / "train.png").read_bytes()[:4] == b"\x89PNG"
        assert (box / name / "train.jsonl").read_text().count("\n") == 4
    sizes = [path.stat().st_size for path in (box / "full").iterdir()]
    assert max(sizes) < 200_000


@pytest.mark.slow
def test_another_bundle_rebuilds_both_rankers(spec: Path, box: Path, tiny: TinyBundle) -> None:
    before, after = Bundle(load_spec(spec)), boxed(spec, box)
    for kind in ("finetuned", "recovered"):
        ours, theirs = weights(before, kind, tiny), weights(after, kind, tiny)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert np.allclose(value, theirs[name], atol=1e-4), f"{kind} {name}"
    figures = run(after.pruned, tiny.store).figures
    assert set(figures["mean_relative_error"]) >= {"osscar", "magnitude", "recorded"}


@pytest.mark.slow
def test_the_log_of_a_ranker_that_was_only_merged_stays_beside_it(
    spec: Path, box: Path, tiny: TinyBundle, tmp_path: Path
) -> None:
    target = tmp_path / "again"
    shutil.copytree(box, target)
    bundle = boxed(spec, target)
    run(bundle.recovered, tiny.store)
    for folder in export_rankers(bundle, tiny.store, target, {}):
        before = (box / folder.name / "train.jsonl").read_text()
        assert (folder / "train.jsonl").read_text() == before != ""
        assert (folder / "train.png").is_file()
        assert "only merged here" in (folder / "README.md").read_text()


def test_an_export_that_fails_half_way_leaves_the_one_before(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights were overwritten beside the card of the old ones."""
    target = tmp_path / "full"
    shutil.copytree(box / "full", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    copied = []

    def full(source: Path, to: Path) -> None:
        copied.append(source)
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        to.write_bytes(b"new")

    monkeypatch.setattr(card.shutil, "copyfile", full)
    figures = {"steps": 1}
    new = card.Card(
        title="t",
        made_of="m",
        attribution=None,
        packaged=False,
        section={},
        figures=figures,
        log=[],
        quality={},
        held_back=0,
    )
    with pytest.raises(OSError, match="No space"):
        card.write_ranker_folder(target, new, box / "full", None)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    # What one that was killed left behind is in nobody's way.
    (tmp_path / f".full.{os.getpid()}.tmp").mkdir()
    monkeypatch.undo()
    card.write_ranker_folder(target, new, box / "full", None)
    assert (target / "README.md").read_text() != before["README.md"].decode()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_an_adapter_of_another_prompt_is_refused(spec: Path, box: Path, tiny: TinyBundle) -> None:
    from slmrank.errors import CheckpointError

    other = boxed(spec, box, prompt={"max_item_tokens": 96, "closing": "\nDoes it:"})
    with pytest.raises(CheckpointError, match="was trained with prompt"):
        run(other.finetuned, tiny.store)


def test_whole_weights_are_not_exported(tiny: TinyBundle, control: Control, tmp_path: Path) -> None:
    done = control("export", tiny.spec, "--artifacts", tiny.artifacts, "--out", tmp_path / "x")
    assert done.returncode != 0
    assert "finetune trains all weights, and no adapter" in done.stderr
    assert "lora: {rank: 16}" in done.stderr
    assert "made" not in done.stderr  # said before hours of training
    assert not (tmp_path / "x").exists()


def test_what_the_spec_alone_decides_is_said_first(spec: Path, tmp_path: Path) -> None:
    given = load_spec(spec)
    assert require_exportable(given, tmp_path) == ["full", "pruned"]
    staged = change_spec(given, {"prune": {"stages": 2}})
    with pytest.raises(SpecError, match="pruned in 2 stages"):
        require_exportable(staged, tmp_path)
    (tmp_path / "pruned").mkdir()
    alone = change_spec(given, {"recover": None, "prune": None})
    with pytest.raises(SpecError, match="pruned is of another export"):
        require_exportable(alone, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_a_card_tells_what_was_trained_and_names_no_path(
    spec: Path, box: Path, tiny: TinyBundle, control: Control
) -> None:
    """Of a base model from a folder."""
    card = (box / "pruned" / "README.md").read_text()
    told = re.search(r"## Quality on mixed \((\d+) of its queries were TRAINED ON\)", card)
    assert told is not None
    assert "## Quality on held:" in card
    compared = control(
        "depth-table", spec, "--on", "mixed", "--artifacts", tiny.artifacts, "--out", box.parent
    )
    assert compared.returncode == 0, compared.stderr
    assert re.search(rf"{told[1]} of the \d+ queries were TRAINED ON", compared.stdout)
    assert str(tiny.spec.parent) not in card
    assert "the adapter `full` merged, then pruned" in card
    target = spec.parent / "alone"
    none = ("--set", "finetune=null", "--set", "evaluate.sets={}")
    done = control("export", spec, "--artifacts", tiny.artifacts, "--out", target, *none)
    assert done.returncode == 0, done.stderr
    assert "`full`" not in (target / "pruned" / "README.md").read_text()
    (target / "pruned" / "train.jsonl").write_text("of another ranker")
    done = control("export", spec, "--artifacts", tiny.artifacts, "--out", target, *none)
    assert "of another" not in (target / "pruned" / "train.jsonl").read_text()
