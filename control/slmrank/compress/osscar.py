"""OSSCAR for one linear layer: which input neurons to drop, and the optimal refit of the rest.

Meng, Behdin, Wang, Mazumder: "OSSCAR: One-Shot Structured Pruning in Vision and Language Models
with Combinatorial Optimization" (arXiv 2403.12983), for groups of one neuron. With calibration
inputs X (T, p), weights W0 (p, d) and H = X^T X + damping, it minimises

    f(W) = 1/2 tr((W - W0)^T H (W - W0))   over W with at most `keep` non-zero rows.

For a support S the optimum is W_S = inv(H_SS) (H W0)_S. Dropping neuron j from the current optimum
costs exactly |W_j|^2 / (2 V_jj) with V = inv(H_SS); the greedy pass drops the cheapest and updates
W and V by a rank-b step, so no system is solved again until the end. Double precision throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from slmrank.errors import SpecError

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Kept neuron indices (sorted, [keep]), their weights [keep, d], and the share of the layer's
    output energy on the calibration inputs that the change costs (0 = lossless)."""

    kept: npt.NDArray[np.intp]
    weights: Matrix
    relative_error: float


def damped(gram: Matrix, damping: float) -> Matrix:
    """H = X^T X + damping * mean(diag) * I."""
    ridge = damping * float(np.mean(np.diag(gram)))
    return gram + max(ridge, 1e-12) * np.eye(len(gram))


def prune_neurons(
    gram: Matrix,
    weights: Matrix,
    keep: int,
    *,
    method: str = "osscar",
    damping: float = 0.01,
    per_round: int = 8,
) -> Pruned:
    """Keep `keep` of p neurons. `gram` is X^T X [p, p], `weights` W0 [p, d].

    `per_round` neurons are dropped between two updates; 1 is exact greedy. `method` is a name of
    CRITERIA. Raises SpecError when `keep` is not in 1..p.
    """
    count = len(weights)
    if not 0 < keep <= count:
        raise SpecError(f"cannot keep {keep} of {count} neurons", f"choose 1 to {count}")
    hessian = damped(gram, damping)
    choose, refitted = CRITERIA[method]
    kept = choose(hessian, gram, weights, keep, per_round)
    fitted = refit(hessian, weights, kept) if refitted else weights[kept]
    return Pruned(
        kept=kept, weights=fitted, relative_error=relative_error(gram, weights, kept, fitted)
    )


def refit(hessian: Matrix, weights: Matrix, kept: npt.NDArray[np.intp]) -> Matrix:
    """The optimal weights on a support: inv(H_SS) (H W0)_S, shape [keep, d]."""
    factor = cho_factor(hessian[np.ix_(kept, kept)], lower=True)
    solved: Matrix = cho_solve(factor, hessian[kept] @ weights)
    return solved


def relative_error(
    gram: Matrix, weights: Matrix, kept: npt.NDArray[np.intp], fitted: Matrix
) -> float:
    """|X W - X W0|^2 / |X W0|^2 for the pruned weights, from the undamped Gram matrix."""
    change = -weights
    change[kept] += fitted
    total = float(np.sum(weights * (gram @ weights)))
    return float(np.sum(change * (gram @ change))) / total if total else 0.0


def _greedy(
    hessian: Matrix, _gram: Matrix, weights: Matrix, keep: int, per_round: int
) -> npt.NDArray[np.intp]:
    inverse = np.linalg.inv(hessian)
    current = weights.copy()
    alive = np.ones(len(weights), dtype=bool)
    left = len(weights)
    while left > keep:
        cost = np.full(len(weights), np.inf)
        cost[alive] = np.sum(current[alive] ** 2, axis=1) / np.diag(inverse)[alive]
        count = min(per_round, left - keep)
        dropped = np.argpartition(cost, count - 1)[:count]
        columns = inverse[:, dropped]
        step = np.linalg.solve(inverse[np.ix_(dropped, dropped)], np.eye(count))
        current -= columns @ (step @ current[dropped])
        inverse -= columns @ (step @ columns.T)
        current[dropped] = 0.0
        inverse[dropped, :] = 0.0
        inverse[:, dropped] = 0.0
        alive[dropped] = False
        left -= count
    return np.flatnonzero(alive)


def _largest(
    _hessian: Matrix, gram: Matrix, weights: Matrix, keep: int, _per_round: int
) -> npt.NDArray[np.intp]:
    # Wanda's criterion for a whole neuron: weight norm times input norm.
    size = np.linalg.norm(weights, axis=1) * np.sqrt(np.maximum(np.diag(gram), 0.0))
    return np.sort(np.argpartition(-size, keep - 1)[:keep])


Choose = Callable[[Matrix, Matrix, Matrix, int, int], npt.NDArray[np.intp]]
# Name -> (which neurons stay, whether the closed form refits them). The magnitude ones are
# baselines: `magnitude` keeps the neurons of largest |W_j| |X_j| as they are.
CRITERIA: dict[str, tuple[Choose, bool]] = {
    "osscar": (_greedy, True),
    "magnitude_refit": (_largest, True),
    "magnitude": (_largest, False),
}
