"""Weights of pairs that come from the policy itself, or from how badly a group fares.

Letters: C pair axis, B pairs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wpo(certainty_CB: Tensor) -> Tensor:
    """WPO: `v_w v_l` with `v = exp(mean_t [log p(y_t) - log sum_j p(j)^2])`, (B,), without gradient.

    Zhou et al. 2024 (arXiv 2406.11827), eq. 2: pairs count as if the policy had sampled them.

    >>> import torch
    >>> wpo(torch.zeros(2, 3)).tolist()  # as likely as the policy's own samples are on average
    [1.0, 1.0, 1.0]
    """
    return certainty_CB.detach().sum(0).exp()


def group_weights(q_G: Tensor, loss_G: Tensor, *, rate: float) -> Tensor:
    """Group-robust DPO: `q_g <- q_g exp(eta L_g)`, normalised (Ramesh et al. 2024, arXiv 2405.20304).

    >>> import torch
    >>> [round(q, 4) for q in group_weights(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), rate=1.0).tolist()]
    [0.7311, 0.2689]
    """
    return torch.softmax(q_G.log() + rate * loss_G.detach(), 0)


def group_losses(loss_B: Tensor, weight_B: Tensor, group_B: Tensor, *, groups: int) -> Tensor:
    """The weighted mean loss of each group, (G,); 0 of a group that has no pair.

    >>> import torch
    >>> group_losses(torch.tensor([1.0, 3.0, 5.0]), torch.ones(3), torch.tensor([0, 0, 1]), groups=3).tolist()
    [2.0, 5.0, 0.0]
    """
    total_G = torch.zeros(groups, dtype=loss_B.dtype).index_add(0, group_B, weight_B)
    sum_G = torch.zeros(groups, dtype=loss_B.dtype).index_add(0, group_B, loss_B * weight_B)
    return torch.where(total_G > 0, sum_G / total_G.clamp(min=torch.finfo(loss_B.dtype).tiny), 0.0)
