"""Peak memory of the head, forward and backward, as the vocabulary grows: ours beside a plain one.

    head_memory.py [--vocabularies 49152 98304 151936] [--rows 1024 2048] [--hidden 576] [--out result.json]

The head is a linear layer with float32 weights under bfloat16 autocast, the batch has `rows` scored tokens. Every
measurement is a process of its own: the most memory it held in forward and backward, less what it held before. Both
need the gradient of the weights (vocabulary x hidden, float32), which stands in a column of its own; *beyond it* is
what ours needs more. Small vocabularies do not tell: below 32 MiB the allocator keeps what is given back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HEADS = ("ours", "plain")
MIB = 2**20
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 98304, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048], help="scored tokens of the batch, even")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def held_mib() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_mib() -> float:
    """The most it has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(head: str, vocabulary: int, rows: int, hidden: int) -> float:
    """Memory of one forward and backward above what stood before, MiB."""
    import torch
    from torch import nn

    from druthers.batching import collate
    from druthers.logprobs import Scorer, token_logps
    from druthers.tokens import TokenizedPair

    draw = torch.Generator().manual_seed(0)
    half = rows // 2
    response, scored = tuple(range(half)), (True,) * half
    batch = collate([TokenizedPair("", (1,), response, response, scored, scored)], pad_id=0)
    state_STH = torch.randn(2, 1 + half, hidden, generator=draw).requires_grad_()

    class Fixed(nn.Module):
        """A backbone that gives the same hidden states whatever is asked."""

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=state_STH)

    layer = nn.Linear(hidden, vocabulary, bias=False)
    before = held_mib()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if head == "ours":
            logp_N = token_logps(Scorer(Fixed(), layer), batch)
        else:
            logits_NV = layer(state_STH.flatten(0, 1)[batch.gather_N])
            logp_N = logits_NV.float().log_softmax(-1).gather(1, batch.target_N[:, None])[:, 0]
    logp_N.sum().backward()
    return peak_mib() - before


def measured(args: argparse.Namespace, head: str, vocabulary: int, rows: int) -> Row:
    """One process."""
    command = [sys.executable, __file__, "--hidden", str(args.hidden), "--one", f"{head} {vocabulary} {rows}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak = float(done.stdout.splitlines()[-1])
    return {"head": head, "vocabulary": vocabulary, "rows": rows, "peak_mib": round(peak, 1)}


def main() -> None:
    """Measure all, print the table."""
    args = options()
    if args.one:
        head, vocabulary, rows = args.one.split()
        print(one(head, int(vocabulary), int(rows), args.hidden))
        return
    found = []
    print("| vocabulary | scored tokens | gradient of the weights, MiB | ours, MiB | beyond it, MiB | plain, MiB |")
    print("|---|---|---|---|---|---|")
    for rows in args.rows:
        for vocabulary in args.vocabularies:
            both = [measured(args, head, vocabulary, rows) for head in HEADS]
            found += both
            gradient = vocabulary * args.hidden * 4 / MIB
            ours, plain = (row["peak_mib"] for row in both)
            print(f"| {vocabulary:,} | {rows:,} | {gradient:.0f} | {ours:.0f} | {ours - gradient:.0f} | {plain:.0f} |")
    if args.out:
        args.out.write_text(json.dumps({"hidden": args.hidden, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
