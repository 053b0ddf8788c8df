"""What a run would work on: its pairs as tokens, how many there will be, and the prompts it will answer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from druthers import storage
from druthers.config import Settings
from druthers.corpus import tokenized
from druthers.curate import curate, fingerprint
from druthers.evaluate import KL_SAMPLES, held_out_prompts
from druthers.evaluate.answers import Messages, choose_prompts
from druthers.records import InputError, Pair
from druthers.run import CURATED, Run
from druthers.tokens import TokenizedPair

WHOLE = 20_000
"""Rows up to which all of them are curated; of more, a sample."""
SAMPLE = 4_000


@dataclass(frozen=True)
class Workload:
    """Pairs of both sides (all of them, or a sample), `train` and `held` as many as there will be, prompts to answer.

    `seconds` is what curation will take: 0 where the run has done it; `along` counts prompts answered in training.
    """

    pairs: Sequence[TokenizedPair]
    heldout: Sequence[TokenizedPair]
    train: int
    held: int
    prompts: Sequence[Messages]
    kl_prompts: Sequence[Messages]
    how: str
    seconds: float
    along: int = 0

    @property
    def kl_answers(self) -> int:
        """Answers sampled for the KL."""
        return KL_SAMPLES * len(self.kl_prompts)


def workload(settings: Settings, tokenizer: Any) -> Workload:
    """The pairs of the run directory where they are curated already, otherwise curated now into a temporary folder.

    Of more than 20,000 rows the first 4,000 stand for all. Raises InputError as `curate` does.
    """
    run = Run(Path(settings.run))
    if curated(run, settings):
        return read(run.folder / "data", settings, tokenizer, how="as curated in the run directory", seconds=0.0)
    with tempfile.TemporaryDirectory() as place:
        since, sources = time.monotonic(), storage.locate(settings.data.pairs).train
        rows, named = sum(map(storage.count, sources)), storage.listed(settings.data.pairs)
        most, share, how = None, 1.0, f"curated for this plan from {named}"
        if rows > WHOLE:
            most = max(1, SAMPLE // len(sources))
            some = sum(min(most, storage.count(source)) for source in sources)
            share, how = some / rows, f"estimated from the first {some:,} of {rows:,} rows of {named}"
        curate(settings, out=Path(place) / "data", tokenizer=tokenizer, most=most)
        seconds = (time.monotonic() - since) / share
        return read(Path(place) / "data", settings, tokenizer, how=how, seconds=seconds, share=share)


def curated(run: Run, settings: Settings) -> bool:
    """Whether the run directory holds the pairs that these settings ask for."""
    if not (run.has(CURATED) and run.has("config.json")):
        return False
    was = run.settings()
    same = all(getattr(was, part) == getattr(settings, part) for part in ("data", "grade", "seed"))
    same = same and was.model.path == settings.model.path
    return same and run.json(CURATED)["source_sha256"] == fingerprint(settings)


def read(folder: Path, settings: Settings, tokenizer: Any, *, how: str, seconds: float, share: float = 1.0) -> Workload:
    """The curated pairs of a folder; they are `share` of all where the held-out ones are drawn from the same rows."""
    data, own = settings.data, settings.evaluate
    sides = [
        tokenized(
            folder / f"{part}.jsonl",
            tokenizer,
            max_prompt=data.max_prompt,
            max_response=data.max_response,
            workers=torch.get_num_threads(),
        )
        for part in ("train", "heldout")
    ]
    pairs, heldout = sides
    apart = storage.locate(data.pairs, data.heldout).heldout
    asked = held_out_prompts(own.prompts, list(storage.read(str(folder / "heldout.jsonl"), Pair)))
    prompts, kl_prompts = choose_prompts(asked, own.count), choose_prompts(asked, own.kl_prompts)
    train = min(round(len(pairs) / share), data.limit or 10**12)
    held = len(heldout) if apart else round(len(heldout) / share)
    if not prompts:
        raise InputError(f"{own.prompts}: holds no prompt to answer; name another file in evaluate.prompts")
    along = len(choose_prompts(asked, own.along))
    return Workload(pairs, heldout, train, held, prompts, kl_prompts, how, seconds, along)
