"""Transforms of a log-ratio that put another f-divergence in place of the reverse KL (Wang et al., arXiv 2309.16240).

With `x = log(policy / reference)` a loss of the difference `u(a) - u(b)` regularises by the divergence whose derivative
is `u`. The normaliser of the reward cancels in that difference and nowhere else, so losses that look at one side alone
have no such variant, and no such setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
DIVERGENCES = ("reverse-kl", "forward-kl", "js", "alpha")
LARGEST_EXPONENT = 80.0
"""Exponents are cut here: e^80 times any beta is still a finite float32, and its sign is all that matters by then."""


def reverse_kl(x: Tensor) -> Tensor:
    """`u(x) = x`: the DPO of the paper.

    >>> reverse_kl(torch.tensor(0.5)).item()
    0.5
    """
    return x


def forward_kl(x: Tensor) -> Tensor:
    """`u(x) = 1 - exp(-x)` (arXiv 2309.16240, table 1).

    >>> forward_kl(torch.tensor(0.0)).item()
    0.0
    """
    return 1 - torch.exp((-x).clamp(max=LARGEST_EXPONENT))


def js(x: Tensor) -> Tensor:
    """`u(x) = log 2 + log s(x)`, Jensen-Shannon (arXiv 2309.16240, table 1); bounded above by log 2.

    >>> js(torch.tensor(0.0)).item()
    0.0
    """
    return math.log(2) + F.logsigmoid(x)


def alpha_divergence(x: Tensor, *, alpha: float) -> Tensor:
    """`u(x) = (exp((alpha - 1) x) - 1) / (alpha - 1)`; alpha 1 is the reverse KL, 0 the forward KL.

    >>> alpha_divergence(torch.tensor(2.0), alpha=1.0).item()
    2.0
    >>> round(alpha_divergence(torch.tensor(1.0), alpha=0.5).item(), 6) == round(2 * (1 - math.exp(-0.5)), 6)
    True
    """
    if abs(alpha - 1) < 1e-9:
        return x
    return torch.expm1(((alpha - 1) * x).clamp(max=LARGEST_EXPONENT)) / (alpha - 1)


def transform(divergence: str, *, alpha: float | None) -> Transform:
    """The transform by name; `alpha` belongs to 'alpha' alone (unset: 0.5).

    Raises ValueError for an unknown name, and for an alpha that nothing reads.
    """
    if divergence == "alpha":
        order = 0.5 if alpha is None else alpha
        return lambda x: alpha_divergence(x, alpha=order)
    if alpha is not None:
        raise ValueError(f"divergence_alpha = {alpha:g} is read by divergence = 'alpha' alone; leave one of them out")
    plain: dict[str, Transform] = {"reverse-kl": reverse_kl, "forward-kl": forward_kl, "js": js}
    if divergence not in plain:
        raise ValueError(f"divergence = {divergence!r} is not one of {', '.join(DIVERGENCES)}")
    return plain[divergence]
