"""The machine of the measurements: named once beside the results, and never mixed with another; and the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from cell import read_json, write_json

FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
SAME = ("cpu", "cores")


def cpuinfo() -> str:
    """What Linux says of its processors, nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = set(re.findall(r"physical id\s*: (\d+)(?:.*\n)+?core id\s*: (\d+)", cpuinfo()))
    return min(usable, len(found)) if found else usable


def describe() -> dict[str, object]:
    """Processor, cores, what multiplies bfloat16, memory and kernel."""
    text = cpuinfo()
    name = re.search(r"model name\s*: (.*)", text)
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": name[1].strip() if name else platform.processor(),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of the checkout, with a mark when druthers or this folder differs from it, results aside."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout.strip()

    found = git("rev-parse", "--short=10", "HEAD")
    changed = git("status", "--porcelain", "--", ".", "../../src", ":!results")
    return f"{found}-dirty" if found and changed else found or "unknown"


def check(path: Path) -> None:
    """Write the description, or end the run when the results beside it are another machine's."""
    now = describe()
    if path.is_file():
        then = read_json(path)
        if then is None or any(name not in then for name in SAME):
            sys.exit(f"{path} cannot be read; restore it, or name another folder with --results")
        if any(then[name] != now[name] for name in SAME):
            sys.exit(
                f"{path.parent} holds results of {then['cpu']} with {then['cores']} cores, and this is {now['cpu']} "
                f"with {now['cores']}; name another folder with --results"
            )
    write_json(path, now)
