"""The main job on the tiny model: every stage in order, each done once, and nothing lost between them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from druthers import models, pipeline, storage
from druthers.config import ModelSettings, Settings, load
from druthers.curate import curate
from druthers.records import Candidates, InputError, Pair, user
from druthers.run import Run, open_run
from druthers.train import checkpoint
from tests import calls, tiny


class Screen:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.moves: dict[str, tuple[int, int]] = {}

    def stage(self, text: str) -> None:
        self.lines.append(f"# {text}")

    def say(self, text: str) -> None:
        self.lines.append(text)

    def bar(self, label: str) -> Callable[[int, int], None]:
        def move(done: int, total: int) -> None:
            self.moves[label] = (done, total)

        return move

    def clear(self) -> None:
        self.lines.append("-")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and tokenizers that do not mind it."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs and a cache of its own."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path / "cache"))
    calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    (tmp_path / "rubric.toml").write_text(calls.RUBRIC)
    return tmp_path


def settings(place: Path, model: Path, *changes: str) -> Settings:
    named = (f"run={place / 'run'}", f"model.path={model}", f"data.pairs={place / 'pairs.jsonl'}")
    return load(overrides=[*calls.FEW, *named, *changes])


def align(place: Path, model: Path, *changes: str) -> dict[str, Any]:
    return pipeline.align(settings(place, model, *changes), screen=Screen())


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written last, but for the report and the clock in the summary."""
    own = {name: (folder / name).stat().st_mtime_ns for name in calls.files(folder)}
    return {name: at for name, at in own.items() if name not in ("report.html", "data.html", "summary.json", ".lock")}


# ---------------------------------------------------------------- the whole way


def test_the_main_job_leaves_every_file_of_the_run_directory(place: Path, model: Path) -> None:
    screen = Screen()
    result = pipeline.align(settings(place, model, f"evaluate.rubric={place / 'rubric.toml'}"), screen=screen)
    assert calls.files(place / "run") == sorted(
        [
            *(".lock", "config.json", "environment.json", "inputs.json", "code.diff", "summary.json", "report.html"),
            *(f"data/{name}" for name in ("train.jsonl", "heldout.jsonl", "rejected.jsonl", "summary.json")),
            *("data/quality.json", "data/README.md", "data/heldout-prompts.txt", "data.html"),
            *("metrics.jsonl", "outcomes.parquet", "checkpoints/best.json"),
            *(name for name in calls.files(place / "run") if name.startswith("checkpoints/step-")),
            *("evaluation/pairs.json", "evaluation/answers.json", "evaluation/kl.json"),
            *(
                f"evaluation/{kind}-{mode}.jsonl"
                for kind in ("answers", "judgements")
                for mode in ("greedy", "sampled")
            ),
        ]
    )
    assert [line for line in screen.lines if line.startswith("#")] == ["# curate", "# train", "# evaluate", "# report"]
    assert screen.moves["steps"] == (2, 2)
    done, total = screen.moves["answers"]
    assert done == total
    keys = {"verdict", "text", "pairs", "train", "heldout", "win_rate", "win_rate_greedy", "length_ratio"}
    keys |= {"repetition_change", "perplexity_ratio", "kl_per_sequence", "seconds", "run", "report"}
    assert keys == result.keys()
    assert result["seconds"].keys() == {"curate", "train", "evaluate", "report"}
    assert {"steps", "best_step", "seconds", "pairs_per_second", "tokens_per_second", "peak_memory_gib"} <= result[
        "train"
    ].keys()
    assert result["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["verdict"] in ("better", "no difference shown", "worse")
    assert sum(result["pairs"].values()) == 16
    assert (place / "run" / "report.html").read_text().count("<html") == 1


def test_the_same_job_again_does_nothing_again(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = align(place, model)
    before = stamps(place / "run")
    monkeypatch.setattr(models, "load", None)
    monkeypatch.setattr(models, "load_tokenizer", None)
    again = align(place, model)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert stamps(place / "run") == before


@pytest.mark.parametrize(("write", "form"), [(calls.hh_rows, "hh"), (calls.chat_rows, "trl"), (calls.trl_rows, "trl")])
def test_other_forms_and_parquet_and_lora(place: Path, model: Path, write: Callable[[], Any], form: str) -> None:
    data = calls.parquet(place / "pairs.parquet", write())
    result = align(place, model, f"data.pairs={data}", "model.adapter=lora", "model.lora_rank=2")
    assert json.loads((place / "run" / "data" / "summary.json").read_text())["format"] == form
    assert result["verdict"] == "not judged"
    assert result["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_only_the_last_turn_of_a_transcript_is_trained(place: Path, model: Path) -> None:
    data = calls.jsonl(place / "pairs.jsonl", calls.hh_rows())
    with open_run(settings(place, model, f"data.pairs={data}")) as run:
        pipeline.curate_stage(run, run.settings(), screen=Screen())
    for pair in storage.read(str(place / "run" / "data" / "train.jsonl"), Pair):
        assert [message.role for message in pair.prompt] == ["user", "assistant", "user"]
        assert pair.chosen[0].content.startswith("thank you")


# ---------------------------------------------------------------- between the stages


def test_a_fault_in_the_evaluation_does_not_cost_the_training(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            align(place, model)
    trained = stamps(place / "run")
    assert "train" in Run(place / "run").summary()
    assert "verdict" in align(place, model)
    assert {name: at for name, at in stamps(place / "run").items() if name in trained} == trained


def test_a_run_killed_after_its_last_step_is_only_finished(place: Path, model: Path) -> None:
    align(place, model)
    run = Run(place / "run")
    before = stamps(run.folder)
    (run.folder / "summary.json").unlink()
    result = align(place, model)
    assert result["train"]["steps"] == 2
    kept = [name for name in before if name.startswith(("metrics", "outcomes", "data")) or "/step-" in name]
    assert len(kept) >= 8
    assert {name: stamps(run.folder)[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize("change", ["evaluate.rubric=nowhere.toml", "evaluate.prompts=nowhere.jsonl"])
def test_what_evaluation_needs_is_read_before_anything_is_done(place: Path, model: Path, change: str) -> None:
    with pytest.raises(InputError, match="nowhere"):
        align(place, model, change)
    assert calls.files(place / "run") == [".lock", "config.json"]
    assert "verdict" in align(place, model)


def test_a_run_that_is_half_trained_is_not_evaluated(place: Path, model: Path) -> None:
    chosen = settings(place, model)
    with open_run(chosen) as run:
        pipeline.curate_stage(run, chosen, screen=Screen())
        pipeline.train_stage(run, chosen, screen=Screen())
        summary = run.summary()
        del summary["train"]
        storage.write_json(run.path("summary.json"), summary)
        with pytest.raises(InputError, match="is not trained to its end"):
            pipeline.evaluate_stage(run, chosen, screen=Screen(), policy=None)
        assert not run.has("evaluation")


@pytest.mark.parametrize("seed", [0, 1])
def test_an_adapter_begins_alike_for_one_seed(place: Path, model: Path, seed: int) -> None:
    found: list[bytes] = []
    for name in ("a", "b"):
        torch.manual_seed(len(found) + 17)
        chosen = settings(place, model, f"run={place / name}", "model.adapter=lora", f"seed={seed}")
        with open_run(chosen) as run:
            pipeline.curate_stage(run, chosen, screen=Screen())
            policy = pipeline.train_stage(run, chosen, screen=Screen())
        assert policy is not None
        found.append((checkpoint.best(place / name) / "weights.safetensors").read_bytes())
    assert found[0] == found[1]


def test_inputs_and_environment_are_noted(place: Path, model: Path) -> None:
    chosen = settings(place, model)
    with open_run(chosen) as run:
        pipeline.curate_stage(run, chosen, screen=Screen())
        pipeline.train_stage(run, chosen, screen=Screen())
        inputs, world = run.json("inputs.json"), run.json("environment.json")
    assert inputs["model"]["parameters"] == sum(w.numel() for w in tiny.model(vocab=259).parameters())
    assert inputs["pairs"]["sha256"] == storage.sha256(place / "run" / "data" / "train.jsonl")
    assert world["precision"] == "float32"
    assert world["threads"] == 1


# ---------------------------------------------------------------- what a run was begun with


def half_trained(place: Path, model: Path) -> tuple[Settings, Run]:
    """A run stopped after its first step, as a kill would leave it."""
    chosen = settings(place, model)
    with open_run(chosen) as run:
        pipeline.curate_stage(run, chosen, screen=Screen())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "settle", lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pipeline.train_stage(run, chosen, screen=Screen())
    return chosen, run


def refusal(chosen: Settings) -> str:
    with pytest.raises(InputError) as caught:
        pipeline.align(chosen, screen=Screen())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pairs_that_were_trained_on_are_not_split_anew(place: Path, model: Path) -> None:
    chosen, run = half_trained(place, model)
    kept = (run.folder / "data" / "summary.json").read_bytes()
    before = (run.folder / "data" / "train.jsonl").read_bytes()
    (run.folder / "data" / "summary.json").unlink()
    said = refusal(chosen)
    assert "has begun to train, but its data/summary.json is gone" in said
    assert said.endswith("restore the data folder, or start a new run with run=FOLDER")
    assert (run.folder / "data" / "train.jsonl").read_bytes() == before
    (run.folder / "data" / "summary.json").write_text("{}")
    assert "restore it from a copy" in refusal(chosen)
    (run.folder / "data" / "summary.json").write_text("{")
    assert "restore it from a copy" in refusal(chosen)
    (run.folder / "data" / "summary.json").write_bytes(kept)
    assert "verdict" in pipeline.align(chosen, screen=Screen())


@pytest.mark.parametrize("side", ["train", "heldout"])
def test_a_begun_run_goes_on_with_the_pairs_it_began_with(place: Path, model: Path, side: str) -> None:
    chosen, run = half_trained(place, model)
    file, inputs = run.folder / "data" / f"{side}.jsonl", (run.folder / "inputs.json").read_bytes()
    kept = file.read_bytes()
    file.write_bytes(b"".join(kept.splitlines(keepends=True)[1:]))
    said = refusal(chosen)
    assert f"was begun with another data/{side}.jsonl (" in said
    assert "restore that file" in said
    assert (run.folder / "inputs.json").read_bytes() == inputs
    file.write_bytes(kept)
    assert "verdict" in pipeline.align(chosen, screen=Screen())


def test_held_out_pairs_are_evaluated_as_they_were_watched(place: Path, model: Path) -> None:
    chosen, run = half_trained(place, model)
    with open_run(chosen):
        pipeline.train_stage(run, chosen, screen=Screen())
    file = run.folder / "data" / "heldout.jsonl"
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    assert "was begun with another data/heldout.jsonl" in refusal(chosen)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"model": null}'])
def test_damaged_inputs_are_one_sentence(place: Path, model: Path, text: str) -> None:
    chosen, run = half_trained(place, model)
    (run.folder / "inputs.json").write_text(text)
    said = refusal(chosen)
    assert said.startswith(f"{run.folder / 'inputs.json'}: ")
    assert "restore it from a copy" in said


def test_the_hashes_of_an_older_run_are_enough(place: Path, model: Path) -> None:
    chosen, run = half_trained(place, model)
    note = run.json("inputs.json")
    del note["data"]
    storage.write_json(run.path("inputs.json"), note)
    (run.folder / "data" / "train.jsonl").write_text("")
    assert "was begun with another data/train.jsonl" in refusal(chosen)


def test_a_device_that_is_not_there_is_said_before_the_run_is_looked_at(place: Path, model: Path) -> None:
    half_trained(place, model)
    assert refusal(settings(place, model, "model.device=cuda:99")).startswith(
        "model.device = 'cuda:99' is not a device"
    )


# ---------------------------------------------------------------- sample and judge


def test_nothing_is_sampled_for_a_place_that_cannot_be_written(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*given: object, **named: object) -> None:
        pytest.fail("sampled first")

    monkeypatch.setattr("druthers.generation.transformers_generator", lambda *given, **named: generate)
    prompts = calls.jsonl(place / "prompts.jsonl", [{"prompt": [m.line() for m in user("say it")]}])
    (place / "file").touch()
    how = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 2, "batch_size": 1, "seed": 0}
    with pytest.raises(InputError, match=r"candidates\.jsonl"):
        pipeline.sample(
            str(prompts),
            place / "file" / "candidates.jsonl",
            model=ModelSettings(path=str(model)),
            limit=None,
            screen=Screen(),
            **how,
        )


def test_what_a_run_asks_again_is_sampled_and_curated_beside_the_rest(place: Path, model: Path) -> None:
    said = [{"prompt": f"say {i}", "response_a": f"{i}", "response_b": "b", "winner": "a"} for i in range(20)]
    bad = [row | {"prompt": f"and {row['prompt']}", "winner": "both_bad"} for row in said[:3]]
    votes = calls.jsonl(place / "votes.jsonl", [*said, *bad])
    out, tokenizer = place / "data", tiny.tokenizer()
    curate(load(extra={"data.pairs": str(votes)}), out=out, tokenizer=tokenizer)
    how = {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4, "batch_size": 4, "seed": 0}
    candidates, to = place / "candidates.jsonl", ModelSettings(path=str(model))
    with pytest.raises(InputError, match="would replace what is read"):
        pipeline.sample(str(votes), votes, model=to, limit=None, screen=Screen(), **how)
    asked = str(out / "collect.jsonl")
    assert pipeline.sample(asked, candidates, model=to, limit=None, screen=Screen(), **how)["prompts"] == 3
    judged = [
        {"prompt": row.line()["prompt"], "response_a": "sampled", "response_b": "b", "winner": "a"}
        for row in storage.read(str(candidates), Candidates)
    ]
    more = calls.jsonl(place / "more.jsonl", judged)
    again = curate(load(extra={"data.pairs": [str(votes), str(more)]}), out=out, tokenizer=tokenizer)
    assert (again.kept, again.rejected) == (23, {})
    assert not (out / "collect.jsonl").exists()


def test_sampled_and_judged_responses_are_pairs_to_train_on(place: Path, model: Path) -> None:
    prompts = calls.jsonl(place / "prompts.jsonl", ({"prompt": [m.line() for m in user(f"say {i}")]} for i in range(6)))
    found = pipeline.sample(
        str(prompts),
        place / "candidates.jsonl",
        model=ModelSettings(path=str(model)),
        samples=4,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=12,
        batch_size=8,
        seed=0,
        limit=5,
        screen=Screen(),
    )
    assert (found["prompts"], found["samples"], found["rows"]) == (5, 4, 5)
    rows = list(storage.read(str(place / "candidates.jsonl"), Candidates))
    assert [len(row.responses) for row in rows] == [4] * 5
    texts = ("one two", "one two three four!", "one, two, three, four", "")
    rated = [
        row.model_copy(
            update={
                "responses": tuple(
                    c.model_copy(update={"content": t}) for c, t in zip(row.responses, texts, strict=True)
                )
            }
        )
        for row in rows
    ]
    storage.write(place / "candidates.jsonl", rated)
    judged = pipeline.judge(
        str(place / "candidates.jsonl"),
        place / "judged.jsonl",
        rubric=str(place / "rubric.toml"),
        margin_scale=2.0,
        most=None,
        length_cost=0.0,
        screen=Screen(),
    )
    assert judged["rubric"] == "house"
    assert judged["prompts"] == 5
    pairs = list(storage.read(str(place / "judged.jsonl"), Pair))
    assert {pair.margin for pair in pairs} == {1.0, 2.0}
    result = align(place, model, f"data.pairs={place / 'judged.jsonl'}", f"evaluate.rubric={place / 'rubric.toml'}")
    assert result["pairs"]["train"] > 0


def test_responses_that_all_tie_leave_no_file(place: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}], "responses": [{"content": "a"}, {"content": "b"}]}
    candidates = calls.jsonl(place / "candidates.jsonl", [row])
    with pytest.raises(InputError, match="prefers no response to another in any of 1 prompts"):
        pipeline.judge(
            str(candidates),
            place / "judged.jsonl",
            rubric=str(place / "rubric.toml"),
            margin_scale=1.0,
            most=None,
            length_cost=0.0,
            screen=Screen(),
        )
    assert not (place / "judged.jsonl").exists()


def test_margins_that_are_scaled_too_far_are_said(place: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}], "responses": [{"content": "a b c d!"}, {"content": "b"}]}
    with pytest.raises(InputError, match=r"margin: input should be less than or equal to 1000000.*lower --margin"):
        pipeline.judge(
            str(calls.jsonl(place / "candidates.jsonl", [row])),
            place / "judged.jsonl",
            rubric=str(place / "rubric.toml"),
            margin_scale=1e9,
            most=None,
            length_cost=0.0,
            screen=Screen(),
        )
    assert not (place / "judged.jsonl").exists()


def test_a_response_that_breaks_a_must_is_not_held_up(place: Path) -> None:
    rubric = place / "must.toml"
    rubric.write_text(
        'name = "m"\n[[rules]]\nname = "short"\nlabel = "s"\nkind = "word_count"\nmost = 2\nweight = 3\n'
        '[[rules]]\nname = "whole"\nlabel = "w"\nkind = "complete"\nmust = true\n'
    )
    texts = ("cut off", "It is a whole one.", "far too long and cut")
    row = {"prompt": [{"role": "user", "content": "hi"}], "responses": [{"content": text} for text in texts]}
    judged = pipeline.judge(
        str(calls.jsonl(place / "musts.jsonl", [row])),
        place / "pairs-must.jsonl",
        rubric=str(rubric),
        margin_scale=1.0,
        most=None,
        length_cost=0.0,
        screen=Screen(),
    )
    (pair,) = storage.read(str(place / "pairs-must.jsonl"), Pair)
    assert (pair.chosen[0].content, pair.rejected[0].content, pair.margin) == (texts[1], texts[2], 0.25)
    assert judged["prompts_without_pair"] == 0
