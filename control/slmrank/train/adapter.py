"""LoRA adapters (arXiv 2106.09685) through peft: added to a ranker, kept as files, merged.

An adapter folder is peft's own format (`adapter_config.json`, `adapter_model.safetensors`), in
float16 so that one of rank 16 for the 135M model stays below 10 MB. What is merged are the rounded
values that were written, so that the checkpoint and the adapter say the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from slmrank.artifacts import write_atomic
from slmrank.errors import CheckpointError
from slmrank.model.decoder import LoadedRanker
from slmrank.model.quiet import quiet
from slmrank.prompt.template import PromptTemplate
from slmrank.spec.train import LoraSpec

NOTE_FILE = "ranker_adapter.json"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapter(ranker: LoadedRanker, spec: LoraSpec) -> Any:
    """A fresh adapter on every linear layer of the blocks; it starts as no change at all. Returns
    peft's model, which wraps the ranker's network (changed in place)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    with quiet():
        return get_peft_model(ranker.network, config)


def read_note(folder: Path, template: PromptTemplate) -> float | None:
    """The temperature that belongs to an adapter, None where it has none.

    Raises CheckpointError when the adapter was trained with another prompt: it would rank, only
    worse, and nobody would see why.
    """
    path = folder / NOTE_FILE
    if not path.is_file():
        return None  # peft's own files say nothing about a prompt
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        prompt_hash, temperature = note["prompt_hash"], note["temperature"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no note: {error}", "copy the adapter again") from error
    if prompt_hash != template.hash:
        raise CheckpointError(
            f"adapter {folder} was trained with prompt {prompt_hash}, the spec's is "
            f"{template.hash}",
            "use the prompt section that it was trained with, or train another adapter",
        )
    return None if temperature is None else float(temperature)


def write_note(folder: Path, template: PromptTemplate, temperature: float | None) -> None:
    """Keep beside an adapter what a score depends on beside the weights."""
    note = {"prompt_hash": template.hash, "temperature": temperature}
    write_atomic(folder / NOTE_FILE, json.dumps(note) + "\n")


def load_adapter(ranker: LoadedRanker, folder: Path, *, trainable: bool) -> Any:
    """An adapter from its folder, on the ranker's network (changed in place).

    Raises CheckpointError when it is not there, was made for a model of other sizes, or changes
    more than the blocks: the embedding and the label head, often one, are frozen here.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
    from safetensors import SafetensorError

    for names in (("adapter_config.json",), ("adapter_model.safetensors", "adapter_model.bin")):
        if not any((folder / one).is_file() for one in names):
            raise CheckpointError(
                f"{folder} holds no {names[0]}", "give a folder that peft's save_pretrained made"
            )
    try:
        with quiet():
            model = PeftModel.from_pretrained(
                ranker.network, str(folder), is_trainable=trainable, torch_device="cpu"
            )
        config = model.peft_config["default"]
        if config.bias != "none" or getattr(config, "lora_bias", False):
            raise ValueError("it trains biases, which are not kept here")
        # peft leaves out what a model has no layer for, and zero what the adapter lacks.
        kept = {key for key in load_peft_weights(str(folder), device="cpu") if "lora_" in key}
        if kept != set(get_peft_model_state_dict(model, save_embedding_layers=False)):
            raise ValueError("it was made for other layers")
        more = config.modules_to_save or getattr(config, "trainable_token_indices", None)
        outside = sorted(key for key in kept if ".layers." not in key)
        if more or outside:
            raise ValueError(f"it changes {more or outside[0]}, which is frozen here")
    except (RuntimeError, ValueError, KeyError, OSError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"adapter {folder} does not fit the model: {str(error)[:300]}",
            "use the base model, and the pruning, that the adapter was trained for",
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its masks are no part of a state that a run goes on from
    return model


def save_adapter(model: Any, folder: Path) -> None:
    """Round the adapter to float16 in place and write it."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half().float()
    state = {
        name: value.detach().half().contiguous().cpu()
        for name, value in model.state_dict().items()
        if "lora_" in name
    }
    with quiet():
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # The same on every machine: no path of the base model, no order of a set.
    targets = config["target_modules"]
    named = targets if isinstance(targets, str) else sorted(targets)  # a pattern is one
    config |= {"base_model_name_or_path": None, "target_modules": named}
    write_atomic(path, json.dumps(config, indent=2) + "\n")


def merge_adapter(model: Any) -> None:
    """Add the adapter to the weights that it was trained on and take it off, in place."""
    with quiet(), torch.no_grad():
        model.merge_and_unload()
