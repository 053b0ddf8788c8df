"""`TokenizedPair`s to `Batch`: which pairs share an optimizer step, and how a micro-batch is laid out.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, R responses, S rows, T tokens in a row, N scored response tokens
of the whole batch.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from druthers.attention import Layout, Tree, sent
from druthers.blocks import facts_of
from druthers.tokens import TokenizedPair

Indices = np.ndarray[Any, np.dtype[np.int64]]


Rung = Literal["shared", "padding-free", "padded"]
"""How rows are laid out: one tree a prompt; a row without padding a response; or the plain rectangle with padding."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of B pairs with R responses; R is less than 2 B where pairs share one.

    `gather_N` are flat indices (row * T + position) of the hidden state that predicts each scored token, `target_N` the
    token itself, `owner_N` the response it belongs to, in order. `response_CB` says which response stands in which
    cell. `layout` is None for plain padded rows. `p_B`, `margin_B` and `weight_B` are float64. `tokens` counts the
    prompt once for each side, however the rows are laid out.
    """

    input_ids_ST: Tensor
    position_ids_ST: Tensor
    layout: Layout | None
    gather_N: Tensor
    target_N: Tensor
    owner_N: Tensor
    length_R: Tensor
    response_CB: Tensor
    p_B: Tensor
    margin_B: Tensor
    weight_B: Tensor
    tokens: int

    @property
    def size(self) -> int:
        """B, the number of pairs."""
        return self.p_B.shape[0]

    @property
    def length_CB(self) -> Tensor:
        """Scored tokens of each response, (2, B)."""
        return self.length_R[self.response_CB]


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
        lengths_B3 = facts_of(pairs).lengths_B3
        self.contrast = lengths_B3[:, 1] - lengths_B3[:, 2]
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


def plan(pairs: Sequence[TokenizedPair], *, token_budget: int, crew: int = 1, rung: Rung = "padded") -> list[list[int]]:
    """Indices grouped into micro-batches; the `crew` that run at once share `token_budget` (padding included).

    Rows with padding are grouped by length. Rows without any are dealt out so that the micro-batches are of like size,
    and pairs that share a prompt stay together where the layout shares it. A crew above one has a whole number of
    micro-batches each. What is over its part of the budget alone has a micro-batch to itself.

    >>> pair = TokenizedPair("", (1,), (2, 3), (4,), (True, True), (True,))
    >>> plan([pair] * 3, token_budget=12)
    [[0, 1], [2]]
    >>> plan([pair] * 4, token_budget=36, crew=2)
    [[0, 1], [2, 3]]
    """
    if rung == "padded":
        return plan_padded(pairs, token_budget=token_budget, crew=crew)
    return plan_packed(pairs, token_budget=max(1, token_budget // crew), crew=crew, rung=rung)


def plan_packed(pairs: Sequence[TokenizedPair], *, token_budget: int, crew: int, rung: Rung) -> list[list[int]]:
    """As few micro-batches as the budget allows, every unit given to the one with the fewest tokens so far."""
    units = list(by_prompt(pairs).values()) if rung == "shared" else [[i] for i in range(len(pairs))]
    cost = [sum(tree.size for tree in layout_of([pairs[i] for i in unit], rung)) for unit in units]
    order = sorted(range(len(units)), key=lambda u: -cost[u])
    count = max(1, math.ceil(sum(cost) / token_budget))
    while True:
        count = min(len(units), math.ceil(count / crew) * crew)
        heap = [(0, g) for g in range(count)]
        groups: list[list[int]] = [[] for _ in range(count)]
        for u in order:
            load, g = heapq.heappop(heap)
            groups[g].append(u)
            heapq.heappush(heap, (load + cost[u], g))
        if all(load <= token_budget or len(groups[g]) == 1 for load, g in heap):
            return [sorted(i for u in group for i in units[u]) for group in groups]
        count += 1


def plan_padded(pairs: Sequence[TokenizedPair], *, token_budget: int, crew: int) -> list[list[int]]:
    """Pairs of like length together, cut as even as they can be."""
    lengths_B3 = facts_of(pairs).lengths_B3
    longest = (lengths_B3[:, 0] + lengths_B3[:, 1:].max(1, initial=0)).tolist()
    order = sorted(range(len(pairs)), key=lambda i: -longest[i])
    groups = grouped(longest, order, token_budget=token_budget // crew)
    if crew == 1:
        return groups
    most = min(len(pairs), math.ceil(len(groups) / crew) * crew)
    budgets = range(1, token_budget // crew)
    smallest = bisect.bisect_left(
        budgets, True, key=lambda budget: len(grouped(longest, order, token_budget=budget)) <= most
    )
    return grouped(longest, order, token_budget=smallest + 1)


def grouped(longest: Sequence[int], order: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Indices in their order, cut where one more pair would exceed the budget; `longest` has the longer row of each."""
    groups: list[list[int]] = []
    for i in order:
        fits = groups and 2 * (len(groups[-1]) + 1) * longest[groups[-1][0]] <= token_budget
        if fits:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def collate(
    pairs: Sequence[TokenizedPair], *, pad_id: int, rung: Rung = "padded", device: torch.device | str = "cpu"
) -> Batch:
    """Pairs to a batch. Padded: rows 0..B-1 hold prompt + chosen, rows B..2B-1 prompt + rejected, padding on the right.

    Otherwise one row of trees (`attention.Tree`): unpadded, prompt + response each; shared, a prompt with all its
    responses, as far as they begin alike once, and equal responses of several pairs once.
    """
    rows = laid_out(pairs, rung)
    width = max(len(row.ids) for row in rows)
    if rung != "padded":
        ids, places = [[token for row in rows for token in row.ids]], [[at for row in rows for at in row.positions]]
        starts = list(itertools.accumulate((len(row.ids) for row in rows), initial=0))
    else:
        ids = [[*row.ids, *[pad_id] * (width - len(row.ids))] for row in rows]
        places = [list(range(width)) for _ in rows]
        starts = [i * width for i in range(len(rows))]
    gather: list[int] = []
    target: list[int] = []
    length: list[int] = []
    cell: dict[tuple[int, int], int] = {}
    for start, row in zip(starts, rows, strict=False):
        for response in row.responses:
            cell |= dict.fromkeys(response.cells, len(length))
            gather += [start + at for at in response.predictors]
            target += response.targets
            length.append(len(response.targets))

    def whole(values: object) -> Tensor:
        return sent(values, device)

    def real(values: list[float]) -> Tensor:
        return sent(values, device, dtype=np.float64)

    return Batch(
        input_ids_ST=whole(ids),
        position_ids_ST=whole(places),
        layout=None if rung == "padded" else tuple(row.tree for row in rows),
        gather_N=whole(gather),
        target_N=whole(target),
        owner_N=whole(np.repeat(np.arange(len(length)), length)),
        length_R=whole(length),
        response_CB=whole([[cell[c, b] for b in range(len(pairs))] for c in (0, 1)]),
        p_B=real([p.p for p in pairs]),
        margin_B=real([p.margin for p in pairs]),
        weight_B=real([p.weight for p in pairs]),
        tokens=sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs),
    )


@dataclass(frozen=True, slots=True)
class Response:
    """Scored tokens of one response: the places in its tree that predict them, and the cells (c, b) it stands in."""

    predictors: list[int]
    targets: list[int]
    cells: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One tree: ids and positions of its tokens, and its responses."""

    tree: Tree
    ids: list[int]
    positions: list[int]
    responses: list[Response]


def by_prompt(pairs: Sequence[TokenizedPair]) -> dict[tuple[int, ...], list[int]]:
    """Indices of the pairs of every prompt."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, pair in enumerate(pairs):
        found.setdefault(pair.prompt, []).append(i)
    return found


def layout_of(pairs: Sequence[TokenizedPair], rung: Rung) -> Layout:
    """The trees of some pairs."""
    return tuple(row.tree for row in laid_out(pairs, rung))


def laid_out(pairs: Sequence[TokenizedPair], rung: Rung) -> list[Row]:
    """The rows of some pairs: one a prompt where it is shared, otherwise one a response, chosen ones first."""
    cells = [(c, b) for c in (0, 1) for b in range(len(pairs))]
    if rung == "shared":
        return [
            tree_row(prompt, [(*side(pairs[b], c), [(c, b)]) for b in members for c in (0, 1)])
            for prompt, members in by_prompt(pairs).items()
        ]
    return [tree_row(pairs[b].prompt, [(*side(pairs[b], c), [(c, b)])]) for c, b in cells]


Side = tuple[tuple[int, ...], tuple[bool, ...]]


def side(pair: TokenizedPair, c: int) -> Side:
    """Ids of one response, and which of them are scored."""
    return (pair.rejected, pair.rejected_scored) if c else (pair.chosen, pair.chosen_scored)


def tree_row(
    prompt: tuple[int, ...], responses: list[tuple[tuple[int, ...], tuple[bool, ...], list[tuple[int, int]]]]
) -> Row:
    """Prompt and responses as one tree; what all responses begin with is part of the prefix."""
    cells: dict[Side, list[tuple[int, int]]] = {}
    for ids, scored, where in responses:
        cells.setdefault((ids, scored), []).extend(where)
    alike = common([ids for ids, _ in cells])
    prefix = len(prompt) + alike
    row, positions, found, branches = [*prompt, *next(iter(cells))[0][:alike]], list(range(prefix)), [], []
    for (ids, scored), where in cells.items():
        start = len(row) - alike  # where the response's first token would stand if the branch held all of it
        at = [len(prompt) + i if i < alike else start + i for i in range(-1, len(ids))]
        at[0] = len(prompt) - 1
        kept = [i for i, counts in enumerate(scored) if counts]
        found.append(Response([at[i] for i in kept], [ids[i] for i in kept], where))
        row += ids[alike:]
        positions += range(prefix, len(prompt) + len(ids))
        branches.append(len(ids) - alike)
    return Row(Tree(prefix, tuple(branches)), row, positions, found)


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with.

    >>> common([(1, 2, 3), (1, 2, 4)])
    2
    """
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
