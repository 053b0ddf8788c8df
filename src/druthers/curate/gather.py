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
rows are dealt to parts by a hash of the prompt, which go to files where they are more than memory is to hold, and each
part is joined by itself, whichever process does it. The result is the same whatever the limit.

A row is a tuple (number, key, where, rows, head, responses, opinions, shown): its place among all, the hash of its
head, `file:line`, how many rows of the source it accounts for, and what is the same in all that belongs together;
`shown` says that it is choices between two responses in the order shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from druthers.records import CANONICAL, Candidates
from druthers.storage import full_disk

Body = dict[str, Any]
"""The fields of a `Candidates`, or of a response or an opinion in it."""
Row = tuple[int, bytes, str, int, Body, list[Body], list[Body], bool]
PARTS = 128
"""Parts that rows are dealt to; a hundred times the memory limit is joined in about that limit."""
MEMORY = 128 << 20
"""Bytes of rows that are held before they go to files."""
LOT = 32
"""Bits of the number of a row that count the rows of a lot."""
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


# ---------------------------------------------------------------- rows to parts


def dealt(items: Iterable[Placed], *, lot: int) -> dict[int, bytes]:
    """The items of a lot as rows, packed, by the part each belongs to; lots are numbered as they stand in the source.

    >>> from druthers.records import user
    >>> item = Candidates(prompt=user("Name a fruit."), responses=({"content": "Plum."},))
    >>> [[number, *_, shown]] = pickle.loads(next(iter(dealt([Placed(item)], lot=2).values())))
    >>> number == 2 << LOT, shown
    (True, False)
    """
    parts: dict[int, list[Row]] = {}
    for number, placed in enumerate(items, lot << LOT):
        body = placed.item.line()
        head = {name: value for name, value in body.items() if name in HEAD}
        key = hashlib.blake2b(CANONICAL.encode(head).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        rows = placed.rows
        for responses, opinions, shown in _split(body):
            row = number, key, placed.where, rows, head, responses, opinions, shown
            parts.setdefault(key[0] % PARTS, []).append(row)
            rows = 0
    return {part: pickle.dumps(rows, protocol=pickle.HIGHEST_PROTOCOL) for part, rows in parts.items()}


def _split(body: Body) -> Iterator[tuple[list[Body], list[Body], bool]]:
    """The parts of an item: all but its choices, then its choices by the two texts between which they are."""
    responses, opinions = body["responses"], body.get("opinions", [])
    rest = [opinion for opinion in opinions if opinion["scale"] != "choice"]
    if rest or not opinions:
        yield responses, rest, False
    shown: dict[tuple[int, ...], list[Body]] = {}
    for opinion in opinions:
        if opinion["scale"] == "choice":
            two = tuple(i for i, worth in enumerate(opinion["worth"]) if worth is not None)
            shown.setdefault(two, []).append(opinion | {"worth": [opinion["worth"][i] for i in two]})
    for two, choices in shown.items():
        yield [responses[i] for i in two], choices, True


@dataclass(frozen=True)
class Part:
    """The rows of one part: those that went to a file, and behind them those that are still held."""

    file: Path | None
    held: bytes

    def rows(self) -> Iterator[Row]:
        """All of them, in order."""
        with contextlib.ExitStack() as stack:
            files = [] if self.file is None else [stack.enter_context(self.file.open("rb"))]
            for stream in (*files, io.BytesIO(self.held)):
                with contextlib.suppress(EOFError):
                    while True:
                        yield from pickle.load(stream)


@dataclass
class Deal:
    """Rows by part: in memory up to a limit, then in files of a folder, which must stay while they are used."""

    folder: Path
    memory: int
    size: int = 0
    held: dict[int, bytearray] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)

    def add(self, packed: dict[int, bytes]) -> None:
        """The rows of a lot; InputError where the disk is full."""
        for part, rows in packed.items():
            self.held.setdefault(part, bytearray()).extend(rows)
            self.size += len(rows)
        if self.size > self.memory:
            self.flush()

    def flush(self) -> None:
        """What is held goes to the files."""
        with full_disk(str(self.folder)):
            for part, rows in self.held.items():
                path = self.files.setdefault(part, self.folder / f"part-{part}")
                with path.open("ab") as file:
                    file.write(rows)
        self.held.clear()
        self.size = 0

    def parts(self) -> Iterator[Part]:
        """The parts that have rows; each is let go as it is handed on."""
        for part in range(PARTS):
            held = bytes(self.held.pop(part, b""))
            if held or part in self.files:
                yield Part(self.files.get(part), held)


# ---------------------------------------------------------------- rows to items


@dataclass
class Item:
    """An item while rows are added to it."""

    where: str
    head: Body
    rows: int = 0
    responses: list[Body] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    opinions: list[tuple[Body, list[int]]] = field(default_factory=list)

    @classmethod
    def of(cls, placed: Placed) -> Item:
        """The item of one that is whole."""
        body = placed.item.line()
        item = cls(placed.where, {name: value for name, value in body.items() if name in HEAD})
        item.add(placed.rows, body["responses"], body.get("opinions", []))
        return item

    def placed(self) -> Placed:
        """The whole item, checked."""
        return Placed(Candidates.model_validate(self.body()), self.where, self.rows)

    def add(self, rows: int, responses: list[Body], opinions: list[Body]) -> None:
        """What one row says: responses that are new go to the end."""
        self.rows += rows
        seen: dict[str, int] = {}
        places = []
        for response in responses:
            key = _key(response)
            seen[key] = seen.get(key, 0) + 1
            places.append(self._place(response, f"{seen[key]}{key}"))
        self.opinions += [(opinion, places) for opinion in opinions]

    def takes(self, responses: list[Body]) -> bool:
        """Whether there is room for these responses, or as good as all of them are here already."""
        return len(self.responses) < WIDEST or all(f"1{_key(response)}" in self.places for response in responses)

    def _place(self, response: Body, key: str) -> int:
        place = self.places.setdefault(key, len(self.responses))
        if place == len(self.responses):
            self.responses.append(response)
        elif "source" in response and "source" not in self.responses[place]:
            self.responses[place] = response
        return place

    def said(self) -> list[Body]:
        """The opinions, worth by worth on the places the responses have now."""
        opinions = []
        for opinion, places in self.opinions:
            worth: list[float | None] = [None] * len(self.responses)
            for place, value in zip(places, opinion["worth"], strict=True):
                worth[place] = value
            opinions.append(opinion | {"worth": worth})
        return opinions

    def body(self) -> Body:
        """The fields of the `Candidates`."""
        opinions = self.said()
        return self.head | {"responses": self.responses} | ({"opinions": opinions} if opinions else {})


def _key(response: Body) -> str:
    """What makes a response the same as another: its text, and a score or rank that stands on it."""
    if response.keys() <= {"content", "source"}:
        return f" {response['content']}"
    return CANONICAL.encode({name: value for name, value in response.items() if name != "source"})


@dataclass
class Prompt:
    """The items of a prompt in order; of those with the same choices, or none, the last is added to."""

    number: int
    items: list[Item] = field(default_factory=list)
    last: dict[tuple[str, ...], Item] = field(default_factory=dict)

    def add(
        self, shown: tuple[str, ...], where: str, head: Body, rows: int, responses: list[Body], said: list[Body]
    ) -> None:
        """What one row says; it begins an item where there is none with room for its responses."""
        item = self.last.get(shown)
        if item is None or not item.takes(responses):
            item = self.last[shown] = Item(where, head)
            self.items.append(item)
        item.add(rows, responses, said)


def joined(rows: Iterable[Row]) -> Iterator[tuple[int, list[Item]]]:
    """The number of the first row of each prompt, and its items; prompts that share tools and group are one."""
    prompts: dict[bytes, Prompt] = {}
    for number, key, where, count, head, responses, opinions, shown in rows:
        prompt = prompts.get(key)
        if prompt is None:
            prompt = prompts[key] = Prompt(number)
        two = tuple(response["content"] for response in responses) if shown else ()
        prompt.add(two, where, head, count, responses, opinions)
    while prompts:
        found = prompts.pop(next(iter(prompts)))
        yield found.number, found.items


def gathered(items: Iterable[Placed]) -> Iterator[Placed]:
    """Not too many items with all that is said of a prompt put together, in memory, in the order of their first rows.

    >>> from druthers.records import user
    >>> def rated(text, worth):
    ...     opinion = {"scale": "rating", "worth": (worth,)}
    ...     return Placed(Candidates(prompt=user("Name a fruit."), responses=[{"content": text}], opinions=[opinion]))
    >>> [found] = gathered([rated("Plum.", 9.0), rated("Carrot.", 2.0), rated("Plum.", 8.0)])
    >>> found.rows, [opinion.worth for opinion in found.item.opinions]
    (3, [(9.0, None), (None, 2.0), (8.0, None)])
    """
    parts = [Part(None, held) for held in dealt(items, lot=0).values()]
    found = [each for part in parts for each in joined(part.rows())]
    for _, several in sorted(found, key=lambda each: each[0]):
        yield from (item.placed() for item in together(several))


def together(items: list[Item]) -> list[Item]:
    """All that is said of a prompt as one item, or one for every hundred responses."""
    if len(items) == 1:
        return items
    whole = Prompt(0)
    for item in items:
        whole.add((), item.where, item.head, item.rows, item.responses, item.said())
    return whole.items
