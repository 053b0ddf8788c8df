"""Agreement and noise against what is known: the krippendorff package, and simulated annotators.

    agreement.py [--tables 2000] [--seeds 20] [--out result.json]

Random tables (2 to 8 annotators, 2 to 40 items, values -3 to 3, up to 70 % missing) give alpha for the three metrics
here and in the package. Simulated annotators err independently; the noise that their disagreement shows is held against
the share of votes that are wrong in truth, over seeds and settings. The estimate takes errors for independent and
annotators for equal, so settings with unequal ones are among them. Status 1 where alpha differs by more than 1e-9 or
the noise by more than 0.03 in any seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
from numpy.typing import NDArray

from druthers import votes
from druthers.stats import Interval
from druthers.votes import Votes

METRICS: tuple[votes.Metric, ...] = ("nominal", "ordinal", "interval")
SETTINGS: dict[str, tuple[tuple[float, ...], int, int]] = {
    "12 annotators, all wrong in 5 of 100, 2 votes, 2,000 items": ((0.95,) * 12, 2, 2000),
    "12 annotators, all wrong in 15 of 100, 2 votes, 2,000 items": ((0.85,) * 12, 2, 2000),
    "12 annotators, all wrong in 30 of 100, 2 votes, 2,000 items": ((0.7,) * 12, 2, 2000),
    "12 annotators, wrong in 2 to 30 of 100, 3 votes, 2,000 items": (tuple(np.linspace(0.7, 0.98, 12)), 3, 2000),
    "4 annotators, wrong in 5 to 35 of 100, 3 votes, 1,000 items": ((0.95, 0.9, 0.8, 0.65), 3, 1000),
    "50 annotators, wrong in 10 of 100, 5 votes, 1,000 items": ((0.9,) * 50, 5, 1000),
    "12 annotators, wrong in 3 of 100 but one who always is, 3 votes, 5,000 items": ((0.97,) * 11 + (0.03,), 3, 5000),
}
"""How often each annotator is right, votes an item, and items."""


def tables(count: int) -> dict[str, Any]:
    """The largest difference of alpha over random tables, by metric."""
    draw, worst, compared = np.random.default_rng(0), dict.fromkeys(METRICS, 0.0), 0
    for _ in range(count):
        shape = int(draw.integers(2, 9)), int(draw.integers(2, 41))
        table = draw.integers(-3, 4, shape).astype(float)
        table = np.where(draw.random(shape) < draw.random() * 0.5, np.rint(table.mean(0)), table)
        table[draw.random(shape) < draw.random() * 0.7] = np.nan
        coder, unit = np.nonzero(np.isfinite(table))
        for metric in METRICS:
            found = votes.alpha(unit, table[coder, unit], metric=metric, resamples=10)
            if isinstance(found, Interval):
                judged = table[:, np.isfinite(table).sum(0) > 1]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    peer = float(krippendorff.alpha(judged, level_of_measurement=metric))
                worst[metric] = max(worst[metric], abs(found.value - peer))
                compared += 1
    return {"tables": count, "compared": compared, "largest_difference": worst}


def simulated(right: tuple[float, ...], each: int, items: int, *, seed: int) -> tuple[Votes, float]:
    """Votes of annotators who are right so often, and the share of them that is wrong."""
    draw = np.random.default_rng(seed)
    truth: NDArray[np.int64] = draw.choice((-1, 1), items)
    item = np.repeat(np.arange(items), each)
    who = np.argsort(draw.random((items, len(right))), axis=1)[:, :each].reshape(-1)
    wrong = draw.random(len(item)) >= np.asarray(right)[who]
    return Votes(item, who, np.where(wrong, -truth[item], truth[item]), items, len(right)), float(wrong.mean())


def noises(seeds: int) -> dict[str, Any]:
    """Errors of the noise over seeds, by setting, and how often its interval holds the truth."""
    result = {}
    for name, (right, each, items) in SETTINGS.items():
        errors, inside = [], 0
        for seed in range(seeds):
            made, truth = simulated(right, each, items, seed=seed)
            found = votes.noise(votes.disagreement(made))
            assert isinstance(found, Interval)
            errors.append(found.value - truth)
            inside += found.low <= truth <= found.high
        largest = max(map(abs, errors))
        result[name] = {"mean": round(float(np.mean(errors)), 4), "largest": round(largest, 4), "inside": inside}
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    alpha, noise = tables(args.tables), noises(args.seeds)
    held = max(alpha["largest_difference"].values()) < 1e-9 and all(one["largest"] <= 0.03 for one in noise.values())
    result = {"alpha": alpha, "seeds": args.seeds, "noise": noise, "verdict": "pass" if held else "fail"}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(not held)


if __name__ == "__main__":
    main()
