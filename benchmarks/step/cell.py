"""One cell of the benchmark: what is run on which pairs, its clock, and the file with what was measured.

The driver and all contenders import this, each in an environment of its own, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

BETA, CLIP = 0.1, 1.0
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
RATE = {"full": 1e-6, "lora": 1e-4}
"""Learning rates, constant from the first step on."""
SPAWNED = "BENCH_SPAWNED"
"""Environment variable with the time at which the driver started the process."""
RUNGS = (
    "naive",
    "padding-free",
    "response head",
    "shared prompt",
    "cached reference",
    "working copies",
    "two micro-batches side by side",
    "compiled layers",
)
"""Of the ladder, each with what those before it have; a run has all but the last, which `train.compile` asks for."""
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "numpy", "druthers")


@dataclass(frozen=True)
class Spec:
    """What one process runs. `micro_batch`, `attention`, `memory` and `level` are the peers'; the budget is ours."""

    contender: str
    mode: str
    shape: str
    model: str
    pairs_file: str
    steps: int
    pairs_per_step: int
    threads: int
    level: str = "tuned"
    micro_batch: int = 1
    attention: str = "sdpa"
    memory: str = "huge pages"
    token_budget: int = 2048
    count_flops: bool = False


@dataclass(frozen=True)
class Ids:
    """Token ids of one pair; every response token is scored."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def naive(self) -> int:
        """Tokens of the two sequences without padding, the prompt counted twice."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def cut(self, *, prompt: int, response: int) -> Ids:
        """The first tokens of each part.

        >>> Ids((1, 2, 3), (4, 5), (6,)).cut(prompt=2, response=1)
        Ids(prompt=(1, 2), chosen=(4,), rejected=(6,))
        """
        return Ids(self.prompt[:prompt], self.chosen[:response], self.rejected[:response])


def read_pairs(path: str) -> list[Ids]:
    """The pairs of an id file, in its order."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))["pairs"]
    return [Ids(*(tuple(part) for part in row)) for row in rows]


def steps_of(pairs: Sequence[Ids], *, steps: int, size: int) -> list[list[Ids]]:
    """A step to warm up, then `steps` steps of `size` pairs; within a step long pairs come first.

    Whoever cuts a step into micro-batches in the given order has pairs of like length together. Raises ValueError when
    there are too few pairs.
    """
    if len(pairs) < steps * size:
        raise ValueError(f"{steps} steps of {size} pairs need {steps * size} pairs, and the file holds {len(pairs)}")
    timed = [sorted(pairs[i * size : (i + 1) * size], key=lambda p: -p.longest) for i in range(steps)]
    return [warm_up(timed[0]), *timed]


def warm_up(step: Sequence[Ids]) -> list[Ids]:
    """A step as large in memory as a real one but shorter: its longest quarter whole, of the others a few tokens."""
    whole = max(1, len(step) // 4)
    return [*step[:whole], *(pair.cut(prompt=8, response=4) for pair in step[whole:])]


@dataclass
class Record:
    """What a contender measures: seconds of every step (the first one warms up), losses and gradient norms."""

    spawned: float = field(default_factory=lambda: float(os.environ.get(SPAWNED, time.time())))
    imports: int = 0
    mark: float = 0.0
    seconds: list[float] = field(default_factory=list)
    first_step: float = 0.0
    reference: float = 0.0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)

    def imported(self) -> None:
        """All packages are loaded, no model is."""
        self.imports = peak_bytes()

    def start(self) -> None:
        """The first step begins now."""
        self.mark = time.perf_counter()

    def stepped(self, *, loss: float, norm: float) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self.mark)
        self.mark = now
        self.losses.append(loss)
        self.norms.append(norm)
        if len(self.seconds) == 1:
            self.first_step = time.time() - self.spawned


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_spec() -> Spec:
    """The spec named by the first argument."""
    return Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def write_result(spec: Spec, record: Record, steps: Sequence[Sequence[Ids]], *, in_effect: dict[str, Any]) -> None:
    """The result as JSON to the file named by the second argument; raises RuntimeError when a step is missing."""
    peak = peak_bytes()
    if len(record.seconds) != len(steps):
        raise RuntimeError(f"{len(record.seconds)} steps ran where {len(steps)} were asked for")
    every = [pair for step in steps for pair in step]
    write_json(
        Path(sys.argv[2]),
        {
            "spec": {**asdict(spec), "model": Path(spec.model).name, "pairs_file": Path(spec.pairs_file).name},
            "seconds": record.seconds[1:],
            "warm_up": record.seconds[0],
            "naive_tokens": [sum(pair.naive for pair in step) for step in steps[1:]],
            "losses": record.losses,
            "grad_norms": record.norms,
            "flops": record.flops[1:],
            "first_step": record.first_step,
            "reference": {"seconds": record.reference, "tokens": sum(pair.naive for pair in every)},
            "bytes": {"imports": record.imports, "peak": peak},
            "in_effect": in_effect,
            "packages": versions(),
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )


def versions() -> dict[str, str]:
    """Versions of the packages that this environment has."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is none to be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: object) -> None:
    """JSON under a temporary name, then renamed: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
