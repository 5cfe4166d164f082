"""Make `repository`: the Triton model repository."""

from __future__ import annotations

import json
from dataclasses import replace

from slmrank.data.labelled import read_labelled
from slmrank.engine.known_answers import KNOWN_FILE, KnownAnswer, known_json
from slmrank.engine.targets.base import EngineTarget
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import Making
from slmrank.repository.generate import (
    Contents,
    prepare_stage,
    queue_of,
    render_configs,
    write_repository,
)
from slmrank.serving.prepare import SUMMARIES_FILE
from slmrank.serving.score_cache import PARAMETER, cache_parameter
from slmrank.spec.bundle import BundleSpec
from slmrank.store.job_store import IDENTITY_FILE, SharedKind
from slmrank.store.registry import store_kind
from slmrank.summarize.summarizer import FITTED_FOLDER
from slmrank.triton.config import PREPARE, RANKER, add_parameters


def make_repository(
    spec: BundleSpec, target: EngineTarget, server_code: str, making: Making
) -> None:
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    engine, summaries = making.inputs["engine"], making.inputs["summaries"]
    identity = {
        "bundle": spec.name,
        "engine": engine.key,
        "engine_target": target.name,
        "precision": target.precision(spec.engine),
        "checkpoint": making.inputs["checkpoint"].key,
        "summaries": summaries.key,
        "prompt_hash": checkpoint.template.hash,
        "tokenizer_hash": checkpoint.tokenizer_hash,
        "max_item_tokens": str(checkpoint.max_item_tokens),
        "max_query_tokens": str(checkpoint.max_query_tokens),
        "code": server_code,
        **target.identity(engine.figures),
    }
    models = target.triton_models(spec, checkpoint, engine.figures, queue_of(spec))
    if spec.repository.cache is not None:
        # By its content: the same spec, trained again, is another engine under the same key.
        decides = {"engine": engine.digest, "engine_target": target.name, "code": server_code}
        add_parameters(models[RANKER], {PARAMETER: cache_parameter(spec.repository.cache, decides)})
        identity["cache"] = spec.repository.cache.place
    if spec.repository.depth is not None:
        identity["depth"] = f"queue delay {spec.repository.depth.target_ms:g} ms"
    configs = render_configs(spec, models, identity)
    prepare = f"{PREPARE}/1"
    links = {
        f"{prepare}/{FITTED_FOLDER}": making.inputs["summarizer"].path / FITTED_FOLDER,
        **target.links(engine.path),
    }
    kind, place = store_kind(spec.summarize.store)
    if not isinstance(kind, SharedKind):
        files = kind.files(place, summaries.path)
        links[f"{prepare}/{files.name}"] = files
    write_repository(
        making.draft.path,
        configs,
        Contents(
            stages={PREPARE: prepare_stage(), RANKER: target.stage()},
            prepare_files={
                SUMMARIES_FILE: spec.summarize.carried(),
                IDENTITY_FILE: json.dumps(summaries.figures["identity"], sort_keys=True),
            },
            checkpoint=checkpoint.path,
            links=links,
        ),
    )
    answers = [KnownAnswer(**answer) for answer in engine.figures["known_answers"]]
    if "data" in making.inputs:
        jobs = read_labelled(making.inputs["data"].path).jobs
        answers = [replace(one, job=jobs[one.job_id].model_dump()) for one in answers]
    (making.draft.path / KNOWN_FILE).write_text(known_json(answers), encoding="utf-8")
    making.draft.figures.update(identity)
