"""Losses of several responses to one prompt: rewards `x_k = beta (log pi - log pi_ref)` in, one loss out.

Letters: K responses of a prompt, in any leading shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plackett_luce(reward_K: Tensor) -> Tensor:
    """`-sum_k [x_k - logsumexp(x_k .. x_K)]` of rewards from best to worst (DPO, arXiv 2305.18290, appendix A.3).

    Of two it is the sigmoid loss. The last axis is ranked; the shape before it comes back.

    >>> import torch
    >>> round(plackett_luce(torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64) * 0.1).item(), 4)
    1.6811
    """
    tails_K = torch.logcumsumexp(reward_K.flip(-1), -1).flip(-1)
    return (tails_K - reward_K).sum(-1)


def s_dpo(reward_K: Tensor) -> Tensor:
    """One preferred above all others at once: `-log s(-log sum_l exp(x_l - x_w))` (S-DPO, arXiv 2406.09215).

    The first of the last axis is preferred. Of two it is the sigmoid loss.

    >>> import torch
    >>> round(s_dpo(torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64) * 0.1).item(), 4)
    0.9959
    """
    return -F.logsigmoid(-torch.logsumexp(reward_K[..., 1:] - reward_K[..., :1], -1))


def lipo(reward_K: Tensor, gain_K: Tensor) -> Tensor:
    """LiPO-lambda: all pairs, weighted by |gain difference| times |difference of rank discounts| (arXiv 2402.01878).

    `gain_K` says how good each response is; ranks are those of the rewards, as they stand now, without gradient.

    >>> import torch
    >>> gains = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    >>> round(lipo(torch.tensor([0.1, 0.03, -0.05], dtype=torch.float64), gains).item(), 4)
    4.2397
    """
    order = reward_K.detach().argsort(-1, descending=True)
    rank_K = order.argsort(-1).to(gain_K.dtype) + 1
    discount_K = 1 / torch.log2(1 + rank_K)
    apart = (gain_K[..., :, None] - gain_K[..., None, :]).clamp(min=0)
    weight = apart * (discount_K[..., :, None] - discount_K[..., None, :]).abs()
    return (weight * -F.logsigmoid(reward_K[..., :, None] - reward_K[..., None, :])).sum((-1, -2))
