"""What a loss is given beside summed log-probabilities, and what it says of itself.

Letters: C pair axis (0 chosen, 1 rejected), B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

State = Mapping[str, float]
"""What a loss remembers from step to step."""
Need = Literal["head", "divergence", "certainty", "unlikely", "draw"]
"""Fields of `Terms` that are made where a loss asks for them."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What pairs bring beside the sums of log-probabilities: (B,) or (2, B), float64.

    `length_CB` counts scored tokens, and `mean_length` is the weighted mean of the chosen ones' over the optimizer step,
    so that a loss per token is the same however the step is cut. The optional ones: sums over the first
    min(n_chosen, n_rejected) tokens, of policy and reference; sums over positions of KL(reference || policy); means over
    tokens of log p(y_t) - log sum_j p(j)^2, detached; sums of -log(1 - p(y_t)); a uniform number in [0, 1) a pair.
    """

    p_B: Tensor
    margin_B: Tensor
    weight_B: Tensor
    length_CB: Tensor
    mean_length: float = 1.0
    policy_head_CB: Tensor | None = None
    reference_head_CB: Tensor | None = None
    divergence_CB: Tensor | None = None
    certainty_CB: Tensor | None = None
    unlikely_CB: Tensor | None = None
    draw_B: Tensor | None = None
    state: State = field(default_factory=dict)


Loss_ = Callable[[Tensor, Tensor, Terms], Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss bound to its settings.

    `of` gives (B,) from policy and reference log-probabilities of shape (2, B). `p` and `margin` say which graded fields
    of a pair it honours; `reference` whether it reads the reference. A `coupled` loss depends on the other pairs of the
    step and must see all of them at once. `follow` gives the state that a step is computed with from the state before it
    and the step's own scores; `start` is that before the first. Of an `unpaired` loss row 0 holds labelled answers (p 1
    good, 0 bad) and row 1 the same prompts with another one's answer.
    """

    of: Loss_
    p: bool = False
    margin: bool = False
    reference: bool = True
    needs: frozenset[Need] = frozenset()
    coupled: bool = False
    unpaired: bool = False
    start: State = field(default_factory=dict)
    follow: Callable[[Tensor, Tensor, Terms], State] | None = None


def logratios(policy_CB: Tensor, reference_CB: Tensor) -> Tensor:
    """Log-ratio of policy to reference for both sides, shape (2, B)."""
    if policy_CB.shape != reference_CB.shape or policy_CB.shape[0] != 2:
        raise ValueError(
            f"log-probs must both have shape (2, B), not {tuple(policy_CB.shape)} and {tuple(reference_CB.shape)}"
        )
    return policy_CB - reference_CB


def wanted(value: Tensor | None, name: str) -> Tensor:
    """An optional term that a loss cannot do without; raises ValueError where it is missing."""
    if value is None:
        raise ValueError(f"this loss reads {name}, which was not made; give it in Terms")
    return value


def mean_of(value_B: Tensor, weight_B: Tensor) -> Tensor:
    """The weighted mean of the step."""
    return (value_B * weight_B).sum() / weight_B.sum()
