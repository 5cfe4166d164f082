"""Check an ensemble against its models before any server starts: names, data types and dims.

tritonserver finds most of these faults only while loading, after minutes of engine loading on a
GPU, and some (a tensor mapped twice, dims that can never meet) only at the first request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def _faults(ensemble: ModelConfig, models: Mapping[str, ModelConfig]) -> Iterator[str]:
    edges: _Edges = {one.name: (one, f"input {one.name!r}") for one in ensemble.input}
    used = {tensor.name for tensor in ensemble.output}
    for step in ensemble.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            yield f"model {step.model_name!r} is not in the repository"
            continue
        if model.max_batch_size < ensemble.max_batch_size:
            yield (
                f"max_batch_size {ensemble.max_batch_size} is above that of "
                f"{step.model_name!r} ({model.max_batch_size})"
            )
        used.update(step.input_map.values())
        yield from _input_faults(step, model, edges)
        yield from _output_faults(step, model, edges)
    for tensor in ensemble.output:
        yield from _match(edges, tensor.name, tensor, f"output {tensor.name!r}")
    for tensor in ensemble.input:
        if tensor.name not in used:
            yield f"input {tensor.name!r} is used by no step"


def _input_faults(step: Any, model: ModelConfig, edges: _Edges) -> Iterator[str]:
    declared = {tensor.name: tensor for tensor in model.input}
    for inner, outer in step.input_map.items():
        if inner in declared:
            yield from _match(edges, outer, declared[inner], f"{step.model_name}.{inner}")
        else:
            yield f"{step.model_name!r} has no input {inner!r}"
    for name, tensor in declared.items():
        if name not in step.input_map and not tensor.optional:
            yield f"{step.model_name!r} input {name!r} is not mapped"


def _output_faults(step: Any, model: ModelConfig, edges: _Edges) -> Iterator[str]:
    declared = {tensor.name: tensor for tensor in model.output}
    for inner, outer in step.output_map.items():
        if inner not in declared:
            yield f"{step.model_name!r} has no output {inner!r}"
        elif outer in edges:
            yield f"tensor {outer!r} is written twice ({edges[outer][1]})"
        else:
            edges[outer] = (declared[inner], f"{step.model_name}.{inner}")


def _match(edges: _Edges, name: str, tensor: Any, target: str) -> Iterator[str]:
    if name not in edges:
        yield f"{target} reads {name!r}, which no earlier step writes"
        return
    source, origin = edges[name]
    if source.data_type != tensor.data_type:
        have, want = (model_config_pb2.DataType.Name(one.data_type) for one in (source, tensor))
        yield f"{origin} is {have} but {target} is {want}"
    have, want = list(source.dims), list(tensor.dims)
    pairs = zip(have, want, strict=False)
    if len(have) != len(want) or any(a != b and a >= 0 and b >= 0 for a, b in pairs):
        yield f"{origin} has dims {have} but {target} has {want}"
    # An output has no field of that name.
    if getattr(source, "optional", False) and not getattr(tensor, "optional", False):
        yield f"{origin} is optional but {target} is not"
