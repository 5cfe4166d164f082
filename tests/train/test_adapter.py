"""Adapters: trained, written in peft's format, and the same model wherever they are merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slmrank.errors import CheckpointError
from slmrank.model.reference import ReferenceScorer, load_model
from slmrank.spec.train import LoraSpec

from tests.train.test_sft import QUERIES, fit, settings, stop_at_six

LORA = settings(lora=LoraSpec(rank=4, alpha=8), steps=10)


def prompts() -> list[Any]:
    return [prompt for query in QUERIES for prompt in query.prompts()]


def logits_of(network: Any) -> torch.Tensor:
    with torch.no_grad():
        rows = [network(torch.tensor(one)[None].long()).logits[0, -1] for one in prompts()]
    return torch.stack(rows)


@pytest.mark.slow
def test_what_is_written_merged_and_loaded_by_peft_are_one_model(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    checkpoint = make_checkpoint()
    trained = load_model(checkpoint)
    before = logits_of(trained.network)
    fit(trained, LORA, tmp_path / "w", adapter_folder=tmp_path / "adapter")
    merged = logits_of(trained.network)
    assert (merged - before).abs().max() > 0.05, "nothing was learnt"
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert str(checkpoint.path) not in config, "the path of this machine"
    assert not any("lora" in name for name, _ in trained.network.named_parameters())
    theirs = PeftModel.from_pretrained(load_model(checkpoint).network, str(tmp_path / "adapter"))
    assert torch.allclose(logits_of(theirs), merged, atol=1e-4)
    again = load_model(checkpoint)
    figures = fit(again, settings(steps=0, adapter=tmp_path / "adapter"), tmp_path / "v")
    assert figures["steps"] == 0
    for one, other in zip(trained.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_more_steps_go_on_from_an_adapter(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint()
    first = load_model(checkpoint)
    losses = fit(first, LORA, tmp_path / "w", adapter_folder=tmp_path / "one")["loss"]
    more = settings(steps=4, adapter=tmp_path / "one", warmup_steps=4, learning_rate=1e-4)
    further = fit(load_model(checkpoint), more, tmp_path / "v", adapter_folder=tmp_path / "two")
    assert further["loss"][0] < losses[0]
    assert (tmp_path / "two" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_an_interrupted_adapter_run_ends_like_an_undisturbed_one(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint()
    whole, resumed = load_model(checkpoint), load_model(checkpoint)
    fit(whole, LORA, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), LORA, tmp_path / "b", stop_at_six)
    assert fit(resumed, LORA, tmp_path / "b")["resumed_at"] == 4
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_best_evaluation_is_kept(make_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    """A rate that destroys the model after the first evaluations."""
    spec = settings(steps=12, dev_every=2, learning_rate=0.5, warmup_steps=12, patience=2)
    ranker = load_model(make_checkpoint())
    figures = fit(ranker, spec, tmp_path, dev=QUERIES)
    scored = [one for one in figures["log"] if "dev_ndcg10" in one]
    best = max(one["dev_ndcg10"] for one in scored)
    from slmrank.train.sft import Scorer, score_dev

    found = score_dev(Scorer(ranker), ranker.placement, QUERIES)
    assert found["dev_ndcg10"] == pytest.approx(best, abs=1e-4)
    places = [place for place, one in enumerate(scored) if one["dev_ndcg10"] == best]
    assert len(scored) - 1 - places[0] <= 2
    assert figures["steps"] == len(figures["log"])


def test_an_adapter_of_another_model_is_refused(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    fit(load_model(make_checkpoint()), LORA, tmp_path / "w", adapter_folder=tmp_path / "a")
    wider = load_model(make_checkpoint(intermediate_size=256))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(wider, settings(steps=0, adapter=tmp_path / "a"), tmp_path / "v")
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        fit(wider, settings(steps=0, adapter=tmp_path / "none"), tmp_path / "v")


def test_scores_of_the_merged_model_are_the_reference_scorers(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    from slmrank.model.reference import save_model

    checkpoint = make_checkpoint()
    ranker = load_model(checkpoint)
    fit(ranker, LORA, tmp_path / "w")
    save_model(ranker, checkpoint, tmp_path)
    from slmrank.model.checkpoint import open_checkpoint
    from slmrank.train.sft import Scorer, score_dev

    saved = open_checkpoint(tmp_path / "checkpoint")
    found = ReferenceScorer(saved).logits(prompts())
    assert len(found) == len(prompts())
    for_placement = (ranker.placement, QUERIES)
    again = score_dev(Scorer(load_model(saved)), *for_placement)
    assert score_dev(Scorer(ranker), *for_placement) == again
