"""Write an id file: `ids.py SHAPE FOLDER --model FOLDER --count N [--hh train.jsonl.gz]`; needs druthers.

The file is named by the digest of its pairs, so that the pairs of another file are never taken for these.

HH with `--hh` are pairs of Anthropic's HH transcripts, curated by `druthers curate --recipe hh` and drawn with a fixed
seed. All other shapes are random ids with log-normal lengths, the same every time: only their time is measured.
`fixed-N` are pairs of N tokens with a prompt of N/2 and two responses of N/4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean

import cell

SEED = 0
CONTROL = 100
"""Ids below are left out: control tokens stand there."""


@dataclass(frozen=True)
class LogNormal:
    """Lengths by mean and coefficient of variation, at most `cut`."""

    mean: float
    cv: float
    cut: int

    def lengths(self, count: int, draw: random.Random) -> list[int]:
        """`count` lengths, one from the middle of each of `count` equally likely parts, in random order."""
        spread = math.sqrt(math.log(1 + self.cv**2))
        normal = NormalDist(math.log(self.mean) - spread**2 / 2, spread)
        found = [round(math.exp(normal.inv_cdf((i + 0.5) / count))) for i in range(count)]
        draw.shuffle(found)
        return [max(2, min(length, self.cut)) for length in found]


SHAPES = {
    "hh": (LogNormal(175, 0.8, 1024), LogNormal(70, 0.8, 512)),
    "uf": (LogNormal(175, 1.0, 1024), LogNormal(300, 0.6, 1024)),
    "tldr": (LogNormal(350, 0.25, 1024), LogNormal(35, 0.3, 512)),
    "rag": (LogNormal(2000, 0.3, 4096), LogNormal(200, 0.5, 1024)),
}
"""Prompt and response of the HH-, UltraFeedback-, TL;DR- and retrieval-like shapes."""


def synthetic(shape: str, *, count: int, words: int) -> list[cell.Ids]:
    """Random ids below `words` with the lengths of a shape.

    >>> [pair.naive for pair in synthetic("fixed-128", count=2, words=1000)]
    [192, 192]
    """
    draw = random.Random(f"{shape} {SEED}")
    if shape.startswith("fixed-"):
        total = int(shape.removeprefix("fixed-"))
        lengths = [(total // 2, total // 4, total // 4)] * count
    else:
        prompt, response = SHAPES[shape]
        columns = [kind.lengths(count, draw) for kind in (prompt, response, response)]
        lengths = list(zip(*columns, strict=True))

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(CONTROL, words) for _ in range(length))

    return [cell.Ids(*(ids(length) for length in triple)) for triple in lengths]


def curated(hh: Path, *, count: int, model: str) -> list[cell.Ids]:
    """A seeded draw of the curated HH pairs, tokenized as a run does it."""
    from druthers import models, storage
    from druthers.config import ModelSettings
    from druthers.records import Pair
    from druthers.tokens import tokenize

    with tempfile.TemporaryDirectory() as scratch:
        place = f"{scratch}/run"
        command = [sys.executable, "-c", "from druthers.cli import main; main()", "curate", "--recipe", "hh"]
        command += ["--data", str(hh), "--run", place, f"model.path={model}", "data.heldout_share=0.01"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        pairs = list(storage.read(f"{place}/data/train.jsonl", Pair))
    tokenizer = models.load_tokenizer(ModelSettings(path=model))
    drawn = random.Random(SEED).sample(sorted(pairs, key=lambda pair: pair.id), count)
    found = [tokenize(pair, tokenizer, max_prompt=1024, max_response=512) for pair in drawn]
    return [cell.Ids(pair.prompt, pair.chosen, pair.rejected) for pair in found]


def lengths_of(pairs: Sequence[cell.Ids]) -> dict[str, float]:
    """Mean tokens of prompt, chosen and rejected."""
    return {name: round(fmean(len(getattr(p, name)) for p in pairs), 1) for name in ("prompt", "chosen", "rejected")}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--hh", type=Path)
    args = parser.parse_args()
    words = json.loads((Path(args.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    real = args.shape == "hh" and args.hh is not None
    found = (
        curated(args.hh, count=args.count, model=args.model)
        if real
        else synthetic(args.shape, count=args.count, words=words)
    )
    rows = [[list(pair.prompt), list(pair.chosen), list(pair.rejected)] for pair in found]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    source = "Anthropic HH harmless" if real else "random ids"
    whole = {"shape": args.shape, "source": source, "sha256": digest, "mean": lengths_of(found), "pairs": rows}
    cell.write_json(args.folder / f"{args.shape}-{digest[:12]}.json", whole)


if __name__ == "__main__":
    main()
