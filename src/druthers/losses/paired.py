"""Losses of pairs against a reference, one function per equation: `(2, B)` log-probabilities in, `(B,)` losses out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats;
`a = policy - reference` for chosen, `b` the same for rejected, `h = a - b`, `z = beta h`. A reward is `beta a`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from druthers.losses.divergences import Divergence, scores
from druthers.losses.terms import logratios


def logistic(z_B: Tensor, p_B: Tensor | None = None, margin_B: Tensor | None = None) -> Tensor:
    """`-p log s(z - m) - (1 - p) log s(m - z)`: the two sides of a Bradley-Terry preference."""
    if margin_B is not None:
        z_B = z_B - margin_B
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
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """DPO: `-p log s(z - m) - (1 - p) log s(m - z)` with `z = beta h` (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    `p_B` is the probability that chosen is truly better (Mitchell 2023, cDPO, per pair; 1 gives eq. 7), `margin_B` the
    offset in units of reward (ODPO, Amini et al. 2024, arXiv 2402.10571, eq. 3), `divergence` what holds the policy near
    the reference (arXiv 2309.16240). Returns shape (B,).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(sigmoid(policy, reference, beta=0.1).item(), 6)
    0.620957
    >>> round(sigmoid(policy, reference, beta=0.1, p_B=torch.tensor([0.8])).item(), 6)
    0.650957
    >>> round(sigmoid(policy, reference, beta=0.1, margin_B=torch.tensor([0.2])).item(), 5)
    0.71846
    >>> round(sigmoid(policy.double(), reference.double(), beta=0.1, divergence="js").item(), 6)
    0.660652
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    return logistic(beta * (u_CB[0] - u_CB[1]), p_B, margin_B)


def cdpo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, epsilon: float) -> Tensor:
    """Conservative DPO: `-(1 - e) log s(z) - e log s(-z)`, labels wrong with probability e (Mitchell 2023, cDPO note).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(cdpo(policy.double(), reference.double(), beta=0.1, epsilon=0.1).item(), 6)
    0.635957
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    z_B = beta * (a_B - b_B)
    return logistic(z_B, torch.full_like(z_B, 1 - epsilon))


def robust(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    epsilon: float,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """Robust DPO: `(-(1 - e) log s(z) + e log s(-z)) / (1 - 2e)`, unbiased under flips of probability e < 1/2.

    Chowdhury et al. 2024, "Provably Robust DPO" (arXiv 2403.00409).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(robust(policy.double(), reference.double(), beta=0.1, epsilon=0.1).item(), 6)
    0.602207
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    z_B = beta * (u_CB[0] - u_CB[1])
    return (-(1 - epsilon) * F.logsigmoid(z_B) + epsilon * F.logsigmoid(-z_B)) / (1 - 2 * epsilon)


def geometric(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor) -> Tensor:
    """Geometric-averaged DPO: `-log s((2p - 1) z)`, so that a tie teaches nothing (Furuta et al. 2024, 2409.06691).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(geometric(policy, reference, beta=0.1, p_B=torch.tensor([0.8])).item(), 6)
    0.649159
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid((2 * p_B - 1) * beta * (a_B - b_B))


def hinge(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    margin_B: Tensor | None = None,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """Hinge: `max(0, 1 - z + m)` (RSO, Liu et al. 2023, arXiv 2309.06657; SLiC with a reference).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(hinge(policy, reference, beta=0.1).item(), 6)
    0.85
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    z_B = beta * (u_CB[0] - u_CB[1])
    return torch.relu(1 - z_B + (0 if margin_B is None else margin_B))


def ipo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    length_CB: Tensor | None = None,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """IPO: `(h - 1 / (2 beta))^2` (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    With `length_CB` (scored tokens, shape (2, B)) each log-ratio is averaged over its own response, as its authors do;
    without it, summed, as the equation reads. Returns shape (B,).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> ipo(policy, reference, beta=0.1).item()
    12.25
    >>> lengths = torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(ipo(policy.double(), reference.double(), beta=0.1, length_CB=lengths).item(), 6)
    23.280625
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    if length_CB is not None:
        u_CB = u_CB / length_CB
    return (u_CB[0] - u_CB[1] - 1 / (2 * beta)) ** 2


def dpo_norm(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    length_CB: Tensor,
    p_B: Tensor | None = None,
    margin_B: Tensor | None = None,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """Length-normalised DPO: `-log s(beta (a / n_w - b / n_l))` (Tülu 3, Lambert et al. 2024, arXiv 2411.15124).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> lengths = torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(dpo_norm(policy.double(), reference.double(), beta=5.0, length_CB=lengths).item(), 6)
    0.348445
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha) / length_CB
    return logistic(beta * (u_CB[0] - u_CB[1]), p_B, margin_B)


def exo(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    epsilon: float,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """EXO: KL of (s(z), s(-z)) to (1 - e, e), e > 0 (Ji et al. 2024, "Efficient Exact Optimization", 2402.00856, eq. 16).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(exo(policy.double(), reference.double(), beta=0.1, epsilon=1e-3).item(), 6)
    2.505517
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    z_B = beta * (u_CB[0] - u_CB[1])
    right = torch.log1p(torch.tensor(-epsilon, dtype=z_B.dtype))
    wrong = torch.log(torch.tensor(epsilon, dtype=z_B.dtype))
    log_w_B, log_l_B = F.logsigmoid(z_B), F.logsigmoid(-z_B)
    return log_w_B.exp() * (log_w_B - right) + log_l_B.exp() * (log_l_B - wrong)


def nca(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """NCA for pairs: `-log s(beta a) - (log s(-beta a) + log s(-beta b)) / 2` (Chen et al. 2024, arXiv 2402.05369).

    It holds each reward by itself, so the likelihood of chosen does not fall to widen a margin.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(nca(policy.double(), reference.double(), beta=0.1).item(), 6)
    1.350825
    """
    a_B, b_B = beta * logratios(policy_CB, reference_CB)
    return -F.logsigmoid(a_B) - 0.5 * F.logsigmoid(-a_B) - 0.5 * F.logsigmoid(-b_B)


def sppo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor) -> Tensor:
    """SPPO: `(a - (P - 1/2) / beta)^2 + (b + (P - 1/2) / beta)^2` (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    P is the probability that chosen wins; 1 is the hard form.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> sppo(policy, reference, beta=0.1, p_B=torch.tensor([1.0])).item()
    36.25
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    aim_B = (p_B - 0.5) / beta
    return (a_B - aim_B) ** 2 + (b_B + aim_B) ** 2


def apo_zero(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """APO-zero: `1 - s(beta a) + s(beta b)`, for chosen better than the model's own (2408.06266, eq. 7).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(apo_zero(policy.double(), reference.double(), beta=0.1).item(), 6)
    0.962523
    """
    a_B, b_B = beta * logratios(policy_CB, reference_CB)
    return 1 - torch.sigmoid(a_B) + torch.sigmoid(b_B)


def apo_down(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """APO-down: `s(beta a) + 1 - s(z)`, for chosen worse than the model's own (D'Oosterlinck et al. 2024, eq. 8).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(apo_down(policy.double(), reference.double(), beta=0.1).item(), 6)
    0.987549
    """
    a_B, b_B = beta * logratios(policy_CB, reference_CB)
    return torch.sigmoid(a_B) + 1 - torch.sigmoid(a_B - b_B)


def discopop(
    policy_CB: Tensor,
    reference_CB: Tensor,
    *,
    beta: float,
    tau: float,
    divergence: Divergence = "reverse-kl",
    alpha: float = 0.5,
) -> Tensor:
    """DiscoPOP: `-(1 - g) log s(z) + g exp(-z)` with `g = s(z / tau)` (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(discopop(policy.double(), reference.double(), beta=0.1, tau=0.05).item(), 6)
    0.849338
    """
    u_CB = scores(logratios(policy_CB, reference_CB), divergence=divergence, alpha=alpha)
    z_B = beta * (u_CB[0] - u_CB[1])
    blend_B = torch.sigmoid(z_B / tau)
    # g exp(-z) as one exponential: where z is very negative g is nought and exp(-z) is not finite.
    exponential_B = torch.exp(F.logsigmoid(z_B / tau) - z_B)
    return -F.logsigmoid(z_B) * (1 - blend_B) + exponential_B


def dpop(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive: `-log s(beta (h - lambda max(0, -a)))` (Smaug, Pal et al. 2024, arXiv 2402.13228).

    The likelihood of chosen may not fall under the reference's without a price.

    >>> import torch
    >>> policy, reference = torch.tensor([[-11.5], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(dpop(policy.double(), reference.double(), beta=0.1, penalty=50.0).item(), 6)
    2.57889
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid(beta * (a_B - b_B - penalty * torch.relu(-a_B)))


def rdpo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, alpha: float, length_CB: Tensor) -> Tensor:
    """R-DPO: `-log s(z + alpha (n_w - n_l))`, which pays for length (Park et al. 2024, arXiv 2403.19159).

    A longer chosen response starts with part of the margin already given, so length alone is not learned.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> lengths = torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(rdpo(policy.double(), reference.double(), beta=0.1, alpha=0.01, length_CB=lengths).item(), 6)
    0.630258
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid(beta * (a_B - b_B) + alpha * (length_CB[0] - length_CB[1]))


def desensitized(sum_CB: Tensor, head_CB: Tensor, *, alpha: float) -> Tensor:
    """LD-DPO: the first min(n_w, n_l) tokens in full and the rest by alpha (Liu et al. 2024, arXiv 2409.06411).

    For log-probabilities of policy or reference, (2, B) each; alpha 1 leaves them as they are.
    """
    return head_CB + alpha * (sum_CB - head_CB)


def tdpo1(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, divergence_CB: Tensor) -> Tensor:
    """TDPO1: `-log s(beta (h - (K_l - K_w)))`, K the sum over positions of KL(reference || policy).

    Zeng et al. 2024, "Token-level DPO" (arXiv 2404.11999), eq. 14 and 15.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> kl = torch.tensor([[0.3], [0.6]], dtype=torch.float64)
    >>> round(tdpo1(policy.double(), reference.double(), beta=0.1, divergence_CB=kl).item(), 6)
    0.634946
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid(beta * (a_B - b_B - (divergence_CB[1] - divergence_CB[0])))


def tdpo2(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, alpha: float, divergence_CB: Tensor) -> Tensor:
    """TDPO2: `-log s(beta (h - alpha (K_l - stop(K_w))))` (Zeng et al. 2024, arXiv 2404.11999, eq. 17 and 18).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> kl = torch.tensor([[0.3], [0.6]], dtype=torch.float64)
    >>> round(tdpo2(policy.double(), reference.double(), beta=0.1, alpha=0.5, divergence_CB=kl).item(), 6)
    0.627924
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid(beta * (a_B - b_B - alpha * (divergence_CB[1] - divergence_CB[0].detach())))


def cal(policy_CB: Tensor, reference_CB: Tensor, *, beta: float) -> Tensor:
    """Cal-DPO: `-log s(h) + (a - 1/(2 beta))^2 + (b + 1/(2 beta))^2`, rewards on their scale.

    Xiao et al. 2024, "Calibrated DPO" (arXiv 2412.14516). The first term has no beta.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(cal(policy.double(), reference.double(), beta=0.1).item(), 6)
    36.451413
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    return -F.logsigmoid(a_B - b_B) + (a_B - 1 / (2 * beta)) ** 2 + (b_B + 1 / (2 * beta)) ** 2


def chi(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, clip: float) -> Tensor:
    """chi-PO: `-log s(clip(beta (phi(a) - phi(b))))` with `phi(x) = exp(x) + x`, the difference cut at +-clip.

    Huang et al. 2024, "Correcting the Mythos of KL-Regularization" (arXiv 2407.13399); where to cut is a setting of ours.

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(chi(policy.double(), reference.double(), beta=0.1, clip=50.0).item(), 6)
    0.528778
    """
    ratio_CB = logratios(policy_CB, reference_CB)
    phi_CB = torch.exp(ratio_CB.clamp(max=80.0)) + ratio_CB
    return -F.logsigmoid((beta * (phi_CB[0] - phi_CB[1])).clamp(-clip, clip))
