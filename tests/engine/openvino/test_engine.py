"""The OpenVINO engine against the reference, and the parity gate."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.engine.openvino import runtime
from slmrank.engine.openvino.runtime import OpenVinoEngine, buckets, halves, pad, unshared
from slmrank.engine.parity import Parity, measure_parity, require_parity
from slmrank.errors import EngineError, ParityError, SpecError
from slmrank.evaluate.metrics import Listing
from slmrank.machine.facts import usable_cores
from slmrank.model.checkpoint import write_ranker
from slmrank.model.reference import ReferenceScorer
from slmrank.prompt.template import template_of
from slmrank.spec.engine import ParitySpec
from slmrank.spec.model import PromptSpec

from tests.conftest import FAMILIES
from tests.engine.building import build, queries

TIGHT = {"max_mean_abs_dp": 1e-4, "max_abs_dp": 1e-3, "min_pair_order": 0.99}
LOOSE = {"max_mean_abs_dp": 0.5, "max_abs_dp": 1.0, "min_pair_order": 0.51}


def graph(engine: Path) -> Any:
    return ov.Core().read_model(engine / "items.xml")


def kernels(engine: Path) -> Counter[str]:
    """How often the compiled item pass runs each kind of kernel."""
    compiled = ov.Core().compile_model(graph(engine), "CPU")
    operations = compiled.get_runtime_model().get_ops()
    return Counter(str(one.get_rt_info()["layerType"].astype(str)) for one in operations)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[1:])]
)
def test_the_float32_engine_equals_the_reference(
    make_checkpoint: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(family)
    figures = build("openvino", checkpoint, tmp_path, TIGHT, precision="float32")
    assert figures["parity"]["pair_order"] >= 0.99
    engine = OpenVinoEngine(tmp_path)
    reference = ReferenceScorer(checkpoint)
    for one in queries():
        expected = reference.logits([np.concatenate([one.prefix, item]) for item in one.items])
        assert np.abs(engine.logits(one.prefix, one.items) - expected).max() < 1e-3
    # One kernel rotates the queries of a layer and one its keys, which no group of heads repeats.
    assert kernels(tmp_path)["RoPE"] == 2 * checkpoint.geometry.layers
    names = [one.get_friendly_name() for one in graph(tmp_path).get_ops()]
    assert not [name for name in names if "repeat" in name]


@pytest.fixture(scope="module")
def engine(
    make_checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> OpenVinoEngine:
    """A float32 engine that takes four items in one pass."""
    folder = tmp_path_factory.mktemp("engine")
    build(
        "openvino",
        make_checkpoint("llama"),
        folder,
        LOOSE,
        precision="float32",
        max_batch_items=4,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "HALVED_ROWS", 4)
        return OpenVinoEngine(folder)


@pytest.mark.long
@pytest.mark.slow
def test_items_together_equal_items_alone(engine: OpenVinoEngine) -> None:
    one = queries(1, 6)[0]
    together = engine.logits(one.prefix, one.items)
    alone = np.concatenate([engine.logits(one.prefix, [item]) for item in one.items])
    backwards = engine.logits(one.prefix, one.items[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-4
    assert np.abs(together - backwards).max() < 1e-4


@pytest.mark.skipif(usable_cores() < 2, reason="one core has no halves")
@pytest.mark.slow
def test_halves_of_a_batch_at_once_equal_the_whole(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        (one.prefix, [item[: 2 + 3 * place] for place, item in enumerate(one.items)])
        for one in queries(3, 5)
    ]
    whole = engine.logits_of(asked)
    started: list[Any] = []
    inputs = runtime.item_inputs
    monkeypatch.setattr(runtime, "HALVED_ROWS", 2)
    monkeypatch.setattr(
        runtime, "item_inputs", lambda *given: started.append(given) or inputs(*given)
    )
    halved = engine.logits_of(asked)
    assert len(started) == 8  # 15 items in batches of four: two passes each
    for one, other in zip(whole, halved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.slow
def test_queries_together_equal_queries_alone(engine: OpenVinoEngine) -> None:
    """Prefixes and items of every length, shared passes, a repeated prefix, nothing, and nothing
    but an empty item."""
    empty = np.zeros(0, dtype=np.int32)
    asked = [(one.prefix[: 3 + 2 * n], one.items) for n, one in enumerate(queries(5, 3))]
    asked += [(asked[0][0], asked[3][1][:1]), (asked[1][0], []), (asked[2][0][:2], [empty])]
    together = engine.logits_of(asked)
    assert [len(logits) for logits in together] == [3, 3, 3, 3, 3, 1, 0, 1]
    engine._prefixes.clear()
    for (prefix, items), logits in zip(asked, together, strict=True):
        alone = engine.logits(prefix, items)
        np.testing.assert_allclose(logits, alone, atol=1e-4)
    many = [(np.array([3, number + 5], dtype=np.int32), asked[0][1][:1]) for number in range(40)]
    for (prefix, items), logits in zip(many, engine.logits_of(many), strict=True):
        np.testing.assert_allclose(logits, engine.logits(prefix, items), atol=1e-4)
    assert len(engine._prefixes) == 32


@pytest.mark.slow
def test_the_instruction_is_computed_once_and_few_items_take_the_query_along(
    make_checkpoint: Callable[..., Any], engine: OpenVinoEngine
) -> None:
    """Behind the shipped wording, and beside prompts that begin in another way."""
    checkpoint = make_checkpoint("llama")
    head, reference = checkpoint.encoder().head_ids, ReferenceScorer(checkpoint)
    asked = []
    for number, one in enumerate(queries(5, 6)):
        start = one.prefix if number == 3 else np.concatenate([head, one.prefix])
        asked.append((start, one.items[: number + 1]))
    asked.append((head, asked[4][1][:2]))
    engine._prefixes.clear()
    for (prefix, items), found in zip(asked, engine.logits_of(asked), strict=True):
        expected = reference.logits([np.concatenate([prefix, item]) for item in items])
        assert np.abs(found - expected).max() < 1e-3
        assert np.abs(engine.logits(prefix, items) - found).max() < 1e-4
    # The first query has one item; the last has nothing behind the instruction.
    kept = {prefix.tobytes() for prefix, _ in asked[1:]}
    assert set(engine._prefixes) >= {head.tobytes(), asked[4][0].tobytes(), asked[3][0].tobytes()}
    assert asked[0][0].tobytes() not in engine._prefixes
    assert set(engine._prefixes) <= kept


@given(
    head=st.lists(st.integers(1, 3), max_size=3),
    rest=st.lists(st.integers(1, 3), max_size=5),
    sizes=st.lists(st.integers(0, 4), max_size=6),
    other=st.booleans(),
)
def test_prompts_stay_the_same_and_get_no_longer_than_a_pass_of_their_query(
    head: list[int], rest: list[int], sizes: list[int], other: bool
) -> None:
    first = np.array(head, dtype=np.int32)
    prefix = np.array([*(9 if other else one for one in head), *rest], dtype=np.int32)
    items = [np.full(size, 7, dtype=np.int32) for size in sizes]
    placed, longer = unshared(first, prefix, items)
    for before, after in zip(items, longer, strict=True):
        whole = np.concatenate([placed, after]) if len(after) else after
        assert whole.tolist() == ([*prefix, *before] if len(before) else [])
    full = sum(1 for size in sizes if size)
    if len(placed) < len(prefix):
        assert (full - 1) * len(rest) <= len(prefix)


@pytest.mark.slow
def test_an_item_without_ids_is_nan_and_harms_no_other(engine: OpenVinoEngine) -> None:
    one = queries(1, 2)[0]
    empty = np.zeros(0, dtype=np.int32)
    found = engine.logits(one.prefix, [one.items[0], empty, one.items[1]])
    assert np.isnan(found[1])
    assert np.allclose(found[[0, 2]], engine.logits(one.prefix, one.items), atol=1e-4)
    assert np.isnan(engine.logits(one.prefix, [empty])).all()
    assert len(engine.logits(one.prefix, [])) == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "int8-weights", "int8"])
def test_lower_precision_builds_and_stays_near(
    make_checkpoint: Callable[..., Any],
    precision: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    checkpoint = make_checkpoint("llama")
    figures = build("openvino", checkpoint, tmp_path, LOOSE, precision=precision)
    assert 0 < figures["parity"]["mean_abs_dp"] < 0.2
    assert capfd.readouterr().out == ""
    layers, run = checkpoint.geometry.layers, kernels(tmp_path)
    assert run["RoPE"] == 2 * layers
    assert run["Transpose"] <= 2 * layers  # values and what attention gives; keys stay
    # Rounding is part of what comes before it, but for the few rows that the last layer asks for.
    assert run["FakeQuantize"] <= 1
    one = queries(1, 20)[0]
    alone = OpenVinoEngine(tmp_path, threads=1).logits(one.prefix, one.items)
    np.testing.assert_allclose(
        alone, OpenVinoEngine(tmp_path, threads=2).logits(one.prefix, one.items), atol=0.02
    )
    assert (alone.view(np.uint32) & 0xFFFF).any()  # more digits than bfloat16 has, so fewer ties
    rounded = [one for one in graph(tmp_path).get_ops() if one.get_type_name() == "FakeQuantize"]
    readers = {
        one.get_node().get_type_name() for fq in rounded for one in fq.output(0).get_target_inputs()
    }
    assert readers <= {"MatMul"}  # neither queries nor keys are rounded
    # A random model has small gaps between scores; the order must survive all the same.
    engine, reference = OpenVinoEngine(tmp_path), ReferenceScorer(checkpoint)
    for query in queries(items=24):
        ranks = np.argsort(
            np.argsort(
                [engine.logits(query.prefix, query.items), reference.logits(query.prompts())],
                axis=1,
            ),
            axis=1,
        )
        assert np.corrcoef(ranks)[0, 1] > 0.7


@pytest.mark.slow
def test_a_prompt_may_begin_with_its_query(make_model: Callable[..., Path], tmp_path: Path) -> None:
    template = template_of(PromptSpec(prefix="{query}\n"))
    checkpoint = write_ranker(make_model(), template, max_item_tokens=96, max_query_tokens=48)
    build("openvino", checkpoint, tmp_path, TIGHT, precision="float32")
    engine, reference = OpenVinoEngine(tmp_path), ReferenceScorer(checkpoint)
    one = queries(1)[0]
    expected = reference.logits([np.concatenate([one.prefix, item]) for item in one.items])
    assert np.abs(engine.logits(one.prefix, one.items) - expected).max() < 1e-3
    # Its first tokens would ruin the ranges of all others: the ranking was destroyed.
    with pytest.raises(SpecError, match=r"INT8 needs words before \{query\}"):
        build("openvino", checkpoint, tmp_path, LOOSE, precision="int8")


@pytest.mark.long
@pytest.mark.slow
def test_the_gate_refuses_and_names_every_limit(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    impossible = {"max_mean_abs_dp": 1e-12, "max_abs_dp": 1e-12, "min_pair_order": 1.0}
    with pytest.raises(ParityError, match="mean .dp.*largest .dp") as caught:
        build("openvino", make_checkpoint("llama"), tmp_path, impossible, precision="bfloat16")
    assert "precision" in caught.value.hint


def test_nan_scores_never_pass() -> None:
    wanted = Listing(scores=np.array([0.1, 0.9]), grades=np.array([0.0, 4.0]))
    broken = Listing(scores=np.array([0.1, np.nan]), grades=wanted.grades)
    with pytest.raises(ParityError):
        require_parity(measure_parity([wanted], [broken]), ParitySpec(**LOOSE))
    require_parity(Parity(pairs=2, mean_abs_dp=0, max_abs_dp=0, pair_order=1), ParitySpec(**LOOSE))


def test_a_constant_score_does_not_pass() -> None:
    wanted = Listing(scores=np.array([0.1, 0.5, 0.9]), grades=np.array([0.0, 2.0, 4.0]))
    flat = Listing(scores=np.full(3, 0.5), grades=wanted.grades)
    with pytest.raises(ParityError, match="ordered alike"):
        require_parity(measure_parity([wanted], [flat]), ParitySpec(**LOOSE))


def test_an_order_that_cannot_be_measured_does_not_pass() -> None:
    flat = Listing(scores=np.array([0.5, 0.51]), grades=np.array([0.0, 4.0]))
    measured = measure_parity([flat], [flat])
    assert np.isnan(measured.pair_order)
    with pytest.raises(ParityError, match="no two of 2 held-out pairs apart"):
        require_parity(measured, ParitySpec(**LOOSE))


def test_a_folder_without_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="holds no engine"):
        OpenVinoEngine(tmp_path)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 64))
def test_buckets_hold_every_item_once(lengths: list[int], limit: int) -> None:
    made = buckets(lengths, limit)
    assert sorted(index for bucket in made for index in bucket) == list(range(len(lengths)))
    sizes = [len(bucket) for bucket in made]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    spans = [[lengths[index] for index in bucket] for bucket in made]
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(spans))


@given(st.lists(st.integers(1, 500), min_size=2, max_size=64))
def test_halves_are_of_like_size(lengths: list[int]) -> None:
    lengths.sort()
    first, second = halves(list(range(len(lengths))), lengths)
    assert first + second == list(range(len(lengths)))
    sizes = [len(part) * lengths[part[-1]] for part in (first, second) if part]
    middle = len(lengths) // 2
    assert len(sizes) == 2
    assert max(sizes) <= max(middle * lengths[middle - 1], (len(lengths) - middle) * lengths[-1])


@given(st.lists(st.integers(1, 70), min_size=1, max_size=9))
def test_padding_keeps_every_id(lengths: list[int]) -> None:
    items = [np.full(length, 7, dtype=np.int32) for length in lengths]
    ids, found = pad(items)
    assert found.tolist() == lengths
    assert ids.shape[1] % runtime.LENGTH_STEP == 0
    assert (ids != 0).sum() == sum(lengths)
