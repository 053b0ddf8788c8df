"""What a loss is given and what it is: the terms of a pair besides its log-probs, and an entry of the dictionary.

Letters: C pair axis (0 chosen, 1 rejected), B pairs. Log-probabilities are sums over response tokens in nats;
`a = policy - reference` for chosen, `b` the same for rejected, `h = a - b`. A reward is `beta * a`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = Mapping[str, float]
"""What a loss remembers from step to step; it goes into the checkpoint."""

NEEDS = {
    "head": ("policy_head_CB", "reference_head_CB"),
    "sample": ("policy_head_CB", "reference_head_CB"),
    "divergence": ("divergence_CB",),
    "certainty": ("certainty_CB",),
    "unlikely": ("unlikely_CB",),
    "draw": ("draw_B",),
}
"""Optional terms by the name of what asks for them; 'head' and 'sample' fill the same two fields, so not together."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pair brings besides the summed log-probs of both sides; None where the loss did not ask for it.

    * `p_B` (the probability that chosen is better; for unpaired losses 1 is a good answer and 0 a bad one), `margin_B`
      (in units of reward) and `weight_B` are float64, shape (B,); `length_CB` counts scored tokens.
    * `mean_length` is `sum(w n_chosen) / sum(w)` over the whole optimizer step, so that a loss per token is exact
      however the step is cut.
    * `policy_head_CB`, `reference_head_CB`: log-probs summed over the first `min(n_chosen, n_rejected)` scored tokens
      (need 'head'), or over as many drawn at random (need 'sample').
    * `divergence_CB`: KL(reference || policy) of the full vocabulary, summed over positions.
    * `certainty_CB`: mean over scored tokens of `log p(y_t) - log sum_j p(j)^2`, detached.
    * `unlikely_CB`: sum over scored tokens of `-log(1 - p(y_t))`.
    * `draw_B`: one uniform number in [0, 1) a pair, seeded by the caller.
    * `state`: what `Loss.follow` gave for this step.
    """

    p_B: Tensor
    margin_B: Tensor
    weight_B: Tensor
    length_CB: Tensor
    mean_length: float
    policy_head_CB: Tensor | None = None
    reference_head_CB: Tensor | None = None
    divergence_CB: Tensor | None = None
    certainty_CB: Tensor | None = None
    unlikely_CB: Tensor | None = None
    draw_B: Tensor | None = None
    state: State = field(default_factory=dict)


Equation = Callable[[Tensor, Tensor, Terms], Tensor]
"""`policy_CB, reference_CB, terms -> loss_B`, differentiable in the policy's tensors."""


@dataclass(frozen=True, slots=True)
class Loss:
    """An entry of the dictionary; the objective is `sum(w * loss_B) / sum(w)` over the whole step, outside.

    * `of` is the function. `p` and `margin` say which graded fields it honours; the caller refuses the others.
    * `reference` False: `reference_CB` is not read. `needs` are names of `NEEDS`.
    * `coupled`: `loss_B` depends on other pairs, so it must see the whole step at once.
    * `start` is the state before the first step; `follow` gives the state that a step's loss is computed with, from the
      detached scores of the whole step. `of` with the state of `start` follows by itself, so a set is scored alone.
    * `unpaired`: row 0 is a labelled answer, row 1 the same prompt with another prompt's answer.
    """

    of: Equation
    p: bool = False
    margin: bool = False
    reference: bool = True
    needs: frozenset[str] = frozenset()
    coupled: bool = False
    start: State = field(default_factory=dict)
    follow: Callable[[Tensor, Tensor, Terms], State] | None = None
    unpaired: bool = False


def logratios(policy_CB: Tensor, reference_CB: Tensor) -> Tensor:
    """Log-ratio of policy to reference for both sides, shape (2, B); raises ValueError for other shapes."""
    if policy_CB.shape != reference_CB.shape or policy_CB.ndim != 2 or policy_CB.shape[0] != 2:
        raise ValueError(
            f"log-probs must both have shape (2, B), not {tuple(policy_CB.shape)} and {tuple(reference_CB.shape)}"
        )
    return policy_CB - reference_CB


def given(tensor: Tensor | None, *, need: str) -> Tensor:
    """The optional term, which the loss asks for by the name `need`; raises ValueError where it was left out."""
    if tensor is None:
        raise ValueError(f"the loss needs {need!r}, so {' and '.join(NEEDS[need])} of its terms must be given")
    return tensor


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """`sum(w x) / sum(w)`; 0 where nothing has a weight.

    >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0])).item()
    2.0
    """
    total = weight.sum()
    return (weight * value).sum() / torch.where(total > 0, total, torch.ones_like(total))
