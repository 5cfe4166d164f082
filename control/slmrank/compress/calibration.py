"""Calibration prompts on their way through a model, one layer at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slmrank.compress.osscar import Matrix
from slmrank.model.decoder import (
    LoadedRanker,
    causal_mask,
    group_mask,
    label_row,
    last_hidden,
    pad_rows,
    run_attention,
    run_layer,
    run_mlp,
)
from slmrank.tokens import Ids

BATCH_PROMPTS = 32
MEMORY_BYTES = 2 << 30


@dataclass(kw_only=True)
class Batch:
    """Some prompts: hidden states [B, S, E], real-token mask [B, S], lengths [B]."""

    hidden: Tensor
    real: Tensor
    lengths: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor


def embed(
    ranker: LoadedRanker,
    prompts: Sequence[Ids],
    scratch: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Batch]:
    """The prompts before the first layer, in batches of similar length.

    States of more than `memory_bytes` (4 bytes x tokens x E) lie in a file in the folder `scratch`,
    mapped into memory, so that the calibration set may be larger than the memory.
    """
    ordered = sorted(prompts, key=len)
    model, device = ranker.network.model, ranker.placement.device
    width = ranker.network.config.hidden_size
    folder = scratch if 4 * width * sum(map(len, prompts)) > memory_bytes else None
    batches = []
    # Once for each length: one of every batch took 41 bytes a token, 1.6 GB of 40 million.
    shared: dict[int, tuple[tuple[Tensor, Tensor], Tensor]] = {}
    for start in range(0, len(ordered), BATCH_PROMPTS):
        rows = pad_rows(ordered[start : start + BATCH_PROMPTS], ranker.placement)
        steps = torch.arange(rows.ids.shape[1], device=device)[None]
        hidden = model.embed_tokens(rows.ids)
        size = rows.ids.shape[1]
        if size not in shared:
            mask = group_mask(ranker.network, causal_mask(size, device))
            shared[size] = (model.rotary_emb(hidden, steps), mask)
        if folder is not None:
            hidden = _mapped(hidden, folder / f"states-{start}.bin")
        batches.append(
            Batch(
                hidden=hidden,
                real=steps < rows.lengths[:, None],
                lengths=rows.lengths,
                rotary=shared[size][0],
                mask=shared[size][1],
            )
        )
    return batches


def _mapped(hidden: Tensor, path: Path) -> Tensor:
    """A copy of the states in a file that is mapped into memory; the file has no name any more, so
    that it goes with its last user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # to write into a hole on a full disk would end the process
        os.posix_fallocate(file.fileno(), 0, 4 * hidden.numel())
    kept = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=torch.float32)
    path.unlink()
    found = kept.view(hidden.shape)
    found.copy_(hidden)
    return found


def attend_all(ranker: LoadedRanker, layer: Any, batches: Sequence[Batch]) -> None:
    """Take every batch through the attention of a layer, in place."""
    for batch in batches:
        batch.hidden.copy_(advance(ranker, layer, batch, batch.hidden, run_attention))


def feed_all(
    ranker: LoadedRanker,
    layer: Any,
    batches: Sequence[Batch],
    neurons: Sequence[Tensor] = (),
    kept: Sequence[int] = (),
) -> None:
    """Take every batch through the MLP of a layer whose attention it passed, in place; what its
    `kept` neurons give is not computed again where `neurons` of each batch are at hand."""
    places = torch.as_tensor(kept, device=ranker.placement.device)
    for number, batch in enumerate(batches):
        with ranker.placement.mixed_precision():
            hidden = batch.hidden.to(ranker.placement.device)
            if neurons:
                after = hidden + layer.mlp.down_proj(neurons[number][..., places])
            else:
                after = run_mlp(layer, hidden)
            batch.hidden.copy_(after)


def advance(
    ranker: LoadedRanker, layer: Any, batch: Batch, hidden: Tensor, run: Any = run_layer
) -> Tensor:
    """Hidden states [B, S, E] after one layer, or after its first half (`run_attention`)."""
    hidden = hidden.to(ranker.placement.device)
    with ranker.placement.mixed_precision():
        after: Tensor = run(layer, hidden, batch.rotary, batch.mask)[0]
    return after.float()


def gram_of_heads(ranker: LoadedRanker, layer: Any, batches: Sequence[Batch]) -> Matrix:
    """X^T X [H D, H D] of the heads' outputs, of batches before the layer."""
    output = layer.self_attn.o_proj
    gathered: list[Tensor] = []
    handle = output.register_forward_pre_hook(
        lambda _module, arguments: gathered.append(arguments[0])
    )

    def heads(batch: Batch) -> Tensor:
        advance(ranker, layer, batch, batch.hidden, run_attention)
        return gathered.pop()

    try:
        return _gram(output.in_features, heads, batches)
    finally:
        handle.remove()


def gram_of_neurons(
    ranker: LoadedRanker, layer: Any, batches: Sequence[Batch], memory_bytes: int = MEMORY_BYTES
) -> tuple[Matrix, list[Tensor]]:
    """X^T X [I, I] of the MLP's neurons, of batches that passed the layer's attention, and X
    [B, S, I] of each batch; none where they would take more than so many bytes."""
    mlp, held = layer.mlp, []
    width = mlp.down_proj.in_features
    room = 4 * width * sum(batch.real.numel() for batch in batches) <= memory_bytes

    def neurons(batch: Batch) -> Tensor:
        with ranker.placement.mixed_precision():
            normed = layer.post_attention_layernorm(batch.hidden.to(ranker.placement.device))
            found: Tensor = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        if room:
            held.append(found)
        return found

    return _gram(width, neurons, batches), held


def _gram(width: int, inputs: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Matrix:
    """The sum over all real tokens: products of a batch on the device in float32, their sum in
    float64."""
    gram = np.zeros((width, width))
    for batch in batches:
        found = inputs(batch).float()
        rows = found[batch.real.to(found.device)]
        gram += (rows.T @ rows).cpu().numpy()
    return gram


def probabilities(ranker: LoadedRanker, batch: Batch, hidden: Tensor) -> Tensor:
    """p [B] from the hidden states after the last layer."""
    final = last_hidden(ranker.network, hidden, batch.lengths)
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
