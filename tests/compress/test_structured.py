"""A pruned model is an ordinary, smaller model of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slmrank.compress.calibration import (
    attend_all,
    embed,
    gram_of_heads,
    gram_of_neurons,
    layer_importance,
)
from slmrank.compress.record import read_record, write_record
from slmrank.compress.structured import count_parameters, prune_model, stage_of
from slmrank.errors import CheckpointError, SpecError
from slmrank.model.checkpoint import (
    CHECKPOINT_FOLDER,
    Geometry,
    allowed_kv_heads,
    open_checkpoint,
)
from slmrank.model.decoder import LoadedRanker
from slmrank.model.reference import ReferenceScorer, load_model, save_model
from slmrank.spec.compress import PruneSpec
from transformers import AutoModelForCausalLM

from tests.conftest import FAMILIES

RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(1, 900, length).astype(np.int32) for length in (20, 31, 44, 12, 60, 25)]


def spec(**changes: Any) -> PruneSpec:
    given: dict[str, Any] = {"intermediate_size": 128, "layers": 2, "neurons_per_round": 4}
    return PruneSpec(**(given | changes))


def make_idle(model: LoadedRanker, index: int) -> None:
    """Let a layer add nothing."""
    layer = model.network.model.layers[index]
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_saves_and_loads_as_an_ordinary_model(
    make_checkpoint: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    model = load_model(make_checkpoint(family))
    figures, _ = prune_model(model, PROMPTS, spec(), lambda *_: None)
    model.network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model.network)
    assert loaded.config.intermediate_size == 128
    assert loaded.config.num_hidden_layers == 2
    assert count_parameters(loaded)["total"] == figures["parameters_after"]
    ids = torch.tensor(PROMPTS[0])[None].long()
    with torch.no_grad():
        assert torch.allclose(model.network(ids).logits, loaded(ids).logits, atol=1e-5)


def test_keeping_everything_changes_no_score(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint("llama")
    before, after = load_model(checkpoint), load_model(checkpoint)
    prune_model(
        after, PROMPTS, spec(intermediate_size=192, layers=3, damping=1e-9), lambda *_: None
    )
    ids = torch.tensor(PROMPTS[2])[None].long()
    with torch.no_grad():
        assert torch.allclose(before.network(ids).logits, after.network(ids).logits, atol=1e-3)


def test_osscar_disturbs_the_output_least(make_checkpoint: Callable[..., Any]) -> None:
    model = load_model(make_checkpoint("llama"))
    figures, _ = prune_model(model, PROMPTS, spec(layers=3), lambda *_: None)
    errors = figures["mean_relative_error"]
    assert errors["osscar"] < errors["magnitude_refit"] < errors["magnitude"]


def test_more_than_there_is_is_refused(make_checkpoint: Callable[..., Any]) -> None:
    model = load_model(make_checkpoint("llama"))
    with pytest.raises(SpecError, match="the model has 3 layers of 192"):
        prune_model(model, PROMPTS, spec(layers=4), lambda *_: None)


def test_the_layers_that_move_p_least_go(make_checkpoint: Callable[..., Any]) -> None:
    """A middle layer that adds nothing is found, and leaving it out changes no score."""
    checkpoint = make_checkpoint("llama")
    before, after = load_model(checkpoint), load_model(checkpoint)
    for model in (before, after):
        make_idle(model, 1)
    wanted = spec(select="importance", intermediate_size=192, damping=1e-9)
    figures, record = prune_model(after, PROMPTS, wanted, lambda *_: None)
    assert figures["layers"] == [0, 2] == list(record.layers)
    ids = torch.tensor(PROMPTS[2])[None].long()
    with torch.no_grad():
        assert torch.allclose(before.network(ids).logits, after.network(ids).logits, atol=1e-3)


def test_the_first_layer_stays_even_where_it_adds_nothing(
    make_checkpoint: Callable[..., Any],
) -> None:
    model = load_model(make_checkpoint("llama"))
    make_idle(model, 0)
    with torch.no_grad():
        assert np.argmin(layer_importance(model, PROMPTS)) == 0
    wanted = spec(select="importance", intermediate_size=192)
    figures, record = prune_model(model, PROMPTS, wanted, lambda *_: None)
    assert len(figures["layers"]) == 2
    assert figures["layers"][0] == record.layers[0] == 0


@pytest.mark.usefixtures("in_float32")
def test_importance_is_how_far_p_moves_without_the_layer(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Up for one prompt and down for another is no rest."""
    checkpoint = make_checkpoint("llama")
    whole = ReferenceScorer(checkpoint).probabilities(PROMPTS)
    expected, moved = [], []
    for index in range(3):
        model = load_model(checkpoint)
        make_idle(model, index)
        save_model(model, checkpoint, tmp_path / str(index))
        without = open_checkpoint(tmp_path / str(index) / CHECKPOINT_FOLDER)
        moved.append(ReferenceScorer(without).probabilities(PROMPTS) - whole)
        expected.append(np.abs(moved[-1]).mean())
    assert any(one.min() < 0 < one.max() for one in moved)
    with torch.no_grad():
        found = layer_importance(load_model(checkpoint), PROMPTS)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("in_float32")
def test_what_fills_up_a_batch_is_in_no_gram(make_checkpoint: Callable[..., Any]) -> None:
    """Prompts of several lengths embedded together weigh what each of them weighs alone."""
    model = load_model(make_checkpoint("llama"))
    layer = model.network.model.layers[0]

    def grams(prompts: list[Any]) -> tuple[Any, Any]:
        batches = embed(model, prompts)
        heads = gram_of_heads(model, layer, batches)
        attend_all(model, layer, batches)
        return heads, gram_of_neurons(model, layer, batches)[0]

    with torch.no_grad():
        assert len(embed(model, PROMPTS)) == 1
        together, alone = grams(PROMPTS), [grams([one]) for one in PROMPTS]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        expected = np.sum(parts, axis=0)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_recorded_pruning_gives_the_same_model(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """Only the file goes to the other machine; its own data does not matter there."""
    checkpoint = make_checkpoint("llama")
    here, there = load_model(checkpoint), load_model(checkpoint)
    _, record = prune_model(here, PROMPTS, spec(), lambda *_: None, tokenizer_hash="t")
    write_record(tmp_path / "pruning.json", record)
    read = read_record(tmp_path / "pruning.json")
    figures, again = prune_model(
        there, [], spec(), lambda *_: None, tokenizer_hash="t", recorded=read
    )
    for one, other in zip(here.network.parameters(), there.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(again.neurons, record.neurons, strict=True))
    errors = figures["mean_relative_error"]
    assert errors["recorded"] == pytest.approx(errors["osscar"], abs=1e-4)
    _, again = prune_model(
        load_model(checkpoint),
        [],
        spec(damping=0.5),
        lambda *_: None,
        tokenizer_hash="t",
        recorded=read,
    )
    assert again.damping == read.damping != 0.5  # what was used, and not what the spec says


def test_a_record_without_a_refit_gives_the_same_model(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    """A replay refitted what the pruning had left as it was."""
    checkpoint = make_checkpoint("llama")
    here, there = load_model(checkpoint), load_model(checkpoint)
    plain = spec(method="magnitude")
    _, record = prune_model(here, PROMPTS, plain, lambda *_: None, tokenizer_hash="t")
    write_record(tmp_path / "pruning.json", record)
    read = read_record(tmp_path / "pruning.json")
    prune_model(there, [], plain, lambda *_: None, tokenizer_hash="t", recorded=read)
    for one, other in zip(here.network.parameters(), there.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_query_heads_of_a_llama_divide_its_hidden_size(
    make_checkpoint: Callable[..., Any],
) -> None:
    """transformers refused to save the pruned model, after the pruning."""
    assert allowed_kv_heads("llama", 2048, 32, 8) == [1, 2, 4, 8]
    assert allowed_kv_heads("qwen3", 2048, 32, 8) == list(range(1, 9))
    model = load_model(make_checkpoint("llama", num_attention_heads=4, num_key_value_heads=4))
    with pytest.raises(SpecError, match="hidden size 64"):
        prune_model(model, PROMPTS, spec(kv_heads=3), lambda *_: None)
    shape = Geometry(
        family="llama", layers=4, hidden_size=128, heads=32, kv_heads=8, head_dim=4,
        intermediate_size=256, vocab_size=100,
    )  # fmt: skip
    staged = spec(layers=4, intermediate_size=256, kv_heads=4, stages=2)
    assert [stage_of(staged, shape, left).kv_heads for left in (1, 0)] == [8, 4]
    for left in (1, 0):  # a goal that is none reaches the refusal
        asked = spec(layers=4, intermediate_size=256, kv_heads=3, stages=2)
        assert stage_of(asked, shape, left).kv_heads == 3


def test_states_in_a_file_give_the_same_model(
    make_checkpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint("llama")
    here, there = load_model(checkpoint), load_model(checkpoint)
    prune_model(here, PROMPTS, spec(), lambda *_: None)
    mapped = partial(embed, memory_bytes=0)
    monkeypatch.setattr("slmrank.compress.structured.embed", mapped)
    prune_model(there, PROMPTS, spec(), lambda *_: None, scratch=tmp_path / "work")
    for one, other in zip(here.network.parameters(), there.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert list((tmp_path / "work").iterdir()) == [], "nothing is left behind"


def test_a_record_of_another_model_is_refused(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint("llama")
    _, record = prune_model(
        load_model(checkpoint), PROMPTS, spec(), lambda *_: None, tokenizer_hash="t"
    )
    model = load_model(checkpoint)
    with pytest.raises(SpecError, match="tokenizer"):
        prune_model(model, [], spec(), lambda *_: None, tokenizer_hash="u", recorded=record)
    wider = spec(intermediate_size=192)
    with pytest.raises(SpecError, match="keeps 2 layers of 128 neurons, the spec says 2 of 192"):
        prune_model(model, [], wider, lambda *_: None, tokenizer_hash="t", recorded=record)
    (tmp_path / "pruning.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no record of a pruning"):
        read_record(tmp_path / "pruning.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_go_in_groups_and_the_model_stays_ordinary(
    make_checkpoint: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    """Of 2 key/value heads with 2 query heads each, one stays; a head that adds nothing goes."""
    checkpoint = make_checkpoint(family)
    before, after = load_model(checkpoint), load_model(checkpoint)
    for model in (before, after):
        for layer in model.network.model.layers:
            half = layer.self_attn.o_proj.in_features // 2
            layer.self_attn.o_proj.weight.data[:, :half] = 0
    wanted = spec(layers=3, intermediate_size=192, kv_heads=1, damping=1e-6)
    _, record = prune_model(after, PROMPTS, wanted, lambda *_: None, tokenizer_hash="t")
    assert record.kv_heads == ((1,), (1,), (1,))
    after.network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_key_value_heads == 1
    assert loaded.config.num_attention_heads == 2
    ids = torch.tensor(PROMPTS[2])[None].long()
    with torch.no_grad():
        expected = before.network(ids).logits
        assert torch.allclose(expected, loaded(ids).logits, atol=1e-3)
        assert torch.allclose(after.network(ids).logits, loaded(ids).logits, atol=1e-5)
    write_record(tmp_path / "pruning.json", record)
    there = load_model(checkpoint)
    read = read_record(tmp_path / "pruning.json")
    prune_model(there, [], wanted, lambda *_: None, tokenizer_hash="t", recorded=read)
    assert there.network.config.num_key_value_heads == 1
    with pytest.raises(SpecError, match="the model has 2"):
        prune_model(load_model(checkpoint), PROMPTS, spec(kv_heads=3), lambda *_: None)
    # Of the last of several stages: its heads are numbered among those that were left.
    with pytest.raises(SpecError, match="key heads"):
        later = replace(read, kv_heads_before=1)
        prune_model(
            load_model(checkpoint), [], wanted, lambda *_: None, tokenizer_hash="t", recorded=later
        )


@pytest.mark.long
@pytest.mark.slow
def test_the_papers_setting_on_its_geometry() -> None:
    """Half of the neurons and 8 of 28 layers of the Qwen3-0.6B geometry; random weights and a small
    vocabulary: shapes and parameter counts (paper: 0.6B -> 375M with its embeddings)."""
    from slmrank.model.decoder import LoadedRanker
    from slmrank.model.placement import Placement
    from slmrank.prompt.labels import Labels
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=960,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    network = AutoModelForCausalLM.from_config(config).eval()
    ranker = LoadedRanker(network=network, labels=Labels(yes=5, no=6), placement=Placement())
    paper = PruneSpec(intermediate_size=1536, layers=3, neurons_per_round=64, method="osscar")
    figures, _ = prune_model(ranker, PROMPTS, paper, lambda *_: None)
    layer = 15_730_944
    # Attention 6.29M and 3 x 3,072 x 1,024 in the MLP: 28 layers are 440M, and with the real
    # vocabulary of 151,936 tied rows 596M. 20 layers with half the neurons are 220M, 375M in all.
    assert figures["layer_parameters_before"] == 4 * layer
    assert figures["layer_parameters_after"] == 3 * (layer - 3 * 1536 * 1024)
    whole = 20 * (layer - 3 * 1536 * 1024) + 151_936 * 1024 + 1024
    assert round(whole / 1e6) == 376
