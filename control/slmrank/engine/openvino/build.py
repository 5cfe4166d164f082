"""Write an OpenVINO engine of a checkpoint."""

from __future__ import annotations

import json

from slmrank.engine.openvino.export import (
    ITEMS_GRAPH,
    PREFIX_GRAPH,
    export_graphs,
    quantize,
    quantize_weights,
    save_graph,
)
from slmrank.engine.openvino.runtime import ENGINE_FILE
from slmrank.engine.targets.base import Building


def write_openvino(building: Building, precision: str) -> None:
    """Write prefix.xml, items.xml and engine.json into the folder."""
    spec, folder = building.spec.engine.openvino, building.folder
    building.report("trace")
    prefix_graph, items_graph = export_graphs(building.checkpoint)
    if precision == "int8":
        building.report("calibrate INT8")
        calibration = building.calibration(spec.calibration_prompts)
        items_graph = quantize(items_graph, prefix_graph, calibration, spec.smooth_quant_alpha)
    elif precision == "int8-weights":
        items_graph = quantize_weights(items_graph)
    half = precision != "float32"
    save_graph(prefix_graph, folder / PREFIX_GRAPH, half_weights=half)
    save_graph(items_graph, folder / ITEMS_GRAPH, half_weights=half)
    info = {"schema": 1, "precision": precision, "max_batch_items": spec.max_batch_items}
    (folder / ENGINE_FILE).write_text(json.dumps(info) + "\n", encoding="utf-8")
