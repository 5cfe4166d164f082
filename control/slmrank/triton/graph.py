"""Check an ensemble against its models before any server starts: names, data types and dims.

tritonserver finds most of these faults only while loading, after minutes of engine loading on a
GPU, and some (a tensor mapped twice, dims that can never meet) only at the first request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2

from slmrank.errors import RepositoryError
from slmrank.triton.config import ModelConfig

_Edges = dict[str, tuple[Any, str]]  # a tensor of a configuration and who writes it, by name


def check_ensemble(ensemble: ModelConfig, models: Mapping[str, ModelConfig]) -> None:
    """Raises RepositoryError that lists every fault of the graph."""
    faults = list(_faults(ensemble, models))
    if faults:
        raise RepositoryError(
            f"ensemble {ensemble.name!r}: " + "; ".join(faults), "correct the named config.pbtxt"
        )


def _faults(ensemble: ModelConfig, models: Mapping[str, ModelConfig]) -> list[str]:
    faults: list[str] = []
    edges: _Edges = {one.name: (one, f"input {one.name!r}") for one in ensemble.input}
    used: set[str] = set()
    for step in ensemble.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            faults.append(f"model {step.model_name!r} is not in the repository")
            continue
        if model.max_batch_size < ensemble.max_batch_size:
            faults.append(
                f"max_batch_size {ensemble.max_batch_size} is above that of "
                f"{step.model_name!r} ({model.max_batch_size})"
            )
        faults += _input_faults(step, model, edges, used)
        faults += _output_faults(step, model, edges)
    for tensor in ensemble.output:
        faults += _match(edges, tensor.name, tensor, f"output {tensor.name!r}")
        used.add(tensor.name)
    for tensor in ensemble.input:
        if tensor.name not in used:
            faults.append(f"input {tensor.name!r} is used by no step")
    return faults


def _input_faults(step: Any, model: ModelConfig, edges: _Edges, used: set[str]) -> list[str]:
    faults: list[str] = []
    declared = {tensor.name: tensor for tensor in model.input}
    for inner, outer in step.input_map.items():
        used.add(outer)
        if inner not in declared:
            faults.append(f"{step.model_name!r} has no input {inner!r}")
            continue
        faults += _match(edges, outer, declared[inner], f"{step.model_name}.{inner}")
    for name, tensor in declared.items():
        if name not in step.input_map and not tensor.optional:
            faults.append(f"{step.model_name!r} input {name!r} is not mapped")
    return faults


def _output_faults(step: Any, model: ModelConfig, edges: _Edges) -> list[str]:
    faults: list[str] = []
    declared = {tensor.name: tensor for tensor in model.output}
    for inner, outer in step.output_map.items():
        if inner not in declared:
            faults.append(f"{step.model_name!r} has no output {inner!r}")
        elif outer in edges:
            faults.append(f"tensor {outer!r} is written twice ({edges[outer][1]})")
        else:
            edges[outer] = (declared[inner], f"{step.model_name}.{inner}")
    return faults


def _match(edges: _Edges, name: str, tensor: Any, target: str) -> list[str]:
    if name not in edges:
        return [f"{target} reads {name!r}, which no earlier step writes"]
    source, origin = edges[name]
    faults = []
    if source.data_type != tensor.data_type:
        have, want = (model_config_pb2.DataType.Name(one.data_type) for one in (source, tensor))
        faults.append(f"{origin} is {have} but {target} is {want}")
    have, want = list(source.dims), list(tensor.dims)
    fits = len(have) == len(want) and all(
        a == b or a < 0 or b < 0 for a, b in zip(have, want, strict=False)
    )
    if not fits:
        faults.append(f"{origin} has dims {have} but {target} has {want}")
    # An output has no field of that name.
    if getattr(source, "optional", False) and not getattr(tensor, "optional", False):
        faults.append(f"{origin} is optional but {target} is not")
    return faults
