"""Losses of pairs without a reference: `(2, B)` log-probabilities in, `(B,)` losses out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. `s` is a sum of log-probabilities, `n` how many there are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo(policy_CB: Tensor, *, beta: float, gamma: float, length_CB: Tensor, margin_B: Tensor | None = None) -> Tensor:
    """SimPO: `-log s(beta (s_w / n_w - s_l / n_l) - gamma)` (Meng et al. 2024, arXiv 2405.14734).

    A pair's own margin adds to gamma, which is in units of reward, after beta.

    >>> import torch
    >>> policy, lengths = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(simpo(policy.double(), beta=2.0, gamma=1.0, length_CB=lengths).item(), 6)
    1.241154
    """
    mean_CB = policy_CB / length_CB
    asked_B = gamma if margin_B is None else gamma + margin_B
    return -F.logsigmoid(beta * (mean_CB[0] - mean_CB[1]) - asked_B)


def alphapo(policy_CB: Tensor, *, beta: float, gamma: float, alpha: float, length_CB: Tensor) -> Tensor:
    """AlphaPO: SimPO with the reward `(1 - p^-alpha) / alpha` of the mean probability p (arXiv 2501.03884).

    Alpha near 0 is SimPO.

    >>> import torch
    >>> policy, lengths = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(alphapo(policy.double(), beta=2.0, gamma=1.0, alpha=0.25, length_CB=lengths).item(), 6)
    1.214609
    """
    mean_CB = policy_CB / length_CB
    reward_CB = mean_CB if alpha == 0 else -torch.expm1(-alpha * mean_CB) / alpha
    return -F.logsigmoid(beta * (reward_CB[0] - reward_CB[1]) - gamma)


def cpo(policy_CB: Tensor, *, beta: float) -> Tensor:
    """CPO's preference: `-log s(beta (s_w - s_l))`; its likelihood of chosen is `sft` (Xu et al. 2024, 2401.08417, eq. 3).

    >>> import torch
    >>> round(cpo(torch.tensor([[-10.0], [-13.0]]), beta=0.1).item(), 6)
    0.554355
    """
    return -F.logsigmoid(beta * (policy_CB[0] - policy_CB[1]))


def log_odds(mean_logp: Tensor) -> Tensor:
    """`log p - log(1 - p)` of a probability by its logarithm, with 1 - p as `-expm1`: near certainty nothing is lost.

    >>> import torch
    >>> round(log_odds(torch.log(torch.tensor(0.75))).item(), 5)
    1.09861
    """
    least = torch.finfo(mean_logp.dtype).tiny
    return mean_logp - torch.log((-torch.expm1(mean_logp)).clamp(min=least))


def orpo(policy_CB: Tensor, *, length_CB: Tensor) -> Tensor:
    """ORPO's odds: `-log s(log odds_w - log odds_l)` of mean probabilities; its likelihood of chosen is `sft`.

    Hong et al. 2024 (arXiv 2403.07691), eq. 4 and 7.

    >>> import torch
    >>> policy, lengths = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(orpo(policy.double(), length_CB=lengths).item(), 6)
    0.659052
    """
    odds_CB = log_odds(policy_CB / length_CB)
    return -F.logsigmoid(odds_CB[0] - odds_CB[1])


def slic(policy_CB: Tensor, *, delta: float) -> Tensor:
    """SLiC-HF's calibration: `max(0, delta - s_w + s_l)`; its likelihood is `sft` (Zhao et al. 2023, arXiv 2305.10425).

    >>> import torch
    >>> slic(torch.tensor([[-10.0], [-10.5]]), delta=1.0).item()
    0.5
    """
    return torch.relu(delta - policy_CB[0] + policy_CB[1])
