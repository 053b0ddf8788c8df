"""Responses that stand on both sides (D1.response_leak): a held-out pair whose answer was trained on under another
prompt measures how well it is remembered.

Letters: B pairs, E held-out pairs with a training pair each, S hashes, M of them that both sides have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from druthers.curate.facts import Facts
from druthers.curate.filters import RARE, Mask
from druthers.curate.nearness import GRAM, Hashes, Places, among, once
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows

SHARE = Limits(warn=0.01)
"""Share of held-out pairs with such a response from which on they measure something else."""
LEAST = 2
"""Passages that two pairs must share where no response of theirs is the same as a whole."""
AT_ONCE = 1 << 16
"""Training pairs that are looked at together."""
Hashed = Callable[[Places], tuple[Hashes, Places]]
"""The hashes of some pairs, and the pair that each belongs to."""


def quoted(facts: Facts, *, train: Mask, heldout: Mask) -> Places:
    """Held-out pairs (E, 2) with the first training pair that has a response of theirs, or two passages of theirs.

    Responses of fewer than `GRAM` words do not count, and neither do responses and passages that more than `RARE`
    training prompts have: that is how answers begin and end, or decline.
    """

    def wholes(places: Places) -> tuple[Hashes, Places]:
        hash_S = facts.wholes_B2[places].reshape(-1)
        owner_S = np.repeat(places, 2)
        return hash_S[hash_S > 0], owner_S[hash_S > 0]

    def passages(places: Places) -> tuple[Hashes, Places]:
        start, count = facts.quotations.at[places], np.diff(facts.quotations.at)[places]
        at_S = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
        return facts.quotations.hash_S[at_S], np.repeat(places, count)

    sides = np.flatnonzero(heldout), np.flatnonzero(train)
    pairs_E2 = np.concatenate(
        [shared(facts, of, *sides, least=least) for of, least in ((wholes, 1), (passages, LEAST))]
    )
    pairs_E2 = pairs_E2[np.lexsort((pairs_E2[:, 1], pairs_E2[:, 0]))]
    first = np.ones(len(pairs_E2), dtype=bool)
    first[1:] = pairs_E2[1:, 0] != pairs_E2[:-1, 0]
    return pairs_E2[first]


def shared(facts: Facts, of: Hashed, held: Places, train: Places, *, least: int) -> Places:
    """Pairs of both sides (E, 2) that share so many hashes which few training prompts have."""
    own_S, held_S = of(held)
    wanted = once(own_S)
    found = [(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))]
    for start in range(0, len(train), AT_ONCE):
        hash_S, place_S = of(train[start : start + AT_ONCE])
        hit = among(hash_S, wanted)
        found.append((hash_S[hit], place_S[hit]))
    hash_M, place_M = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((place_M, facts.prompt_B[place_M], hash_M))
    hash_M, place_M = hash_M[order], place_M[order]
    other = np.ones(len(order), dtype=bool)  # of each prompt the first pair
    other[1:] = (hash_M[1:] != hash_M[:-1]) | (facts.prompt_B[place_M[1:]] != facts.prompt_B[place_M[:-1]])
    hash_M, place_M = hash_M[other], place_M[other]
    low, high = (np.searchsorted(hash_M, own_S, side=side) for side in ("left", "right"))
    count_S = np.where(high - low <= RARE, high - low, 0)
    at = np.arange(count_S.sum()) + np.repeat(low - np.cumsum(count_S) + count_S, count_S)
    code_S, times = np.unique(np.repeat(held_S, count_S) * len(facts) + place_M[at], return_counts=True)
    return np.column_stack(np.divmod(code_S[times >= least], max(1, len(facts))))


def leaking(pairs_E2: Places, *, heldout: Mask, rows: Rows | None) -> Finding:
    """D1.response_leak, of the pairs that `quoted` gives."""
    held = np.flatnonzero(heldout)
    share = len(pairs_E2) / max(1, len(held))  # counted and not estimated: these are all held-out pairs there are
    none = f"No held-out pair has a response of {GRAM} words and more that is trained on under another prompt."
    said = (
        f"{len(pairs_E2):,} of {len(held):,} held-out pairs have a response that stands, word for word or in "
        f"{LEAST} passages of {GRAM} words, in a training pair of another prompt."
    )
    action = "Hold out pairs with other responses, or leave the training pairs of the file out."
    text, action = (said, action) if len(pairs_E2) else (none, "")
    return finding("D1.response_leak", share, text, n=len(held), unit="share", limits=SHARE, rows=rows, action=action)
