"""The model directory for tensorrt_llm.LLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slmrank.engine.trtllm.llmapi_export import export_llmapi
from slmrank.model.checkpoint import Checkpoint, open_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_same_model_in_both_spellings(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, family: str
) -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    checkpoint = make_checkpoint(family, rope_parameters=parameters, seed=6)
    sizes = export_llmapi(checkpoint, tmp_path, dtype="bfloat16")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 1e6
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    theirs = load_file(str(checkpoint.path / "model.safetensors"))
    ours = load_file(str(tmp_path / "model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].to(torch.bfloat16)) for name in ours)
    assert sizes["parameters"] == sum(tensor.numel() for tensor in theirs.values())
    assert open_checkpoint(tmp_path).labels == checkpoint.labels

    ids = torch.arange(1, 60)[None]
    old = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    new = {
        key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")
    }
    found = []
    for config in (old, new):
        read = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, config=read, dtype=torch.float32)
        with torch.no_grad():
            found.append(model.eval()(ids).logits)
    assert torch.equal(found[0], found[1])
    rounded = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.bfloat16).float()
    with torch.no_grad():
        assert torch.allclose(rounded.eval()(ids).logits, found[0], atol=1e-5)
