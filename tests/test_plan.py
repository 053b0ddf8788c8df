"""What is said before a run: the same pairs and steps as the run has, items that add up, and nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from druthers import models
from druthers.batching import Order
from druthers.config import Settings, load
from druthers.generation import CROWDED
from druthers.plan import TAKEN, clock, steps_of, workload
from druthers.plan.clock import Answering
from druthers.plan.table import table_of
from druthers.records import InputError
from druthers.session import Silent
from druthers.train import loop
from druthers.train.loop import make_schedule
from tests import calls, tiny
from tests.calls import druthers

ANSWERING = Answering(begin=1.0, step=0.1, step_row=0.01, rows=10, lengths=(2, 4, 4, 8), row_bytes=5.0)


@pytest.fixture(scope="module")
def place(shared_cache: Path) -> Path:
    """A folder with a model and pairs."""
    tiny.folder(shared_cache / "model")
    calls.jsonl(shared_cache / "pairs.jsonl", calls.trl_rows())
    return shared_cache


def options(place: Path, name: str = "run", *changes: str) -> tuple[object, ...]:
    """Options of a small main job."""
    own = ("--model", place / "model", "--data", place / "pairs.jsonl", "--run", place / name)
    return (*own, *calls.FEW, *changes)


def settings(place: Path, *changes: str) -> Settings:
    """The same as settings."""
    named = {"model.path": str(place / "model"), "data.pairs": str(place / "pairs.jsonl"), "run": str(place / "run")}
    return load(None, [*map(str, calls.FEW), *changes], named)


@pytest.fixture(scope="module")
def planned(place: Path) -> dict[str, Any]:
    """A plan before the run."""
    found: dict[str, Any] = druthers("plan", *options(place), "--price-per-hour", 36, "--json").json
    assert not (place / "run").exists()
    return found


@pytest.fixture(scope="module")
def summary(place: Path, planned: dict[str, Any]) -> dict[str, Any]:
    """The run after it."""
    found: dict[str, Any] = druthers("align", *options(place), "--json").json
    return found


def test_it_counts_the_pairs_and_the_steps_of_the_run(planned: dict[str, Any], summary: dict[str, Any]) -> None:
    assert planned["pairs"]["train"] == summary["pairs"]["train"]
    assert planned["pairs"]["heldout"] == summary["pairs"]["heldout"]
    assert planned["steps"] == summary["train"]["steps"]
    assert planned["rows"] == "shared"
    assert planned["recompute"].startswith("none (none needs ")


@pytest.mark.usefixtures("summary")
def test_after_the_run_its_own_pairs_are_read_and_base_answers_are_known(place: Path, planned: dict[str, Any]) -> None:
    again = druthers("plan", *options(place), "--json").json
    assert again["pairs"] == {**planned["pairs"], "source": "as curated in the run directory"}
    assert again["steps"] == planned["steps"]
    assert again["seconds"]["curate"] == 0.0
    assert again["seconds"]["parts"]["reference"] == 0.0
    other = druthers("plan", *options(place, "other", "seed=1"), "--json").json
    assert "curated for this plan" in other["pairs"]["source"]


def test_memory_adds_up_to_the_peak(planned: dict[str, Any]) -> None:
    found = planned["memory_gib"]
    assert sum(found["training"].values()) == pytest.approx(found["training_peak"], abs=0.01)
    assert sum(found["answers"].values()) == pytest.approx(found["answers_peak"], abs=0.01)
    assert found["peak"] == max(found["training_peak"], found["answers_peak"])
    assert set(found["training"]) == {"process", "weights", "copies", "sums", "states", "head", "activations"}


def test_time_adds_up_and_costs_its_price(planned: dict[str, Any]) -> None:
    seconds = planned["seconds"]
    parts = seconds["parts"]
    assert sum(parts.values()) == pytest.approx(seconds["total"], abs=0.5)
    assert seconds["curate"] + seconds["train"] + seconds["evaluate"] == pytest.approx(seconds["total"], abs=0.3)
    assert set(parts) == {
        *("curate", "load", "reference", "steps", "evaluations", "checkpoints"),
        *("base model", "answers", "scoring"),
    }
    assert planned["cost"] == pytest.approx(36 * planned["hours"], abs=0.04)


def test_points_along_training_are_in_the_time_and_what_stands_meanwhile_in_the_memory(place: Path) -> None:
    found = druthers("plan", *options(place, "along", "evaluate.along=3"), "--json").json
    assert found["seconds"]["parts"]["along"] > 0
    assert sum(found["seconds"]["parts"].values()) == pytest.approx(found["seconds"]["total"], abs=0.5)
    assert "training" in found["memory_gib"]["answers"]
    table_of(found)


def test_for_people_there_is_a_table(place: Path) -> None:
    found = druthers("plan", *options(place))
    assert found.code == 0
    for words in ("training, at the peak", "answers, at the peak", "optimizer states", "recompute", "time"):
        assert words in found.out
    assert "cost" not in found.out


def test_a_bad_row_stops_a_plan_as_it_would_the_run(place: Path) -> None:
    calls.jsonl(place / "bad.jsonl", [*calls.trl_rows(), {"prompt": "Why?", "chosen": "Yes.", "rejected": "Yes."}])
    found = druthers("plan", *options(place), f"data.pairs={place / 'bad.jsonl'}")
    assert found.code == 1
    assert "bad.jsonl:" in found.err


@pytest.mark.parametrize(
    ("change", "said"),
    [("evaluate.rubric=nowhere.toml", "nowhere.toml"), ("run=rubbish", "is not empty and holds no run")],
)
def test_what_would_stop_the_run_stops_the_plan(
    place: Path, change: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "rubbish").mkdir(exist_ok=True)
    (place / "rubbish" / "file").touch()
    own = ("--model", place / "model", "--data", place / "pairs.jsonl", *calls.FEW, change)
    assert said in druthers("plan", *own).fault
    assert not list(place.glob(".plan-*"))


def test_a_step_that_does_not_fit_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **how: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(clock, "run_pairs", full)
    said = druthers("plan", *options(place, "unfit")).fault
    assert "does not fit into the memory of cpu" in said
    assert "lower train.token_budget" in said


def test_weights_do_not_move(place: Path) -> None:
    """The steps that are taken have a rate of zero."""
    own = settings(place)
    policy = models.load(own.model)
    work = workload(own, policy.tokenizer)
    steps = steps_of(work, make_schedule(work.train, own.train), policy, own)
    before = models.weights_sha(policy.model)
    from druthers import plan as room

    room.train_a_little(work, make_schedule(work.train, own.train), steps, policy, own, screen=Silent())
    assert models.weights_sha(policy.model) == before


def test_as_many_steps_are_taken_as_a_run_takes_before_it_gives_memory_back() -> None:
    assert len(TAKEN) == loop.RELEASE_EVERY
    assert max(TAKEN) == 1.0


# ---------------------------------------------------------------- the workload


def test_more_rows_than_are_curated_are_estimated_from_the_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("druthers.plan.work.WHOLE", 10)
    monkeypatch.setattr("druthers.plan.work.SAMPLE", 20)
    own = settings(place, "run=nowhere")
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    calls.jsonl(place / "many.jsonl", [{**row, "prompt": f"{row['prompt']} {i}"} for i in range(4) for row in rows])
    data = own.data.model_copy(update={"pairs": str(place / "many.jsonl"), "heldout_share": 0.2})
    own = own.model_copy(update={"data": data})
    count = 4 * len(rows)
    found = workload(own, models.load_tokenizer(own.model))
    assert found.how.startswith(f"estimated from the first 20 of {count} rows")
    assert found.train + found.held == pytest.approx(count, abs=2)
    assert len(found.pairs) + len(found.heldout) == 20
    limited = own.model_copy(update={"data": data.model_copy(update={"limit": 30})})
    assert workload(limited, models.load_tokenizer(own.model)).train == 30


def test_the_steps_are_those_of_the_schedule(place: Path) -> None:
    own = settings(place)
    policy = models.load(own.model)
    work = workload(own, policy.tokenizer)
    found = steps_of(work, make_schedule(work.train, own.train), policy, own)
    order = Order(work.pairs, kind="shuffled", pairs_per_step=own.train.pairs_per_step, seed=own.seed)
    assert found.pairs == [[work.pairs[i] for i in order.step(step)] for step in range(found.total)]
    assert found.tokens[found.at(1.0)] == max(found.tokens)
    assert found.tokens[found.at(0.0)] == min(found.tokens)
    padded = replace(policy, layout=replace(policy.layout, rung="padded"))
    wide = steps_of(work, make_schedule(work.train, own.train), padded, own)
    assert all(a > b for a, b in zip(wide.tokens, found.tokens, strict=True))


def test_prompts_of_a_file_without_any_are_refused(place: Path) -> None:
    own = settings(place)
    policy = models.load(own.model)
    calls.jsonl(place / "none.jsonl", [])
    empty = own.model_copy(update={"evaluate": own.evaluate.model_copy(update={"prompts": str(place / "none.jsonl")})})
    with pytest.raises(InputError, match=r"none\.jsonl"):
        workload(empty, policy.tokenizer)


# ---------------------------------------------------------------- answers


def test_rows_leave_a_batch_as_generation_lets_them() -> None:
    assert ANSWERING.left(8, most=20) == [8, 6, 6, 2, 2, 2, 2]
    assert ANSWERING.left(8, most=3) == [8, 6]
    assert CROWDED == 0.75


def test_answers_come_in_rounds() -> None:
    one = ANSWERING.seconds(10, at_once=10, most=2)
    assert one == pytest.approx(1.0 + 0.1 + 0.1)
    assert ANSWERING.seconds(20, at_once=10, most=2) == pytest.approx(2 * one)
    assert ANSWERING.seconds(5, at_once=10, most=2) == pytest.approx(0.5 + 0.1 + 0.05)
    assert ANSWERING.seconds(0, at_once=10, most=2) == 0.0


def test_half_an_answer_is_put_behind_a_prompt(place: Path) -> None:
    own = settings(place).evaluate.model_copy(update={"max_new_tokens": 10})
    assert clock.halfway([1, 2, 3], own) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_the_table_shows_a_cost_where_there_is_one(planned: dict[str, Any]) -> None:
    assert table_of(planned).row_count == table_of({**planned, "cost": None}).row_count + 1
