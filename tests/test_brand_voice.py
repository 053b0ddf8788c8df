"""The packaged preference set is what its card says, and what the rubric makes of its answers today."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from druthers import storage
from druthers.curate import pairs_from_ranking
from druthers.judges import load_rubric, rate
from druthers.records import Candidates, Pair, Prompt

SIDES = ("train", "development", "heldout")
HOME = Path(str(resources.files("druthers"))) / "data" / "brand-voice"


@pytest.fixture(scope="module")
def rated() -> dict[str, Candidates]:
    rubric = load_rubric("brand-voice")
    rows = [
        row for part in ("", "heldout_") for row in storage.read(str(HOME / f"{part}candidates.jsonl.gz"), Candidates)
    ]
    return {row.prompt_id: rate(rubric, row) for row in rows}


def pairs(side: str) -> list[Pair]:
    return list(storage.read(str(HOME / f"{side}.jsonl.gz"), Pair))


def as_lines(made: list[Pair]) -> list[str]:
    return sorted(json.dumps(pair.line(), sort_keys=True) for pair in made)


def shingles(prompt: Prompt) -> frozenset[str]:
    words = prompt.prompt[-1].content.lower().split()
    return frozenset(" ".join(words[i : i + 3]) for i in range(len(words) - 2))


def prompts(part: str) -> list[Prompt]:
    return list(storage.read(str(HOME / f"{part}prompts.jsonl"), Prompt))


def ids(rows: list[Prompt] | list[Pair]) -> set[str]:
    return {row.prompt_id for row in rows}


def test_it_is_small_and_has_the_prompts_it_promises() -> None:
    assert sum(file.stat().st_size for file in HOME.iterdir()) < 3_000_000
    assert len(ids(prompts(""))) == len(prompts("")) == 1790
    assert len(ids(prompts("heldout_"))) == len(prompts("heldout_")) == 184
    assert {side: len(ids(pairs(side))) for side in SIDES} == {"train": 1175, "development": 162, "heldout": 183}


def test_every_prompt_is_on_one_side() -> None:
    train, development, held = (ids(pairs(side)) for side in SIDES)
    assert train | development <= ids(prompts(""))
    assert not train & development
    assert held <= ids(prompts("heldout_"))
    assert not ids(prompts("heldout_")) & ids(prompts(""))


def test_no_held_out_prompt_is_nearly_another_prompt() -> None:
    outside, inside = ([shingles(row) for row in prompts(part)] for part in ("heldout_", ""))
    closest = max(len(a & b) / len(a | b) for a in outside for b in inside)
    assert closest < 0.15


def test_every_prompt_has_four_answers(rated: dict[str, Candidates]) -> None:
    assert len(rated) == 1790 + 184
    assert {len(row.responses) for row in rated.values()} == {4}


@pytest.mark.parametrize("side", SIDES)
def test_the_pairs_are_what_the_rubric_makes_of_the_answers(side: str, rated: dict[str, Candidates]) -> None:
    """Margin scale, number of pairs and rules that chosen must keep as in scripts/build_brand_voice.py."""
    made = pairs(side)
    must = load_rubric("brand-voice").musts if side == "train" else ()
    again = [p for pair in made for p in pairs_from_ranking(rated[pair.prompt_id], margin_scale=1.0, most=1, must=must)]
    assert bool(must) == (side == "train")
    assert as_lines(again) == as_lines(made)
