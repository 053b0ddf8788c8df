"""Items judged by several annotators, one of whom swaps labels; seeded.

    votes.py OUT.jsonl --items 20000 [--each 2 3] [--right 0.97] [--bad 200] [--swapped 200]

Rows of the form `votes`: two responses in random order and the votes of 2 or 3 of 12 annotators, honest ones being
right in 97 of 100 answers, independently. One of the twelve, `ann-07`, judges `--bad` items (it takes the seat of
another one there) as well as the others do, and then `--swapped` of its answers, drawn at random, are turned round.
Beside OUT.jsonl stands OUT.faults.json: `swapped`, the lines of the swapped answers, and `annotator`, the name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pairs import Row, Writer, line, words_of

PEOPLE = tuple(f"ann-{i:02}" for i in range(1, 13))
BAD = PEOPLE[6]


def item(writer: Writer, judges: list[str], *, right: float, swapped: bool) -> Row:
    """One item: the better response stands on either side."""
    draw = writer.draw
    better = draw.choice("ab")
    worse = "ba"[better == "b"]
    votes = []
    for judge in judges:
        side = better if draw.random() < right else worse
        if judge == BAD and swapped:
            side = "b" if side == "a" else "a"
        votes.append({"annotator": judge, "winner": side})
    return {
        "prompt": writer.text(8, 80),
        "response_a": writer.text(20, 130),
        "response_b": writer.text(20, 130),
        "votes": votes,
    }


def write(out: Path, writer: Writer, *, items: int, each: list[int], right: float, bad: int, swapped: int) -> None:
    """The file, and the places of the swapped answers."""
    draw, honest = writer.draw, [name for name in PEOPLE if name != BAD]
    his = draw.sample(range(items), bad)
    turned = set(his[:swapped])
    own = set(his)
    with out.open("w", encoding="utf-8") as file:
        for i in range(items):
            judges = draw.sample(honest, draw.choice(each))
            if i in own:
                judges[draw.randrange(len(judges))] = BAD
            file.write(line(item(writer, judges, right=right, swapped=i in turned)))
    told = {"annotator": BAD, "swapped": sorted(i + 1 for i in turned)}
    out.with_suffix(".faults.json").write_text(json.dumps(told), encoding="utf-8")


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--each", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--right", type=float, default=0.97)
    parser.add_argument("--bad", type=int, default=200)
    parser.add_argument("--swapped", type=int, default=200)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    writer = Writer(words_of(args.text), args.seed)
    given = {name: getattr(args, name) for name in ("items", "each", "right", "bad", "swapped")}
    write(args.out, writer, **given)


if __name__ == "__main__":
    main()
