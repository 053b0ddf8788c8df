"""Likelihood of the chosen response, and of the rejected one to be avoided: SFT, Preferred-FT, unlikelihood.

Letters: C pair axis (0 chosen, 1 rejected), B pairs.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["token", "sequence", "sum"]


def sft(policy_CB: Tensor, *, length_CB: Tensor, mean_length: float, reduce: Reduction = "token") -> Tensor:
    """Negative log-likelihood of chosen, (B,), whose weighted mean over a step is what `reduce` says.

    'token': over all tokens of the step, each alike; `mean_length` is the weighted mean length of the step's chosen
    responses. 'sequence': the mean of the responses' means. 'sum': the mean of their sums.

    >>> import torch
    >>> policy, lengths = torch.tensor([[-8.0, -3.0], [-9.0, -9.0]]), torch.tensor([[8.0, 2.0], [9.0, 9.0]])
    >>> sft(policy, length_CB=lengths, mean_length=5.0).mean().item()  # 11 nats over 10 tokens
    1.100000023841858
    >>> sft(policy, length_CB=lengths, mean_length=5.0, reduce="sequence").tolist()
    [1.0, 1.5]
    """
    if reduce == "sum":
        return -policy_CB[0]
    return -policy_CB[0] / (length_CB[0] if reduce == "sequence" else mean_length)


def unlikelihood(policy_CB: Tensor, *, alpha: float, unlikely_CB: Tensor | None) -> Tensor:
    """Raise chosen, lower rejected: `-s_w + alpha sum_t -log(1 - p(y_l,t))` (Welleck et al. 2019, arXiv 1908.04319).

    Without `unlikely_CB` the direct form of the DPO paper's baseline, `-s_w + alpha s_l`, which has no lower bound.

    >>> import torch
    >>> unlikelihood(torch.tensor([[-10.0], [-13.0]]), alpha=0.5, unlikely_CB=None).item()
    3.5
    >>> unlikelihood(torch.tensor([[-10.0], [-13.0]]), alpha=0.5, unlikely_CB=torch.tensor([[3.0], [2.0]])).item()
    11.0
    """
    lower_B = policy_CB[1] if unlikely_CB is None else unlikely_CB[1]
    return -policy_CB[0] + alpha * lower_B
