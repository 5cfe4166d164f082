"""What serves as `ranker` in a repository, one dataclass for each engine target.

All have the same tensors (design.md 5.2); they differ in parameters, instances, files, and in the
engine target a second model `tensorrt_llm` behind the fan-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slmrank.engine.scorer import MODEL_FOLDER
from slmrank.engine.trtllm.backend_config import BACKEND_MODEL, Backend, backend_model
from slmrank.prompt.labels import Labels
from slmrank.spec.bundle import Target
from slmrank.triton.config import (
    ITEM_IDS,
    ITEM_LENGTHS,
    PREFIX_IDS,
    SCORE,
    ModelConfig,
    Queue,
    python_model,
)

RANKER = "ranker"


@dataclass(frozen=True, kw_only=True)
class OpenVinoRanker:
    """The embedded CPU engine; `threads` 0 takes all cores, in each of `instances` processes."""

    threads: int
    instances: int = 1
    target: Target = "openvino"

    def models(self, max_batch_size: int, queue: Queue) -> dict[str, ModelConfig]:
        parameters = {"threads": str(self.threads)}
        return {RANKER: _stage(max_batch_size, queue, parameters, self.instances)}

    def links(self, engine: Path) -> dict[str, Path]:
        """Folders to put into the repository: path inside it -> where it lies now."""
        return {f"{RANKER}/1/engine": engine}


@dataclass(frozen=True, kw_only=True)
class EngineRanker:
    """Fan-out over the C++ TensorRT-LLM backend; the engine stays at `engine_path`."""

    labels: Labels
    engine_path: str
    instances: int
    max_in_flight: int
    max_batch_size: int
    logits_dtype: str
    kv_cache_reuse: bool
    kv_cache_fraction: float
    full_template: bool
    target: Target = "trtllm-engine"

    def models(self, max_batch_size: int, queue: Queue) -> dict[str, ModelConfig]:
        parameters = {**_label_ids(self.labels), "max_in_flight": str(self.max_in_flight)}
        backend = Backend(
            engine_path=self.engine_path,
            max_batch_size=self.max_batch_size,
            logits_dtype=self.logits_dtype,
            kv_cache_reuse=self.kv_cache_reuse,
            kv_cache_fraction=self.kv_cache_fraction,
        )
        return {
            RANKER: _stage(max_batch_size, queue, parameters, self.instances),
            BACKEND_MODEL: backend_model(backend, full=self.full_template),
        }

    def links(self, engine: Path) -> dict[str, Path]:
        return {}


@dataclass(frozen=True, kw_only=True)
class LlmApiRanker:
    """`tensorrt_llm.LLM` inside a Python model; one instance, because it owns the GPU."""

    labels: Labels
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    tokens_per_block: int
    kv_cache_reuse: bool
    kv_cache_fraction: float
    target: Target = "trtllm-llmapi"

    def models(self, max_batch_size: int, queue: Queue) -> dict[str, ModelConfig]:
        parameters = {
            **_label_ids(self.labels),
            "max_batch_size": str(self.max_batch_size),
            "max_num_tokens": str(self.max_num_tokens),
            "max_seq_len": str(self.max_seq_len),
            "tokens_per_block": str(self.tokens_per_block),
            "kv_cache_reuse": str(self.kv_cache_reuse).lower(),
            "kv_cache_fraction": str(self.kv_cache_fraction),
        }
        return {RANKER: _stage(max_batch_size, queue, parameters)}

    def links(self, engine: Path) -> dict[str, Path]:
        return {f"{RANKER}/1/model": engine / MODEL_FOLDER}


Ranker = OpenVinoRanker | EngineRanker | LlmApiRanker


def stage_folder(target: Target) -> str:
    """The folder of `model_repository/` with the code of a target's `ranker`."""
    return f"{RANKER}_{target.replace('-', '_')}"


def _stage(
    max_batch_size: int, queue: Queue, parameters: dict[str, str], instances: int = 1
) -> ModelConfig:
    return python_model(
        RANKER,
        (PREFIX_IDS, ITEM_IDS, ITEM_LENGTHS),
        (SCORE,),
        max_batch_size=max_batch_size,
        queue=queue,
        parameters=parameters,
        instances=instances,
    )


def _label_ids(labels: Labels) -> dict[str, str]:
    return {"yes_id": str(labels.yes), "no_id": str(labels.no)}
