"""A pruning as a small file: which layers and neurons stayed, and the prompts of the refit.

The file is tens of kB where the weights are hundreds of MB. Whoever has the unpruned model gets the
pruned one from it: the closed form refits the kept neurons on the recorded prompts, and only that
runs again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmrank.artifacts import write_atomic
from slmrank.errors import CheckpointError
from slmrank.tokens import Ids

RECORD_FILE = "pruning.json"
Kept = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class PruningRecord:
    """`layers` of the model before that stayed, in each of them the neurons and, where heads were
    pruned, the key/value heads that stayed, the calibration prompts as ids of the tokenizer with
    `tokenizer_hash`, and the damping of the refit, where there was one."""

    tokenizer_hash: str
    layers_before: int
    intermediate_size_before: int
    damping: float
    refit: bool = True
    kv_heads_before: int | None = None
    layers: tuple[int, ...]
    neurons: tuple[Kept, ...]
    kv_heads: tuple[tuple[int, ...], ...] | None = None
    prompts: tuple[Ids, ...]


def write_record(path: Path, record: PruningRecord) -> None:
    """One line for each layer and prompt; neurons as a hexadecimal bit mask, lowest bit first."""
    size = record.intermediate_size_before
    kept = {
        "schema": 1,
        **vars(record),
        "neurons": [_mask(one, size) for one in record.neurons],
        "prompts": [" ".join(map(str, one.tolist())) for one in record.prompts],
    }
    write_atomic(path, json.dumps(kept, indent=1) + "\n")


def read_record(path: Path) -> PruningRecord:
    """Raises CheckpointError when the file is not such a record."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        size = int(kept["intermediate_size_before"])
        return PruningRecord(
            tokenizer_hash=kept["tokenizer_hash"],
            layers_before=int(kept["layers_before"]),
            intermediate_size_before=size,
            damping=float(kept["damping"]),
            refit=bool(kept.get("refit", True)),
            kv_heads_before=kept.get("kv_heads_before"),
            layers=tuple(kept["layers"]),
            neurons=tuple(_unmask(one, size) for one in kept["neurons"]),
            kv_heads=kept["kv_heads"] and tuple(tuple(one) for one in kept["kv_heads"]),
            prompts=tuple(np.array(one.split(), dtype=np.int32) for one in kept["prompts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no record of a pruning: {error}",
            f"give a {RECORD_FILE} that `control prune` wrote",
        ) from error


def _mask(kept: Kept, size: int) -> str:
    bits = np.zeros(size, dtype=bool)
    bits[kept] = True
    return np.packbits(bits, bitorder="little").tobytes().hex()


def _unmask(text: str, size: int) -> Kept:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), bitorder="little")
    return np.flatnonzero(bits[:size])
