"""Losses of labelled single answers. Row 0 holds the answer, row 1 the same prompt with another prompt's answer.

Letters: C rows (0 the answer, 1 the mismatched one), B answers. `label_B` is 1 for a good answer and 0 for a bad one;
between them the loss is the mean of both. `a = policy - reference` of the answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.terms import logratios, weighted_mean


def kto(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
    origin: Tensor,
    label_B: Tensor,
) -> Tensor:
    """KTO: good `l_D (1 - s(beta (a - z0)))`, bad `l_U (1 - s(beta (z0 - a)))` (Ethayarajh, arXiv 2402.01306, eq. 7).

    `origin` is z0, the reference point, with no gradient.

    >>> one, policy, reference = torch.ones(1), torch.tensor([[-10.0], [-9.0]]), torch.tensor([[-11.0], [-9.0]])
    >>> z0 = torch.tensor(0.2)
    >>> found = kto(policy, reference, beta=0.1, desirable=1.0, undesirable=1.0, origin=z0, label_B=one)
    >>> round(found.item(), 6)
    0.480011
    """
    z_B = beta * (logratios(policy_CB, reference_CB)[0] - origin.detach())
    return label_B * desirable * torch.sigmoid(-z_B) + (1 - label_B) * undesirable * torch.sigmoid(z_B)


def reference_point(policy_CB: Tensor, reference_CB: Tensor, *, weight_B: Tensor) -> Tensor:
    """KTO's z0: `max(0, mean log-ratio of mismatched answers)` over the step, detached (arXiv 2402.01306).

    It estimates the KL of policy to reference; one answer alone makes it useless, so a step should hold many.

    >>> policy, reference = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 2)
    >>> reference_point(policy, reference, weight_B=torch.ones(2)).item()
    1.5
    """
    return weighted_mean(logratios(policy_CB.detach(), reference_CB)[1], weight_B).clamp(min=0)


def bco_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, shift: float, label_B: Tensor) -> Tensor:
    """BCO on labels: good `-log s(beta a - d)`, bad `-log s(-(beta a - d))` (Jung et al. 2024, arXiv 2404.04656).

    >>> policy, reference, one = torch.tensor([[-10.0], [-9.0]]), torch.tensor([[-11.0], [-9.0]]), torch.ones(1)
    >>> round(bco_unpaired(policy, reference, beta=0.1, shift=0.1, label_B=one).item(), 6)
    0.693147
    """
    z_B = beta * logratios(policy_CB, reference_CB)[0] - shift
    return -label_B * F.logsigmoid(z_B) - (1 - label_B) * F.logsigmoid(-z_B)


def mean_answer_reward(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, weight_B: Tensor) -> float:
    """Weighted mean reward `beta a` of the answers of a step, good and bad together.

    >>> policy, reference = torch.tensor([[1.0, 2.0], [9.0, 9.0]]), torch.zeros(2, 2)
    >>> mean_answer_reward(policy, reference, beta=1.0, weight_B=torch.ones(2))
    1.5
    """
    return float(beta * weighted_mean(logratios(policy_CB.detach(), reference_CB)[0], weight_B))


def apo_zero_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, label_B: Tensor) -> Tensor:
    """APO-zero on labels: good `1 - s(beta a)`, bad `s(beta a)`, halves of `apo_zero` (arXiv 2408.06266, eq. 7).

    >>> policy, reference, one = torch.tensor([[-11.0], [-9.0]]), torch.tensor([[-11.0], [-9.0]]), torch.ones(1)
    >>> apo_zero_unpaired(policy, reference, beta=0.1, label_B=one).item()
    0.5
    """
    z_B = beta * logratios(policy_CB, reference_CB)[0]
    return label_B * torch.sigmoid(-z_B) + (1 - label_B) * torch.sigmoid(z_B)


def balance(*, good: float, bad: float, desirable: float, undesirable: float) -> float:
    """`l_D n_good / (l_U n_bad)`, which the KTO paper wants within [1, 4/3].

    >>> balance(good=100, bad=400, desirable=4.0, undesirable=1.0)
    1.0
    """
    return desirable * good / (undesirable * bad)
