"""`TokenizedPair`s to `Batch`: which pairs share an optimizer step, and how a micro-batch is laid out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, S sequences (2 B, chosen rows first), T tokens in a row,
N scored response tokens of the whole batch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from druthers.tokens import TokenizedPair

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of B pairs in the plain padded layout.

    `gather_N` are flat indices (row * T + position) of the hidden state that predicts each scored token, `target_N` the
    token itself, `owner_N` the flat (c, b) cell it belongs to. `p_B`, `margin_B` and `weight_B` are float64.
    """

    input_ids_ST: Tensor
    position_ids_ST: Tensor
    gather_N: Tensor
    target_N: Tensor
    owner_N: Tensor
    length_CB: Tensor
    p_B: Tensor
    margin_B: Tensor
    weight_B: Tensor
    tokens: int

    @property
    def size(self) -> int:
        """B, the number of pairs."""
        return self.p_B.shape[0]


def step_count(count: int, *, pairs_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run: whole steps per epoch (the last one may be short), times epochs.

    >>> step_count(100, pairs_per_step=16, epochs=1, max_steps=None)
    7
    """
    per_epoch = math.ceil(count / pairs_per_step)
    return min(max(1, round(per_epoch * epochs)), max_steps or 10**12)


class Order:
    """Which pairs each optimizer step trains on: every epoch all of them once, whole steps but the last.

    'shuffled' leaves each step's mix to chance. 'stratified' makes each a cross-section by length contrast: the
    pairs are sorted by how many tokens longer chosen is than rejected and cut into `pairs_per_step` strata, of
    which a step has one pair each, drawn at random (a short last step has one each of some strata, also drawn). A
    function of its arguments and the step alone, so a resumed run finds its place again.

    >>> pairs = [TokenizedPair("", (1,), (2,) * i, (3,), (True,) * i, (True,)) for i in range(1, 7)]
    >>> order = Order(pairs, kind="stratified", pairs_per_step=2, seed=0)
    >>> [sorted(len(pairs[i].chosen) > 3 for i in order.step(s)) for s in range(3)]
    [[False, True], [False, True], [False, True]]
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        *,
        pairs_per_step: int,
        seed: int,
        kind: Literal["shuffled", "stratified"] = "shuffled",
    ) -> None:
        self.contrast = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
        self.size, self.seed, self.kind = pairs_per_step, seed, kind
        self.drawn: tuple[int, list[list[int]]] = (-1, [])

    def epoch(self, epoch: int) -> list[list[int]]:
        """Indices of the pairs, step by step."""
        if self.drawn[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.contrast))
            if self.kind == "stratified":
                order = self.strata(order, random)
            steps = range(0, len(order), self.size)
            self.drawn = (epoch, [order[start : start + self.size].tolist() for start in steps])
        return self.drawn[1]

    def strata(self, shuffled: Indices, random: np.random.Generator) -> Indices:
        """The pairs, step after step, one of each stratum; ties of contrast stay as shuffled."""
        ordered = shuffled[np.argsort(self.contrast[shuffled], kind="stable")]
        whole, left = divmod(len(ordered), self.size)
        longer = random.permutation(np.arange(self.size) < left)
        parts = [random.permutation(part) for part in np.split(ordered, np.cumsum(whole + longer)[:-1])]
        return np.array([part[s] for s in range(whole + 1) for part in parts if s < len(part)])

    def step(self, step: int) -> list[int]:
        """Indices of the pairs that optimizer step `step` (from 0) trains on."""
        epoch, within = divmod(step, math.ceil(len(self.contrast) / self.size))
        return self.epoch(epoch)[within]


def plan(pairs: Sequence[TokenizedPair], *, token_budget: int, crew: int = 1) -> list[list[int]]:
    """Indices grouped into micro-batches of similar length; the `crew` that run at once share `token_budget`.

    A crew above one has a whole number of micro-batches each, cut as even as they can be. A pair that is over its part
    of the budget (padded tokens) has a micro-batch to itself.

    >>> pair = TokenizedPair("", (1,), (2, 3), (4,), (True, True), (True,))
    >>> plan([pair] * 3, token_budget=12)
    [[0, 1], [2]]
    >>> plan([pair] * 4, token_budget=36, crew=2)
    [[0, 1], [2, 3]]
    """
    order = sorted(range(len(pairs)), key=lambda i: -pairs[i].longest)
    groups = grouped(pairs, order, token_budget=token_budget // crew)
    if crew == 1:
        return groups
    most = min(len(pairs), math.ceil(len(groups) / crew) * crew)
    budgets = range(1, token_budget // crew)
    smallest = bisect.bisect_left(
        budgets, True, key=lambda budget: len(grouped(pairs, order, token_budget=budget)) <= most
    )
    return grouped(pairs, order, token_budget=smallest + 1)


def grouped(pairs: Sequence[TokenizedPair], order: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Indices in their order, cut where one more pair would exceed the budget."""
    groups: list[list[int]] = []
    for i in order:
        fits = groups and 2 * (len(groups[-1]) + 1) * pairs[groups[-1][0]].longest <= token_budget
        if fits:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def collate(pairs: Sequence[TokenizedPair], *, pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Pairs to a right-padded batch: rows 0..B-1 hold prompt + chosen, rows B..2B-1 prompt + rejected."""
    width = max(pair.longest for pair in pairs)
    rows = [(p.prompt + p.chosen, p.chosen_scored, len(p.prompt)) for p in pairs]
    rows += [(p.prompt + p.rejected, p.rejected_scored, len(p.prompt)) for p in pairs]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    gather: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    for s, (row, scored, prompt) in enumerate(rows):
        ids[s, : len(row)] = row
        at = [prompt + i for i, kept in enumerate(scored) if kept]
        gather += [s * width + i - 1 for i in at]
        target += [row[i] for i in at]
        owner += [s] * len(at)
    positions = np.tile(np.arange(width), (len(rows), 1))

    def whole(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)

    def real(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    return Batch(
        input_ids_ST=whole(ids),
        position_ids_ST=whole(positions),
        gather_N=whole(gather),
        target_N=whole(target),
        owner_N=whole(owner),
        length_CB=torch.bincount(whole(owner), minlength=len(rows)).reshape(2, len(pairs)),
        p_B=real([p.p for p in pairs]),
        margin_B=real([p.margin for p in pairs]),
        weight_B=real([p.weight for p in pairs]),
        tokens=sum(len(row) for row, _, _ in rows),
    )
