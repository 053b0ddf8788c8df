"""Standard streams that are closed, left by their reader, full or of a small encoding."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from druthers import cli
from druthers.streams import Voice, open_streams

SETTINGS = f"{sys.executable} -m druthers doctor --settings"


def shell(line: str, **world: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; its status is that of druthers, also where that is the first of a pipe."""
    bash = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(bash, env=os.environ | world, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--json | true", 1),
        ("| true", 1),
        (">&- 2>&-", 0),
        ("--json >&-", 0),
        ("--json <&- >&- 2>&-", 0),
        ("--json 2>/dev/full", 0),
    ],
)
def test_a_stream_that_nobody_reads_is_no_fault_of_ours(line: str, code: int) -> None:
    done = shell(f"{SETTINGS} {line}")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_full_disk_behind_standard_output_is_one_sentence(form: str) -> None:
    done = shell(f"{SETTINGS} {form} >/dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: standard output cannot be written: No space left on device; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_of_ours_gets_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    place = tmp_path / "opened"
    act = f"from druthers.streams import open_streams; open_streams(); f = open({str(place)!r}, 'w'); "
    act += "f.write(str(f.fileno()))"
    assert shell(f'{sys.executable} -c "{act}" {closed}').returncode == 0
    assert int(place.read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_small_encoding_loses_characters_and_no_result(encoding: str) -> None:
    world = {"PYTHONIOENCODING": encoding, "COLUMNS": "20", "TERM": "dumb"}
    for line in ("--help", "doctor --settings"):
        done = shell(f"{sys.executable} -m druthers {line}", **world)
        assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(shell(f"{SETTINGS} --json", **world).stdout)
    assert found == json.loads(shell(f"{SETTINGS} --json").stdout)


def test_a_reader_that_has_left_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&1 | tee log` and Ctrl-C: tee ends at once, and the step must still be finished and saved."""
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    open_streams()
    assert isinstance(sys.stderr, Voice)
    for _ in range(2):
        cli.bars.say("step 1: held-out loss 0.1524")
        cli.bars.stage("evaluate")
    with contextlib.suppress(BrokenPipeError):
        stream.close()
