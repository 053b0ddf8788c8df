"""D9: pairs whose two responses a model sees so alike that training on them may lower the probability of both.

Centred hidden embedding similarity (CHES), Razin et al. 2024 (2410.08847), definition 2: with H the sum of the last
layer's hidden states that predict the tokens of a response, CHES = <H+, H-> - |H+|^2. The length-normalised form has
means for sums. The higher, the greater the risk. Its cheap proxy is how few characters tell the responses apart.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, R responses, N scored tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from druthers import models
from druthers.batching import Batch, collate, plan
from druthers.findings import finding
from druthers.logprobs import head_logps, predicting
from druthers.models import Loaded
from druthers.records import Finding, Limits, Pair, Rows, text_of
from druthers.stats import Estimate, Undefined, bootstrap_mean, wilson
from druthers.threads import crew_size, side_by_side
from druthers.tokens import TokenizedPair

Doubles = NDArray[np.float64]

SAMPLE = 512
"""Pairs that CHES is computed on."""
FLAGGED = 0.05
"""Share of the pairs that are flagged: those with the highest length-normalised CHES."""
ALIKE = 0.9
"""Edit similarity above which two responses are nearly the same text."""
NEARLY_SAME = Limits(warn=0.05)
"""Our own default: the paper has no such limit."""


@dataclass(frozen=True)
class Ches:
    """CHES of B pairs as defined, and in its length-normalised form, (B,) each."""

    whole_B: Doubles
    normalised_B: Doubles


@dataclass(frozen=True)
class Read:
    """What one reading of B pairs by a model tells: CHES, and the summed log-probabilities in nats, (2, B)."""

    ches: Ches
    logp_CB: Doubles


@dataclass(frozen=True)
class Risk:
    """What is known of one pair; written to the rows of a finding."""

    pair_id: str
    ches: float
    normalised: float
    edit_similarity: float


def sample(count: int, *, seed: int, most: int = SAMPLE) -> list[int]:
    """Which pairs to look at: at most `most` different ones, in order.

    >>> sample(3, seed=0)
    [0, 1, 2]
    """
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, most, replace=False).tolist())


def ches(
    loaded: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> Ches:
    """CHES of every pair, in the order of the pairs, as `read` finds it."""
    return read(loaded, pairs, token_budget=token_budget, progress=progress).ches


def read(
    loaded: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> Read:
    """CHES and log-probabilities of every pair in one forward, by the model's own layout of rows and its compute type.

    Sums are float32, products and log-probabilities float64. `progress` is called with (pairs done, pairs in all).
    """
    found = Ches(np.empty(len(pairs)), np.empty(len(pairs)))
    logp_CB = np.empty((2, len(pairs)))
    rung, crew, done = loaded.layout.rung, crew_size(loaded.device), 0

    def work(group: list[int]) -> int:
        batch = collate([pairs[i] for i in group], pad_id=loaded.pad_id, rung=rung, device=loaded.device)
        with torch.no_grad(), models.computing(loaded):
            hidden_NH = predicting(loaded.scorer, batch)
            logp_N = head_logps(hidden_NH, batch, loaded.scorer)
        both = scores(summed(hidden_NH, batch).double().cpu(), batch.length_R.cpu(), batch.response_CB.cpu())
        found.whole_B[group], found.normalised_B[group] = both.whole_B, both.normalised_B
        sums_R = logp_N.new_zeros(len(batch.length_R), dtype=torch.float64)
        logp_CB[:, group] = sums_R.index_add(0, batch.owner_N, logp_N.double())[batch.response_CB].cpu().numpy()
        return len(group)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(pairs))

    groups = plan(pairs, token_budget=models.WIDER * token_budget, crew=crew, rung=rung)
    side_by_side(work, groups, workers=crew, progress=tick)
    return Read(found, logp_CB)


def summed(hidden_NH: Tensor, batch: Batch) -> Tensor:
    """H of every response, (R, H), float32 at least: the hidden states that predict its scored tokens, added up.

    Those are at the last token of the prompt and all of the response but its last, as in the paper's own code, where
    all of the response is scored.
    """
    hidden_NH = hidden_NH.to(torch.promote_types(hidden_NH.dtype, torch.float32))
    sum_RH: Tensor = hidden_NH.new_zeros(len(batch.length_R), hidden_NH.shape[1])
    return sum_RH.index_add_(0, batch.owner_N, hidden_NH)


def scores(sum_RH: Tensor, length_R: Tensor, response_CB: Tensor) -> Ches:
    """CHES of the pairs of some responses.

    >>> scores(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([2, 1]), torch.tensor([[0], [1]]))
    Ches(whole_B=array([-2.]), normalised_B=array([0.]))
    """

    def form(sum_RH: Tensor) -> Doubles:
        chosen_BH, rejected_BH = sum_RH[response_CB]
        found: Doubles = (chosen_BH * (rejected_BH - chosen_BH)).sum(1).double().numpy()
        return found

    return Ches(form(sum_RH), form(sum_RH / length_R.clamp(min=1)[:, None]))


# ---------------------------------------------------------------- the cheap proxy


def edit_similarity(one: str, other: str, *, least: float = 0.0) -> float:
    """1 - (insertions, deletions and exchanges of characters) / (characters of the longer text); 1 for two empty ones.

    0 is given, without counting, where the lengths alone show that it is not above `least`. The distance: Myers 1999
    (J. ACM 46:395) in the form of Hyyrö 2003, a whole column of the table in the bits of one number.

    >>> edit_similarity("kitten", "sitting") == 1 - 3 / 7, edit_similarity("ab", "abcdefgh", least=0.9)
    (True, 0.0)
    """
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    if least and 1 - abs(len(one) - len(other)) / longest <= least:
        return 0.0
    return 1 - distance(one, other) / longest


def distance(one: str, other: str) -> int:
    """The least number of insertions, deletions and exchanges that make one text the other.

    >>> distance("flaw", "lawn"), distance("", "abc")
    (2, 3)
    """
    if not one:
        return len(other)
    at: dict[str, int] = {}
    for i, character in enumerate(one):
        at[character] = at.get(character, 0) | 1 << i
    every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, found = every, 0, len(one)  # where the table rises and falls by one along the column
    for character in other:
        same = at.get(character, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        rises, falls = down | (every & ~(diagonal | up)), up & diagonal
        found += bool(rises & last) - bool(falls & last)
        rises, falls = (rises << 1 | 1) & every, (falls << 1) & every
        up, down = falls | (every & ~(diagonal | rises)), rises & diagonal
    return found


# ---------------------------------------------------------------- what was found


def risks(pairs: Sequence[Pair], found: Ches) -> list[Risk]:
    """The pairs with their scores, in their order; an edit similarity of 0 stands for any up to `ALIKE`."""
    similar_B = [edit_similarity(text_of(pair.chosen), text_of(pair.rejected), least=ALIKE) for pair in pairs]
    return [
        Risk(pair.id, float(whole), float(normalised), round(similar if similar > ALIKE else 0.0, 4))
        for pair, whole, normalised, similar in zip(pairs, found.whole_B, found.normalised_B, similar_B, strict=True)
    ]


def flagged(risks: Sequence[Risk], *, share: float = FLAGGED) -> list[Risk]:
    """The share of the pairs with the highest length-normalised CHES, the highest first; one pair at least.

    >>> flagged([Risk("a", -9.0, -1.0, 0.0), Risk("b", -2.0, -0.1, 0.0)])
    [Risk(pair_id='b', ches=-2.0, normalised=-0.1, edit_similarity=0.0)]
    """
    return sorted(risks, key=lambda risk: (-risk.normalised, risk.pair_id))[: max(1, round(share * len(risks)))]


def displacement(
    risks: Sequence[Risk], *, prompts: Sequence[str], seed: int, rows: Rows | None = None
) -> list[Finding]:
    """Findings D9.ches (the mean, length-normalised) and D9.edit (share of nearly identical responses).

    `prompts` are the prompts' ids: the interval of the mean is over prompts; `rows` is where the flagged pairs stand.
    CHES is in units of the model's hidden states, so it compares pairs and data sets under one model and has no limit
    of its own.
    """
    mean = bootstrap_mean([risk.normalised for risk in risks], prompts, seed=seed)
    worst = flagged(risks)
    text = (
        f"From a length-normalised CHES of {worst[-1].normalised:.3g} on are the {len(worst)} of {len(risks)} pairs "
        "that a model sees as most alike; training on them may lower the probability of both responses."
        if worst
        else "No pairs."
    )
    action = "Look at the flagged pairs; leave them out, or train with a smaller beta, if they say the same."
    return [
        finding("D9.ches", mean, text, rows=rows, action=action),
        nearly_same([risk.edit_similarity for risk in risks]),
    ]


def nearly_same(similar_B: Sequence[float], *, rows: Rows | None = None) -> Finding:
    """D9.edit: how many pairs have an edit similarity above `ALIKE`; may be given all pairs, not the sample alone."""
    count = sum(similar > ALIKE for similar in similar_B)
    share: Estimate = wilson(count, len(similar_B)) if similar_B else Undefined("no pairs")
    text = f"In {count} of {len(similar_B)} pairs at most a tenth of the characters tell the responses apart."
    action = "Look at these pairs: what differs may be too little to teach." if count else ""
    return finding("D9.edit", share, text, unit="share", limits=NEARLY_SAME, rows=rows, action=action)
