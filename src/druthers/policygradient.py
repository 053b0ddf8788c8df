"""Policy gradients on sampled answers: rewards with a KL penalty, advantages, clipped losses, and what bounds them.

Letters: S answers, N tokens of all answers one after another (no padding, so none can be counted), P prompts, K answers
to each of them, M samples of the reference for a prompt, V a list of any shape. Log-probabilities are in nats, rewards
in their own unit, and `beta` is the reward that one nat costs.

What is maximised is E[r] - beta KL(pi || ref). Its optimum is `pi* = ref exp(r / beta) / Z` (Rafailov et al. 2023,
arXiv 2305.18290, eq. 4), the same that DPO has. There the reward less the penalty is beta log Z for every answer alike,
so that exact advantages are zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEP = 0.1
"""By how much of the error beta moves (Ziegler et al. 2019, section 2.2)."""
MOST = 0.2
"""The largest error it sees."""
SMALL = 1e-8
"""Added to a variance, so that equal values stay finite."""


def check_ragged(values_N: Tensor, length_S: Tensor) -> None:
    """Raises ValueError where lengths and tokens do not fit, or an answer has no token."""
    if int(length_S.sum()) != len(values_N) or (len(length_S) and int(length_S.min()) < 1):
        raise ValueError(f"{len(values_N)} tokens are not answers of the lengths {length_S.tolist()}, all at least 1")


def sums(values_N: Tensor, length_S: Tensor) -> Tensor:
    """The sum of every answer's values, (S,), float64.

    >>> sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 1])).tolist()
    [3.0, 4.0]
    """
    check_ragged(values_N, length_S)
    owner_N = torch.arange(len(length_S)).repeat_interleave(length_S.cpu()).to(values_N.device)
    return values_N.new_zeros(len(length_S), dtype=torch.float64).index_add(0, owner_N, values_N.double())


def token_rewards(policy_N: Tensor, reference_N: Tensor, reward_S: Tensor, length_S: Tensor, *, beta: float) -> Tensor:
    """`R_t = -beta (log pi(t) - log ref(t)) + [t is the last] r` (Ziegler et al. 2019, arXiv 1909.08593, eq. 2).

    The reward stands on the answer's own last token, which is its end token where it has one. Returns (N,), float64.

    >>> policy, reference = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.5, -2.0, -0.5])
    >>> token_rewards(policy, reference, torch.tensor([3.0, 7.0]), torch.tensor([2, 1]), beta=0.5).tolist()
    [-0.25, 3.0, 7.25]
    """
    check_ragged(policy_N, length_S)
    reward_N = -beta * (policy_N.double() - reference_N.double())
    return reward_N.index_add(0, length_S.cumsum(0) - 1, reward_S.double())


def advantages(
    reward_N: Tensor, value_N: Tensor, length_S: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and the returns that the values should have been (Schulman et al. 2016, eq. 16).

    `A_t = sum_l (gamma lam)^l d_{t+l}` with `d_t = R_t + gamma V_{t+1} - V_t` (arXiv 1506.02438); nothing follows the
    last token of an answer, be it an end token or cut off by the limit. Returns are `A + V`. Both (N,), float64.

    >>> reward, value = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 1.0])
    >>> found, returns = advantages(reward, value, torch.tensor([2, 1]), lam=0.5)
    >>> found.tolist(), returns.tolist()
    ([0.125, 0.75, 1.0], [0.625, 1.0, 2.0])
    """
    check_ragged(reward_N, length_S)
    reward_N, value_N = reward_N.double(), value_N.double()
    last_S = length_S.cumsum(0) - 1
    following_N = torch.cat([value_N[1:], value_N[:1]])
    following_N[last_S] = 0.0
    delta_N = reward_N + gamma * following_N - value_N
    found_N, carry_S = torch.zeros_like(delta_N), torch.zeros_like(last_S, dtype=torch.float64)
    for back in range(int(length_S.max()) if len(length_S) else 0):
        open_S = length_S > back
        carry_S = torch.where(open_S, delta_N[(last_S - back).clamp(min=0)] + gamma * lam * carry_S, carry_S)
        found_N[(last_S - back)[open_S]] = carry_S[open_S]
    return found_N, found_N + value_N


def whitened(values_V: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all of them together: call it on a whole batch, not on its parts.

    A single value, or equal ones, become 0.

    >>> [round(x, 3) for x in whitened(torch.tensor([1.0, 2.0, 3.0])).tolist()]
    [-1.225, 0.0, 1.225]
    """
    centred_V = values_V - values_V.mean()
    return centred_V * torch.rsqrt((centred_V**2).mean() + SMALL)


def clipped_surrogate(policy_V: Tensor, old_V: Tensor, advantage_V: Tensor, *, clip: float = 0.2) -> Tensor:
    """`-min(q A, clip(q, 1 - clip, 1 + clip) A)` with `q = pi / pi_old` (Schulman et al. 2017, PPO, eq. 7).

    arXiv 1707.06347. Tokens or whole answers; where the policy is still the old one its gradient is `-A grad log pi`,
    that of REINFORCE. Shape as given.

    >>> policy, old = torch.tensor([1.5, 1.5, 0.5, 0.5]).log(), torch.zeros(4)
    >>> [round(x, 4) for x in clipped_surrogate(policy, old, torch.tensor([2.0, -2.0, 2.0, -2.0])).tolist()]
    [-2.4, 3.0, -1.0, 1.6]
    """
    ratio_V = (policy_V - old_V).exp()
    return -torch.minimum(ratio_V * advantage_V, ratio_V.clamp(1 - clip, 1 + clip) * advantage_V)


def clipped_share(policy_V: Tensor, old_V: Tensor, *, clip: float = 0.2) -> Tensor:
    """The share of ratios that lie outside the clip: how far the old policy has been left behind.

    >>> round(clipped_share(torch.tensor([1.5, 1.1]).log(), torch.zeros(2)).item(), 2)
    0.5
    """
    return (((policy_V - old_V).exp() - 1).abs() > clip).double().mean()


def clipped_value_loss(value_N: Tensor, old_N: Tensor, return_N: Tensor, *, clip: float = 0.2) -> Tensor:
    """`max((v - R)^2, (old + clip(v - old, -clip, clip) - R)^2) / 2`, (N,) (Ziegler et al. 2019, their code).

    A value moves at most by the clip before its gradient stops, unless that brings it back to the return.

    >>> value, old, returns = torch.tensor([0.5, 0.1]), torch.zeros(2), torch.ones(2)
    >>> [round(x, 3) for x in clipped_value_loss(value, old, returns).tolist()]
    [0.32, 0.405]
    """
    near_N = old_N + (value_N - old_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_N - return_N) ** 2, (near_N - return_N) ** 2)


def explained_variance(value_N: Tensor, return_N: Tensor) -> float | None:
    """`1 - var(R - V) / var(R)`: 1 for perfect values, 0 for a constant; None where all returns are the same.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    0.75
    """
    spread = float(return_N.double().var(correction=0))
    if not spread > 0:
        return None
    return 1 - float((return_N.double() - value_N.double()).var(correction=0)) / spread


def adapted(beta: float, kl: float, *, target: float) -> float:
    """The next beta: `beta (1 + 0.1 e)` with `e = clip(KL / target - 1, -0.2, 0.2)` (Ziegler et al. 2019, section 2.2).

    `kl` is that of whole answers to the reference. Raises ValueError for a target that is not above 0.

    >>> round(adapted(0.1, 12.0, target=6.0), 6), round(adapted(0.1, 5.4, target=6.0), 6)
    (0.102, 0.099)
    """
    if not target > 0:
        raise ValueError(f"the target KL is {target}, but it must be above 0")
    return beta * (1 + STEP * min(MOST, max(-MOST, kl / target - 1)))


def leave_one_out(reward_PK: Tensor, scored_PK: Tensor | None = None) -> Tensor:
    """`A_i = R_i - mean of the other R` of its prompt (Ahmadian et al. 2024, RLOO, arXiv 2402.14740), (P, K), float64.

    An answer that could not be scored is in no baseline and has advantage 0; so has one that is alone in being scored.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    >>> leave_one_out(torch.tensor([[1.0, 99.0, 6.0]]), torch.tensor([[True, False, True]])).tolist()
    [[-5.0, 0.0, 5.0]]
    """
    reward_PK = reward_PK.double()
    known_PK = torch.ones_like(reward_PK, dtype=torch.bool) if scored_PK is None else scored_PK
    kept_PK = torch.where(known_PK, reward_PK, 0.0)
    others_PK = known_PK.sum(1, keepdim=True) - 1
    base_PK = (kept_PK.sum(1, keepdim=True) - kept_PK) / others_PK.clamp(min=1)
    return torch.where(known_PK & (others_PK > 0), kept_PK - base_PK, 0.0)


def best_of_bound(count: int) -> float:
    """`log N - (N - 1) / N`: the KL of best-of-N to what it samples from is at most this (Stiennon et al. 2020).

    arXiv 2009.01325. Exact where no two answers have the same reward and none has much of the mass; otherwise a bound
    (Beirami et al. 2024, arXiv 2401.01879).

    >>> [round(best_of_bound(n), 4) for n in (1, 4, 16, 64)]
    [0.0, 0.6363, 1.8351, 3.1745]
    """
    if count < 1:
        raise ValueError(f"best of {count}, but it must be at least 1")
    return math.log(count) - (count - 1) / count


def best_of(reward_PK: Tensor, scored_PK: Tensor | None = None) -> Tensor:
    """Which answer of each prompt has the highest reward, (P,): the first of equal ones, never one without a score.

    -1 where no answer of a prompt was scored.

    >>> scored = torch.tensor([[True, True, True], [True, False, True]])
    >>> best_of(torch.tensor([[1.0, 3.0, 3.0], [0.0, 9.0, 1.0]]), scored).tolist()
    [1, 2]
    """
    known_PK = torch.ones_like(reward_PK, dtype=torch.bool) if scored_PK is None else scored_PK
    found_P = torch.where(known_PK, reward_PK.double(), -math.inf).argmax(1)
    return torch.where(known_PK.any(1), found_P, -1)


def oracle(reward_PM: Tensor, *, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reward, KL and effective samples of `pi* = ref exp(r / beta) / Z`, from rewards of samples of the reference.

    Self-normalised importance sampling: `w_i = exp(r_i / beta) / sum`, reward `sum w r`, and
    `KL(pi* || ref) = sum w r / beta - log Z` with `Z` the mean of `exp(r / beta)`. No policy has a higher reward at
    that KL (arXiv 2305.18290, eq. 4). `1 / sum w^2` samples count; with few of them the estimate is poor. Each (P,).

    >>> reward, kl, effective = oracle(torch.tensor([[0.0, 1.0]]), beta=1.0)
    >>> round(reward.item(), 4), round(kl.item(), 4), round(effective.item(), 3)
    (0.7311, 0.1109, 1.648)
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, but it must be above 0")
    scaled_PM = reward_PM.double() / beta
    log_w_PM = scaled_PM.log_softmax(1)
    w_PM = log_w_PM.exp()
    reward_P = (w_PM * reward_PM.double()).sum(1)
    log_z_P = scaled_PM.logsumexp(1) - math.log(reward_PM.shape[1])
    return reward_P, reward_P / beta - log_z_P, 1 / (w_PM**2).sum(1)
