"""What the rules of advice read is what the commands write: ids, limits and slices, by runs and not by lists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from druthers.curate.advice import Rule
from druthers.records import Finding
from tests.calls import druthers, jsonl
from tests.test_advice import HEALTHY, IDS, RULES, bad
from tests.test_inspect import QUICK, SMALL, place, prompts, row

__all__ = ["place"]


def votes() -> Iterator[dict[str, Any]]:
    """Everything that only people's answers give: agreement, order, both bad, dates, gold and a held-out neighbour."""
    for i in range(120):
        asked = row(i)
        both = {"prompt": asked["prompt"], "response_a": asked["chosen"], "response_b": asked["rejected"]}
        for who, wrong in (("ann", i % 9 == 0), ("bob", i % 7 == 0), ("cid", i % 2 == 0)):
            winner = "tie (both bad)" if i % 20 == 19 else "b" if wrong else "a"
            yield both | {"winner": winner, "annotator": who, "model_a": "m1", "model_b": "m2", "date": "2026-01-05"}


def circles() -> Iterator[dict[str, Any]]:
    """Three answers to a question, each better than the next, with ratings of both sides."""
    for i in range(60):
        told = [f"{name} {i}, said in so many words." for name in ("Plum", "Carrot", "Bread")]
        for at in range(3):
            rated = {"score_chosen": 8, "score_rejected": 6}
            yield {"prompt": f"Name food {i}.", "chosen": told[at], "rejected": told[(at + 1) % 3]} | rated


@pytest.fixture(scope="module")
def written(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """The findings of runs of votes with gold items, of circles, and of pairs that are inspected with a rubric."""
    folder = tmp_path_factory.mktemp("rules")
    jsonl(folder / "votes.jsonl", votes())
    jsonl(folder / "circles.jsonl", circles())
    gold = [one for one in votes() if one["annotator"] == "ann" and one["winner"] == "a"][:30]
    jsonl(folder / "gold.jsonl", gold)
    jsonl(folder / "production.jsonl", prompts(150, new=30))
    model, known = ("--model", place / "model", *SMALL), f"grade.gold={folder}/gold.jsonl"
    calls = [
        ("curate", "--data", folder / "votes.jsonl", "--run", folder / "votes", *model, known),
        ("curate", "--data", folder / "circles.jsonl", "--run", folder / "circles", *model, "grade.good=7"),
        ("curate", "--data", place / "pairs.jsonl", "--run", folder / "pairs", *model, "evaluate.rubric=brand-voice"),
        ("inspect", folder / "pairs", "--prompts", folder / "production.jsonl", *QUICK),
    ]
    for call in calls:
        called = druthers(*call, "--json")
        assert called.code == 0, called.err
    told = [
        json.loads((folder / name / "data/quality.json").read_text("utf-8")) for name in ("votes", "circles", "pairs")
    ]
    return [Finding.model_validate(one) for each in told for one in each["findings"]]


def limited(found: Iterable[Finding], name: str, side: str) -> bool:
    """Whether some finding of that id can come to that verdict."""
    return any(one.id == name and one.limits and getattr(one.limits, side) is not None for one in found)


def test_every_finding_that_a_rule_knows_is_written(written: list[Finding]) -> None:
    assert set(IDS) <= {one.id for one in written}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_a_verdict_that_fires_a_rule_can_be_reached(rule: Rule, written: list[Finding]) -> None:
    for name in IDS:
        about: dict[str, str] = next((one.slice for one in written if one.id == name and one.slice), {})
        for side in ("warn", "fail"):
            fires = rule.when(bad(name, side, slice=about)) or rule.when(bad(name, side))
            lower = side == "fail" and rule.when(bad(name, "warn", slice=about))
            if fires and not rule.when(HEALTHY) and not lower:
                assert limited(written, name, side), f"{name} never comes to {side}"


def test_the_slices_that_rules_read_are_those_that_are_written(written: list[Finding]) -> None:
    slices = {one.id: set(one.slice) for one in written if one.slice}
    assert slices["D3.alpha"] == {"criterion", "metric"}
    assert slices["D3.noise"] == {"criterion"}
    assert slices["D3.annotator"] == {"criterion", "annotator"}
    assert slices["D6.gold"] == {"annotator"}
    assert {one.slice["metric"] for one in written if one.id == "D3.alpha"} <= {"nominal", "ordinal"}
    assert "overall" in {one.slice["criterion"] for one in written if one.id == "D3.alpha"}
