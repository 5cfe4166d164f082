"""Target `trtllm-llmapi`: `tensorrt_llm.LLM` inside a Python model; nothing is compiled ahead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact
from slmrank.engine.parity import Scorer
from slmrank.engine.targets.base import Building, DeployFacts, EngineTarget, prompt_limits
from slmrank.engine.trtllm.diagnosis import diagnose_trtllm
from slmrank.engine.trtllm.layout import positions_of
from slmrank.engine.trtllm.plan import check_limits, check_spec
from slmrank.machine.inspection import Machine, Report
from slmrank.model.checkpoint import Checkpoint, open_checkpoint, read_config
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec, TrtllmSpec
from slmrank.triton.config import RANKER, ModelConfig, Queue, label_parameters, ranker_model

MODEL_FOLDER = "model"
_SERVING = (
    *("max_batch_size", "max_num_tokens", "tokens_per_block"),
    *("kv_cache_reuse", "kv_cache_fraction"),
)


class TrtllmLlmApiTarget(EngineTarget):
    name = "trtllm-llmapi"
    needs_gpu = True
    code = ("slmrank.engine.trtllm.llmapi_export",)
    runtime = ("tensorrt-llm",)

    def settings(self, spec: BundleSpec) -> dict[str, Any]:
        own = spec.engine.trtllm
        return {"dtype": own.dtype, "version": own.version, "container": own.container}

    def serving_settings(self, spec: BundleSpec) -> dict[str, Any]:
        own = spec.engine.trtllm.settings()
        return {name: own[name] for name in _SERVING}

    def check(self, spec: EngineSpec) -> None:
        check_spec(spec.trtllm)

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return ("torch", "transformers", "safetensors"), "train"

    def precision(self, spec: EngineSpec) -> str:
        return spec.trtllm.dtype

    def build(self, building: Building) -> dict[str, Any]:
        from slmrank.engine.trtllm.llmapi_export import export_llmapi

        spec, checkpoint = building.spec.engine.trtllm, building.checkpoint
        _check(spec, checkpoint)
        building.report("export model")
        sizes = export_llmapi(checkpoint, building.folder / MODEL_FOLDER, dtype=spec.dtype)
        parity = self.check_parity(building)
        return {"built": True, "dtype": spec.dtype, "trtllm": spec.version, **parity, **sizes}

    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        from slmrank.model.reference import ReferenceScorer

        scorer = ReferenceScorer(open_checkpoint(engine / MODEL_FOLDER))
        return lambda query: scorer.logits(query.prompts())

    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        _check(spec.engine.trtllm, checkpoint)
        parameters = label_parameters(checkpoint.labels) | prompt_limits(checkpoint)
        parameters["max_seq_len"] = str(checkpoint.encoder().max_prompt_tokens + 1)
        for name, value in self.serving_settings(spec).items():
            parameters[name] = json.dumps(value)
        # One instance, because it owns the GPU.
        return {RANKER: ranker_model(spec.repository.max_batch_size, queue, parameters)}

    def links(self, engine: Path) -> dict[str, Path]:
        return {f"{RANKER}/1/model": engine / MODEL_FOLDER}

    def deploy_facts(self, spec: BundleSpec, engine: Artifact) -> DeployFacts:
        return DeployFacts(gpu_product=spec.engine.trtllm.gpu)

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        diagnose_trtllm(machine, spec.trtllm, report, packages=("tensorrt-llm",))


def _check(spec: TrtllmSpec, checkpoint: Checkpoint) -> None:
    positions = positions_of(read_config(checkpoint.path))
    check_limits(spec, positions, checkpoint.encoder().max_prompt_tokens)
