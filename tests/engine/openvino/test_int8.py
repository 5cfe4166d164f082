"""INT8: scales that change nothing, what rounding does to p, and what of it stands in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from slmrank.engine.openvino import int8
from slmrank.engine.openvino.export import ItemsPass, calibration_inputs, export_items
from slmrank.engine.openvino.int8 import (
    Reading,
    all_products,
    groups_of,
    round_graph,
    rounded,
    smooth,
)
from slmrank.engine.targets.openvino import quickest_precision
from slmrank.machine.facts import cpu_features
from slmrank.model.reference import load_model

from tests.conftest import FAMILIES
from tests.engine.building import queries


def calibrated(checkpoint: Any, items: int = 6) -> tuple[ItemsPass, list[dict[str, Any]]]:
    items_pass = ItemsPass(load_model(checkpoint))
    head = queries(1)[0].prefix[:3]
    return items_pass, calibration_inputs(items_pass, head, queries(2, items))


def logits(items_pass: ItemsPass, inputs: list[dict[str, Any]]) -> list[float]:
    with torch.no_grad():
        return [
            float(items_pass(**{key: torch.from_numpy(one) for key, one in given.items()}))
            for given in inputs
        ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_scales_change_no_score(make_checkpoint: Callable[..., Any], family: str) -> None:
    """Also where products have biases: what is read divided by the scales gives what it gave."""
    checkpoint = make_checkpoint(family)
    items_pass, inputs = calibrated(checkpoint)
    before = logits(items_pass, inputs)
    random = torch.Generator().manual_seed(0)
    for group in groups_of(items_pass.model):
        scales = torch.rand(len(group.most), generator=random) * 4 + 0.2
        reading = group.fold(scales)
        assert (reading.scales is None) == (group.maker is not None)
        for one in group.products if reading.scales is not None else ():
            one.register_forward_pre_hook(lambda _, given, scales=scales: (given[0] / scales,))
    np.testing.assert_allclose(logits(items_pass, inputs), before, atol=2e-4)
    assert len({round(one, 3) for one in before}) > 6


@pytest.mark.slow
def test_what_rounding_does_to_p_is_foretold(
    make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group of a layer at a time, against the network with that group really rounded."""
    items_pass, inputs = calibrated(make_checkpoint("llama"))
    passes = [{key: torch.from_numpy(one) for key, one in given.items()} for given in inputs]
    groups = groups_of(items_pass.model)
    monkeypatch.setattr(int8, "STEPS", 15)  # coarse, so that there is something to see
    int8._widen(items_pass, groups, passes)
    told = int8._moved(items_pass, groups, passes, (0.5,))[:, 0] / len(passes)
    plain = 1 / (1 + np.exp(-np.array(logits(items_pass, inputs))))
    seen = []
    for group in groups:
        scales = group.scales_at(0.5)
        step = group.step(scales)
        kept = [one.weight.data for one in group.products]
        hooks = []
        for one in group.products:
            one.weight.data = rounded(one.weight.data * scales) / scales
            hooks.append(
                one.register_forward_pre_hook(
                    lambda _, given, scales=scales, step=step: (
                        (given[0] / scales / step).round().clamp(-16, 15) * step * scales,
                    )
                )
            )
        moved = 1 / (1 + np.exp(-np.array(logits(items_pass, inputs)))) - plain
        seen.append(float(np.abs(moved).mean()))
        for one, weight, hook in zip(group.products, kept, hooks, strict=True):
            one.weight.data = weight
            hook.remove()
    assert max(seen) > 1e-4
    np.testing.assert_allclose(told, seen, rtol=0.35, atol=0.1 * max(seen))


@pytest.mark.slow
@pytest.mark.parametrize("inputs_rounded", [True, False])
def test_the_graph_is_the_rounded_network(
    make_checkpoint: Callable[..., Any], inputs_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "DP_LIMIT", 1.0)
    checkpoint = make_checkpoint("llama")
    items_pass, inputs = calibrated(checkpoint)
    readings: dict[str, Reading | None] = dict(smooth(items_pass, inputs, None))
    names = all_products(items_pass.model)
    assert len(names) == 7 * checkpoint.geometry.layers
    if not inputs_rounded:
        readings = dict.fromkeys(names)
        items_pass, inputs = calibrated(checkpoint)
    graph = export_items(items_pass, checkpoint.geometry)
    round_graph(graph, readings)
    kinds = [one.get_type_name() for one in graph.get_ops()]
    constants = [one for one in graph.get_ops() if one.get_type_name() == "Constant"]
    whole = [one for one in constants if one.get_element_type() == ov.Type.i8]
    assert len(whole) == len(readings) + 1, "the weights, and the embedding"
    # One for the inputs of a group, two where the last layer's queries read fewer rows.
    assert kinds.count("FakeQuantize") == (4 * checkpoint.geometry.layers + 1) * inputs_rounded
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    plain = ov.Core().compile_model(graph, "CPU", exact)
    found = [float(plain(given)[0][0]) for given in inputs]
    embedding = items_pass.model.get_input_embeddings().weight
    embedding.data = rounded(embedding.data)
    network = dict(items_pass.model.named_modules())
    for name, reading in readings.items():
        one: Any = network[name]
        one.weight.data = rounded(one.weight.data)
        if reading is not None:
            one.register_forward_pre_hook(
                lambda _, given, reading=reading: (
                    (given[0] / (1 if reading.scales is None else reading.scales) / reading.step)
                    .round()
                    .clamp(-128, 127)
                    * reading.step,
                )
            )
    # A state on the edge of two steps falls on either side. Without instructions for it, sums of
    # two products of INT8 are cut off at 16 bits.
    whole_sums = not inputs_rounded or quickest_precision(cpu_features()) == "int8"
    np.testing.assert_allclose(found, logits(items_pass, inputs), atol=0.02 if whole_sums else 0.5)


@pytest.mark.slow
def test_what_would_move_p_too_far_is_left(
    make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint("llama")
    chosen = {}
    for limit in (0.0, 1.0):
        items_pass, inputs = calibrated(checkpoint)
        monkeypatch.setattr(int8, "DP_LIMIT", limit)
        chosen[limit] = smooth(items_pass, inputs, None)
    assert chosen[0.0] == {}
    assert list(chosen[1.0]) == all_products(items_pass.model)
