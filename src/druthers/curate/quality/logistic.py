"""Logistic regression of few features on many rows: Newton's method, a small ridge, cluster-robust intervals.

The outcome may be a share (1/2 for a tie): the estimating equation stays right, and the sandwich its variance
(White 1980; Liang & Zeger 1986). With few clusters the sandwich is too narrow; up to `FEW` of them its halves are the
one-step jackknife over clusters (CV3 of MacKinnon, Nielsen & Webb 2023, J. Applied Econometrics 38:671).

Letters: N rows, F features, G clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from druthers.curate.quality import clusters

Floats = NDArray[np.float64]
Rows = NDArray[Any]
AT_ONCE = 65_536
"""Rows that are in float64 at a time."""
FEW = 1_000
STEPS = 60
RIDGE = 1e-3


@dataclass(frozen=True)
class Fit:
    """Coefficients (F,), the curvature of the penalised loss there (F, F), and that loss."""

    coefficient_F: Floats
    curvature_FF: Floats
    loss: float


def blocks(count: int) -> Iterator[slice]:
    """The rows, some at a time."""
    for start in range(0, count, AT_ONCE):
        yield slice(start, start + AT_ONCE)


def fit(
    x_NF: Rows,
    y_N: Floats,
    *,
    ridge: float = RIDGE,
    weight: float = 1.0,
    held: tuple[int, float] | None = None,
    start_F: Floats | None = None,
) -> Fit:
    """The coefficients that minimise sum of weight (log(1 + e^eta) - y eta) + ridge / 2 |coefficients|^2, eta = x b.

    `y_N` in [0, 1]. The ridge is on the sum, so it vanishes beside many rows, and keeps a feature that separates the
    outcomes finite. `held` holds one coefficient at a value.

    >>> x = np.array([[1.0], [1.0], [1.0], [1.0]])
    >>> round(float(fit(x, np.array([1.0, 1.0, 1.0, 0.0])).coefficient_F[0]), 3)  # log 3, less the ridge
    1.097
    """
    beta_F = np.zeros(x_NF.shape[1]) if start_F is None else start_F.copy()
    free_F = np.ones(len(beta_F), dtype=bool)
    if held is not None:
        beta_F[held[0]], free_F[held[0]] = held[1], False
    loss, slope_F, curve_FF = terms(x_NF, y_N, beta_F, ridge=ridge, weight=weight)
    for _ in range(STEPS):
        step_F = np.zeros_like(beta_F)
        if free_F.any():
            step_F[free_F] = np.linalg.solve(curve_FF[np.ix_(free_F, free_F)], slope_F[free_F])
        gain = float(slope_F @ step_F)
        if gain < 1e-10:  # the step is then a hundred thousandth of a standard error
            break
        size = 1.0
        while True:
            tried = terms(x_NF, y_N, beta_F + size * step_F, ridge=ridge, weight=weight)
            if tried[0] <= loss + 1e-12 * abs(loss) or size < 1e-6:
                break
            size /= 2
        beta_F, (loss, slope_F, curve_FF) = beta_F + size * step_F, tried
    return Fit(beta_F, curve_FF, loss)


def terms(x_NF: Rows, y_N: Floats, beta_F: Floats, *, ridge: float, weight: float) -> tuple[float, Floats, Floats]:
    """Penalised loss, the negative of its slope, and its curvature."""
    loss = ridge / 2 * float(beta_F @ beta_F)
    slope_F, curve_FF = -ridge * beta_F, ridge * np.eye(len(beta_F))
    for rows in blocks(len(y_N)):
        x = np.asarray(x_NF[rows], dtype=np.float64)
        eta = x @ beta_F
        chance = expit(eta)
        loss += weight * float((np.logaddexp(0.0, eta) - y_N[rows] * eta).sum())
        slope_F = slope_F + weight * (x.T @ (y_N[rows] - chance))
        curve_FF = curve_FF + weight * ((x * (chance * (1 - chance))[:, None]).T @ x)
    return loss, slope_F, curve_FF


def predict(x_NF: Rows, coefficient_F: Floats) -> Floats:
    """The linear predictor of each row, (N,)."""
    return np.concatenate([np.asarray(x_NF[rows], dtype=np.float64) @ coefficient_F for rows in blocks(len(x_NF))])


def robust(x_NF: Rows, y_N: Floats, found: Fit, cluster_N: NDArray[Any]) -> tuple[Floats, int]:
    """Cluster-robust covariance of the coefficients (F, F), and the number of clusters (at least 2)."""
    code_N, groups = clusters.codes(cluster_N)
    features = x_NF.shape[1]
    chance_N = expit(predict(x_NF, found.coefficient_F))
    left_N = y_N - chance_N
    score_GF = np.column_stack([np.bincount(code_N, left_N * x_NF[:, f], minlength=groups) for f in range(features)])
    bread_FF = np.linalg.inv(found.curvature_FF)
    if groups > FEW:
        spread_GF = score_GF @ bread_FF
        return spread_GF.T @ spread_GF * groups / (groups - 1), groups
    spread_N = chance_N * (1 - chance_N)
    own_GFF = np.empty((groups, features, features))
    for i in range(features):
        for j in range(i, features):
            own = np.bincount(code_N, spread_N * x_NF[:, i] * x_NF[:, j], minlength=groups)
            own_GFF[:, i, j] = own_GFF[:, j, i] = own
    rest_GFF = found.curvature_FF - own_GFF + 1e-9 * np.trace(found.curvature_FF) * np.eye(features)
    moved_GF = np.linalg.solve(rest_GFF, score_GF[:, :, None])[:, :, 0]
    return moved_GF.T @ moved_GF * (groups - 1) / groups, groups
