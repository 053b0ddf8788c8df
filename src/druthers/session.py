"""What a command works in: the run directory, the ranks that work on it together, and a screen."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from druthers import devices
from druthers.config import Settings
from druthers.devices import World
from druthers.records import InputError
from druthers.run import CONFIG, Run, open_run
from druthers.train import Interrupted

Bar = Callable[[int, int], None]


class Screen(Protocol):
    """Where progress is shown."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def say(self, text: str) -> None:
        """One line of what was found or derived."""

    def bar(self, label: str) -> Bar:
        """A progress bar: call it with (done, total)."""

    def clear(self) -> None:
        """The bars of the stage are done."""


class Silent:
    """The screen of a rank that does not speak."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def bar(self, label: str) -> Bar:
        """A bar that nobody sees."""
        return lambda done, total: None

    def clear(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Session:
    """An open run, the ranks that work on it, and the screen, which only rank 0 has."""

    run: Run
    world: World
    screen: Screen


@contextlib.contextmanager
def session(settings: Settings, *, screen: Screen) -> Iterator[Session]:
    """Meet the other ranks where there are some, and open the run: rank 0 for all, for one process holds its lock.

    Raises InputError where a rank is missing or does not see the run directory, and Interrupted on rank 0 alone: the
    others exit as it will.
    """
    with devices.joined(device=settings.model.device) as world, contextlib.ExitStack() as stack:
        run = world.first(lambda: stack.enter_context(open_run(settings)))
        if not run.has(CONFIG):
            raise InputError(
                f"rank {world.rank} does not see the run directory {run.folder} of rank 0; "
                "name one that all machines share with run=FOLDER"
            )
        try:
            yield Session(run, world, screen if world.leads else Silent())
        except Interrupted as stop:
            if world.leads:
                raise
            sys.exit(128 + stop.signal)
