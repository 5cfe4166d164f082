"""The paper's geometries with random weights: Qwen3-0.6B (596M) and its pruned form (375M)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from slmrank.engine.trtllm.checkpoint import emit_checkpoint
from slmrank.engine.trtllm.reference import EmittedModel
from slmrank.model.checkpoint import Checkpoint, write_ranker
from slmrank.prompt.template import template_of
from slmrank.spec.model import PromptSpec
from transformers import AutoModelForCausalLM, Qwen3Config

pytestmark = pytest.mark.slow
SIZES = {"596M": (28, 3072, 596_049_920), "375M": (20, 1536, 375_830_528)}


@pytest.fixture(params=SIZES)
def qwen3(
    request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path: Path
) -> Iterator[tuple[Checkpoint, int]]:
    blocks, ffn, parameters = SIZES[request.param]
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    folder = tmp_path / "model"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    for file in tokenizer_folder.iterdir():
        shutil.copy2(file, folder)
    yield (
        write_ranker(folder, template_of(PromptSpec()), max_item_tokens=128, max_query_tokens=96),
        parameters,
    )
    shutil.rmtree(tmp_path)


@pytest.mark.long
def test_the_emitted_files_compute_what_transformers_computes(
    qwen3: tuple[Checkpoint, int], tmp_path: Path
) -> None:
    checkpoint, parameters = qwen3
    emitted = emit_checkpoint(checkpoint, tmp_path / "out", dtype="bfloat16")
    embedding = 151_936 * 1024
    assert emitted["parameters"] == parameters + embedding  # the tied head is written out
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 150_000, length).astype(np.int32) for length in (9, 60)]
    found = EmittedModel(tmp_path / "out").last_logits(prompts)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    with torch.no_grad():
        for row, prompt in zip(found, prompts, strict=True):
            wanted = model(torch.tensor(prompt[None].astype(np.int64))).logits[0, -1]
            assert float((row - wanted).abs().max()) < 1e-5
