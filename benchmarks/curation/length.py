"""Whether a taste for length is flagged where it is, and not where it is not: the bias regression on planted sets.

    length.py [--seeds 20] [--pairs 2000] [--whole 2] [--out result.json]

For every seed three sets of pairs: in the first the longer answer is always chosen, in the second with a chance of
60 %, in the third by a coin. Texts are those of pairs.py, answers of 20 to 130 words, one in five no prose. Each set
goes through what `druthers curate` measures and finds of it (surface, regression, findings), the first `--whole` seeds
through the whole of `curate`, held-out part and all, as well. A set is flagged where D4.length or D4.length_alone warns
or fails. Status 1 where a biased set is not flagged, or without an interval of D4.length, or more than one clean set of
twenty is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pairs import Row, Writer, line, pair, said, words_of

from druthers import config
from druthers.curate import curate
from druthers.curate.quality import bias
from druthers.curate.surface import surface
from druthers.models import load_tokenizer

LONGER = {"biased": 1.0, "mild": 0.6, "clean": 0.5}
"""Chance that the longer answer is chosen."""


@dataclass
class Seen:
    """Of the sets of one kind: how many there were, how many are flagged, how many of those without an interval of
    D4.length, and its values in points."""

    sets: int = 0
    flagged: int = 0
    without_interval: int = 0
    points: list[float] = field(default_factory=list)

    def add(self, found: list[dict[str, Any]]) -> None:
        """Book the findings of one set."""
        about = {one["id"]: one for one in found if one["id"] in ("D4.length", "D4.length_alone")}
        whole = about["D4.length"]
        flagged = any(one["status"] in ("warn", "fail") for one in about.values())
        self.sets += 1
        self.flagged += flagged
        self.without_interval += flagged and not whole["low"] < whole["high"]
        self.points.append(round(whole["value"], 2))


def rows(writer: Writer, *, count: int, longer: float) -> list[Row]:
    """Pairs of which the longer answer is chosen so often."""
    made = []
    for _ in range(count):
        prompt, *answers = said(writer.row())
        answers.sort(key=len, reverse=writer.draw.random() < longer)
        made.append(pair(prompt, *answers))
    return made


def regressed(made: list[Row]) -> list[dict[str, Any]]:
    """The findings about bias, from the texts."""
    chosen, rejected = (np.array([surface(said(row)[side]) for row in made], dtype=np.float32) for side in (1, 2))
    apart = bias.differences(chosen, rejected)
    found = bias.findings(bias.bias(apart, np.ones(len(made)), np.arange(len(made)), position=False))
    return [one.model_dump() for one in found]


def curated(made: list[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """The findings of quality.json."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "pairs.jsonl"
        source.write_text("".join(map(line, made)), encoding="utf-8")
        curate(config.load(extra={"data.pairs": str(source)}), out=Path(place), tokenizer=tokenizer)
        found: list[dict[str, Any]] = json.loads((Path(place) / "quality.json").read_text("utf-8"))["findings"]
    return found


def measure(*, seeds: int, pairs: int, whole: int) -> dict[str, dict[str, Seen]]:
    """All sets of the three kinds, by the regression alone and by the whole command."""
    words, tokenizer = words_of(None), load_tokenizer(config.load().model)
    seen = {way: {kind: Seen() for kind in LONGER} for way in ("regression", "whole")}
    for seed in range(seeds):
        for kind, longer in LONGER.items():
            made = rows(Writer(words, seed), count=pairs, longer=longer)
            seen["regression"][kind].add(regressed(made))
            if seed < whole:
                seen["whole"][kind].add(curated(made, tokenizer))
    return seen


def held(seen: dict[str, Seen]) -> bool:
    """Whether the bars are met."""
    biased, clean = seen["biased"], seen["clean"]
    return biased.flagged == biased.sets and not biased.without_interval and clean.flagged <= clean.sets // 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--whole", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seen = measure(seeds=args.seeds, pairs=args.pairs, whole=args.whole)
    ways = {way: {kind: asdict(one) for kind, one in kinds.items()} for way, kinds in seen.items()}
    verdict = "pass" if all(map(held, seen.values())) else "fail"
    result = {"seeds": args.seeds, "pairs": args.pairs} | ways | {"verdict": verdict}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(verdict != "pass")


if __name__ == "__main__":
    main()
