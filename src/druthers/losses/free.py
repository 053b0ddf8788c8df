"""Losses of a pair without a reference: only the policy's log-probabilities, shape (2, B), are read.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats, `n` their
number. The likelihood terms that CPO, ORPO and SLiC add are `supervised.nll`, with its declared reductions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo(policy_CB: Tensor, *, beta: float, gamma: float, length_CB: Tensor, margin_B: Tensor | None = None) -> Tensor:
    """SimPO: `-log s(beta (s_chosen / n_chosen - s_rejected / n_rejected) - gamma - m)` (2405.14734, eq. 6).

    >>> policy, length = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]])
    >>> round(simpo(policy, beta=2.0, gamma=1.0, length_CB=length).item(), 6)
    1.241154
    """
    return averaged_preference(policy_CB / length_CB, beta=beta, gamma=gamma, margin_B=margin_B)


def averaged_preference(score_CB: Tensor, *, beta: float, gamma: float, margin_B: Tensor | None) -> Tensor:
    """`-log s(beta (chosen - rejected) - gamma - m)`, shape (B,)."""
    z_B = beta * (score_CB[0] - score_CB[1]) - gamma
    return -F.logsigmoid(z_B if margin_B is None else z_B - margin_B)


def alphapo(policy_CB: Tensor, *, beta: float, gamma: float, alpha: float, length_CB: Tensor) -> Tensor:
    """AlphaPO: SimPO with the reward `(1 - exp(-alpha s / n)) / alpha` (Gupta et al. 2025, arXiv 2501.03884).

    `alpha` 0 is SimPO; above it, unlikely responses cost more than their log-probability.

    >>> policy, length = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]])
    >>> round(alphapo(policy, beta=2.0, gamma=1.0, alpha=0.25, length_CB=length).item(), 6)
    1.214609
    """
    mean_CB = policy_CB / length_CB
    shaped_CB = mean_CB if alpha == 0 else -torch.expm1((-alpha * mean_CB).clamp(max=80.0)) / alpha
    return averaged_preference(shaped_CB, beta=beta, gamma=gamma, margin_B=None)


def cpo(policy_CB: Tensor, *, beta: float) -> Tensor:
    """The preference term of CPO: `-log s(beta (s_chosen - s_rejected))` (Xu et al. 2024, arXiv 2401.08417, eq. 3).

    >>> round(cpo(torch.tensor([[-10.0], [-13.0]]), beta=0.1).item(), 6)
    0.554355
    """
    return -F.logsigmoid(beta * (policy_CB[0] - policy_CB[1]))


def log_odds(mean: Tensor) -> Tensor:
    """`log(p / (1 - p))` of a log-probability below 0; a certain answer is held a hair below 1, so it stays finite.

    >>> round(log_odds(torch.tensor(0.5).log()).item(), 6)
    0.0
    """
    below = mean.clamp(max=-1e-9)
    return below - torch.log(-torch.expm1(below))


def orpo(policy_CB: Tensor, *, length_CB: Tensor) -> Tensor:
    """The odds-ratio term of ORPO: `-log s(lo(s_chosen / n) - lo(s_rejected / n))` (Hong et al., 2403.07691, eq. 4, 7).

    >>> policy, length = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]])
    >>> round(orpo(policy, length_CB=length).item(), 5)
    0.65905
    """
    odds_CB = log_odds(policy_CB / length_CB)
    return -F.logsigmoid(odds_CB[0] - odds_CB[1])


def slic(policy_CB: Tensor, *, delta: float) -> Tensor:
    """The rank term of SLiC-HF: `max(0, delta - s_chosen + s_rejected)` (Zhao et al. 2023, arXiv 2305.10425).

    >>> slic(torch.tensor([[-10.0], [-10.5]]), delta=1.0).item()
    0.5
    """
    return torch.relu(delta - policy_CB[0] + policy_CB[1])
