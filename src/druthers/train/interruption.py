"""Ctrl-C and SIGTERM: finish the step, save, leave."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HEARD = b"\nstopping after this step, then saving; once more to stop at once and lose the step\n"


class Interrupted(RuntimeError):
    """The run stopped at a signal; its state is saved and the same command continues it."""

    def __init__(self, *, step: int, total: int, signal: int) -> None:
        super().__init__(f"stopped at step {step} of {total}; saved, and the same command continues from there")
        self.step = step
        self.signal = signal


class Interruption:
    """While entered, the first signal is remembered in `signal` (0 before it); a second one acts as if we were not."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), HEARD)  # print could meet itself half-way: this may run inside another print

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
