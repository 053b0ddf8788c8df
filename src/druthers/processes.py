"""One function over many jobs in processes of its own, started clean and fed through pipes.

Neither a fork (the parent may hold locks of other threads) nor `multiprocessing`'s spawn (it runs the user's script
anew). A process ends with the pipe it reads, so none outlives its parent.
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
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from druthers.records import InputError

Job = TypeVar("Job")
Found = TypeVar("Found")
START = "import sys; sys.path[:] = {path!r}; from druthers.processes import serve; serve()"
AHEAD = 2
"""Jobs for each process that are read before their turn."""


def over(work: Callable[[Job], Found], jobs: Iterable[Job], *, count: int) -> Generator[Found]:
    """`work` done on every job by `count` processes; results as the jobs stand, a few jobs ahead of the reader.

    `work` goes to each process once and may hold what it needs. With `count` 1 all is done here. InputError is raised
    here, in the order of the jobs; it is also raised where a process ends early.
    """
    if count <= 1:
        yield from (uncollected(work, job) for job in jobs)
        return
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
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
                found: Found = answer(process, job, first=b"" if process.pid in fed else packed)
                return found
            finally:
                fed.add(process.pid)
                idle.put(process)

        waiting: deque[Future[Found]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for job in jobs:
            waiting.append(pool.submit(ask, job))
            if len(waiting) >= count * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def stop(started: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes whatever they do."""
    for process in started:
        process.kill()


@contextlib.contextmanager
def running() -> Generator[subprocess.Popen[bytes]]:
    """A process that serves, ended with the block."""
    command = [sys.executable, "-c", START.format(path=sys.path)]
    world = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=world)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()


def answer(process: subprocess.Popen[bytes], job: object, *, first: bytes) -> Any:
    """What a process makes of a job; `first` goes ahead of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(first)
        pickle.dump(job, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        found = pickle.load(process.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        raise InputError(
            f"a process beside this one ended early (exit status {process.wait()}), perhaps for want of memory; "
            "free some or set threads=1, and run again"
        ) from None
    if isinstance(found, InputError):
        raise found
    return found


def uncollected(work: Callable[[Job], Found], job: Job) -> Found:
    """Work without pauses for garbage collection, which takes a third of the time where many objects live for long."""
    on = gc.isenabled()
    gc.disable()
    try:
        return work(job)
    finally:
        if on:
            gc.enable()


def serve() -> None:
    """The life of a process: the work, then one job after the other, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not stand among the answers
    work = pickle.load(source)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            reply(sink, work, pickle.load(source))
            gc.collect()


def reply(sink: IO[bytes], work: Callable[[Job], object], job: Job) -> None:
    """The result of one job, or the InputError it raised."""
    try:
        found = uncollected(work, job)
    except InputError as error:
        found = error
    pickle.dump(found, sink, protocol=pickle.HIGHEST_PROTOCOL)
    sink.flush()
