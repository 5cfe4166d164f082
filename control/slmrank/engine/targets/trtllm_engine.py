"""Target `trtllm-engine`: a compiled TensorRT-LLM engine behind Triton's C++ backend.

Building gives a TensorRT-LLM checkpoint and a build plan; the engine itself is compiled where its
GPU is, from the plan (`slmrank.engine.trtllm.compile`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, inventory
from slmrank.engine.parity import Scorer
from slmrank.engine.targets.base import Building, DeployFacts, EngineTarget, prompt_limits
from slmrank.engine.trtllm.backend_config import BACKEND_MODEL, backend_model
from slmrank.engine.trtllm.compatibility import MODELOPT, TABLE
from slmrank.engine.trtllm.compile import compiled_path, read_planned, write_plan
from slmrank.engine.trtllm.diagnosis import BACKEND_FOLDER, INSIDE, diagnose_trtllm
from slmrank.engine.trtllm.layout import positions_of
from slmrank.engine.trtllm.plan import EMITTED_FOLDER, check_spec, make_plan
from slmrank.hashing import hash_file, hash_value
from slmrank.machine.inspection import Machine, Report
from slmrank.model.checkpoint import Checkpoint, read_config
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import EngineSpec
from slmrank.triton.config import RANKER, ModelConfig, Queue, label_parameters, ranker_model

_SERVING_ONLY = ("kv_cache_reuse", "kv_cache_fraction", "ranker_instances", "max_in_flight")


class TrtllmEngineTarget(EngineTarget):
    name = "trtllm-engine"
    needs_gpu = True
    compiled_elsewhere = True
    code = ("slmrank.engine.trtllm.checkpoint", "slmrank.engine.trtllm.quantize")
    runtime = ("tensorrt-llm",)

    def settings(self, spec: BundleSpec) -> dict[str, Any]:
        own = spec.engine.trtllm.settings()
        kept = {name: value for name, value in own.items() if name not in _SERVING_ONLY}
        return {**kept, "compatibility": hash_file(shipped(TABLE))}

    def serving_settings(self, spec: BundleSpec) -> dict[str, Any]:
        own = spec.engine.trtllm.settings()
        return {name: own[name] for name in _SERVING_ONLY}

    def check(self, spec: EngineSpec) -> None:
        check_spec(spec.trtllm)

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        if spec.trtllm.quantization == "none":
            return ("torch", "transformers", "safetensors"), "train"
        return ("torch", "transformers", "safetensors", "nvidia-modelopt"), "train,quantize"

    def precision(self, spec: EngineSpec) -> str:
        own = spec.trtllm
        return own.dtype if own.quantization == "none" else own.quantization

    def build(self, building: Building) -> dict[str, Any]:
        """Checkpoint and plan; the checkpoint's own files are scored by the parity gate."""
        from slmrank.engine.trtllm.checkpoint import emit_checkpoint
        from slmrank.engine.trtllm.quantize import emit_quantized

        spec, checkpoint = building.spec.engine.trtllm, building.checkpoint
        positions = positions_of(read_config(checkpoint.path))
        longest = checkpoint.encoder().max_prompt_tokens
        plan = make_plan(spec, checkpoint.geometry, positions, longest)
        folder = building.folder / EMITTED_FOLDER
        building.report("emit checkpoint")
        if spec.quantization == "none":
            emitted = emit_checkpoint(
                checkpoint, folder, dtype=spec.dtype, logits_dtype=spec.logits_dtype
            )
        else:
            queries = building.calibration(spec.calibration_prompts)
            prompts = [prompt for query in queries for prompt in query.prompts()]
            emitted = emit_quantized(checkpoint, folder, spec, prompts)
        parity = self.check_parity(building)
        tag = write_plan(building.folder, plan, hash_value(inventory(folder)))
        return {
            "built": False,
            "tag": tag,
            "plan_hash": plan.hash,
            "gpu": plan.gpu,
            "container": plan.container,
            "trtllm": plan.trtllm,
            "quantization": spec.quantization,
            "dtype": spec.dtype,
            **parity,
            **emitted,
        }

    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        from slmrank.engine.trtllm.reference import EmittedModel

        model = EmittedModel(engine / EMITTED_FOLDER)
        return lambda query: model.label_logits(query.prompts(), checkpoint.labels)

    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        own = spec.engine.trtllm
        parameters = label_parameters(checkpoint.labels) | prompt_limits(checkpoint)
        parameters |= {"max_in_flight": str(own.max_in_flight)}
        requests = spec.repository.max_batch_size
        engine = compiled_path(own.engines, figures["tag"])
        return {
            RANKER: ranker_model(requests, queue, parameters, own.ranker_instances),
            BACKEND_MODEL: backend_model(own, engine),
        }

    def identity(self, figures: Mapping[str, Any]) -> dict[str, str]:
        return {"engine_tag": figures["tag"]}

    def deploy_facts(self, spec: BundleSpec, engine: Artifact) -> DeployFacts:
        planned = read_planned(engine.path)
        size = sum(
            file["bytes"]
            for name, file in engine.manifest["files"].items()
            if name.startswith(f"{EMITTED_FOLDER}/")
        )
        return DeployFacts(
            tag=planned.tag,
            bytes=size,
            engines=spec.engine.trtllm.engines,
            plan=asdict(planned.plan),
            gpu_product=planned.plan.gpu,
        )

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        own = spec.trtllm
        if not diagnose_trtllm(machine, own, report, packages=("tensorrt-llm", "tensorrt")):
            return
        report.add(
            "trtllm-build",
            machine.trtllm_build is not None,
            machine.trtllm_build or "not on the PATH",
            f"{INSIDE}, or build with --docker",
        )
        found = str(BACKEND_FOLDER) if machine.backend else f"no {BACKEND_FOLDER}"
        report.add("Triton backend", machine.backend, found, INSIDE)
        report.add(
            "docker (for --docker)",
            "ok" if machine.docker else "unknown",
            machine.docker or machine.no_docker,
            "install and start Docker, or do without --docker",
        )
        if own.quantization != "none":
            have = machine.versions.get("nvidia-modelopt")
            fix = "pip install 'slmrank[quantize]'"
            report.add("nvidia-modelopt", have == MODELOPT, have or "not installed", fix)
