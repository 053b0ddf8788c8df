"""Rung by rung from the naive step to ours: time, memory, and the same loss and gradient at every rung.

    ladder.py time --model FOLDER --pairs-file IDS.json --threads 2 [--steps 2] RUNG OUT.json
    ladder.py equal --model FOLDER --pairs-file IDS.json --threads 2 [--pairs 8] OUT.json

Every rung has what those before it have. `equal` moves the policy away from the reference by seeded noise, so that the
loss is not ln 2 for everyone, and compares each rung with the naive step in float32, itself in float32 and in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; torch reads it when it is loaded

import cell
import torch
from cell import RUNGS
from run_druthers import tokenized
from torch import Tensor

from druthers import models
from druthers.batching import Batch, Rung
from druthers.compiled import compiling
from druthers.config import ModelSettings, TrainSettings
from druthers.crew import Crew, crew_of
from druthers.logprobs import Scorer
from druthers.losses import LOSSES
from druthers.models import Loaded, score_pairs, trainable
from druthers.tokens import TokenizedPair
from druthers.train import loop, reference

BUDGET = 2048
NOISE = 0.02
"""Of a weight matrix's standard deviation, for `equal`."""


def layout_of(rung: str) -> Rung:
    """The layout of rows at a rung."""
    at = RUNGS.index(rung)
    return "padded" if at == 0 else "padding-free" if at < RUNGS.index("shared prompt") else "shared"


def full_logits(scorer: Scorer, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """As `pair_logps`, from the logits of every position in float32, prompt and padding too."""
    layout = {} if batch.layout is None else {"layout": batch.layout}
    hidden_STH = scorer.backbone(
        input_ids=batch.input_ids_ST, position_ids=batch.position_ids_ST, use_cache=False, **layout
    ).last_hidden_state
    logp_TV = scorer.head(hidden_STH.flatten(0, 1)).float().log_softmax(-1)
    logp_N = logp_TV[batch.gather_N, batch.target_N].double()
    sums_R = logp_N.new_zeros(len(batch.length_R)).index_add(0, batch.owner_N, logp_N)
    return sums_R[batch.response_CB]


@contextmanager
def head_of(rung: str) -> Iterator[None]:
    """The head of a rung in the loop and in the live reference."""
    full = RUNGS.index(rung) < RUNGS.index("response head")
    with mock.patch.object(models, "pair_logps", full_logits) if full else nullcontext():
        yield


def crew_at(rung: str, policy: Loaded) -> Crew:
    """Who computes at a rung: the policy itself, one member with working copies, or as many as a run has."""
    if RUNGS.index(rung) < RUNGS.index("working copies"):
        return Crew(policy, [policy], [], [{}])
    whole = crew_of(policy)
    both = RUNGS.index(rung) >= RUNGS.index("two micro-batches side by side")
    return whole if both else replace(whole, members=whole.members[:1], sums=whole.sums[:1])


def scores_at(rung: str, base: Loaded, pairs: Sequence[TokenizedPair]) -> reference.Reference:
    """The reference at a rung: beside the policy on every micro-batch, or scored before."""
    if RUNGS.index(rung) < RUNGS.index("cached reference"):
        return reference.live(models.second_copy(base))
    known = dict(zip((pair.id for pair in pairs), score_pairs(base, pairs, token_budget=BUDGET).T, strict=True))
    return lambda batch, some, _: torch.tensor([known[pair.id].tolist() for pair in some], dtype=torch.float64).T


def loaded(args: argparse.Namespace, rung: str) -> Loaded:
    """The model with the layout of a rung."""
    settings = ModelSettings(path=args.model, layout=layout_of(rung))
    return models.load(settings, threads=args.threads)


def read(args: argparse.Namespace, *, steps: int, size: int) -> list[list[TokenizedPair]]:
    """Steps of pairs, the first to warm up."""
    found = cell.steps_of(cell.read_pairs(args.pairs_file), steps=steps, size=size)
    return [[tokenized(TokenizedPair, p, f"{s}-{i}") for i, p in enumerate(step)] for s, step in enumerate(found)]


def time_rung(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the timed steps of one rung and the peak of the process."""
    steps = read(args, steps=args.steps, size=args.pairs_per_step)
    policy = loaded(args, args.rung)
    scores = scores_at(args.rung, policy, [pair for step in steps for pair in step])
    crew = crew_at(args.rung, policy)
    optimizer = loop.make_optimizer(policy, TrainSettings(learning_rate=cell.RATE["full"]))
    loss, seconds, losses = LOSSES["sigmoid"](beta=cell.BETA), [], []
    with head_of(args.rung), compiling(crew.members, wanted=args.rung == "compiled layers"):
        for step in steps:
            since = time.perf_counter()
            scored = loop.run_pairs(step, crew, scores, loss, token_budget=BUDGET, learn="learn")
            torch.nn.utils.clip_grad_norm_(trainable(policy).values(), cell.CLIP)
            optimizer.step()
            crew.follow()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - since)
            losses.append(scored.loss_P.mean().item())
    return {"rung": args.rung, "seconds": seconds[1:], "losses": losses, "peak": cell.peak_bytes()}


@torch.no_grad()
def disturb(policy: Loaded) -> None:
    """Move every weight matrix by seeded noise."""
    draw = torch.Generator().manual_seed(0)
    for weight in trainable(policy).values():
        if weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=NOISE * weight.std().item())


@torch.no_grad()
def as_loaded(model: Loaded, start: dict[str, Tensor], rung: str, precision: str) -> Loaded:
    """The model with the weights it was loaded with, without gradients, at a rung and in a compute type."""
    for name, weight in trainable(model).items():
        weight.copy_(start[name])
        weight.grad = None
    models.set_rung(model, layout_of(rung))
    layout = replace(model.layout, rung=layout_of(rung))
    return replace(model, layout=layout, compute=getattr(torch, precision))


def one_step(policy: Loaded, pairs: Sequence[TokenizedPair], rung: str) -> tuple[Tensor, Tensor]:
    """Losses (pairs,) and the whole gradient of one set of pairs at a rung."""
    scores = scores_at(rung, policy, pairs)
    disturb(policy)
    crew: Crew = crew_at(rung, policy)
    with head_of(rung), compiling(crew.members, wanted=rung == "compiled layers"):
        scored = loop.run_pairs(
            pairs, crew, scores, LOSSES["sigmoid"](beta=cell.BETA), token_budget=BUDGET, learn="learn"
        )
    grads = [w.grad.flatten() for w in trainable(policy).values() if w.grad is not None]
    return scored.loss_P, torch.cat(grads)


def equal(args: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of a pair's loss, and relative difference of the gradient, from the naive float32 step."""
    pairs = read(args, steps=1, size=args.pairs)[1]
    model = loaded(args, RUNGS[-1])
    start = {name: weight.detach().clone() for name, weight in trainable(model).items()}
    plain_P, slope = one_step(as_loaded(model, start, RUNGS[0], "float32"), pairs, RUNGS[0])
    found: dict[str, Any] = {"pairs": args.pairs, "loss": plain_P.mean().item(), "rungs": {}}
    for rung in RUNGS:
        row = {}
        for precision in ("float32", "bfloat16"):
            loss_P, grad = one_step(as_loaded(model, start, rung, precision), pairs, rung)
            row[precision] = {
                "loss": (loss_P - plain_P).abs().max().item(),
                "gradient": ((grad - slope).norm() / slope.norm()).item(),
            }
        found["rungs"][rung] = row
    return found


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--model", required=True)
    both.add_argument("--pairs-file", required=True)
    both.add_argument("--threads", type=int, required=True)
    timing: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"time": time_rung, "equal": equal}
    for name, run in timing.items():
        command = commands.add_parser(name, parents=[both])
        command.set_defaults(run=run)
        if name == "time":
            command.add_argument("rung", choices=RUNGS)
            command.add_argument("--steps", type=int, default=2)
            command.add_argument("--pairs-per-step", type=int, default=16)
        else:
            command.add_argument("--pairs", type=int, default=8)
        command.add_argument("out", type=Path)
    args = parser.parse_args()
    cell.write_json(args.out, {**args.run(args), "packages": cell.versions()})


if __name__ == "__main__":
    main()
