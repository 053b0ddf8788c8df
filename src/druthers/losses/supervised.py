"""Losses that look at each side by itself: likelihood of the chosen response, and unlikelihood of the rejected one.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats.
"""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("per-token", "per-sequence", "sum")


def nll(policy_CB: Tensor, *, reduce: str, length_CB: Tensor, mean_length: float) -> Tensor:
    """Negative log-likelihood of the chosen response, shape (B,).

    'per-token': its sum over `mean_length`, the mean number of chosen tokens in the step, so that the weighted mean
    over the step is nats per token of the step; 'per-sequence': each response by its own tokens; 'sum': undivided.
    Raises ValueError for another name.

    >>> import torch
    >>> policy, length = torch.tensor([[-10.0, -2.0], [-13.0, -1.0]]), torch.tensor([[8.0, 4.0], [10.0, 3.0]])
    >>> nll(policy, reduce="per-token", length_CB=length, mean_length=6.0).mean().item()  # 12 nats, 12 tokens
    1.0
    >>> nll(policy, reduce="per-sequence", length_CB=length, mean_length=6.0).tolist()
    [1.25, 0.5]
    """
    if reduce == "per-token":
        return -policy_CB[0] / mean_length
    if reduce == "per-sequence":
        return -policy_CB[0] / length_CB[0]
    if reduce == "sum":
        return -policy_CB[0]
    raise ValueError(f"reduce = {reduce!r} is not one of {', '.join(REDUCTIONS)}")


def unlikelihood(policy_CB: Tensor, *, alpha: float, unlikely_CB: Tensor) -> Tensor:
    """`-log p(chosen) - alpha sum_t log(1 - p(rejected_t))`, bounded below (Welleck et al. 2019, arXiv 1908.04319).

    `unlikely_CB` is `-log(1 - p)` summed over the scored tokens. The baseline of the DPO paper.

    >>> import torch
    >>> policy, unlikely = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[0.5], [2.0]])
    >>> unlikelihood(policy, alpha=0.5, unlikely_CB=unlikely).item()
    11.0
    """
    return -policy_CB[0] + alpha * unlikely_CB[1]


def unlikelihood_direct(policy_CB: Tensor, *, alpha: float) -> Tensor:
    """`-log p(chosen) + alpha log p(rejected)`: no bound below, so it ends in degenerate text if trained on.

    >>> import torch
    >>> unlikelihood_direct(torch.tensor([[-10.0], [-13.0]]), alpha=0.5).item()
    3.5
    """
    return -policy_CB[0] + alpha * policy_CB[1]
