"""Prune a ranker: OSSCAR on the MLP neurons of every block, front to back, and fewer blocks.

Each block is pruned on inputs that already went through the pruned blocks before it, and the
calibration activations are carried from block to block: running the whole model again for each
layer took 274 s on the 135M model instead of a fraction of that (`reference/data.md`).
The result keeps one width for all blocks, so it is an ordinary model of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slmrank.compress.osscar import Matrix, Method, Pruned, prune_neurons
from slmrank.errors import SpecError
from slmrank.model.decoder import causal_mask, pad_rows, run_block
from slmrank.prompt.encoder import Ids

BATCH_PROMPTS = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """`ffn` neurons and the first `blocks` blocks are kept."""

    ffn: int
    blocks: int
    method: Method
    damping: float
    neurons_per_round: int


@dataclass(kw_only=True)
class _Batch:
    """Calibration state of some prompts: hidden states [B, S, E], real-token mask [B, S]."""

    hidden: Tensor
    real: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor


def prune_model(
    model: Any, prompts: Sequence[Ids], settings: PruneSettings, progress: Progress
) -> dict[str, Any]:
    """Prune in place and shrink the model; returns figures (parameters, error per block).

    `prompts` are whole prompts (prefix and item). Raises SpecError when more neurons or blocks are
    asked for than the model has.
    """
    config = model.config
    if settings.blocks > config.num_hidden_layers or settings.ffn > config.intermediate_size:
        raise SpecError(
            f"prune keeps {settings.blocks} blocks of {settings.ffn} neurons, the model has "
            f"{config.num_hidden_layers} blocks of {config.intermediate_size}",
            "lower prune.blocks and prune.ffn",
        )
    before = count_parameters(model)
    model.model.layers = model.model.layers[: settings.blocks]
    errors: list[dict[str, float]] = []
    with torch.no_grad():
        batches = _embed(model, prompts)
        for index, block in enumerate(model.model.layers):
            gram = _gram(block, batches)
            errors.append(_prune_block(block, gram, settings))
            for batch in batches:
                batch.hidden = _advance(block, batch)
            progress(index + 1, settings.blocks)
    _shrink_config(config, settings)
    after = count_parameters(model)
    return {
        "parameters_before": before["total"],
        "parameters_after": after["total"],
        "block_parameters_before": before["blocks"],
        "block_parameters_after": after["blocks"],
        "block_parameters_removed": round(1 - after["blocks"] / before["blocks"], 4),
        "calibration_tokens": sum(len(prompt) for prompt in prompts),
        "mean_relative_error": {
            name: round(float(np.mean([one[name] for one in errors])), 5) for name in errors[0]
        },
        "relative_error_per_block": [round(one[settings.method], 5) for one in errors],
    }


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters in all (a tied head counts once) and in the blocks alone."""
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    return {"total": sum(p.numel() for p in model.parameters()), "blocks": blocks}


def _embed(model: Any, prompts: Sequence[Ids]) -> list[_Batch]:
    ordered = sorted(prompts, key=len)
    batches = []
    for start in range(0, len(ordered), BATCH_PROMPTS):
        rows = pad_rows(ordered[start : start + BATCH_PROMPTS])
        size = rows.ids.shape[1]
        hidden = model.model.embed_tokens(rows.ids)
        positions = torch.arange(size)[None]
        batches.append(
            _Batch(
                hidden=hidden,
                real=torch.arange(size)[None] < rows.lengths[:, None],
                rotary=model.model.rotary_emb(hidden, positions),
                mask=causal_mask(size),
            )
        )
    return batches


def _advance(block: Any, batch: _Batch) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = run_block(block, batch.hidden, batch.rotary, batch.mask)
    return hidden.float()


def _gram(block: Any, batches: Sequence[_Batch]) -> Matrix:
    """X^T X [p, p] of the down projection's inputs over all real tokens."""
    gathered: list[Tensor] = []
    handle = block.mlp.down_proj.register_forward_pre_hook(
        lambda _module, arguments: gathered.append(arguments[0])
    )
    width = block.mlp.down_proj.in_features
    gram = np.zeros((width, width))
    try:
        for batch in batches:
            _advance(block, batch)
            rows = gathered.pop().float()[batch.real].numpy()
            gram += rows.T @ rows
    finally:
        handle.remove()
    return gram


def _prune_block(block: Any, gram: Matrix, settings: PruneSettings) -> dict[str, float]:
    """Prune one block's MLP; returns the relative error of the method and of both baselines."""
    weights = block.mlp.down_proj.weight.T.double().numpy()
    methods: tuple[Method, ...] = ("osscar", "magnitude_refit", "magnitude")
    results: dict[str, Pruned] = {
        method: prune_neurons(
            gram,
            weights,
            settings.ffn,
            method=method,
            damping=settings.damping,
            per_round=settings.neurons_per_round,
        )
        for method in methods
    }
    chosen = results[settings.method]
    kept = torch.from_numpy(chosen.kept)
    down = block.mlp.down_proj
    for name in ("gate_proj", "up_proj"):
        _keep_rows(getattr(block.mlp, name), kept)
    down.weight = nn.Parameter(torch.from_numpy(chosen.weights.T.copy()).to(down.weight.dtype))
    down.in_features = settings.ffn
    return {method: result.relative_error for method, result in results.items()}


def _keep_rows(linear: Any, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[kept].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept].clone())
    linear.out_features = len(kept)


def _shrink_config(config: Any, settings: PruneSettings) -> None:
    config.num_hidden_layers = settings.blocks
    config.intermediate_size = settings.ffn
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types)[: settings.blocks]
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = min(config.max_window_layers, settings.blocks)
