"""The planted faults of benchmarks/curation, a few of each kind: what is planted is found, and little else."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from druthers import config
from druthers.curate import curate
from tests import tiny

FOLDER = Path(__file__).parents[1] / "benchmarks" / "curation"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, which imports others beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("faults")
    for name in [n for n, m in sys.modules.items() if Path(getattr(m, "__file__", None) or ".").parent == FOLDER]:
        del sys.modules[name]


def test_every_kind_is_planted_and_found(faults: Any, tmp_path: Path) -> None:
    faults.plant(tmp_path, count=400, faults=10, seed=1, text=None)
    for name in ("pairs", "votes"):
        keys: dict[str, Any] = {"data.pairs": str(tmp_path / f"{name}.jsonl"), "data.bad_rows": "drop"}
        keys |= {"data.max_prompt": 4096, "data.max_response": 4096}
        keys |= {"data.heldout": str(tmp_path / "heldout.jsonl")} if name == "pairs" else {}
        curate(config.load(extra=keys), out=tmp_path / name / "data", tokenizer=tiny.tokenizer())
    planted = json.loads((tmp_path / "pairs.faults.json").read_text("utf-8"))
    assert {kind: len(numbers) for kind, numbers in planted.items()} == {
        kind: 20 if kind == "contradiction" else 10 for kind in faults.SIGNS
    }
    found = faults.found(tmp_path / "pairs", planted, name="pairs.jsonl")
    assert min(one["recall"] for one in found.values()) >= 0.9, found
    assert min(one["precision"] for one in found.values()) >= 0.9, found
    swapped = json.loads((tmp_path / "votes.faults.json").read_text("utf-8"))
    told = faults.named(tmp_path / "votes", swapped, name="votes.jsonl")
    assert told["alone"]
    assert told["recall"] == told["precision"] == 1.0
