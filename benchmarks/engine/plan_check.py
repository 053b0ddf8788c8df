"""What `druthers plan` says of a run, and what the run then takes.

    plan_check.py --recipe brand-voice [KEY=VALUE]... [--out result.json] [--cold]

Every other word goes to both commands. Each is a process of its own; the run goes into a new temporary directory. The
caches of reference log-probabilities and base answers are the user's unless --cold, which gives both commands a new,
empty one beside the unpacked model. Prints expected and real peak memory and seconds of every stage, and the errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WITHIN = 0.15


def called(verb: str, words: list[str], cache: str | None) -> dict[str, Any]:
    """What a verb prints as JSON."""
    command = [sys.executable, "-c", "from druthers.cli import main; main()", verb, *words, "--json"]
    world = {**os.environ, **({"DRUTHERS_CACHE": cache} if cache else {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=world)
    return json.loads(done.stdout)


def cold_cache(place: Path) -> str:
    """A cache that holds nothing but the unpacked models."""
    from druthers.storage import cache_folder

    cache = place / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(cache_folder("models"), target_is_directory=True)
    return str(cache)


def rows_of(plan: dict[str, Any], real: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, expected and real value of what is compared."""
    expected, took = plan["seconds"], real["seconds"]
    stages = ("curate", "train", "evaluate")
    return [
        ("peak memory, GiB", plan["memory_gib"]["peak"], real["train"]["peak_memory_gib"]),
        *((f"{stage}, s", expected[stage], took[stage]) for stage in stages),
        ("total, s", expected["total"], sum(took[stage] for stage in stages)),
    ]


def main() -> None:
    """Plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cold", action="store_true", help="with empty caches")
    own, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as place:
        cache = cold_cache(Path(place)) if own.cold else None
        there = ["--run", str(Path(place) / "run"), *words]
        plan = called("plan", there, cache)
        print(f"planned: {plan['memory_gib']['peak']} GiB, {plan['seconds']['total']} s; now the run", file=sys.stderr)
        real = called("align", there, cache)
    found = rows_of(plan, real)
    print("| what | planned | taken | error |\n|---|---|---|---|")
    for name, expected, taken in found:
        print(f"| {name} | {expected:.2f} | {taken:.2f} | {expected / taken - 1 if taken else 0:+.1%} |")
    judged = {name: abs(expected / taken - 1) <= WITHIN for name, expected, taken in (found[0], found[-1])}
    print("\n" + ", ".join(f"{name}: {'within' if fits else 'NOT within'} 15 %" for name, fits in judged.items()))
    if own.out:
        own.out.write_text(json.dumps({"plan": plan, "run": real}, indent=1) + "\n")


if __name__ == "__main__":
    main()
