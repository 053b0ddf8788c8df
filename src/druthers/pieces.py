"""Many texts to token ids at once, each distinct piece of text encoded once.

Tokenizers in the line of GPT-2 cut a text into words before anything is merged, and every one of their rules cuts
before a space that follows anything but white space (where canonical composition, which some apply first, cannot reach
across either). So a text is cut there by one regular expression, the ids of a piece are looked up, and only pieces that
are new go through the tokenizer. Which tokenizers these are is read from their own description, rule by rule; any other
gets whole texts. What is taken is tried on a probe against `tokenizer.encode` first.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from druthers.templates import Lazy

Places = NDArray[np.int64]
PIECE = re.compile(r" *+[^ ]++(?:(?<=[\s\u180e\u200b]) ++[^ ]*+)*+| ++")
"""A piece ends before a space behind anything but white space (in Python's sense, or once so in Unicode's)."""
MARKED = 16
"""Added tokens that stand in the probe."""
MOST_PIECES = 1 << 18
MOST_CHARACTERS = 1 << 24
"""Pieces that are remembered, and their characters in all; then all are forgotten."""
CONTRACTION = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
WORD = (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?\p{L}+")
CAMEL = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
NUMBER = (r"\p{N}", r"\p{N}{1,3}", r" ?\p{N}+")
OTHER = (
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
)
SPACE = (r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+")
RULES = frozenset((*CONTRACTION, *WORD, *CAMEL, *(rule + CONTRACTION[0] + "?" for rule in CAMEL), *NUMBER, *OTHER))
RULES |= frozenset(SPACE)
"""Rules that match no space behind another character than white space, and look at nothing before their match."""
PROBES = (
    "",
    " ",
    "  two  spaces ",
    "It's 12345 o'clock, isn't it?\n\nNo.\n - one\n -  two\t\ttabs \r\n end ",
    "caf\u00e9 cafe\u0301 \u2019quoted\u2019 \u4f60\u597d \u4e16\u754c \U0001f600 \U0001f468\u200d\U0001f469",
    "a\u00a0b \u3000c \u200bd\ufeff e\u2028f \x1cg \x85h",
    "x = {'a': [1, 2]} # CamelCase snake_case a/b\\c  \n\n\n  if (y):\n\treturn",
)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different length end to end: row i is `values[at[i]:at[i + 1]]`."""

    values: NDArray[Any]
    at: Places

    def __len__(self) -> int:
        return len(self.at) - 1

    @property
    def lengths(self) -> Places:
        """Length of every row."""
        return np.diff(self.at)

    def row(self, i: int) -> NDArray[Any]:
        """One row."""
        return self.values[self.at[i] : self.at[i + 1]]

    def take(self, rows: Places) -> Ragged:
        """Some rows, in this order."""
        length = self.lengths[rows]
        at = np.concatenate([[0], np.cumsum(length)])
        return Ragged(self.values[np.repeat(self.at[rows] - at[:-1], length) + np.arange(at[-1])], at)


class Encoder:
    """Texts to the ids that `tokenizer.encode(text, add_special_tokens=False)` gives."""

    def __init__(self, lazy: Lazy) -> None:
        tokenizer = lazy.tokenizer
        self.lazy = lazy
        self.way: Literal["pieces", "whole", "one by one"] = "one by one"
        self.forget()
        added = [token.content for token in tokenizer.added_tokens_decoder.values()][:MARKED]
        probes = (*PROBES, *(f"a {mark}  b{mark}c\n{mark} d {mark}" for mark in added))
        wanted = [tokenizer.encode(text, add_special_tokens=False) for text in probes]
        if not tokenizer.is_fast or tokenizer.backend_tokenizer.encode_special_tokens:
            return
        self.core = copy.deepcopy(tokenizer.backend_tokenizer)  # its own: others may set padding on the tokenizer's
        self.core.no_padding()
        self.core.no_truncation()
        facts = json.loads(self.core.to_str())
        self.marks = marks(facts)
        ways: list[Literal["pieces", "whole"]] = ["pieces", "whole"] if separable(facts) else ["whole"]
        for way in ways:
            self.way = way
            found = self.encode(probes)
            if np.array_equal(found.values, np.concatenate(wanted)) and found.lengths.tolist() == [*map(len, wanted)]:
                return
        self.way = "one by one"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"index": {}, "known": Ragged(np.empty(0, np.int32), np.zeros(1, np.int64)), "size": 0}

    def forget(self) -> None:
        """Remember no piece."""
        self.index: dict[str, int] = {}
        self.known = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))
        self.size = 0

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Ids of every text."""
        if self.way != "pieces":
            return joined(self.whole(texts))
        pieces: list[str] = []
        at = [0]
        for text in texts:
            pieces += self.cut(text)
            at.append(len(pieces))
        numbers = self.numbers(pieces)  # first: it may add to what is known
        rows = self.known.take(numbers)
        return Ragged(rows.values, rows.at[at])

    def cut(self, text: str) -> list[str]:
        """The pieces of a text, added tokens apart."""
        return self.apart(text, 0)

    def apart(self, text: str, phase: int) -> list[str]:
        """The pieces of a text in which the added tokens of earlier phases do not stand."""
        if phase == len(self.marks):
            return PIECE.findall(text)
        parts = self.marks[phase].split(text)
        found: list[str] = []
        for i, part in enumerate(parts):
            found += [part] if i % 2 else self.apart(part, phase + 1)
        return found

    def numbers(self, pieces: list[str]) -> Places:
        """Rows of `known` that hold the ids of the pieces; new ones are encoded."""
        found = np.fromiter(map(self.index.get, pieces, itertools.repeat(-1)), np.int64, len(pieces))
        lacking = np.flatnonzero(found < 0)
        fresh = list(dict.fromkeys([pieces[i] for i in lacking]))
        if self.index and (len(self.index) + len(fresh) > MOST_PIECES or self.size > MOST_CHARACTERS):
            self.forget()
            return self.numbers(pieces)
        if fresh:
            new = joined(self.whole(fresh))
            self.index |= {piece: len(self.known) + i for i, piece in enumerate(fresh)}
            self.known = Ragged(
                np.concatenate([self.known.values, new.values]),
                np.concatenate([self.known.at, self.known.at[-1] + new.at[1:]]),
            )
            self.size += sum(map(len, fresh))
            found[lacking] = [self.index[pieces[i]] for i in lacking]
        return found

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that are not cut."""
        if self.way == "one by one":
            return [self.lazy.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [found.ids for found in self.core.encode_batch_fast(list(texts), add_special_tokens=False)]


def joined(rows: list[list[int]]) -> Ragged:
    """Lists end to end."""
    at = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    return Ragged(np.fromiter((i for row in rows for i in row), np.int32, int(at[-1])), at)


def marks(facts: dict[str, Any]) -> list[re.Pattern[str]]:
    """Added tokens in a text, those that are looked for before normalization first; the longest where several begin."""
    phases = [[t["content"] for t in facts["added_tokens"] if t["normalized"] is late] for late in (False, True)]
    ordered = [sorted(contents, key=len, reverse=True) for contents in phases if contents]
    return [re.compile(f"({'|'.join(map(re.escape, contents))})") for contents in ordered]


def separable(facts: dict[str, Any]) -> bool:
    """Whether ids of pieces, put together, are those of the text, by the description of a tokenizer."""
    added, normalizer = facts["added_tokens"], facts["normalizer"]
    greedy = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
    late = any(token["normalized"] for token in added)
    unchanged = normalizer is None or (normalizer["type"] == "NFC" and not late)
    return unchanged and not greedy and not facts["model"].get("dropout") and cuts(facts)


def cuts(facts: dict[str, Any]) -> bool:
    """Whether the words are cut by known rules, among them one that cuts at white space."""
    first = facts["pre_tokenizer"] or {"type": "none"}
    steps = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    spaces = any((step["type"] == "ByteLevel" and step["use_regex"]) or r"\s+" in rules_of(step) for step in steps)
    return spaces and all(map(known_step, steps))


def known_step(step: dict[str, Any]) -> bool:
    """Whether a step of cutting only has rules that are understood here."""
    if step["type"] == "ByteLevel":
        return step["add_prefix_space"] is False
    if step["type"] == "Split":
        apart = step["behavior"] == "Isolated" and not step["invert"]
        return apart and RULES.issuperset(rules_of(step) or [""])
    return bool(step["type"] == "Digits")


def rules_of(step: dict[str, Any]) -> list[str]:
    r"""The alternatives of a step's regular expression; none where it has none.

    >>> rules_of({"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|[|]?\p{L}+|\s+"}})
    ["(?i:'s|'t)", '[|]?\\p{L}+', '\\s+']
    """
    if step["type"] != "Split" or "Regex" not in step["pattern"]:
        return []
    found, depth, klass = [""], 0, False
    for sign in re.findall(r"\\?.", step["pattern"]["Regex"], re.DOTALL):
        klass = sign == "[" or (klass and sign != "]")
        depth += 0 if klass else (sign == "(") - (sign == ")")
        if sign == "|" and not depth and not klass:
            found.append("")
        else:
            found[-1] += sign
    return found
