"""Time and memory of `druthers curate` as a whole process, and how much of what was planted it found.

    bench.py PAIRS.jsonl [--out result.json] [KEY=VALUE]...

PAIRS.jsonl is made by pairs.py. Memory is the sum over all processes of the command, looked at every half second
(Linux); shared pages count once for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faults import found


def descendants(pid: int) -> list[int]:
    """A process and those below it."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        below.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += below.get(found[-1], [])
    return found


def resident(pids: list[int]) -> int:
    """Bytes of memory of some processes."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            continue
    return total


def watched(command: list[str]) -> tuple[float, float, dict[str, Any]]:
    """Seconds, largest memory in GiB, and what the command prints as JSON."""
    since, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as screen:
        process = subprocess.Popen(command, stdout=screen)
        while process.poll() is None:
            most = max(most, resident(descendants(process.pid)))
            time.sleep(0.5)
        took = time.perf_counter() - since
        if process.returncode:
            sys.exit(f"the command ended with status {process.returncode}")
        screen.seek(0)
        return took, most / 2**30, json.loads(screen.read())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path)
    args, words = parser.parse_known_args()
    planted = json.loads(args.pairs.with_suffix(".faults.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        command = [sys.executable, "-c", "from druthers.cli import main; main()", "curate", "--json"]
        command += ["--data", str(args.pairs), "--run", str(run), "data.bad_rows=drop", *words]
        took, most, summary = watched(command)
        result = {"rows": summary["rows"], "bytes": args.pairs.stat().st_size, "seconds": round(took, 1)}
        result |= {
            "peak_gib": round(most, 2),
            "rejected": summary["rejected"],
            "found": found(run, planted, name=args.pairs.name),
        }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
