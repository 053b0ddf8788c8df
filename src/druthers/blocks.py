"""Many `Pair`s to token ids at once, as flat arrays: for every pair what `tokens.tokenize` gives, id for id.

Letters: B pairs of a block, R = 2 B responses (chosen and rejected of the first pair, then of the second, ...).
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from druthers.pieces import Encoder, Places, Ragged
from druthers.records import Message, Pair
from druthers.templates import Lazy, Writer, plain
from druthers.tokens import (
    BARE,
    Refused,
    TokenizedPair,
    Tokenizer,
    Write,
    alike,
    check_text,
    control_tokens,
    endless,
    too_long,
    turns,
    written,
)

ID = np.dtype("S24")


@dataclass(frozen=True)
class Block:
    """Tokenized pairs as arrays: row i of `prompts`, rows 2 i and 2 i + 1 of `responses`, and item i of the others.

    `scored` has a bit for every token of the responses, eight to a byte, or none where all are scored. `cut` has an
    item for every response; `group_B` are places in `groups`.
    """

    id_B: NDArray[np.bytes_]
    prompts: Ragged
    responses: Ragged
    scored: NDArray[np.uint8]
    cut_R: NDArray[np.uint8]
    p_B: NDArray[np.float64]
    margin_B: NDArray[np.float64]
    weight_B: NDArray[np.float64]
    group_B: NDArray[np.int32]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.id_B)

    def pair(self, i: int) -> TokenizedPair:
        """One pair."""
        sides = [self.response(2 * i + c) for c in (0, 1)]
        return TokenizedPair(
            id=self.id_B[i].decode(),
            prompt=tuple(self.prompts.row(i).tolist()),
            chosen=sides[0][0],
            rejected=sides[1][0],
            chosen_scored=sides[0][1],
            rejected_scored=sides[1][1],
            p=float(self.p_B[i]),
            margin=float(self.margin_B[i]),
            weight=float(self.weight_B[i]),
            group=self.groups[self.group_B[i]],
            cut_chosen=bool(self.cut_R[2 * i]),
            cut_rejected=bool(self.cut_R[2 * i + 1]),
        )

    def response(self, r: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Ids of one response, and which of them are scored."""
        ids = tuple(self.responses.row(r).tolist())
        if not len(self.scored):
            return ids, (True,) * len(ids)
        start = int(self.responses.at[r])
        bits = np.unpackbits(self.scored[start // 8 : (start + len(ids) + 7) // 8])[start % 8 :]
        return ids, tuple(bits[: len(ids)].astype(bool).tolist())

    @property
    def lengths_B3(self) -> Places:
        """Tokens of prompt, chosen and rejected."""
        return np.column_stack([self.prompts.lengths, self.responses.lengths.reshape(-1, 2)])


def within(starts: Sequence[int], place: int) -> tuple[int, int]:
    """Which of several parts laid end to end a place falls into, and where in it.

    >>> within([0, 3, 5], 3)
    (1, 0)
    """
    part = bisect.bisect_right(starts, place) - 1
    return part, place - starts[part]


class TokenizedPairs(Sequence[TokenizedPair]):
    """The pairs of some blocks, made when they are asked for; what stays in memory is the blocks' arrays."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = [block for block in blocks if len(block)]
        self.starts = [0, *itertools.accumulate(map(len, self.blocks))]

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, place: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, place: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        b, i = within(self.starts, range(len(self))[place])
        return self.blocks[b].pair(i)

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (block.pair(i) for block in self.blocks for i in range(len(block)))

    @cached_property
    def facts(self) -> Facts:
        """Lengths and grades of all pairs."""
        if not self.blocks:
            return facts_of([])
        columns = zip(*((b.lengths_B3, b.p_B, b.margin_B, b.weight_B) for b in self.blocks), strict=True)
        return Facts(*(np.concatenate(column) for column in columns))


class Picked(Sequence[TokenizedPair]):
    """Some pairs of several sequences, one after the other, made when they are asked for."""

    def __init__(self, parts: Sequence[Sequence[TokenizedPair]], places: Sequence[int] | None = None) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(map(len, parts))]
        self.places = range(self.starts[-1]) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, place: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        part, i = within(self.starts, self.places[place])
        return self.parts[part][i]

    @cached_property
    def facts(self) -> Facts:
        """Lengths and grades of these pairs, from those of the parts."""
        columns = zip(*map(columns_of, map(facts_of, self.parts)), strict=True)
        places = np.array(self.places, dtype=np.int64)
        return Facts(*(np.concatenate(column)[places] for column in columns)) if self.parts else facts_of([])


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of pairs without their ids: tokens of prompt, chosen and rejected, (B, 3), and the grades, (B,)."""

    lengths_B3: Places
    p_B: NDArray[np.float64]
    margin_B: NDArray[np.float64]
    weight_B: NDArray[np.float64]


def columns_of(facts: Facts) -> tuple[NDArray[Any], ...]:
    """The arrays of some facts."""
    return facts.lengths_B3, facts.p_B, facts.margin_B, facts.weight_B


def facts_of(pairs: Sequence[TokenizedPair]) -> Facts:
    """The facts of any pairs; those that are read from blocks are not made for it, others are looked at once."""
    if isinstance(pairs, TokenizedPairs | Picked):
        return pairs.facts
    rows = [(len(p.prompt), len(p.chosen), len(p.rejected), p.p, p.margin, p.weight) for p in pairs]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Facts(table[:, :3].astype(np.int64), *table[:, 3:].T)


@dataclass
class Segments:
    """What responses are made of: texts by number, the response each belongs to and whether it is scored."""

    text: list[int]
    owner: list[int]
    scored: list[bool]

    def add(self, text: int, owner: int, *, scored: bool) -> None:
        """One more."""
        self.text.append(text)
        self.owner.append(owner)
        self.scored.append(scored)


class BlockTokenizer:
    """A tokenizer for many pairs: `tokens.tokenize` with its repeated work done once. It can go to other processes."""

    def __init__(self, tokenizer: Tokenizer, *, max_prompt: int, max_response: int) -> None:
        self.lazy = Lazy(tokenizer)
        self.max_prompt, self.max_response = max_prompt, max_response
        self.control = tuple(sorted(control_tokens(tokenizer)))
        self.watch = re.compile("|".join(map(re.escape, self.control)) or "(?!)")
        self.end = tokenizer.eos_token_id
        self.writer = Writer(self.lazy)
        self.encoder = Encoder(self.lazy)
        highest = max(tokenizer.get_vocab().values())  # not its length: added tokens may leave holes
        self.dtype = np.dtype(np.uint16 if highest < 1 << 16 else np.int32)

    def tokenize(self, pairs: Sequence[Pair]) -> Block:
        """All pairs; raises Refused for the first that `tokens.tokenize` refuses, with its words."""
        block, refused = self.sort(pairs)
        for error in refused.values():
            raise error
        return block

    def sort(self, pairs: Sequence[Pair]) -> tuple[Block, dict[int, Refused]]:
        """The pairs that fit, as a block, and why each of the others (by its place) does not."""
        texts: dict[str, int] = {}
        found = [self.segments(pair, texts) for pair in pairs]
        encoded = self.encoder.encode(list(texts))
        lengths = encoded.lengths
        kept: list[Kept] = []
        refused: dict[int, Refused] = {}
        for i, parts in enumerate(found):
            if isinstance(parts, Refused):
                refused[i] = parts
            elif lengths[parts[0]] > self.max_prompt:
                refused[i] = too_long(int(lengths[parts[0]]), max_prompt=self.max_prompt)
            elif isinstance(parts[1], Refused):
                refused[i] = parts[1]
            else:
                kept.append((i, parts[0], parts[1]))
        block = self.block(pairs, kept, encoded)
        if same := set(same_sides(block.responses).tolist()):
            length = block.responses.lengths
            refused |= {kept[b][0]: alike(int(length[2 * b]), max_response=self.max_response) for b in same}
            block = self.block(pairs, [parts for b, parts in enumerate(kept) if b not in same], encoded)
        return block, dict(sorted(refused.items()))

    def segments(self, pair: Pair, texts: dict[str, int]) -> Refused | tuple[int, Refused | tuple[Side, Side]]:
        """Numbers of the texts of prompt, chosen and rejected, which are added where new.

        A fault of the prompt comes first, then its length, which is not known yet, then a fault of a response.
        """
        messages = (*pair.prompt, *pair.chosen, *pair.rejected)
        bare = all(map(plain, messages))
        texts_of = (f"{m.content}{BARE}" for m in messages) if bare else map(written, messages)
        clean = not any(map(self.watch.search, texts_of))
        asked: list[str] = []

        def write(messages: Sequence[Message], *, ask: bool) -> str:
            if messages is not pair.prompt:
                return self.writer.write(messages, pair.tools, ask=ask, bare=bare)
            if not asked:
                asked.append(self.writer.write(messages, pair.tools, ask=True, bare=bare))
            return asked[0]

        def number(text: str) -> int:
            return texts.setdefault(text, len(texts))

        try:
            if not clean:
                check_text(pair.prompt, self.lazy.tokenizer)
            prompt = write(pair.prompt, ask=True)
        except Refused as error:
            return error
        try:
            sides = [self.turns(pair, response, write, clean=clean) for response in (pair.chosen, pair.rejected)]
        except Refused as error:
            return number(prompt), error
        chosen, rejected = [[(number(header), number(turn), ended) for header, turn, ended in side] for side in sides]
        return number(prompt), (chosen, rejected)

    def turns(
        self, pair: Pair, response: Sequence[Message], write: Write, *, clean: bool
    ) -> list[tuple[str, str, bool]]:
        """The turns of a response: the text before each, its own, and whether that has its end token."""
        if not clean:
            check_text(response, self.lazy.tokenizer)
        found: list[tuple[str, str, bool]] = []
        for header, turn in turns(pair.prompt, response, write, ends=self.control):
            found.append((header, turn, turn.endswith(self.control)))
            if self.end is None and not found[-1][2]:
                raise endless()
        return found

    def block(self, pairs: Sequence[Pair], kept: Sequence[Kept], encoded: Ragged) -> Block:
        """Some of the pairs as a block, by the ids of their texts."""
        end = len(encoded)
        encoded = Ragged(np.append(encoded.values, np.int32(self.end or 0)), np.append(encoded.at, encoded.at[-1] + 1))
        segments = Segments([], [], [])
        for b, (_, _, sides) in enumerate(kept):
            for c, side in enumerate(sides):
                for header, turn, ended in side:
                    segments.add(header, 2 * b + c, scored=False)
                    segments.add(turn, 2 * b + c, scored=True)
                    if not ended:
                        segments.add(end, 2 * b + c, scored=True)
        prompts = encoded.take(np.array([prompt for _, prompt, _ in kept], dtype=np.int64))
        return self.arrays([pairs[i] for i, _, _ in kept], prompts, encoded, segments)

    def arrays(self, pairs: Sequence[Pair], prompts: Ragged, encoded: Ragged, segments: Segments) -> Block:
        """The arrays of pairs whose segments are known, responses cut."""
        rows = encoded.take(np.array(segments.text, dtype=np.int64))
        counts = np.zeros(2 * len(pairs), dtype=np.int64)
        np.add.at(counts, np.array(segments.owner, dtype=np.int64), rows.lengths)
        responses = Ragged(rows.values, np.concatenate([[0], np.cumsum(counts)]))
        scored = np.repeat(np.array(segments.scored, dtype=bool), rows.lengths)
        responses, scored, cut = shortened(responses, scored, limit=self.max_response)
        groups = {group: g for g, group in enumerate(dict.fromkeys(pair.group for pair in pairs))}
        grades = np.array([(pair.p, pair.margin, pair.weight) for pair in pairs], dtype=np.float64).reshape(-1, 3)
        return Block(
            id_B=np.array([pair.id.encode() for pair in pairs], dtype=ID),
            prompts=Ragged(prompts.values.astype(self.dtype), prompts.at),
            responses=Ragged(responses.values.astype(self.dtype), responses.at),
            scored=np.empty(0, dtype=np.uint8) if scored.all() else np.packbits(scored),
            cut_R=cut.astype(np.uint8),
            p_B=grades[:, 0].copy(),
            margin_B=grades[:, 1].copy(),
            weight_B=grades[:, 2].copy(),
            group_B=np.array([groups[pair.group] for pair in pairs], dtype=np.int32),
            groups=tuple(groups),
        )


Side = list[tuple[int, int, bool]]
"""Turns of a response by number: the text before it, its own, and whether that has its end token."""
Kept = tuple[int, int, tuple[Side, Side]]
"""A pair that fits: its place, and the numbers of the texts of its prompt and its responses."""


def shortened(
    responses: Ragged, scored: NDArray[np.bool_], *, limit: int
) -> tuple[Ragged, NDArray[np.bool_], NDArray[np.bool_]]:
    """Responses of at most `limit` tokens, what is scored of them, and which were cut; the last token stays the last.

    >>> rows = Ragged(np.array([5, 6, 7, 8, 1, 9, 1], dtype=np.int32), np.array([0, 5, 7]))
    >>> shortened(rows, np.ones(7, dtype=bool), limit=3)[0].values
    array([5, 6, 1, 9, 1], dtype=int32)
    """
    lengths = responses.lengths
    cut = lengths > limit
    if not cut.any():
        return responses, scored, cut
    place = np.arange(len(responses.values)) - np.repeat(responses.at[:-1], lengths)
    kept = (place < np.repeat(np.where(cut, limit - 1, lengths), lengths)) | (place == np.repeat(lengths, lengths) - 1)
    at = np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))])
    return Ragged(responses.values[kept], at), scored[kept], cut


def same_sides(responses: Ragged) -> Places:
    """Pairs whose responses are the same tokens."""
    lengths_B2 = responses.lengths.reshape(-1, 2)
    equal = [
        b
        for b in np.flatnonzero(lengths_B2[:, 0] == lengths_B2[:, 1]).tolist()
        if np.array_equal(responses.row(2 * b), responses.row(2 * b + 1))
    ]
    return np.array(equal, dtype=np.int64)
