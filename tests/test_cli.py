"""The command line on the tiny model: every verb, what it prints for people and for scripts, and how it exits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from druthers import cli, models, pipeline, storage
from druthers.config import load
from druthers.generation import transformers_generator
from druthers.records import user
from druthers.run import Run
from druthers.train import loop
from tests import calls, tiny
from tests.calls import Called, druthers

VERBS = (
    "align",
    "plan",
    "curate",
    "advise",
    "train",
    "evaluate",
    "report",
    "compare",
    "sample",
    "judge",
    "chat",
    "export",
    "doctor",
)


@pytest.fixture(scope="module")
def place(shared_cache: Path) -> Path:
    """A folder with a model, pairs, prompts and a rubric."""
    tiny.folder(shared_cache / "model")
    calls.jsonl(shared_cache / "pairs.jsonl", calls.trl_rows())
    calls.jsonl(shared_cache / "prompts.jsonl", ({"prompt": [m.line() for m in user(f"say {i}")]} for i in range(3)))
    (shared_cache / "rubric.toml").write_text(calls.RUBRIC)
    return shared_cache


def job(place: Path, name: str, *changes: str) -> tuple[object, ...]:
    """Options of a small main job."""
    own = ("--model", place / "model", "--data", place / "pairs.jsonl", "--run", place / name)
    return (*own, *calls.FEW, f"evaluate.rubric={place / 'rubric.toml'}", *changes)


@pytest.fixture(scope="module")
def aligned(place: Path) -> Called:
    """The main job, done once."""
    return druthers("align", *job(place, "run"), "--json")


# ---------------------------------------------------------------- every verb


def test_align_prints_the_summary_and_where_the_report_is(place: Path, aligned: Called) -> None:
    found = aligned.json
    assert found["run"] == str(place / "run")
    assert Path(found["report"]).is_file()
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert {key: value for key, value in found.items() if key not in ("run", "report")} == summary
    for stage in ("curate", "train", "evaluate", "report"):
        assert stage in aligned.err
    assert "11 training pairs" in aligned.err or "training pairs" in aligned.err


def test_the_same_command_again_returns_the_same(place: Path, aligned: Called) -> None:
    again = druthers("align", *job(place, "run"), "--json").json
    assert {**again, "seconds": 0} == {**aligned.json, "seconds": 0}


def test_for_people_there_is_a_table_at_the_end(place: Path, aligned: Called) -> None:
    found = druthers("align", *job(place, "run"))
    assert found.code == 0
    for words in ("win rate, sampled answers", "held-out pairs ranked right", "report", "peak memory"):
        assert words in found.out


@pytest.mark.usefixtures("aligned")
def test_evaluate_says_where_the_report_is(place: Path) -> None:
    """Whole, however long its path is."""
    shown = druthers("evaluate", place / "run").out.partition("report")[2]
    assert str(place / "run" / "report.html") in "".join(c for c in shown if c not in " │┃|\n")


@pytest.mark.usefixtures("aligned")
def test_evaluate_and_report_of_a_finished_run(place: Path) -> None:
    found = druthers("evaluate", place / "run", "--json").json
    assert {"verdict", "win_rate", "heldout", "seconds", "run"} <= found.keys()
    pages = {"report": str(place / "run" / "report.html"), "data": str(place / "run" / "data.html")}
    assert druthers("report", place / "run", "--json").json == pages
    assert "win rate" in druthers("evaluate", place / "run").out
    assert "report.html" in druthers("report", place / "run").out


def test_the_stages_one_by_one(place: Path, aligned: Called) -> None:
    named = (
        "--model",
        place / "model",
        *calls.FEW,
        f"evaluate.rubric={place / 'rubric.toml'}",
        "--run",
        place / "steps",
    )
    curated = druthers("curate", "--data", place / "pairs.jsonl", *named, "--json").json
    assert {"run", "rows", "kept", "train", "heldout", "rejected", "tokens", "cut", "format"} <= curated.keys()
    assert (place / "steps" / "data.html").is_file()
    screen = druthers("curate", "--data", place / "pairs.jsonl", *named).out
    assert len(screen.splitlines()) <= 24
    assert "pairs to train on" in screen
    assert "data.html" in "".join(screen.split())
    assert calls.files(place / "steps" / "checkpoints") == []
    trained = druthers("train", "--data", place / "pairs.jsonl", *named, "--json").json
    assert {"run", "pairs", "train", "seconds"} == trained.keys()
    evaluated = druthers("evaluate", place / "steps", "--json").json
    same = ("verdict", "text", "win_rate", "heldout", "pairs", "kl_per_sequence", "perplexity_ratio")
    assert {key: evaluated[key] for key in same} == {key: aligned.json[key] for key in same}
    assert druthers("report", place / "steps").code == 0


def test_sample_and_judge(place: Path) -> None:
    asked = ("--model", place / "model", "--samples", 3, "--max-new-tokens", 8, "--out", place / "c.jsonl")
    sampled = druthers("sample", place / "prompts.jsonl", *asked, "--json").json
    assert sampled == {**sampled, "rows": 3, "prompts": 3, "samples": 3, "path": str(place / "c.jsonl")}
    row = {"prompt": [{"role": "user", "content": "hi"}], "responses": [{"content": "a"}, {"content": "a b c d!"}]}
    candidates = calls.jsonl(place / "rated.jsonl", [row])
    to = ("--out", place / "judged.parquet", "--rubric", place / "rubric.toml")
    judged = druthers("judge", candidates, *to, "--most", 1, "--json").json
    assert judged == {**judged, "rows": 1, "prompts": 1, "prompts_without_pair": 0, "rubric": "house"}


@pytest.mark.usefixtures("aligned")
def test_chat_answers_once_from_both(place: Path) -> None:
    found = druthers("chat", place / "run", "--prompt", "question 1?", "--json").json
    assert found.keys() == {"prompt", "base", "aligned"}
    assert druthers("chat", place / "run", "--prompt", "question 1?", "--json").json == found
    assert "base" in druthers("chat", place / "run", "-p", "question 1?").out


@pytest.mark.usefixtures("aligned")
def test_chat_is_a_conversation_until_an_empty_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["hello", "/new", "hello", "and?", ""])
    monkeypatch.setattr(cli, "ask", lambda: next(said))
    found = druthers("chat", place / "run")
    assert found.code == 0
    assert found.out.count("aligned") == 3
    assert next(said, "nothing left") == "nothing left"


def test_chat_for_scripts_needs_a_prompt(place: Path) -> None:
    assert "--json needs --prompt" in druthers("chat", place / "run", "--json").fault


@pytest.mark.usefixtures("aligned")
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_an_export_loads_anywhere_and_answers_like_the_policy(place: Path, adapter: str) -> None:
    run = place / ("run" if adapter == "none" else "lora")
    if adapter == "lora":
        assert druthers("train", *job(place, "lora", "model.adapter=lora", "train.learning_rate=0.05")).code == 0
    folder = place / f"exported-{adapter}"
    found = druthers("export", run, folder, "--json").json
    assert found.keys() == {"folder", "run", "model", "step"}
    assert "pipeline_tag: text-generation" in (folder / "README.md").read_text()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(folder / "README.md").stat().st_mode}
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = pipeline.load_policy(Run(run))
    (answers,) = transformers_generator(policy, batch_size=1, model_name="x")(
        [user("question 1?")], samples=1, temperature=0.0, top_p=1.0, max_new_tokens=12, seed=0
    )
    conversation = [{"role": "user", "content": "question 1?"}]
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    theirs = exported.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=2)[0, ids.shape[1] :]
    assert tokenizer.decode(theirs, skip_special_tokens=True) == answers[0].response
    base = models.load(load(overrides=[f"model.path={place / 'model'}"]).model).causal
    assert any(not torch.equal(a, b) for a, b in zip(exported.parameters(), base.parameters(), strict=True))
    assert "name a new" in druthers("export", run, folder).fault


def test_export_over_a_file_is_refused(place: Path, aligned: Called) -> None:
    assert aligned.code == 0
    (place / "file").write_text("x")
    assert "is not an empty folder" in druthers("export", place / "run", place / "file").fault
    assert (place / "file").read_text() == "x"


def test_doctor_examines_and_lists_settings() -> None:
    found = druthers("doctor", "--json")
    tree = json.loads(found.out)
    assert tree.keys() == {"ready", "checks"}
    assert found.code == (0 if tree["ready"] else 1)
    listed = druthers("doctor", "--settings", "--json").json["settings"]
    assert "train.learning_rate" in {setting["key"] for setting in listed}
    assert "train.learning_rate" in druthers("doctor", "--settings").out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str) -> None:
    found = druthers(verb, "--help")
    assert found.code == 0
    assert "Usage" in found.out
    assert "--json" in found.out
    assert verb in druthers("--help").out


@pytest.mark.parametrize("verb", ["evaluate", "report", "chat", "export"])
def test_what_is_no_run_is_said_and_left_alone(tmp_path: Path, verb: str) -> None:
    more = {"chat": ("--prompt", "hi"), "export": (tmp_path / "out",)}.get(verb, ())
    assert "run" in druthers(verb, tmp_path / "nowhere", *more).fault
    (tmp_path / "there").mkdir()
    assert "run" in druthers(verb, tmp_path / "there", *more).fault
    assert calls.files(tmp_path) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_was_only_curated_cannot_be_used_yet(place: Path) -> None:
    named = ("--model", place / "model", *calls.FEW, "--run", place / "curated")
    assert druthers("curate", "--data", place / "pairs.jsonl", *named).code == 0
    assert "not trained" in druthers("evaluate", place / "curated").fault
    assert "no trained checkpoint" in druthers("chat", place / "curated", "--prompt", "x").fault
    assert "no trained checkpoint" in druthers("export", place / "curated", place / "nothing").fault
    assert not (place / "nothing").exists()


# ---------------------------------------------------------------- exits


@pytest.mark.parametrize(
    ("override", "offer"),
    [
        ("train.learningrate=1", "did you mean 'train.learning_rate'?"),
        ("beta=0.2", "did you mean 'loss.beta'?"),
        ("train.epochs=many", "train.epochs"),
        ("nonsense", "write dotted.key=value"),
        ("loss.name=kto", "learns from single answers"),
        ("loss.name=ktoo", "did you mean 'kto'?"),
    ],
)
def test_a_setting_that_is_wrong_is_explained(place: Path, override: str, offer: str) -> None:
    assert offer in druthers("align", *job(place, "wrong", override)).fault
    assert not (place / "wrong").exists()


@pytest.mark.parametrize("number", ["inf", "nan"])
@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("sample", "--temperature"),
        ("sample", "--top-p"),
        ("judge", "--margin-scale"),
        ("judge", "--length-cost"),
        ("plan", "--price-per-hour"),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path: Path, verb: str, option: str, number: str) -> None:
    more = () if verb == "plan" else (tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    found = druthers(verb, *more, option, number)
    if number == "nan" or option == "--top-p":  # outside its limits, as the command line sees it
        assert (found.code, found.out, "Traceback" in found.err) == (2, "", False)
        assert option in found.err
    else:
        assert found.fault.startswith(f"{option} = {number}: is no finite number; give one such as ")


@pytest.mark.parametrize("verb", ["evaluate", "report", "chat", "export"])
def test_a_name_that_is_too_long_is_said(tmp_path: Path, verb: str) -> None:
    more = {"chat": ("--prompt", "hi"), "export": (tmp_path / "out",)}.get(verb, ())
    assert "run directory" in druthers(verb, tmp_path / ("n" * 300), *more).fault


def test_wrong_usage_exits_with_two() -> None:
    for words in (("aling",), ("align", "--rnu", "x"), ("report",), ("sample", "x", "--out", "y", "--samples", "0")):
        found = druthers(*words)
        assert (found.code, found.out) == (2, "")
        assert "Traceback" not in found.err


def at_step(step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen at the end of a training step."""
    real = loop.advance

    def advance(*given: Any) -> Any:
        position = real(*given)
        if position.step == step:
            act()
        return position

    monkeypatch.setattr(loop, "advance", advance)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_training_exits_with_its_number_and_the_run_goes_on(
    place: Path, aligned: Called, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    name = f"signalled-{number.name}"
    with monkeypatch.context() as patch:
        at_step(1, lambda: os.kill(os.getpid(), number), patch)
        found = druthers("align", *job(place, name), "--json")
    assert (found.code, found.out) == (128 + number, "")
    assert "stopped at step 1 of 2; saved" in found.err
    assert "Traceback" not in found.err
    same = ("verdict", "win_rate", "heldout", "pairs")
    finished = druthers("align", *job(place, name), "--json").json
    assert {key: finished[key] for key in same} == {key: aligned.json[key] for key in same}
    for file in ("metrics.jsonl", "outcomes.parquet", "evaluation/answers-sampled.jsonl"):
        assert (place / name / file).read_bytes() == (place / "run" / file).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_elsewhere_exits_with_its_number_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(pipeline, "curate", lambda *given, **named: os.kill(os.getpid(), number))
    found = druthers("train", *job(place, f"early-{number.name}"))
    assert (found.code, found.out) == (128 + number, "")
    assert "Traceback" not in found.err
    assert number == signal.SIGTERM or "stopped; what was finished is kept" in found.err


def test_a_stopped_sample_promises_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "sample", lambda *given, **named: os.kill(os.getpid(), signal.SIGINT))
    found = druthers("sample", place / "prompts.jsonl", "--out", place / "none.jsonl")
    assert (found.code, found.err.strip()) == (130, "error: stopped")


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_killed_command_continues_bit_for_bit(place: Path, monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    """Also before the first checkpoint, when all that is left of the first try is its seed."""
    changes = (f"model.adapter={adapter}", "train.evaluate_every=2", "train.max_steps=3")
    whole, cut = f"whole-{adapter}", f"killed-{adapter}"
    assert druthers("train", *job(place, whole, *changes)).code == 0
    for step in (1, 3):

        def killed(step: int = step) -> None:
            at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            druthers("train", *job(place, cut, *changes))

        assert calls.in_child(killed) == signal.SIGKILL
    assert druthers("train", *job(place, cut, *changes)).code == 0
    files = [
        name for name in calls.files(place / whole) if name.endswith((".safetensors", ".jsonl", ".parquet", ".pt"))
    ]
    assert "metrics.jsonl" in files
    for name in files:
        assert (place / cut / name).read_bytes() == (place / whole / name).read_bytes(), name
    assert calls.files(place / cut) == calls.files(place / whole)


def test_sources_are_words_of_the_command_line_beside_settings(place: Path) -> None:
    votes = ({"prompt": f"bird {i}?", "response_a": "x", "response_b": "y", "winner": "a"} for i in range(20))
    calls.jsonl(place / "votes.jsonl", votes)
    words = (place / "pairs.jsonl", place / "votes.jsonl", "data.heldout_share=0.2")
    found = druthers("curate", *words, "--model", place / "model", "--run", place / "several", "--json").json
    assert (found["format"], found["graded"]["pairs"]) == ("trl, votes", 20)


# ---------------------------------------------------------------- a gate for the data


def test_a_gate_stops_a_script_at_bad_data_and_leaves_all_of_it(place: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": "A long answer. " * 9 + str(i), "rejected": f"No {i}."}
        for i in range(90)
    ]
    calls.jsonl(tmp_path / "long.jsonl", rows)
    given = ("curate", tmp_path / "long.jsonl", "--model", place / "model", "--run", tmp_path / "run")
    stopped = druthers(*given, "--gate", "fail")
    assert stopped.code == 3
    assert "does not pass --gate fail: D4.length (fail)" in stopped.err.replace("\n", " ")
    assert (tmp_path / "run/data.html").is_file()
    assert (stopped.out, 0) == (druthers(*given).out, druthers(*given).code)
    quality = json.loads((tmp_path / "run/data/quality.json").read_text())
    assert quality["snapshot"]["train"] == storage.sha256(tmp_path / "run/data/train.jsonl")
    other = druthers(*given, "--gate", "perhaps")
    assert (other.code, "--gate = perhaps: is no level" in other.err) == (1, True)


def test_good_data_passes_the_gate_that_lets_no_failure_by(place: Path, tmp_path: Path) -> None:
    given = ("curate", place / "pairs.jsonl", "--model", place / "model", "--run", tmp_path / "run", "--gate")
    statuses = {one.get("status") for one in json.loads(quality_of(tmp_path, given))["findings"]}
    assert druthers(*given, "fail").code == (3 if "fail" in statuses else 0)
    assert druthers(*given, "warn").code == (3 if statuses & {"fail", "warn"} else 0)


def quality_of(folder: Path, given: tuple[object, ...]) -> str:
    """What a curation with these words writes of its quality."""
    druthers(*given[:-1])
    return (folder / "run/data/quality.json").read_text()
