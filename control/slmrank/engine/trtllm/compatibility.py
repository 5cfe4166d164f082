"""The table of NVIDIA containers (build/compatibility.yaml) and what it refuses.

Most reports of engines that do not load are a wrong pair of container and TensorRT-LLM, so pairs
are looked up, never guessed, and a refusal names the pair to use.
"""

from __future__ import annotations

import re
from functools import cache

import yaml
from pydantic import BaseModel

from slmrank.errors import SpecError
from slmrank.shipped import shipped

# nvidia-modelopt that TensorRT-LLM 1.2.1 pins; later ones removed the exporter.
MODELOPT = "0.37.0"
TABLE = "build/compatibility.yaml"
FP8_CAPABILITY = (8, 9)
LEAST_CAPABILITY = (8, 0)
SMOOTHQUANT_END = (10, 0)


class Container(BaseModel, frozen=True):
    """One container tag and what it holds; `min_driver` is the NVIDIA driver's major version."""

    container: str
    trtllm: str
    tensorrt: str
    cuda: str
    min_driver: int


class Compatibility(BaseModel, frozen=True):
    """The whole table."""

    image: str
    supported: tuple[str, ...]
    containers: tuple[Container, ...]
    gpus: dict[str, str]

    def container(self, tag: str, version: str) -> Container:
        """The row of a container that must hold TensorRT-LLM `version`.

        Raises SpecError for an unknown tag, an unsupported version or a wrong pair.
        """
        if version not in self.supported:
            raise SpecError(
                f"engine.trtllm.version {version!r} is not supported: checkpoints and plans are "
                f"written for TensorRT-LLM {', '.join(self.supported)}",
                self._pair_to_use(self.supported[-1]),
            )
        row = next((one for one in self.containers if one.container == tag), None)
        if row is None:
            first, last = self.containers[0].container, self.containers[-1].container
            raise SpecError(
                f"engine.trtllm.container {tag!r} is not in {TABLE} ({first} to {last})",
                self._pair_to_use(version),
            )
        if row.trtllm != version:
            raise SpecError(
                f"container {tag} holds TensorRT-LLM {row.trtllm}, not {version}",
                self._pair_to_use(version),
            )
        return row

    def image_of(self, container: str, digest: str | None) -> str:
        """The full reference, by digest where one is given."""
        named = self.image.format(container=container)
        return f"{named}@{digest}" if digest else named

    def capability(self, product: str) -> str:
        """Compute capability of a GPU product label, such as 9.0. Raises SpecError when unknown."""
        known = [name for name in self.gpus if _covers(name, product)]
        if not known:
            labels = ", ".join(name + "..." if name.endswith("-") else name for name in self.gpus)
            raise SpecError(
                f"engine.trtllm.gpu {product!r} is not a known GPU product",
                f"use a node's whole label nvidia.com/gpu.product; known: {labels}",
            )
        return self.gpus[max(known, key=len)]

    def _pair_to_use(self, version: str) -> str:
        tags = [one.container for one in self.containers if one.trtllm == version]
        return f"use version {version} with container {' or '.join(tags)}"


@cache
def load_compatibility() -> Compatibility:
    """The shipped table."""
    return Compatibility.model_validate(yaml.safe_load(shipped(TABLE).read_text(encoding="utf-8")))


def _covers(name: str, product: str) -> bool:
    """Whether a table entry stands for a node label; `NVIDIA-H100-` needs the rest of the label,
    because the Job selects nodes by the whole one."""
    if name.endswith("-"):
        return product.startswith(name) and product != name
    return product == name or product.startswith(f"{name}-")


def same_release(first: str, second: str) -> bool:
    """Whether two versions are one release: 10.14.1.48.post1 is 10.14.1.48."""
    return re.split(r"\.post|\+", first)[0] == re.split(r"\.post|\+", second)[0]


def as_capability(text: str) -> tuple[int, int]:
    """`9.0` -> (9, 0)"""
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
