"""Times every number of the data quality page on made-up pairs: python benchmarks/quality/speed.py [rows].

Processor seconds of this process, one thread where OMP_NUM_THREADS=1; texts are timed on the packaged candidates.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from druthers.curate import hygiene as texts
from druthers.curate import pii, surface
from druthers.curate.quality import bias, chosen, hygiene, learn, margin, noise, shortcut


def timed(name: str, work: Callable[[], Any], *, per: int = 0) -> None:
    before = time.process_time()
    work()
    took = time.process_time() - before
    print(f"{name:28s} {took * 1e6 / per:9.1f} us each" if per else f"{name:28s} {took:9.2f} s")


def on_texts() -> None:
    packed = resources.files("druthers").joinpath("data/brand-voice/candidates.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    answers = [response["content"] for row in rows for response in row["responses"]]
    pool = iter(" ".join(answers).split(" "))
    hundred = [" ".join(part) for part in zip(*[pool] * 100, strict=False)]
    print(f"{len(answers)} answers, {np.mean([len(a.split()) for a in answers]):.0f} words on average")
    for name, some in (("all", answers), ("of 100 words", hundred)):
        timed(f"surface, {name}", lambda some=some: [surface.surface(a) for a in some], per=len(some))
        timed(f"faults, {name}", lambda some=some: [texts.faults(a) for a in some], per=len(some))
        timed(f"redact, {name}", lambda some=some: [pii.redact(a) for a in some], per=len(some))


def on_rows(count: int) -> None:
    draw = np.random.default_rng(0)
    prompt = draw.integers(count // 2, size=count)
    annotator = draw.integers(200, size=count)
    difference = np.column_stack(
        [300 * draw.normal(size=count), draw.integers(-3, 4, count), draw.integers(-1, 2, count)]
    )
    won = draw.integers(0, 3, count) / 2
    sides = [draw.poisson(3, size=(count, len(surface.NAMES))).astype(np.float32) for _ in range(2)]
    bits = [np.where(draw.random(count) < 0.02, texts.BIT["cut"], 0).astype(np.uint32) for _ in range(2)]
    refused = tuple(draw.random(count) < 0.05 for _ in range(2))
    logp = [-100 * draw.random(count) for _ in range(2)]
    feature = draw.normal(size=(count, 64)).astype(np.float32)
    feature[:, 0] = np.abs(feature[:, 0]) * np.where(draw.random(count) < 0.2, -1, 1)
    print(f"{count} pairs")
    timed("bias, by prompt", lambda: bias.bias(difference, won, prompt, position=True))
    timed("bias, by annotator", lambda: bias.bias(difference, won, annotator, position=True))
    always = np.abs(difference[:, :1]) * [[1, 0, 0]] + difference * [[0, 1, 1]]
    timed("bias, longer always wins", lambda: bias.bias(always, np.ones(count), prompt, position=False))
    timed("shortcut", lambda: shortcut.shortcut(*sides, prompt, seed=0))
    timed("noise, 64 features", lambda: noise.noise(feature, prompt, seed=0))
    timed("information", lambda: margin.information(np.ones(count), logp[0] + 100, -logp[1], prompt))
    timed("learnability", lambda: learn.learnability(*logp, prompt, beta=0.1))
    timed("chosen", lambda: chosen.chosen(logp[0] + 100, prompt, threshold=10))
    timed("hygiene", lambda: hygiene.check(*bits, prompt, refused=refused))


if __name__ == "__main__":
    on_texts()
    on_rows(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
