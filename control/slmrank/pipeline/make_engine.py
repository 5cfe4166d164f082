"""What the engine and repository steps do, for each target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from slmrank.client.known_answers import KNOWN_FILE, KnownAnswer, choose_known, known_json
from slmrank.data.records import Split
from slmrank.engine.parity import Tolerance, compare_with_reference, require_parity
from slmrank.engine.scorer import EMITTED_FOLDER, MODEL_FOLDER, open_scorer
from slmrank.hashing import hash_file, hash_value
from slmrank.model.checkpoint import Checkpoint, read_config
from slmrank.model.probability import probability
from slmrank.pipeline.make import checkpoint_of, split_queries, take_pairs
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import EncodedQuery
from slmrank.repository.generate import RepositorySettings, render_configs, write_repository
from slmrank.repository.rankers import (
    EngineRanker,
    LlmApiRanker,
    OpenVinoRanker,
    Ranker,
    stage_folder,
)
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec, EngineSpec, Target
from slmrank.summarize.build_store import STORE_FOLDER

KNOWN_QUERIES = 4
JOB_FILE = "engine-build-job.yaml"
Maker = Callable[[BundleSpec, Making], None]


def openvino_engine(bundle: BundleSpec, making: Making) -> None:
    from slmrank.engine.openvino.build import OpenVinoSettings, build_openvino

    spec = bundle.engine
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    figures = build_openvino(
        checkpoint,
        OpenVinoSettings(
            precision=spec.precision,
            smooth_quant_alpha=spec.smooth_quant_alpha,
            max_batch_items=spec.max_batch_items,
        ),
        _calibration(making, checkpoint, spec.calibration_prompts),
        _held_out(making, checkpoint, spec),
        _tolerance(spec),
        making.draft.path,
        lambda note: making.watcher.progress(0, 0, note),
    )
    making.draft.figures.update({"target": "openvino", "built": True, **figures})
    _note_known("openvino", spec, checkpoint, making)


def trtllm_engine(bundle: BundleSpec, making: Making) -> None:
    """Checkpoint, plan and Job manifest; the engine itself is built where the GPU is."""
    from slmrank.artifacts import inventory
    from slmrank.deploy.engine_job import engine_job
    from slmrank.deploy.yaml_text import to_yaml
    from slmrank.engine.trtllm.checkpoint import emit_checkpoint
    from slmrank.engine.trtllm.compile import write_plan
    from slmrank.engine.trtllm.layout import positions_of
    from slmrank.engine.trtllm.plan import make_plan
    from slmrank.engine.trtllm.quantize import emit_quantized

    spec, given = bundle.engine, bundle.engine.trtllm
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    positions = positions_of(read_config(checkpoint.path))
    longest = checkpoint.encoder().max_prompt_tokens
    plan = make_plan(given, checkpoint.geometry, positions, longest)
    folder = making.draft.path / EMITTED_FOLDER
    making.watcher.progress(0, 0, "emit checkpoint")
    if given.quantization == "none":
        emitted = emit_checkpoint(
            checkpoint, folder, dtype=given.dtype, logits_dtype=given.logits_dtype
        )
    else:
        queries = _calibration(making, checkpoint, given.calibration_prompts)
        emitted = emit_quantized(
            checkpoint,
            folder,
            quantization=given.quantization,
            dtype=given.dtype,
            logits_dtype=given.logits_dtype,
            calibration=[prompt for one in queries for prompt in one.prompts()],
        )
    parity = _checked_parity("trtllm-engine", spec, checkpoint, making)
    tag = write_plan(making.draft.path, plan, hash_value(inventory(folder)))
    job = engine_job(
        plan, tag=tag, bundle=bundle.name, planned=tag, image=given.image, engines=given.engines
    )
    (making.draft.path / JOB_FILE).write_text(to_yaml(job), encoding="utf-8")
    making.draft.figures.update(
        {
            "target": "trtllm-engine",
            "built": False,
            "tag": tag,
            "plan_hash": plan.hash,
            "gpu": plan.gpu,
            "container": plan.container,
            "trtllm": plan.trtllm,
            "quantization": given.quantization,
            "dtype": given.dtype,
            **parity,
            **emitted.as_dict(),
        }
    )
    _note_known("trtllm-engine", spec, checkpoint, making)


def llmapi_engine(bundle: BundleSpec, making: Making) -> None:
    """The model directory that `tensorrt_llm.LLM` loads; there is nothing to compile."""
    from slmrank.engine.trtllm.layout import positions_of
    from slmrank.engine.trtllm.llmapi_export import export_llmapi
    from slmrank.engine.trtllm.plan import check_limits

    spec, given = bundle.engine, bundle.engine.trtllm
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    positions = positions_of(read_config(checkpoint.path))
    check_limits(given, positions, checkpoint.encoder().max_prompt_tokens)
    folder = making.draft.path / MODEL_FOLDER
    making.watcher.progress(0, 0, "export model")
    sizes = export_llmapi(checkpoint, folder, dtype=given.dtype)
    parity = _checked_parity("trtllm-llmapi", spec, checkpoint, making)
    making.draft.figures.update(
        {
            "target": "trtllm-llmapi",
            "built": True,
            "dtype": given.dtype,
            "trtllm": given.version,
            **parity,
            **sizes,
        }
    )
    _note_known("trtllm-llmapi", spec, checkpoint, making)


ENGINES: Mapping[Target, Maker] = {
    "openvino": openvino_engine,
    "trtllm-engine": trtllm_engine,
    "trtllm-llmapi": llmapi_engine,
}


def repository(spec: BundleSpec, making: Making) -> None:
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    engine = making.inputs["engine"]
    given = spec.repository
    identity = {
        "bundle": spec.name,
        "engine": engine.key,
        "engine_target": spec.engine.target,
        "precision": _precision(spec.engine),
        "checkpoint": making.inputs["checkpoint"].key,
        "summaries": making.inputs["summaries"].key,
        "prompt_hash": checkpoint.prompt.template.hash,
        "tokenizer_hash": checkpoint.prompt.tokenizer_hash,
        "max_item_tokens": str(checkpoint.prompt.max_item_tokens),
        "max_query_tokens": str(checkpoint.prompt.max_query_tokens),
    }
    identity["stages"] = stages_hash(spec.engine.target)
    if spec.engine.target == "trtllm-engine":
        identity["engine_tag"] = engine.figures["tag"]
    settings = RepositorySettings(
        max_batch_size=given.max_batch_size,
        max_queue_delay_us=given.max_queue_delay_us,
        max_queue_size=given.max_queue_size,
        queue_timeout_us=spec.queue_timeout_us,
        max_items=given.max_items,
    )
    ranker = _ranker(spec, checkpoint, engine.figures)
    write_repository(
        making.draft.path,
        render_configs(settings, ranker, identity),
        ranker,
        engine=engine.path,
        checkpoint=checkpoint.path,
        store=making.inputs["summaries"].path / STORE_FOLDER,
    )
    known = [KnownAnswer(**one) for one in engine.figures["known_answers"]]
    (making.draft.path / KNOWN_FILE).write_text(known_json(known), encoding="utf-8")
    making.draft.figures.update(identity)


def stages_hash(target: Target) -> str:
    """Hash of the code of the Triton stages that a target's repository holds."""
    names = ("prepare", stage_folder(target))
    files = [shipped("model_repository") / name / "1" / "model.py" for name in names]
    return hash_value({file.parent.parent.name: hash_file(file) for file in files})[:16]


def _ranker(spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any]) -> Ranker:
    given = spec.engine.trtllm
    if spec.engine.target == "openvino":
        return OpenVinoRanker(threads=spec.repository.threads, instances=spec.repository.instances)
    if spec.engine.target == "trtllm-llmapi":
        return LlmApiRanker(
            labels=checkpoint.labels,
            max_batch_size=given.max_batch_size,
            max_num_tokens=given.max_num_tokens,
            max_seq_len=checkpoint.encoder().max_prompt_tokens + 1,
            tokens_per_block=given.tokens_per_block,
            kv_cache_reuse=given.kv_cache_reuse,
            kv_cache_fraction=given.kv_cache_fraction,
        )
    return EngineRanker(
        labels=checkpoint.labels,
        engine_path=f"{given.engines.rstrip('/')}/{figures['tag']}",
        instances=given.ranker_instances,
        max_in_flight=given.max_in_flight,
        max_batch_size=given.max_batch_size,
        logits_dtype=given.logits_dtype,
        kv_cache_reuse=given.kv_cache_reuse,
        kv_cache_fraction=given.kv_cache_fraction,
        full_template=given.full_template,
    )


def _precision(spec: EngineSpec) -> str:
    if spec.target == "openvino":
        return spec.precision
    given = spec.trtllm
    return given.dtype if given.quantization == "none" else given.quantization


def _calibration(making: Making, checkpoint: Checkpoint, pairs: int) -> list[EncodedQuery]:
    return take_pairs(split_queries(making, checkpoint, "train", 1), pairs)


def _held_out(making: Making, checkpoint: Checkpoint, spec: EngineSpec) -> list[EncodedQuery]:
    split: Split = "dev" if making.inputs["data"].figures["pairs"]["dev"] else "test"
    queries = split_queries(making, checkpoint, split, 1)
    return take_pairs(queries, spec.parity.pairs, per_query=16)


def _note_known(target: Target, spec: EngineSpec, checkpoint: Checkpoint, making: Making) -> None:
    """Write down what this engine answers, for whoever serves it."""
    scorer = open_scorer(target, making.draft.path, checkpoint)
    scored = [
        (one.query, job_id, float(p))
        for one in _held_out(making, checkpoint, spec)[:KNOWN_QUERIES]
        for job_id, p in zip(one.job_ids, probability(scorer(one)), strict=True)
    ]
    making.draft.figures["known_answers"] = [asdict(one) for one in choose_known(scored)]


def _tolerance(spec: EngineSpec) -> Tolerance:
    return Tolerance(
        max_mean_abs_dp=spec.parity.max_mean_abs_dp,
        max_abs_dp=spec.parity.max_abs_dp,
        min_pair_order=spec.parity.min_pair_order,
    )


def _checked_parity(
    target: Target, spec: EngineSpec, checkpoint: Checkpoint, making: Making
) -> dict[str, Any]:
    """Figures of the parity gate. Raises ParityError when the tolerance is left."""
    making.watcher.progress(0, 0, "check parity")
    scorer = open_scorer(target, making.draft.path, checkpoint)
    parity = compare_with_reference(checkpoint, scorer, _held_out(making, checkpoint, spec))
    tolerance = _tolerance(spec)
    require_parity(parity, tolerance)
    return {"parity": asdict(parity), "tolerance": asdict(tolerance)}
