"""One pure function per equation: `(2, B)` log-probabilities in, `(B,)` losses out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats;
`a = policy - reference` for chosen, `b` the same for rejected, `h = a - b`. A reward is `beta * a`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def logratios(policy_CB: Tensor, reference_CB: Tensor) -> Tensor:
    """Log-ratio of policy to reference for both sides, shape (2, B)."""
    if policy_CB.shape != reference_CB.shape or policy_CB.shape[0] != 2:
        raise ValueError(
            f"log-probs must both have shape (2, B), not {tuple(policy_CB.shape)} and {tuple(reference_CB.shape)}"
        )
    return policy_CB - reference_CB


def sigmoid(
    policy_CB: Tensor, reference_CB: Tensor, *, beta: float, p_B: Tensor | None = None, margin_B: Tensor | None = None
) -> Tensor:
    """DPO: `-p log s(z - m) - (1 - p) log s(m - z)` with `z = beta h` (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    `p_B` is the probability that chosen is truly better (Mitchell 2023, cDPO, per pair; 1 gives eq. 7), `margin_B` the
    offset in units of reward (ODPO, Amini et al. 2024, arXiv 2402.10571, eq. 3). Returns shape (B,).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> round(sigmoid(policy, reference, beta=0.1).item(), 6)
    0.620957
    >>> round(sigmoid(policy, reference, beta=0.1, p_B=torch.tensor([0.8])).item(), 6)
    0.650957
    >>> round(sigmoid(policy, reference, beta=0.1, margin_B=torch.tensor([0.2])).item(), 5)
    0.71846
    """
    a_B, b_B = logratios(policy_CB, reference_CB)
    z_B = beta * (a_B - b_B)
    if margin_B is not None:
        z_B = z_B - margin_B
    if p_B is None:
        return -F.logsigmoid(z_B)
    return -p_B * F.logsigmoid(z_B) - (1 - p_B) * F.logsigmoid(-z_B)


def ipo(policy_CB: Tensor, reference_CB: Tensor, *, beta: float, length_CB: Tensor | None = None) -> Tensor:
    """IPO: `(h - 1 / (2 beta))^2` (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    With `length_CB` (scored tokens, shape (2, B)) each log-ratio is averaged over its own response; without it, summed.
    Returns shape (B,).

    >>> import torch
    >>> policy, reference = torch.tensor([[-10.0], [-13.0]]), torch.tensor([[-11.0], [-12.5]])
    >>> ipo(policy, reference, beta=0.1).item()
    12.25
    >>> lengths = torch.tensor([[8.0], [10.0]], dtype=torch.float64)
    >>> round(ipo(policy.double(), reference.double(), beta=0.1, length_CB=lengths).item(), 6)
    23.280625
    """
    ratio_CB = logratios(policy_CB, reference_CB)
    if length_CB is not None:
        ratio_CB = ratio_CB / length_CB
    return (ratio_CB[0] - ratio_CB[1] - 1 / (2 * beta)) ** 2


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What a pair brings besides its log-probabilities: each of shape (B,), lengths (2, B)."""

    p_B: Tensor
    margin_B: Tensor
    length_CB: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """An entry of the dictionary: the function of the step, and which graded fields of a pair it honours."""

    of: Callable[[Tensor, Tensor, PairTerms], Tensor]
    graded: bool


def sigmoid_loss(*, beta: float) -> Loss:
    """DPO bound to its settings."""
    return Loss(
        of=lambda policy, reference, t: sigmoid(policy, reference, beta=beta, p_B=t.p_B, margin_B=t.margin_B),
        graded=True,
    )


def ipo_loss(*, beta: float, reduce: str) -> Loss:
    """IPO bound to its settings; `reduce` is 'mean' or 'sum'."""

    def of(policy_CB: Tensor, reference_CB: Tensor, terms: PairTerms) -> Tensor:
        return ipo(policy_CB, reference_CB, beta=beta, length_CB=terms.length_CB if reduce == "mean" else None)

    return Loss(of=of, graded=False)


LOSSES: dict[str, Callable[..., Loss]] = {"sigmoid": sigmoid_loss, "ipo": ipo_loss}
