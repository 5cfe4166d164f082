"""Adapters: trained, written in peft's format, and the same model wherever they are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slmrank.errors import CheckpointError, DataError
from slmrank.model.reference import ReferenceScorer, load_model
from slmrank.prompt.template import template_of
from slmrank.spec.model import PromptSpec
from slmrank.spec.train import LoraSpec
from slmrank.train.adapter import read_note
from slmrank.train.state import STATE_FILE, RunState

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


def test_a_run_goes_on_that_another_version_began(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Its state does not say yet which step is kept."""
    checkpoint = make_checkpoint()
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), LORA, tmp_path, stop_at_six)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    torch.save(
        {key: state[key] for key in state if key not in ("top", "kept_step")}, tmp_path / STATE_FILE
    )
    assert fit(load_model(checkpoint), LORA, tmp_path)["resumed_at"] == 4


def test_the_last_evaluation_within_noise_of_the_best_is_kept(
    make_checkpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmrank.train import sft

    planned = [[0.5, 0.5, 0.6], [0.9, 0.8, 0.9], [0.8, 0.9, 0.8], [0.5, 0.4, 0.5], [0.9] * 3]
    seen: list[torch.Tensor] = []

    def planned_score(model: Any, *_: Any) -> Any:
        seen.append(torch.cat([one.detach().flatten() for one in trained(model.network)]))
        by_query = planned[len(seen) - 1]
        return {"dev_ndcg10": sum(by_query) / 3, "dev_auc": 0.5}, by_query

    def trained(network: Any) -> list[Any]:
        return [one for one in network.parameters() if one.requires_grad]

    monkeypatch.setattr(sft, "score_dev", planned_score)
    ranker = load_model(make_checkpoint())
    spec = settings(steps=11, dev_every=2, learning_rate=0.1, patience=2)
    figures = fit(ranker, spec, tmp_path, dev=QUERIES)
    assert (figures["steps"], figures["kept_step"]) == (8, 6)  # two evaluations, none better
    kept = torch.cat([one.detach().flatten() for one in trained(ranker.network)])
    assert [torch.equal(kept, one) for one in seen] == [False, False, True, False]


def test_the_last_step_is_evaluated_too(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    ranker = load_model(make_checkpoint())
    log = fit(ranker, settings(steps=3, dev_every=2), tmp_path, dev=QUERIES)["log"]
    assert [one["step"] for one in log if "dev_ndcg10" in one] == [2, 3]


def test_weights_that_noise_cannot_tell_from_the_best_are_kept() -> None:
    state = RunState(identity="")
    assert state.keeps([0.8, 0.6, 0.7, 0.5])
    assert state.keeps([0.9, 0.4, 0.7, 0.5])  # 0.025 less, +- 0.075
    assert not state.keeps([0.7, 0.5, 0.6, 0.4])  # 0.1 less, of every query
    assert state.keeps([0.9, 0.7, 0.8, 0.6])
    assert not state.keeps([0.8, 0.6, 0.7, 0.5])
    assert RunState(identity="", top=[0.5]).keeps([0.5])
    assert not RunState(identity="", top=[0.5]).keeps([0.4])
    assert RunState(identity="").keeps([])  # no dev query has a relevant job


def test_dev_that_can_tell_nothing_is_no_figure(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither a NaN in the log, which is no JSON, nor an end for lack of patience."""
    blank = [replace(one, grades=tuple(0 for _ in one.grades)) for one in QUERIES]
    spec = settings(steps=3, dev_every=1, patience=1)
    figures = fit(load_model(make_checkpoint()), spec, tmp_path, dev=blank)
    assert [sorted(one) for one in figures["log"]] == [["learning_rate", "loss", "step"]] * 3
    assert figures["kept_step"] == 3


def test_an_adapter_of_another_model_is_refused(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    fit(load_model(make_checkpoint()), LORA, tmp_path / "w", adapter_folder=tmp_path / "a")
    wider = load_model(make_checkpoint(intermediate_size=256))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(wider, settings(steps=0, adapter=tmp_path / "a"), tmp_path / "v")
    # peft leaves out what a model has no layer for, and zero what the adapter lacks.
    for layers in (2, 4):
        deeper = load_model(make_checkpoint(num_hidden_layers=layers))
        with pytest.raises(CheckpointError, match="made for other layers"):
            fit(deeper, settings(steps=0, adapter=tmp_path / "a"), tmp_path / "d")
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        fit(wider, settings(steps=0, adapter=tmp_path / "none"), tmp_path / "v")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(wider, settings(steps=0, adapter=tmp_path / "a"), tmp_path / "v")
    (tmp_path / "a" / "ranker_adapter.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no note"):
        read_note(tmp_path / "a", template_of(PromptSpec()))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_the_embedding_is_refused(
    make_checkpoint: Callable[..., Any], tmp_path: Path, target: str
) -> None:
    """It was merged into the table that both share, and what dev judged was another model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", target], task_type="CAUSAL_LM")
    get_peft_model(load_model(make_checkpoint()).network, config).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="which is frozen here"):
        fit(
            load_model(make_checkpoint()), settings(steps=0, adapter=tmp_path / "a"), tmp_path / "w"
        )


def test_an_adapter_with_dropout_goes_on_as_if_it_had_not_stopped(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    get_peft_model(load_model(make_checkpoint()).network, config).save_pretrained(tmp_path / "a")
    spec = settings(adapter=tmp_path / "a")
    whole, halved = load_model(make_checkpoint()), load_model(make_checkpoint())
    fit(whole, spec, tmp_path / "w")

    with pytest.raises(KeyboardInterrupt):
        fit(load_model(make_checkpoint()), spec, tmp_path / "h", stop_at_six)
    assert fit(halved, spec, tmp_path / "h")["resumed_at"] == 4
    for one, other in zip(whole.network.parameters(), halved.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_goes_on_with_as_many_processes_as_it_began_with(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Its state was overwritten by a run that began anew, without a word."""

    with pytest.raises(KeyboardInterrupt):
        fit(load_model(make_checkpoint()), settings(), tmp_path, stop_at_six)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "processes": 2}, tmp_path / "state.pt")
    with pytest.raises(DataError, match="had 2 processes, this one has 1"):
        fit(load_model(make_checkpoint()), settings(), tmp_path)


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
