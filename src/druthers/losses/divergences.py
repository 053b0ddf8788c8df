"""f-divergences: what stands in the place of a log-ratio where another distance than reverse KL holds the policy.

Wang et al. 2023, "Beyond Reverse KL" (arXiv 2309.16240): the reward is beta f'(pi / pi_ref) up to a constant
of the prompt, which falls out of a difference of two responses, and only there.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]
LARGEST = 80.0
"""Exponents are cut here, where float32 still holds their exponential."""


def scores(ratio_CB: Tensor, *, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Tensor:
    """f' of the ratio, from its logarithm x: x, 1 - exp(-x), log 2 + log sigmoid(x), (exp((a-1) x) - 1) / (a-1).

    Alpha near 1 is reverse KL. Derivatives at the reference are 1, 1, 1/2 and 1. Any shape; the same comes back.

    >>> x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> [[round(v, 4) for v in scores(x, divergence=kind).tolist()] for kind in ("reverse-kl", "forward-kl", "js")]
    [[0.0, 1.0], [0.0, 0.6321], [0.0, 0.3799]]
    >>> [round(v, 4) for v in scores(x, divergence="alpha", alpha=0.5).tolist()]
    [0.0, 0.7869]
    """
    if divergence == "forward-kl":
        return 1 - torch.exp((-ratio_CB).clamp(max=LARGEST))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(ratio_CB)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        return torch.expm1(((alpha - 1) * ratio_CB).clamp(max=LARGEST)) / (alpha - 1)
    return ratio_CB
