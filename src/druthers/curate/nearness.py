"""Which texts are nearly the same, without holding any of them in memory: MinHash, and a look at the few that may be.

Broder 1997, "On the resemblance and containment of documents"; the banding is that of Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4. How alike two texts are is the Jaccard index of the sets of their words and
of their pairs of neighbouring words, case and punctuation left out. Signatures are of the pairs alone: unrelated texts
share many words, but few pairs. Scripts written without spaces have one word for each character.

Letters: N texts, C characters, W words, S shingles, K hashes of a signature.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.uint64)
SIGNATURE = 48
"""Hashes of a signature."""
BAND = 3
"""Hashes that must all agree for two texts to be compared: where .6 of the word pairs are shared, some do in 98 %."""
NEAR = 0.75
"""Jaccard index from which on texts are nearly the same: one word of eleven may differ."""
FORM, FORM_COUNT = 0.05, 20
"""Share of the first prompts, and their number, that have a word or a pair of words when it belongs to a form; of few
prompts, half."""
GRAM = 13
"""Words of a passage that is taken for copied."""
SAMPLED, QUOTED = 2, 16
"""One passage of a prompt in so many is looked at, and one of a response."""
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters, each a word."""
WORD = re.compile(rf"[^\W{UNSPACED}]+|[{UNSPACED}]")
ASCII_WORD = re.compile(r"\w+", re.ASCII)
MANY = 1 << 16
"""Sets whose hashes are sorted at once."""
TOGETHER = 1 << 20
"""Hashes of pairs of sets that are sorted at once."""
HASH_BITS, OWNER_BITS, HASH_MASK = np.uint64(48), np.uint64(16), np.uint64((1 << 48) - 1)
"""A key that is sorted: the hash below, whose it is above."""
REMEMBERED = 1 << 20
"""Distinct words whose hashes are remembered."""


@dataclass(frozen=True, slots=True)
class Sets:
    """Hashes of N texts end to end; those of text i are `hash_S[at[i] : at[i + 1]]`."""

    hash_S: Hashes
    at: Places

    def __len__(self) -> int:
        return len(self.at) - 1

    def of(self, i: int) -> Hashes:
        """Those of one text."""
        return self.hash_S[self.at[i] : self.at[i + 1]]

    @property
    def owner_S(self) -> Places:
        """The text each hash belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.at))


def mixed(value: Hashes) -> Hashes:
    """A well spread hash of 64-bit numbers: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class Vocabulary(dict[str, int]):
    """Hashes of words, each made once; the same on every machine."""

    def __missing__(self, word: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = self[word] = int.from_bytes(digest, "little")
        return found


KNOWN = Vocabulary()


def words(texts: Sequence[str]) -> Sets:
    """The words of some texts in order, as hashes.

    >>> found = words(["Name a fruit.", " name  a FRUIT!", ""])
    >>> found.at.tolist(), bool((found.of(0) == found.of(1)).all())
    ([0, 3, 6, 6], True)
    """
    found = [split(text) for text in texts]
    at = np.concatenate([[0], np.cumsum([len(each) for each in found], dtype=np.int64)])
    flat = map(KNOWN.__getitem__, itertools.chain.from_iterable(found))
    return Sets(np.fromiter(flat, dtype=np.uint64, count=int(at[-1])), at)


def split(text: str) -> list[str]:
    """Words with case and compatibility forms evened out.

    >>> split("Ｗhat's this?"), split("日本 ok")
    (['what', 's', 'this'], ['日', '本', 'ok'])
    """
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def runs(found: Sets, length: int) -> Sets:
    """Hashes of `length` neighbouring words of one text; none of a text with fewer.

    >>> runs(words(["one two three", "one"]), 2).at.tolist()
    [0, 2, 2]
    """
    count = np.maximum(np.diff(found.at) - length + 1, 0)
    at = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    first_S = np.arange(at[-1]) + np.repeat(found.at[:-1] - at[:-1], count)
    hash_S = np.zeros(len(first_S), dtype=np.uint64)
    for step in range(length):
        hash_S = mixed(hash_S * np.uint64(0x9E3779B97F4A7C15) + found.hash_S[first_S + step])
    return Sets(hash_S, at)


def both(a: Sets, b: Sets) -> Sets:
    """The hashes of two lots for each text."""
    at = a.at + b.at
    hash_S = np.empty(int(at[-1]), dtype=np.uint64)
    hash_S[np.arange(len(a.hash_S)) + np.repeat(b.at[:-1], np.diff(a.at))] = a.hash_S
    hash_S[np.arange(len(b.hash_S)) + np.repeat(a.at[1:], np.diff(b.at))] = b.hash_S
    return Sets(hash_S, at)


def shingles(found: Sets) -> Sets:
    """Words and pairs of neighbouring words, with repetitions."""
    return both(Sets(mixed(found.hash_S), found.at), runs(found, 2))


def common(found: Sets, *, share: float = FORM, least: int = FORM_COUNT) -> Hashes:
    """Hashes that so many of the texts have that they tell none of them apart, sorted: words of a form, and stop words.

    >>> forms = [f"Is this review kind or not? {name}" for name in "bcdefghijklmnopqrstuvwxyz"]
    >>> len(common(shingles(words(forms))))  # six words and five pairs of them
    11
    """
    once = np.unique(np.column_stack([found.hash_S, found.owner_S.astype(np.uint64)]), axis=0)[:, 0]
    hashes, count = np.unique(once, return_counts=True)
    return hashes[count >= max(share * len(found), min(least, max(3, len(found) / 2)))]


def among(hash_S: Hashes, some: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among some others, which are sorted.

    >>> among(np.array([3, 1, 9], dtype=np.uint64), np.array([1, 4], dtype=np.uint64)).tolist()
    [False, True, False]
    """
    if not len(some):
        return np.zeros(len(hash_S), dtype=bool)
    at = np.minimum(np.searchsorted(some, hash_S), len(some) - 1)
    return np.asarray(some[at] == hash_S)


def without(found: Sets, left_out: Hashes) -> Sets:
    """The sets without some hashes, which are sorted; a set that would be empty stays as it is.

    >>> form = common(shingles(words(["so it is"] * 20)))
    >>> without(shingles(words(["so it is", "so it was"])), form).at.tolist()
    [0, 5, 7]
    """
    if not len(left_out):
        return found
    stays = ~among(found.hash_S, left_out)
    stays |= (np.bincount(found.owner_S[stays], minlength=len(found)) == 0)[found.owner_S]
    return Sets(found.hash_S[stays], np.concatenate([[0], np.cumsum(stays)])[found.at])


def salted(found: Sets, salt: int) -> Sets:
    """The same hashes set apart, so that those of another part of a row never equal them."""
    return Sets(mixed(found.hash_S + np.uint64(salt)), found.at)


@functools.cache
def factors(count: int) -> tuple[Hashes, Hashes]:
    """Odd factors and summands of `count` hash functions."""
    seeds = mixed(np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return seeds[:count] | np.uint64(1), seeds[count:]


def features(found: Sets) -> Sets:
    """What signatures are made of: pairs of words, and the word of a text that has one alone.

    >>> features(words(["one two three", "one", ""])).at.tolist()
    [0, 2, 3, 3]
    """
    single = np.diff(found.at) == 1
    lone = mixed(found.hash_S[found.at[:-1][single]])
    return both(Sets(lone, np.concatenate([[0], np.cumsum(single)]).astype(np.int64)), runs(found, 2))


def signatures(found: Sets, *, count: int = SIGNATURE) -> NDArray[np.uint32]:
    """The least of `count` hashes of every set, (N, K); a text without words has all ones.

    >>> a, b = signatures(features(words(["the cat sat on the mat", "the cat sat on a mat"])))
    >>> 0.2 < float((a == b).mean()) < 0.7  # three pairs of seven are shared
    True
    """
    out = np.full((len(found), count), 0xFFFFFFFF, dtype=np.uint32)
    full = np.flatnonzero(np.diff(found.at))
    if not len(full):
        return out
    start = found.at[:-1][full]
    low = (found.hash_S & np.uint64(0xFFFFFFFF)) | np.uint64(1)
    for k, (factor, summand) in enumerate(zip(*factors(count), strict=True)):
        hashed = ((low * factor + summand) >> np.uint64(32)).astype(np.uint32)
        out[full, k] = np.minimum.reduceat(hashed, start)
    return out


def candidates(signature_NK: NDArray[np.uint32], *, least: float) -> Places:
    """Pairs of texts (M, 2), the earlier first, that agree in a band and in at least `least` of all hashes.

    In a band, each text is held against the first that has its key, the last before it that has, and the last before it
    that has the key of the next band too: a thousand copies give two thousand pairs, not half a million, and texts that
    come later take none away.
    """
    N, K = signature_NK.shape
    usable = np.flatnonzero(~(signature_NK == 0xFFFFFFFF).all(1))
    keys = [band_key(signature_NK[usable, k : k + BAND]) for k in range(0, K, BAND)]
    found = np.zeros(0, dtype=np.int64)
    for own, following in zip(keys, keys[1:] + keys[:1], strict=True):
        last, first, later = before(own)
        last_of_both, _, later_of_both = before(mixed(own + mixed(following)))
        earlier, later = np.concatenate([last, first, last_of_both]), np.concatenate([later, later, later_of_both])
        found = once(np.concatenate([found, usable[earlier] * N + usable[later]]))
    pairs = np.column_stack(np.divmod(found, N)) if N else np.zeros((0, 2), dtype=np.int64)
    enough: NDArray[np.bool_] = agreeing(signature_NK, pairs) >= least * K
    return pairs[enough]


def before(key_N: Hashes) -> tuple[Places, Places, Places]:
    """For each item whose key stands before it: the last one with it, the first one with it, and its own place.

    >>> [each.tolist() for each in before(np.array([7, 5, 7, 7], dtype=np.uint64))]
    [[0, 2], [0, 0], [2, 3]]
    """
    order = np.argsort(key_N, kind="stable")
    again = np.flatnonzero(key_N[order][1:] == key_N[order][:-1]) + 1
    start = np.arange(len(order))
    start[again] = 0
    first = order[np.maximum.accumulate(start)]
    return order[again - 1], first[again], order[again]


def band_key(part_NB: NDArray[np.uint32]) -> Hashes:
    """One hash of the hashes of a band."""
    key_N = np.zeros(len(part_NB), dtype=np.uint64)
    for column in part_NB.T:
        key_N = mixed(key_N * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64) + np.uint64(1))
    return key_N


def agreeing(signature_NK: NDArray[np.uint32], pairs: Places, *, chunk: int = 1 << 16) -> Places:
    """In how many hashes the two texts of each pair agree, (M,)."""
    parts = [pairs[i : i + chunk] for i in range(0, len(pairs), chunk)]
    return np.concatenate(
        [np.zeros(0, dtype=np.int64)] + [(signature_NK[p[:, 0]] == signature_NK[p[:, 1]]).sum(1) for p in parts]
    )


def once(values: NDArray[Number]) -> NDArray[Number]:
    """The distinct ones of many whole numbers, in order: sorting is several times as fast as what np.unique does.

    >>> once(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def distinct(found: Sets) -> Sets:
    """Each set once and in order, of at most `MANY` sets; 48 bits of a hash are kept, so that its text fits beside it.

    >>> distinct(shingles(words(["so so so", "so"]))).at.tolist()
    [0, 2, 3]
    """
    assert len(found) <= MANY, "more sets than their numbers have bits for"
    keys = once((found.owner_S.astype(np.uint64) << HASH_BITS) | (found.hash_S >> OWNER_BITS))
    count = np.bincount((keys >> HASH_BITS).astype(np.int64), minlength=len(found))
    return Sets(keys & HASH_MASK, np.concatenate([[0], np.cumsum(count)]).astype(np.int64))


def jaccards(found: Sets, pairs: Places) -> NDArray[np.float64]:
    """Shared hashes over all of the two sets of each pair (M, 2) of `distinct` ones; two empty sets are the same.

    >>> found = distinct(shingles(words(["a black cat", "a black dog", "", "!"])))
    >>> jaccards(found, np.array([[0, 1], [0, 0], [2, 3], [0, 2]])).round(4).tolist()
    [0.4286, 1.0, 1.0, 0.0]
    """
    sizes_M2 = np.diff(found.at)[pairs]
    shared = np.zeros(len(pairs), dtype=np.int64)
    for start, stop in blocks(sizes_M2.sum(1), most=TOGETHER):
        some, sizes = pairs[start:stop].reshape(-1), sizes_M2[start:stop].reshape(-1)
        first = np.repeat(found.at[:-1][some] - np.cumsum(sizes) + sizes, sizes)
        owner = np.repeat(np.arange(len(some), dtype=np.uint64) // np.uint64(2), sizes)
        keys = np.sort((owner << HASH_BITS) | found.hash_S[np.arange(len(first)) + first])
        twice = keys[1:][keys[1:] == keys[:-1]] >> HASH_BITS
        shared[start:stop] = np.bincount(twice.astype(np.int64), minlength=stop - start)
    union = sizes_M2.sum(1) - shared
    return np.where(union, shared / np.maximum(union, 1), 1.0)


def blocks(sizes: Places, *, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of items that together have at most `most`, or are one, and are at most `MANY`.

    >>> list(blocks(np.array([3, 3, 3, 9, 1]), most=6))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + most, side="right"))
        stop = min(max(stop, start + 1), start + MANY)
        yield start, stop
        start = stop


def passages(found: Sets) -> Sets:
    """One in `SAMPLED` of the passages of `GRAM` words, chosen by their hash: the same in every text they stand in."""
    every = runs(found, GRAM)
    chosen = every.hash_S % np.uint64(SAMPLED) == 0
    at = np.concatenate([[0], np.cumsum(chosen)])[every.at]
    return Sets(every.hash_S[chosen], at)


def quotations(found: Sets, pairs: Sets) -> Sets:
    """One in `QUOTED` of the passages of `GRAM` words, chosen by their first two words, whose hashes are `pairs`.

    Fewer passages than `passages` hashes at all, as responses are many and long; `pairs` are what `features` gives.
    """
    mark_S = np.flatnonzero(pairs.hash_S % np.uint64(QUOTED) == 0)
    owner_S = np.searchsorted(pairs.at, mark_S, side="right") - 1
    start_S = found.at[owner_S] + mark_S - pairs.at[owner_S]
    whole = start_S + GRAM <= found.at[owner_S + 1]
    start_S, owner_S = start_S[whole], owner_S[whole]
    hash_S = np.zeros(len(start_S), dtype=np.uint64)
    for step in range(GRAM):
        hash_S = mixed(hash_S * np.uint64(0x9E3779B97F4A7C15) + found.hash_S[start_S + step])
    count = np.bincount(owner_S, minlength=len(found))
    return Sets(hash_S, np.concatenate([[0], np.cumsum(count)]).astype(np.int64))


def wholes(found: Sets) -> Hashes:
    """One number for the words of each text in their order, 0 for one of fewer than `GRAM` words.

    >>> long = "the answer is as long as a passage that is taken for copied, so it counts"
    >>> a, b, short = wholes(words([long, long.upper(), "Yes."])).tolist()
    >>> a == b, short
    (True, 0)
    """
    count = np.diff(found.at)
    place_S = (np.arange(len(found.hash_S)) - np.repeat(found.at[:-1], count)).astype(np.uint64)
    summed = np.concatenate([[np.uint64(0)], np.cumsum(mixed(found.hash_S + place_S * np.uint64(0x9E3779B97F4A7C15)))])
    return np.where(count >= GRAM, summed[found.at[1:]] - summed[found.at[:-1]], np.uint64(0))
