"""OSSCAR for one linear layer: which inputs to drop, and the optimal refit of the rest.

Meng, Behdin, Wang, Mazumder: "OSSCAR: One-Shot Structured Pruning in Vision and Language Models
with Combinatorial Optimization" (arXiv 2403.12983). Inputs go in groups: single neurons of an MLP,
or all heads that share one key/value head. With calibration inputs X (T, p), weights W0 (p, d) and
H = X^T X + damping, it minimises

    f(W) = 1/2 tr((W - W0)^T H (W - W0))   over W with at most `keep` non-zero groups of rows.

For a support S the optimum is W_S = inv(H_SS) (H W0)_S. Dropping group g from the current optimum
costs exactly 1/2 tr(W_g^T inv(V_gg) W_g) with V = inv(H_SS), which is |W_j|^2 / (2 V_jj) for one
neuron; the greedy pass drops the cheapest and updates W and V by a rank-b step, so no system is
solved again until the end. Double precision throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotri

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
    group: int = 1,
    product: Matrix | None = None,
) -> Pruned:
    """Keep `keep` of the p / `group` groups. `gram` is X^T X [p, p], `weights` W0 [p, d], `product`
    X^T X W0 [p, d] where it is known.

    `per_round` groups are dropped between two updates; 1 is exact greedy. `method` is a name of
    CRITERIA. Raises SpecError when `keep` is not in 1..p / group.
    """
    count = len(weights) // group
    if not 0 < keep <= count:
        raise SpecError(f"cannot keep {keep} of {count} neurons", f"choose 1 to {count}")
    hessian = damped(gram, damping)
    choose, refitted = CRITERIA[method]
    units = choose(hessian, gram, weights, keep, per_round, group)
    kept = members(units, group)
    fitted = weights[kept]
    if refitted:
        ridge = np.diag(hessian) - np.diag(gram)
        target = None if product is None else product + ridge[:, None] * weights
        fitted = refit(hessian, weights, kept, target)
    error = relative_error(gram, weights, kept, fitted, product)
    return Pruned(kept=kept, weights=fitted, relative_error=error)


def refit(
    hessian: Matrix, weights: Matrix, kept: npt.NDArray[np.intp], target: Matrix | None = None
) -> Matrix:
    """The optimal weights on a support: inv(H_SS) (H W0)_S, shape [keep, d]; `target` is H W0 where
    it is known."""
    factor = _factor(hessian[np.ix_(kept, kept)])
    wanted = hessian[kept] @ weights if target is None else target[kept]
    solved: Matrix = cho_solve(factor, wanted)
    return solved


def relative_error(
    gram: Matrix,
    weights: Matrix,
    kept: npt.NDArray[np.intp],
    fitted: Matrix,
    product: Matrix | None = None,
) -> float:
    """|X W - X W0|^2 / |X W0|^2 for the pruned weights, from the undamped Gram matrix; `product` is
    that times W0, where it is known."""
    product = gram @ weights if product is None else product
    total = float(np.sum(weights * product))
    own = gram[np.ix_(kept, kept)] @ fitted
    # What is left of the square, in parts: the largest product, with W0, is that of every method.
    lost = total + float(np.sum(fitted * (own - 2 * product[kept])))
    return max(lost, 0.0) / total if total else 0.0


def _factor(hessian: Matrix) -> tuple[Matrix, bool]:
    """The Cholesky factor. Raises SpecError where the ridge is smaller than what rounding to
    float32 did to the Gram matrix."""
    try:
        factor: tuple[Matrix, bool] = cho_factor(hessian, lower=True)
    except np.linalg.LinAlgError as error:
        raise SpecError(
            f"prune.damping is too small for these calibration inputs: {error}",
            "raise it, as to 0.01, which is the default",
        ) from error
    return factor


def members(units: npt.NDArray[np.intp], group: int) -> npt.NDArray[np.intp]:
    """Neuron indices of groups, in order."""
    found: npt.NDArray[np.intp] = (units[:, None] * group + np.arange(group)).reshape(-1)
    return found


def _costs(inverse: Matrix, current: Matrix, alive: npt.NDArray[np.intp], group: int) -> Matrix:
    """Twice what dropping each living group costs."""
    if group == 1:
        squares: Matrix = np.einsum("ij,ij->i", current, current)
        found: Matrix = squares[alive] / np.diag(inverse)[alive]
        return found
    costs = []
    for unit in alive:
        own = slice(unit * group, (unit + 1) * group)
        solved = np.linalg.solve(inverse[own, own], current[own])
        costs.append(float(np.sum(current[own] * solved)))
    return np.array(costs)


def _greedy(
    hessian: Matrix, _gram: Matrix, weights: Matrix, keep: int, per_round: int, group: int
) -> npt.NDArray[np.intp]:
    # In Fortran's order, so that BLAS adds the rank-b steps in place.
    lower, _ = dpotri(_factor(hessian)[0], lower=True)
    lower = np.tril(lower)
    inverse = np.asfortranarray(lower + np.tril(lower, -1).T)
    current = np.array(weights, order="F")
    alive = np.arange(len(weights) // group)
    while len(alive) > keep:
        count = min(per_round, len(alive) - keep)
        cheapest = np.argpartition(_costs(inverse, current, alive, group), count - 1)[:count]
        dropped = members(alive[cheapest], group)
        columns = inverse[:, dropped]
        step = np.linalg.solve(inverse[np.ix_(dropped, dropped)], np.eye(len(dropped)))
        current = dgemm(-1.0, columns, step @ current[dropped], 1.0, current, overwrite_c=True)
        inverse = dgemm(-1.0, columns, step @ columns.T, 1.0, inverse, overwrite_c=True)
        current[dropped] = 0.0
        inverse[dropped, :] = 0.0
        inverse[:, dropped] = 0.0
        alive = np.delete(alive, cheapest)
    return alive


def _largest(
    _hessian: Matrix, gram: Matrix, weights: Matrix, keep: int, _per_round: int, group: int
) -> npt.NDArray[np.intp]:
    # Wanda's criterion for a whole neuron: weight norm times input norm; a group's is their norm.
    size = np.linalg.norm(weights, axis=1) * np.sqrt(np.maximum(np.diag(gram), 0.0))
    size = np.linalg.norm(size.reshape(-1, group), axis=1)
    return np.sort(np.argpartition(-size, keep - 1)[:keep])


Choose = Callable[[Matrix, Matrix, Matrix, int, int, int], npt.NDArray[np.intp]]
# Name -> (which neurons stay, whether the closed form refits them). The magnitude ones are
# baselines: `magnitude` keeps the neurons of largest |W_j| |X_j| as they are.
CRITERIA: dict[str, tuple[Choose, bool]] = {
    "osscar": (_greedy, True),
    "magnitude_refit": (_largest, True),
    "magnitude": (_largest, False),
}
