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

ADAPTER_FOLDER = "adapter"  # of an artifact that holds one
TRAINED_FOR = "trained_for.json"  # what a score depends on beside the weights
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapter(ranker: LoadedRanker, spec: LoraSpec) -> Any:
    """A fresh adapter on every linear layer of the blocks; it starts as no change at all. Returns
    peft's model, which wraps the ranker's network (changed in place)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    with quiet():
        return get_peft_model(ranker.network, config)


def check_wording(folder: Path, template: PromptTemplate) -> None:
    """Raises CheckpointError when an adapter was trained with another prompt: it would rank, only
    worse, and nobody would see why."""
    path = folder / TRAINED_FOR
    if not path.is_file():
        return  # peft's own files say nothing about a prompt
    trained = json.loads(path.read_text(encoding="utf-8"))["prompt_hash"]
    if trained != template.hash:
        raise CheckpointError(
            f"adapter {folder} was trained with prompt {trained}, the spec's is {template.hash}",
            "use the prompt section that it was trained with, or train another adapter",
        )


def note_wording(folder: Path, template: PromptTemplate) -> None:
    """Keep the prompt's hash beside the adapter."""
    write_atomic(folder / TRAINED_FOR, json.dumps({"prompt_hash": template.hash}) + "\n")


def load_adapter(ranker: LoadedRanker, folder: Path, *, trainable: bool) -> Any:
    """An adapter from its folder, on the ranker's network (changed in place).

    Raises CheckpointError when it is not there or was made for a model of other sizes.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no adapter_config.json",
            "give a folder that peft's save_pretrained made",
        )
    try:
        with quiet():
            model = PeftModel.from_pretrained(
                ranker.network, str(folder), is_trainable=trainable, torch_device="cpu"
            )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"adapter {folder} does not fit the model: {str(error)[:300]}",
            "use the base model, and the pruning, that the adapter was trained for",
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
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


def merge_adapter(model: Any) -> None:
    """Add the adapter to the weights that it was trained on and take it off, in place."""
    with quiet(), torch.no_grad():
        model.merge_and_unload()
