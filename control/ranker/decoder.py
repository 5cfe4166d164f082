"""The decoder forward pass that everything but the reference scorer runs: training, evaluation,
calibration and the graph that becomes an engine.

It reads the weights of a Hugging Face Llama, Qwen2 or Qwen3 model and differs from its `forward` in
two ways: keys and values of a shared prefix enter explicitly, and only the last position of each
item reaches the one-row head p = sigmoid(h . (W_yes - W_no)). transformers' cache classes do not
convert to OpenVINO; explicit tensors do.

Shapes: B rows, S tokens, P prefix tokens, H query heads, K key/value heads, D head size, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from control.ranker.labels import Labels

KeyValue = tuple[Tensor, Tensor]
BlockHook = Callable[[int, Tensor], None]
LENGTH_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Rows of unequal length in one matrix: ids [B, S] padded with 0 on the right, lengths [B]."""

    ids: Tensor
    lengths: Tensor


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
    hook: BlockHook | None = None,
) -> tuple[Tensor, list[KeyValue]]:
    """Embed ids [B, S] and run all blocks.

    `positions` [B, S] are rotary positions, `mask` broadcasts to [B, H, S, P + S], `past` holds one
    (keys, values) pair per block, each [B, K, P, D]. Returns hidden states [B, S, E] before the
    final norm and the new keys and values [B, K, S, D] per block, without the past.
    `hook(index, hidden)` is called with the input of each block, and once more at the end.
    """
    decoder: Any = model.model
    hidden = decoder.embed_tokens(ids)
    rotary = decoder.rotary_emb(hidden, positions)
    made: list[KeyValue] = []
    for index, block in enumerate(decoder.layers):
        if hook is not None:
            hook(index, hidden)
        hidden, key_value = run_block(block, hidden, rotary, mask, past[index] if past else None)
        made.append(key_value)
    if hook is not None:
        hook(len(decoder.layers), hidden)
    return hidden, made


def run_block(
    block: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor,
    past: KeyValue | None = None,
) -> tuple[Tensor, KeyValue]:
    """One block: hidden [B, S, E] -> hidden [B, S, E] and its keys and values [B, K, S, D]."""
    attention = block.self_attn
    rows, size, _ = hidden.shape
    heads = (rows, size, -1, attention.head_dim)
    normed = block.input_layernorm(hidden)
    query = attention.q_proj(normed).view(heads)
    key = attention.k_proj(normed).view(heads)
    value = attention.v_proj(normed).view(heads).transpose(1, 2)
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
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(rows, size, -1))
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
    model: nn.Module,
    labels: Labels,
    prefixes: Padded,
    items: Padded,
    prefix_of: Tensor,
    hook: BlockHook | None = None,
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
    hidden, _ = run_blocks(
        model,
        items.ids,
        starts[:, None] + torch.arange(item_size)[None],
        item_mask(starts, prefix_size, item_size),
        past,
        hook,
    )
    final = last_hidden(model, hidden, items.lengths)
    return final.float() @ label_row(model, labels).float()


def _rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table.unsqueeze(1) for table in rotary)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
