"""Score items with an OpenVINO engine: each query's prefix once, then items against its keys and
values, bucketed by length so that padding stays small. Queries that come together share passes.

Needs only openvino and numpy; this is what runs inside the server.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import EngineError, MissingDependencyError
from slmrank.machine.facts import usable_cores
from slmrank.tokens import Ids

ENGINE_FILE = "engine.json"
LENGTH_STEP = 8
CACHED_PREFIXES = 32
PREFIXES_AT_ONCE = 16
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What `engine.json` says: precision of the item passes and the largest batch."""

    precision: str
    max_batch_items: int


def read_engine_info(path: Path) -> EngineInfo:
    """Raises EngineError when the directory holds no engine."""
    try:
        loaded = json.loads((path / ENGINE_FILE).read_text())
        return EngineInfo(
            precision=loaded["precision"], max_batch_items=int(loaded["max_batch_items"])
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{path} holds no engine: {error}", "run `control build`") from error


class OpenVinoEngine:
    """A loaded engine. Not thread-safe: one per server instance."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingDependencyError(
                f"openvino does not import: {error}", "pip install 'slmrank[local]'"
            ) from error
        self.info = read_engine_info(path)
        core = ov.Core()
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,
            "INFERENCE_PRECISION_HINT": "f32" if self.info.precision == "float32" else "bf16",
        }
        items_settings = dict(settings)
        if self.info.precision == "int8-weights":
            items_settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 64
        try:
            self._prefix = core.compile_model(path / "prefix.xml", "CPU", settings)
            self._items = core.compile_model(path / "items.xml", "CPU", items_settings)
        except RuntimeError as error:
            raise EngineError(f"cannot load the engine at {path}: {error}", "rebuild it") from error
        self._prefixes: OrderedDict[bytes, Floats] = OrderedDict()

    def logits(self, prefix: Ids, items: Sequence[Ids]) -> Floats:
        """Log-odds of "yes" [N] for items after one prefix; NaN for an item without ids."""
        return self.logits_of([(prefix, items)])[0]

    def logits_of(self, asked: Sequence[tuple[Ids, Sequence[Ids]]]) -> list[Floats]:
        """The same for several prefixes with their items: 16 queries of one item each take two
        passes, not 32."""
        found = [np.full(len(items), np.nan, dtype=np.float32) for _, items in asked]
        present = [
            (query, place)
            for query, (_, items) in enumerate(asked)
            for place, item in enumerate(items)
            if len(item)
        ]
        if not present:
            return found
        pasts = self._pasts([asked[query][0] for query in dict(present)])
        rows = [asked[query][1][place] for query, place in present]
        for bucket in buckets([len(row) for row in rows], self.info.max_batch_items):
            ids, lengths = pad([rows[index] for index in bucket])
            keys = [asked[present[index][0]][0].tobytes() for index in bucket]
            shared = list(dict.fromkeys(keys))
            past, prefix_lengths = stack([pasts[key] for key in shared])
            inputs = {
                "ids": ids,
                "lengths": lengths,
                "past": past,
                "prefix_lengths": prefix_lengths,
                "prefix_of": np.array([shared.index(key) for key in keys], dtype=np.int64),
            }
            logits = self._items(inputs)[0]
            for index, logit in zip(bucket, logits, strict=True):
                query, place = present[index]
                found[query][place] = logit
        return found

    def _pasts(self, prefixes: Sequence[Ids]) -> dict[bytes, Floats]:
        """Keys and values [L, 2, K, P, D] by prefix, from a small cache: clients split long
        listings. What is not in it is computed in one pass."""
        wanted = {prefix.tobytes(): prefix for prefix in prefixes}
        missing = [prefix for key, prefix in wanted.items() if key not in self._prefixes]
        for start in range(0, len(missing), PREFIXES_AT_ONCE):
            chosen = missing[start : start + PREFIXES_AT_ONCE]
            ids, lengths = pad(chosen, step=1)
            made = self._prefix(ids)[0]
            for row, prefix in enumerate(chosen):
                # A copy: what OpenVINO returns is its own memory, and holds the padding.
                self._prefixes[prefix.tobytes()] = made[row, :, :, :, : lengths[row]].copy()
        for key in wanted:
            self._prefixes.move_to_end(key)
        found = {key: self._prefixes[key] for key in wanted}
        while len(self._prefixes) > CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
        return found


def open_engine(path: Path, threads: int) -> OpenVinoEngine:
    """What the stage `ranker` opens."""
    return OpenVinoEngine(path, threads)


def buckets(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in batches of at most `limit`, neighbours in length together.

    The count is the smallest that the limit allows, and batches are of even size: 33 items make
    17 + 16, not 32 + 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = -(-len(order) // limit)
    return [part.tolist() for part in np.array_split(np.array(order, dtype=int), count)]


def pad(
    items: Sequence[Ids], step: int = LENGTH_STEP
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids [B, S] padded with 0 to a multiple of `step` (fewer graph shapes), lengths [B]."""
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    size = -(-int(lengths.max()) // step) * step
    ids = np.zeros((len(items), size), dtype=np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)] = item
    return ids, lengths


def stack(pasts: Sequence[Floats]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Keys and values of several prefixes [Q, L, 2, K, P, D], zero behind each, lengths [Q]."""
    lengths = np.array([past.shape[3] for past in pasts], dtype=np.int64)
    if len(pasts) == 1:
        return pasts[0][None], lengths
    layers, two, heads, _, size = pasts[0].shape
    stacked = np.zeros((len(pasts), layers, two, heads, lengths.max(), size), dtype=np.float32)
    for row, past in enumerate(pasts):
        stacked[row, :, :, :, : lengths[row]] = past
    return stacked, lengths
