"""A ranker checkpoint in sentence-transformers: the same scores, without our code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.model.checkpoint import write_ranker
from slmrank.model.export import exported_files
from slmrank.model.reference import ReferenceScorer, load_model, save_model
from slmrank.prompt.template import template_of
from slmrank.spec.model import BaseSpec, PromptSpec, wording

from tests.conftest import FAMILIES

PAIRS = [
    ("night nurse", "Job: Nurse\nReno, NV\nCare for patients at night."),
    ('  c++   "expert" {x} ', "You write C++ {{ x }}\n{% raw %} all%"),
    ("x", "Job: x"),
    ("\u7a0b\u5e8f\u5458", "d\u00e9veloppeur \u2013 CDI"),
]


def expected(checkpoint: Any) -> Any:
    encoder = checkpoint.encoder(400)
    prompts = [
        np.concatenate([encoder.prefix(query), encoder.item(encoder.body(text)).ids])
        for query, text in PAIRS
    ]
    return ReferenceScorer(checkpoint).probabilities(prompts)


def predicted(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder  # five seconds, also for tests that skip this

    return CrossEncoder(str(folder), device="cpu").predict(PAIRS)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_the_same_scores(
    make_checkpoint: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(family)
    save_model(load_model(checkpoint), checkpoint, tmp_path)
    assert predicted(tmp_path / "checkpoint") == pytest.approx(expected(checkpoint), abs=1e-4)


@pytest.mark.slow
def test_a_presets_template_goes_along(
    make_model: Callable[..., Path], qwen_tokenizer: Path, tmp_path: Path
) -> None:
    folder = make_model(
        "qwen3", vocab_size=151_744, num_hidden_layers=2, max_position_embeddings=1024
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(qwen_tokenizer / name, folder / name)
    template = template_of(wording(BaseSpec(preset="qwen3-reranker"), PromptSpec()))
    checkpoint = write_ranker(folder, template, max_item_tokens=256, max_query_tokens=64)
    assert predicted(folder) == pytest.approx(expected(checkpoint), abs=1e-4)
    # `.` and the line end behind it are one token: sent as text, scores were off by 0.02.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for name in exported_files(template, checkpoint.labels):
        (other / name).unlink()
    plain = template_of(wording(BaseSpec(), PromptSpec()))
    write_ranker(other, plain, max_item_tokens=256, max_query_tokens=64)
    assert not (other / "modules.json").exists()
    # Nor may the wording of the model that it comes from be taken for its own.
    write_ranker(folder, plain, max_item_tokens=256, max_query_tokens=64)
    assert not (folder / "modules.json").exists()
    assert not (folder / "chat_template.jinja").exists()
    assert "chat_template" not in (folder / "tokenizer_config.json").read_text()
