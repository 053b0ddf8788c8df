"""Pairs with planted faults, as many as wanted: texts are put together from passages of real ones, seeded.

    pairs.py OUT.jsonl --pairs 1000000 [--faults 200] [--heldout HELDOUT.jsonl] [--text FILE.jsonl[.gz]]

Beside OUT.jsonl it writes OUT.faults.json: for every kind of fault the lines that have it (of a contradiction both).
With --heldout it writes a held-out file too, of passages that no other row has, and plants prompts of it. Words come
from the packaged brand-voice set, or from every text of the file named by --text; what might be personal data or a
token of a template is left out of them. One plain answer in five is no prose: lists and names without a full stop,
code, letters, numbers of all kinds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from texts import CONTROL, PERSONAL, TOKENS, broken_off, dressed

Row = dict[str, Any]
KINDS = (
    "duplicate", "near_duplicate", "contradiction", "same_response", "empty", "tokens", "personal", "truncated", "leak",
)  # fmt: skip
"""The last one takes held-out prompts."""
HELD_OUT = 1000
"""Held-out pairs."""
UNFIT = re.compile(r"@|\d{3}|://|[<>|\[\]`~{}]|\W{3}|-.*-|\..*\.\S")
"""Words that passages leave out: what is planted must be all there is of its kind."""


def words_of(path: Path | None) -> list[str]:
    """All fit words of a file of JSON lines, in order."""
    found: list[str] = []
    path = path or Path(str(resources.files("druthers"))) / "data" / "brand-voice" / "train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            for text in texts_in(json.loads(line)):
                found += text.replace("Human:", " ").replace("Assistant:", " ").split()
    return [word for word in found if not UNFIT.search(word)]


def texts_in(value: object) -> Iterator[str]:
    """Every text of more than one word inside a value."""
    if isinstance(value, str) and " " in value:
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


class Writer:
    """Rows of passages, drawn with a seed."""

    def __init__(self, words: list[str], seed: int) -> None:
        self.words, self.draw = words, random.Random(seed)

    def text(self, least: int, most: int) -> str:
        """Some sentences of passages of 5 to 12 words."""
        left, parts = self.draw.randint(least, most), []
        while left > 0:
            count = min(left, self.draw.randint(5, 12))
            start = self.draw.randrange(len(self.words) - 12)
            parts.append(" ".join(self.words[start : start + count]).strip(".,"))
            left -= count
        return ". ".join(parts) + "."

    def row(self) -> Row:
        """A pair of about 1.2 kB."""
        return pair(self.text(8, 80), self.answer(), self.answer())

    def answer(self) -> str:
        """Prose, or in one of five cases something else."""
        text = self.text(20, 130)
        return dressed(text, self.draw) if self.draw.random() < 0.2 else text

    def nearly(self, text: str) -> str:
        """The text with another case and another spacing, and from twelve words on one in twenty exchanged."""
        words = text.split()
        for _ in range(max(len(words) >= 12, len(words) // 20)):
            words[self.draw.randrange(len(words))] = self.draw.choice(self.words)
        return "  ".join([words[0].upper(), *words[1:]])

    def within(self, text: str, planted: str) -> str:
        """The text with something said in the middle of it."""
        words = text.split(" ")
        place = self.draw.randint(1, len(words) - 1)
        return " ".join([*words[:place], planted, *words[place:]])


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    """A conversational row."""
    texts = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    return {side: [{"role": role, "content": text}] for side, (role, text) in texts.items()}


def said(row: Row) -> list[str]:
    """Its three texts."""
    return [row[side][0]["content"] for side in ("prompt", "chosen", "rejected")]


# ---------------------------------------------------------------- one row of each kind


def duplicate(_: Writer, row: Row) -> Row:
    """The same row again."""
    return row


def near_duplicate(writer: Writer, row: Row) -> Row:
    """Its texts with a few other words, another case and another spacing."""
    return pair(*map(writer.nearly, said(row)))


def contradiction(_: Writer, row: Row) -> Row:
    """The other response is chosen."""
    prompt, chosen, rejected = said(row)
    return pair(prompt, rejected, chosen)


def same_response(writer: Writer, row: Row) -> Row:
    """One response on both sides, for one in four with white space behind it."""
    prompt, chosen, _ = said(row)
    behind = writer.draw.choice(("", "", "", "\n"))
    return pair(prompt, chosen, chosen + behind)


def empty(writer: Writer, row: Row) -> Row:
    """One of the responses, or in one of five rows the prompt, holds nothing but white space."""
    texts, blank = said(row), writer.draw.choice(("", " \n", "\t", "\u00a0"))
    texts[writer.draw.choice((0, 1, 1, 2, 2))] = blank
    return pair(*texts)


def tokens(writer: Writer, row: Row) -> Row:
    """Tokens of the model's template or of another one, or control characters, in any of the texts."""
    texts, place = said(row), writer.draw.randrange(3)
    planted = writer.draw.choice(TOKENS + CONTROL)
    texts[place] = writer.draw.choice((f"{texts[place]}{planted}", writer.within(texts[place], planted)))
    return pair(*texts)


def personal(writer: Writer, row: Row) -> Row:
    """A mail address, telephone number, IBAN or card in any of the texts."""
    texts, place = said(row), writer.draw.randrange(3)
    texts[place] = writer.within(texts[place], writer.draw.choice(PERSONAL)(writer.draw))
    return pair(*texts)


def truncated(writer: Writer, row: Row) -> Row:
    """One of the responses breaks off within a sentence."""
    texts, place = said(row), writer.draw.choice((1, 2))
    texts[place] = broken_off(writer.text(20, 130), writer.draw)
    return pair(*texts)


def leak(writer: Writer, row: Row) -> Row:
    """A held-out prompt with other responses: as it is, in another case and spacing, or with a few other words."""
    prompt, _, _ = said(row)
    as_it_is, spelled = prompt, f" {prompt.upper()}\n"
    return pair(writer.draw.choice((as_it_is, spelled, writer.nearly(prompt))), writer.answer(), writer.answer())


MADE: dict[str, Callable[[Writer, Row], Row]] = {
    "duplicate": duplicate,
    "near_duplicate": near_duplicate,
    "contradiction": contradiction,
    "same_response": same_response,
    "empty": empty,
    "tokens": tokens,
    "personal": personal,
    "truncated": truncated,
    "leak": leak,
}
COPIES = ("duplicate", "near_duplicate", "contradiction")
"""Made of a row that stands before them."""


# ---------------------------------------------------------------- the file


def rows(writer: Writer, *, count: int, faults: int, heldout: list[Row]) -> Iterator[tuple[Row, list[tuple[str, int]]]]:
    """`count` rows, each with the faults that it brings and the lines that have them.

    The first half is plain; in the second half the faults stand in random places, each kind `faults` times.
    """
    kinds = [kind for kind in KINDS if kind != "leak" or heldout]
    half, draw = count // 2, writer.draw
    fates = [kind for kind in kinds for _ in range(faults)]
    draw.shuffle(fates)
    planted = dict(zip(draw.sample(range(half, count), len(fates)), fates, strict=True))
    models = set(draw.sample(range(half), faults * len(COPIES)))
    kept: list[tuple[int, Row]] = []
    leaks = iter(draw.sample(heldout, faults) if heldout else ())
    for i in range(count):
        kind = planted.get(i, "")
        number, row = kept.pop() if kind in COPIES else (0, next(leaks) if kind == "leak" else writer.row())
        if i in models:
            kept.append((i + 1, row))
        lines = [i + 1, number] if kind == "contradiction" else [i + 1]
        yield MADE[kind](writer, row) if kind else row, [(kind, line) for line in lines if kind]
        if i == half:
            draw.shuffle(kept)


def write(out: Path, writer: Writer, *, count: int, faults: int, heldout: Path | None = None) -> None:
    """The file, the held-out one, and the places of the faults."""
    held = []
    if heldout:
        last = len(writer.words) * 9 // 10
        own, writer.words = Writer(writer.words[last:], writer.draw.randrange(1 << 32)), writer.words[:last]
        held = [own.row() for _ in range(HELD_OUT)]
        heldout.write_text("".join(map(line, held)), encoding="utf-8")
    places: dict[str, list[int]] = {}
    with out.open("w", encoding="utf-8") as file:
        for row, faulty in rows(writer, count=count, faults=faults, heldout=held):
            file.write(line(row))
            for fault, number in faulty:
                places.setdefault(fault, []).append(number)
    places = {fault: sorted(numbers) for fault, numbers in sorted(places.items())}
    out.with_suffix(".faults.json").write_text(json.dumps(places), encoding="utf-8")


def line(row: Row) -> str:
    """A row as a line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--heldout", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    writer = Writer(words_of(args.text), args.seed)
    write(args.out, writer, count=args.pairs, faults=args.faults, heldout=args.heldout)


if __name__ == "__main__":
    main()
