"""druthers as a contender: its own training loop on given ids. Run by bench.py with SPEC.json and RESULT.json."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import cell

SEED = 0


def release_every(steps: int) -> int:
    """Steps after which freed memory goes back: once in the timed ones, oftener than in a run, where there are several.

    A run does it after every eighth step, which few timed steps would never see.

    >>> release_every(4), release_every(1)
    (4, 8)
    """
    return min(steps, 8) if steps > 1 else 8


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


class Watch:
    """The clock of a run: between two lines of its metrics lies a step. Raises Done after the last one."""

    def __init__(self, record: cell.Record, total: int, flops: Callable[[], float]) -> None:
        self.record, self.total, self.flops = record, total, flops
        self.since, self.before = time.perf_counter(), 0.0

    def scoring(self, done: int, of: int) -> None:
        """Some pairs more were scored by the reference."""
        self.record.reference = time.perf_counter() - self.since

    def note(self, row: dict[str, Any]) -> None:
        """A line of metrics; the first one is of the held-out pair, before any step."""
        if row["split"] == "heldout":
            self.record.start()
        else:
            self.record.stepped(loss=row["loss"], norm=row["grad_norm"])
            self.record.flops.append(self.flops() - self.before)
        self.before = self.flops()
        if row["split"] == "train" and row["step"] == self.total:
            raise Done


def handed_over(steps: Sequence[Sequence[cell.Ids]], *, size: int) -> list[Any]:
    """The pairs as druthers takes them, arranged so that its seeded shuffle gives the steps asked for."""
    from druthers.batching import Order
    from druthers.tokens import TokenizedPair

    wanted = [tokenized(TokenizedPair, pair, f"{s}-{i}") for s, step in enumerate(steps) for i, pair in enumerate(step)]
    order = Order(wanted, pairs_per_step=size, seed=SEED)
    shuffled = [index for step in range(len(steps)) for index in order.step(step)]
    place = {index: at for at, index in enumerate(shuffled)}
    return [wanted[place[index]] for index in range(len(wanted))]


def settings_of(spec: cell.Spec, *, scratch: str, total: int) -> Any:
    """The defaults, but for what the comparison holds equal."""
    from druthers import config

    return config.load(
        overrides=[
            f"run={scratch}/run",
            f"seed={SEED}",
            f"threads={spec.threads}",
            f"model.path={spec.model}",
            f"model.adapter={'lora' if spec.mode == 'lora' else 'none'}",
            f"train.pairs_per_step={spec.pairs_per_step}",
            f"train.token_budget={spec.token_budget}",
            f"train.evaluate_every={total + 1}",
            f"train.learning_rate={cell.RATE[spec.mode]}",
            "train.schedule=constant",
            "train.warmup_share=0",
        ]
    )


def contend() -> None:
    """One cell."""
    spec, record = cell.read_spec(), cell.Record()
    steps = cell.steps_of(cell.read_pairs(spec.pairs_file), steps=spec.steps, size=spec.pairs_per_step)
    from druthers import models, pipeline, run
    from druthers.train import loop, train

    record.imported()
    pairs = handed_over(steps, size=spec.pairs_per_step)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DRUTHERS_CACHE"] = f"{scratch}/cache"  # no reference scored by an earlier process
        settings = settings_of(spec, scratch=scratch, total=len(steps))
        pipeline.prepare(settings)
        policy = models.load(settings.model, seed=settings.seed)
        with (
            mock.patch.object(loop, "RELEASE_EVERY", release_every(spec.steps)),
            counting(wanted=spec.count_flops) as flops,
            run.open_run(settings) as place,
            contextlib.suppress(Done),
        ):
            watch = Watch(record, len(steps), flops)
            train(place, settings, policy, pairs=pairs, heldout=pairs[-1:], note=watch.note, scoring=watch.scoring)
    cell.write_result(spec, record, steps, in_effect=in_effect(policy) | {"release_every": release_every(spec.steps)})


def in_effect(policy: Any) -> dict[str, Any]:
    """What the loaded policy shows of the settings."""
    import torch

    from druthers.models import trainable

    return {
        "compute": str(policy.compute),
        "weights": sorted({str(weight.dtype) for weight in trainable(policy).values()}),
        "rows": policy.layout.text,
        "threads": torch.get_num_threads(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
    }


def tokenized(kind: Any, pair: cell.Ids, name: str) -> Any:
    """The ids as the type that druthers trains on."""
    scored = [(True,) * len(part) for part in (pair.chosen, pair.rejected)]
    return kind(name, pair.prompt, pair.chosen, pair.rejected, *scored)


if __name__ == "__main__":
    from druthers import cli

    with mock.patch.object(cli, "app", contend):  # so that memory is set up as the command line does it
        cli.main()
