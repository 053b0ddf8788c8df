"""Time, memory and exactness of a training step in each layout of rows, side by side.

    rungs.py PAIRS.jsonl [--pairs 48] [--adapter none] [--budget 2048] [--rounds 2] [--out result.json]

PAIRS.jsonl is a file that `druthers curate` writes. Every measurement is a process of its own, the layouts in turn
forwards and backwards (A-B-C-C-B-A) for as many rounds. A step is 16 pairs forward and backward, clipping and the
optimizer, with the reference scored before. `equal` is one process more: float32, every pair, against plain rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; torch reads it when it is loaded

LAYOUTS = ("padded", "padding-free", "shared")
STEP = 16
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs_file", type=Path)
    parser.add_argument("--pairs", type=int, default=48, help="use the first N of the file, a whole number of steps")
    parser.add_argument("--adapter", choices=("none", "lora"), default="none")
    parser.add_argument("--budget", type=int, default=2048, help="train.token_budget")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepared(args: argparse.Namespace, layout: str, precision: str = "auto") -> tuple[Any, list[Any]]:
    """Model and tokenized pairs."""
    from druthers import models, storage
    from druthers.config import ModelSettings
    from druthers.records import Pair
    from druthers.tokens import tokenize

    settings = ModelSettings(path=args.model, adapter=args.adapter, layout=layout, precision=precision)
    loaded = models.load(settings)
    records = list(storage.read(str(args.pairs_file), Pair))[: args.pairs]
    return loaded, [tokenize(pair, loaded.tokenizer, max_prompt=1024, max_response=512) for pair in records]


def steps(args: argparse.Namespace, layout: str) -> Row:
    """Seconds of every step after the first, and the process's peak memory."""
    import torch

    from druthers.config import TrainSettings
    from druthers.crew import crew_of
    from druthers.losses import LOSSES
    from druthers.models import score_pairs, trainable
    from druthers.train import loop

    policy, pairs = prepared(args, layout)
    known = dict(zip((id(p) for p in pairs), score_pairs(policy, pairs, token_budget=args.budget).T, strict=True))
    crew, loss = crew_of(policy), LOSSES["sigmoid"](beta=0.1)
    optimizer = loop.make_optimizer(policy, TrainSettings(learning_rate=1e-6))
    took = []
    for start in [0, *range(0, len(pairs), STEP)]:
        since = time.perf_counter()
        loop.run_pairs(
            pairs[start : start + STEP],
            crew,
            lambda batch, some, _: torch.tensor([known[id(p)].tolist() for p in some], dtype=torch.float64).T,
            loss,
            token_budget=args.budget,
            learn="learn",
        )
        torch.nn.utils.clip_grad_norm_(trainable(policy).values(), 1.0)
        optimizer.step()
        crew.follow()
        optimizer.zero_grad(set_to_none=True)
        took.append(time.perf_counter() - since)
    tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    return {"layout": layout, "seconds": took[1:], "tokens": tokens, "peak_gib": loop.peak_memory_gib()}


def equal(args: argparse.Namespace) -> dict[str, Row]:
    """Largest difference of a response's log-probability in nats a token, and of the gradient (relative), float32."""
    import torch

    from druthers import models
    from druthers.batching import collate
    from druthers.logprobs import pair_logps

    policy, pairs = prepared(args, "auto", "float32")
    scored, grads = {}, {}
    for layout in LAYOUTS:
        models.set_rung(policy, layout)
        policy.model.zero_grad(set_to_none=True)
        found = []
        for pair in pairs:
            logp_CB = pair_logps(policy.scorer, collate([pair], pad_id=policy.pad_id, rung=layout))
            (logp_CB[0] - logp_CB[1]).sum().backward()
            found.append(logp_CB.detach() / torch.tensor([[len(pair.chosen)], [len(pair.rejected)]]))
        scored[layout] = torch.cat(found, 1)
        grads[layout] = torch.cat([w.grad.flatten() for w in models.trainable(policy).values() if w.grad is not None])
    plain, slope = scored["padded"], grads["padded"]
    return {
        layout: {
            "nats_a_token": (scored[layout] - plain).abs().max().item(),
            "gradient": ((grads[layout] - slope).norm() / slope.norm()).item(),
        }
        for layout in LAYOUTS[1:]
    }


def measured(args: argparse.Namespace, what: str) -> Any:
    """One process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all, print the table."""
    args = options()
    if args.one:
        print(json.dumps(equal(args) if args.one == "equal" else steps(args, args.one)))
        return
    order = [*LAYOUTS, *reversed(LAYOUTS)] * args.rounds
    rows = [measured(args, layout) for layout in order]
    exact = measured(args, "equal")
    medians = {}
    print(
        "| layout | s a pair, median of the steps | pairs a second over padded | peak GiB | nats a token | gradient |"
    )
    print("|---|---|---|---|---|---|")
    for layout in LAYOUTS:
        mine = [row for row in rows if row["layout"] == layout]
        medians[layout] = statistics.median(second for row in mine for second in row["seconds"]) / STEP
        peak = max(row["peak_gib"] for row in mine)
        error = exact.get(layout, {"nats_a_token": 0.0, "gradient": 0.0})
        ratio = medians["padded"] / medians[layout]
        print(
            f"| {layout} | {medians[layout]:.3f} | {ratio:.2f} | {peak:.2f} | "
            f"{error['nats_a_token']:.0e} | {error['gradient']:.0e} |"
        )
    if args.out:
        args.out.write_text(json.dumps({"runs": rows, "equal": exact, "s_per_pair": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
