"""Weights of pairs that depend on the policy: WPO's, and those of group-robust DPO.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from druthers.losses.terms import Loss, Terms, given


def wpo_weight(certainty_CB: Tensor, *, most: float | None = None) -> Tensor:
    """WPO: `w = v_chosen v_rejected`, `v = exp(mean_t (log p(y_t) - log sum_j p(j)^2))` (2406.11827, eq. 2), (B,).

    Responses as probable as the policy's own samples weigh about 1, those it would not write less. It can exceed 1;
    `most` cuts it. It has no gradient.

    >>> wpo_weight(torch.zeros(2, 1)).item()  # a uniform policy: log(1 / V) - log(V / V^2) = 0
    1.0
    """
    weight_B = certainty_CB.detach().sum(dim=0).exp()
    return weight_B if most is None else weight_B.clamp(max=most)


def weighted(loss: Loss, *, most: float | None = None) -> Loss:
    """A paired loss with WPO's weights.

    Raises ValueError for one whose loss of a pair is not the pair's own (sorted, selected or unpaired): the weight
    would fall on another.
    """
    if loss.unpaired or (loss.coupled and loss.follow is None) or "draw" in loss.needs:
        raise ValueError("WPO weighs pairs, and this loss sorts, selects or mixes them; use a loss of single pairs")

    def of(policy_CB: Tensor, reference_CB: Tensor, terms: Terms) -> Tensor:
        weight_B = wpo_weight(given(terms.certainty_CB, need="certainty"), most=most)
        return weight_B * loss.of(policy_CB, reference_CB, terms)

    return Loss(
        of=of,
        p=loss.p,
        margin=loss.margin,
        reference=loss.reference,
        needs=loss.needs | {"certainty"},
        coupled=loss.coupled,
        start=loss.start,
        follow=loss.follow,
    )


def group_losses(loss_B: Tensor, *, weight_B: Tensor, group_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weighted mean loss of every group, detached, and whether the step holds any of it; both shape (G,).

    `group_B` numbers groups from 0, `count` is G.

    >>> group = torch.tensor([0, 0, 2])
    >>> found, present = group_losses(torch.tensor([1.0, 3.0, 5.0]), weight_B=torch.ones(3), group_B=group, count=3)
    >>> found.tolist(), present.tolist()
    ([2.0, 0.0, 5.0], [True, False, True])
    """
    total_G = torch.zeros(count, dtype=weight_B.dtype, device=weight_B.device).index_add(0, group_B, weight_B)
    sum_G = torch.zeros_like(total_G).index_add(0, group_B, weight_B * loss_B.detach())
    present_G = total_G > 0
    return sum_G / torch.where(present_G, total_G, 1.0), present_G


def robust_q(
    q_G: Tensor, loss_G: Tensor, *, eta: float, present_G: Tensor, importance_G: Tensor | None = None
) -> Tensor:
    """GR-DPO: `q_g <- q_g exp(eta L_g)`, normalised (Ramesh et al. 2024, arXiv 2405.20304, algorithm 1), shape (G,).

    With `importance_G`, N / N_g of the training pairs, `L_g` is scaled by it, as in the paper's algorithm, which draws
    groups by their size. Groups that the step does not hold keep their relation to one another. In logarithms, so a
    large loss does not overflow.

    >>> q = torch.tensor([0.5, 0.5])
    >>> robust_q(q, torch.tensor([0.0, 0.0]), eta=0.1, present_G=torch.tensor([True, True])).tolist()
    [0.5, 0.5]
    """
    scaled_G = loss_G if importance_G is None else importance_G * loss_G
    return torch.softmax(q_G.log() + torch.where(present_G, eta * scaled_G, 0.0), dim=0)


def robust_weight(q_G: Tensor, *, weight_B: Tensor, group_B: Tensor) -> Tensor:
    """Weights with which `sum(w l) / sum(w)` of a step is `sum_g q_g L_g / sum_g q_g` over its groups, shape (B,).

    >>> found = robust_weight(torch.tensor([0.25, 0.75]), weight_B=torch.ones(3), group_B=torch.tensor([0, 0, 1]))
    >>> found.tolist()
    [0.125, 0.125, 0.75]
    """
    total_G = torch.zeros_like(q_G).index_add(0, group_B, weight_B)
    return weight_B * (q_G / torch.where(total_G > 0, total_G, 1.0))[group_B]
