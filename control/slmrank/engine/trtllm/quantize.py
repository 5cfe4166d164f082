"""Quantised TensorRT-LLM checkpoints, calibrated by nvidia-modelopt: FP8 or INT8 SmoothQuant.

modelopt finds the scales on real prompts and packs weights and scales; the configuration stays
ours, because its own lacks what the Qwen classes need (qwen_type, rotary base). The whole model is
in memory here, unlike in the plain emitter. Pinned to modelopt 0.37.0, the version that
TensorRT-LLM 1.2.1 pins; later ones removed this exporter.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.engine.trtllm.checkpoint import CONFIG, STORED, WEIGHTS, sizes_of
from slmrank.engine.trtllm.compatibility import MODELOPT
from slmrank.engine.trtllm.layout import HEAD, plan_tensors, trtllm_config
from slmrank.engine.trtllm.plan import QUANT_ALGORITHMS
from slmrank.errors import EngineError, needs
from slmrank.model.checkpoint import Checkpoint, read_config
from slmrank.model.quiet import quiet
from slmrank.model.reference import load_model
from slmrank.model.tensor_files import read_header, read_index
from slmrank.spec.engine import TrtllmSpec
from slmrank.tokens import Ids

_STORED_WEIGHT = {"fp8": "F8_E4M3", "int8-sq": "I8"}
_SCALES = (".weights_scaling_factor", ".activation_scaling_factor", ".prequant_scaling_factor")


def emit_quantized(
    checkpoint: Checkpoint, target: Path, spec: TrtllmSpec, calibration: Sequence[Ids]
) -> dict[str, int]:
    """Calibrate on whole prompts and write the quantised checkpoint into the folder `target`;
    returns sizes.

    Raises MissingDependencyError without nvidia-modelopt, CheckpointError as the plain emitter, and
    EngineError when the exporter leaves out or reshapes a tensor.
    """
    quantization, dtype = spec.quantization, spec.dtype
    config = read_config(checkpoint.path)
    planned = plan_tensors(checkpoint.geometry, config, read_index(checkpoint.path))
    made = trtllm_config(checkpoint.geometry, config, dtype=dtype, logits_dtype=spec.logits_dtype)
    made["quantization"] = {
        "quant_algo": QUANT_ALGORITHMS[quantization],
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
    }
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        with quiet():
            _export(checkpoint, Path(scratch), quantization, dtype, calibration)
        shutil.move(Path(scratch) / WEIGHTS, target / WEIGHTS)
    shapes = {tensor.name: tensor.shape for tensor in planned}
    _check(target, shapes, STORED[dtype], _STORED_WEIGHT[quantization])
    write_atomic(target / CONFIG, json.dumps(made, indent=2) + "\n")
    return sizes_of(target / WEIGHTS)


def _export(
    checkpoint: Checkpoint, target: Path, quantization: str, dtype: str, calibration: Sequence[Ids]
) -> None:
    import torch

    with needs(f"quantization {quantization} needs nvidia-modelopt {MODELOPT}", "quantize"):
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_tensorrt_llm_checkpoint
    model: Any = load_model(checkpoint).network.to(getattr(torch, dtype))
    recipe = mtq.FP8_DEFAULT_CFG if quantization == "fp8" else mtq.INT8_SMOOTHQUANT_CFG

    def show_prompts(one: Any) -> None:
        for ids in calibration:
            one(torch.as_tensor(ids, dtype=torch.long)[None])

    with torch.inference_mode():
        mtq.quantize(model, recipe, show_prompts)
        # "llama" names the tensor layout; it is the same for Qwen, with its q and k norms.
        export_tensorrt_llm_checkpoint(
            model, "llama", getattr(torch, dtype), export_dir=target, inference_tensor_parallel=1
        )


def _check(target: Path, shapes: dict[str, tuple[int, ...]], plain: str, quantized: str) -> None:
    """Every planned tensor is there with its shape, linear layers in the quantised type."""
    header = read_header(target / WEIGHTS)
    wrong = [
        name for name, shape in shapes.items() if name not in header or header[name].shape != shape
    ]
    for name in (shapes.keys() & header.keys()) - {HEAD}:
        inside = name.endswith(".weight") and len(shapes[name]) == 2 and ".layers." in name
        if header[name].dtype != (quantized if inside else plain):
            wrong.append(name)
    wrong += [name for name in header if name not in shapes and not name.endswith(_SCALES)]
    if wrong:
        raise EngineError(
            f"nvidia-modelopt wrote another checkpoint than planned: {sorted(wrong)[:3]}",
            f"install nvidia-modelopt=={MODELOPT}",
        )
