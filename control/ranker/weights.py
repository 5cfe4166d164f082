"""Parameter counts read from the headers of safetensors files; no tensor is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from control.errors import CheckpointError


def tensor_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor by name. Raises CheckpointError when no weights are there."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
    if not shapes:
        raise CheckpointError(f"{checkpoint} has no *.safetensors", "save the model again")
    return shapes


def count_parameters(checkpoint: Path) -> dict[str, int]:
    """`total` and `blocks` parameters; a tied head is stored, and counted, once."""
    sizes = {name: math.prod(shape) for name, shape in tensor_shapes(checkpoint).items()}
    blocks = sum(size for name, size in sizes.items() if ".layers." in name)
    return {"total": sum(sizes.values()), "blocks": blocks}


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a safetensors file: {error}", "save the model again"
            ) from error
    return header
