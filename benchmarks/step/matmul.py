"""The box's own bfloat16 rate: `matmul.py OUT.json --model FOLDER --threads 2 [--tokens 1024] [--seconds 0.5]`.

The three products of every linear layer of the model (forward, and two in the backward), with as many side by side as a
training step on a CPU has micro-batches; and large square products, likewise and with all threads on one. The best of
all is the box's rate. Needs druthers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cell
import torch

SQUARE = (1024, 2048, 4096)
Work = tuple[float, Callable[[], None]]


def linear_shapes(model: str) -> dict[tuple[int, int], int]:
    """Outputs and inputs of the linear layers of a model folder, and how many there are of each."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    found: dict[tuple[int, int], int] = {}
    for module in made.modules():
        if type(module) is torch.nn.Linear:
            shape = (module.out_features, module.in_features)
            found[shape] = found.get(shape, 0) + 1
    return found


def linear(tokens: int, out: int, into: int) -> Work:
    """Operations of the three products of one layer, and a call of them."""
    x, weight, slope = (torch.randn(*size).bfloat16() for size in ((tokens, into), (out, into), (tokens, out)))

    def call() -> None:
        torch.nn.functional.linear(x, weight)
        torch.mm(slope, weight)
        torch.mm(slope.t(), x)

    return 6.0 * tokens * out * into, call


def square(size: int) -> Work:
    """Operations of one large product, and a call of it."""
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()

    def call() -> None:
        torch.mm(a, b)

    return 2.0 * size**3, call


def rate(make: Callable[[], Work], *, workers: int, seconds: float) -> float:
    """Operations a second of `workers` that work side by side, each on its own numbers."""
    from druthers.threads import side_by_side

    def run(work: Work) -> float:
        flops, call = work
        call()
        done, since = 0, time.perf_counter()
        while time.perf_counter() - since < seconds:
            call()
            done += 1
        return flops * done / (time.perf_counter() - since)

    return sum(side_by_side(run, [make() for _ in range(workers)], workers=workers))


def main() -> None:
    """Measure, and write the rates in FLOP/s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from druthers.logprobs import CHUNK
    from druthers.threads import crew_size

    crew = crew_size(torch.device("cpu"))
    layers, total, spent = {}, 0.0, 0.0
    for (out, into), count in linear_shapes(args.model).items():
        tokens = args.tokens * 2 // 5 if out > 16384 else args.tokens  # responses: 0.4 of the tokens
        words = min(out, CHUNK // tokens)  # the head works on blocks
        found = rate(lambda t=tokens, o=words, i=into: linear(t, o, i), workers=crew, seconds=args.seconds)
        layers[f"{tokens} x {into} x {words}"] = found
        work = 6.0 * args.tokens * out * into * count * (0.4 if out > 16384 else 1.0)
        total, spent = total + work, spent + work / found
    squares = {
        f"{n} ({workers} side by side)": rate(lambda n=n: square(n), workers=workers, seconds=args.seconds)
        for n in SQUARE
        for workers in {1, crew}
    }
    model = total / spent
    cell.write_json(
        args.out,
        {"peak": max(*squares.values(), *layers.values()), "model": model, "layers": layers, "squares": squares},
    )


if __name__ == "__main__":
    main()
