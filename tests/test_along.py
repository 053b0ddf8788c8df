"""Points along training: the same prompts and luck at every step, no line twice, and a run that learns the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from druthers import models, pipeline
from druthers.compiled import Twofold
from druthers.config import Settings, load
from druthers.evaluate.along import FRONTIER, Scorer, measure, point, put
from druthers.records import Exchange, InputError
from druthers.run import Run
from druthers.session import Silent
from druthers.train import Interrupted
from tests import calls, tiny
from tests.calls import druthers

ALONG = ("evaluate.along=4", "train.max_steps=3")


@pytest.fixture(scope="module")
def place(shared_cache: Path) -> Path:
    """A folder with a model, pairs and a rubric."""
    tiny.folder(shared_cache / "model")
    calls.jsonl(shared_cache / "pairs.jsonl", calls.trl_rows(24))
    (shared_cache / "house.toml").write_text(calls.RUBRIC, encoding="utf-8")
    return shared_cache


def options(place: Path, name: str, *changes: str) -> tuple[object, ...]:
    """Options of a small main job with a rubric."""
    own = ("--model", place / "model", "--data", place / "pairs.jsonl", "--run", place / name)
    return (*own, *calls.FEW, f"evaluate.rubric={place / 'house.toml'}", *changes)


def settings(place: Path, name: str, *changes: str) -> Settings:
    """The same as settings."""
    named = {"model.path": str(place / "model"), "data.pairs": str(place / "pairs.jsonl"), "run": str(place / name)}
    return load(None, [*calls.FEW, f"evaluate.rubric={place / 'house.toml'}", *changes], named)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a frontier."""
    return [json.loads(line) for line in (folder / FRONTIER).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def watched(place: Path) -> Path:
    """A trained run with points along it."""
    found = druthers("train", *options(place, "watched", *ALONG))
    assert found.code == 0, found.err
    assert "reward against KL at 4 points: 8 answers each" in found.err
    return place / "watched"


def test_there_is_one_line_for_each_evaluation_and_it_begins_at_the_reference(watched: Path) -> None:
    found = lines(watched)
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    start = found[0]
    assert start["kl"]["k1"]["value"] == pytest.approx(0, abs=1e-4)
    assert (start["win_rate"]["value"], start["ties"], start["wins"]) == (0.5, 8, 0)
    assert start["samples"] == 8
    assert start["prompts"] == 4
    assert all(line["rows"]["prompt_id"] == start["rows"]["prompt_id"] for line in found)
    assert all(line["rows"]["reward_reference"] == start["rows"]["reward_reference"] for line in found)
    assert found[-1]["rows"]["k1"] != start["rows"]["k1"]


def test_every_number_of_a_line_follows_from_its_rows(watched: Path) -> None:
    for line in lines(watched):
        rows = line["rows"]
        assert line["reward"]["value"] == pytest.approx(np.mean(rows["reward"]))
        assert line["kl"]["k3"]["value"] == pytest.approx(np.mean(rows["k3"]))
        assert line["length"] == pytest.approx(np.mean(rows["tokens"]))
        better = np.sign(np.subtract(rows["reward"], rows["reward_reference"]))
        assert [line["wins"], line["ties"], line["losses"]] == [int((better == sign).sum()) for sign in (1, 0, -1)]
        saved = (watched / "evaluation" / "along" / f"step-{line['step']:06d}.jsonl").read_text(encoding="utf-8")
        assert len(saved.splitlines()) == line["samples"]


def test_a_run_that_is_watched_learns_the_same(place: Path, watched: Path) -> None:
    assert druthers("train", *options(place, "plain", *ALONG, "evaluate.along=0")).code == 0
    assert not (place / "plain" / FRONTIER).exists()
    file = Path("checkpoints", "step-000003", "weights.safetensors")
    ours, theirs = load_file(watched / file), load_file(place / "plain" / file)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(
    "more",
    [("model.adapter=lora",), ("train.recompute=layers",), ("train.optimizer=adamw-8bit", "model.precision=auto")],
)
def test_it_works_with_whatever_training_does_to_the_model(place: Path, more: tuple[str, ...]) -> None:
    name = more[0].rpartition("=")[2]
    found = druthers("train", *options(place, name, *ALONG, "train.max_steps=1", *more))
    assert found.code == 0, found.err
    start, after = lines(place / name)
    assert start["kl"]["k1"]["value"] == pytest.approx(0, abs=1e-3)
    assert start["ties"] == 8
    assert after["step"] == 1


def test_resuming_gives_the_lines_of_an_uninterrupted_run(
    place: Path, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, calls_of = settings(place, "stopped", *ALONG), []

    def stop(along: Any, policy: Any, step: int, **more: Any) -> dict[str, Any]:
        line = measure(along, policy, step, **more)
        calls_of.append(step)
        if calls_of == [0, 1, 2]:  # measured, but the checkpoint is not saved
            raise Interrupted(step=step, total=3, signal=15)
        return line

    monkeypatch.setattr(pipeline, "measure", stop)
    pipeline.prepare(chosen)
    for _ in range(2):
        with pipeline.session(chosen, screen=Silent()) as here:
            try:
                pipeline.learn(here, chosen)
            except Interrupted:
                assert [line["step"] for line in lines(place / "stopped")] == [0, 1, 2]
    assert calls_of == [0, 1, 2, 2, 3]
    ours, theirs = ([{**line, "seconds": 0} for line in lines(folder)] for folder in (place / "stopped", watched))
    assert ours == theirs


def test_kept_checkpoints_are_measured_afterwards(place: Path, watched: Path) -> None:
    assert druthers("align", *options(place, "later", "train.max_steps=3")).code == 0
    found = druthers("evaluate", place / "later", "--along", "4")
    assert found.code == 0, found.err
    steps = [line["step"] for line in lines(place / "later")]
    assert steps[0] == 0
    assert steps[-1] == 3
    assert set(steps) < {0, 1, 2, 3} or steps == [0, 1, 2, 3]
    during, after = lines(watched)[-1], lines(place / "later")[-1]
    assert after["rows"] == during["rows"]


def test_several_ranks_are_refused_with_what_to_do(place: Path) -> None:
    chosen = settings(place, "ranks", *ALONG)
    with pytest.raises(InputError, match=r"evaluate\.along = 4 answers prompts .* --along N"):
        pipeline.check_along(chosen, ranks=2)
    pipeline.check_along(chosen, ranks=1)


def test_any_function_of_answers_is_a_scorer(place: Path, watched: Path) -> None:
    chosen = settings(place, "watched", *ALONG)

    def shortness(answers: Sequence[Exchange]) -> list[float]:
        return [-float(one.tokens) for one in answers]

    along = replace(pipeline.along_of(Run(watched), chosen), scorer=Scorer("short", shortness), folder=place / "short")
    line = measure(along, models.load(chosen.model), 0, keep=pipeline.always)
    assert line["reward"]["value"] == -line["length"]
    assert line["scorer"] == {"name": "short", "id": ""}
    without = measure(replace(along, scorer=None), models.load(chosen.model), 0, keep=pipeline.always)
    assert without["reward"]["undefined"] == without["win_rate"]["undefined"] == "no scorer is set"
    assert without["kl"] == line["kl"]


def test_a_line_takes_the_place_of_the_one_of_its_step(tmp_path: Path) -> None:
    file = tmp_path / "frontier.jsonl"
    for step, value in ((0, 1), (4, 2), (8, 3), (4, 4)):
        put(file, {"step": step, "value": value}, keep=pipeline.always)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"step": 0, "value": 1}, {"step": 4, "value": 4}, {"step": 8, "value": 3}]
    put(file, {"step": 4, "value": 5}, keep=lambda other: other < 4)
    assert [json.loads(line)["step"] for line in file.read_text(encoding="utf-8").splitlines()] == [0, 4]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_copy_of_a_compiled_layer_has_the_layers_own_forward_on_its_own_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = Twofold(layer.forward)  # type: ignore[method-assign]
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.zero_()
        twin.bias.zero_()
    assert twin(torch.ones(2)).tolist() == [0.0, 0.0]
    assert not isinstance(twin.forward, Twofold)


def test_a_point_without_answers_says_so() -> None:
    rows: dict[str, list[Any]] = {name: [] for name in ("prompt_id", "tokens", "finished", "k1", "k3")}
    found = point(rows, step=0, seed=0)
    assert found["kl"]["k1"]["undefined"] == "no rows"
    assert found["length"] is None
