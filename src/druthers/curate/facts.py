"""What is known of pairs without their texts: everything that later steps decide from.

Letters: B pairs, K hashes of a signature, F numbers that `surface` gives.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from druthers.blocks import Block
from druthers.curate import nearness
from druthers.curate.hygiene import faults
from druthers.curate.importers.rated import UNRATED, Rated
from druthers.curate.nearness import Hashes, Places, Sets
from druthers.curate.split import draws, evened, hashed
from druthers.curate.surface import NAMES as SURFACE
from druthers.curate.surface import surface
from druthers.records import Message, Pair, asked, text_of

ID = np.dtype("S24")


@dataclass(frozen=True)
class Facts:
    """What is known of B pairs without their texts.

    `prompt_B` is the number of the prompt, which settles its side, and `asked_B` the one that it has in every run.
    `pair_B` is one number for a prompt and two responses whichever is chosen, and `forward_B` which of the two ways
    round it is; `sides_B2` are numbers of the chosen and the rejected response. `responses_BK` and `prompts_BK` are
    signatures, `passages` what might be copied. `counts_B5` are tokens of prompt, chosen and rejected, and whether
    chosen and rejected were cut; `grades_B3` are p, margin and weight; `size_B` the bytes of the line.
    `surface_B2F` and `faults_B3` are what `surface` and `hygiene` see of chosen and rejected, and of the prompt,
    chosen and rejected. `ratings_B2` are the rating of chosen and by how much it lies above that of rejected, NaN where
    nobody rated; pairs that have a p or margin of their own are `graded_B`. `slice_B` is one number for group and
    criterion, and `group_B` are places in a list of groups that is kept beside.
    """

    id_B: NDArray[np.bytes_]
    line_B: Places
    size_B: Places
    prompt_B: Hashes
    asked_B: Hashes
    pair_B: Hashes
    forward_B: NDArray[np.bool_]
    sides_B2: Hashes
    responses_BK: NDArray[np.uint32]
    prompts_BK: NDArray[np.uint32]
    passages: Sets
    quotations: Sets
    wholes_B2: Hashes
    counts_B5: NDArray[np.uint32]
    grades_B3: NDArray[np.float64]
    ratings_B2: NDArray[np.float64]
    graded_B: NDArray[np.bool_]
    surface_B2F: NDArray[np.float32]
    faults_B3: NDArray[np.uint32]
    slice_B: Hashes
    group_B: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id_B)

    def placed(self, lines: Sequence[int], sizes: Sequence[int]) -> Facts:
        """The facts with the number of each line in its file and the bytes it takes."""
        return replace(self, line_B=np.array(lines, dtype=np.int64), size_B=np.array(sizes, dtype=np.int64))


def facts(
    pairs: Sequence[Pair], block: Block, *, seed: int, form: Hashes, rated: Sequence[Rated] | None = None
) -> Facts:
    """The facts of pairs and of their tokens, which stand at no place yet.

    `form` is what many prompts have, `rated` how the sides of each pair are rated.
    """
    rated = [UNRATED] * len(pairs) if rated is None else rated
    questions = [asked(pair.prompt) for pair in pairs]
    answers = [[text_of(getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected")]
    prompts, *sides = (nearness.words(texts) for texts in (questions, *answers))
    features = [nearness.features(side) for side in sides]
    chosen, rejected = (nearness.salted(side, salt) for salt, side in enumerate(features, 1))
    keys = [comparison(pair) for pair in pairs]
    drawn_B2 = np.array([draws(pair.prompt, seed=seed) for pair in pairs], dtype=np.uint64).reshape(-1, 2)
    lengths_B3, cut_B2 = block.lengths_B3, block.cut_R.reshape(-1, 2)
    return Facts(
        id_B=np.array([pair.id.encode() for pair in pairs], dtype=ID),
        line_B=np.zeros(len(pairs), dtype=np.int64),
        size_B=np.zeros(len(pairs), dtype=np.int64),
        prompt_B=drawn_B2[:, 0],
        asked_B=drawn_B2[:, 1],
        pair_B=np.array([key.pair for key in keys], dtype=np.uint64),
        forward_B=np.array([key.forward for key in keys], dtype=bool),
        sides_B2=np.array([(key.chosen, key.rejected) for key in keys], dtype=np.uint64).reshape(-1, 2),
        responses_BK=nearness.signatures(nearness.both(chosen, rejected)),
        prompts_BK=nearness.signatures(nearness.without(nearness.features(prompts), form)),
        passages=nearness.passages(prompts),
        quotations=nearness.both(*map(nearness.quotations, sides, features)),
        wholes_B2=np.column_stack([nearness.wholes(side) for side in sides]),
        counts_B5=np.column_stack([lengths_B3, cut_B2]).astype(np.uint32),
        grades_B3=np.column_stack([block.p_B, block.margin_B, block.weight_B]),
        ratings_B2=np.array([(one.chosen, one.gap) for one in rated], dtype=np.float64).reshape(-1, 2),
        graded_B=np.array([one.graded for one in rated], dtype=bool),
        surface_B2F=seen(answers),
        faults_B3=np.array([[faults(text) for text in texts] for texts in (questions, *answers)], dtype=np.uint32).T,
        slice_B=np.array([slice_of(pair.group, pair.criterion) for pair in pairs], dtype=np.uint64),
        group_B=block.group_B,
    )


@functools.lru_cache(1 << 10)
def slice_of(group: str, criterion: str) -> int:
    """One number for both; what one of them says is no word about another."""
    return hashed(f"{group}\x1d{criterion}")


def seen(answers: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """What `surface` sees of chosen and rejected, (B, 2, F)."""
    numbers = np.array([[surface(text) for text in side] for side in answers], dtype=np.float32)
    return numbers.reshape(2, -1, len(SURFACE)).transpose(1, 0, 2)


def form_of(prompts: Sequence[Sequence[Message]]) -> Hashes:
    """Words, pairs of words and passages that many of these prompts have, sorted: they tell none apart."""
    found = nearness.words([asked(prompt) for prompt in prompts])
    return np.sort(np.concatenate([nearness.common(of(found)) for of in (nearness.shingles, nearness.passages)]))


def nothing() -> Facts:
    """The facts of no pairs."""
    none = np.zeros(0, dtype=np.uint64)
    signature = np.zeros((0, nearness.SIGNATURE), dtype=np.uint32)
    places = np.zeros(0, dtype=np.int64)
    return Facts(
        id_B=np.zeros(0, dtype=ID),
        line_B=places,
        size_B=places,
        prompt_B=none,
        asked_B=none,
        pair_B=none,
        forward_B=np.zeros(0, dtype=bool),
        sides_B2=np.zeros((0, 2), dtype=np.uint64),
        responses_BK=signature,
        prompts_BK=signature,
        passages=Sets(none, np.zeros(1, dtype=np.int64)),
        quotations=Sets(none, np.zeros(1, dtype=np.int64)),
        wholes_B2=np.zeros((0, 2), dtype=np.uint64),
        counts_B5=np.zeros((0, 5), dtype=np.uint32),
        grades_B3=np.zeros((0, 3)),
        ratings_B2=np.zeros((0, 2)),
        graded_B=np.zeros(0, dtype=bool),
        surface_B2F=np.zeros((0, 2, len(SURFACE)), dtype=np.float32),
        faults_B3=np.zeros((0, 3), dtype=np.uint32),
        slice_B=none,
        group_B=np.zeros(0, dtype=np.int32),
    )


class Texts(NamedTuple):
    """What is compared of a pair when two may be alike: its prompt without a system turn, and both responses."""

    asked: str
    chosen: str
    rejected: str


def texts_in(line: bytes) -> Texts:
    """The texts on a line of a pair of ours, without all that a `Pair` checks.

    >>> from druthers.records import assistant, user
    >>> from druthers.storage import encode
    >>> pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    >>> texts_in(encode(pair.line()))
    Texts(asked='Name a fruit.', chosen='Plum.', rejected='Carrot.')
    """
    row = json.loads(line)
    prompt = [message for message in row["prompt"] if message["role"] != "system"]
    return Texts(*("\n".join(m["content"] for m in talk) for talk in (prompt, row["chosen"], row["rejected"])))


class Comparison(NamedTuple):
    """Numbers of a prompt with its two responses in either order, and of these; whether chosen is the first of them."""

    pair: int
    forward: bool
    chosen: int
    rejected: int


def comparison(pair: Pair) -> Comparison:
    """What is compared with what, as numbers.

    >>> from druthers.records import assistant, user
    >>> pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    >>> there, back = comparison(pair), comparison(pair.swap())
    >>> there.pair == back.pair, there.chosen == back.rejected, there.forward, back.forward
    (True, True, False, True)
    """
    return between(evened(pair.prompt), evened(pair.chosen), evened(pair.rejected))


def between(prompt: str, one: str, other: str) -> Comparison:
    """The same from the texts, evened out."""
    whole = "\x1d".join((prompt, *sorted((one, other))))
    return Comparison(hashed(whole), one <= other, hashed(one), hashed(other))
