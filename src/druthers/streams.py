"""Standard streams that take whatever comes: closed, left by their reader, on a full disk, in a small encoding."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, TextIO, cast

from druthers.records import InputError


def open_streams() -> None:
    """Standard streams that take every text.

    One that was closed would leave its number to the next file that is opened, a log of the run perhaps, and what
    others write to that number would stand in it. What an encoding lacks is written as a question mark.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, nowhere(mode))
    if isinstance(sys.stdout, io.TextIOWrapper) and not takes_all(sys.stdout):
        sys.stdout.reconfigure(errors="replace")
    sys.stderr = cast(Any, Voice(sys.stderr))


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Standard output that cannot be written, as one sentence; typer ends a command whose reader has left."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = nowhere("w")  # or it would be tried again at the end
        raise InputError(
            f"standard output cannot be written: {error.strerror}; send it elsewhere and run the same command again"
        ) from error


class Voice:
    """Standard error. Where its reader has left (`2>&1 | tee log`, and Ctrl-C) or its disk is full, work goes on."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.heard = stream, True

    def write(self, text: str) -> int:
        """Text, as long as somebody takes it."""
        with self.taken():
            if self.heard:
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """What was written goes out."""
        with self.taken():
            if self.heard:
                self.stream.flush()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A stream that failed once is not tried again."""
        try:
            yield
        except OSError:
            self.heard = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def nowhere(mode: str) -> IO[str]:
    """A stream to which all can be written, and from which nothing is read; other processes have it too."""
    opened = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
    os.set_inheritable(opened.fileno(), True)
    return opened


def takes_all(stream: TextIO) -> bool:
    """Whether a stream can write every character."""
    return (stream.encoding or "utf-8").lower().startswith("utf")
