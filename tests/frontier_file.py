"""Points along training as the evaluation writes them, made up: a reward that rises with the KL and falls off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from druthers.evaluate.along import FRONTIER, point

STEPS = (0, 10, 20, 40, 60)


def write_frontier(
    folder: Path,
    *,
    gain: float = 0.3,
    reach: float = 6.0,
    prompts: int = 64,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    scorer: str = "house",
    **changes: Any,
) -> Path:
    """`evaluation/frontier.jsonl` of a run that gains up to `gain` in reward and comes `reach` nats far.

    Prompts have the same names and levels whatever the seed; `changes` are keys of every line.
    """
    level = np.random.default_rng(7).uniform(0.2, 0.5, prompts).repeat(2)
    draw = np.random.default_rng(seed)
    names = [f"prompt-{i}" for i in range(prompts) for _ in range(2)]
    lines = []
    for step in steps:
        far = reach * step / max(steps)
        kl = np.zeros(2 * prompts) if step == 0 else far + np.sqrt(2 * far) * draw.standard_normal(2 * prompts)
        rise = gain * (1 - np.exp(-far / 2)) - 0.004 * far**2
        own = level if step == 0 else level + rise + 0.1 * draw.standard_normal(2 * prompts)
        rows = {
            "prompt_id": names,
            "tokens": [20 + step // 4] * len(names),
            "finished": [1] * len(names),
            "reward": [round(float(v), 6) for v in own],
            "reward_reference": [round(float(v), 6) for v in level],
            "k1": [round(float(v), 6) for v in kl],
            "k3": [round(float(abs(v)), 6) for v in kl],
        }
        line = point(rows, step=step, seed=0) | {
            "scorer": {"name": scorer, "id": scorer},
            "reference": "abc",
            "temperature": 1.0,
            "max_new_tokens": 64,
            "seed": 1,
            "seconds": 1.0,
            "rows": rows,
        }
        lines.append(line | changes)
    file = folder / FRONTIER
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file
