"""Pairs a second, peak memory and share of the peak rate of a training step on one GPU, by layout and kernel.

    gpu.py --shape llama-1b --lengths hh --peak 989 [--kernels varlen flex block] [--budget 16384] [--out result.json]

Shapes have random weights, made from a configuration; nothing is downloaded. Pairs have random ids and the lengths of
benchmarks/step: HH-, UltraFeedback-, TL;DR- or retrieval-like. A step is `--step` pairs forward and backward through
the project's own training loop, clipping and the optimizer, with reference scores given; every variant runs in this
process, forwards and backwards (A-B-C-C-B-A) for `--rounds` rounds. FLOPs are those really done: every token of the
rows as they are laid out (padding too), the head's logits made twice, attention as its kernel makes it again in the
backward. `--peak` is the card's dense rate in TFLOP/s in the compute type. `--device cpu --shape tiny` checks the
script anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "step"))

import ids
import run_druthers
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from druthers import kernels, models
from druthers.attention import sequences
from druthers.batching import laid_out, plan
from druthers.compiled import compiling
from druthers.config import ModelSettings, TrainSettings
from druthers.crew import Crew, crew_of
from druthers.ladder import BLOCKWISE
from druthers.losses import LOSSES
from druthers.models import Loaded, trainable
from druthers.recompute import Kind, recomputing
from druthers.tokens import TokenizedPair
from druthers.train import loop

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "heads": (4, 2)},
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "heads": (32, 8),
    },
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "heads": (32, 8),
    },
}
"""Llama-3.2-1B and Llama-3-8B; embeddings are tied in all but the last."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A layout and the kernel it is computed with."""

    rung: Any
    kernel: str

    @property
    def name(self) -> str:
        """For the table."""
        return self.rung if self.rung == "padded" else f"{self.rung}, {self.kernel}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--lengths", choices=ids.SHAPES, default="hh")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--adapter", choices=("none", "lora"), default="none")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="type of the masters")
    parser.add_argument("--optimizer", choices=("adamw", "none"), default="adamw")
    parser.add_argument("--kernels", nargs="+", help="unset: all that this machine has")
    parser.add_argument("--rungs", nargs="+", default=["padded", "padding-free", "shared"])
    parser.add_argument("--budget", type=int, default=16384, help="train.token_budget")
    parser.add_argument("--step", type=int, default=64, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a variant in a round, after one untimed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--checkpointing", action="store_true", help="decoder layers are computed again in the backward"
    )
    parser.add_argument("--compile", action="store_true", help="decoder layers under torch.compile, attention outside")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device; unset: no share of it is given")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def made_model(args: argparse.Namespace) -> Loaded:
    """The shape with random weights, made on the device, and its layout tried where the masters are float32."""
    device = models.device_named(args.device)
    shape = dict(SHAPES[args.shape])
    heads, key_heads = shape.pop("heads")
    config = LlamaConfig(
        **shape,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=args.shape != "llama-8b",
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.weights)).eval()
    models.still(model)
    compute = models.compute_type("auto", device) if args.weights == "float32" else torch.bfloat16
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    loaded = Loaded(model, tokenizer, args.shape, "", compute, device)
    if args.weights == "float32":
        loaded = models.choose_layout(loaded, "auto")
        print(f"rows: {loaded.layout.text}", flush=True)
    if args.adapter == "lora":
        loaded = models.attach_adapter(loaded, ModelSettings(adapter="lora"))
    return loaded


def drawn(args: argparse.Namespace, count: int) -> list[TokenizedPair]:
    """Pairs of random ids with the log-normal lengths of benchmarks/step."""
    found = ids.synthetic(args.lengths, count=count, words=SHAPES[args.shape]["vocab_size"])
    return [run_druthers.tokenized(TokenizedPair, pair, str(i)) for i, pair in enumerate(found)]


def flops(pairs: list[TokenizedPair], variant: Variant, args: argparse.Namespace, loaded: Loaded) -> float:
    """Floating-point operations of a step: matrix products of body, head and attention, forward and backward."""
    config = loaded.causal.config
    layers = loaded.causal.base_model.layers
    body = sum(w.numel() for n, w in layers.named_parameters() if w.ndim == 2 and "lora" not in n)
    head = config.vocab_size * config.hidden_size
    groups = plan(pairs, token_budget=args.budget, crew=1, rung=variant.rung)
    tokens = seen = 0
    for group in groups:
        rows = laid_out([pairs[i] for i in group], variant.rung)
        layout = tuple(row.tree for row in rows)
        width = max(tree.size for tree in layout)
        tokens += width * len(rows) if variant.rung == "padded" else sum(tree.size for tree in layout)
        if variant.rung == "padded":
            seen += len(rows) * width * (width + 1) // 2
        else:
            spans = [(b - a, d - c) for (a, b), (c, d) in sequences(layout)]
            seen += sum(own * before + own * (own + 1) // 2 for before, own in spans)
    scored = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    once = 2 * body * tokens
    look = 4 * config.num_hidden_layers * config.hidden_size * seen
    again = 1 if args.checkpointing else 0
    learned = 1 if args.adapter == "lora" else 2  # products of the backward by which weights and inputs get gradients
    return once * (1 + again + learned) + look * (1 + again + 2.5) + 2 * head * scored * (2 + learned)


def switched(crew: Crew, variant: Variant) -> Crew:
    """The crew with the attention of a variant."""
    layout = replace(crew.policy.layout, rung=variant.rung, kernel=variant.kernel)
    members = [replace(member, layout=layout) for member in crew.members]
    for member in members:
        models.set_rung(member, variant.rung)
    return replace(crew, policy=replace(crew.policy, layout=layout), members=members)


def synchronized(device: torch.device) -> float:
    """Seconds on the clock when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measured(crew: Crew, variant: Variant, pairs: list[TokenizedPair], args: argparse.Namespace, optimizer: Any) -> Row:
    """Seconds a step over the timed ones together, and the peak of the memory allocated."""
    device, loss = crew.policy.device, LOSSES["sigmoid"](beta=0.1)
    crew = switched(crew, variant)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def scores(batch: Any, some: Any, policy: Loaded) -> torch.Tensor:
        return torch.zeros(2, len(some), dtype=torch.float64, device=device)

    def step(start: int) -> None:
        some = pairs[start : start + args.step]
        loop.run_pairs(some, crew, scores, loss, token_budget=args.budget, learn="learn")
        weights = trainable(crew.policy).values()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        if optimizer is not None:
            optimizer.step()
        crew.follow()
        for weight in weights:
            weight.grad = None

    step(0)
    since = synchronized(device)
    for number in range(args.steps):
        step(number * args.step)
    took = (synchronized(device) - since) / args.steps
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return {"variant": variant.name, "seconds": took, "peak_gib": peak}


def prepared(args: argparse.Namespace, loaded: Loaded) -> tuple[Crew, Any]:
    """Who computes, and the optimizer."""
    optimizer = loop.make_optimizer(loaded, TrainSettings(learning_rate=1e-6)) if args.optimizer == "adamw" else None
    return crew_of(loaded), optimizer


def machine(device: torch.device) -> str:
    """What ran this."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{where}, torch {torch.__version__}"


def main() -> None:
    """Measure all, print the table."""
    args = options()
    loaded = made_model(args)
    pairs = drawn(args, args.step * args.steps)
    names = args.kernels or kernels.candidates(loaded.device, loaded.compute)
    variants = [Variant(rung, kernel) for rung in args.rungs for kernel in (names if rung != "padded" else [BLOCKWISE])]
    crew, optimizer = prepared(args, loaded)
    order = [*variants, *reversed(variants)] * args.rounds
    again: Kind = "layers" if args.checkpointing else "none"
    with compiling(crew.members, wanted=args.compile), recomputing(crew.members, again):
        rows = [measured(crew, variant, pairs, args, optimizer) for variant in order]
    work = {
        variant.name: statistics.mean(
            flops(pairs[start : start + args.step], variant, args, loaded) for start in range(0, len(pairs), args.step)
        )
        for variant in variants
    }
    print(f"{args.shape}, {args.lengths}, {machine(loaded.device)}, {loaded.compute}, {args.weights} masters")
    print("| variant | pairs/s | over the first | peak GiB | TFLOP a step | TFLOP/s | share of the peak |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for variant in variants:
        mine = [row for row in rows if row["variant"] == variant.name]
        seconds = statistics.median(row["seconds"] for row in mine)
        rate = work[variant.name] / seconds / 1e12
        peak = max(row["peak_gib"] for row in mine)
        found[variant.name] = {"pairs_s": args.step / seconds, "peak_gib": peak, "tflop_s": rate}
        over = found[variant.name]["pairs_s"] / found[variants[0].name]["pairs_s"]
        share = f"{rate / args.peak:.1%}" if args.peak else "-"
        print(
            f"| {variant.name} | {args.step / seconds:.2f} | {over:.2f} | {peak:.1f} | "
            f"{work[variant.name] / 1e12:.3g} | {rate:.3g} | {share} |"
        )
    if args.out:
        settings = {key: str(value) for key, value in vars(args).items()}
        result = {"machine": machine(loaded.device), "settings": settings, "runs": rows, "found": found}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
