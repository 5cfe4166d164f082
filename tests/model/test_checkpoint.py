"""Ranker checkpoints: complete, of a known family, with the tokenizer they were made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slmrank.errors import CheckpointError
from slmrank.model.base_model import import_directory
from slmrank.model.checkpoint import open_checkpoint, write_ranker
from slmrank.model.export import with_old_rope
from slmrank.model.reference import load_model, save_model
from slmrank.model.tensor_files import count_parameters
from slmrank.prompt.template import template_of
from slmrank.spec.model import PromptSpec

from tests.conftest import FAMILIES


def edit(path: Path, **changes: Any) -> None:
    loaded = json.loads(path.read_text())
    path.write_text(json.dumps(loaded | changes))


def test_round_trip(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint("qwen3")
    assert open_checkpoint(checkpoint.path) == checkpoint
    assert checkpoint.geometry.head_dim == 32


def test_parameters_are_counted_from_headers(make_checkpoint: Callable[..., Any]) -> None:
    from slmrank.model.reference import load_model

    for family in ("llama", "qwen2"):
        checkpoint = make_checkpoint(family)
        model = load_model(checkpoint).network
        counted = count_parameters(checkpoint.path)
        assert counted["total"] == sum(p.numel() for p in model.parameters())
        assert counted["layers"] == sum(p.numel() for p in model.model.layers.parameters())


def test_a_tied_head_that_is_stored_is_counted_once(make_checkpoint: Callable[..., Any]) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = make_checkpoint("qwen3")
    before = count_parameters(checkpoint.path)
    weights = load_file(checkpoint.path / "model.safetensors")
    assert json.loads((checkpoint.path / "config.json").read_text())["tie_word_embeddings"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, checkpoint.path / "model.safetensors", metadata={"format": "pt"})
    assert count_parameters(checkpoint.path) == before


def test_a_saved_model_says_its_rotary_base_in_both_ways(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 4 read 10,000 out of what transformers 5 had written."""
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}
    import_directory(make_model("llama", rope_parameters=scaled), tmp_path)
    checkpoint = write_ranker(
        tmp_path, template_of(PromptSpec()), max_item_tokens=64, max_query_tokens=32
    )
    save_model(load_model(checkpoint), checkpoint, tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved" / "checkpoint"):
        config = json.loads((folder / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e5
        assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    loaded = load_model(open_checkpoint(tmp_path / "saved" / "checkpoint"))
    assert loaded.network.config.rope_parameters == scaled
    plain = with_old_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})
    assert (plain["rope_theta"], plain["rope_scaling"]) == (5.0, None)


def test_others_do_not_cut_the_closing_question(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    import_directory(make_model(), tmp_path)
    edit(tmp_path / "tokenizer_config.json", model_max_length=40)
    checkpoint = write_ranker(
        tmp_path, template_of(PromptSpec()), max_item_tokens=64, max_query_tokens=32
    )
    limit = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"]
    assert limit == checkpoint.encoder().max_prompt_tokens


def test_another_tokenizer_is_refused(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint()
    path = checkpoint.path / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError, match="is not the one of ranker"):
        open_checkpoint(checkpoint.path)


def test_wrong_label_ids_are_refused(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint()
    edit(checkpoint.path / "ranker.json", labels={"yes": 5, "no": 6})
    with pytest.raises(CheckpointError, match="label ids"):
        open_checkpoint(checkpoint.path)


def test_labels_that_are_not_single_tokens_are_refused(make_model: Callable[..., Path]) -> None:
    template = template_of(PromptSpec(yes=" Absolutely not sure"))
    with pytest.raises(CheckpointError, match="a label must be exactly one"):
        write_ranker(make_model(), template, max_item_tokens=64, max_query_tokens=32)


def test_missing_weights_are_refused_and_not_made_up(make_checkpoint: Callable[..., Any]) -> None:
    from safetensors.torch import load_file, save_file
    from slmrank.model.reference import load_model

    checkpoint = make_checkpoint()
    path = checkpoint.path / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if ".layers.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 9 weights.*layers.1"):
        load_model(checkpoint)


def test_a_broken_tokenizer_is_named(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint()
    (checkpoint.path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not load"):
        open_checkpoint(checkpoint.path)


def test_unknown_families_and_missing_parts(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model()
    with pytest.raises(CheckpointError, match="not a Hugging Face checkpoint"):
        import_directory(tmp_path, tmp_path)
    edit(folder / "config.json", model_type="gpt2")
    with pytest.raises(CheckpointError, match="gpt2.*supported: llama, qwen2, qwen3"):
        import_directory(folder, tmp_path)
    edit(folder / "config.json", model_type="llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        import_directory(folder, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_an_imported_copy_opens(
    make_model: Callable[..., Path], tmp_path: Path, family: str, tied: bool
) -> None:
    import_directory(make_model(family, tie_word_embeddings=tied), tmp_path)
    write_ranker(tmp_path, template_of(PromptSpec()), max_item_tokens=64, max_query_tokens=32)
    assert open_checkpoint(tmp_path).geometry.family == family


def test_a_model_with_biases_is_imported(make_model: Callable[..., Path], tmp_path: Path) -> None:
    import_directory(make_model("llama", attention_bias=True, mlp_bias=True), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: cut_weights(path), "model.safetensors"),
        (lambda path: (path / "config.json").write_text("[]"), "is not JSON: it is no object"),
        (lambda path: edit(path / "config.json", num_hidden_layers="two"), "config.json: .*two"),
        (lambda path: (path / "tokenizer_config.json").write_text("{"), "tokenizer_config.json"),
        (
            lambda path: edit(path / "config.json", max_position_embeddings=100),
            "longest prompt has .* tokens, the model has 100 positions",
        ),
    ],
    ids=["cut", "list", "word", "tokenizer", "positions"],
)
def test_a_damaged_checkpoint_is_refused_when_it_comes_in(
    damage: Callable[[Path], Any], told: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Before it is trained for hours; three of these were a traceback."""
    folder = make_model()
    damage(folder)
    with pytest.raises(CheckpointError, match=told):
        import_directory(folder, tmp_path)
        template = template_of(PromptSpec())
        write_ranker(tmp_path, template, max_item_tokens=64, max_query_tokens=32)


def cut_weights(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1000])


def test_a_checkpoint_that_cannot_be_used_is_refused_on_import(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    def refused(text: str) -> None:
        (tmp_path / "target").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=text):
            import_directory(source, tmp_path / "target")

    source = make_model()
    named = json.loads((source / "config.json").read_text())["architectures"]
    edit(source / "config.json", architectures=["LlamaForSequenceClassification"])
    refused("is a LlamaForSequenceClassification")
    edit(source / "config.json", architectures=named)
    (source / "adapter_config.json").write_text("{}")
    refused("holds an adapter beside the weights")
    (source / "adapter_config.json").unlink()
    weights = load_file(source / "model.safetensors")
    other = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    save_file(other, source / "model.safetensors", metadata={"format": "pt"})
    refused("stores another lm_head.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys([*weights, "model.more"], "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("lacks 1 weights of its index, for example model.more")
    (source / "model.safetensors.index.json").unlink()
    lacking = ("model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    for name in lacking:
        some = {one: value for one, value in weights.items() if one != name}
        save_file(some, source / "model.safetensors", metadata={"format": "pt"})
        refused(f"{source} lacks 1 weights of its config.json, for example {name}")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    edit(source / "config.json", tie_word_embeddings=False)
    refused("for example lm_head.weight")
    edit(source / "config.json", tie_word_embeddings=True, attention_bias=True)
    refused("lacks 12 weights of its config.json")
    edit(source / "config.json", attention_bias=False)
    bare = {name.removeprefix("model."): one for name, one in weights.items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    refused("no whole causal language model")
    edit(source / "config.json", quantization_config={"quant_method": "gptq"})
    refused("holds quantized weights")


def test_prompts_and_tokens_beyond_the_model_are_refused(
    make_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(CheckpointError, match="the model has .* positions"):
        checkpoint.encoder(1_000_000)
    edit(checkpoint.path / "config.json", vocab_size=100)
    with pytest.raises(CheckpointError, match="the embedding 100 rows"):
        write_ranker(
            checkpoint.path, template_of(PromptSpec()), max_item_tokens=64, max_query_tokens=32
        )
