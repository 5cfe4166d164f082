"""Our decoder pass against transformers, and sharing a prefix against scoring alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from slmrank.model import batch_tensors
from slmrank.model.decoder import pad_rows, score_items
from slmrank.model.reference import ReferenceScorer, load_model
from slmrank.prompt.corpus import EncodedQuery

from tests.conftest import FAMILIES

RNG = np.random.default_rng(0)


def ids(length: int) -> np.ndarray[Any, Any]:
    return RNG.integers(1, 900, length).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_shared_prefix_equals_scoring_alone(
    make_checkpoint: Callable[..., Any], family: str, tied: bool
) -> None:
    checkpoint = make_checkpoint(family, tie_word_embeddings=tied)
    prefixes = [ids(5), ids(19)]
    owners = [0, 1, 1, 0, 1]
    items = [ids(length) for length in (1, 30, 8, 17, 2)]
    ranker = load_model(checkpoint)
    with torch.no_grad():
        shared = score_items(
            ranker,
            pad_rows(prefixes, ranker.placement),
            pad_rows(items, ranker.placement),
            torch.tensor(owners),
        )
    alone = ReferenceScorer(checkpoint).logits(
        [np.concatenate([prefixes[o], item]) for o, item in zip(owners, items, strict=True)]
    )
    assert np.abs(shared.numpy() - alone).max() < 1e-4
    assert alone.std() > 0.01


def test_mixed_precision_ends_before_the_label_head(make_checkpoint: Callable[..., Any]) -> None:
    ranker = load_model(make_checkpoint("llama"))
    rows = pad_rows([ids(9) for _ in range(12)], ranker.placement)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = score_items(ranker, rows, rows, torch.arange(12))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_the_reference_is_the_label_logit_difference(make_checkpoint: Callable[..., Any]) -> None:
    checkpoint = make_checkpoint("llama")
    prompt = ids(12)
    with torch.no_grad():
        row = load_model(checkpoint).network(torch.tensor(prompt)[None].long()).logits[0, -1]
    expected = float(row[checkpoint.labels.yes] - row[checkpoint.labels.no])
    assert ReferenceScorer(checkpoint).logits([prompt])[0] == pytest.approx(expected, abs=1e-5)


def test_the_reference_does_not_depend_on_the_batch(make_checkpoint: Callable[..., Any]) -> None:
    scorer = ReferenceScorer(make_checkpoint("qwen3"))
    prompts = [ids(length) for length in (40, 3, 77, 12)]
    together = scorer.logits(prompts)
    alone = [scorer.logits([prompt])[0] for prompt in prompts]
    assert np.abs(together - alone).max() < 1e-4


def test_a_querys_items_in_several_passes_score_as_alone(
    make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint("qwen3")
    encoder = checkpoint.encoder()
    items = tuple(ids(length) for length in (9, 30, 3, 17, 2, 25))
    query = EncodedQuery.unjudged("night nurse", encoder.prefix("night nurse"), items)
    monkeypatch.setattr(batch_tensors, "BATCH_TOKENS", 40)
    found = batch_tensors.query_logits(load_model(checkpoint), query, mixed=False)
    alone = ReferenceScorer(checkpoint).logits(query.prompts())
    assert np.abs(found - alone).max() < 1e-4
    assert alone.std() > 0.01
