"""safetensors files read and written piece by piece, so that no tensor is ever held whole.

A 600M checkpoint in float32 has a 622 MB embedding; converting it in pieces of 8 MiB keeps the peak
memory of every caller constant. numpy alone: no torch, so it runs wherever the base install runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import CheckpointError

PIECE_BYTES = 8 << 20
BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "I64": 8, "I32": 4, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
Raw = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies: file, byte offset, safetensors dtype and shape."""

    name: str
    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one slice along the first dimension."""
        return math.prod(self.shape[1:]) * BYTES_OF[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stored tensor, whole, or only these rows of its first dimension, in this order."""

    tensor: StoredTensor
    rows: npt.NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.rows is None:
            return self.tensor.shape
        return (len(self.rows), *self.tensor.shape[1:])


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """A tensor to be written: its parts, end to end along the first dimension."""

    name: str
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (sum(part.shape[0] for part in self.parts), *first[1:])


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory by name, from the headers of its files.

    Raises CheckpointError when there are no files, one is damaged or cut short, or a name appears
    twice.
    """
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    f"tensor {name!r} is in {found[name].path.name} and in {path.name}",
                    "remove the files that model.safetensors.index.json does not name",
                )
            found[name] = tensor
    if not found:
        raise CheckpointError(
            f"{folder} has no *.safetensors", "save the model with safe_serialization=True"
        )
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises CheckpointError when it is not whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError("its header is cut short")
            entries: dict[str, Any] = json.loads(stream.read(length))
        start = 8 + length
        unknown = {entry["dtype"] for entry in entries.values() if "dtype" in entry} - set(BYTES_OF)
        if unknown:
            raise ValueError(f"it holds tensors of type {', '.join(sorted(unknown))}")
        found = {
            name: StoredTensor(
                name=name,
                path=path,
                offset=start + entry["data_offsets"][0],
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        end = max(
            (entry["data_offsets"][1] for entry in entries.values() if "dtype" in entry), default=0
        )
        if start + end > size:
            raise ValueError(f"it has {size} bytes, its header asks for {start + end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a usable safetensors file: {error}", "copy or save the model again"
        ) from error
    return found


def count_parameters(checkpoint: Path) -> dict[str, int]:
    """`total` and `layers` parameters; a tied head is counted once, however it is stored."""
    sizes = {name: tensor.elements for name, tensor in read_index(checkpoint).items()}
    config = checkpoint / "config.json"
    if config.is_file() and json.loads(config.read_text("utf-8")).get("tie_word_embeddings"):
        sizes.pop("lm_head.weight", None)
    layers = sum(size for name, size in sizes.items() if ".layers." in name)
    return {"total": sum(sizes.values()), "layers": layers}


def write_tensors(path: Path, tensors: Sequence[NewTensor], dtype: str | None = None) -> None:
    """Write a safetensors file, streaming; `dtype` (F32, F16 or BF16) converts every tensor.

    Written beside `path` and renamed at the end. Raises CheckpointError for a value that is not
    finite, or that `dtype` cannot hold.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        kept = dtype or tensor.parts[0].tensor.dtype
        size = math.prod(tensor.shape) * BYTES_OF[kept]
        header[tensor.name] = {
            "dtype": kept,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                for part in tensor.parts:
                    for piece in _pieces(part):
                        stream.write(_converted(piece, part.tensor, dtype).tobytes())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def same_content(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors are equal to the bit."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    pieces = zip(_pieces(Part(tensor=first)), _pieces(Part(tensor=second)), strict=True)
    return all(bool((a == b).all()) for a, b in pieces)


def as_float32(raw: Raw, dtype: str) -> npt.NDArray[np.float32]:
    """Little-endian bytes of F32, F16 or BF16 values as float32 (exact)."""
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def as_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 values rounded to the nearest bfloat16, ties to even, as bit patterns."""
    bits = values.view(np.uint32)
    carry = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + carry) >> 16).astype(np.uint16)


def _pieces(part: Part) -> Iterator[Raw]:
    """The bytes of a part, PIECE_BYTES at a time."""
    tensor = part.tensor
    with tensor.path.open("rb") as stream:
        for first, count in _runs(part):
            stream.seek(tensor.offset + first * tensor.row_bytes)
            left = count * tensor.row_bytes
            while left:
                piece = stream.read(min(left, PIECE_BYTES))
                if not piece:
                    raise CheckpointError(
                        f"{tensor.path} ends inside {tensor.name!r}", "copy it again"
                    )
                left -= len(piece)
                yield np.frombuffer(piece, dtype=np.uint8)


def _runs(part: Part) -> Iterator[tuple[int, int]]:
    """(first row, rows) of neighbouring rows."""
    if part.rows is None:
        yield 0, part.tensor.shape[0]
        return
    if len(part.rows) and not 0 <= part.rows.min() <= part.rows.max() < part.tensor.shape[0]:
        raise CheckpointError(
            f"row {part.rows.max()} is asked for, {part.tensor.name!r} has {part.tensor.shape[0]}",
            "resize the embedding to the tokenizer and save the model again",
        )
    breaks = np.flatnonzero(np.diff(part.rows) != 1) + 1
    for run in np.split(part.rows, breaks):
        if len(run):
            yield int(run[0]), len(run)


def _converted(piece: Raw, tensor: StoredTensor, dtype: str | None) -> Raw:
    if tensor.dtype not in FLOATS:
        if dtype is not None and dtype != tensor.dtype:
            raise CheckpointError(
                f"{tensor.name!r} is {tensor.dtype}, which does not convert to {dtype}",
                "use a checkpoint in float32, bfloat16 or float16",
            )
        return piece
    values = as_float32(piece, tensor.dtype)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{tensor.name!r} holds values that are not finite", "train or save the model again"
        )
    if dtype is None or dtype == tensor.dtype:
        return piece
    if dtype == "F32":
        return values
    halves: Raw
    if dtype == "BF16":
        halves = as_bfloat16(values)
        overflow = bool(((halves & 0x7F80) == 0x7F80).any())
    else:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        overflow = not np.isfinite(halves).all()
    if overflow:
        raise CheckpointError(
            f"{tensor.name!r} holds {np.abs(values).max():.4g}, too large for {dtype}",
            "use dtype bfloat16" if dtype == "F16" else "train or save the model again",
        )
    return halves
