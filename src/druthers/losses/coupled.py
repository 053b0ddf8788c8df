"""Losses in which the pairs of an optimizer step look at one another: a shift, ranks, a chosen share, a soft minimum.

Letters: C pair axis (0 chosen, 1 rejected), B pairs of the whole step. Log-probabilities are sums over response tokens
in nats; `a = policy - reference` for chosen, `b` the same for rejected, `h = a - b`. `weight_B` weighs a pair: one of
weight 0 does not exist for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.paired import gap, graded
from druthers.losses.terms import State, logratios, weighted_mean

LEAST_BETA = 1e-3
"""What beta-DPO never goes below, as in the authors' code."""


def bco(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, shift: float) -> Tensor:
    """BCO: `-log s(beta a - d) - log s(-(beta b - d))` (Jung et al. 2024, arXiv 2404.04656), `d` the `shift`.

    A classifier of good against bad whose threshold is the mean reward of both.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(bco(policy, reference, beta=0.1, shift=0.0).item(), 6)
    1.312856
    """
    a_B, b_B = (beta * logratios(policy_CB, reference_CB)).unbind()
    return -F.logsigmoid(a_B - shift) - F.logsigmoid(shift - b_B)


def mean_reward(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, weight_B: Tensor) -> float:
    """Weighted mean of the rewards `beta a` and `beta b` of a step.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> mean_reward(policy, reference, beta=0.5, weight_B=torch.ones(1))
    0.125
    """
    return float(beta * weighted_mean(logratios(policy_CB.detach(), reference_CB).mean(dim=0), weight_B))


def followed(state: State, found: State, *, momentum: float | None) -> State:
    """Running means one step on: of all steps so far (`momentum` None), or `momentum` of the past and the rest of now.

    The first step initialises them: until then there is no past to keep.

    >>> first = followed({}, {"mean": 4.0}, momentum=None)
    >>> followed(first, {"mean": 2.0}, momentum=None)["mean"], followed(first, {"mean": 2.0}, momentum=0.75)["mean"]
    (3.0, 3.5)
    """
    steps = state.get("steps", 0.0) + 1
    past = (steps - 1) / steps if momentum is None or steps == 1 else momentum
    return {key: past * state.get(key, 0.0) + (1 - past) * now for key, now in found.items()} | {"steps": steps}


def by_rank(x_B: Tensor, y_B: Tensor, weight_B: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """`loss` of the difference of equal quantiles of x and y, given to the pair that holds the place in x; shape (B,).

    With equal weights the i-th smallest x meets the i-th smallest y. With others both are cut into pieces of equal
    weight, so that `sum(w l) / sum(w)` is the integral over all quantiles, the one-dimensional optimal transport.

    >>> x, y = torch.tensor([3.0, 1.0]), torch.tensor([10.0, 20.0])
    >>> by_rank(x, y, torch.ones(2), lambda gap: gap).tolist()
    [-17.0, -9.0]
    """
    last, (x_order, y_order) = x_B.numel() - 1, (x_B.argsort(stable=True), y_B.argsort(stable=True))
    x_sorted, y_sorted = x_B[x_order], y_B[y_order]
    x_ends, y_ends = weight_B[x_order].cumsum(0), weight_B[y_order].cumsum(0)
    ends = torch.cat([x_ends, y_ends]).sort().values
    size = ends.diff(prepend=ends.new_zeros(1))
    middle = ends - size / 2
    at_x, at_y = (torch.searchsorted(e, middle).clamp(max=last) for e in (x_ends, y_ends))
    pieces = size * loss(x_sorted[at_x] - y_sorted[at_y])
    whole_B = torch.zeros_like(pieces[: x_B.numel()]).index_add(0, x_order[at_x], pieces)
    beside = loss(x_sorted - y_sorted[torch.searchsorted(y_ends, x_ends).clamp(max=last)])
    weightless_B = torch.zeros_like(whole_B).index_add(0, x_order, beside)
    return torch.where(weight_B > 0, whole_B / weight_B.clamp(min=torch.finfo(weight_B.dtype).tiny), weightless_B)


def aot(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, smoothing: float, weight_B: Tensor) -> Tensor:
    """AOT: `s_chosen - s_rejected` of the policy sorted against the reference's (Melnyk et al., arXiv 2406.05882).

    `-(1 - e) log s(beta D) - e log s(-beta D)` on the sorted differences D: the distribution of the policy's margins
    shall dominate the reference's at every quantile. A rank's loss is the pair's that has the rank under the policy.

    >>> policy, reference = torch.tensor([[-1.0, -5.0], [-2.0, -4.0]]), torch.tensor([[-3.0, -3.0], [-3.0, -3.0]])
    >>> found = aot(policy, reference, beta=1.0, smoothing=0.0, weight_B=torch.ones(2))
    >>> torch.allclose(found, -F.logsigmoid(torch.tensor([1.0, -1.0])))
    True
    """
    return by_rank(policy_CB[0] - policy_CB[1], reference_CB[0] - reference_CB[1], weight_B, dominance(beta, smoothing))


def aot_unpaired(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, smoothing: float, weight_B: Tensor) -> Tensor:
    """AOT for unpaired data: all log-ratios of chosen sorted against all of rejected (arXiv 2406.05882).

    >>> policy, reference = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.zeros(2, 2)
    >>> found = aot_unpaired(policy, reference, beta=1.0, smoothing=0.0, weight_B=torch.ones(2))
    >>> torch.allclose(found, -F.logsigmoid(torch.ones(2)))
    True
    """
    a_B, b_B = logratios(policy_CB, reference_CB).unbind()
    return by_rank(a_B, b_B, weight_B, dominance(beta, smoothing))


def dominance(beta: float, smoothing: float) -> Callable[[Tensor], Tensor]:
    """`D -> -(1 - e) log s(beta D) - e log s(-beta D)`."""
    return lambda gap_B: graded(beta * gap_B, torch.full_like(gap_B, 1 - smoothing))


def drdpo(loss_B: Tensor, *, temperature: float, weight_B: Tensor) -> Tensor:
    """Dr. DPO: the objective `-b log mean exp(-l / b)` over the step (Wu et al. 2024, arXiv 2407.07880), shape (B,).

    A soft minimum that trusts pairs of a large loss less; the mean as the `temperature` b grows. Each pair has its own
    loss moved by one constant, so that their weighted mean is the objective, and the gradient is the objective's.

    >>> found = drdpo(torch.tensor([0.0, 2.0]), temperature=1.0, weight_B=torch.ones(2))
    >>> round(found.mean().item(), 6) == round(-math.log((1 + math.exp(-2)) / 2), 6)
    True
    """
    now_B = loss_B.detach()
    log_share_B = (weight_B / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)).log()
    log_mean = torch.logsumexp(log_share_B - now_B / temperature, dim=0)
    trust_B = (-now_B / temperature - log_mean).exp()
    moved = -temperature * log_mean - weighted_mean(now_B, weight_B)
    return now_B + torch.where(weight_B.sum() > 0, moved, 0.0) + trust_B * (loss_B - now_B)


def gap_moments(policy_CB: Tensor, reference_CB: Tensor, *, weight_B: Tensor) -> tuple[float, float]:
    """Weighted mean of `h` over a step, and its standard deviation (n - 1 with equal weights; 0 for a single pair).

    >>> policy, reference = torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)
    >>> mean, deviation = gap_moments(policy, reference, weight_B=torch.ones(2))
    >>> mean, round(deviation, 6)
    (2.0, 1.414214)
    """
    h_B = gap(policy_CB.detach(), reference_CB)
    total, mean = float(weight_B.sum()), float(weighted_mean(h_B, weight_B))
    free = total - float((weight_B**2).sum()) / total if total > 0 else 0.0
    spread = float((weight_B * (h_B - mean) ** 2).sum())
    return mean, math.sqrt(spread / free) if free > 1e-12 * total else 0.0


def kept(h_B: Tensor, *, mean: float, deviation: float, share: float, draw_B: Tensor, weight_B: Tensor) -> Tensor:
    """Which pairs of a step stay: `share` of them, drawn without replacement by `exp(-(h - mean)^2 / (2 deviation^2))`.

    Exponential keys (Efraimidis and Spirakis 2006) from one uniform number a pair, in logarithms, so that densities
    too small for a number still have an order. At least one stays; pairs of weight 0 do not take part. Bool, (B,).

    >>> draw = torch.tensor([0.5, 0.5, 0.5])
    >>> kept(torch.tensor([0.0, 9.0, 0.1]), mean=0.0, deviation=1.0, share=0.7, draw_B=draw, weight_B=torch.ones(3))
    tensor([ True, False,  True])
    """
    log_density_B = -(((h_B - mean) / deviation) ** 2) / 2 if deviation > 0 else torch.zeros_like(h_B)
    key_B = (-torch.log1p(-draw_B)).log() - log_density_B
    key_B = torch.where(weight_B > 0, key_B, torch.inf)
    count = max(1, int(share * int((weight_B > 0).sum())))
    chosen_B = torch.zeros_like(key_B, dtype=torch.bool)
    chosen_B[key_B.argsort(stable=True)[:count]] = True
    return chosen_B & (weight_B > 0)


def beta_dpo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    alpha: float,
    mean: float,
    kept_B: Tensor,
    weight_B: Tensor,
) -> Tensor:
    """beta-DPO: `-log s(beta' h)` of the pairs kept, `beta' = beta (1 + alpha (mean of their h - M))`.

    Wu et al. 2024, arXiv 2407.08639. `mean` is M, the moving average of h; beta' has no gradient and is at least 1e-3.
    Losses are scaled so that the weighted mean over the step is that over the pairs kept; the others have 0.

    >>> policy, reference = torch.tensor([[2.0, 9.0], [0.0, 0.0]]), torch.zeros(2, 2)
    >>> only = torch.tensor([True, False])
    >>> found = beta_dpo(policy, reference, beta=0.1, alpha=0.6, mean=1.0, kept_B=only, weight_B=torch.ones(2))
    >>> torch.allclose(found, torch.tensor([-2 * F.logsigmoid(torch.tensor(0.16 * 2)), 0.0]))
    True
    """
    h_B, kept_weight_B = gap(policy_CB, reference_CB), weight_B * kept_B
    here = float(weighted_mean(h_B.detach(), kept_weight_B))
    now = max(LEAST_BETA, beta * (1 + alpha * (here - mean)))
    scale = weight_B.sum() / kept_weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)
    return torch.where(kept_B, -scale * F.logsigmoid(now * h_B), 0.0)
