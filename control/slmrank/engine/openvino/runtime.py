"""Score items with an OpenVINO engine: one prefix pass per query, then items against its keys and
values, bucketed by length so that padding stays small.

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
        found = np.full(len(items), np.nan, dtype=np.float32)
        present = [index for index, item in enumerate(items) if len(item)]
        if not present:
            return found
        past = self._past(prefix)
        for bucket in buckets([len(items[index]) for index in present], self.info.max_batch_items):
            chosen = [present[index] for index in bucket]
            ids, lengths = pad([items[index] for index in chosen])
            result = self._items({"ids": ids, "lengths": lengths, "past": past})
            found[chosen] = result[0]
        return found

    def _past(self, prefix: Ids) -> Floats:
        """Keys and values of a prefix, from a small cache: clients split long listings."""
        key = prefix.tobytes()
        past = self._prefixes.pop(key, None)
        if past is None:
            past = np.array(self._prefix(prefix[None].astype(np.int64))[0])
        self._prefixes[key] = past
        while len(self._prefixes) > CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
        return past


def buckets(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in batches of at most `limit`, neighbours in length together.

    The count is the smallest that the limit allows, and batches are of even size: 33 items make
    17 + 16, not 32 + 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = -(-len(order) // limit)
    return [part.tolist() for part in np.array_split(np.array(order, dtype=int), count)]


def pad(items: Sequence[Ids]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids [B, S] padded with 0 to a multiple of LENGTH_STEP (fewer graph shapes), lengths [B]."""
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    size = -(-int(lengths.max()) // LENGTH_STEP) * LENGTH_STEP
    ids = np.zeros((len(items), size), dtype=np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)] = item
    return ids, lengths
