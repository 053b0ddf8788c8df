"""Losses of a pair that depend on the other pairs of its optimizer step: they must see all of them at once.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, here those of a whole step. `a`, `b`, `h` as in `paired`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.paired import logistic
from druthers.losses.terms import State, logratios, mean_of


def bco(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, shift: float) -> Tensor:
    """BCO for pairs: `-log s(beta a - d) - log s(d - beta b)` (Jung et al. 2024, arXiv 2404.04656).

    The shift d is the running mean of the rewards of both sides.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> [round(bco(policy.double(), reference.double(), beta=0.1, shift=d).item(), 6) for d in (0.0, 0.025)]
    [1.312856, 1.3127]
    """
    a_B, b_B = beta * logratios(policy_CB, reference_CB)
    return -F.logsigmoid(a_B - shift) - F.logsigmoid(shift - b_B)


def shifted(
    state: State, policy_CB: Tensor, reference_CB: Tensor, *, beta: float, momentum: float, weight_B: Tensor
) -> State:
    """The running mean of the rewards of both sides: the first step's mean, then a moving average."""
    a_B, b_B = beta * logratios(policy_CB, reference_CB)
    now = mean_of((a_B + b_B) / 2, weight_B).item()
    return {"shift": momentum * state["shift"] + (1 - momentum) * now if "shift" in state else now}


def sorted_apart(upper_B: Tensor, lower_B: Tensor, *, beta: float, epsilon: float) -> Tensor:
    """`-(1 - e) log s(beta D) - e log s(-beta D)` of the differences D of two samples in order, each at its own upper."""
    upper, place = upper_B.sort(stable=True)
    difference = beta * (upper - lower_B.sort(stable=True).values)
    loss = logistic(difference, torch.full_like(difference, 1 - epsilon))
    return torch.empty_like(loss).index_copy(0, place, loss)


def aot(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, epsilon: float = 0.0) -> Tensor:
    """AOT for pairs: the policy's margins, in order, above the reference's (Melnyk et al. 2024, arXiv 2406.05882).

    A pair has the loss of the rank it takes by the policy.

    >>> import torch
    >>> policy = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    >>> [round(v, 4) for v in aot(policy, torch.zeros_like(policy), beta=1.0).tolist()]
    [0.1269, 0.6931]
    """
    logratios(policy_CB, reference_CB)
    return sorted_apart(policy_CB[0] - policy_CB[1], reference_CB[0] - reference_CB[1], beta=beta, epsilon=epsilon)


def aot_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, epsilon: float = 0.0) -> Tensor:
    """AOT without pairs: all log-ratios of chosen, in order, above all of rejected (arXiv 2406.05882).

    >>> import torch
    >>> policy = torch.tensor([[1.0, 3.0], [2.0, 0.0]], dtype=torch.float64)
    >>> [round(v, 4) for v in aot_unpaired(policy, torch.zeros_like(policy), beta=1.0).tolist()]
    [0.3133, 0.3133]
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return sorted_apart(a_B, b_B, beta=beta, epsilon=epsilon)


LEAST_BETA = 1e-3


def beta_dpo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    alpha: float,
    share: float,
    weight_B: Tensor,
    draw_B: Tensor,
    centre: float,
    spread: float,
) -> Tensor:
    """beta-DPO: DPO with a beta of the step's own, on the pairs whose gap is usual (Wu et al. 2024, arXiv 2407.08639).

    A share of the pairs is drawn without replacement by weights `exp(-(h - M)^2 / (2 sd^2))`, and
    `beta_k = beta (1 + alpha (mean of their h - M))`, at least 0.001. M and sd are moving averages of the gap
    and its spread. Pairs that are not drawn have loss 0, the others so much more that the weighted mean is theirs.
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    gap_B = (a_B - b_B).detach()
    chance_B = -((gap_B - centre) ** 2) / (2 * spread**2 + 1e-12)
    key_B = chance_B - torch.log(-torch.log(draw_B.clamp(1e-12, 1 - 1e-12)))  # Gumbel: the largest keys are the draw
    count = max(1, math.floor(share * len(gap_B)))
    kept_B = torch.zeros_like(gap_B).index_fill(0, key_B.topk(count).indices, 1.0)
    held_B = kept_B * weight_B
    own = (
        beta * (1 + alpha * ((held_B * gap_B).sum() / held_B.sum() - centre))
        if held_B.sum() > 0
        else gap_B.new_tensor(beta)
    )
    raised = weight_B.sum() / held_B.sum() if held_B.sum() > 0 else gap_B.new_zeros(())
    return -F.logsigmoid(own.clamp(min=LEAST_BETA) * (a_B - b_B)) * kept_B * raised


def usual(state: State, policy_CB: Tensor, reference_CB: Tensor, *, momentum: float, weight_B: Tensor) -> State:
    """Moving averages of the gap h and of its spread over a step; the first step begins them."""
    a_B, b_B = logratios(policy_CB, reference_CB)
    gap_B = a_B - b_B
    centre = mean_of(gap_B, weight_B).item()
    spread = mean_of((gap_B - centre) ** 2, weight_B).sqrt().item()
    now = {"centre": centre, "spread": spread}
    return {name: momentum * state[name] + (1 - momentum) * new if name in state else new for name, new in now.items()}


def drdpo(loss_B: Tensor, *, weight_B: Tensor, temper: float) -> Tensor:
    """Dr. DPO: `-b log mean exp(-l / b)` over the step's losses l (Wu et al. 2024, arXiv 2407.07880).

    As losses of pairs with that weighted mean: the difference to the plain mean is shared out evenly. A large b is the
    plain mean, a small one hardly looks at pairs that are badly wrong.

    >>> import torch
    >>> round(drdpo(torch.tensor([0.0, 9.0]), weight_B=torch.ones(2), temper=1.0).mean().item(), 4)
    0.693
    """
    share_B = (weight_B / weight_B.sum()).log()
    whole = -temper * torch.logsumexp(share_B - loss_B / temper, 0)
    return loss_B + (whole - mean_of(loss_B, weight_B))
