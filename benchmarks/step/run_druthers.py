"""druthers as a contender: its own training loop on given ids. Run by bench.py with SPEC.json and RESULT.json."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import cell


class Done(Exception):
    """The last timed step has ended; what a run does at its end (evaluation, checkpoint) is not part of a step."""


@contextmanager
def counting(*, wanted: bool) -> Iterator[Any]:
    """A function that gives the floating-point operations of matrix products so far; zero unless `wanted`."""
    if not wanted:
        yield lambda: 0.0
        return
    import torch
    from torch.utils.flop_counter import FlopCounterMode, bmm_flop, mm_flop

    ops = torch.ops.aten

    def added(out: Any, a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int((mm_flop if len(a) == 2 else bmm_flop)(a, b))

    with FlopCounterMode(display=False, custom_mapping={ops.addmm_: added, ops.baddbmm_: added}) as counter:
        yield counter.get_total_flops


def contend() -> None:
    """One cell."""
    spec, record = cell.read_spec(), cell.Record()
    steps = cell.steps_of(cell.read_pairs(spec.pairs_file), steps=spec.steps, size=spec.pairs_per_step)

    import torch

    from druthers import config, models, pipeline, run
    from druthers.batching import Order
    from druthers.tokens import TokenizedPair
    from druthers.train import train

    record.imported()
    size, total = spec.pairs_per_step, len(steps)
    # The order is a permutation drawn from the seed; the pairs are handed over so that it puts them where they belong.
    wanted = [tokenized(TokenizedPair, pair, f"{s}-{i}") for s, step in enumerate(steps) for i, pair in enumerate(step)]
    order = Order(wanted, pairs_per_step=size, seed=0)
    pairs = list(wanted)
    for place, index in enumerate(i for s in range(total) for i in order.step(s)):
        pairs[index] = wanted[place]

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DRUTHERS_CACHE"] = f"{scratch}/cache"  # no reference scored by an earlier process
        settings = config.load(
            overrides=[
                f"run={scratch}/run",
                f"threads={spec.threads}",
                f"model.path={spec.model}",
                f"model.adapter={'lora' if spec.mode == 'lora' else 'none'}",
                f"train.pairs_per_step={size}",
                f"train.token_budget={spec.token_budget}",
                f"train.evaluate_every={total + 1}",
                f"train.learning_rate={cell.RATE[spec.mode]}",
                "train.schedule=constant",
                "train.warmup_share=0",
            ]
        )
        pipeline.prepare(settings)
        policy = models.load(settings.model, seed=settings.seed)
        with counting(wanted=spec.count_flops) as flops:
            before, since = 0.0, time.perf_counter()

            def note(row: dict[str, Any]) -> None:
                nonlocal before
                if row["split"] == "heldout":
                    record.start()
                else:
                    record.stepped(loss=row["loss"], norm=row["grad_norm"])
                    record.flops.append(flops() - before)
                before = flops()
                if row["split"] == "train" and row["step"] == total:
                    raise Done

            def scoring(done: int, of: int) -> None:
                record.reference = time.perf_counter() - since

            try:
                with run.open_run(settings) as place:
                    train(place, settings, policy, pairs=pairs, heldout=pairs[-1:], note=note, scoring=scoring)
            except Done:
                pass
    effect = {
        "compute": str(policy.compute),
        "weights": sorted({str(w.dtype) for w in models.trainable(policy).values()}),
        "rows": policy.layout.text,
        "threads": torch.get_num_threads(),
        "huge pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
    }
    cell.write_result(spec, record, steps, in_effect=effect)


def tokenized(kind: Any, pair: cell.Ids, name: str) -> Any:
    """The ids as the type that druthers trains on."""
    scored = [(True,) * len(part) for part in (pair.chosen, pair.rejected)]
    return kind(name, pair.prompt, pair.chosen, pair.rejected, *scored)


if __name__ == "__main__":
    from druthers import cli

    with mock.patch.object(cli, "app", contend):  # so that memory is set up as the command line does it
        cli.main()
