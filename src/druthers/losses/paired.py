"""Losses of a pair against a reference, one pure function per equation: `(2, B)` log-probs in, `(B,)` losses out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats;
`a = policy - reference` for chosen, `b` the same for rejected, `h = a - b`, `z = beta h`, `n` scored tokens, `s` the
logistic function. `u` is the transform of `divergences.py`: `h` is then `u(a) - u(b)`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.divergences import Transform, reverse_kl
from druthers.losses.terms import logratios


def gap(policy_CB: Tensor, reference_CB: Tensor, *, u: Transform = reverse_kl) -> Tensor:
    """`h = u(a) - u(b)`, shape (B,)."""
    a_B, b_B = u(logratios(policy_CB, reference_CB)).unbind()
    return a_B - b_B


def graded(z_B: Tensor, p_B: Tensor | None = None) -> Tensor:
    """The core of the family, `-p log s(z) - (1 - p) log s(-z)`; without `p_B`, `-log s(z)`.

    >>> round(graded(torch.tensor([0.0])).item(), 6)
    0.693147
    """
    if p_B is None:
        return -F.logsigmoid(z_B)
    return -p_B * F.logsigmoid(z_B) - (1 - p_B) * F.logsigmoid(-z_B)


def sigmoid(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    p_B: Tensor | None = None,
    margin_B: Tensor | None = None,
    u: Transform = reverse_kl,
) -> Tensor:
    """DPO: `-p log s(z - m) - (1 - p) log s(m - z)` with `z = beta h` (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    `p_B` is the probability that chosen is truly better (Mitchell 2023, cDPO, per pair; 1 gives eq. 7), `margin_B` the
    offset in units of reward (ODPO, Amini et al. 2024, arXiv 2402.10571, eq. 3). Returns shape (B,).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(sigmoid(policy, reference, beta=0.1).item(), 6)
    0.620957
    >>> round(sigmoid(policy, reference, beta=0.1, p_B=torch.tensor([0.8])).item(), 6)
    0.650957
    >>> round(sigmoid(policy, reference, beta=0.1, margin_B=torch.tensor([0.2])).item(), 5)
    0.71846
    """
    z_B = beta * gap(policy_CB, reference_CB, u=u)
    return graded(z_B if margin_B is None else z_B - margin_B, p_B)


def cdpo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    smoothing: float,
    margin_B: Tensor | None = None,
    u: Transform = reverse_kl,
) -> Tensor:
    """Conservative DPO: `-(1 - e) log s(z) - e log s(-z)`, labels flipped with probability `e` (Mitchell 2023, eq. 3).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(cdpo(policy, reference, beta=0.1, smoothing=0.1).item(), 6)
    0.635957
    """
    p_B = torch.full_like(policy_CB[0], 1 - smoothing)
    return sigmoid(policy_CB, reference_CB, beta=beta, p_B=p_B, margin_B=margin_B, u=u)


def robust(
    policy_CB: Tensor, reference_CB: Tensor, *, beta: float, smoothing: float, u: Transform = reverse_kl
) -> Tensor:
    """Robust DPO: `(-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e)` (Ray Chowdhury et al. 2024, arXiv 2403.00409).

    Over labels flipped with probability `e` its mean is DPO on the true ones; it may be negative.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(robust(policy, reference, beta=0.1, smoothing=0.1).item(), 6)
    0.602207
    """
    z_B = beta * gap(policy_CB, reference_CB, u=u)
    clean_B, flipped_B = -F.logsigmoid(z_B), -F.logsigmoid(-z_B)
    return ((1 - smoothing) * clean_B - smoothing * flipped_B) / (1 - 2 * smoothing)


def geometric(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor) -> Tensor:
    """GDPO: `-log s((2 p - 1) z)`: geometric averages of both sides (Furuta et al. 2024, arXiv 2409.06691).

    A pair with p = 1/2 teaches nothing, while `sigmoid` then pulls the gap to 0.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(geometric(policy, reference, beta=0.1, p_B=torch.tensor([0.8])).item(), 6)
    0.649159
    """
    return -F.logsigmoid((2 * p_B - 1) * beta * gap(policy_CB, reference_CB))


def hinge(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    margin_B: Tensor | None = None,
    u: Transform = reverse_kl,
) -> Tensor:
    """`max(0, 1 - z + m)` (RSO, Liu et al. 2023, arXiv 2309.06657, the hinge of SLiC, arXiv 2305.10425, normalised).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(hinge(policy, reference, beta=0.1).item(), 6)
    0.85
    """
    z_B = beta * gap(policy_CB, reference_CB, u=u)
    return torch.relu(1 - z_B if margin_B is None else 1 - z_B + margin_B)


def ipo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    length_CB: Tensor | None = None,
    u: Transform = reverse_kl,
) -> Tensor:
    """IPO: `(h - 1 / (2 beta))^2` (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    With `length_CB` (scored tokens, shape (2, B)) each log-ratio is averaged over its own response; without it, summed.
    Returns shape (B,).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> ipo(policy, reference, beta=0.1).item()
    12.25
    >>> lengths = torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(ipo(policy.double(), reference.double(), beta=0.1, length_CB=lengths).item(), 6)
    23.280625
    """
    return (averaged_gap(policy_CB, reference_CB, length_CB=length_CB, u=u) - 1 / (2 * beta)) ** 2


def averaged_gap(policy_CB: Tensor, reference_CB: Tensor, *, length_CB: Tensor | None, u: Transform) -> Tensor:
    """`u(a) / n_chosen - u(b) / n_rejected`, or `u(a) - u(b)` where no lengths are given; shape (B,)."""
    score_CB = u(logratios(policy_CB, reference_CB))
    a_B, b_B = (score_CB if length_CB is None else score_CB / length_CB).unbind()
    return a_B - b_B


def dpo_norm(
    policy_CB: Tensor, reference_CB: Tensor, *, beta: float, length_CB: Tensor, u: Transform = reverse_kl
) -> Tensor:
    """Length-normalised DPO: `-log s(beta (a / n_chosen - b / n_rejected))` (Lambert et al. 2024, arXiv 2411.15124).

    Averages are small, so beta is about 5 rather than 0.1.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(dpo_norm(policy, reference, beta=5.0, length_CB=torch.tensor([[8.0], [10.0]])).item(), 5)
    0.34844
    """
    return -F.logsigmoid(beta * averaged_gap(policy_CB, reference_CB, length_CB=length_CB, u=u))


def exo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, smoothing: float, u: Transform = reverse_kl) -> Tensor:
    """EXO: `KL([q, 1 - q] || [1 - e, e])` with `q = s(z)` (Ji et al. 2024, arXiv 2402.00856, eq. 16).

    The reverse KL to the labels, where `cdpo` is the forward one; 0 where `q = 1 - e`. `smoothing` must be above 0.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(exo(policy, reference, beta=0.1, smoothing=1e-3).item(), 5)
    2.50552
    """
    z_B = beta * gap(policy_CB, reference_CB, u=u)
    chosen_B = torch.sigmoid(z_B) * (F.logsigmoid(z_B) - math.log1p(-smoothing))
    return chosen_B + torch.sigmoid(-z_B) * (F.logsigmoid(-z_B) - math.log(smoothing))


def nca(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """NCA: `-log s(beta a) - 1/2 log s(-beta a) - 1/2 log s(-beta b)` (Chen et al. 2024, arXiv 2402.05369, K = 2).

    Absolute rewards: the term against `beta a` keeps the likelihood of chosen from falling or running away.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(nca(policy, reference, beta=0.1).item(), 6)
    1.350825
    """
    a_B, b_B = (beta * logratios(policy_CB, reference_CB)).unbind()
    return -F.logsigmoid(a_B) - 0.5 * F.logsigmoid(-a_B) - 0.5 * F.logsigmoid(-b_B)


def sppo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor) -> Tensor:
    """SPPO: `(a - (P - 1/2) / beta)^2 + (b + (P - 1/2) / beta)^2` (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    `p_B` is the probability that chosen wins; 1 is the hard label. `1 / beta` is the eta of the paper.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> sppo(policy, reference, beta=0.1, p_B=torch.tensor([1.0])).item()
    36.25
    """
    a_B, b_B = logratios(policy_CB, reference_CB).unbind()
    aim_B = (p_B - 0.5) / beta
    return (a_B - aim_B) ** 2 + (b_B + aim_B) ** 2


def apo_zero(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """APO-zero: `1 - s(beta a) + s(beta b)`: chosen up, rejected down (D'Oosterlinck et al., arXiv 2408.06266, eq. 7).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(apo_zero(policy, reference, beta=0.1).item(), 6)
    0.962523
    """
    a_B, b_B = (beta * logratios(policy_CB, reference_CB)).unbind()
    return torch.sigmoid(-a_B) + torch.sigmoid(b_B)


def apo_down(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """APO-down: `s(beta a) + 1 - s(z)`: both down, rejected more (D'Oosterlinck et al., arXiv 2408.06266, eq. 8).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(apo_down(policy, reference, beta=0.1).item(), 6)
    0.987549
    """
    a_B, b_B = (beta * logratios(policy_CB, reference_CB)).unbind()
    return torch.sigmoid(a_B) + torch.sigmoid(b_B - a_B)


def discopop(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, tau: float, u: Transform = reverse_kl) -> Tensor:
    """DiscoPOP: `-(1 - g) log s(z) + g exp(-z)` with `g = s(z / tau)` (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    Not convex. `g exp(-z)` is taken as one exponential, which stays finite for very wrong pairs when `tau` is below 1.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(discopop(policy, reference, beta=0.1, tau=0.05).item(), 6)
    0.849338
    """
    z_B = beta * gap(policy_CB, reference_CB, u=u)
    return -torch.sigmoid(-z_B / tau) * F.logsigmoid(z_B) + torch.exp(F.logsigmoid(z_B / tau) - z_B)


def dpop(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive: `-log s(beta (h - lambda max(0, -a)))` (Pal et al. 2024, arXiv 2402.13228).

    The penalty holds where chosen has become less likely than under the reference.

    >>> policy, reference = torch.tensor([[-11.5], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(dpop(policy, reference, beta=0.1, penalty=50.0).item(), 5)
    2.57889
    """
    a_B, b_B = logratios(policy_CB, reference_CB).unbind()
    return -F.logsigmoid(beta * (a_B - b_B - penalty * torch.relu(-a_B)))


def rdpo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, alpha: float, length_CB: Tensor) -> Tensor:
    """R-DPO: `-log s(z + alpha (n_chosen - n_rejected))`, a price on length (Park et al. 2024, arXiv 2403.19159).

    The longer chosen is, the more of the preference its length explains, and the less the policy has to.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(rdpo(policy, reference, beta=0.1, alpha=0.01, length_CB=torch.tensor([[8.0], [10.0]])).item(), 6)
    0.630258
    """
    return -F.logsigmoid(beta * gap(policy_CB, reference_CB) + alpha * (length_CB[0] - length_CB[1]))


def desensitized(whole_CB: Tensor, head_CB: Tensor, *, alpha: float) -> Tensor:
    """`sum(t <= k) + alpha sum(t > k)`, the tail beyond the shared length `k` weighted (LD-DPO, arXiv 2409.06411).

    >>> desensitized(torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-10.0], [-9.0]]), alpha=0.5).tolist()
    [[-10.0], [-11.0]]
    """
    return head_CB + alpha * (whole_CB - head_CB)


def cal(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """Cal-DPO: `-log s(h) + (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2` (Xiao et al. 2024, arXiv 2412.14516).

    The first term has no beta. The authors' code takes half of the two squares.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(cal(policy, reference, beta=0.1).item(), 3)
    36.451
    """
    a_B, b_B = logratios(policy_CB, reference_CB).unbind()
    aim = 1 / (2 * beta)
    return -F.logsigmoid(a_B - b_B) + (a_B - aim) ** 2 + (b_B + aim) ** 2


def chi(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, clip: float | None = None) -> Tensor:
    """Chi-squared PO: `-log s(beta (phi(a) - phi(b)))`, `phi(x) = exp(x) + x` (Huang et al. 2024, arXiv 2407.13399).

    With `clip` the difference of rewards is cut to [-clip, clip] (the paper's 2 R_max), beyond which a pair teaches
    nothing.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(chi(policy, reference, beta=0.1).item(), 6)
    0.528778
    """
    z_B = beta * gap(policy_CB, reference_CB, u=phi)
    return -F.logsigmoid(z_B if clip is None else z_B.clamp(-clip, clip))


def phi(x: Tensor) -> Tensor:
    """`exp(x) + x`, the exponent cut where single precision would overflow.

    >>> phi(torch.tensor(0.0)).item()
    1.0
    """
    return torch.exp(x.clamp(max=80.0)) + x


def tdpo1(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, divergence_CB: Tensor) -> Tensor:
    """TDPO1: `-log s(beta (h - (K_rejected - K_chosen)))` (Zeng et al. 2024, arXiv 2404.11999, eq. 14 and 15).

    `divergence_CB` is K, KL(reference || policy) over the full vocabulary, summed over the positions of a response.

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(tdpo1(policy, reference, beta=0.1, divergence_CB=torch.tensor([[0.3], [0.6]])).item(), 6)
    0.634946
    """
    return -F.logsigmoid(beta * (gap(policy_CB, reference_CB) - (divergence_CB[1] - divergence_CB[0])))


def tdpo2(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, alpha: float, divergence_CB: Tensor) -> Tensor:
    """TDPO2: `-log s(beta (h - alpha (K_rejected - sg(K_chosen))))`, no gradient in the last (2404.11999, eq. 17, 18).

    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(tdpo2(policy, reference, beta=0.1, alpha=0.5, divergence_CB=torch.tensor([[0.3], [0.6]])).item(), 6)
    0.627924
    """
    k_B = divergence_CB[1] - divergence_CB[0].detach()
    return -F.logsigmoid(beta * (gap(policy_CB, reference_CB) - alpha * k_B))
