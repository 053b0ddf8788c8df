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

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.optimum import Case, Method, Reached, reach  # noqa: E402

SEEDS = (0, 1, 2)
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


def main() -> None:
    """Every language, every method."""
    torch.set_num_threads(1)
    rows = []
    print("| answers | beta | method | TV before | TV after, by seed | worst | KL | objective reached | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for longest, beta in ((1, 0.5), (3, 0.5), (3, 0.25)):
        for method in HOW:
            found = measured(longest, beta, method)
            rows.append({"longest": longest, "beta": beta, "method": method, "runs": [asdict(one) for one in found]})
            after = [one.after for one in found]
            mean = {
                name: statistics.mean(asdict(one)[name] for one in found)
                for name in ("before", "kl", "share", "seconds")
            }
            print(
                f"| up to {longest} | {beta:g} | {method} | {mean['before']:.3f} | "
                f"{', '.join(f'{x:.4f}' for x in after)} | {max(after):.4f} {'' if max(after) <= BAR else '(over)'} | "
                f"{mean['kl']:.3f} | {mean['share']:.2%} | {mean['seconds']:.1f} |",
                flush=True,
            )
    place = Path(__file__).parent / "results" / "optimum.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"seeds": SEEDS, "bar": BAR, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
