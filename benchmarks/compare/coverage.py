"""How often the intervals of `druthers compare` hold the true number, on simulated runs whose truth is known.

Two methods with five checkpoints each. The true reward at a KL rises and falls off (over-optimisation); the second
method lies above the first by a gap that is a part of the spread of a single answer. Every prompt has a level and a
response of its own, shared by both methods, and every answer noise on top. With seeds, every run also has an offset of
its own. Prints the share of simulations whose 95 % interval holds the truth.

    python benchmarks/compare/coverage.py [--repeats 400] [--seeds 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from druthers.frontiers import GRID, Cloud, advantage, beaten, dominated, envelope
from druthers.stats import Floats, Interval

AT = np.array([0.3, 1.0, 2.5, 5.0, 8.0])
SPREAD, OWN, LUCK = 0.25, 0.15, 0.02
"""Standard deviations: of one answer's reward, of a prompt's level, and of a run's offset where there are seeds."""


@dataclass(frozen=True)
class Truth:
    """True KL and reward of the points of both methods, and of the reference."""

    kl: Floats
    first: Floats
    second: Floats
    start: float = 0.4

    @property
    def share(self) -> float:
        """True share of the first method's points that the second beats; the second is a little nearer everywhere."""
        return float(beaten(self.kl, self.first, 0.95 * self.kl, self.second).mean())

    @property
    def gap(self) -> float:
        """True reward of the second minus that of the first at equal KL."""
        grid = np.linspace(0.0, 0.95 * float(self.kl.max()), GRID)
        curves = (
            envelope(kl, reward, start=self.start, at=grid)
            for kl, reward in ((0.95 * self.kl, self.second), (self.kl, self.first))
        )
        second, first = curves
        return float((second - first).mean())


def truth(gap: float) -> Truth:
    """Curves of both methods."""
    first = 0.4 + 0.3 * (1 - np.exp(-AT / 2)) - 0.015 * AT
    return Truth(AT, first, first + gap)


def simulated(kl: Floats, reward: Floats, level_G: Floats, *, seeds: int, draw: np.random.Generator) -> list[Cloud]:
    """Runs of a method on prompts of some level; the KL of an answer is noisy about as its size."""
    prompts = len(level_G)
    clouds = []
    for _ in range(seeds):
        offset = LUCK * draw.standard_normal() if seeds > 1 else 0.0
        answers = draw.standard_normal((len(kl), prompts))
        noise_KG = np.sqrt(2 * kl)[:, None] * draw.standard_normal((len(kl), prompts)) / np.sqrt(2)
        clouds.append(Cloud(kl[:, None] + noise_KG, reward[:, None] + offset + level_G + SPREAD / np.sqrt(2) * answers))
    return clouds


def held(gap: float, prompts: int, *, seeds: int, repeats: int) -> tuple[float, float, float, float]:
    """Coverage of both intervals, and how wide they are on average."""
    true, draw = truth(gap), np.random.default_rng(prompts)
    hits: list[Sequence[float]] = []
    for repeat in range(repeats):
        level_G = OWN * draw.standard_normal(prompts)
        first = simulated(true.kl, true.first, level_G, seeds=seeds, draw=draw)
        second = simulated(0.95 * true.kl, true.second, level_G, seeds=seeds, draw=draw)
        share = dominated(first, second, seed=repeat, resamples=400)
        ahead = advantage(second, first, true.start + level_G, seed=repeat, resamples=400)
        assert isinstance(share, Interval)
        assert isinstance(ahead, Interval)
        hits.append(
            (
                share.low <= true.share <= share.high,
                ahead.low <= true.gap <= ahead.high,
                share.high - share.low,
                ahead.high - ahead.low,
            )
        )
    found = np.array(hits, dtype=float).mean(0)
    return float(found[0]), float(found[1]), float(found[2]), float(found[3])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    print("gap    prompts  true share  covered  width   true at equal KL  covered  width")
    for gap in (-0.1, -0.02, 0.0, 0.02, 0.1):
        for prompts in (32, 256):
            share, ahead, wide, width = held(gap, prompts, seeds=chosen.seeds, repeats=chosen.repeats)
            true = truth(gap)
            print(
                f"{gap:+.2f}  {prompts:7d}  {true.share:10.2f}  {share:7.1%}  {wide:5.2f}  "
                f"{true.gap:+16.4f}  {ahead:7.1%}  {width:.4f}"
            )


if __name__ == "__main__":
    main()
