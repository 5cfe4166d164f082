"""The torch engine against the reference: many queries at once, any batch limit, any family."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.client.client import RankClient
from slmrank.client.known_answers import compare_known
from slmrank.engine.known_answers import KNOWN_FILE, read_known
from slmrank.engine.targets.torch import TorchTarget
from slmrank.engine.torch.runtime import TorchEngine, attending, batches, make_batch
from slmrank.errors import EngineError, ParityError, SpecError
from slmrank.model import placement
from slmrank.model.placement import choose_placement
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import change_spec

from tests.conftest import FAMILIES
from tests.engine.building import build, queries

TIGHT = {"max_mean_abs_dp": 1e-5, "max_abs_dp": 1e-4, "min_pair_order": 0.99}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_reference(make_checkpoint: Any, family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(family)
    figures = build("torch", checkpoint, tmp_path, TIGHT, dtype="float32", max_batch_tokens=90)
    assert figures["parity"]["pairs"] == 24
    engine, reference = TorchEngine(tmp_path, device="cpu"), ReferenceScorer(checkpoint)
    asked = [(one.prefix, one.items) for one in queries(count=5, seed=9)]
    for (prefix, items), found in zip(asked, engine.logits_of(asked), strict=True):
        wanted = reference.logits([np.concatenate([prefix, item]) for item in items])
        assert found == pytest.approx(wanted, abs=2e-4)


def test_one_list_or_many_and_items_without_ids(make_checkpoint: Any, tmp_path: Path) -> None:
    build("torch", make_checkpoint(FAMILIES[0]), tmp_path, TIGHT, dtype="float32")
    engine = TorchEngine(tmp_path, device="cpu")
    none = np.zeros(0, dtype=np.int32)
    asked = [(one.prefix, [*one.items, none]) for one in queries()]
    together = engine.logits_of([*asked, (none, [none]), (asked[0][0], [])])
    for (prefix, items), found in zip(asked, together, strict=False):
        assert np.isnan(found[-1])
        assert engine.logits(prefix, items)[:-1] == pytest.approx(found[:-1], abs=1e-5)
    assert np.isnan(together[-2]).all()
    assert len(together[-1]) == 0
    assert engine.logits_of([]) == []


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=7)), max_size=6),
    st.integers(1, 40),
)
def test_batches_hold_everything_once_and_keep_the_limit(
    sizes: list[tuple[int, list[int]]], limit: int
) -> None:
    asked = [
        (np.full(prefix, number), [np.zeros(item) for item in items])
        for number, (prefix, items) in enumerate(sizes)
    ]
    made = list(batches(asked, limit))
    flat = [place for chosen in made for place in chosen]
    assert flat == [
        (query, at)
        for query, (_, items) in enumerate(asked)
        for at, one in enumerate(items)
        if len(one)
    ]
    for chosen in made:
        batch = make_batch([(asked[query][0], asked[query][1][at]) for query, at in chosen])
        assert len(batch.ids) <= limit or len(chosen) == 1
        assert len(batch.ids) == len(batch.positions) == batch.sizes.sum()
        assert (batch.before < 0).sum() == len({query for query, _ in chosen})


def test_a_long_row_is_no_measure_for_short_ones() -> None:
    """One of 1,500 tokens among 31 of 24: all were padded to it, for ten times the work."""
    prefix, rng = np.arange(20), np.random.default_rng(0)
    items = [rng.integers(0, 9, size) for size in (*[24] * 31, 1500)]
    batch = make_batch([(prefix, item) for item in items])
    groups = list(attending(batch, choose_placement("cpu")))
    assert sum(len(one.queries) for one in groups) == 33
    assert max(one.mask.numel() for one in groups[:-1]) < 33 * 24 * 44 + 1
    assert groups[-1].queries.shape == (1, 1500)
    # One row goes through however long it is.
    lone = make_batch([(prefix, rng.integers(0, 9, 3000)), (prefix, items[0])])
    assert sum(len(one.queries) for one in attending(lone, choose_placement("cpu"))) == 3


def test_bfloat16_keeps_the_order(make_checkpoint: Any, tmp_path: Path) -> None:
    loose = {"max_mean_abs_dp": 0.02, "max_abs_dp": 0.1, "min_pair_order": 0.95}
    figures = build("torch", make_checkpoint(FAMILIES[0]), tmp_path, loose)
    assert 0 < figures["parity"]["mean_abs_dp"] < 0.02


def test_where_bfloat16_is_emulated_its_weights_are_used_in_float32(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = {"max_mean_abs_dp": 0.02, "max_abs_dp": 0.1, "min_pair_order": 0.95}
    build("torch", make_checkpoint(FAMILIES[0]), tmp_path, loose)
    asked = [(one.prefix, one.items) for one in queries()]
    found = {}
    for fast in (True, False):
        monkeypatch.setattr(placement, "has_bfloat16", lambda kind, fast=fast: fast)
        found[fast] = np.concatenate(TorchEngine(tmp_path, device="cpu").logits_of(asked))
    assert not np.array_equal(found[True], found[False])
    assert found[True] == pytest.approx(found[False], abs=0.1)


def test_the_gate_and_what_is_no_engine(make_checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        build(
            "torch", make_checkpoint(FAMILIES[0]), tmp_path, {"max_abs_dp": 1e-9}, dtype="bfloat16"
        )
    with pytest.raises(EngineError, match="holds no engine"):
        TorchEngine(tmp_path / "none")
    (tmp_path / "engine.json").write_text('{"layers": 2}')
    with pytest.raises(EngineError, match="kv_heads"):
        TorchEngine(tmp_path)


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_that_it_would_drop_are_refused(
    make_checkpoint: Any, tmp_path: Path, bias: str
) -> None:
    with pytest.raises(SpecError, match="bias behind attention or in the MLP"):
        build("torch", make_checkpoint("llama", **{bias: True}), tmp_path, TIGHT)


def test_a_rotary_embedding_that_changes_with_the_length_is_refused(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmrank.engine.torch import build as module

    original = module.load_model

    def changed(checkpoint: Any) -> Any:
        loaded = original(checkpoint)
        loaded.network.config.rope_parameters["rope_type"] = "dynamic"
        return loaded

    monkeypatch.setattr(module, "load_model", changed)
    with pytest.raises(SpecError, match="rotary type dynamic"):
        build("torch", make_checkpoint(FAMILIES[0]), tmp_path, TIGHT)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.triton
def test_it_is_built_and_served(tiny: Any) -> None:
    change = {"engine": {"target": "torch", "torch": {"dtype": "float32"}}}
    bundle = Bundle(change_spec(tiny.bundle.spec, change))
    repository = run(bundle.repository, tiny.store).path
    answers = read_known(repository / KNOWN_FILE)
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        assert max(one.gap for one in compare_known(client.score, answers)) < 1e-5
        jobs = [f"job-{number}" for number in range(12)]
        wanted = {query: client.score(query, jobs) for query in ("nurse", "night pilot")}
        with ThreadPoolExecutor(8) as pool:  # joined in the server
            asked = list(wanted) * 8
            found = list(pool.map(lambda query: client.score(query, jobs), asked))
    for query, items in zip(asked, found, strict=True):
        scores = [one.score for one in wanted[query]]
        assert [one.score for one in items] == pytest.approx(scores, abs=1e-5)


def test_pods_get_a_gpu_where_the_spec_asks_for_one(tiny: Any) -> None:
    target, engine = TorchTarget(), run(tiny.bundle.engine, tiny.store)
    for device, gpu in (("auto", False), ("cpu", False), ("cuda", True)):
        change = {"engine": {"target": "torch", "torch": {"device": device}}}
        assert target.deploy_facts(change_spec(tiny.bundle.spec, change), engine).gpu is gpu
