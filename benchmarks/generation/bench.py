"""Tokens a second of our generator beside transformers' own `generate`, turn by turn in one process.

    PYTHONPATH=src python benchmarks/generation/bench.py [--model FOLDER] [--rounds 5]

Both answer the same 32 prompts of different lengths with the same loaded weights, temperature and nucleus; both make
exactly as many new tokens for every prompt (no token ends an answer), both keep keys and values. A round runs one after
the other, in turns; the ratio of a round compares neighbours in time, and the median of the rounds is what counts.
Beside the clock stands the time of the processor, which other work on the machine moves less. Prints a table and writes
results/generation.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from druthers import generation, models
from druthers.config import ModelSettings
from druthers.models import Loaded
from druthers.records import user
from druthers.tokens import encode_prompt

WORDS = "kettle leaks garden parcel late refund sorry manual battery cold morning order please window"
PROMPTS = [user(f"Tell me about my {' '.join((WORDS.split() * 3)[i : i + 4 + i])}.") for i in range(32)]
TEMPERATURE, TOP_P = 0.7, 0.95


def ours(loaded: Loaded, *, new: int, seed: int) -> int:
    """Our generator as the stages use it, twin of the weights included; tokens made."""
    generate = generation.transformers_generator(loaded, batch_size=32, model_name="bench")
    found = generate(PROMPTS, samples=1, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=new, seed=seed)
    return sum(answer.tokens for (answer,) in found)


def theirs(loaded: Loaded, model: Any, *, new: int, seed: int) -> int:
    """transformers' generate on the same prompts, padded on the left; tokens made."""
    rows = [encode_prompt(prompt, loaded.tokenizer) for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([[loaded.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(seed)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=new,
            min_new_tokens=new,
            eos_token_id=None,
            pad_token_id=loaded.pad_id,
            use_cache=True,
        )
    return int(made.shape[0] * (made.shape[1] - width))


def timed(work: Any, **how: int) -> tuple[float, float]:
    """Tokens a second of the clock, and a second of the processor."""
    since, spent = time.perf_counter(), time.process_time()
    made = work(**how)
    return made / (time.perf_counter() - since), made / (time.process_time() - spent)


def measured(loaded: Loaded, *, rounds: int, new: int) -> dict[str, Any]:
    """Rates of both and the ratio of every round, the first of which warms up and does not count."""
    loaded.model.generation_config.eos_token_id = None
    plain = generation.inference_twin(loaded).model  # the same weights in the same type and attention, for both
    generation.end_tokens = lambda _: ()
    a, b = [], []
    for turn in range(rounds + 1):
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            if which:
                a.append(timed(lambda new, seed: ours(loaded, new=new, seed=seed), new=new, seed=turn))
            else:
                b.append(timed(lambda new, seed: theirs(loaded, plain, new=new, seed=seed), new=new, seed=turn))
    found: dict[str, Any] = {}
    for i, clock in enumerate(("wall", "cpu")):
        mine, other = ([rate[i] for rate in rates[1:]] for rates in (a, b))
        ratios = [x / y for x, y in zip(mine, other, strict=True)]
        found[clock] = {
            "ours": statistics.median(mine),
            "transformers": statistics.median(other),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return found


def main() -> None:
    """Both compute types."""
    words = argparse.ArgumentParser()
    words.add_argument("--model", default="default")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--new", type=int, default=64)
    words.add_argument("--threads", type=int, default=2)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    models.quiet()
    loaded = models.load(ModelSettings(path=given.model, precision="float32"))
    rows = {}
    print(f"{loaded.name}, 32 prompts, {given.new} new tokens each, {given.threads} threads, median of {given.rounds}")
    print("| compute | second of | ours, tokens/s | transformers, tokens/s | ratio (least to most) |")
    print("|---|---|---|---|---|")
    for kind in (torch.bfloat16, torch.float32):
        found = measured(replace(loaded, compute=kind), rounds=given.rounds, new=given.new)
        name = str(kind).removeprefix("torch.")
        rows[name] = found
        for clock, row in found.items():
            print(
                f"| {name} | {clock} | {row['ours']:.0f} | {row['transformers']:.0f} | {row['ratio']:.2f} "
                f"({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) |",
                flush=True,
            )
    place = Path(__file__).parent / "results" / "generation.json"
    place.parent.mkdir(exist_ok=True)
    note = {"model": loaded.name, "new_tokens": given.new, "threads": given.threads, "rows": rows}
    place.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
