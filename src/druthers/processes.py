"""One function over many jobs in processes of its own, started clean and fed through pipes.

Neither a fork (the parent may hold locks of other threads) nor `multiprocessing`'s spawn (it runs the user's script
anew). A process ends with the pipe it reads, so none outlives its parent. Answers have a pipe that nothing else writes
to: what a process prints, at its start too, goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from druthers.records import InputError

Job = TypeVar("Job")
Found = TypeVar("Found")
START = "import sys; sys.path[:] = {path!r}; from druthers.processes import serve; serve({sink})"
AHEAD = 2
"""Jobs for each process that are read before their turn."""
GRACE = 5.0
"""Seconds that a process whose pipe has ended may take to end itself."""


@dataclass(slots=True)
class Process:
    """One that serves: jobs go to its standard input, answers come by a pipe of their own; `does` is the work it has
    got, by the number of it."""

    started: subprocess.Popen[bytes]
    jobs: IO[bytes]
    answers: IO[bytes]
    does: int = -1


@dataclass(frozen=True, slots=True)
class Work:
    """What goes to a process before the jobs of another kind."""

    do: Callable[[Any], object]


def over(work: Callable[[Job], Found], jobs: Iterable[Job], *, count: int) -> Generator[Found]:
    """`work` done on every job by `count` processes; results as the jobs stand, a few jobs ahead of the reader.

    `work` goes to each process once and may hold what it needs. With `count` 1 all is done here. InputError is raised
    here, in the order of the jobs; it is also raised where a process ends early.
    """
    with crew(count) as members:
        yield from members.over(work, jobs)


class Crew:
    """Processes that do one kind of work after another, so that each is started once."""

    def __init__(self, processes: list[Process], pool: ThreadPoolExecutor | None) -> None:
        self.pool, self.count, self.works = pool, len(processes), itertools.count()
        self.idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
        for process in processes:
            self.idle.put(process)

    def over(self, work: Callable[[Job], Found], jobs: Iterable[Job]) -> Generator[Found]:
        """As the function of this name; where it is left early, the crew can do nothing else."""
        if self.pool is None:
            yield from (uncollected(work, job) for job in jobs)
            return
        packed, number = pickle.dumps(Work(work), protocol=pickle.HIGHEST_PROTOCOL), next(self.works)

        def ask(job: Job) -> Found:
            process = self.idle.get()
            try:
                first = b"" if process.does == number else packed
                process.does = number
                found: Found = answer(process, job, first=first)
                return found
            finally:
                self.idle.put(process)

        waiting: deque[Future[Found]] = deque()
        try:
            for job in jobs:
                waiting.append(self.pool.submit(ask, job))
                if len(waiting) >= self.count * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def crew(count: int) -> Generator[Crew]:
    """A crew of `count` processes, which end with the block; with 1 there is none, and all is done here."""
    if count <= 1:
        yield Crew([], None)
        return
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(running()) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(stop, started)
        yield Crew(started, pool)


def stop(processes: Iterable[Process]) -> None:
    """End processes whatever they do."""
    for process in processes:
        process.started.kill()


@contextlib.contextmanager
def running() -> Generator[Process]:
    """A process that serves, ended with the block."""
    world = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    read, sink = os.pipe()
    with os.fdopen(read, "rb") as answers:
        command = [sys.executable, "-c", START.format(path=sys.path, sink=sink)]
        try:
            started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, pass_fds=[sink], env=world)
        finally:
            os.close(sink)
        assert started.stdin is not None
        try:
            yield Process(started, started.stdin, answers)
        finally:
            started.kill()
            with contextlib.suppress(BrokenPipeError):
                started.stdin.close()
            started.wait()


def answer(process: Process, job: object, *, first: bytes) -> Any:
    """What a process makes of a job; `first` goes ahead of it."""
    try:
        process.jobs.write(first)
        pickle.dump(job, process.jobs, protocol=pickle.HIGHEST_PROTOCOL)
        process.jobs.flush()
        found = pickle.load(process.answers)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        raise InputError(f"a process beside this one {ending(process.started)}") from None
    if isinstance(found, InputError):
        raise found
    return found


def ending(started: subprocess.Popen[bytes]) -> str:
    """How a process ended that gives no answer any more, and what to do; one that goes on is killed."""
    try:
        status = started.wait(GRACE)
    except subprocess.TimeoutExpired:
        started.kill()
        return "closed its pipe without an answer; set threads=1 to do without it, and run again"
    if status < 0:
        why = f"was killed by signal {-status}, perhaps for want of memory; free some or"
    else:
        why = f"ended early (exit status {status}; what it wrote on standard error says why);"
    return f"{why} set threads=1 to do without it, and run again"


def uncollected(work: Callable[[Job], Found], job: Job) -> Found:
    """Work without pauses for garbage collection, which takes a third of the time where many objects live for long."""
    on = gc.isenabled()
    gc.disable()
    try:
        return work(job)
    finally:
        if on:
            gc.enable()


def serve(sink: int) -> None:
    """The life of a process: some work, then one job of it after the other; answers go to `sink`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    work: Callable[[Any], object] | None = None
    with contextlib.suppress(BrokenPipeError), os.fdopen(sink, "wb") as answers:
        for job in received(sys.stdin.buffer):
            if isinstance(job, Work):
                work = job.do
                continue
            assert work is not None, "a job came before its work"
            reply(answers, work, job)
            gc.collect()


def received(source: IO[bytes]) -> Iterator[Any]:
    """What comes through a pipe, until it ends or breaks off with the process that writes it."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            yield pickle.load(source)


def reply(sink: IO[bytes], work: Callable[[Job], object], job: Job) -> None:
    """The result of one job, or the InputError it raised."""
    try:
        found = uncollected(work, job)
    except InputError as error:
        found = error
    pickle.dump(found, sink, protocol=pickle.HIGHEST_PROTOCOL)
    sink.flush()
