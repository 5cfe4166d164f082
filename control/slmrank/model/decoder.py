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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slmrank.model.placement import Placement
from slmrank.prompt.labels import Labels

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class LoadedRanker:
    """A transformers model on its placement, with its label tokens."""

    network: Any
    labels: Labels
    placement: Placement


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Rows of unequal length in one matrix: ids [B, S] padded with 0 on the right, lengths [B] as a
    tensor on the same device and as numbers."""

    ids: Tensor
    lengths: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The real tokens of padded rows as one list of T, for all work that is done token by token.

    A training batch of 16 items pads a quarter more tokens than it has. T is rounded up to the
    placement's step with tokens that nothing reads.
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


def pack_rows(padded: Padded, placement: Placement) -> Packing:
    """The packing of padded rows. Indices are computed from the numbers on the host, so that no
    device is waited for."""
    rows, size = padded.ids.shape
    index = np.flatnonzero(np.arange(size)[None] < np.array(padded.sizes)[:, None])
    spare = -len(index) % placement.packed_step
    return Packing(
        rows=rows,
        size=size,
        gather=placement.tensor(np.concatenate([index, np.zeros(spare, dtype=np.int64)])),
        scatter=placement.tensor(np.concatenate([index, np.full(spare, rows * size)])),
        last=placement.tensor(np.cumsum(padded.sizes) - 1),
    )


def pad_rows(rows: Sequence[Any], placement: Placement) -> Padded:
    """Pad integer sequences on the right, to a multiple of the placement's length step."""
    sizes = tuple(len(row) for row in rows)
    width = -(-max(sizes) // placement.length_step) * placement.length_step
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : sizes[index]] = row
    return Padded(ids=placement.tensor(ids), lengths=placement.tensor(sizes), sizes=sizes)


def causal_mask(length: int, device: torch.device | str) -> Tensor:
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


def group_mask(network: Any, mask: Tensor) -> Tensor:
    """The mask [..., S, P + S] as layers read it, [..., G S, P + S]: once for each of the G query
    heads that share a key head."""
    config = network.config
    groups = config.num_attention_heads // config.num_key_value_heads
    return torch.cat([mask] * groups, dim=-2)


def run_layers(
    network: nn.Module,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor,
    past: Sequence[KeyValue] | None = None,
    packing: Packing | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, list[KeyValue]]:
    """Embed ids [B, S] and run all layers.

    `positions` [B, S] are rotary positions, `mask` broadcasts to [B, 1, S, P + S], `past` holds one
    (keys, values) pair per layer, each [B, K, P, D]. Returns hidden states before the final norm,
    [B, S, E] or, with `packing`, [T, E], and the new keys and values [B, K, S, D] per layer,
    without the past. With `last` [B], the place of each row's last token, the last layer goes on
    with these alone, and hidden states are [B, E]: nobody reads the others, and their share of the
    last layer is 3 % of the work.
    """
    decoder: Any = network.model
    hidden = decoder.embed_tokens(ids)
    rotary = decoder.rotary_emb(hidden, positions)
    mask = group_mask(network, mask)
    if packing is not None:
        hidden = packing.pack(hidden)
    cache: list[KeyValue] = []
    for index, layer in enumerate(decoder.layers):
        before = past[index] if past else None
        # A layer that is split among processes brings its own, which gathers it first.
        run = getattr(layer, "run", run_layer)
        kept = last if index == len(decoder.layers) - 1 else None
        hidden, key_value = run(layer, hidden, rotary, mask, before, packing, kept)
        cache.append(key_value)
    return hidden if last is None else hidden[:, 0], cache


def run_layer(
    layer: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor,
    past: KeyValue | None = None,
    packing: Packing | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, KeyValue]:
    """One layer: hidden [B, S, E] -> hidden [B, S, E] and its keys and values [B, K, S, D];
    hidden is [T, E] with `packing`, and [B, 1, E] behind the layer with `last`; `mask` comes from
    `group_mask`."""
    hidden, key_value = run_attention(layer, hidden, rotary, mask, past, packing, last)
    return run_mlp(layer, hidden), key_value


def run_mlp(layer: Any, hidden: Tensor) -> Tensor:
    """The second half of a layer, which is the same for packed and padded states."""
    after: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return after


def run_attention(
    layer: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor,
    past: KeyValue | None = None,
    packing: Packing | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, KeyValue]:
    """The first half of a layer, as `run_layer`: what its MLP reads, before the norm."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    asking = normed
    if last is not None:
        asking, hidden = (_take(one, last, packing) for one in (normed, hidden))
    query, key, value = attention.q_proj(asking), attention.k_proj(normed), attention.v_proj(normed)
    if packing is not None:
        key, value = packing.unpack(key), packing.unpack(value)
        if last is None:
            query = packing.unpack(query)
    rows = key.shape[0]
    query, key, value = (
        one.view(rows, one.shape[1], -1, attention.head_dim) for one in (query, key, value)
    )
    value = value.transpose(1, 2)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    key = _rotate(key.transpose(1, 2), rotary)
    if last is not None:
        rotary = (_take(rotary[0], last), _take(rotary[1], last))
        mask = _take(mask[:, 0], last)[:, None]
    query = _rotate(query.transpose(1, 2), rotary)
    all_keys = key if past is None else torch.cat([past[0], key], dim=2)
    all_values = value if past is None else torch.cat([past[1], value], dim=2)
    # The query heads of a group stand one behind the other, so that no key or value is copied.
    grouped = query.reshape(rows, key.shape[1], -1, attention.head_dim)
    mixed = functional.scaled_dot_product_attention(
        grouped, all_keys, all_values, attn_mask=mask, scale=attention.scaling
    )
    mixed = mixed.reshape(query.shape).transpose(1, 2).flatten(2)
    if packing is not None and last is None:
        mixed = packing.pack(mixed)
    return hidden + attention.o_proj(mixed), (key, value)


def _take(states: Tensor, last: Tensor, packing: Packing | None = None) -> Tensor:
    """The states [B, 1, E] of the last tokens, out of [B, S, E] or, with `packing`, [T, E]."""
    if packing is not None:
        return states[packing.last][:, None]
    return states[torch.arange(states.shape[0], device=last.device), last][:, None]


def label_row(ranker: LoadedRanker) -> Tensor:
    """The one-row head W_yes - W_no, shape [E]."""
    weight: Tensor = ranker.network.get_output_embeddings().weight
    return weight[ranker.labels.yes] - weight[ranker.labels.no]


def last_hidden(network: Any, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Normed hidden state [B, E] of the last real token of each row."""
    normed: Tensor = network.model.norm(_take(hidden, lengths - 1)[:, 0])
    return normed


def score_items(ranker: LoadedRanker, prefixes: Padded, items: Padded, prefix_of: Tensor) -> Tensor:
    """Logits [B] (log-odds of "yes") of items that share prefixes.

    `prefix_of` [B] gives the row of `prefixes` that each item follows. An item's positions start at
    its own prefix length, exactly as if it were scored alone (paper, section 4.1 of the notes).
    """
    network, device = ranker.network, prefixes.ids.device
    prefix_size, item_size = prefixes.ids.shape[1], items.ids.shape[1]
    steps = torch.arange(prefix_size, device=device)[None].expand_as(prefixes.ids)
    _, cache = run_layers(network, prefixes.ids, steps, causal_mask(prefix_size, device))
    starts = prefixes.lengths[prefix_of]
    past = [(key[prefix_of], value[prefix_of]) for key, value in cache]
    packing = pack_rows(items, ranker.placement)
    hidden, _ = run_layers(
        network,
        items.ids,
        starts[:, None] + torch.arange(item_size, device=device)[None],
        item_mask(starts, prefix_size, item_size),
        past,
        packing,
        items.lengths - 1,
    )
    # In bfloat16 two items 0.4 % apart would have one score.
    with ranker.placement.full_precision():
        logits: Tensor = network.model.norm(hidden).float() @ label_row(ranker).float()
    return logits


def _rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    # OpenVINO has one kernel for this, and finds it behind slices and a product with -1.0 alone:
    # `chunk` counts its axis from the end, and a negation stays a conversion at run time.
    cos, sin = (table.unsqueeze(1) for table in rotary)
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    return heads * cos + torch.cat([second * -1.0, first], dim=-1) * sin
