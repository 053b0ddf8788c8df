"""What training leaves behind: metrics by step, an outcome for every pair and pass, and how both are kept on the disk.

Letters: C pair axis (0 chosen, 1 rejected), P pairs of the whole optimizer step.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from druthers import storage
from druthers.devices import World
from druthers.losses import State
from druthers.records import InputError, Outcome
from druthers.run import Run, from_the_start
from druthers.storage import replacing
from druthers.tokens import TokenizedPair
from druthers.train import checkpoint
from druthers.train.checkpoint import Position

OUTCOME_LOG = "outcomes.jsonl"
Row = dict[str, Any]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a set of pairs did: log-probs, log-ratios, lengths (2, P) and losses (P,), float64 on the CPU.

    `state` is what the loss remembers after it.
    """

    pairs: Sequence[TokenizedPair]
    logp_CP: Tensor
    ratio_CP: Tensor
    length_CP: Tensor
    loss_P: Tensor
    tokens: int
    state: State = field(default_factory=dict)


def mean_loss(scored: Scored) -> float | None:
    """The weighted mean of the losses; None where no pair has a weight."""
    weight_P = torch.tensor([pair.weight for pair in scored.pairs], dtype=torch.float64)
    return ((scored.loss_P * weight_P).sum() / weight_P.sum()).item() if weight_P.sum() > 0 else None


def metrics_of(scored: Scored, *, beta: float) -> Row:
    """Means over the pairs, under the names TRL gives the same quantities."""
    reward_CP = beta * scored.ratio_CP
    margin_P = reward_CP[0] - reward_CP[1]
    right_P = (margin_P > 0).double() + 0.5 * (margin_P == 0).double()
    return {
        "loss": mean_loss(scored),
        "rewards/chosen": reward_CP[0].mean().item(),
        "rewards/rejected": reward_CP[1].mean().item(),
        "rewards/margins": margin_P.mean().item(),
        "rewards/accuracies": right_P.mean().item(),
        "logps/chosen": scored.logp_CP[0].mean().item(),
        "logps/rejected": scored.logp_CP[1].mean().item(),
        "pairs": len(scored.pairs),
        "tokens": scored.tokens,
    }


def outcomes_of(scored: Scored, *, step: int, split: Split) -> Iterator[Outcome]:
    """One record a pair."""
    columns = (
        scored.logp_CP[0],
        scored.logp_CP[1],
        scored.ratio_CP[0],
        scored.ratio_CP[1],
        scored.length_CP[0],
        scored.length_CP[1],
        scored.loss_P,
    )
    for pair, logp_c, logp_r, ratio_c, ratio_r, length_c, length_r, loss in zip(
        scored.pairs, *(c.tolist() for c in columns), strict=True
    ):
        yield Outcome(
            pair_id=pair.id,
            step=step,
            split=split,
            logp_chosen=logp_c,
            logp_rejected=logp_r,
            logratio_chosen=ratio_c,
            logratio_rejected=ratio_r,
            length_chosen=int(length_c),
            length_rejected=int(length_r),
            loss=loss,
        )


class Log(Protocol):
    """Where the lines of a run go."""

    def write(self, row: Row, scored: Scored, *, step: int, split: Split) -> None:
        """One line of metrics and one line for every pair."""

    def sizes(self) -> tuple[int, int]:
        """Bytes written to metrics and outcomes, which are on the disk before a checkpoint names them."""
        ...

    def close(self) -> None:
        """Nothing more is written."""


def open_logs(run: Run, position: Position, world: World) -> Log:
    """The logs on the rank that writes them, and nothing on the others."""
    return Logs(run, position) if world.leads else NoLogs()


class NoLogs:
    """The logs of a rank that writes none."""

    def write(self, row: Row, scored: Scored, *, step: int, split: Split) -> None:
        """Nothing."""

    def sizes(self) -> tuple[int, int]:
        """Nothing was written here."""
        return 0, 0

    def close(self) -> None:
        """Nothing is open."""


class Logs:
    """The two append-only logs of a run, cut back to the position a run resumes from."""

    def __init__(self, run: Run, position: Position) -> None:
        self.metrics = opened_at(run.path("metrics.jsonl"), position.metrics_bytes)
        self.outcomes = opened_at(run.path(OUTCOME_LOG), position.outcomes_bytes)

    def write(self, row: Row, scored: Scored, *, step: int, split: Split) -> None:
        """One line of metrics and one line for every pair."""
        lines = [outcome.model_dump_json().encode() + b"\n" for outcome in outcomes_of(scored, step=step, split=split)]
        with full_disk(self.metrics.name):
            self.metrics.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self.metrics.flush()
            self.outcomes.writelines(lines)
            self.outcomes.flush()

    def sizes(self) -> tuple[int, int]:
        """Bytes written to metrics and outcomes, which are on the disk before a checkpoint names them."""
        with full_disk(self.metrics.name):
            os.fsync(self.metrics.fileno())
            os.fsync(self.outcomes.fileno())
        return self.metrics.tell(), self.outcomes.tell()

    def close(self) -> None:
        """Close both; every write was flushed, so what still fails to go out is the rest of a line already refused."""
        for file in (self.metrics, self.outcomes):
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def full_disk(name: str) -> Iterator[None]:
    """A write that fails, as one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{name}: cannot be written: {error.strerror}; free some space and run the same command again"
        ) from error


def opened_at(path: Path, size: int) -> IO[bytes]:
    """A file opened for appending after its first `size` bytes; what was written later is cut off.

    Raises InputError when the file is shorter than that or cannot be opened.
    """
    with full_disk(str(path)):
        file = path.open("ab")
    if file.tell() < size:
        file.close()
        raise InputError(
            f"{path} is shorter than its checkpoint says; delete {path.parent / checkpoint.FOLDER} and run the same "
            "command again to train from the start"
        )
    file.truncate(size)
    return file


def write_outcomes(run: Run) -> None:
    """outcomes.parquet from the log of a finished run, which is then removed.

    Raises InputError for a damaged line.
    """
    log = run.path(OUTCOME_LOG)
    try:
        rows = [outcome.model_dump() for outcome in storage.read(str(log), Outcome)]
    except InputError as error:
        raise InputError(f"{error}; {from_the_start(run.folder)}") from None
    with replacing(run.path("outcomes.parquet")) as file:
        pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
    log.unlink()
