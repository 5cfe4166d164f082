"""The parity gate: an engine's scores against the float32 reference on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import ParityError
from slmrank.evaluate.metrics import Listing, pair_order_agreement
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.probability import probability
from slmrank.prompt.corpus import EncodedQuery

ORDER_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Limits on p = P(relevant); `min_pair_order` is a share of same-query pairs."""

    max_mean_abs_dp: float
    max_abs_dp: float
    min_pair_order: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was measured: |p_engine - p_reference| and the share of pairs ordered alike."""

    pairs: int
    mean_abs_dp: float
    max_abs_dp: float
    pair_order: float


def compare_with_reference(
    checkpoint: Checkpoint,
    logits: Callable[[EncodedQuery], npt.NDArray[np.floating[Any]]],
    held_out: Sequence[EncodedQuery],
) -> Parity:
    """Score every held-out pair with transformers in float32 and with `logits`, which gives the
    log-odds [N] of one query's items."""
    from slmrank.model.reference import ReferenceScorer

    reference = ReferenceScorer(checkpoint)
    prompts = [prompt for one in held_out for prompt in one.prompts()]
    expected = iter(reference.probabilities(prompts).tolist())
    wanted, given = [], []
    for one in held_out:
        grades = np.array(one.grades, dtype=float)
        scores = np.array([next(expected) for _ in one.items])
        wanted.append(Listing(scores=scores, grades=grades))
        given.append(Listing(scores=probability(logits(one)), grades=grades))
    return measure_parity(wanted, given)


def measure_parity(reference: Sequence[Listing], engine: Sequence[Listing]) -> Parity:
    """Compare scores of the same pairs, query by query."""
    gaps = np.concatenate(
        [np.abs(a.scores - b.scores) for a, b in zip(reference, engine, strict=True)]
    )
    return Parity(
        pairs=len(gaps),
        mean_abs_dp=float(gaps.mean()),
        max_abs_dp=float(gaps.max()),
        pair_order=pair_order_agreement(reference, engine, ORDER_MARGIN),
    )


def require_parity(parity: Parity, tolerance: Tolerance) -> None:
    """Raises ParityError that names every limit that is broken. NaN breaks all."""
    faults = []
    if not parity.mean_abs_dp <= tolerance.max_mean_abs_dp:
        faults.append(f"mean |dp| {parity.mean_abs_dp:.4f} > {tolerance.max_mean_abs_dp}")
    if not parity.max_abs_dp <= tolerance.max_abs_dp:
        faults.append(f"largest |dp| {parity.max_abs_dp:.4f} > {tolerance.max_abs_dp}")
    if not parity.pair_order >= tolerance.min_pair_order:
        faults.append(f"pairs ordered alike {parity.pair_order:.4f} < {tolerance.min_pair_order}")
    if faults:
        raise ParityError(
            f"engine refused on {parity.pairs} held-out pairs: {'; '.join(faults)}",
            "use a higher precision (openvino: engine.precision bfloat16; TensorRT-LLM: "
            "engine.trtllm.quantization none), more calibration_prompts, or, if the loss is "
            "acceptable, a wider engine.parity",
        )
