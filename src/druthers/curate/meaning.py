"""The two sides by what prompts mean: those that say nearly the same in other words are not parted.

Letters: B pairs, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from druthers import embeddings
from druthers.curate import clusters
from druthers.curate.clusters import Clusters
from druthers.curate.facts import Facts, Texts
from druthers.curate.filters import Mask
from druthers.records import InputError
from druthers.storage import cache_folder


@dataclass(frozen=True)
class Parted:
    """Which of B pairs are held out and which are left out between the sides, and what is to be remembered."""

    heldout_B: Mask
    between_B: Mask
    found: Clusters | None


def part(
    facts: Facts,
    look: Callable[[int], Texts],
    *,
    kept_B: Mask,
    heldout_B: Mask | None,
    again_B: Mask,
    path: Path,
    share: float,
    seed: int,
    encoder: str = "default",
) -> Parted:
    """The sides of the pairs that are kept, by clusters of their prompts, which `path` remembers where it is there.

    The prompts of `again_B` were held out before and are so again, with their clusters where those are new.
    Where the held-out pairs are given, pairs for training whose prompts mean nearly what a held-out one means are left
    out, and nothing is remembered. Raises InputError for a file that is none of clusters or of another encoder, and
    where the encoder is not installed or learns from the texts at hand, whose vectors could not be compared later.
    """
    if encoder == "lexical":
        raise InputError(
            "data.encoder = lexical compares texts by what the set at hand says, and data.clusters must know them in "
            "later sets; use a sentence encoder, or leave data.clusters out"
        )
    if encoder == "default" and embeddings.installed() is None:
        raise InputError(f"{embeddings.WANTED}, or leave data.clusters out")
    kept = np.flatnonzero(kept_B)
    key_P, first, prompt_K = np.unique(facts.asked_B[kept], return_index=True, return_inverse=True)
    texts = [look(int(i)).asked for i in kept[first]]
    reader = embeddings.load(encoder)
    vectors_PD = embeddings.embed(texts, encoder=reader, cache=cache_folder("embeddings"))
    held, between = np.zeros(len(facts), dtype=bool), np.zeros(len(facts), dtype=bool)
    if heldout_B is not None:
        held = heldout_B
        held_P = np.zeros(len(key_P), dtype=bool)
        held_P[prompt_K[heldout_B[kept]]] = True
        near_P = np.zeros(len(key_P), dtype=bool)
        near_P[~held_P] = clusters.reaching(vectors_PD[~held_P], vectors_PD[held_P], threshold=clusters.NEAR)
        between[kept] = near_P[prompt_K]
        return Parted(held, between & ~heldout_B, None)
    known = clusters.load(path) if path.exists() else None
    _, found = clusters.assign(vectors_PD, keys_N=key_P, known=known, encoder=reader.sha)
    again_P = again_B[kept[first]]
    side_P, found = clusters.deal(vectors_PD, keys_N=key_P, clusters=found, share=share, seed=seed, again_N=again_P)
    held[kept] = side_P[prompt_K] == clusters.HELDOUT
    between[kept] = side_P[prompt_K] == clusters.LEFT_OUT
    return Parted(held, between, found)
