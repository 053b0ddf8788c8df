"""Losses of K responses to one prompt. They are functions only: the training loop has pairs, so no setting names them.

Letters: K responses of a prompt, B prompts. `x = beta (policy - reference)`, shape (K, B). Where prompts have different
numbers of responses, `present_KB` is False for the places that hold none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1e30
"""A log-weight whose exponential is 0, with a gradient that is a number (minus infinity has none)."""


def rewards(policy_KB: Tensor, reference_KB: Tensor, *, beta: float, present_KB: Tensor | None) -> Tensor:
    """`beta (policy - reference)`, shape (K, B), absent places far below all others; raises ValueError for shapes."""
    if policy_KB.shape != reference_KB.shape or policy_KB.ndim != 2 or policy_KB.shape[0] < 2:
        raise ValueError(
            f"log-probs must both have shape (K, B) with K >= 2, not {tuple(policy_KB.shape)} and "
            f"{tuple(reference_KB.shape)}"
        )
    x_KB = beta * (policy_KB - reference_KB)
    return x_KB if present_KB is None else torch.where(present_KB, x_KB, ABSENT)


def plackett_luce(policy_KB: Tensor, reference_KB: Tensor, *, beta: float, present_KB: Tensor | None = None) -> Tensor:
    """DPO on a ranking, best first: `-sum_k (x_k - logsumexp(x_k .. x_K))` (arXiv 2305.18290, appendix A.3).

    K = 2 is `sigmoid`. A tie is no ranking: leave it out, or give both orders half the weight. Returns shape (B,).

    >>> ratio = torch.tensor([[1.0], [0.3], [-0.5]])
    >>> round(plackett_luce(ratio, torch.zeros(3, 1), beta=0.1).item(), 4)
    1.6811
    """
    x_KB = rewards(policy_KB, reference_KB, beta=beta, present_KB=present_KB)
    term_KB = x_KB.flip(0).logcumsumexp(0).flip(0) - x_KB
    return (term_KB if present_KB is None else torch.where(present_KB, term_KB, 0.0)).sum(0)


def s_dpo(policy_KB: Tensor, reference_KB: Tensor, *, beta: float, present_KB: Tensor | None = None) -> Tensor:
    """S-DPO, one chosen (row 0) against many: `-log s(-log sum_l exp(x_l - x_0))` (Chen et al. 2024, arXiv 2406.09215).

    >>> round(s_dpo(torch.zeros(3, 1), torch.zeros(3, 1), beta=0.1).item(), 6)  # one of three: log 3
    1.098612
    """
    x_KB = rewards(policy_KB, reference_KB, beta=beta, present_KB=present_KB)
    return F.softplus(torch.logsumexp(x_KB[1:], dim=0) - x_KB[0])


def lipo(
    policy_KB: Tensor, reference_KB: Tensor, *, beta: float, gain_KB: Tensor, present_KB: Tensor | None = None
) -> Tensor:
    """LiPO-lambda: `sum over g_i > g_j of D_ij log(1 + exp(x_j - x_i))` (Liu et al., arXiv 2402.01878), shape (B,).

    `gain_KB` are graded labels; `D_ij = |2^g_i - 2^g_j| |1 / log(1 + r_i) - 1 / log(1 + r_j)|` with `r` the rank that
    the policy's own rewards give, from 1, as in LambdaRank; it has no gradient. Ties are no pairs.

    >>> gains = torch.tensor([[1.0], [0.0]])
    >>> found = lipo(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1), beta=1.0, gain_KB=gains)
    >>> import math
    >>> weight = 1 * (1 / math.log(2) - 1 / math.log(3))
    >>> round(found.item(), 6) == round(weight * math.log(1 + math.exp(-1)), 6)
    True
    """
    x_KB = rewards(policy_KB, reference_KB, beta=beta, present_KB=present_KB)
    rank_KB = x_KB.detach().argsort(dim=0, descending=True, stable=True).argsort(dim=0) + 1
    discount_KB = 1 / torch.log1p(rank_KB.to(x_KB.dtype))
    power_KB = 2.0**gain_KB
    importance_KKB = (power_KB[:, None] - power_KB[None]).abs() * (discount_KB[:, None] - discount_KB[None]).abs()
    counts_KKB = gain_KB[:, None] > gain_KB[None]
    if present_KB is not None:
        counts_KKB = counts_KKB & present_KB[:, None] & present_KB[None]
    term_KKB = importance_KKB * F.softplus(x_KB[None] - x_KB[:, None])
    return torch.where(counts_KKB, term_KKB, 0.0).sum((0, 1))
