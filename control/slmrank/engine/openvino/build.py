"""Write an OpenVINO engine of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import openvino as ov

from slmrank.engine.openvino.export import (
    ITEMS_GRAPH,
    PREFIX_GRAPH,
    ItemsPass,
    calibration_inputs,
    export_items,
    prefix_of_items,
    separate_outputs,
)
from slmrank.engine.openvino.int8 import Reading, all_products, round_graph, smooth
from slmrank.engine.openvino.runtime import ENGINE_FILE, HEAD_FILE
from slmrank.engine.targets.base import Building
from slmrank.errors import DataError, SpecError
from slmrank.model.reference import load_model


def write_openvino(building: Building, precision: str) -> None:
    """Write prefix.xml, items.xml, head.npz and engine.json into the folder."""
    spec, folder = building.spec.engine.openvino, building.folder
    building.report("trace")
    items_pass = ItemsPass(load_model(building.checkpoint))
    head = building.checkpoint.encoder().head_ids
    if precision == "int8" and not len(head):
        # The first tokens of a decoder carry activations that ruin the ranges of all others.
        raise SpecError(
            "INT8 needs words before {query} in prompt.prefix, and there is none",
            "put some there, or set engine.openvino.precision to bfloat16",
        )
    np.savez(folder / HEAD_FILE, ids=head, past=items_pass.past_of(head).numpy())
    readings: Mapping[str, Reading | None] | None = None
    if precision == "int8-weights":
        readings = dict.fromkeys(all_products(items_pass.model))
    elif precision == "int8":
        building.report("calibrate INT8")
        calibration = building.calibration(spec.calibration_prompts)
        inputs = calibration_inputs(items_pass, head, calibration)
        if not inputs:
            raise DataError(
                "INT8 needs training pairs for its ranges, and there is none",
                "add pairs with split 'train', or set engine.openvino.precision to bfloat16",
            )
        readings = smooth(items_pass, inputs, spec.smooth_quant_alpha)
    items_graph = export_items(items_pass, building.checkpoint.geometry)
    if readings is not None:
        round_graph(items_graph, readings)
    if precision == "int8":
        separate_outputs(items_graph)
    # As float16, but beside rounded inputs: OpenVINO keeps weights of such a graph as they are.
    half = precision != "float32"
    for name, graph in ((PREFIX_GRAPH, prefix_of_items(items_graph)), (ITEMS_GRAPH, items_graph)):
        ov.save_model(graph, folder / name, compress_to_fp16=half)
    info = {"schema": 1, "precision": precision, "max_batch_items": spec.max_batch_items}
    (folder / ENGINE_FILE).write_text(json.dumps(info) + "\n", encoding="utf-8")
