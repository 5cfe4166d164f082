"""A ranker checkpoint: a plain Hugging Face model directory plus `ranker.json`.

`ranker.json` holds what a score depends on beside the weights: template and its hash, label ids,
tokenizer hash, token limits. This module reads and writes it; it does not import torch.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.errors import CheckpointError
from slmrank.model.export import (
    exported_files,
    text_is_enough,
    with_old_rope,
    with_pad_token,
    with_room,
)
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.labels import Labels, find_labels
from slmrank.prompt.template import PromptTemplate, load_tokenizer, tokenizer_hash

RANKER_FILE = "ranker.json"
CHECKPOINT_FOLDER = "checkpoint"  # of an artifact that holds one
ADAPTER_FOLDER = "adapter"  # of an artifact that trained one
SUPPORTED = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes of a decoder: layers, widths and heads."""

    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class RankerFile:
    """What `ranker.json` says, checked against the tokenizer beside it."""

    path: Path
    template: PromptTemplate
    labels: Labels
    max_item_tokens: int
    max_query_tokens: int
    tokenizer_hash: str

    def encoder(self, max_item_tokens: int | None = None) -> PromptEncoder:
        """The prompt encoder; `max_item_tokens` overrides the limit."""
        return PromptEncoder(
            load_tokenizer(self.path),
            self.template,
            max_item_tokens=max_item_tokens or self.max_item_tokens,
            max_query_tokens=self.max_query_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint(RankerFile):
    """A checked ranker checkpoint on disk."""

    geometry: Geometry

    def encoder(self, max_item_tokens: int | None = None) -> PromptEncoder:
        """See `RankerFile.encoder`. Raises CheckpointError where its longest prompt has more tokens
        than the model has positions."""
        encoder = super().encoder(max_item_tokens)
        positions = read_config(self.path).get("max_position_embeddings")
        if positions is not None and encoder.max_prompt_tokens > positions:
            raise CheckpointError(
                f"the longest prompt has {encoder.max_prompt_tokens} tokens, the model has "
                f"{positions} positions",
                "lower prompt.max_item_tokens (of full texts: evaluate.full_text_tokens, "
                "finetune.text_tokens, recover.text_tokens, summarize.generative.item_tokens) or "
                "prompt.max_query_tokens",
            )
        return encoder


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a model directory. Raises CheckpointError when absent or broken."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a Hugging Face checkpoint: config.json: {error.strerror}",
            "give a directory with config.json, tokenizer.json and *.safetensors",
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}/config.json is not JSON: {error}", "restore it") from error
    return config


def read_geometry(path: Path) -> Geometry:
    """Sizes from `config.json`. Raises CheckpointError for an architecture we do not know."""
    config = read_config(path)
    family = config.get("model_type", "")
    if family not in SUPPORTED:
        raise CheckpointError(
            f"{path} is a {family or 'nameless'} model; supported: {', '.join(SUPPORTED)}",
            "use a Llama, Qwen2 or Qwen3 checkpoint",
        )
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        raise CheckpointError(
            f"{path} has sliding-window attention, which is not run here",
            "if no prompt is longer than the window, set use_sliding_window to false and every "
            "entry of layer_types to full_attention",
        )
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" in (rotary.get("rope_type"), rotary.get("type")):
        # Its frequencies follow the longest prompt of a call: a score would depend on the others.
        raise CheckpointError(
            f"{path} has rotary scaling longrope, which is not run here",
            "if no prompt is longer than original_max_position_embeddings, remove it",
        )
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return Geometry(
            family=family,
            layers=int(config["num_hidden_layers"]),
            hidden_size=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}/config.json lacks {error}", "restore it") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}/config.json: {error}", "restore it") from error


def allowed_kv_heads(family: str, hidden_size: int, heads: int, kv_heads: int) -> list[int]:
    """The numbers of key/value heads that may be kept: transformers' Llama has no other numbers of
    query heads than those that divide the hidden size, whatever the size of a head."""
    group = heads // kv_heads
    return [
        count
        for count in range(1, kv_heads + 1)
        if family != "llama" or hidden_size % (count * group) == 0
    ]


def write_ranker(
    path: Path, template: PromptTemplate, *, max_item_tokens: int, max_query_tokens: int
) -> Checkpoint:
    """Make a model directory a ranker checkpoint: check the labels, write `ranker.json` and, where
    a prompt's text gives the same ids, the files by which other tools load it.

    Raises CheckpointError where labels or limits do not fit the model.
    """
    tokenizer = load_tokenizer(path)
    labels = find_labels(tokenizer, template)
    limits = {"max_item_tokens": max_item_tokens, "max_query_tokens": max_query_tokens}
    longest = PromptEncoder(tokenizer, template, **limits).max_prompt_tokens
    ranker = {
        "schema": 1,
        "prompt": asdict(template),
        "prompt_hash": template.hash,
        "labels": asdict(labels),
        "tokenizer_hash": tokenizer_hash(path),
        **limits,
    }
    tokenizer_config = path / "tokenizer_config.json"
    if tokenizer_config.is_file():
        try:
            given = json.loads(tokenizer_config.read_text(encoding="utf-8"))
            given.pop("chat_template", None)  # of the base model: ours is a file of its own
            given = with_room(with_pad_token(given), longest)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{tokenizer_config}: {error}", "restore it") from error
        write_atomic(tokenizer_config, json.dumps(given, indent=2, ensure_ascii=False) + "\n")
    spell_rope(path)
    write_atomic(path / RANKER_FILE, json.dumps(ranker, indent=2) + "\n")
    checkpoint = open_checkpoint(path)
    encoder = checkpoint.encoder()
    enough = text_is_enough(encoder, tokenizer)
    for name, content in exported_files(template, labels).items():
        if enough:
            (path / name).parent.mkdir(exist_ok=True)
            write_atomic(path / name, content)
        else:  # of the base model: others would score with its wording
            (path / name).unlink(missing_ok=True)
    if encoder.vocab_size > checkpoint.geometry.vocab_size:
        raise CheckpointError(
            f"the tokenizer has token {encoder.vocab_size - 1}, the embedding "
            f"{checkpoint.geometry.vocab_size} rows",
            "resize_token_embeddings to the tokenizer's length, and save again",
        )
    return checkpoint


def spell_rope(path: Path) -> None:
    """Give a model directory's config.json both spellings of the rotary embedding, and take away
    its wish for an implementation of attention: transformers would look for that package."""
    config = read_config(path)
    for name in ("attn_implementation", "_attn_implementation"):
        config.pop(name, None)
    write_atomic(path / "config.json", json.dumps(with_old_rope(config), indent=2) + "\n")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a ranker checkpoint.

    Raises CheckpointError when it is incomplete, its architecture is unknown, its label tokens are
    not single, or its tokenizer is not the one that `ranker.json` was written for.
    """
    return Checkpoint(geometry=read_geometry(path), **vars(open_ranker_file(path)))


def open_ranker_file(path: Path) -> RankerFile:
    """Open `ranker.json` and the tokenizer beside it; see `open_checkpoint` for the errors."""
    try:
        ranker = json.loads((path / RANKER_FILE).read_text(encoding="utf-8"))
        template = PromptTemplate(**ranker["prompt"])
        written = Labels(**ranker["labels"])
        limits = {name: int(ranker[name]) for name in ("max_item_tokens", "max_query_tokens")}
        recorded = ranker["tokenizer_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no usable {RANKER_FILE}: {error}", "make it with `control import`"
        ) from error
    tokenizer = load_tokenizer(path)
    actual = tokenizer_hash(path)
    if actual != recorded:
        raise CheckpointError(
            f"{path}: tokenizer {actual} is not the one of {RANKER_FILE} ({recorded})",
            "restore tokenizer.json or import the checkpoint again",
        )
    labels = find_labels(tokenizer, template)
    if labels != written:
        raise CheckpointError(
            f"{path}: label ids {written} in {RANKER_FILE}, tokenizer says {labels}",
            "import the checkpoint again",
        )
    return RankerFile(
        path=path, template=template, labels=labels, tokenizer_hash=recorded, **limits
    )


def copy_ranker_files(source: Path, target: Path) -> None:
    """Copy tokenizer, `ranker.json` and what was exported beside new weights."""
    ranker = open_ranker_file(source)
    exported = exported_files(ranker.template, ranker.labels)
    for name in dict.fromkeys((*TOKENIZER_FILES, *exported, RANKER_FILE)):
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy2(source / name, target / name)
