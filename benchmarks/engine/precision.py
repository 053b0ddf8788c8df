"""How exact the layouts of rows are on real pairs: float32 against plain rows, bfloat16 against float32.

    precision.py [PAIRS] [--pairs 64] [--layouts shared] [--gradients 4] [--model default] [--device auto]
                 [--budget 2048] [--out FILE]

PAIRS is a packaged set or a file that `druthers curate` writes. The bars stand in `BARS` and are printed with the
result; the command ends with status 1 where a layout misses one. Log-probabilities are those of all pairs, gradients
and leaks those of `--gradients` pairs of middle length, each of another prompt: a gradient takes as long as four
forwards. On CUDA float32 is computed block by block and bfloat16 by the kernel that a run takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; torch reads it when it is loaded

import numpy as np
import torch
from torch import Tensor

from druthers import models, storage
from druthers.batching import Rung, collate, common, plan
from druthers.config import ModelSettings
from druthers.crew import crew_of
from druthers.ladder import BLOCKWISE, RUNGS, moved
from druthers.models import Loaded
from druthers.records import InputError, Pair
from druthers.threads import side_by_side
from druthers.tokens import TokenizedPair, tokenize

EQUAL, TOKEN, SLOPE, LEAK, WORSE, ERRORS, ENOUGH = 1e-5, 1e-4, 1e-5, 1e-6, 1.25, 2.0, 64
BARS = (
    f"float32, against plain rows: the log-probability of a response within {EQUAL:g} nat a token, of a single token "
    f"within {TOKEN:g} nat, the gradient of the summed margins within {SLOPE:g} (relative), no token moved by more "
    f"than {LEAK:g} nat when the other response is another one",
    f"bfloat16, against plain rows in float32: root mean square of the tokens' errors at most {WORSE} times that of "
    f"plain rows in bfloat16; mean error of pairs (nat a token) and of margins (nat) within {ERRORS:g} sd/sqrt(n); "
    f"of at least {ENOUGH} pairs",
)
Tokens = list[tuple[models.Floats, models.Floats]]
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="brand-voice", help="a packaged set, or a file of pairs")
    parser.add_argument("--pairs", type=int, default=ENOUGH, help="use the first N")
    parser.add_argument("--gradients", type=int, default=4, help="pairs whose gradients and leaks are compared")
    parser.add_argument("--layouts", nargs="+", choices=RUNGS[:-1], default=["shared"])
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto", help="as model.device: auto, cpu, cuda, cuda:N")
    parser.add_argument("--budget", type=int, default=2048, help="tokens at once in forward and backward")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def in_layout(loaded: Loaded, rung: Rung, compute: torch.dtype) -> Loaded:
    """The same weights in another layout and compute type; float32 is computed block by block."""
    kernel = BLOCKWISE if compute == torch.float32 else loaded.layout.kernel
    models.set_rung(loaded, rung, kernel)
    return dataclasses.replace(loaded, compute=compute, layout=dataclasses.replace(loaded.layout, rung=rung))


def middle(pairs: Sequence[TokenizedPair], count: int) -> list[TokenizedPair]:
    """`count` pairs of middle length, one a prompt."""
    some = sorted({pair.prompt: pair for pair in pairs}.values(), key=lambda pair: pair.longest)
    start = max(0, (len(some) - count) // 2)
    return some[start : start + count]


def gradient(loaded: Loaded, pairs: Sequence[TokenizedPair], budget: int) -> Tensor:
    """Gradient of the sum of all margins, log p(chosen) - log p(rejected), over all weights, by a crew as in a run."""
    crew, rung = crew_of(loaded), loaded.layout.rung
    groups = plan(pairs, token_budget=budget, crew=crew.seats, rung=rung)

    def share(member: int) -> None:
        policy = crew.members[member]
        for group in crew.turns(groups, member):
            batch = collate([pairs[i] for i in group], pad_id=policy.pad_id, rung=rung, device=policy.device)
            with torch.enable_grad():
                logp_CB = policy.logps(batch)
                (logp_CB[0] - logp_CB[1]).sum().backward()
            crew.collect(member)

    side_by_side(share, range(len(crew.members)), workers=len(crew.members))
    crew.gather()
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
    """The most a token moves, in nats, when the other response of its pair is another one."""
    own = score(loaded, pairs)
    moves = [apart(score(loaded, [elsewhere(pair, c) for pair in pairs]), own, sides=(1 - c,)) for c in (0, 1)]
    return float(max(abs(move).max() for move in moves))


def bias(errors: models.Floats) -> float:
    """Mean error in standard errors of the mean."""
    return float(abs(errors.mean()) / (errors.std(ddof=1) / math.sqrt(len(errors))))


def exactness(
    loaded: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    few: Sequence[TokenizedPair],
    layouts: Sequence[Rung] = RUNGS[:-1],
    budget: int,
) -> tuple[list[Row], list[Row]]:
    """A row for every layout in float32, and one in bfloat16; gradients and leaks of `few` pairs."""

    def score(by: Loaded, some: Sequence[TokenizedPair]) -> Tokens:
        return models.score_tokens(by, some, token_budget=budget)

    plain = in_layout(loaded, "padded", torch.float32)
    oracle, slope = score(plain, pairs), gradient(plain, few, budget)
    own = score(in_layout(loaded, "padded", torch.bfloat16), pairs)
    wide, narrow = [], [roundings("padded", own, oracle, own)]
    for rung in layouts:
        ours = in_layout(loaded, rung, torch.float32)
        found = score(ours, pairs)
        wide.append(
            {
                "layout": rung,
                "nats_a_token": float(abs(by_response(found, oracle, np.mean)).max()),
                "token": float(abs(apart(found, oracle)).max()),
                "gradient": float((gradient(ours, few, budget) - slope).norm() / slope.norm()),
                "leak": leak(ours, few, score),
            }
        )
        narrow.append(roundings(rung, score(in_layout(loaded, rung, torch.bfloat16), pairs), oracle, own))
    return held(wide, narrow)


def held(wide: list[Row], narrow: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows with what they hold of the bars; the first in bfloat16 is of plain rows, the yardstick."""
    limit = WORSE * narrow[0]["rms_nats_a_token"]
    limits = {"nats_a_token": EQUAL, "token": TOKEN, "gradient": SLOPE, "leak": LEAK}
    exact = [row | {"held": all(row[name] <= most for name, most in limits.items())} for row in wide]
    limits = {"rms_nats_a_token": limit, "bias_of_pairs": ERRORS, "bias_of_margins": ERRORS}
    near = [row | {"held": all(row[name] <= most for name, most in limits.items())} for row in narrow]
    return exact, near


def roundings(rung: Rung, found: Tokens, oracle: Tokens, plain: Tokens) -> Row:
    """Errors of bfloat16 in a layout, and whether they lean to one side, also more than those of plain rows.

    A pair counts once: its responses have the prompt's errors in common.
    """
    means, beyond = (by_response(found, other, np.mean).mean(1) for other in (oracle, plain))
    sums = by_response(found, oracle, np.sum)
    return {
        "layout": rung,
        "rms_nats_a_token": float(np.sqrt((apart(found, oracle) ** 2).mean())),
        "mean_nats_a_token": float(means.mean()),
        "bias_of_pairs": bias(means),
        "bias_of_margins": bias(sums[:, 0] - sums[:, 1]),
        "bias_beyond_plain": 0.0 if rung == "padded" else bias(beyond),
    }


def by_response(one: Tokens, two: Tokens, reduced: Callable[..., Any]) -> models.Floats:
    """Differences of the tokens of every response made one number, (pairs, 2)."""
    return np.array([[reduced(a[c].astype(np.float64) - b[c]) for c in (0, 1)] for a, b in zip(one, two, strict=True)])


def read(args: argparse.Namespace, tokenizer: Any) -> list[TokenizedPair]:
    """The first pairs of the source; raises InputError where there are fewer than asked for."""
    sources = storage.locate(args.source).train
    records = [pair for source in sources for pair in storage.read(source, Pair)][: args.pairs]
    if len(records) < args.pairs:
        raise InputError(f"--pairs {args.pairs}, but {args.source} holds {len(records)}; ask for fewer")
    return [tokenize(pair, tokenizer, max_prompt=1024, max_response=512) for pair in records]


def digest(pairs: Sequence[TokenizedPair]) -> str:
    """SHA-256 of the ids of all pairs."""
    return hashlib.sha256(str([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]).encode()).hexdigest()


def verdict(wide: list[Row], narrow: list[Row], *, pairs: int) -> str:
    """Pass or fail, and what failed; plain rows in bfloat16 have no bar, and too few pairs pass none."""
    missed = [f"{row['layout']} in float32" for row in wide if not row["held"]]
    missed += [f"{row['layout']} in bfloat16" for row in narrow[1:] if not row["held"]]
    if missed:
        return f"fail: {', '.join(missed)}"
    return "pass" if pairs >= ENOUGH else f"fail: {pairs} pairs are too few for the bar, though nothing missed it"


def show(wide: list[Row], narrow: list[Row]) -> None:
    """Both tables, each under its bar."""
    print(f"{BARS[0]}\n\n| float32 | nats a token | one token | gradient | leak | held |\n" + "|---" * 6 + "|")
    for row in wide:
        print("| {layout} | {nats_a_token:.1e} | {token:.1e} | {gradient:.1e} | {leak:.1e} | {held} |".format(**row))
    print(f"\n{BARS[1]}; means are in sd/sqrt(n), *beyond plain* against plain rows in bfloat16\n")
    print("| bfloat16 | rms, nats a token | mean | pairs | margins | beyond plain | held |\n" + "|---" * 7 + "|")
    for row in narrow:
        print(
            "| {layout} | {rms_nats_a_token:.4f} | {mean_nats_a_token:+.1e} | {bias_of_pairs:.1f} | "
            "{bias_of_margins:.1f} | {bias_beyond_plain:.1f} | {held} |".format(**row)
        )


def measure(args: argparse.Namespace) -> str:
    """Measure, print both tables, write the result, and give the verdict."""
    since = time.perf_counter()
    loaded = models.load(ModelSettings(path=args.model, device=args.device, precision="bfloat16"))
    pairs = read(args, loaded.tokenizer)
    few = middle(pairs, args.gradients)
    print(f"{len(pairs)} pairs of {args.source}, gradients and leaks of {len(few)}, {loaded.name} on {loaded.device}\n")
    wide, narrow = exactness(loaded, pairs, few=few, layouts=args.layouts, budget=args.budget)
    show(wide, narrow)
    said, seconds = verdict(wide, narrow, pairs=len(pairs)), time.perf_counter() - since
    print(f"\n{said} ({seconds:.0f} s)")
    if args.out:
        about = {
            "source": Path(args.source).name,
            "pairs": len(pairs),
            "pairs_sha256": digest(pairs),
            "gradients": len(few),
            "model": loaded.name,
            "device": str(loaded.device),
            "kernel": loaded.layout.kernel,
            "torch": torch.__version__,
            "seconds": round(seconds, 1),
        }
        storage.write_json(args.out, about | {"bars": BARS, "verdict": said, "float32": wide, "bfloat16": narrow})
    return said


def main() -> None:
    """End with 1 where a bar was missed or something was wrong with the input."""
    try:
        sys.exit(measure(options()) != "pass")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
