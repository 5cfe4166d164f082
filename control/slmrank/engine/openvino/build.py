"""Write an OpenVINO engine of a checkpoint."""

from __future__ import annotations

import json

import numpy as np

from slmrank.engine.openvino.export import (
    ITEMS_GRAPH,
    PREFIX_GRAPH,
    compiled_prefix,
    export_items,
    past_of,
    prefix_of_items,
    quantize,
    quantize_weights,
    save_graph,
)
from slmrank.engine.openvino.runtime import ENGINE_FILE, HEAD_FILE
from slmrank.engine.targets.base import Building


def write_openvino(building: Building, precision: str) -> None:
    """Write prefix.xml, items.xml, head.npz and engine.json into the folder."""
    spec, folder = building.spec.engine.openvino, building.folder
    building.report("trace")
    items_graph = export_items(building.checkpoint)
    head = building.checkpoint.encoder().head_ids
    compiled = compiled_prefix(items_graph)
    np.savez(folder / HEAD_FILE, ids=head, past=past_of(compiled, head))
    if precision == "int8":
        building.report("calibrate INT8")
        calibration = building.calibration(spec.calibration_prompts)
        items_graph = quantize(items_graph, compiled, calibration, spec.smooth_quant_alpha)
    elif precision == "int8-weights":
        items_graph = quantize_weights(items_graph)
    half = precision != "float32"
    save_graph(prefix_of_items(items_graph), folder / PREFIX_GRAPH, half_weights=half)
    save_graph(items_graph, folder / ITEMS_GRAPH, half_weights=half)
    info = {"schema": 1, "precision": precision, "max_batch_items": spec.max_batch_items}
    (folder / ENGINE_FILE).write_text(json.dumps(info) + "\n", encoding="utf-8")
