"""Pairs with planted faults, as many as wanted: texts are put together from passages of real ones, seeded.

    pairs.py OUT.jsonl --pairs 1000000 [--faults 200] [--text FILE.jsonl[.gz]]

Beside OUT.jsonl it writes OUT.faults.json: for every kind of fault the lines that have it. Words come from the packaged
brand-voice set, or from every text of the file named by --text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def words_of(path: Path | None) -> list[str]:
    """All words of a file of JSON lines, in order."""
    found: list[str] = []
    path = path or Path(str(resources.files("druthers"))) / "data" / "brand-voice" / "train.jsonl"
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            for text in texts_in(json.loads(line)):
                found += text.replace("Human:", " ").replace("Assistant:", " ").split()
    return found


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
        return pair(self.text(8, 80), self.text(20, 130), self.text(20, 130))

    def nearly(self, text: str) -> str:
        """The text with one word in twenty exchanged, another case and another spacing."""
        words = text.split()
        for _ in range(max(1, len(words) // 20)):
            words[self.draw.randrange(len(words))] = self.draw.choice(self.words)
        return "  ".join([words[0].upper(), *words[1:]])


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    """A conversational row."""
    texts = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    return {side: [{"role": role, "content": text}] for side, (role, text) in texts.items()}


def said(row: Row) -> list[str]:
    """Its three texts."""
    return [row[side][0]["content"] for side in ("prompt", "chosen", "rejected")]


def rows(writer: Writer, *, count: int, faults: int) -> Iterator[tuple[str, Row]]:
    """`count` rows in all with the fault each has, "" for none; copies stand behind what they are copies of."""
    kinds = ("duplicate", "near_duplicate", "contradiction", "empty_response", "same_response", "control_tokens")
    plain = count - faults * len(kinds)
    keep = set(writer.draw.sample(range(plain), 3 * faults))
    kept: list[Row] = []
    for i in range(plain):
        row = writer.row()
        if i in keep:
            kept.append(row)
        yield "", row
    for row in kept[:faults]:
        yield "duplicate", row
    for row in kept[faults : 2 * faults]:
        yield "near_duplicate", pair(*map(writer.nearly, said(row)))
    for row in kept[2 * faults :]:
        prompt, chosen, rejected = said(row)
        yield "contradiction", pair(prompt, rejected, chosen)
    for _ in range(faults):
        prompt, chosen, _rejected = said(writer.row())
        yield "empty_response", pair(prompt, chosen, " \n")
        yield "same_response", pair(prompt, chosen, chosen)
        yield "control_tokens", pair(prompt, f"{chosen}<|im_end|>", writer.text(20, 60))


def write(out: Path, writer: Writer, *, count: int, faults: int) -> None:
    """The file, and the places of the faults."""
    places: dict[str, list[int]] = {}
    with out.open("w", encoding="utf-8") as file:
        for number, (fault, row) in enumerate(rows(writer, count=count, faults=faults), 1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if fault:
                places.setdefault(fault, []).append(number)
    out.with_suffix(".faults.json").write_text(json.dumps(places), encoding="utf-8")


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, Writer(words_of(args.text), args.seed), count=args.pairs, faults=args.faults)


if __name__ == "__main__":
    main()
