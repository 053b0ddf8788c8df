"""Rows of one prompt, wherever in a source they stand, joined into one item, out of core.

A table of ratings, of votes or of thumbs says one thing a row. What is said of one prompt (with the same tools and
group) becomes one `Candidates` with every response once and every opinion as it was given.

A choice is of two responses in the order shown, and that order must last: which side wins too often is measured on it.
So choices are not mixed with the rest: all choices between the same two texts in the same order are one item of two
responses, and those in the other order another, right behind it among the items of the prompt. Who wants the votes on
two texts in whatever order (Dawid-Skene does) takes together the neighbours with equal prompt, tools and group whose
two texts are the same; their numbers then change sides with the texts. Responses of an item of nothing but choices that
are in none of them go nowhere: nobody said anything of them.

The order is that of the first row of a prompt, and inside a prompt that of the first row of an item. Memory is bounded:
beyond the limit rows go to files by a hash of the prompt, which are joined one after another; the result is the same
whatever the limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from druthers.records import CANONICAL, Candidates
from druthers.storage import encode, full_disk

PARTS = 128
"""Files that rows are dealt to; a hundred times the memory limit is joined in about that limit."""
MEMORY = 256 << 20
OVERHEAD = 120
"""Bytes that a line held in memory costs beyond its own."""
HEAD = ("prompt", "group", "tools")
"""What is the same in all that belongs together."""
WIDEST = 100
"""Responses of an item: each opinion has a number for every one of them. More of a prompt make another item."""


@dataclass(frozen=True)
class Placed:
    """An item with the place of its first row (`file:line`) and how many rows of the source it accounts for.

    A row that goes into several items counts in the first of them, so the sum over all items is the number of rows.
    """

    item: Candidates
    where: str = ""
    rows: int = 1


def gather(items: Iterable[Placed], *, spool: Path, memory: int = MEMORY) -> Iterator[Placed]:
    """The items with those of one prompt, tools and group joined, in the order of their first rows.

    `spool` is an existing folder for temporary files, which go when the iterator ends; about `memory` bytes of rows are
    held before they are used. Raises InputError where the disk is full.

    >>> from druthers.records import user
    >>> def rated(text, worth):
    ...     opinion = {"scale": "rating", "worth": (worth,)}
    ...     return Placed(Candidates(prompt=user("Name a fruit."), responses=[{"content": text}], opinions=[opinion]))
    >>> [found] = gather([rated("Plum.", 9.0), rated("Carrot.", 2.0), rated("Plum.", 8.0)], spool=Path("."))
    >>> found.rows, [opinion.worth for opinion in found.item.opinions]
    (3, [(9.0, None), (None, 2.0), (8.0, None)])
    """
    with contextlib.ExitStack() as stack, full_disk(str(spool)):
        held: list[tuple[int, bytes]] = []
        files: list[BinaryIO] = []
        size = 0
        for part, line in _lines(items):
            if files:
                files[part].write(line)
                continue
            held.append((part, line))
            size += len(line) + OVERHEAD
            if size > memory:
                files = [_temporary(spool, stack) for _ in range(PARTS)]
                for place, kept in held:
                    files[place].write(kept)
                held.clear()
        if files:
            yield from _merged([_joined_file(file, spool, stack) for file in files])
        else:
            for _, found in _joined(line for _, line in held):
                yield from map(_placed, found)


def _merged(files: list[BinaryIO]) -> Iterator[Placed]:
    """The joined items of all files by the number of the first row of their prompt."""
    for line in heapq.merge(*map(_numbered, files)):
        yield from map(_placed, json.loads(line[1])[1])


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for line in file:
        yield int(line[1 : line.index(b",")]), line


def _temporary(spool: Path, stack: contextlib.ExitStack) -> BinaryIO:
    return cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=spool)))


def _joined_file(file: BinaryIO, spool: Path, stack: contextlib.ExitStack) -> BinaryIO:
    """The items of one file joined, a line for each prompt, in a file of their own."""
    result = _temporary(spool, stack)
    file.seek(0)
    for first, found in _joined(file):
        result.write(_encode([first, found]))
    file.close()
    result.seek(0)
    return result


# ---------------------------------------------------------------- rows to lines


def _lines(items: Iterable[Placed]) -> Iterator[tuple[int, bytes]]:
    """Every item as lines with the file each belongs to: what is said of the prompt, and the choices as shown."""
    for number, placed in enumerate(items):
        body = placed.item.line()
        head = {name: value for name, value in body.items() if name in HEAD}
        key = hashlib.blake2b(CANONICAL.encode(head).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        rows = placed.rows
        for shown, responses, opinions in _split(body):
            part = [number, key.hex(), shown, placed.where, rows, head, responses, opinions]
            yield key[0] % PARTS, _encode(part)
            rows = 0


def _split(body: dict[str, Any]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """The parts of an item: all but its choices, then its choices by the two texts between which they are."""
    responses, opinions = body["responses"], body.get("opinions", [])
    rest = [opinion for opinion in opinions if opinion["scale"] != "choice"]
    if rest or not opinions:
        yield "", responses, rest
    shown: dict[tuple[int, ...], list[Any]] = {}
    for opinion in opinions:
        if opinion["scale"] == "choice":
            two = tuple(i for i, worth in enumerate(opinion["worth"]) if worth is not None)
            shown.setdefault(two, []).append(opinion | {"worth": [opinion["worth"][i] for i in two]})
    for two, choices in shown.items():
        pair = [responses[i] for i in two]
        yield CANONICAL.encode([one["content"] for one in pair]), pair, choices


def _encode(part: list[Any]) -> bytes:
    return encode(cast(Any, part))


# ---------------------------------------------------------------- lines to items


@dataclass
class _Item:
    """An item while rows are added to it."""

    where: str
    head: dict[str, Any]
    rows: int = 0
    responses: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    opinions: list[tuple[dict[str, Any], list[int]]] = field(default_factory=list)

    def add(self, rows: int, responses: list[dict[str, Any]], opinions: list[dict[str, Any]]) -> None:
        """What one row says: responses that are new go to the end."""
        self.rows += rows
        seen: dict[str, int] = {}
        places = []
        for response in responses:
            key = _key(response)
            seen[key] = seen.get(key, 0) + 1
            places.append(self._place(response, f"{seen[key]}{key}"))
        self.opinions += [(opinion, places) for opinion in opinions]

    def takes(self, responses: list[dict[str, Any]]) -> bool:
        """Whether there is room for these responses, or as good as all of them are here already."""
        return len(self.responses) < WIDEST or all(f"1{_key(response)}" in self.places for response in responses)

    def _place(self, response: dict[str, Any], key: str) -> int:
        place = self.places.setdefault(key, len(self.responses))
        if place == len(self.responses):
            self.responses.append(response)
        elif "source" in response and "source" not in self.responses[place]:
            self.responses[place] = response
        return place

    def body(self) -> dict[str, Any]:
        """The fields of the `Candidates`, worth by worth on the places the responses have now."""
        opinions = []
        for opinion, places in self.opinions:
            worth: list[float | None] = [None] * len(self.responses)
            for place, value in zip(places, opinion["worth"], strict=True):
                worth[place] = value
            opinions.append(opinion | {"worth": worth})
        return self.head | {"responses": self.responses} | ({"opinions": opinions} if opinions else {})


def _key(response: dict[str, Any]) -> str:
    """What makes a response the same as another: its text, and a score or rank that stands on it."""
    return CANONICAL.encode({name: value for name, value in response.items() if name != "source"})


@dataclass
class _Prompt:
    """The items of a prompt in order; of those with the same choices, or none, the last is added to."""

    number: int
    items: list[_Item] = field(default_factory=list)
    last: dict[str, _Item] = field(default_factory=dict)

    def add(
        self, shown: str, where: str, head: dict[str, Any], rows: int, responses: list[Any], said: list[Any]
    ) -> None:
        """What one row says; it begins an item where there is none with room for its responses."""
        item = self.last.get(shown)
        if item is None or not item.takes(responses):
            item = self.last[shown] = _Item(where, head)
            self.items.append(item)
        item.add(rows, responses, said)


def _joined(lines: Iterable[bytes]) -> Iterator[tuple[int, list[list[Any]]]]:
    """The number of the first row of each prompt, and its items as [where, rows, fields]."""
    prompts: dict[str, _Prompt] = {}
    for line in lines:
        number, key, shown, where, rows, head, responses, opinions = json.loads(line)
        prompts.setdefault(key, _Prompt(number)).add(shown, where, head, rows, responses, opinions)
    while prompts:
        found = prompts.pop(next(iter(prompts)))
        yield found.number, [[item.where, item.rows, item.body()] for item in found.items]


def together(items: Iterable[Placed]) -> Iterator[Placed]:
    """Items as `gather` gives them, with all that is said of a prompt as one, or one for every hundred responses."""
    for _, group in itertools.groupby(items, key=lambda placed: (placed.item.prompt_id, placed.item.group)):
        several = list(group)
        if len(several) == 1:
            yield several[0]
            continue
        whole: dict[str, _Prompt] = {}
        for placed in several:
            body = placed.item.line()
            head = {name: value for name, value in body.items() if name in HEAD}
            prompt = whole.setdefault(CANONICAL.encode(head.get("tools")), _Prompt(0))
            prompt.add("", placed.where, head, placed.rows, body["responses"], body.get("opinions", []))
        for prompt in whole.values():
            yield from (_placed([item.where, item.rows, item.body()]) for item in prompt.items)


def _placed(found: list[Any]) -> Placed:
    where, rows, body = found
    return Placed(Candidates.model_validate(body), where, rows)
