"""The configuration of the C++ TensorRT-LLM backend's model, for scoring.

Minimal by default: the tensors and parameters that a scoring call uses. `full` declares every
tensor of the backend, for a version that insists on them (whether 1.2.1 accepts fewer optional
inputs has not been tried on a GPU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from slmrank.triton.config import ModelConfig, Tensor, add_parameters, add_tensor

BACKEND_MODEL = "tensorrt_llm"
BACKEND = "tensorrtllm"
ENGINE_PATH = "gpt_model_path"
LOGITS = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

# What a scoring call sends and reads.
_NEEDED = ("input_ids", "input_lengths", "request_output_len", "return_generation_logits")
_READ = ("output_ids", "sequence_length", "generation_logits")

# Scalars: dims [1] that the backend sees as [].
_SCALARS = {
    "TYPE_INT32": (
        "encoder_output_lengths input_lengths request_output_len num_return_sequences "
        "decoder_input_lengths end_id pad_id beam_width runtime_top_k runtime_top_p_reset_ids "
        "min_tokens prompt_vocab_size"
    ),
    "TYPE_FP32": (
        "draft_acceptance_threshold temperature runtime_top_p runtime_top_p_min "
        "runtime_top_p_decay len_penalty repetition_penalty beam_search_diversity_rate "
        "presence_penalty frequency_penalty"
    ),
    "TYPE_BOOL": (
        "early_stopping return_log_probs return_context_logits return_generation_logits "
        "return_perf_metrics return_num_input_tokens return_num_output_tokens "
        "exclude_input_in_output stop streaming"
    ),
    "TYPE_UINT64": "seed lora_task_id",
}
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "input_ids": ("TYPE_INT32", (-1,)),
    "encoder_input_features": ("TYPE_FP16", (-1, -1)),
    "draft_input_ids": ("TYPE_INT32", (-1,)),
    "decoder_input_ids": ("TYPE_INT32", (-1,)),
    "draft_logits": ("logits", (-1, -1)),
    "stop_words_list": ("TYPE_INT32", (2, -1)),
    "bad_words_list": ("TYPE_INT32", (2, -1)),
    "embedding_bias": ("TYPE_FP32", (-1,)),
    "prompt_embedding_table": ("TYPE_FP16", (-1, -1)),
    "prompt_table_extra_ids": ("TYPE_UINT64", (-1,)),
    "cross_attention_mask": ("TYPE_BOOL", (-1, -1)),
    "mrope_rotary_cos_sin": ("TYPE_FP32", (-1,)),
    "mrope_position_deltas": ("TYPE_INT64", (1,)),
    "lora_weights": ("TYPE_FP16", (-1, -1)),
    "lora_config": ("TYPE_INT32", (-1, 3)),
    "context_phase_params": ("TYPE_UINT8", (-1,)),
    "skip_cross_attn_blocks": ("TYPE_BOOL", (1,)),
    "retention_token_range_starts": ("TYPE_INT32", (-1,)),
    "retention_token_range_ends": ("TYPE_INT32", (-1,)),
    "retention_token_range_priorities": ("TYPE_INT32", (-1,)),
    "retention_token_range_durations_ms": ("TYPE_INT32", (-1,)),
    "retention_decode_priority": ("TYPE_INT32", (1,)),
    "retention_decode_duration_ms": ("TYPE_INT32", (1,)),
    "guided_decoding_guide_type": ("TYPE_STRING", (1,)),
    "guided_decoding_guide": ("TYPE_STRING", (1,)),
    "lookahead_window_size": ("TYPE_INT32", (1,)),
    "lookahead_ngram_size": ("TYPE_INT32", (1,)),
    "lookahead_verification_set_size": ("TYPE_INT32", (1,)),
}
_NOT_RAGGED = {"mrope_rotary_cos_sin", "mrope_position_deltas"}
_REQUIRED = {"input_lengths", "request_output_len"}
_OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "output_ids": ("TYPE_INT32", (-1, -1)),
    "sequence_length": ("TYPE_INT32", (-1,)),
    "cum_log_probs": ("TYPE_FP32", (-1,)),
    "output_log_probs": ("TYPE_FP32", (-1, -1)),
    "context_logits": ("logits", (-1, -1)),
    "generation_logits": ("logits", (-1, -1, -1)),
    "batch_index": ("TYPE_INT32", (1,)),
    "sequence_index": ("TYPE_INT32", (1,)),
    "context_phase_params": ("TYPE_UINT8", (-1,)),
    "kv_cache_alloc_new_blocks": ("TYPE_INT32", (1,)),
    "kv_cache_reused_blocks": ("TYPE_INT32", (1,)),
    "kv_cache_alloc_total_blocks": ("TYPE_INT32", (1,)),
    "arrival_time_ns": ("TYPE_INT64", (1,)),
    "first_scheduled_time_ns": ("TYPE_INT64", (1,)),
    "first_token_time_ns": ("TYPE_INT64", (1,)),
    "last_token_time_ns": ("TYPE_INT64", (1,)),
    "acceptance_rate": ("TYPE_FP32", (1,)),
    "total_accepted_draft_tokens": ("TYPE_INT32", (1,)),
    "total_draft_tokens": ("TYPE_INT32", (1,)),
    "num_input_tokens": ("TYPE_INT32", (1,)),
    "num_output_tokens": ("TYPE_INT32", (1,)),
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where the engine lies and how its executor runs; `max_batch_size` is the engine's."""

    engine_path: str
    max_batch_size: int
    logits_dtype: str
    kv_cache_reuse: bool
    kv_cache_fraction: float


def backend_model(backend: Backend, *, full: bool) -> ModelConfig:
    """The model `tensorrt_llm`. The logits' data type must be the engine's logits_dtype: the
    backend compares them when it fills a response."""
    config = model_config_pb2.ModelConfig(name=BACKEND_MODEL, backend=BACKEND)
    config.max_batch_size = backend.max_batch_size
    config.model_transaction_policy.decoupled = False
    logits = LOGITS[backend.logits_dtype]
    for tensor in _inputs(logits):
        if full or tensor.name in _NEEDED:
            add_tensor(config.input, tensor)
    for name, (dtype, dims) in _OUTPUTS.items():
        if full or name in _READ:
            kind = logits if dtype == "logits" else dtype
            add_tensor(config.output, Tensor(name=name, dtype=kind, dims=dims))
    config.dynamic_batching.max_queue_delay_microseconds = 0
    group = config.instance_group.add(count=1)
    # The executor owns the GPU; the Triton instance only hands requests over.
    group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    add_parameters(config, _parameters(backend))
    return config


def _parameters(backend: Backend) -> dict[str, str]:
    return {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_chunked_context": "false",
        "enable_kv_cache_reuse": str(backend.kv_cache_reuse).lower(),
        "exclude_input_in_output": "true",
        "executor_worker_path": _WORKER,
        ENGINE_PATH: backend.engine_path,
        "gpt_model_type": "inflight_fused_batching",
        "kv_cache_free_gpu_mem_fraction": str(backend.kv_cache_fraction),
        "max_beam_width": "1",
    }


def _inputs(logits: str) -> list[Tensor]:
    """Every input of the backend; those of a scoring call first."""
    tensors: dict[str, Any] = {}
    for dtype, names in _SCALARS.items():
        for name in names.split():
            tensors[name] = Tensor(
                name=name, dtype=dtype, dims=(1,), optional=name not in _REQUIRED, scalar=True
            )
    for name, (dtype, dims) in _ARRAYS.items():
        tensors[name] = Tensor(
            name=name,
            dtype=logits if dtype == "logits" else dtype,
            dims=dims,
            optional=True,
            ragged=name not in _NOT_RAGGED,
        )
    rest = sorted(name for name in tensors if name not in _NEEDED)
    return [tensors[name] for name in (*_NEEDED, *rest)]
