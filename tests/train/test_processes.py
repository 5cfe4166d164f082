"""More than one process: the losses of one with the larger batch, and the same after a break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slmrank.model.reference import load_model
from slmrank.spec.train import LoraSpec, TrainSpec

from tests.conftest import ROOT, TinyBundle
from tests.train.test_sft import fit, settings

BODY = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from slmrank.model.checkpoint import open_checkpoint
from slmrank.model.reference import load_model
from slmrank.spec.train import TrainSpec
from tests.train.test_sft import QUERIES, train
checkpoint, spec, folder, stop, products = sys.argv[1:]
if products == "float32":
    from slmrank.model import placement
    placement.has_bfloat16 = lambda kind: False
def progress(step, *_):
    if step == int(stop):
        raise KeyboardInterrupt
ranker = load_model(open_checkpoint(Path(checkpoint)))
folder = Path(folder)
figures = train(ranker, QUERIES, TrainSpec(**json.loads(spec)), folder / "work", progress,
                inputs={}, dev=QUERIES)
from slmrank.processes import process_rank
rank = process_rank()
torch.save({name: value for name, value in ranker.network.state_dict().items()},
           folder / f"weights-{rank}.pt")
(folder / f"figures-{rank}.json").write_text(json.dumps(figures))
"""


def launch(
    checkpoint: Any,
    spec: TrainSpec,
    folder: Path,
    stop: int = -1,
    *,
    processes: int = 2,
    products: str = "",
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "body.py").write_text(BODY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(folder / "body.py")]
    given = json.dumps(spec.model_dump(mode="json"))
    return subprocess.run(
        [*command, str(checkpoint.path), given, str(folder), str(stop), products],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )


def figures_of(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"figures-{rank}.json").read_text())
    return found


def weights_of(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"weights-{rank}.pt")
    return found


SPEC = settings(steps=8, queries_per_step=1, list_loss="ranknet", items_per_query=5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_are_one_with_the_doubled_batch(
    make_checkpoint: Callable[..., Any], tmp_path: Path, shard: bool
) -> None:
    checkpoint = make_checkpoint()
    spec = SPEC.model_copy(update={"shard": shard})
    done = launch(checkpoint, spec, tmp_path / "two", products="float32")
    assert done.returncode == 0, done.stderr[-2000:]
    whole = load_model(checkpoint)
    expected = fit(whole, settings(**{**SPEC.model_dump(), "queries_per_step": 2}), tmp_path)
    found = figures_of(tmp_path / "two")
    assert found["processes"] == 2
    share = found["parameters_here"] / found["trained_parameters"]
    assert share == (pytest.approx(0.5, abs=0.02) if shard else 1.0)
    assert found["loss"] == pytest.approx(expected["loss"], abs=2e-5)
    assert found["pairs"] == expected["pairs"]
    ours = weights_of(tmp_path / "two")
    whole_weights = whole.network.state_dict()
    gaps = torch.cat([(ours[name] - value).flatten() for name, value in whole_weights.items()])
    # Adam divides a gradient near zero by its own size: a single weight may be 2e-5 away, 6e-5 on
    # Zen 4, which adds in another order.
    assert gaps.abs().max() < 1e-4
    assert (gaps.abs() > 1e-5).sum() <= 2, "of all weights"
    theirs = weights_of(tmp_path / "two", 1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("processes", "shard"), [(1, False), (2, False), (2, True)])
def test_a_broken_run_goes_on_to_the_bit(
    make_checkpoint: Callable[..., Any], tmp_path: Path, processes: int, shard: bool
) -> None:
    checkpoint = make_checkpoint()
    spec = settings(
        **{
            **SPEC.model_dump(),
            "lora": LoraSpec(rank=4),
            "dev_every": 2,
            "shard": shard,
            "ema_decay": 0.9,
        }
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(checkpoint, spec, whole, processes=processes).returncode == 0
    assert launch(checkpoint, spec, broken, 6, processes=processes).returncode != 0
    assert not (broken / "figures-0.json").exists()
    done = launch(checkpoint, spec, broken, processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures_of(broken)["resumed_at"] == 4
    assert figures_of(broken)["log"] == figures_of(whole)["log"]
    expected, found = weights_of(whole), weights_of(broken)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_a_step_in_parts_is_the_step_at_once(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """A query's jobs stay together, so that the loss inside it is whole."""
    checkpoint = make_checkpoint()
    # At a higher rate AdamW makes the last bits of two orders of sums a difference of 1e-4.
    base = {**SPEC.model_dump(), "queries_per_step": 3, "learning_rate": 3e-4}
    whole, parts = load_model(checkpoint), load_model(checkpoint)
    expected = fit(whole, settings(**base), tmp_path / "a")["loss"]
    small = settings(**{**base, "tokens_at_once": 120})
    found = fit(parts, small, tmp_path / "b")["loss"]
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.long
@pytest.mark.slow
def test_the_verb_runs_under_a_launcher(tiny: TinyBundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Two trainings in one command: the group of processes outlives the first.
    command += ["-m", "slmrank.cli.main", "recover", str(tiny.spec), "--json"]
    done = subprocess.run(
        [*command, "--artifacts", str(tmp_path / "artifacts"), "--set", "finetune.seed=5"],
        capture_output=True,
        text=True,
        timeout=240,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["figures"]["processes"] == 2
    assert (Path(answer["path"]) / "train.jsonl").is_file()
    kinds = sorted(path.name for path in (tmp_path / "artifacts").iterdir())
    assert kinds == [
        "base",
        "data",
        "finetuned",
        "pruned",
        "recovered",
        "summaries",
        "summarizer",
        "work",
    ]
