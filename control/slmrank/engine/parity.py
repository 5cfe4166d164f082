"""The parity gate: an engine's scores against the float32 reference on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import ParityError
from slmrank.evaluate.metrics import Listing, pair_order_agreement
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.probability import probability
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.engine import ParitySpec

ORDER_MARGIN = 0.05
# From one query to the log-odds [N] of its items.
Scorer = Callable[[EncodedQuery], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was measured: |p_engine - p_reference| and the share of pairs ordered alike (NaN: the
    reference sets no pair apart)."""

    pairs: int
    mean_abs_dp: float
    max_abs_dp: float
    pair_order: float


def check_parity(
    checkpoint: Checkpoint,
    scorer: Scorer,
    held_out: Sequence[EncodedQuery],
    limits: ParitySpec,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Score every held-out pair with transformers in float32 and with the engine; returns figures.
    `report` is told how far the former is: 128 full texts take five minutes on two cores.

    Raises ParityError when a limit is broken.
    """
    from slmrank.model.reference import ReferenceScorer

    prompts = [prompt for query in held_out for prompt in query.prompts()]
    reference = ReferenceScorer(checkpoint).probabilities(
        prompts, lambda done, total: report(f"check parity: {done}/{total} pairs in transformers")
    )
    expected = iter(reference.tolist())
    wanted, given = [], []
    for query in held_out:
        grades = np.array(query.grades, dtype=float)
        scores = np.array([next(expected) for _ in query.items])
        wanted.append(Listing(scores=scores, grades=grades))
        given.append(Listing(scores=probability(scorer(query)), grades=grades))
    parity = measure_parity(wanted, given)
    require_parity(parity, limits)
    return {"parity": asdict(parity), "tolerance": limits.settings()}


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


def require_parity(parity: Parity, limits: ParitySpec) -> None:
    """Raises ParityError that names every limit that is broken. NaN breaks all."""
    if math.isnan(parity.pair_order) and not math.isnan(parity.mean_abs_dp):
        raise ParityError(
            f"the reference sets no two of {parity.pairs} held-out pairs apart by more than "
            f"{ORDER_MARGIN}, so the engine's order cannot be judged: no query has two jobs, or it "
            "ranks nothing",
            "give queries with several judged jobs, train the model longer, or raise "
            "engine.parity.pairs",
        )
    faults = []
    if not parity.mean_abs_dp <= limits.max_mean_abs_dp:
        faults.append(f"mean |dp| {parity.mean_abs_dp:.4f} > {limits.max_mean_abs_dp}")
    if not parity.max_abs_dp <= limits.max_abs_dp:
        faults.append(f"largest |dp| {parity.max_abs_dp:.4f} > {limits.max_abs_dp}")
    if not parity.pair_order >= limits.min_pair_order:
        faults.append(f"pairs ordered alike {parity.pair_order:.4f} < {limits.min_pair_order}")
    if faults:
        raise ParityError(
            f"engine refused on {parity.pairs} held-out pairs: {'; '.join(faults)}",
            "use a higher precision (engine.openvino.precision bfloat16 or float32, "
            "engine.torch.dtype float32, engine.trtllm.quantization none), more "
            "calibration_prompts, or, if the loss is acceptable, a wider engine.parity",
        )
