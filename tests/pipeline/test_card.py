"""Trained rankers as small folders: written by one bundle, taken up by another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import load_spec

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
    values["evaluate"]["sets"] = {"held": {"source": "jsonl", **own}}
    path = tmp_path_factory.mktemp("boxed") / "train.yaml"
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
def test_an_adapter_of_another_prompt_is_refused(spec: Path, box: Path, tiny: TinyBundle) -> None:
    from slmrank.errors import CheckpointError

    other = boxed(spec, box, prompt={"max_item_tokens": 96, "closing": "\nDoes it:"})
    with pytest.raises(CheckpointError, match="was trained with prompt"):
        run(other.finetuned, tiny.store)


def test_whole_weights_are_not_exported(tiny: TinyBundle, control: Control, tmp_path: Path) -> None:
    done = control("export", tiny.spec, "--artifacts", tiny.artifacts, "--out", tmp_path / "x")
    assert done.returncode != 0
    assert "without an adapter" in done.stderr
    assert "lora: {rank: 16}" in done.stderr
