"""Model configurations of the repository, as protobuf messages.

Written with protobuf's own printer and read back with its parser, never by string templates: a
field that does not exist or has the wrong type cannot get into a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from slmrank.errors import RepositoryError
from slmrank.prompt.labels import Labels

STRING, FLOAT, INT = "TYPE_STRING", "TYPE_FP32", "TYPE_INT32"
ModelConfig = Any  # model_config_pb2.ModelConfig; the generated class carries no types


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output of a model: dims without the request batch dimension. `scalar`: dims [1]
    on the wire, [] in the model. `ragged`: requests of unlike shapes may share a batch."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False
    ragged: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When Triton itself refuses what waits in a queue. `deferrable_size`: waiting requests of the
    second priority, which are answered after all others."""

    size: int
    timeout_us: int
    deferrable_size: int


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Dynamic batching. With limits or priorities, Triton forms no batch while all instances are
    busy, and then looks at the queue every 500 ms or when the next request comes: a request that
    came in another's time waited for half a second more (core/src/dynamic_batch_scheduler.cc,
    WaitForPayloadSlotAvailable). So there are none unless they must be; see
    slmrank.serving.admission."""

    max_delay_us: int
    limits: Limits | None = None


# The contract of every engine target (design.md 5.2).
QUERY = Tensor(name="query", dtype=STRING, dims=(1,))
JOB_ID = Tensor(name="job_id", dtype=STRING, dims=(-1,))
JOB = Tensor(name="job", dtype=STRING, dims=(-1,), optional=True)
JOB_TEXT = Tensor(name="job_text", dtype=STRING, dims=(-1,), optional=True)
PREFIX_IDS = Tensor(name="prefix_ids", dtype=INT, dims=(-1,))
ITEM_IDS = Tensor(name="item_ids", dtype=INT, dims=(-1,))
ITEM_LENGTHS = Tensor(name="item_lengths", dtype=INT, dims=(-1,))
STATUS = Tensor(name="status", dtype=INT, dims=(-1,))
SCORE = Tensor(name="score", dtype=FLOAT, dims=(-1,))
# Who answered, as JSON of the ensemble's parameters, and microseconds in each stage.
SERVED = Tensor(name="served", dtype=STRING, dims=(1,))
PREPARE_US = Tensor(name="prepare_us", dtype=INT, dims=(1,))
RANKER_US = Tensor(name="ranker_us", dtype=INT, dims=(1,))
# When `prepare` handed the request on, in seconds of the monotonic clock: its ticket.
PREPARED_AT = Tensor(name="prepared_at", dtype="TYPE_FP64", dims=(1,))
PREPARED_STATUS = Tensor(name="prepared_status", dtype=INT, dims=(-1,))
ASKED = (QUERY, JOB_ID, JOB, JOB_TEXT)
PREPARED = (PREFIX_IDS, ITEM_IDS, ITEM_LENGTHS, PREPARED_AT)
TOLD = (STATUS, SERVED, PREPARE_US)  # what `prepare` says beside the ids
SCORED = (SCORE, RANKER_US)
ANSWERED = (*SCORED, *TOLD)
ENSEMBLE, PREPARE, RANKER = "rank", "prepare", "ranker"
ADMISSION = "admission"  # the parameter of both stages with the door's settings
DEPTH = "depth"  # the parameter of `ranker` with the depth control's settings
# A longer text is cut before it is tokenised: 1 MB would hold the tokenizer for a second, and no
# item of up to 8,192 tokens needs more.
MAX_TEXT_CHARACTERS = 131_072
# All texts of one request: 120 of 200 kB held the stage, and everybody behind them, for over 5 s.
MAX_REQUEST_TEXT_BYTES = 8 * 2**20
# All fields of one request, which are summarised too: 63 jobs of 131 kB held the stage for 17 s.
MAX_REQUEST_FIELDS_BYTES = 2**20
DEFERRABLE = 2  # Triton's priority of requests that can wait; 1 is everybody else's


def counted_fields(fields: bytes) -> int:
    """What a job's fields count against MAX_REQUEST_FIELDS_BYTES: the rest is cut before it costs
    anything."""
    return min(len(fields), MAX_TEXT_CHARACTERS)


def python_model(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    *,
    max_batch_size: int,
    queue: Queue,
    parameters: dict[str, str],
    instances: int = 1,
) -> ModelConfig:
    """A Python-backend model that takes several requests in one execution."""
    config = model_config_pb2.ModelConfig(name=name, backend="python")
    config.max_batch_size = max_batch_size
    _add_tensors(config, inputs, outputs, ragged=True)
    group = config.instance_group.add(count=instances)
    group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = queue.max_delay_us
    if queue.limits is not None:
        limits = queue.limits
        _add_policy(batching.default_queue_policy, limits.size, limits.timeout_us)
        batching.priority_levels, batching.default_priority_level = DEFERRABLE, 1
        policy = batching.priority_queue_policy[DEFERRABLE]
        _add_policy(policy, limits.deferrable_size, limits.timeout_us)
    add_parameters(config, parameters)
    return config


def _add_policy(policy: Any, size: int, timeout_us: int) -> None:
    policy.max_queue_size = size
    policy.default_timeout_microseconds = timeout_us
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT


def ranker_model(
    max_batch_size: int, queue: Queue, parameters: dict[str, str], instances: int = 1
) -> ModelConfig:
    """The stage `ranker`, whose tensors are the same for every engine target."""
    return python_model(
        RANKER,
        PREPARED,
        SCORED,
        max_batch_size=max_batch_size,
        queue=queue,
        parameters=parameters,
        instances=instances,
    )


def rank_model(
    max_batch_size: int,
    stages: dict[str, tuple[dict[str, str], dict[str, str]]],
    parameters: dict[str, str],
) -> ModelConfig:
    """The ensemble `rank` over the latest version of each stage's model, by whose name stand its
    inputs and its outputs, mapped to the ensemble's."""
    config = model_config_pb2.ModelConfig(name=ENSEMBLE, platform="ensemble")
    config.max_batch_size = max_batch_size
    _add_tensors(config, ASKED, ANSWERED, ragged=False)
    for name, (inputs, outputs) in stages.items():
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    add_parameters(config, parameters)
    return config


def print_config(config: ModelConfig) -> str:
    """The text of a `config.pbtxt`."""
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def parse_config(text: str, name: str = "config.pbtxt") -> ModelConfig:
    """Parse a `config.pbtxt`. Raises RepositoryError with line and column."""
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(
            f"{name} is not a model configuration: {error}", "write it with `control repo`"
        ) from error


def add_tensor(tensors: Any, tensor: Tensor) -> None:
    """Append to the `input` or `output` field of a configuration."""
    added = tensors.add(
        name=tensor.name, data_type=model_config_pb2.DataType.Value(tensor.dtype), dims=tensor.dims
    )
    if tensor.optional:
        added.optional = True
    if tensor.ragged:
        added.allow_ragged_batch = True
    if tensor.scalar:
        added.reshape.SetInParent()


def _add_tensors(
    config: ModelConfig, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], *, ragged: bool
) -> None:
    for tensor in inputs:
        free = any(size < 0 for size in tensor.dims)
        add_tensor(config.input, replace(tensor, ragged=ragged and free))
    for tensor in outputs:
        # Triton knows no optional outputs; an ensemble's may come from an optional input.
        add_tensor(config.output, replace(tensor, optional=False))


def add_parameters(config: ModelConfig, parameters: dict[str, str]) -> None:
    for name, value in sorted(parameters.items()):
        config.parameters[name].string_value = value


def label_parameters(labels: Labels) -> dict[str, str]:
    """The label tokens, for stages that read logits."""
    return {"yes_id": str(labels.yes), "no_id": str(labels.no)}
