"""Bring a base model in: SmolLM2-135M-Instruct from its package, or any local checkpoint.

The result is a plain Hugging Face checkpoint in float32 safetensors with a fast tokenizer.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import SUPPORTED, TOKENIZER_FILES, read_config, read_geometry
from slmrank.model.quiet import quiet
from slmrank.model.tensor_files import read_index, same_content
from slmrank.prompt.template import load_tokenizer


def import_gguf(gguf: Path, target: Path) -> None:
    """De-quantise a GGUF file into a plain checkpoint (transformers reads it).

    transformers 4.57 builds a wrong tokenizer for SmolLM2's file (adds `<|im_start|>`, loses eos);
    5.x is right, hence the floor in pyproject.toml.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet(), _quick_gguf():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        tokenizer.save_pretrained(target)


@contextmanager
def _quick_gguf() -> Iterator[None]:
    """transformers asks gguf for its table of names once per module, and gguf reads the words of a
    vocabulary through slices of numpy.memmap: 29 of the 42 s that SmolLM2 takes. Inside, the table
    is made once and the file read as a plain array; the tensors and the tokenizer are the same."""
    from unittest import mock

    import gguf

    class PlainReader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)

    table = functools.cache(gguf.get_tensor_name_map)
    with mock.patch.multiple(gguf, GGUFReader=PlainReader, get_tensor_name_map=table):
        yield


def import_directory(source: Path, target: Path) -> None:
    """Copy a local Llama, Qwen2 or Qwen3 checkpoint.

    Raises CheckpointError for another architecture, weights that are missing or cut short, or a
    slow tokenizer.
    """
    geometry, config = read_geometry(source), read_config(source)
    named, causal = config.get("architectures"), SUPPORTED[geometry.family]
    if named and causal not in named:
        raise CheckpointError(
            f"{source} is a {named[0]}: it does not score by two of its words",
            f"give the {causal} that it was made from",
        )
    if (source / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{source} holds an adapter beside the weights, which is not applied here",
            "merge it, or give its folder as finetune.adapter and the weights alone as base.source",
        )
    if "quantization_config" in config:
        raise CheckpointError(
            f"{source} holds quantized weights", "give the checkpoint that they were made from"
        )
    index = read_index(source)
    load_tokenizer(source)
    missing = sorted(_indexed(source) - index.keys())
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights of its index, for example {missing[0]}",
            "copy every *.safetensors of the checkpoint",
        )
    embedding = "model.embed_tokens.weight"
    if embedding not in index:
        raise CheckpointError(
            f"{source} has no weight {embedding}: it is no whole causal language model",
            "save the AutoModelForCausalLM, not its inner model",
        )
    lacking = sorted(_needed(source) - index.keys())
    if lacking:
        raise CheckpointError(
            f"{source} lacks {len(lacking)} weights of its config.json, for example {lacking[0]}",
            "save the whole model again",
        )
    head = "lm_head.weight"
    tied = config.get("tie_word_embeddings") and head in index
    if tied and not same_content(index[embedding], index[head]):
        raise CheckpointError(
            f"{source} ties the head to the embedding, but stores another {head}",
            "set tie_word_embeddings to false in its config.json, or remove that weight",
        )
    for path in imported_files(source):
        shutil.copy2(path, target / path.name)


def _needed(source: Path) -> set[str]:
    """The weights that a causal language model of this configuration has."""
    geometry, config = read_geometry(source), read_config(source)
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    inside = {*attention, *mlp, "input_layernorm", "post_attention_layernorm"}
    biased: set[str] = set()
    if geometry.family == "qwen2":
        biased = set(attention[:3])
    elif config.get("attention_bias"):
        biased = set(attention)
    if geometry.family == "llama" and config.get("mlp_bias"):
        biased |= set(mlp)
    if geometry.family == "qwen3":
        inside |= {"self_attn.q_norm", "self_attn.k_norm"}
    names = {f"{name}.weight" for name in inside} | {f"{name}.bias" for name in biased}
    needed = {f"model.layers.{index}.{one}" for index in range(geometry.layers) for one in names}
    if not config.get("tie_word_embeddings"):
        needed.add("lm_head.weight")
    return {*needed, "model.norm.weight"}


def _indexed(source: Path) -> set[str]:
    """The weights that the index of a checkpoint in several files names."""
    path = source / "model.safetensors.index.json"
    if not path.is_file():
        return set()
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no index: {error}", "copy it again") from error


def imported_files(source: Path) -> list[Path]:
    """What is taken of a local checkpoint: sizes, weights and tokenizer."""
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    files = [source / name for name in (*names, *TOKENIZER_FILES) if (source / name).is_file()]
    return [*files, *sorted(source.glob("*.safetensors"))]
