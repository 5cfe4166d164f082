"""The repositories of the GPU targets: golden configurations, and both run on the real tritonserver
with stand-ins for the parts that need a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.client.asked import ItemText
from slmrank.client.client import RankClient
from slmrank.engine.fan_out import label_probability, split_items, whole_prompts
from slmrank.engine.trtllm.backend_config import backend_model
from slmrank.engine.trtllm.compile import compiled_path, read_planned
from slmrank.engine.trtllm.reference import EmittedModel
from slmrank.errors import ControlError, EngineError, ServerError
from slmrank.model.probability import probability
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import run
from slmrank.prompt.labels import Labels
from slmrank.repository.generate import check_repository
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.engine import TrtllmSpec
from slmrank.spec.reading import change_spec
from slmrank.store.registry import open_store
from slmrank.triton.config import parse_config, print_config
from slmrank.triton.status import Status

from tests.conftest import TinyBundle
from tests.redis_server import RedisServer
from tests.repository.test_repository import GOLDEN, rendered

STANDINS = Path(__file__).parent / "standins"
TRTLLM = {
    "target": "trtllm-engine",
    "trtllm": {"ranker_instances": 2, "max_batch_size": 128, "kv_cache_fraction": 0.25},
}
TARGETS = ("trtllm-engine", "trtllm-llmapi")


def golden(name: str, config: Any) -> None:
    text = print_config(config)
    path = GOLDEN / f"{name}.pbtxt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert parse_config(text) == config
    assert "${" not in text


@pytest.mark.parametrize("target", TARGETS)
def test_the_rendered_text_is_the_golden_one(target: str) -> None:
    configs = rendered(target, engine=TRTLLM)
    for name in set(configs) - {"prepare", "rank"}:
        golden(f"{target.replace('-', '_')}-{name}", configs[name])


def test_the_backend_model_is_the_golden_one() -> None:
    own = TrtllmSpec(
        max_batch_size=128,
        logits_dtype="float16",
        kv_cache_reuse=False,
        kv_cache_fraction=0.5,
    )
    config = backend_model(own, "/engines/0123456789ab")
    golden("backend", config)
    inputs = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name: tensor for tensor in config.output}
    assert len(inputs) == 4
    assert len(outputs) == 3
    assert inputs["input_ids"].allow_ragged_batch
    assert inputs["input_lengths"].HasField("reshape")
    assert not inputs["request_output_len"].optional
    # The backend compares this type with the engine's logits_dtype.
    assert (
        outputs["generation_logits"].data_type
        == parse_config('output { name: "x" data_type: TYPE_FP16 dims: 1 }').output[0].data_type
    )


def test_the_client_sees_the_same_tensors_for_every_target() -> None:
    def contract(target: str) -> Any:
        rank = rendered(target, engine=TRTLLM)["rank"]
        return [*rank.input, *rank.output, rank.ensemble_scheduling, rank.max_batch_size]

    first, second = (contract(target) for target in TARGETS)
    assert first == second
    assert first[:4] == list(parse_config((GOLDEN / "rank.pbtxt").read_text()).input)


def test_prompts_are_put_together_and_taken_apart() -> None:
    prefix = np.array([1, 2], np.int32)
    ids, lengths = np.array([5, 6, 7], np.int32), np.array([2, 0, 1], np.int32)
    limits = {"vocab_size": 8, "max_tokens": 4}
    items = split_items(prefix, ids, lengths, **limits)
    assert [one.tolist() for one in whole_prompts(prefix, items)] == [[1, 2, 5, 6], [], [1, 2, 7]]
    with pytest.raises(EngineError, match="sum to 3, item_ids has 2"):
        split_items(prefix, ids[:2], lengths, **limits)
    logits = np.array([[[[0.0, 3.0, -1.0]]]], np.float32)
    assert label_probability(logits, Labels(yes=1, no=2)) == pytest.approx(1 / (1 + np.exp(-4)))
    with pytest.raises(EngineError, match="shape"):
        label_probability(np.zeros((1, 2, 3), np.float32), Labels(yes=1, no=2))
    with pytest.raises(EngineError, match="labels 1 and 3"):
        label_probability(logits, Labels(yes=1, no=3))


def made(tiny: TinyBundle, target: str, into: Path, *, cache: str | None = None) -> Path:
    """A copy of the target's repository that a test may change."""
    bundle = tiny.for_target(target)
    if cache is not None:
        bundle = Bundle(
            change_spec(bundle.spec, {"repository": {"cache": {"place": cache}, "depth": {}}})
        )
    source = run(bundle.repository, tiny.store).path
    shutil.copytree(source, into)
    (into / "manifest.json").unlink()
    return into


def put_backend_stand_in(repository: Path, tiny: TinyBundle, log: Path) -> None:
    """Replace the C++ backend: the generated tensors stay, the backend becomes a Python model."""
    planned = read_planned(run(tiny.for_target("trtllm-engine").engine, tiny.store).path)
    path = repository / "tensorrt_llm" / "config.pbtxt"
    config = parse_config(path.read_text())
    assert config.parameters["gpt_model_path"].string_value == compiled_path(
        "/engines", planned.tag
    )
    config.backend = "python"
    for name, value in {
        "stand_in_checkpoint": str(planned.checkpoint),
        "stand_in_max_input_len": str(planned.plan.max_input_len),
        "stand_in_log": str(log),
    }.items():
        config.parameters[name].string_value = value
    path.write_text(print_config(config))
    shutil.copy2(STANDINS / "backend_model.py", repository / "tensorrt_llm" / "1" / "model.py")


def put_llm_stand_in(repository: Path) -> None:
    shutil.copytree(STANDINS / "tensorrt_llm", repository / "ranker" / "1" / "tensorrt_llm")


@pytest.fixture(scope="module")
def engine_server(
    tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("engine")
    repository = made(tiny, "trtllm-engine", folder / "repository")
    put_backend_stand_in(repository, tiny, folder / "joined.json")
    with Server(repository, ANY_PORTS) as server:
        yield server, folder / "joined.json"


@pytest.fixture(scope="module")
def llmapi_server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = made(tiny, "trtllm-llmapi", tmp_path_factory.mktemp("llmapi") / "repository")
    put_llm_stand_in(repository)
    with Server(repository, ANY_PORTS) as server:
        yield server


STORED = [f"job-{number}" for number in range(14)]
JOBS = [*STORED, ItemText(text="Job: a baker")]
QUERIES = ["nurse shift 3", "welder", "a night shift as a cook near the harbour"]


def prompts(tiny: TinyBundle, query: str) -> tuple[Any, list[Any]]:
    """(checkpoint, whole prompts) of JOBS, put together apart from the server."""
    checkpoint = checkpoint_of(run(tiny.bundle.final, tiny.store))
    encoder = checkpoint.encoder()
    with closing(open_store("lmdb:", run(tiny.bundle.summaries, tiny.store).path)) as store:
        known = dict(zip(STORED, store.ids_many(STORED), strict=True))
        bodies = [
            encoder.body(one.text) if isinstance(one, ItemText) else known[one] for one in JOBS
        ]
        items = [encoder.item(np.array(body)).ids for body in bodies]
    return checkpoint, [np.concatenate([encoder.prefix(query), item]) for item in items]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("query", QUERIES)
def test_scores_through_the_fan_out_are_those_of_the_emitted_checkpoint(
    tiny: TinyBundle, engine_server: tuple[Server, Path], query: str
) -> None:
    checkpoint, wanted = prompts(tiny, query)
    with RankClient(engine_server[0].url) as client:
        found = [item.score for item in client.score(query, JOBS)]
        assert client.describe()["engine_target"] == "trtllm-engine"
    planned = read_planned(run(tiny.for_target("trtllm-engine").engine, tiny.store).path)
    emitted = EmittedModel(planned.checkpoint).label_logits(wanted, checkpoint.labels)
    np.testing.assert_allclose(found, probability(emitted), atol=1e-5)
    # Weights rounded to bfloat16 against float32.
    reference = ReferenceScorer(checkpoint).probabilities(wanted)
    np.testing.assert_allclose(found, reference, atol=0.02)
    assert np.ptp(found) > 0.02


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("query", QUERIES)
def test_scores_through_the_llm_api_are_the_same(
    tiny: TinyBundle, llmapi_server: Server, query: str
) -> None:
    checkpoint, wanted = prompts(tiny, query)
    with RankClient(llmapi_server.url) as client:
        found = [item.score for item in client.score(query, JOBS)]
        assert client.describe()["engine_target"] == "trtllm-llmapi"
    planned = read_planned(run(tiny.for_target("trtllm-engine").engine, tiny.store).path)
    emitted = EmittedModel(planned.checkpoint).label_logits(wanted, checkpoint.labels)
    np.testing.assert_allclose(found, probability(emitted), atol=1e-5)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("target", ["trtllm-engine", "trtllm-llmapi"])
def test_bad_items_are_reported_and_the_others_scored(
    engine_server: tuple[Server, Path], llmapi_server: Server, target: str
) -> None:
    server = engine_server[0] if target == "trtllm-engine" else llmapi_server
    jobs = ["nobody", "job-1", ItemText(text="")]
    with RankClient(server.url) as client:
        unknown, known, empty = client.score("nurse", jobs)
        assert unknown.status is Status.UNKNOWN_JOB
        assert np.isnan(unknown.score)
        assert 0 < known.score < 1
        assert empty.status is Status.EMPTY
        alone = client.score("nurse", ["job-1"])[0]
        assert alone.score == pytest.approx(known.score, abs=1e-6)
        none = client.score("nurse", ["nobody"])
        assert np.isnan(none[0].score)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("target", ["trtllm-engine", "trtllm-llmapi"])
def test_with_cache_and_depth_control_scores_are_the_same(
    tiny: TinyBundle, tmp_path: Path, request: pytest.FixtureRequest, target: str
) -> None:
    # Of the stage's processes, which share it.
    redis = RedisServer(tmp_path / "redis")
    request.addfinalizer(redis.kill)
    place = redis.url(deadline_ms=2000)
    repository = made(tiny, target, tmp_path / "repository", cache=place)
    if target == "trtllm-engine":
        put_backend_stand_in(repository, tiny, tmp_path / "joined.json")
    else:
        put_llm_stand_in(repository)
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        first = [item.score for item in client.score("nurse", STORED[:5])]
        again = [item.score for item in client.score("nurse", ["nobody", *STORED[::-1]])]
        metrics = f"http://127.0.0.1:{server.ports.metrics}/metrics"
        with urllib.request.urlopen(metrics, timeout=10) as reply:
            told = reply.read().decode()
    assert np.isnan(again[0])
    assert again[:-6:-1] == first
    assert "slmrank_cache_hits_total 5" in told
    assert "slmrank_cache_misses_total 14" in told
    assert re.search(r"^slmrank_depth_share\{stage_instance=\"ranker_0_0\"\} 1$", told, re.M)


@pytest.mark.slow
@pytest.mark.triton
def test_many_requests_at_once_join_in_the_backend(engine_server: tuple[Server, Path]) -> None:
    server, log = engine_server

    def ask(number: int) -> list[float]:
        # The stand-in is slow, and a busy machine's queue may refuse: that is no matter here.
        with RankClient(server.url, retry_overload=True) as client:
            return [item.score for item in client.score(QUERIES[number % 3], JOBS)]

    alone = [ask(number) for number in range(3)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(24)))
    for number, scores in enumerate(together):
        np.testing.assert_allclose(scores, alone[number % 3], atol=1e-6)
    joined = json.loads(log.read_text())
    assert max(joined) > 1, "the backend saw every call alone"
    with RankClient(server.url, retry_overload=True) as client:
        client.score("nurse", STORED * 4)
    # All prompts but the first wait while it is scored; a pool of 32 threads would hold them back.
    assert max(json.loads(log.read_text())) > 32


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"output_ids", ', "", "['output_ids'] must be requested"),
        ("np.array([[True]])", "np.array([[False]])", "were not computed"),
        ("np.array([[1]], np.int32)", "np.array([[0]], np.int32)", "request_output_len"),
        ("prompt[np.newaxis]", "np.tile(prompt, (40, 1)).reshape(1, -1)", "does not match"),
    ],
)
def test_a_fan_out_that_breaks_the_backends_contract_fails_with_its_words(
    tiny: TinyBundle, tmp_path: Path, old: str, new: str, text: str
) -> None:
    repository = made(tiny, "trtllm-engine", tmp_path / "repository")
    put_backend_stand_in(repository, tiny, tmp_path / "log")
    stage = repository / "ranker" / "1" / "model.py"
    assert old in stage.read_text()
    stage.write_text(stage.read_text().replace(old, new))
    with (
        Server(repository, ANY_PORTS) as server,
        RankClient(server.url) as c,
        pytest.raises(ControlError, match=text.replace("[", r"\[")),
    ):
        c.score("nurse", ["job-1"])


@pytest.mark.long
def test_serving_without_the_engine_says_where_it_should_be(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    repository = made(tiny, "trtllm-engine", tmp_path / "repository")
    assert set(check_repository(repository)) == {"rank", "prepare", "ranker", "tensorrt_llm"}
    with pytest.raises(
        ServerError, match=r"engine /engines/compiled/[0-9a-f]{12} is not on this machine"
    ):
        Server(repository, ANY_PORTS).start()
