"""Inside NVIDIA's container with a GPU: the engine is built, served and compared.

Everywhere else these tests skip with the reason. They have not been run yet where this was written;
the stand-ins of tests/repository hold the same contracts on a CPU.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slmrank.artifacts import ArtifactStore
from slmrank.client.asked import Asked
from slmrank.client.client import RankClient
from slmrank.engine.trtllm.builder import Builder, find_builder
from slmrank.engine.trtllm.compatibility import load_compatibility
from slmrank.engine.trtllm.compile import compile_engine, read_planned
from slmrank.engine.trtllm.reference import EmittedModel
from slmrank.machine.facts import find_gpus, installed_version
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec

from tests.conftest import TinyBundle


def missing() -> str:
    """Why these tests cannot run here, or an empty text. Nothing heavy is imported."""
    gpus, reason = find_gpus()
    if not gpus:
        return f"no NVIDIA GPU: {reason}"
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "tensorrt_llm is not installed: run inside the container of build/gpu.Dockerfile"
    version = installed_version("tensorrt-llm") or installed_version("tensorrt_llm")
    if version not in load_compatibility().supported:
        return f"TensorRT-LLM {version} is installed, not {load_compatibility().supported}"
    return ""


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
JOBS = [f"job-{number}" for number in range(24)]
QUERY = (
    "a night shift as a cook near the harbour, with a long query that fills a whole block of keys"
)


@pytest.fixture(scope="module")
def gpu_bundle(
    tiny: TinyBundle, make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Bundle, TinyBundle]]:
    """A function that gives the tiny bundle on a model with heads of 64, for this GPU."""
    model = make_model(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    capability = find_gpus()[0][0].capability
    product = next(name for name, one in load_compatibility().gpus.items() if one == capability)
    engines = tmp_path_factory.mktemp("engines")

    def make(target: str, **trtllm: Any) -> tuple[Bundle, TinyBundle]:
        spec = yaml.safe_load(tiny.spec.read_text())
        spec["base"] = {"source": str(model)}
        settings = {"gpu": product, "engines": str(engines), "max_batch_size": 64, **trtllm}
        spec["engine"] |= {"target": target, "trtllm": settings}
        spec["engine"]["parity"] = {"max_mean_abs_dp": 0.02}
        path = tiny.spec.parent / f"gpu-{target}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return Bundle(load_spec(path)), tiny

    return make


def compiled(bundle: Bundle, tiny: TinyBundle) -> Any:
    planned = read_planned(run(bundle.engine, tiny.store).path)
    builder = find_builder(planned.plan, docker=False)
    assert isinstance(builder, Builder), builder
    engines = ArtifactStore(Path(bundle.spec.engine.trtllm.engines))
    return planned, compile_engine(planned, engines, builder, print)


@pytest.fixture(scope="module")
def engine_server(
    gpu_bundle: Callable[..., tuple[Bundle, TinyBundle]],
) -> Iterator[tuple[Server, Bundle, TinyBundle, Any]]:
    bundle, tiny = gpu_bundle("trtllm-engine")
    planned, _ = compiled(bundle, tiny)
    repository = run(bundle.repository, tiny.store).path
    with Server(repository, ANY_PORTS) as server:
        yield server, bundle, tiny, planned


def scores(server: Server, jobs: list[Asked] = JOBS) -> Any:
    with RankClient(server.url) as client:
        return np.array([item.score for item in client.score(QUERY, jobs)])


def test_the_engine_is_the_planned_one(
    gpu_bundle: Callable[..., tuple[Bundle, TinyBundle]],
) -> None:
    planned, built = compiled(*gpu_bundle("trtllm-engine"))
    config = json.loads((built.path / "config.json").read_text())
    assert config["version"] == planned.plan.trtllm
    assert built.manifest["versions"]["capability"] == planned.plan.capability


def test_served_scores_are_those_of_the_reference(
    engine_server: tuple[Server, Bundle, TinyBundle, Any],
) -> None:
    server, bundle, tiny, planned = engine_server
    wanted = reference_scores(bundle, tiny, planned)
    np.testing.assert_allclose(scores(server), wanted, atol=1e-2)


def reference_scores(bundle: Bundle, tiny: TinyBundle, planned: Any) -> Any:
    """P of the emitted checkpoint with reference arithmetic."""
    from slmrank.model.probability import probability
    from slmrank.store.registry import open_store

    checkpoint = checkpoint_of(run(bundle.final, tiny.store))
    encoder = checkpoint.encoder()
    with closing(open_store("lmdb:", run(bundle.summaries, tiny.store).path)) as store:
        items = [encoder.item(ids).ids for ids in store.ids_many(JOBS)]
    prompts = [np.concatenate([encoder.prefix(QUERY), item]) for item in items]
    return probability(EmittedModel(planned.checkpoint).label_logits(prompts, checkpoint.labels))


def test_block_reuse_does_not_change_scores(
    gpu_bundle: Callable[..., tuple[Bundle, TinyBundle]],
    engine_server: tuple[Server, Bundle, TinyBundle, Any],
) -> None:
    first = scores(engine_server[0])
    again = scores(engine_server[0])
    np.testing.assert_allclose(first, again, atol=1e-3)
    bundle, tiny = gpu_bundle("trtllm-engine", kv_cache_reuse=False)
    repository = run(bundle.repository, tiny.store).path
    with Server(repository, ANY_PORTS) as server:
        np.testing.assert_allclose(scores(server), first, atol=1e-2)


def call_backend(server: Server, ids: Any) -> Any:
    """One direct call of the model `tensorrt_llm`; returns the generation logits [V]."""
    from tritonclient import grpc as triton

    def tensor(name: str, values: Any, kind: str) -> Any:
        made = triton.InferInput(name, list(values.shape), kind)
        made.set_data_from_numpy(values)
        return made

    inputs = [
        tensor("input_ids", ids[None].astype(np.int32), "INT32"),
        tensor("input_lengths", np.array([[len(ids)]], np.int32), "INT32"),
        tensor("request_output_len", np.array([[1]], np.int32), "INT32"),
        tensor("return_generation_logits", np.array([[True]]), "BOOL"),
    ]
    names = ("output_ids", "sequence_length", "generation_logits")
    outputs = [triton.InferRequestedOutput(name) for name in names]
    with triton.InferenceServerClient(server.url) as client:
        answer = client.infer("tensorrt_llm", inputs, outputs=outputs)
    return answer.as_numpy("generation_logits").reshape(-1)


def test_the_first_generation_logits_follow_the_last_prompt_token(
    engine_server: tuple[Server, Bundle, TinyBundle, Any],
) -> None:
    server, _, _, planned = engine_server
    ids = np.random.default_rng(0).integers(1, 900, 60).astype(np.int32)
    wanted = EmittedModel(planned.checkpoint).last_logits([ids])[0].numpy()
    np.testing.assert_allclose(call_backend(server, ids), wanted, atol=0.05)


def test_an_over_long_prompt_is_refused_in_words(
    engine_server: tuple[Server, Bundle, TinyBundle, Any],
) -> None:
    server, _, _, planned = engine_server
    ids = np.ones(planned.plan.max_input_len + 1, np.int32)
    with pytest.raises(Exception, match="maximum input length"):
        call_backend(server, ids)
    assert scores(server).shape == (len(JOBS),)


def test_the_llm_api_scores_the_same(
    gpu_bundle: Callable[..., tuple[Bundle, TinyBundle]],
    engine_server: tuple[Server, Bundle, TinyBundle, Any],
) -> None:
    wanted = scores(engine_server[0])
    engine_server[0].stop()
    bundle, tiny = gpu_bundle("trtllm-llmapi")
    with Server(run(bundle.repository, tiny.store).path, ANY_PORTS) as server:
        np.testing.assert_allclose(scores(server), wanted, atol=1e-2)
