"""Training whose weights, gradients and optimizer state are split among processes (FSDP2).

torch's `fully_shard`, a unit for each layer and one for the rest (arXiv 2304.11277). Our forward
pass calls parts of a layer, and each layer twice in a step, for prefixes and for items: layers are
gathered around `run_layer` instead of around their own forward. What is sharded is a copy; the
ranker's own network waits on the CPU and gets the values back at the end.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slmrank.model.decoder import LoadedRanker, run_layer


def sharded_copy(ranker: LoadedRanker, processes: int) -> LoadedRanker:
    """The ranker with a network whose layers are split among the processes of this run."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    network = copy.deepcopy(ranker.network)
    device = torch.device(ranker.placement.device)
    ranker.network.to("cpu")
    mesh = init_device_mesh(device.type, (processes,))
    for layer in network.model.layers:
        layer.run = run_layer
        fully_shard(layer, mesh=mesh)
        register_fsdp_forward_method(layer, "run")
    return replace(ranker, network=network)


def shard_rest(module: nn.Module) -> None:
    """Split what no layer holds, around the module's forward."""
    from torch.distributed.fsdp import fully_shard

    split: Any = next(parameter for parameter in module.parameters() if _is_split(parameter))
    fully_shard(module, mesh=split.device_mesh)


def gathered(value: Any) -> Any:
    """A tensor with all its parts; other values as they are. Every process has to ask."""
    return value.full_tensor() if _is_split(value) else value


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, where it is not split."""
    held: Any = value
    found: Tensor = held.to_local() if _is_split(held) else held
    return found


def like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor split as a parameter of its shape is; other values as they are."""
    if not _is_split(parameter) or getattr(value, "shape", None) != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = parameter
    return distribute_tensor(value.to(split.device), split.device_mesh, split.placements)


def _is_split(value: Any) -> bool:
    return hasattr(value, "full_tensor")
