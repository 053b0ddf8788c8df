"""Rebuild the packaged set brand-voice: prompts -> candidates -> graded pairs -> training and held-out files.

    python scripts/build_brand_voice.py                           # everything, into the package
    python scripts/build_brand_voice.py --limit 20 --out try-out  # a taste, elsewhere
    python scripts/build_brand_voice.py --keep-candidates         # the rubric changed: judge and split again

The answers are those of `druthers sample` and the training pairs those of `druthers judge`; this script only fixes
their settings, leaves out answers that hold control tokens, splits by prompt, and counts. The held-out prompts have a
file of their own, looked at twice (the data card says how); a tenth of the others are for its development and never
trained on. A pair of either is the best against the worst answer of its prompt, whatever the two look like: what is
measured is not picked to be learned easily.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from druthers import models, pipeline, storage
from druthers.config import ModelSettings
from druthers.curate import pairs_from_ranking
from druthers.curate.split import WHOLE, draw
from druthers.judges import load_rubric, rate
from druthers.records import Candidates, InputError, Pair, assistant, text_of
from druthers.tokens import check_text

HOME = Path(__file__).parents[1] / "src" / "druthers" / "data" / "brand-voice"
SAMPLES = 4
TEMPERATURE = 0.9
TOP_P = 0.95
MAX_NEW_TOKENS = 96
BATCH_SIZE = 32
MARGIN_SCALE = 1.0
MOST = 1
LENGTH_COST = 0.0
DEVELOPMENT_SHARE = 0.1
LARGEST = 3_000_000
PARTS = ("", "heldout_")
"""What the names of the files begin with: prompts to train on and try the recipe on, and those held out."""


class Log:
    """Progress as lines of text, at most one in twenty seconds."""

    def stage(self, text: str) -> None:
        """A stage begins."""
        print(f"== {text}", flush=True)

    def say(self, text: str) -> None:
        """One line of what was found."""
        print(text, flush=True)

    def bar(self, label: str) -> Callable[[int, int], None]:
        """A callback that prints how far it is."""
        start = last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 20:
                last = time.monotonic()
                print(f"   {label}: {done} of {total or 'all'}, {last - start:.0f} s", file=sys.stderr, flush=True)

        return show

    def clear(self) -> None:
        """Nothing to clear."""


def main() -> None:
    """Build the set, or say in one sentence why not."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path, default=HOME, help="folder for the files (default: the package)")
    options.add_argument("--limit", type=int, help="only the first N prompts")
    options.add_argument("--seed", type=int, default=0, help="root of the sampling")
    options.add_argument("--keep-candidates", action="store_true", help="judge the answers that are there already")
    chosen = options.parse_args()
    if chosen.limit and chosen.out == HOME:
        options.error("--limit makes a part of the set; name another folder with --out")
    try:
        build(chosen.out, limit=chosen.limit, seed=chosen.seed, keep=chosen.keep_candidates)
    except InputError as error:
        sys.exit(f"error: {error}")


def build(out: Path, *, limit: int | None, seed: int, keep: bool) -> None:
    """Sample, judge, split, count."""
    log = Log()
    out.mkdir(parents=True, exist_ok=True)
    if not keep:
        log.stage("sample")
        for part in PARTS:
            sample(HOME / f"{part}prompts.jsonl", out / f"{part}candidates.jsonl.gz", limit=limit, seed=seed, log=log)
    log.stage("judge")
    rows, held = (list(storage.read(str(out / f"{part}candidates.jsonl.gz"), Candidates)) for part in PARTS)
    apart = {row.prompt_id for row in rows if draw(row.prompt, seed=0) < DEVELOPMENT_SHARE * WHOLE}
    learn(out, [row for row in rows if row.prompt_id not in apart], log=log)
    measure(out / "development.jsonl.gz", [row for row in rows if row.prompt_id in apart])
    measure(out / "heldout.jsonl.gz", held)
    report(out, log=log)


def measure(out: Path, rows: list[Candidates]) -> None:
    """The best answer to each prompt against the worst."""
    rubric = load_rubric("brand-voice")
    rated = [rate(rubric, row) for row in rows]
    storage.write(out, [pair for row in rated for pair in pairs_from_ranking(row, margin_scale=MARGIN_SCALE, most=1)])


def sample(prompts: Path, candidates: Path, *, limit: int | None, seed: int, log: Log) -> None:
    """Answers of the default model to every prompt."""
    pipeline.sample(
        str(prompts),
        candidates,
        model=ModelSettings(),
        samples=SAMPLES,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=BATCH_SIZE,
        seed=seed,
        limit=limit,
        screen=log,
    )
    tokenizer = models.load_tokenizer(ModelSettings())
    rows = list(storage.read(str(candidates), Candidates))
    clean = [usable(row, tokenizer, log=log) for row in rows]
    storage.write(candidates, [row for row in clean if row.responses])


def usable(row: Candidates, tokenizer: Any, *, log: Log) -> Candidates:
    """The answers that can be trained on: those without text that would read as template structure."""
    kept = []
    for response in row.responses:
        try:
            check_text(assistant(response.content), tokenizer)
        except InputError as error:
            log.say(f"   left out: {error}")
        else:
            kept.append(response)
    return row.model_copy(update={"responses": tuple(kept)})


def learn(out: Path, rows: list[Candidates], *, log: Log) -> None:
    """The training pairs: what `druthers judge` makes of the answers to the training prompts."""
    part = out / ".train-candidates.jsonl"
    storage.write(part, rows)
    try:
        pipeline.judge(
            str(part),
            out / "train.jsonl.gz",
            rubric="brand-voice",
            margin_scale=MARGIN_SCALE,
            most=MOST,
            length_cost=LENGTH_COST,
            screen=log,
        )
    finally:
        part.unlink(missing_ok=True)


def report(out: Path, *, log: Log) -> None:
    """Counts for the data card, under the names it uses, and how the rubric spreads the answers."""
    rubric, tokenizer = load_rubric("brand-voice"), models.load_tokenizer(ModelSettings())
    candidates = [out / f"{part}candidates.jsonl.gz" for part in PARTS]
    rated = [rate(rubric, row) for file in candidates for row in storage.read(str(file), Candidates)]
    sides = {
        side: list(storage.read(str(out / f"{side}.jsonl.gz"), Pair)) for side in ("train", "development", "heldout")
    }
    pairs = [pair for side in sides.values() for pair in side]
    scores = {(row.prompt_id, r.content): r.score or 0.0 for row in rated for r in row.responses}
    size = sum(file.stat().st_size for file in out.glob("*.jsonl*"))
    counts = {
        "responses": sum(len(row.responses) for row in rated),
        "pairs": len(pairs),
        **{f"{side}_pairs": len(some) for side, some in sides.items()},
        **{f"{side}_prompts": len({pair.prompt_id for pair in some}) for side, some in sides.items()},
        "chosen_tokens_mean": round(mean(len(tokenizer.encode(text_of(p.chosen))) for p in pairs), 1),
        "rejected_tokens_mean": round(mean(len(tokenizer.encode(text_of(p.rejected))) for p in pairs), 1),
        "chosen_score_mean": round(mean(scores[p.prompt_id, text_of(p.chosen)] for p in pairs), 3),
        "rejected_score_mean": round(mean(scores[p.prompt_id, text_of(p.rejected)] for p in pairs), 3),
        "score_mean": round(mean(scores.values()), 3),
        "bytes": size,
    }
    for name, value in counts.items():
        log.say(f"{name:>22} {value}")
    log.say("share of answers that keep each rule:")
    for rule in rubric.rules:
        log.say(f"{rule.name:>22} {mean(r.rules[rule.name] for row in rated for r in row.responses):.3f}")
    if size > LARGEST:
        sys.exit(f"error: the files take {size} bytes, over the {LARGEST} that the package may carry; lower SAMPLES")


if __name__ == "__main__":
    main()
