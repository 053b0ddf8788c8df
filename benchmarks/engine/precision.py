"""How exact the layouts of rows are on real pairs: float32 against plain rows, bfloat16 against float32.

    precision.py [PAIRS] [--pairs 64] [--model default] [--budget 2048] [--out result.json]

PAIRS is a packaged set or a file that `druthers curate` writes. The command ends with status 1 where a layout misses a
bar. In float32, against plain padded rows: a token's log-probability within 1e-5 nats, the gradient of the summed
margins within 1e-5 (relative), and no token moves by more than 1e-6 when the other response of its pair is another. In
bfloat16, against plain rows in float32: the root mean square of the tokens' errors at most 1.25 times that of plain
rows in bfloat16, and the mean error of responses (nats a token) and of margins (nats) within two standard errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from druthers import models, storage
from druthers.batching import Rung, collate, common, plan
from druthers.config import ModelSettings
from druthers.ladder import RUNGS, moved
from druthers.logprobs import pair_logps
from druthers.models import Loaded
from druthers.records import Pair
from druthers.tokens import TokenizedPair, tokenize

EQUAL, SLOPE, LEAK, WORSE, ERRORS = 1e-5, 1e-5, 1e-6, 1.25, 2.0
Tokens = list[tuple[models.Floats, models.Floats]]
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="brand-voice", help="a packaged set, or a file of pairs")
    parser.add_argument("--pairs", type=int, default=64, help="use the first N")
    parser.add_argument("--model", default="default")
    parser.add_argument("--budget", type=int, default=2048, help="tokens at once in forward and backward")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def in_layout(loaded: Loaded, rung: Rung, compute: torch.dtype) -> Loaded:
    """The same weights in another layout and compute type."""
    models.set_rung(loaded, rung)
    return dataclasses.replace(loaded, compute=compute, layout=dataclasses.replace(loaded.layout, rung=rung))


def gradient(loaded: Loaded, pairs: Sequence[TokenizedPair], budget: int) -> Tensor:
    """Gradient of the sum of all margins, log p(chosen) - log p(rejected), over all weights."""
    loaded.model.zero_grad(set_to_none=True)
    for group in plan(pairs, token_budget=budget, rung=loaded.layout.rung):
        batch = collate([pairs[i] for i in group], pad_id=loaded.pad_id, rung=loaded.layout.rung)
        logp_CB = pair_logps(loaded.scorer, batch)
        (logp_CB[0] - logp_CB[1]).sum().backward()
    found = torch.cat([w.grad.flatten() for w in models.trainable(loaded).values() if w.grad is not None])
    loaded.model.zero_grad(set_to_none=True)
    return found


def apart(one: Tokens, two: Tokens, *, sides: Sequence[int] = (0, 1)) -> models.Floats:
    """Differences of all tokens, of one side or of both."""
    return np.concatenate([a[c].astype(np.float64) - b[c] for a, b in zip(one, two, strict=True) for c in sides])


def elsewhere(pair: TokenizedPair, c: int) -> TokenizedPair:
    """The pair with one response changed behind its first token of its own, so that its row keeps its shape."""
    ids = (pair.chosen, pair.rejected)[c]
    kept = common((pair.chosen, pair.rejected)) + 1
    return dataclasses.replace(pair, **{("chosen", "rejected")[c]: ids[:kept] + moved(ids[kept:])})


def leak(loaded: Loaded, pairs: Sequence[TokenizedPair], score: Callable[..., Tokens]) -> float:
    """The most a token moves, in nats, when the other response of its pair is another one; one pair a prompt."""
    some = list({pair.prompt: pair for pair in pairs}.values())
    own = score(loaded, some)
    moves = [apart(score(loaded, [elsewhere(pair, c) for pair in some]), own, sides=(1 - c,)) for c in (0, 1)]
    return float(max(abs(move).max() for move in moves))


def bias(errors: models.Floats) -> float:
    """Mean error in standard errors of the mean."""
    return float(abs(errors.mean()) / (errors.std(ddof=1) / math.sqrt(len(errors))))


def exactness(loaded: Loaded, pairs: Sequence[TokenizedPair], *, budget: int) -> tuple[list[Row], list[Row]]:
    """A row for every layout in float32, and one in bfloat16."""

    def score(by: Loaded, some: Sequence[TokenizedPair]) -> Tokens:
        return models.score_tokens(by, some, token_budget=budget)

    plain = in_layout(loaded, "padded", torch.float32)
    oracle, slope = score(plain, pairs), gradient(plain, pairs, budget)
    own = score(in_layout(loaded, "padded", torch.bfloat16), pairs)
    wide, narrow = [], [roundings("padded", own, oracle, own)]
    for rung in RUNGS[:-1]:
        ours = in_layout(loaded, rung, torch.float32)
        row = {
            "layout": rung,
            "nats_a_token": float(abs(apart(score(ours, pairs), oracle)).max()),
            "gradient": float((gradient(ours, pairs, budget) - slope).norm() / slope.norm()),
            "leak": leak(ours, pairs, score),
        }
        held = row["nats_a_token"] <= EQUAL and row["gradient"] <= SLOPE and row["leak"] <= LEAK
        wide.append(row | {"held": held})
        found = score(in_layout(loaded, rung, torch.bfloat16), pairs)
        narrow.append(roundings(rung, found, oracle, own))
    limit = WORSE * narrow[0]["rms_nats_a_token"]
    for row in narrow:
        unbiased = max(row["bias_of_responses"], row["bias_of_margins"]) <= ERRORS
        row["held"] = row["rms_nats_a_token"] <= limit and unbiased
    return wide, narrow


def roundings(rung: Rung, found: Tokens, oracle: Tokens, plain: Tokens) -> Row:
    """Errors of bfloat16 in a layout, and whether they lean to one side, also more than those of plain rows."""
    means, beyond = by_response(found, oracle, np.mean), by_response(found, plain, np.mean)
    sums = by_response(found, oracle, np.sum)
    return {
        "layout": rung,
        "rms_nats_a_token": float(np.sqrt((apart(found, oracle) ** 2).mean())),
        "mean_nats_a_token": float(means.mean()),
        "bias_of_responses": bias(means.ravel()),
        "bias_of_margins": bias(sums[:, 0] - sums[:, 1]),
        "bias_beyond_plain": 0.0 if rung == "padded" else bias(beyond.ravel()),
    }


def by_response(one: Tokens, two: Tokens, reduced: Callable[..., Any]) -> models.Floats:
    """Differences of the tokens of every response made one number, (pairs, 2)."""
    return np.array([[reduced(a[c].astype(np.float64) - b[c]) for c in (0, 1)] for a, b in zip(one, two, strict=True)])


def main() -> None:
    """Measure, print both tables, end with 1 where a bar was missed."""
    args, since = options(), time.perf_counter()
    loaded = models.load(ModelSettings(path=args.model, precision="float32"))
    records = list(storage.read(storage.locate(args.source).train, Pair))[: args.pairs]
    pairs = [tokenize(pair, loaded.tokenizer, max_prompt=1024, max_response=512) for pair in records]
    wide, narrow = exactness(loaded, pairs, budget=args.budget)
    print(f"{len(pairs)} pairs of {args.source}, {loaded.name}\n\n| float32 | nats a token | gradient | leak | held |")
    print("|---|---|---|---|---|")
    for row in wide:
        print("| {layout} | {nats_a_token:.1e} | {gradient:.1e} | {leak:.1e} | {held} |".format(**row))
    print(
        "\nMeans are in standard errors: of responses, of margins, and of responses against plain rows in bfloat16.\n"
    )
    print("| bfloat16 | rms, nats a token | mean | responses | margins | beyond plain | held |\n" + "|---" * 7 + "|")
    for row in narrow:
        print(
            "| {layout} | {rms_nats_a_token:.4f} | {mean_nats_a_token:+.1e} | {bias_of_responses:.1f} | "
            "{bias_of_margins:.1f} | {bias_beyond_plain:.1f} | {held} |".format(**row)
        )
    print(f"\n{time.perf_counter() - since:.0f} s")
    if args.out:
        args.out.write_text(json.dumps({"float32": wide, "bfloat16": narrow}, indent=1) + "\n")
    sys.exit(not all(row["held"] for row in [*wide, *narrow[1:]]))


if __name__ == "__main__":
    main()
