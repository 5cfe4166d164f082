"""Where a model runs: device and type of its weights, chosen once and carried by the model."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from slmrank.errors import MissingDependencyError, SpecError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A torch device (`cpu`, `cuda:0`; `meta` in tests) and the type of the weights."""

    device: str = "cpu"
    dtype: Precision = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def length_step(self) -> int:
        """Rows are padded to a multiple of this. oneDNN compiles its kernels for each new shape;
        with few widths a training step on two cores takes 2.8 s instead of 3.0 s."""
        return 8 if self.device == "cpu" else 1

    @property
    def packed_step(self) -> int:
        """Packed tokens are rounded up to a multiple of this, for the same reason."""
        return 64 if self.device == "cpu" else 1

    def mixed_precision(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 with float32 weights, where the device has them: on AVX-512 BF16
        processors the float32 GEMM is several times slower."""
        kind = self.device.partition(":")[0]
        if kind == "meta" or not has_bfloat16(kind):
            return contextlib.nullcontext()
        return torch.autocast(kind, dtype=torch.bfloat16)

    def trained_attention(self, item_size: int) -> AbstractContextManager[Any]:
        """The attention that is quick forward and backward, for items of so many tokens. On a CPU
        the fused kernel's backward pass is slow for short ones: a step of 48-token items takes 1.09
        times as long with it; from 112 tokens on it is level or ahead (0.90 at 256, 0.79 at 512),
        and does not keep every pair of tokens for the backward pass: nine heads of a 1,024-token
        item take 100 MB a layer."""
        if self.device != "cpu" or item_size > 96:
            return contextlib.nullcontext()
        kernel: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
        return kernel

    def full_precision(self) -> AbstractContextManager[Any]:
        """Products in the type of their inputs, inside of `mixed_precision` too."""
        kind = self.device.partition(":")[0]
        if kind == "meta":
            return contextlib.nullcontext()
        return torch.autocast(kind, enabled=False)

    def tensor(self, values: Any, dtype: torch.dtype = torch.long) -> torch.Tensor:
        """Values as a tensor on this device."""
        return torch.as_tensor(values, dtype=dtype).to(self.device)


def has_bfloat16(kind: str) -> bool:
    """Whether a kind of device multiplies bfloat16 matrices at speed. Processors without AVX-512
    emulate it: one product takes 1.4 s instead of 15 ms (1024 x 576 by 576 x 1536, AVX2)."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_placement(device: str = "auto", dtype: Precision = "float32") -> Placement:
    """The placement of `auto`, `cpu`, `cuda` or `cuda:N`; auto and cuda take the first GPU that
    torch sees, or, under a launcher of many processes, the one of this process. A processor without
    bfloat16 products gets float32: slower and no less exact.

    Raises SpecError for another word, MissingDependencyError for a GPU that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK") or 0)
    if "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",") and torch.cuda.device_count() == 1:
        local = 0  # some launchers show each process its own GPU alone
    if device == "auto":
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise SpecError(f"device {device!r} is unknown", "use auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        number = number or str(local)
        if int(number) >= torch.cuda.device_count():
            raise MissingDependencyError(
                f"device {device} is not there: torch sees {torch.cuda.device_count()} NVIDIA GPUs",
                "use --device cpu, or install torch for CUDA on a machine with a GPU",
            )
        device = f"cuda:{number}"
    return Placement(device=device, dtype=dtype if has_bfloat16(kind) else "float32")
