"""Build an OpenVINO engine from a checkpoint and let the parity gate decide."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.engine.openvino.export import (
    ITEMS_GRAPH,
    PREFIX_GRAPH,
    export_graphs,
    quantize,
    quantize_weights,
    save_graph,
)
from slmrank.engine.openvino.runtime import ENGINE_FILE, OpenVinoEngine
from slmrank.engine.parity import Tolerance, compare_with_reference, require_parity
from slmrank.model.checkpoint import Checkpoint
from slmrank.prompt.corpus import EncodedQuery

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OpenVinoSettings:
    """Precision of the item passes, calibration strength and the largest engine batch."""

    precision: str
    smooth_quant_alpha: float
    max_batch_items: int


def build_openvino(
    checkpoint: Checkpoint,
    settings: OpenVinoSettings,
    calibration: Sequence[EncodedQuery],
    held_out: Sequence[EncodedQuery],
    tolerance: Tolerance,
    target: Path,
    report: Report,
) -> dict[str, Any]:
    """Write prefix.xml, items.xml and engine.json into `target`; returns figures.

    Raises ParityError when the scores on the held-out pairs leave the tolerance.
    """
    report("trace")
    prefix_graph, items_graph = export_graphs(checkpoint)
    if settings.precision == "int8":
        report("calibrate INT8")
        items_graph = quantize(items_graph, prefix_graph, calibration, settings.smooth_quant_alpha)
    elif settings.precision == "int8-weights":
        items_graph = quantize_weights(items_graph)
    half = settings.precision != "float32"
    save_graph(prefix_graph, target / PREFIX_GRAPH, half_weights=half)
    save_graph(items_graph, target / ITEMS_GRAPH, half_weights=half)
    info = {"schema": 1, "precision": settings.precision}
    info["max_batch_items"] = settings.max_batch_items
    (target / ENGINE_FILE).write_text(json.dumps(info) + "\n")
    report("check parity")
    engine = OpenVinoEngine(target)
    parity = compare_with_reference(
        checkpoint, lambda one: engine.logits(one.prefix, one.items), held_out
    )
    require_parity(parity, tolerance)
    size = sum(path.stat().st_size for path in target.iterdir())
    return {"parity": asdict(parity), "tolerance": asdict(tolerance), "bytes": size}
