"""Losses of single answers that are called good or bad: row 0 the answers, row 1 answers of other prompts.

Letters: C axis (0 the answer, 1 an answer that belongs to another prompt), B answers. `p_B` is 1 for good, 0 for bad;
what lies between counts as both, by its share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.terms import logratios, mean_of


def anchor(policy_CB: Tensor, reference_CB: Tensor, *, weight_B: Tensor) -> Tensor:
    """KTO's z0: the mean log-ratio of answers to other prompts over the step, at least 0, without gradient."""
    return mean_of(logratios(policy_CB, reference_CB)[1], weight_B).detach().clamp(min=0)


def kto(
    policy_CB: Tensor, reference_CB: Tensor, *, beta: float, good: float, bad: float, p_B: Tensor, z0: Tensor
) -> Tensor:
    """KTO: good `lambda_D (1 - s(beta (a - z0)))`, bad `lambda_U (1 - s(beta (z0 - a)))` (2402.01306, eq. 7).

    >>> import torch
    >>> policy, z0 = torch.tensor([[1.0, -0.5], [0.0, 0.0]], dtype=torch.float64), torch.tensor(0.2)
    >>> found = kto(policy, 0 * policy, beta=0.1, good=1.0, bad=1.0, p_B=torch.tensor([1.0, 0.0]), z0=z0)
    >>> [round(v, 6) for v in found.tolist()]
    [0.480011, 0.482507]
    """
    a_B = logratios(policy_CB, reference_CB)[0]
    good_B = good * torch.sigmoid(-beta * (a_B - z0))
    bad_B = bad * torch.sigmoid(beta * (a_B - z0))
    return p_B * good_B + (1 - p_B) * bad_B


def bco_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor, shift: float) -> Tensor:
    """BCO: good `-log s(beta a - d)`, bad `-log s(d - beta a)`, d the running mean reward (arXiv 2404.04656).

    >>> import torch
    >>> policy = torch.tensor([[1.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
    >>> found = bco_unpaired(policy, 0 * policy, beta=0.1, p_B=torch.tensor([1.0, 0.0]), shift=0.0)
    >>> round(found.sum().item(), 6)
    1.312856
    """
    a_B = beta * logratios(policy_CB, reference_CB)[0]
    return -p_B * F.logsigmoid(a_B - shift) - (1 - p_B) * F.logsigmoid(shift - a_B)


def apo_zero_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor) -> Tensor:
    """APO-zero: good `1 - s(beta a)`, bad `s(beta a)` (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7, by halves).

    >>> import torch
    >>> policy = torch.tensor([[1.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
    >>> found = apo_zero_unpaired(policy, 0 * policy, beta=0.1, p_B=torch.tensor([1.0, 0.0]))
    >>> round(found.sum().item(), 6)
    0.962523
    """
    a_B = beta * logratios(policy_CB, reference_CB)[0]
    return p_B * torch.sigmoid(-a_B) + (1 - p_B) * torch.sigmoid(a_B)
