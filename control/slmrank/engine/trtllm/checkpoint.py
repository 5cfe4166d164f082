"""Write a TensorRT-LLM checkpoint from a ranker checkpoint, tensor by tensor, and read it back.

No tensorrt_llm import: the directory is `rank0.safetensors` and `config.json`, written last. The
oracle in the tests is NVIDIA's own exporter (nvidia-modelopt), bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.engine.trtllm.layout import plan_tensors, trtllm_config
from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import Checkpoint, read_config
from slmrank.model.tensor_files import read_header, read_index, write_tensors

WEIGHTS = "rank0.safetensors"
CONFIG = "config.json"
STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def emit_checkpoint(
    checkpoint: Checkpoint, target: Path, *, dtype: str, logits_dtype: str = "float32"
) -> dict[str, int]:
    """Write the TensorRT-LLM checkpoint of `checkpoint` into the folder `target`; returns sizes.

    `dtype`: bfloat16, float16, or float32 (lossless, for comparisons). The peak memory does not
    grow with the model. Raises CheckpointError for whatever an engine could not hold or would
    misread; see `trtllm_layout`. `checkpoint` was opened, so its label tokens are right.
    """
    config = read_config(checkpoint.path)
    planned = plan_tensors(checkpoint.geometry, config, read_index(checkpoint.path))
    made = trtllm_config(checkpoint.geometry, config, dtype=dtype, logits_dtype=logits_dtype)
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / WEIGHTS, planned, STORED[dtype])
    write_atomic(target / CONFIG, json.dumps(made, indent=2) + "\n")
    return sizes_of(target / WEIGHTS)


def sizes_of(weights: Path) -> dict[str, int]:
    """Of a file of weights; `parameters` counts a tied head twice where the file has it twice."""
    header = read_header(weights)
    counted = (one for name, one in header.items() if name.endswith(("weight", "bias")))
    parameters = sum(one.elements for one in counted)
    return {"tensors": len(header), "parameters": parameters, "bytes": weights.stat().st_size}


def read_trtllm_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an emitted checkpoint. Raises CheckpointError when it is another thing, such
    as a Hugging Face directory (which TensorRT-LLM meets with a bare KeyError)."""
    config = read_config(folder)
    if "architecture" not in config:
        raise CheckpointError(
            f"{folder} is not a TensorRT-LLM checkpoint: config.json has no architecture",
            "emit one with `control build --target trtllm-engine`",
        )
    return config
