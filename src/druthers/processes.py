"""One function over many jobs in processes of its own, started clean and fed through pipes.

Neither a fork (the parent may hold locks of other threads) nor `multiprocessing`'s spawn (it runs the user's script
anew). A process ends with the pipe it reads, so none outlives its parent. Answers have a pipe that nothing else writes
to: what a process prints, at its start too, goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
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


@dataclass(frozen=True, slots=True)
class Process:
    """One that serves: jobs go to its standard input, answers come by a pipe of their own."""

    started: subprocess.Popen[bytes]
    jobs: IO[bytes]
    answers: IO[bytes]


def over(work: Callable[[Job], Found], jobs: Iterable[Job], *, count: int) -> Generator[Found]:
    """`work` done on every job by `count` processes; results as the jobs stand, a few jobs ahead of the reader.

    `work` goes to each process once and may hold what it needs. With `count` 1 all is done here. InputError is raised
    here, in the order of the jobs; it is also raised where a process ends early.
    """
    if count <= 1:
        yield from (uncollected(work, job) for job in jobs)
        return
    idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        packed = pickle.dumps(work)
        started = [stack.enter_context(running()) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(stop, started)
        for process in started:
            idle.put(process)
        fed: set[int] = set()

        def ask(job: Job) -> Found:
            process = idle.get()
            try:
                found: Found = answer(process, job, first=b"" if process.started.pid in fed else packed)
                return found
            finally:
                fed.add(process.started.pid)
                idle.put(process)

        waiting: deque[Future[Found]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for job in jobs:
            waiting.append(pool.submit(ask, job))
            if len(waiting) >= count * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
    """The life of a process: the work, then one job after the other, until the pipe ends; answers go to `sink`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    jobs = received(sys.stdin.buffer)
    with contextlib.suppress(BrokenPipeError), os.fdopen(sink, "wb") as answers:
        work: Any = next(jobs, None)
        for job in jobs:
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
