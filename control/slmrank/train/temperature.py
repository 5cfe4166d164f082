"""One temperature for a ranker's log-odds, fitted on dev (Guo et al., ICML 2017).

It goes into the weights: the log-odds are linear in the gain of the last norm, so dividing that
gain by the temperature divides them. The checkpoint stays an ordinary model, and every engine and
every other tool gives the calibrated p without knowing of it. The order of a listing stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmrank.evaluate.metrics import Listing, ece_interval, resamples
from slmrank.model.batch_tensors import query_logits
from slmrank.model.decoder import LoadedRanker
from slmrank.model.probability import probability
from slmrank.prompt.corpus import EncodedQuery

Vector = npt.NDArray[np.float64]
LOWEST, HIGHEST = 0.2, 5.0


def fit_temperature(logits: Vector, targets: Vector) -> float:
    """The T in 0.2 .. 5 for which sigmoid(logit / T) has the least cross-entropy to the targets, to
    three digits: a search over log T, in which the cross-entropy has one minimum."""
    from scipy.optimize import minimize_scalar

    def cost(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(np.logaddexp(0.0, scaled) - targets * scaled))

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return round(float(np.exp(found.x)), 4)


def apply_temperature(ranker: LoadedRanker, temperature: float) -> None:
    """Divide the ranker's log-odds, in its weights."""
    with torch.no_grad():
        ranker.network.model.norm.weight.div_(temperature)


def calibrate(ranker: LoadedRanker, queries: Sequence[EncodedQuery]) -> dict[str, Any]:
    """Fit on the queries' pairs and apply; returns the temperature, the calibration error on them
    before and after, and `offset`, by how much p is too high on average after it: a temperature
    mends how sure the ranker is, and no share of good pairs that differs from training's."""
    scored = [query_logits(ranker, query) for query in queries]
    targets = np.array([target for query in queries for target in query.targets])
    temperature = fit_temperature(np.concatenate(scored), targets)

    def error(scale: float) -> float:
        listings = [
            Listing(
                scores=probability(logits / scale),
                grades=np.array(query.grades, dtype=float),
                targets=np.array(query.targets),
            )
            for logits, query in zip(scored, queries, strict=True)
        ]
        return round(ece_interval(listings, resamples(len(listings), 1, 0)).value, 4)

    apply_temperature(ranker, temperature)
    mean_p = float(probability(np.concatenate(scored) / temperature).mean())
    return {
        "temperature": temperature,
        "ece_before": error(1.0),
        "ece_after": error(temperature),
        "offset": round(mean_p - float(targets.mean()), 4),
    }
