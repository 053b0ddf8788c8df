"""Tokenizing many pairs: druthers' data path against transformers' batched tokenization of the three fields.

    tokenisation.py PAIRS.jsonl [--pairs 100000] [--workers 2] [--rounds 2] [--check 2000] [--out result.json]

PAIRS.jsonl is a file that `druthers curate` writes. As many pairs as asked for are made of it: each takes one pair's
turns, has one word in eight replaced by any word of the file, and gets three words that stand nowhere else. So no two
prompts are alike, and new words keep coming. Every measurement is a process of its own, in turn
(A-B-B-A) for as many rounds. `ours` is everything: reading, checking, rendering, ids, the file of the cache.
`theirs` is `tokenizer(texts)` on lists of 1000 texts, prompts (turns joined, no template), chosen and rejected, with
the threads the library takes by itself; reading the JSON and rendering the prompts are timed apart, and are not in the
ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 1000
SIDES = ("prompt", "chosen", "rejected")
LIMITS = {"max_prompt": 1 << 20, "max_response": 512}
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs_file", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--check", type=int, default=2000, help="compare that many pairs with tokens.tokenize")
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--made", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make(source: Path, path: Path, *, count: int) -> None:
    """Write `count` different pairs."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    words = [word for row in rows for side in SIDES for turn in row[side] for word in turn["content"].split(" ")]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = rows[i % len(rows)]
            varied_row = {side: [varied(turn, words, draw) for turn in row[side]] for side in SIDES}
            for side in SIDES:
                new = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(5, 9)))
                varied_row[side][-1]["content"] += f" {new}."
            file.write(json.dumps(varied_row, ensure_ascii=False) + "\n")


def varied(turn: Row, words: list[str], draw: random.Random) -> Row:
    """A turn with some of its words replaced."""
    own = turn["content"].split(" ")
    for _ in range(len(own) // 8):
        own[draw.randrange(len(own))] = draw.choice(words)
    return {"role": turn["role"], "content": " ".join(own)}


def tokenizer_of(args: argparse.Namespace) -> Any:
    """The tokenizer of the model."""
    from druthers import models
    from druthers.config import ModelSettings

    return models.load_tokenizer(ModelSettings(path=args.model))


def peak_mib(*, children: int = 0) -> int:
    """The most memory of this process and, each taken as the largest, of its children."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int((own + children * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10)


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def ours(args: argparse.Namespace) -> Row:
    """Seconds to tokenize, to open what is cached, and to read the pairs of a step; the cache begins empty."""
    from druthers import corpus

    tokenizer = tokenizer_of(args)
    before = peak_mib()
    with tempfile.TemporaryDirectory(dir=args.made.parent) as cache:
        os.environ["DRUTHERS_CACHE"] = cache
        since, cpu = time.perf_counter(), cpu_seconds()
        pairs = corpus.tokenized(args.made, tokenizer, **LIMITS, workers=args.workers)
        took, cpu = time.perf_counter() - since, cpu_seconds() - cpu
        peak = peak_mib(children=args.workers)
        since = time.perf_counter()
        pairs = corpus.tokenized(args.made, tokenizer, **LIMITS, workers=args.workers)
        opened = time.perf_counter() - since
        draw = random.Random(0)
        steps = []
        for _ in range(200):
            since = time.perf_counter()
            _ = [pairs[draw.randrange(len(pairs))] for _ in range(16)]
            steps.append(time.perf_counter() - since)
        size = sum(file.stat().st_size for file in Path(cache).rglob("*.bin"))
    tokens = int((pairs.facts.lengths_B3 @ (1, 1, 1)).sum())
    step = 1000 * statistics.median(steps)
    return {
        "seconds": took,
        "cpu": cpu,
        "open": opened,
        "step_ms": step,
        "worst_step_ms": 1000 * max(steps),
        "peak_mib": peak,
        "before_mib": before,
        "file_mib": size >> 20,
        "tokens": tokens,
    }


def batches(path: Path) -> Iterator[list[Row]]:
    """The rows of a file, some at a time."""
    with path.open(encoding="utf-8") as file:
        while some := [json.loads(line) for line in itertools.islice(file, BATCH)]:
            yield some


def theirs(args: argparse.Namespace) -> Row:
    """Seconds to tokenize the three fields, and apart from that to read and to render."""
    tokenizer = tokenizer_of(args)
    before = peak_mib()
    found = {"seconds": 0.0, "cpu": 0.0, "read": 0.0, "render": 0.0}
    tokens = 0
    since = time.perf_counter()
    for rows in batches(args.made):
        texts = [["\n".join(turn["content"] for turn in row[side]) for row in rows] for side in SIDES]
        found["read"] += time.perf_counter() - since
        since, cpu = time.perf_counter(), cpu_seconds()
        encoded = [tokenizer(some)["input_ids"] for some in texts]
        found["seconds"] += time.perf_counter() - since
        found["cpu"] += cpu_seconds() - cpu
        tokens += sum(len(ids) for some in encoded for ids in some)
        since = time.perf_counter()
        tokenizer.apply_chat_template([row["prompt"] for row in rows], tokenize=False, add_generation_prompt=True)
        found["render"] += time.perf_counter() - since
        since = time.perf_counter()
    return found | {"peak_mib": peak_mib(), "before_mib": before, "tokens": tokens}


def check(args: argparse.Namespace) -> Row:
    """Compare pairs of the source, and of what was made of it, with one pair at a time."""
    from druthers import storage
    from druthers.blocks import BlockTokenizer, TokenizedPairs
    from druthers.records import Pair
    from druthers.tokens import tokenize

    tokenizer = tokenizer_of(args)
    many = BlockTokenizer(tokenizer, **LIMITS)
    compared = 0
    for path in (args.pairs_file, args.made):
        records = list(itertools.islice(storage.read(str(path), Pair), args.check))
        block, refused = many.sort(records)
        good = [record for i, record in enumerate(records) if i not in refused]
        for record, pair in zip(good, TokenizedPairs([block]), strict=True):
            if tokenize(record, tokenizer, **LIMITS) != pair:
                raise SystemExit(f"pair {record.id} of {path} has other ids")
        compared += len(good)
    return {"compared": compared, "way": many.encoder.way, "framed": all(many.writer.frames.values())}


def measured(args: argparse.Namespace, made: Path, what: str) -> Row:
    """One process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--made", str(made), "--one", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    print(what, {key: round(value, 3) for key, value in found.items() if not isinstance(value, str)}, flush=True)
    return found | {"what": what}


def main() -> None:
    """Measure all, print the table."""
    args = options()
    if args.one:
        print(json.dumps({"ours": ours, "theirs": theirs, "check": check}[args.one](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "pairs.jsonl"
        make(args.pairs_file, made, count=args.pairs)
        size = made.stat().st_size
        exact = measured(args, made, "check")
        rows = [measured(args, made, what) for what in ["ours", "theirs", "theirs", "ours"] * args.rounds]
    of = {what: [row for row in rows if row["what"] == what] for what in ("ours", "theirs")}
    neighbours = [{row["what"]: row["seconds"] for row in two} for two in zip(rows[::2], rows[1::2], strict=True)]
    ratios = sorted(two["theirs"] / two["ours"] for two in neighbours)
    print(f"{args.pairs:,} pairs, {size / 2**20:,.0f} MiB of JSON, {exact['compared']:,} compared and equal")
    print("| | seconds, median (all) | pairs a second | processor seconds | peak MiB (before) |")
    print("|---|---|---|---|---|")
    for what, some in of.items():
        seconds = [row["seconds"] for row in some]
        each = ", ".join(f"{s:.1f}" for s in seconds)
        peak, before = (max(row[key] for row in some) for key in ("peak_mib", "before_mib"))
        middle, cpu = statistics.median(seconds), statistics.median(row["cpu"] for row in some)
        print(f"| {what} | {middle:.1f} ({each}) | {args.pairs / middle:,.0f} | {cpu:.1f} | {peak:,} ({before:,}) |")
    print(f"theirs / ours: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")
    for key, what in (("read", "theirs"), ("render", "theirs"), ("open", "ours"), ("step_ms", "ours")):
        print(f"{what}, {key}: {statistics.median(row[key] for row in of[what]):.3f}")
    if args.out:
        args.out.write_text(json.dumps({"runs": rows, "ratios": ratios, "check": exact}, indent=1) + "\n")


if __name__ == "__main__":
    main()
