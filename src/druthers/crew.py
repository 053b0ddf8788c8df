"""Who computes the gradient of a step: module trees over one set of weights, each with gradients of its own.

The policy holds the master weights, which the optimizer moves. Where the compute type is not theirs, the weights of the
linear layers stand in it once more, cast after every step instead of in every forward; gradients are summed in the
type of the masters. Every member sums its own micro-batches and the sums are added in the order of the members, so the
result does not depend on who is faster. Where the weights are split over ranks, each of them has a crew of one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from druthers.devices import ALONE, World
from druthers.models import Loaded, trainable
from druthers.threads import crew_size


@dataclass(frozen=True)
class Crew:
    """`members` compute, `policy` is trained; `casts` are the pairs of a master weight and its copy for computing."""

    policy: Loaded
    members: list[Loaded]
    casts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    sums: list[dict[str, Tensor]] = field(default_factory=list)
    world: World = ALONE

    @property
    def seats(self) -> int:
        """Members on all ranks."""
        return self.world.size * len(self.members)

    def turns(self, groups: list[list[int]], member: int) -> Iterator[list[int]]:
        """The micro-batches of a member, one by one; gradients are exchanged between ranks with the last.

        All ranks have the same number of them, for the weights come together on all at once; where there are not
        enough, the last one is empty.
        """
        own = groups[self.world.rank * len(self.members) + member :: self.seats]
        if self.policy.whole is not None and len(own) < math.ceil(len(groups) / self.seats):
            own.append([])
        for turn, group in enumerate(own, start=1):
            if self.policy.whole is not None:
                self.policy.whole.set_requires_gradient_sync(turn == len(own))
            yield group

    def collect(self, member: int) -> None:
        """Add the gradients of the member's last micro-batch to its sums; called by whoever ran it."""
        masters, sums = trainable(self.policy), self.sums[member]
        for name, weight in trainable(self.members[member]).items():
            if weight.grad is not None:
                grad, weight.grad = weight.grad, None
                if name in sums:
                    sums[name].add_(grad)
                else:
                    sums[name] = grad.to(masters[name].dtype)

    def gather(self) -> None:
        """Add the sums of all members to the gradients of the policy, in the order of the members, and clear them."""
        for name, master in trainable(self.policy).items():
            for sums in self.sums:
                if (grad := sums.pop(name, None)) is not None:
                    master.grad = grad if master.grad is None else master.grad.add_(grad)

    @torch.no_grad()
    def follow(self) -> None:
        """Cast the master weights anew, after they moved."""
        for master, cast in self.casts:
            cast.copy_(master)


def crew_of(policy: Loaded, world: World = ALONE) -> Crew:
    """As many members as micro-batches run side by side; in float32 the policy is the first of them."""
    if policy.whole is not None:
        return Crew(policy, [policy], sums=[{}], world=world)
    count = crew_size(policy.device)
    copies = {id(weight): weight.detach().to(policy.compute) for weight in castable(policy)}
    members = (
        [twin(policy, copies) for _ in range(count)] if copies else [policy, *(twin(policy) for _ in range(1, count))]
    )
    moving = [(weight.detach(), copies[id(weight)]) for weight in castable(policy) if weight.requires_grad]
    return Crew(policy, members, moving, [{} for _ in members])


def castable(policy: Loaded) -> list[Tensor]:
    """Weights of linear layers that are cast to compute with; the head, which sums over chunks, stays as it is."""
    if policy.compute == torch.float32:
        return []
    kept = {id(m.weight) for m in policy.model.modules() if isinstance(m, nn.Embedding)} | {
        id(policy.scorer.head.weight)
    }
    linear = {id(m.weight): m.weight for m in policy.model.modules() if type(m) is nn.Linear}
    return [w for key, w in linear.items() if key not in kept and w.is_floating_point() and w.dtype != policy.compute]


def twin(policy: Loaded, copies: dict[int, Tensor] | None = None) -> Loaded:
    """A second module tree over the same weights or their copies, each trainable one with a gradient of its own.

    Weights that are no numbers (4-bit codes) are shared as they are.
    """
    weights: dict[int, Any] = {
        id(weight): nn.Parameter((copies or {}).get(id(weight), weight.detach()), requires_grad=weight.requires_grad)
        if weight.is_floating_point()
        else weight
        for weight in policy.model.parameters()
    }
    return replace(policy, model=copy.deepcopy(policy.model, weights))
