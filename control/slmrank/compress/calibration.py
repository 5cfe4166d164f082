"""Calibration prompts on their way through a model, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slmrank.compress.osscar import Matrix
from slmrank.model.decoder import LoadedRanker, causal_mask, label_row, pad_rows, run_layer
from slmrank.tokens import Ids

BATCH_PROMPTS = 32


@dataclass(kw_only=True)
class Batch:
    """Some prompts: hidden states [B, S, E], real-token mask [B, S], lengths [B]."""

    hidden: Tensor
    real: Tensor
    lengths: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor


def embed(ranker: LoadedRanker, prompts: Sequence[Ids]) -> list[Batch]:
    """The prompts before the first layer, in batches of similar length."""
    ordered = sorted(prompts, key=len)
    model, device = ranker.network.model, ranker.placement.device
    batches = []
    for start in range(0, len(ordered), BATCH_PROMPTS):
        rows = pad_rows(ordered[start : start + BATCH_PROMPTS], ranker.placement)
        steps = torch.arange(rows.ids.shape[1], device=device)[None]
        hidden = model.embed_tokens(rows.ids)
        batches.append(
            Batch(
                hidden=hidden,
                real=steps < rows.lengths[:, None],
                lengths=rows.lengths,
                rotary=model.rotary_emb(hidden, steps),
                mask=causal_mask(rows.ids.shape[1], device),
            )
        )
    return batches


def advance(ranker: LoadedRanker, layer: Any, batch: Batch, hidden: Tensor) -> Tensor:
    """Hidden states [B, S, E] after one layer."""
    with ranker.placement.mixed_precision():
        after, _ = run_layer(layer, hidden, batch.rotary, batch.mask)
    return after.float()


def gram_of(ranker: LoadedRanker, layer: Any, linear: Any, batches: Sequence[Batch]) -> Matrix:
    """X^T X [p, p] of the inputs of one of the layer's linear parts over all real tokens: products
    of a batch on the device in float32, their sum in float64."""
    gathered: list[Tensor] = []
    handle = linear.register_forward_pre_hook(
        lambda _module, arguments: gathered.append(arguments[0])
    )
    gram = np.zeros((linear.in_features, linear.in_features))
    try:
        for batch in batches:
            advance(ranker, layer, batch, batch.hidden)
            rows = gathered.pop().float()[batch.real]
            gram += (rows.T @ rows).cpu().numpy()
    finally:
        handle.remove()
    return gram


def probabilities(ranker: LoadedRanker, batch: Batch, hidden: Tensor) -> Tensor:
    """p [B] from the hidden states after the last layer."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    final = ranker.network.model.norm(hidden[rows, batch.lengths - 1])
    logits: Tensor = final.float() @ label_row(ranker).float()
    return logits.sigmoid()


def layer_importance(ranker: LoadedRanker, prompts: Sequence[Ids]) -> list[float]:
    """How much the ranker's p moves when a layer alone is left out: mean |dp| by layer.

    Half a forward pass for every layer, and the states before each of them in memory (4 bytes x
    tokens x E x layers).
    """
    layers = list(ranker.network.model.layers)
    moved = np.zeros(len(layers))
    for batch in embed(ranker, prompts):
        before = [batch.hidden]
        for layer in layers:
            before.append(advance(ranker, layer, batch, before[-1]))
        whole = probabilities(ranker, batch, before[-1])
        for index in range(len(layers)):
            hidden = before[index]
            for layer in layers[index + 1 :]:
                hidden = advance(ranker, layer, batch, hidden)
            moved[index] += float((probabilities(ranker, batch, hidden) - whole).abs().sum())
    return [float(value) for value in moved / len(prompts)]
