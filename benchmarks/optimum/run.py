"""PPO, RLOO and DPO against the optimum `ref exp(r / beta) / Z`, which is enumerated: total variation over seeds.

    PYTHONPATH=src python benchmarks/optimum/run.py

A bandit (answers of one token), and answers of up to three tokens: every one of them is known, so the table has no
sampling error of its own. Prints it, and writes results/optimum.json beside this file.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.optimum import Case, Method, Reached, reach  # noqa: E402

SEEDS = (0, 1, 2)
CASES = ((1, 0.5), (3, 0.5), (3, 0.25))
BAR = 0.05
HOW: dict[Method, dict[str, float]] = {
    "ppo": {"steps": 80, "rate": 1e-3},
    "rloo": {"steps": 80, "rate": 3e-3},
    "dpo": {"steps": 400, "rate": 3e-3},
}


def measured(longest: int, beta: float, method: Method) -> list[Reached]:
    """One method on one language, once a seed."""
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            how = HOW[method]
            case = Case(longest=longest, beta=beta, seed=seed)
            found.append(reach(Path(folder), case, method, steps=int(how["steps"]), rate=how["rate"]))
    return found


def said(row: dict[str, Any]) -> str:
    """A line of the table."""
    runs = row["runs"]
    mean = {name: statistics.mean(run[name] for run in runs) for name in ("before", "kl", "share", "seconds")}
    after = [run["after"] for run in runs]
    return (
        f"| up to {row['longest']} | {row['beta']:g} | {row['method']} | {mean['before']:.3f} | "
        f"{', '.join(f'{x:.4f}' for x in after)} | {max(after):.4f} | {mean['kl']:.3f} | {mean['share']:.2%} | "
        f"{mean['seconds']:.0f} |"
    )


def main() -> None:
    """Every language, every method, or those named: `3:0.5:ppo`; rows measured before stay in the file."""
    torch.set_num_threads(1)
    place = Path(__file__).parent / "results" / "optimum.json"
    place.parent.mkdir(exist_ok=True)
    rows: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))["rows"] if place.exists() else {}
    print("| answers | beta | method | TV before | TV after, by seed | worst | KL | objective reached | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or [f"{longest}:{beta:g}:{method}" for longest, beta in CASES for method in HOW]:
        longest, beta, method = name.split(":")
        found = measured(int(longest), float(beta), method)  # type: ignore[arg-type]
        runs = [asdict(one) for one in found]
        rows[name] = {"longest": int(longest), "beta": float(beta), "method": method, "runs": runs}
        print(said(rows[name]), flush=True)
        note = {"seeds": SEEDS, "bar": BAR, "rows": rows}
        place.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
