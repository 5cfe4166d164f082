"""Score with an engine in this process, for parity and evaluation.

For the GPU targets that is the engine's weights with reference arithmetic: their kernels need a
GPU, and are compared in the container.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.model.checkpoint import Checkpoint, open_checkpoint
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.bundle import Target

EMITTED_FOLDER = "checkpoint"
MODEL_FOLDER = "model"
Scorer = Callable[[EncodedQuery], npt.NDArray[np.floating[Any]]]


def open_scorer(target: Target, engine: Path, checkpoint: Checkpoint) -> Scorer:
    """A function from one query to the log-odds [N] of its items, over an engine directory."""
    if target == "openvino":
        from slmrank.engine.openvino.runtime import OpenVinoEngine

        loaded = OpenVinoEngine(engine)

        def compiled(one: EncodedQuery) -> npt.NDArray[np.floating[Any]]:
            return loaded.logits(one.prefix, one.items)

        return compiled
    if target == "trtllm-engine":
        from slmrank.engine.trtllm.reference import EmittedModel

        model = EmittedModel(engine / EMITTED_FOLDER)

        def emitted(one: EncodedQuery) -> npt.NDArray[np.floating[Any]]:
            return model.label_logits(one.prompts(), checkpoint.labels)

        return emitted
    from slmrank.model.reference import ReferenceScorer

    scorer = ReferenceScorer(open_checkpoint(engine / MODEL_FOLDER))

    def exported(one: EncodedQuery) -> npt.NDArray[np.floating[Any]]:
        return scorer.logits(one.prompts())

    return exported
