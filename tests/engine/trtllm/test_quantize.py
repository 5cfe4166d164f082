"""Quantised TensorRT-LLM checkpoints: what is stored, and what it scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from slmrank.engine.trtllm.checkpoint import CONFIG, WEIGHTS
from slmrank.engine.trtllm.quantize import emit_quantized
from slmrank.engine.trtllm.reference import EmittedModel
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.reference import ReferenceScorer
from slmrank.spec.engine import TrtllmSpec

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(3)
CALIBRATION = [RNG.integers(1, 900, 40).astype(np.int32) for _ in range(12)]
PROMPTS = [RNG.integers(1, 900, length).astype(np.int32) for length in (8, 21, 40, 61)]
ALGORITHM = {"fp8": "FP8", "int8-sq": "W8A8_SQ_PER_CHANNEL"}
STORED = {"fp8": torch.float8_e4m3fn, "int8-sq": torch.int8}


def emit(checkpoint: Checkpoint, target: Path, quantization: str) -> None:
    spec = TrtllmSpec.model_validate({"quantization": quantization})
    emit_quantized(checkpoint, target, spec, CALIBRATION)


@pytest.mark.parametrize("quantization", ALGORITHM)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_stored_operands_give_the_weights_back_and_scores_stay_near(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, family: str, quantization: str
) -> None:
    checkpoint = make_checkpoint(family, seed=9, intermediate_size=128)
    emit(checkpoint, tmp_path, quantization)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["quantization"]["quant_algo"] == ALGORITHM[quantization]
    assert config["quantization"]["exclude_modules"] == ["lm_head"]
    assert config["rotary_base"] == 10000.0
    assert config.get("qwen_type") == (family if family == "qwen3" else None)
    stored = load_file(str(tmp_path / WEIGHTS))
    theirs = load_file(str(checkpoint.path / "model.safetensors"))
    name = "transformer.layers.1.mlp.fc"
    weight = stored[f"{name}.weight"]
    assert weight.dtype == STORED[quantization]
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    scale = stored[f"{name}.weights_scaling_factor"]
    back = weight.float() * (scale if scale.numel() == 1 else scale[:, None])
    smoothing = stored.get(f"{name}.prequant_scaling_factor")
    if smoothing is not None:
        back = back * smoothing.float()
    wanted = theirs["model.layers.1.mlp.gate_proj.weight"]
    # e4m3 has 3 mantissa bits, int8 127 steps: no wrong scale or swapped tensor is this near.
    assert float((back - wanted).abs().mean() / wanted.abs().mean()) < 0.05
    found = EmittedModel(tmp_path).label_logits(PROMPTS, checkpoint.labels)
    reference = ReferenceScorer(checkpoint).logits(PROMPTS)
    assert np.abs(found - reference).max() < 0.35 * np.abs(reference).max()
    assert np.abs(found - reference).max() > 1e-4, "nothing was quantised"
    assert not [path for path in tmp_path.iterdir() if path.name not in (CONFIG, WEIGHTS)]


def test_the_simulation_rounds_activations_as_stored(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    checkpoint = make_checkpoint("llama", seed=9, intermediate_size=128)
    emit(checkpoint, tmp_path, "int8-sq")
    before = EmittedModel(tmp_path).label_logits(PROMPTS, checkpoint.labels)
    stored = load_file(str(tmp_path / WEIGHTS))
    for name in stored:
        if name.endswith("activation_scaling_factor"):
            stored[name] = stored[name] * 64  # a range far too wide: two bits are left
    save_file(stored, str(tmp_path / WEIGHTS))
    after = EmittedModel(tmp_path).label_logits(PROMPTS, checkpoint.labels)
    assert np.abs(after - before).max() > 0.1
