"""The Hugging Face directory that `tensorrt_llm.LLM` loads: rounded weights, unambiguous config.

TensorRT-LLM 1.2.1 brings transformers 4.57, which reads `rope_theta`; transformers 5 writes
`rope_parameters` alone, and 4.57 then falls back to a base of 10,000 without a word. The export
holds both spellings, and both of `dtype` and `torch_dtype`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.engine.trtllm.checkpoint import STORED, sizes_of
from slmrank.engine.trtllm.layout import plan_tensors, rotary
from slmrank.model.checkpoint import Checkpoint, copy_ranker_files, read_config
from slmrank.model.tensor_files import NewTensor, Part, read_index, write_tensors


def export_llmapi(checkpoint: Checkpoint, target: Path, *, dtype: str) -> dict[str, int]:
    """Write the model directory into the folder `target`; returns sizes. Streams, and refuses what
    the engine target refuses."""
    config = read_config(checkpoint.path)
    index = read_index(checkpoint.path)
    planned = plan_tensors(checkpoint.geometry, config, index)
    # The same tensors under their own names; what the plan left out (a tied head) stays out.
    used = {part.tensor.name for tensor in planned for part in tensor.parts}
    tensors = [
        NewTensor(name=name, parts=(Part(tensor=index[name]),)) for name in index if name in used
    ]
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", tensors, STORED[dtype])
    copy_ranker_files(checkpoint.path, target)
    text = json.dumps(llmapi_config(config, dtype), indent=2) + "\n"
    write_atomic(target / "config.json", text)
    return sizes_of(target / "model.safetensors")


def llmapi_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json` that transformers 4.57 and 5 read alike."""
    base, scaling = rotary(config)
    nested = dict(scaling or {"rope_type": "default"})
    nested.pop("type", None)
    return {
        **config,
        "dtype": dtype,
        "torch_dtype": dtype,
        "rope_theta": base,
        "rope_scaling": scaling,
        "rope_parameters": {**nested, "rope_theta": base},
    }
