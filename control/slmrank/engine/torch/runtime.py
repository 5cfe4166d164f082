"""Score items with PyTorch, on an NVIDIA GPU or a CPU: queries and items of many requests as one
list of tokens, without padding.

Each query's tokens stand once in the list, before the tokens of all items. In every layer an item
attends to the keys of its query and to its own, so that one pass does what a prefix pass and item
passes do elsewhere; matrix products see real tokens alone. In the last layer only the last token of
each item goes on.

Needs torch and safetensors; this is what runs inside the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from slmrank.errors import EngineError
from slmrank.machine.facts import usable_cores
from slmrank.model.placement import Placement, choose_placement
from slmrank.tokens import Ids

ENGINE_FILE, WEIGHTS_FILE = "engine.json", "model.safetensors"
Floats = npt.NDArray[np.float32]
Asked = Sequence[tuple[Ids, Sequence[Ids]]]


class TorchInfo(BaseModel):
    """What `engine.json` says of the weights beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    attention_scale: float
    rotary_scale: float
    device: str
    dtype: Literal["float32", "bfloat16"]
    max_batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens as one list of T. `ids`, `positions` [T]; row r has its `sizes[r]` tokens from
    `starts[r]` on and follows row `before[r]`, or none (-1)."""

    ids: Ids
    positions: Ids
    starts: Ids
    sizes: Ids
    before: Ids


@dataclass(frozen=True, kw_only=True)
class Attending:
    """Which tokens of the list attend to which: rows padded to one width, for a few rows of like
    length. `queries` [B, S] and `keys` [B, R] are places in the list, `mask` [B, 1, S, R]."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


class TorchEngine:
    """A loaded engine. Not thread-safe: one per server instance; of several, each takes the GPU
    whose `turn` it is."""

    def __init__(
        self, path: Path, threads: int = 0, device: str | None = None, turn: int | None = None
    ) -> None:
        try:
            self.info = TorchInfo.model_validate_json((path / ENGINE_FILE).read_text("utf-8"))
            device = device or self.info.device
            if turn is not None and device != "cpu" and torch.cuda.device_count():
                device = f"cuda:{turn % torch.cuda.device_count()}"
            self._placement = choose_placement(device, self.info.dtype)
            loaded = load_file(path / WEIGHTS_FILE, device=self._placement.device)
        except (OSError, ValueError, SafetensorError) as error:
            raise EngineError(f"{path} holds no engine: {error}", "run `control build`") from error
        # Where nothing multiplies bfloat16, the same weights in float32 are several times faster.
        narrow, wide = torch.bfloat16, self._placement.torch_dtype
        self._weights: dict[str, Tensor] = {}
        self._layers: list[dict[str, Tensor]] = [{} for _ in range(self.info.layers)]
        for name, one in loaded.items():
            number, inside, own = name.partition(".")
            place = self._layers[int(number)] if inside else self._weights
            place[own or name] = one.to(wide) if one.dtype == narrow else one
        torch.set_num_threads(threads or usable_cores())

    def logits(self, prefix: Ids, items: Sequence[Ids]) -> Floats:
        """Log-odds of "yes" [N] for items after one prefix; NaN for an item without ids."""
        return self.logits_of([(prefix, items)])[0]

    @torch.inference_mode()
    def logits_of(self, asked: Asked) -> list[Floats]:
        """The same for several prefixes with their items, in as few passes as `max_batch_tokens`
        allows."""
        found = [np.full(len(items), np.nan, dtype=np.float32) for _, items in asked]
        for places in batches(asked, self.info.max_batch_tokens):
            batch = make_batch([(asked[query][0], asked[query][1][at]) for query, at in places])
            for (query, at), logit in zip(places, self._pass(batch), strict=True):
                found[query][at] = logit
        return found

    def _pass(self, batch: Batch) -> Floats:
        """Logits of the rows that follow another one, in their order."""
        info, weights, placement = self.info, self._weights, self._placement
        items = np.flatnonzero(batch.before >= 0)
        groups = list(attending(batch, placement))
        ends = placement.tensor(batch.starts[items] + batch.sizes[items] - 1)
        last = list(attending(batch, placement, only_last=True))
        hidden = weights["embedding"][placement.tensor(batch.ids)]
        angles = placement.tensor(batch.positions)[:, None].float() * weights["inv_freq"]
        rotary = [
            (one(angles) * info.rotary_scale).to(hidden.dtype)[:, None]
            for one in (torch.cos, torch.sin)
        ]
        for number, own in enumerate(self._layers):
            normed = self._norm(hidden, own["input_norm"])
            fused = functional.linear(normed, own["qkv"], own.get("qkv_bias"))
            query, key, value = self._heads(fused)
            if "q_norm" in own:
                query, key = self._norm(query, own["q_norm"]), self._norm(key, own["k_norm"])
            query, key = rotate(query, *rotary), rotate(key, *rotary)
            mixed = torch.zeros_like(query)
            for group in last if number == info.layers - 1 else groups:
                self._attend(group, query, key, value, mixed)
            if number == info.layers - 1:
                hidden, mixed = hidden[ends], mixed[ends]
            hidden = hidden + functional.linear(mixed.flatten(1), own["out"])
            normed = self._norm(hidden, own["mlp_norm"])
            gate, up = functional.linear(normed, own["gate_up"]).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, own["down"])
        final = self._norm(hidden, weights["norm"]).float()
        logits: Floats = (final @ weights["label_row"]).cpu().numpy()
        return logits

    def _norm(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        return functional.rms_norm(hidden, hidden.shape[-1:], weight, self.info.norm_eps)

    def _heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """[T, (H + 2K) D] -> queries [T, H, D], keys and values [T, K, D]"""
        split = projected.view(len(projected), -1, self.info.head_dim)
        first, last = self.info.heads, self.info.heads + self.info.kv_heads
        return split[:, :first], split[:, first:last], split[:, last:]

    def _attend(
        self, group: Attending, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor
    ) -> None:
        """Fill the places of `mixed` [T, H, D] that the group's queries have."""
        repeat = self.info.heads // self.info.kv_heads
        keys, values = (
            one[group.keys].transpose(1, 2).repeat_interleave(repeat, dim=1) for one in (key, value)
        )
        out = functional.scaled_dot_product_attention(
            query[group.queries].transpose(1, 2),
            keys,
            values,
            attn_mask=group.mask,
            scale=self.info.attention_scale,
        )
        # Padding of a row repeats its last token, and so its result.
        mixed[group.queries.flatten()] = out.transpose(1, 2).flatten(0, 1)


# Rows of one call of the attention kernel are padded to the longest of them: so many, and so many
# places of the mask, unless it is one row. A long item among 31 short ones took ten times the work.
ROWS_AT_ONCE, MASK_AT_ONCE = 64, 1 << 20


def open_engine(path: Path, threads: int) -> TorchEngine:
    """What the stage `ranker` opens. Its processes take the GPUs in turn."""
    return TorchEngine(path, threads, turn=int(os.environ.get("LOCAL_RANK") or 0))


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [T, H, D] with cos and sin [T, 1, D / 2]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def batches(asked: Asked, limit: int) -> Iterator[list[tuple[int, int]]]:
    """(query, item) of those with ids, some at a time: their tokens and those of their queries are
    at most `limit`, or those of one item."""
    chosen: list[tuple[int, int]] = []
    tokens, known = 0, -1
    for query, (prefix, items) in enumerate(asked):
        for place, item in enumerate(items):
            if not len(item):
                continue
            more = len(item) + (len(prefix) if query != known else 0)
            if chosen and tokens + more > limit:
                yield chosen
                chosen, tokens, more = [], 0, len(item) + len(prefix)
            chosen.append((query, place))
            tokens, known = tokens + more, query
    if chosen:
        yield chosen


def make_batch(pairs: Sequence[tuple[Ids, Ids]]) -> Batch:
    """The tokens of (prefix, item) pairs: each prefix once, then the items in order."""
    prefixes: dict[bytes, int] = {}
    rows: list[Ids] = []
    for prefix, _ in pairs:
        if prefixes.setdefault(prefix.tobytes(), len(rows)) == len(rows):
            rows.append(prefix)
    before = [-1] * len(rows) + [prefixes[prefix.tobytes()] for prefix, _ in pairs]
    rows += [item for _, item in pairs]
    sizes = np.array([len(row) for row in rows])
    offsets = [0 if one < 0 else len(rows[one]) for one in before]
    return Batch(
        ids=np.concatenate(rows),
        positions=np.concatenate(
            [np.arange(len(row)) + start for row, start in zip(rows, offsets, strict=True)]
        ),
        starts=np.cumsum(sizes) - sizes,
        sizes=sizes,
        before=np.array(before),
    )


def attending(
    batch: Batch, placement: Placement, *, only_last: bool = False
) -> Iterator[Attending]:
    """Who attends to whom: a row to the row before it, if any, and to itself up to the token.
    `only_last`: the last token of each row that follows another."""
    chosen = np.flatnonzero(batch.before >= 0) if only_last else np.arange(len(batch.sizes))
    order = chosen[np.argsort(batch.sizes[chosen], kind="stable")]
    leads_of = np.where(batch.before >= 0, batch.sizes[batch.before], 0)
    start = 0
    while start < len(order):
        rows = order[start : start + ROWS_AT_ONCE]
        longest = np.maximum.accumulate(batch.sizes[rows])
        masks = longest * (longest + np.maximum.accumulate(leads_of[rows]))
        fits = np.arange(1, len(rows) + 1) * masks <= MASK_AT_ONCE
        rows = rows[: max(1, int(fits.sum()))]
        start += len(rows)
        before = batch.before[rows]
        led = leads_of[rows]
        # Only these go to the device; what has the size of the mask is made there.
        facts = np.stack([batch.sizes[rows], led, batch.starts[rows], batch.starts[before]])
        sizes, leads, starts, lead_starts = placement.tensor(facts)[:, :, None]
        own = torch.arange(int(batch.sizes[rows].max()), device=placement.device)[None]
        leading = torch.arange(int(led.max()), device=placement.device)[None]
        # Padding repeats a row's last token.
        within = torch.minimum(own, sizes - 1)
        at = sizes - 1 if only_last else within
        before_it = (leading < leads)[:, None].expand(-1, at.shape[1], -1)
        leads = (leads - 1).clamp(min=0)
        yield Attending(
            queries=starts + at,
            keys=torch.cat([lead_starts + torch.minimum(leading, leads), starts + within], dim=1),
            mask=torch.cat([before_it, own[:, None] <= at[:, :, None]], dim=2)[:, None],
        )
