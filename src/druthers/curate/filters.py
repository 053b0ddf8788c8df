"""Which pairs are left out because of other pairs: duplicates, contradictions, leaks. Each names the pair it is about.

Letters: B pairs, P prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from druthers.curate.facts import Facts, Texts
from druthers.curate.grading import UNMADE
from druthers.curate.nearness import (
    Hashes,
    Places,
    Sets,
    agreeing,
    among,
    candidates,
    distinct,
    jaccards,
    shingles,
    without,
    words,
)

Mask = NDArray[np.bool_]
GUESS = 0.4
"""Share of the hashes of two signatures that must agree for their texts to be looked at."""
LOOKED_AT = 1 << 13
"""Pairs of texts that are compared at once."""
RARE = 4
"""Prompts that a passage binds, the first in the source; in later ones it is taken for a form that many share."""
KEPT = ""
ACROSS = ("leak", "held_before", "between_sides", "gold")
"""Reasons that keep the sides and gold items apart; a pair that is put back is left out for these alone."""
WHY = {
    "duplicate": "the same prompt and responses stand in an earlier row ({other})",
    "near_duplicate": "prompt and responses are nearly those of an earlier row ({other})",
    "contradiction": "another row has the same two responses the other way round ({other}); keep the one that is right",
    "leak": "the prompt is also among the held-out ones ({other})",
    **{reason: UNMADE[reason] for reason in ("gold", "tie", "below_gap")},
    "held_before": "the prompt, or one like it, was held out before (data.held_before)",
    "between_sides": "the prompt means nearly what one of the other side means (data.clusters)",
}


@dataclass(frozen=True)
class Fates:
    """Why each of B pairs is left out, "" where it is not, and the pair that is the cause, -1 where there is none.

    `back_B` are pairs that were put back: they are left out for the reasons in `ACROSS` alone.
    """

    reason_B: NDArray[np.str_]
    other_B: Places
    back_B: Mask

    @property
    def kept_B(self) -> Mask:
        """The pairs that stay."""
        return np.asarray(self.reason_B == KEPT)

    def leave_out(self, where: Places, reason: str, other: Places | int = -1) -> None:
        """Leave out some that are still in, because of other pairs or of none."""
        other = np.broadcast_to(other, where.shape)
        if reason not in ACROSS:
            stay = ~self.back_B[where]
            where, other = where[stay], other[stay]
        self.reason_B[where] = reason
        self.other_B[where] = other


def fates(count: int, back_B: Mask | None = None) -> Fates:
    """Of so many pairs, all kept."""
    back_B = np.zeros(count, dtype=bool) if back_B is None else back_B
    return Fates(np.zeros(count, dtype="<U16"), np.full(count, -1, dtype=np.int64), back_B)


def leave_out_gold(result: Fates, facts: Facts, gold: Hashes) -> None:
    """Leave out the pairs of gold items, by the numbers of their comparisons."""
    found = np.flatnonzero(np.isin(facts.pair_B, gold))
    result.leave_out(found, "gold", np.full(len(found), -1))


def first_of(value_B: NDArray[np.generic], other_B: Hashes | None = None) -> Places:
    """For each item the place of the first that equals it, by a second value too where one is given.

    >>> first_of(np.array([5, 7, 5])).tolist(), first_of(np.array([5, 7, 5]), np.array([1, 1, 2])).tolist()
    ([0, 1, 0], [0, 1, 2])
    """
    _, first, inverse = np.unique(value_B, return_index=True, return_inverse=True)
    if other_B is None:
        return np.asarray(first[inverse], dtype=np.int64)
    names, of = np.unique(other_B, return_inverse=True)
    return first_of(inverse.astype(np.int64) * max(1, len(names)) + of)


def leave_out_duplicates(found: Fates, facts: Facts) -> None:
    """Pairs that stand, word for word, in an earlier row that stays; in another group or criterion they are others."""
    kept = np.flatnonzero(found.kept_B)
    first = kept[first_of(facts.id_B[kept], facts.slice_B[kept])]
    again = first != kept
    found.leave_out(kept[again], "duplicate", first[again])


def leave_out_near(found: Fates, facts: Facts, read: Callable[[int], Texts], *, least: float, form: Hashes) -> None:
    """Pairs whose prompt, chosen and rejected are each nearly those of an earlier row that stays."""
    kept = np.flatnonzero(found.kept_B)
    pairs = candidates(facts.responses_BK[kept], least=GUESS)
    pairs = kept[pairs[agreeing(facts.prompts_BK[kept], pairs) >= GUESS * facts.prompts_BK.shape[1]]]
    pairs = pairs[(facts.slice_B[pairs[:, 0]] == facts.slice_B[pairs[:, 1]]) & ~found.back_B[pairs[:, 1]]]
    pairs = pairs[close(pairs, read, functools.partial(written, form=form), least=least)]
    for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if found.reason_B[earlier] == found.reason_B[later] == KEPT:
            found.reason_B[later], found.other_B[later] = "near_duplicate", earlier


def close(
    pairs: Places, read: Callable[[int], Texts], parts: Callable[[list[Texts]], Iterator[Sets]], *, least: float
) -> Mask:
    """Of pairs of places (M, 2): whether each part of their texts is nearly the same; texts are read by blocks."""
    near = np.zeros(len(pairs), dtype=bool)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # what is held against several is read for them together
    for start in range(0, len(order), LOOKED_AT):
        some = order[start : start + LOOKED_AT]
        members, at = np.unique(pairs[some], return_inverse=True)
        at, alive = at.reshape(-1, 2), np.ones(len(some), dtype=bool)
        for part in parts([read(int(i)) for i in members]):
            alive[alive] = jaccards(distinct(part), at[alive]) >= least
        near[some] = alive
    return near


def written(texts: list[Texts], *, form: Hashes) -> Iterator[Sets]:
    """What prompt, chosen and rejected are compared by."""
    for sides in ([text.chosen for text in texts], [text.rejected for text in texts]):
        yield shingles(words(sides))
    yield from asked_for(texts, form=form)


def leave_out_contradictions(found: Fates, facts: Facts) -> None:
    """All pairs of one prompt and the same two responses where they do not agree on which is chosen.

    What is better for one group or by one criterion may well be worse for another, so each is looked at alone.
    """
    kept = np.flatnonzero(found.kept_B)
    group = first_of(facts.pair_B[kept], facts.slice_B[kept])
    forward = facts.forward_B[kept]
    count, ahead = (np.bincount(group, weights=w, minlength=len(kept)) for w in (None, forward))
    torn = (ahead[group] > 0) & (ahead[group] < count[group])
    one = {way: np.full(len(kept), -1, dtype=np.int64) for way in (True, False)}
    for way in (True, False):
        at = np.flatnonzero(torn & (forward == way))[::-1]
        one[way][group[at]] = kept[at]  # the first of its way, written last
    other = np.where(forward, one[False][group], one[True][group])
    found.leave_out(kept[torn], "contradiction", other[torn])


# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Alike:
    """The prompts of a set in order of appearance, and which of them are nearly the same.

    `first_P` is the first pair of each, `prompt_B` the prompt of each pair, `edges` (E, 2) are prompts that are alike,
    the earlier first.
    """

    first_P: Places
    prompt_B: Places
    edges: Places


def alike(facts: Facts, read: Callable[[int], Texts], *, least: float, form: Hashes) -> Alike:
    """Which prompts are nearly the same, or share a passage that few others have."""
    _, first, inverse = np.unique(facts.prompt_B, return_index=True, return_inverse=True)
    order = np.argsort(first)
    first_P = first[order]
    near = candidates(facts.prompts_BK[first_P], least=GUESS)
    near = near[close(near, lambda p: read(int(first_P[p])), functools.partial(asked_for, form=form), least=least)]
    edges = np.unique(np.concatenate([near, copied(facts, first_P, form=form)]), axis=0)
    return Alike(first_P, np.argsort(order)[inverse], edges)


def asked_for(texts: list[Texts], *, form: Hashes) -> Iterator[Sets]:
    """What prompts are compared by: all of it, and all but `form`, what many of them have.

    A long form makes prompts alike that ask for different things; without it short ones would be, of which it leaves a
    word. So both must be nearly the same.
    """
    whole = shingles(words([text.asked for text in texts]))
    yield whole
    yield without(whole, form)


def copied(facts: Facts, first_P: Places, *, form: Hashes) -> Places:
    """Pairs of prompts that share two passages, each of the first `RARE` prompts that have one with the first of them.

    Two, because one may lie over the end of a form that many share and hold no more than one word behind it; passages
    that are all form bind nothing. What comes later in the source takes no pair away.
    """
    counts = np.diff(facts.passages.at)[first_P]
    skipped = facts.passages.at[:-1][first_P] - np.concatenate([[0], np.cumsum(counts)])[:-1]
    hash_S = facts.passages.hash_S[np.arange(counts.sum()) + np.repeat(skipped, counts)]
    owner_S = np.repeat(np.arange(len(first_P)), counts)
    own = ~among(hash_S, form)
    hash_S, owner_S = hash_S[own], owner_S[own]
    order = np.lexsort((owner_S, hash_S))
    hash_S, owner_S = hash_S[order], owner_S[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (hash_S[1:] != hash_S[:-1]) | (owner_S[1:] != owner_S[:-1])
    hash_S, owner_S = hash_S[new], owner_S[new]
    start = np.flatnonzero(np.concatenate([[True], hash_S[1:] != hash_S[:-1]])) if len(hash_S) else np.zeros(0, int)
    times = np.diff(np.append(start, len(hash_S)))
    turn = np.arange(len(hash_S)) - np.repeat(start, times)
    head = np.repeat(owner_S[start], times)
    bound = (turn > 0) & (turn < RARE)
    pairs, times = np.unique(np.column_stack([head[bound], owner_S[bound]]), axis=0, return_counts=True)
    return pairs[times > 1]


def leaders_of(found: Alike) -> Places:
    """The prompt that each follows, itself where none: the first that it is like and that follows no other.

    So rows that are added behind the others change nothing for those before them.
    """
    own = list(range(len(found.first_P)))
    for earlier, later in found.edges[np.lexsort((found.edges[:, 0], found.edges[:, 1]))].tolist():
        if own[earlier] == earlier and own[later] == later:
            own[later] = earlier
    return np.array(own, dtype=np.int64)


def numbers_of(facts: Facts, found: Alike, leader_P: Places) -> Hashes:
    """The number that settles the side of each pair: that of its prompt, or of the one that it follows."""
    return facts.prompt_B[found.first_P][leader_P][found.prompt_B]


def held_again(found: Alike, leader_P: Places, before_P: Mask) -> Mask:
    """Which prompts are held out because some were before: those, what they follow, and all that follows the same.

    What is only like them stays a leak, so that the same set curated once more holds out the same.
    """
    held_P = np.zeros(len(leader_P), dtype=bool)
    held_P[leader_P[before_P]] = True
    return held_P[leader_P]


def leave_out_held_before(result: Fates, found: Alike, leader_P: Places, *, before_P: Mask, held_B: Mask) -> None:
    """Pairs that are not held out, but whose prompt was before, or is like one that was."""
    near_P = held_again(found, leader_P, before_P)
    for side in (0, 1):
        near_P[found.edges[before_P[found.edges[:, side]], 1 - side]] = True
    result.leave_out(np.flatnonzero(~held_B & near_P[found.prompt_B] & result.kept_B), "held_before")


def leave_out_leaks(result: Fates, found: Alike, *, held_B: Mask) -> None:
    """Pairs that are not held out, but whose prompt is, or is like one that is."""
    source = np.full(len(found.first_P), -1, dtype=np.int64)
    held = np.flatnonzero(held_B)[::-1]
    source[found.prompt_B[held]] = held
    direct = source.copy()
    for side in (0, 1):
        near, own = found.edges[:, side], found.edges[:, 1 - side]
        hit = (source[own] < 0) & (direct[near] >= 0)
        source[own[hit]] = direct[near[hit]]
    leaks = np.flatnonzero(~held_B & (source[found.prompt_B] >= 0) & result.kept_B)
    result.leave_out(leaks, "leak", source[found.prompt_B[leaks]])
