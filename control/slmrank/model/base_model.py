"""Bring a base model in: SmolLM2-135M-Instruct from its package, or any local checkpoint.

The result is a plain Hugging Face checkpoint in float32 safetensors with a fast tokenizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import TOKENIZER_FILES, read_geometry
from slmrank.model.quiet import quiet


def import_gguf(gguf: Path, target: Path) -> None:
    """De-quantise a GGUF file into a plain checkpoint (transformers reads it).

    transformers 4.57 builds a wrong tokenizer for SmolLM2's file (adds `<|im_start|>`, loses eos);
    5.x is right, hence the floor in pyproject.toml.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        tokenizer.save_pretrained(target)


def import_directory(source: Path, target: Path) -> None:
    """Copy a local Llama, Qwen2 or Qwen3 checkpoint.

    Raises CheckpointError for another architecture, missing weights or a slow tokenizer.
    """
    read_geometry(source)
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{source} has no *.safetensors", "save the model with safe_serialization=True"
        )
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{source} has no tokenizer.json", "save the checkpoint with a fast tokenizer"
        )
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    for name in (*names, *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    for path in weights:
        shutil.copy2(path, target / path.name)
