"""One function over many jobs, in other processes: same results, same errors, nothing left behind."""

from __future__ import annotations

import operator
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from druthers import processes
from druthers.processes import over
from druthers.records import InputError
from tests import jobs

JOBS = list(range(1, 24))


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_stand_as_the_jobs_do(count: int) -> None:
    """However many work on them."""
    assert list(over(partial(operator.mul, 3), JOBS, count=count)) == [3 * job for job in JOBS]


@pytest.mark.parametrize("count", [1, 2])
def test_a_crew_does_one_work_after_another(count: int) -> None:
    """The same processes, each of which is told of new work once."""
    with processes.crew(count) as crew:
        assert list(crew.over(partial(operator.mul, 3), JOBS)) == [3 * job for job in JOBS]
        first = set(crew.over(jobs.pid_of, JOBS))
        assert list(crew.over(abs, [-1, 2, -3])) == [1, 2, 3]
        assert set(crew.over(jobs.pid_of, JOBS)) <= first
        assert len(first) <= count
    assert all(pid == os.getpid() or gone(pid) for pid in first)


def test_an_input_error_is_raised_in_the_order_of_the_jobs_and_everything_ends() -> None:
    """The results before it are handed out first; the processes are gone."""
    found: list[int] = []
    results = over(jobs.refuse_fours, [1, 2, 3, 4, 8, 5], count=2)
    with pytest.raises(InputError, match="row 4"):
        found.extend(results)
    assert found == [1, 2, 3]


def test_processes_are_others_and_end_when_the_reader_stops() -> None:
    """Also in the middle, with jobs still waiting."""
    results = over(jobs.pid_of, JOBS, count=2)
    pids = {next(results), next(results)}
    results.close()
    assert os.getpid() not in pids
    assert all(map(gone, pids))


def test_a_process_that_is_killed_is_said_in_one_sentence() -> None:
    """By the system, say, for want of memory."""
    with pytest.raises(InputError, match=r"was killed by signal 9, perhaps for want of memory.*threads=1"):
        list(over(jobs.die_of, [signal.SIGKILL] * 3, count=2))


@pytest.mark.parametrize(("work", "job", "status"), [(os._exit, 3, 3), (jobs.divide, 0, 1), (jobs.Heavy(), 1, 1)])
def test_a_process_that_ends_by_itself_did_not_want_memory(
    work: object, job: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it wrote on standard error says why."""
    with pytest.raises(InputError, match=rf"ended early \(exit status {status};") as caught:
        list(over(work, [job] * 3, count=2))  # type: ignore[arg-type]
    assert "memory" not in str(caught.value)
    assert ("Traceback" in capfd.readouterr().err) == (status == 1)


def test_a_process_that_goes_on_without_answering_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it for ever."""
    monkeypatch.setattr(processes, "GRACE", 0.2)
    with pytest.raises(InputError, match="closed its pipe without an answer") as caught:
        list(over(jobs.close_every_pipe, [1, 2, 3], count=2))
    assert "memory" not in str(caught.value)


def test_jobs_are_read_only_a_little_ahead() -> None:
    """So memory stays bounded however many there are."""
    read: list[int] = []

    def jobs() -> Iterator[int]:
        for job in JOBS:
            read.append(job)
            yield job

    results = over(partial(operator.mul, 1), jobs(), count=2)
    next(results)
    assert len(read) == 4
    results.close()


def test_what_is_printed_does_not_stand_among_the_results(capfd: pytest.CaptureFixture[str]) -> None:
    """A library may print; it is seen, but not where a command writes its own result."""
    assert list(over(partial(print, flush=True), ["noise"] * 3, count=2)) == [None] * 3
    out, err = capfd.readouterr()
    assert (out, err) == ("", "noise\n" * 3)


def test_a_start_up_that_prints_does_not_stand_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python runs `sitecustomize` before anything of ours; more than a pipe holds."""
    (tmp_path / "sitecustomize.py").write_text("print('hello ' * 20_000, flush=True)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert list(over(partial(operator.mul, 3), JOBS, count=2)) == [3 * job for job in JOBS]


WORK, JOB = pickle.dumps(processes.Work(abs)), pickle.dumps(-1)


@pytest.mark.parametrize("sent", [b"", WORK, WORK + JOB, WORK + JOB[:-4]], ids=["nothing", "work", "job", "half a job"])
@pytest.mark.parametrize("heard", ["heard", "unheard"])
def test_a_process_whose_parent_is_gone_ends_in_silence(sent: bytes, heard: str) -> None:
    """Before the work came, after it, in the middle of a job, or while it answers."""
    read, write = os.pipe()
    command = [sys.executable, "-c", processes.START.format(path=sys.path, sink=write)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[write])
    os.close(write)
    if heard == "unheard":
        os.close(read)
    _, said = child.communicate(sent, timeout=60)
    if heard == "heard":
        os.close(read)
    assert (child.returncode, said) == (0, b"")
