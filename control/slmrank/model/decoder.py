"""The decoder forward pass that everything but the reference scorer runs: training, evaluation,
calibration and the graph that becomes an engine.

It reads the weights of a Hugging Face Llama, Qwen2 or Qwen3 model and differs from its `forward` in
two ways: keys and values of a shared prefix enter explicitly, and only the last position of each
item reaches the one-row head p = sigmoid(h . (W_yes - W_no)). transformers' cache classes do not
convert to OpenVINO; explicit tensors do.

Shapes: B rows, S tokens, P prefix tokens, H query heads, K key/value heads, D head size, E hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmrank.prompt.labels import Labels

KeyValue = tuple[Tensor, Tensor]
LENGTH_STEP = 8
PACKED_STEP = 64


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Rows of unequal length in one matrix: ids [B, S] padded with 0 on the right, lengths [B]."""

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The real tokens of padded rows as one list of T, for all work that is done token by token.

    A training batch of 16 items pads a quarter more tokens than it has. T is rounded up to a
    multiple of PACKED_STEP with tokens that nothing reads, because oneDNN compiles for each T.
    """

    rows: int
    size: int
    gather: Tensor
    scatter: Tensor
    last: Tensor

    def pack(self, padded: Tensor) -> Tensor:
        """[B, S, W] -> [T, W]"""
        return padded.reshape(self.rows * self.size, -1)[self.gather]

    def unpack(self, packed: Tensor) -> Tensor:
        """[T, W] -> [B, S, W], zero where there is no token"""
        flat = packed.new_zeros(self.rows * self.size + 1, packed.shape[-1])
        filled = flat.index_copy(0, self.scatter, packed)
        return filled[:-1].view(self.rows, self.size, -1)


def make_packing(lengths: Tensor, size: int) -> Packing:
    """The packing of rows with these lengths [B], padded to `size`."""
    rows = len(lengths)
    real = torch.arange(size)[None] < lengths[:, None]
    index = real.flatten().nonzero().flatten()
    spare = -len(index) % PACKED_STEP
    return Packing(
        rows=rows,
        size=size,
        gather=torch.cat([index, index.new_zeros(spare)]),
        scatter=torch.cat([index, index.new_full((spare,), rows * size)]),
        last=lengths.cumsum(0) - 1,
    )


def pad_rows(rows: Sequence[Any]) -> Padded:
    """Pad integer sequences on the right, to a multiple of LENGTH_STEP.

    oneDNN compiles its kernels for each new shape; with few widths a training step on two cores
    takes 2.8 s instead of 3.0 s at the same number of real tokens.
    """
    lengths = [len(row) for row in rows]
    width = -(-max(lengths) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : lengths[index]] = torch.as_tensor(row, dtype=torch.long)
    return Padded(ids=ids, lengths=torch.tensor(lengths))


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Boolean [S, S], True where row may see column."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def item_mask(prefix_lengths: Tensor, prefix_size: int, item_size: int) -> Tensor:
    """Boolean [B, 1, S, P + S]: an item sees its query's prefix and itself up to the token."""
    device = prefix_lengths.device
    seen = torch.arange(prefix_size, device=device)[None, :] < prefix_lengths[:, None]
    rows = prefix_lengths.shape[0]
    left = seen[:, None, None, :].expand(rows, 1, item_size, prefix_size)
    right = causal_mask(item_size, device)[None, None].expand(rows, 1, item_size, item_size)
    return torch.cat([left, right], dim=-1)


def run_blocks(
    model: nn.Module,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor,
    past: Sequence[KeyValue] | None = None,
    packing: Packing | None = None,
) -> tuple[Tensor, list[KeyValue]]:
    """Embed ids [B, S] and run all blocks.

    `positions` [B, S] are rotary positions, `mask` broadcasts to [B, H, S, P + S], `past` holds one
    (keys, values) pair per block, each [B, K, P, D]. Returns hidden states before the final norm,
    [B, S, E] or, with `packing`, [T, E], and the new keys and values [B, K, S, D] per block,
    without the past.
    """
    decoder: Any = model.model
    hidden = decoder.embed_tokens(ids)
    rotary = decoder.rotary_emb(hidden, positions)
    if packing is not None:
        hidden = packing.pack(hidden)
    made: list[KeyValue] = []
    for index, block in enumerate(decoder.layers):
        before = past[index] if past else None
        hidden, key_value = run_block(block, hidden, rotary, mask, before, packing)
        made.append(key_value)
    return hidden, made


def run_block(
    block: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor,
    past: KeyValue | None = None,
    packing: Packing | None = None,
) -> tuple[Tensor, KeyValue]:
    """One block: hidden [B, S, E] -> hidden [B, S, E] and its keys and values [B, K, S, D];
    hidden is [T, E] with `packing`."""
    attention = block.self_attn
    normed = block.input_layernorm(hidden)
    projected = [attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)]
    if packing is not None:
        projected = [packing.unpack(one) for one in projected]
    rows, size, _ = projected[0].shape
    query, key, value = (one.view(rows, size, -1, attention.head_dim) for one in projected)
    value = value.transpose(1, 2)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query = _rotate(query.transpose(1, 2), rotary)
    key = _rotate(key.transpose(1, 2), rotary)
    all_keys = key if past is None else torch.cat([past[0], key], dim=2)
    all_values = value if past is None else torch.cat([past[1], value], dim=2)
    groups = attention.num_key_value_groups
    mixed = functional.scaled_dot_product_attention(
        query,
        all_keys.repeat_interleave(groups, dim=1),
        all_values.repeat_interleave(groups, dim=1),
        attn_mask=mask,
        scale=attention.scaling,
    )
    mixed = mixed.transpose(1, 2).reshape(rows, size, -1)
    if packing is not None:
        mixed = packing.pack(mixed)
    hidden = hidden + attention.o_proj(mixed)
    hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return hidden, (key, value)


def label_row(model: Any, labels: Labels) -> Tensor:
    """The one-row head W_yes - W_no, shape [E]."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight[labels.yes] - weight[labels.no]


def last_hidden(model: Any, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Normed hidden state [B, E] of the last real token of each row."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    normed: Tensor = model.model.norm(hidden[rows, lengths - 1])
    return normed


def score_items(
    model: Any,
    labels: Labels,
    prefixes: Padded,
    items: Padded,
    prefix_of: Tensor,
) -> Tensor:
    """Logits [B] (log-odds of "yes") of items that share prefixes.

    `prefix_of` [B] gives the row of `prefixes` that each item follows. An item's positions start at
    its own prefix length, exactly as if it were scored alone (paper, section 4.1 of the notes).
    """
    prefix_size, item_size = prefixes.ids.shape[1], items.ids.shape[1]
    steps = torch.arange(prefix_size)[None].expand_as(prefixes.ids)
    _, cache = run_blocks(model, prefixes.ids, steps, causal_mask(prefix_size))
    starts = prefixes.lengths[prefix_of]
    past = [(key[prefix_of], value[prefix_of]) for key, value in cache]
    packing = make_packing(items.lengths, item_size)
    hidden, _ = run_blocks(
        model,
        items.ids,
        starts[:, None] + torch.arange(item_size)[None],
        item_mask(starts, prefix_size, item_size),
        past,
        packing,
    )
    final = model.model.norm(hidden[packing.last])
    logits: Tensor = final.float() @ label_row(model, labels).float()
    return logits


def _rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table.unsqueeze(1) for table in rotary)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
