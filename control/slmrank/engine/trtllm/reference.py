"""What an engine computes from an emitted TensorRT-LLM checkpoint, in torch, on any machine.

Written from TensorRT-LLM's semantics over the emitted names, not from the Hugging Face model, so a
wrong mapping shows as a wrong score: `control build` compares it with transformers before it calls
a checkpoint good. Quantised linear layers are simulated: operands are rounded to the stored type
with the stored scales and multiplied in float32.

Shapes: B prompts, S tokens padded on the right, H heads, K key/value heads, D head size, V rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from slmrank.engine.trtllm.checkpoint import WEIGHTS, read_trtllm_config
from slmrank.engine.trtllm.layout import EMBEDDING, FINAL_NORM, HEAD, layer_prefix
from slmrank.model.batch_tensors import token_batches
from slmrank.model.decoder import pad_rows
from slmrank.model.placement import Placement
from slmrank.model.reference import Logits
from slmrank.prompt.labels import Labels
from slmrank.tokens import Ids

FP8_MAX = 448.0


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """y = x W^T + b, with the scales of a quantised layer where it has them."""

    weight: Tensor
    bias: Tensor | None
    activation_scale: Tensor | None = None
    smoothing: Tensor | None = None
    fp8: bool = False

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.smoothing is not None:
            inputs = inputs * self.smoothing
        if self.activation_scale is not None:
            scaled = inputs / self.activation_scale
            if self.fp8:
                rounded = scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
            else:
                rounded = scaled.round().clamp(-128, 127)
            inputs = rounded * self.activation_scale
        return functional.linear(inputs, self.weight, self.bias)


class EmittedModel:
    """An emitted checkpoint, loaded whole in float32."""

    def __init__(self, folder: Path) -> None:
        config = read_trtllm_config(folder)
        self._tensors: dict[str, Tensor] = load_file(str(folder / WEIGHTS))
        self._heads = int(config["num_attention_heads"])
        self._kv_heads = int(config["num_key_value_heads"])
        self._size = int(config["head_size"])
        self._epsilon = float(config["norm_epsilon"])
        self._frequencies = rotary_frequencies(config)
        linears = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
        self._blocks = [
            {name: self._linear(layer_prefix(block) + name) for name in linears}
            for block in range(int(config["num_hidden_layers"]))
        ]
        self._embedding, self._head = self._float(EMBEDDING), self._float(HEAD)

    @torch.no_grad()
    def last_logits(self, prompts: Sequence[Ids]) -> Tensor:
        """Logits [B, V] after the last token of each prompt: the first generation logits."""
        return functional.linear(self._last_hidden(prompts), self._head)

    @torch.no_grad()
    def label_logits(self, prompts: Sequence[Ids], labels: Labels) -> Logits:
        """Log-odds of "yes" [N] for whole prompts, as `ReferenceScorer.logits`."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        row = self._head[labels.yes] - self._head[labels.no]
        found = torch.zeros(len(prompts), dtype=torch.float64)
        for batch in token_batches(order, [len(prompt) for prompt in prompts]):
            found[batch] = (self._last_hidden([prompts[one] for one in batch]) @ row).double()
        result: Logits = found.numpy()
        return result

    def _last_hidden(self, prompts: Sequence[Ids]) -> Tensor:
        rows = pad_rows(prompts, Placement())
        hidden = self._embedding[rows.ids]
        steps = torch.arange(rows.ids.shape[1], dtype=torch.float32)
        angles = steps[:, None] * self._frequencies[None]
        turn = torch.cat([angles, angles], dim=-1)
        rotary = (turn.cos(), turn.sin())
        for number, block in enumerate(self._blocks):
            prefix = layer_prefix(number)
            hidden = hidden + self._attention(
                prefix, block, self._norm(hidden, prefix + "input_layernorm"), rotary
            )
            hidden = hidden + _mlp(block, self._norm(hidden, prefix + "post_layernorm"))
        last = hidden[torch.arange(len(prompts)), rows.lengths - 1]
        return self._normed(last, self._float(FINAL_NORM))

    def _attention(
        self,
        prefix: str,
        block: Mapping[str, _Linear],
        normed: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        count, size, _ = normed.shape
        fused = block["attention.qkv"](normed)
        widths = [
            self._heads * self._size,
            self._kv_heads * self._size,
            self._kv_heads * self._size,
        ]
        query, key, value = (
            one.view(count, size, -1, self._size) for one in torch.split(fused, widths, dim=-1)
        )
        if prefix + "attention.q_layernorm.weight" in self._tensors:
            query = self._norm(query, prefix + "attention.q_layernorm")
            key = self._norm(key, prefix + "attention.k_layernorm")
        query, key = (_turned(one.transpose(1, 2), rotary) for one in (query, key))
        groups = self._heads // self._kv_heads
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.transpose(1, 2).repeat_interleave(groups, dim=1),
            is_causal=True,
        )
        return block["attention.dense"](mixed.transpose(1, 2).reshape(count, size, -1))

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        return self._normed(hidden, self._float(name + ".weight"))

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return hidden * torch.rsqrt(variance + self._epsilon) * weight

    def _float(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def _linear(self, name: str) -> _Linear:
        weight = self._tensors.pop(name + ".weight")
        bias = self._tensors.get(name + ".bias")
        scale = self._tensors.get(name + ".weights_scaling_factor")
        wide = weight.float()
        if scale is not None:
            wide = wide * (scale if scale.numel() == 1 else scale[:, None])
        smoothing = self._tensors.get(name + ".prequant_scaling_factor")
        return _Linear(
            weight=wide,
            bias=None if bias is None else bias.float(),
            activation_scale=self._tensors.get(name + ".activation_scaling_factor"),
            smoothing=None if smoothing is None else smoothing.float(),
            fp8=weight.dtype == torch.float8_e4m3fn,
        )


def rotary_frequencies(config: Mapping[str, Any]) -> Tensor:
    """Angular frequencies [D / 2] of the rotary embedding, with linear or llama3 scaling."""
    size, base = int(config["head_size"]), float(config["rotary_base"])
    frequencies = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaling = config.get("rotary_scaling")
    if not scaling:
        return frequencies
    factor = float(scaling["factor"])
    if scaling["type"] == "linear":
        return frequencies / factor
    # llama3: low frequencies are stretched, high ones kept, those between are blended.
    original = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = original * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def _mlp(block: Mapping[str, _Linear], normed: Tensor) -> Tensor:
    return block["mlp.proj"](functional.silu(block["mlp.fc"](normed)) * block["mlp.gate"](normed))


def _turned(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """gpt_neox rotation: first half against second half."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotary[0] + torch.cat([-second, first], dim=-1) * rotary[1]
