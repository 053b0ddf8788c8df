"""Weighted sums of losses: MPO is 0.8 sigmoid + 0.2 bco + 1.0 sft, RPO sigmoid + sft.

Letters: C pair axis (0 chosen, 1 rejected), B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from druthers.losses.terms import Loss, State, Terms

ONE_SIDED = frozenset({"sft"})
"""Losses that look at chosen alone: no grade of a preference means anything to them."""


@dataclass(frozen=True, slots=True)
class Part:
    """One loss of a sum, under its name, with its coefficient."""

    name: str
    coefficient: float
    loss: Loss


def mixed(parts: Sequence[Part]) -> Loss:
    """`sum_j c_j loss_j` (MPO, Wang et al. 2024, arXiv 2411.10442; RPO, Pang et al. 2024, arXiv 2404.19733).

    A grade (`p`, `margin`) is honoured when every part that compares the two sides honours it; `sft` compares none.
    States stand under the parts' names, as 'bco.mean'. Raises ValueError for no parts, two parts of one name, paired
    and unpaired parts together, and for parts that want different tokens in the same terms.
    """
    names, needs = [part.name for part in parts], frozenset[str]().union(*(part.loss.needs for part in parts))
    if not parts or len(set(names)) < len(names):
        raise ValueError(f"a mixed loss has one part or more, each of another name, not {names}")
    if len({part.loss.unpaired for part in parts if part.name not in ONE_SIDED}) > 1:
        raise ValueError(f"{names} mix losses of pairs with losses of single answers; they read different rows")
    if {"head", "sample"} <= needs:
        raise ValueError(f"{names} mix 'ld' and 'samp', which read different tokens of the same responses")
    comparing = [part.loss for part in parts if part.name not in ONE_SIDED]

    def of(policy_CB: Tensor, reference_CB: Tensor, terms: Terms) -> Tensor:
        values = [
            part.coefficient * part.loss.of(policy_CB, reference_CB, replace(terms, state=own(terms.state, part.name)))
            for part in parts
        ]
        return torch.stack(values).sum(0)

    def follow(policy_CB: Tensor, reference_CB: Tensor, terms: Terms) -> State:
        found: dict[str, float] = {}
        for part in parts:
            if part.loss.follow is not None:
                inner = replace(terms, state=own(terms.state, part.name))
                found |= named(part.loss.follow(policy_CB, reference_CB, inner), part.name)
        return found

    return Loss(
        of=of,
        p=bool(comparing) and all(loss.p for loss in comparing),
        margin=bool(comparing) and all(loss.margin for loss in comparing),
        reference=any(part.loss.reference for part in parts),
        needs=needs,
        coupled=any(part.loss.coupled for part in parts),
        start={key: value for part in parts for key, value in named(part.loss.start, part.name).items()},
        follow=follow if any(part.loss.follow for part in parts) else None,
        unpaired=any(part.loss.unpaired for part in parts),
    )


def own(state: State, name: str) -> State:
    """The part of a joined state that stands under a name.

    >>> own({"bco.mean": 0.5, "beta-dpo.mean": 2.0}, "bco")
    {'mean': 0.5}
    """
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def named(state: State, name: str) -> State:
    """A state with its keys under a name.

    >>> named({"mean": 0.5}, "bco")
    {'bco.mean': 0.5}
    """
    return {f"{name}.{key}": value for key, value in state.items()}
