"""The configuration of the C++ TensorRT-LLM backend's model: what a scoring call uses, no more.

Whether 1.2.1 accepts fewer optional inputs than it knows has not been tried on a GPU.
"""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2

from slmrank.spec.engine import TrtllmSpec
from slmrank.triton.config import ModelConfig, Tensor, add_parameters, add_tensor

BACKEND_MODEL = "tensorrt_llm"
BACKEND = "tensorrtllm"
ENGINE_PATH = "gpt_model_path"
LOGITS = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
_INPUTS = (
    Tensor(name="input_ids", dtype="TYPE_INT32", dims=(-1,), optional=True, ragged=True),
    # Scalars: dims [1] that the backend sees as [].
    Tensor(name="input_lengths", dtype="TYPE_INT32", dims=(1,), scalar=True),
    Tensor(name="request_output_len", dtype="TYPE_INT32", dims=(1,), scalar=True),
    Tensor(
        name="return_generation_logits", dtype="TYPE_BOOL", dims=(1,), optional=True, scalar=True
    ),
)


def backend_model(spec: TrtllmSpec, engine_path: str) -> ModelConfig:
    """The model `tensorrt_llm` over the engine that lies at `engine_path` where it is served. The
    logits' data type must be the engine's logits_dtype: the backend compares them when it fills a
    response."""
    config = model_config_pb2.ModelConfig(name=BACKEND_MODEL, backend=BACKEND)
    config.max_batch_size = spec.max_batch_size
    config.model_transaction_policy.decoupled = False
    for tensor in _INPUTS:
        add_tensor(config.input, tensor)
    logits = LOGITS[spec.logits_dtype]
    for name, dtype, dims in (
        ("output_ids", "TYPE_INT32", (-1, -1)),
        ("sequence_length", "TYPE_INT32", (-1,)),
        ("generation_logits", logits, (-1, -1, -1)),
    ):
        add_tensor(config.output, Tensor(name=name, dtype=dtype, dims=dims))
    config.dynamic_batching.max_queue_delay_microseconds = 0
    group = config.instance_group.add(count=1)
    # The executor owns the GPU; the Triton instance only hands requests over.
    group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    parameters = {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_chunked_context": "false",
        "enable_kv_cache_reuse": str(spec.kv_cache_reuse).lower(),
        "exclude_input_in_output": "true",
        "executor_worker_path": _WORKER,
        ENGINE_PATH: engine_path,
        "gpt_model_type": "inflight_fused_batching",
        "kv_cache_free_gpu_mem_fraction": str(spec.kv_cache_fraction),
        "max_beam_width": "1",
        # The backend reads these three without a default, and ends where one is not there.
        "guided_decoding_backend": "",
        "tokenizer_dir": "",
        "xgrammar_tokenizer_info_path": "",
    }
    add_parameters(config, parameters)
    return config
