"""The command line called in this process, and pieces of code run in a child that may be killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from druthers import cli

FEW = (
    "train.pairs_per_step=4",
    "train.max_steps=2",
    "train.evaluate_every=1",
    "train.learning_rate=1e-3",
    "data.heldout_share=0.3",
    "evaluate.count=3",
    "evaluate.kl_prompts=2",
    "evaluate.max_new_tokens=6",
    "model.precision=float32",
    "threads=1",
)
"""Settings of a main job that takes a second on the tiny model."""

RUBRIC = """
name = "house"

[[rules]]
name = "short"
label = "at most three words"
kind = "word_count"
most = 3

[[rules]]
name = "calm"
label = "no exclamation mark"
kind = "forbids"
patterns = ["!"]
"""


@dataclass(frozen=True)
class Called:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; nothing may stand beside it."""
        assert self.code == 0, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def fault(self) -> str:
        """The one sentence of a refused command: the last line of standard error, standard output being empty."""
        assert self.code == 1, (self.code, self.err)
        assert self.out == ""
        assert "Traceback" not in self.err
        *_, last = self.err.splitlines()
        assert sum(line.startswith("error: ") for line in self.err.splitlines()) == 1
        assert last.startswith("error: ")
        return last.removeprefix("error: ")


def druthers(*arguments: object) -> Called:
    """`druthers ...`, entered where the installed command enters."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["druthers", *(str(argument) for argument in arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Called(code, out.getvalue(), err.getvalue())


def forked(act: Callable[[], object], *, seconds: int = 300) -> int:
    """Run `act` in a forked child and go on; its process id. A child that hangs is ended by its alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        code = 99
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def in_child(act: Callable[[], object], *, seconds: int = 300) -> int:
    """Run `act` in a forked child; its wait status."""
    return os.waitpid(forked(act, seconds=seconds), 0)[1]


# ---------------------------------------------------------------- inputs


def trl_rows(count: int = 16) -> list[dict[str, Any]]:
    """TRL rows with an explicit prompt."""
    return [
        {"prompt": f"question {i}?", "chosen": f"thank you, {i % 7}", "rejected": f"no, never ask {i % 5} again"}
        for i in range(count)
    ]


def hh_rows(count: int = 16) -> list[dict[str, Any]]:
    """HH transcripts of two rounds."""
    return [
        {side: f"\n\nHuman: question {i}?\n\nAssistant: which?\n\nHuman: that\n\nAssistant: {text}" for side, text in s}
        for i in range(count)
        for s in [(("chosen", f"thank you {i}"), ("rejected", f"go away {i}"))]
    ]


def chat_rows(count: int = 16) -> list[dict[str, Any]]:
    """TRL rows of messages, the prompt inside both sides."""
    return [
        {
            side: [{"role": "user", "content": f"question {i}?"}, {"role": "assistant", "content": f"{text} {i}"}]
            for side, text in (("chosen", "thank you"), ("rejected", "go away"))
        }
        for i in range(count)
    ]


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """The rows, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def files(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
