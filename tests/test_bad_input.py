"""Bad input through the command line: one sentence, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from druthers.config import load
from druthers.records import Pair
from druthers.run import open_run
from druthers.storage import read
from tests import calls, tiny
from tests.calls import druthers

GOOD = {"prompt": "question?", "chosen": "thank you", "rejected": "go away"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def nothing_half_written(tmp_path: Path, own_cache: Path, one_thread: None) -> Iterator[None]:
    yield
    assert [name for name in calls.files(tmp_path) if name.endswith((".tmp", ".partial"))] == []


def job(place: Path, data: Path, model: Path, *changes: object) -> tuple[object, ...]:
    return ("--data", data, "--model", model, "--run", place / "run", *calls.FEW, *changes)


def refused(place: Path, data: Path, model: Path, *changes: object) -> str:
    """The sentence with which `align` refuses, after a look at what it left."""
    said = druthers("align", *job(place, data, model, *changes)).fault
    assert set(calls.files(place / "run")) <= {".lock", "config.json"}
    return said


def lines(place: Path, *rows: dict[str, Any] | str) -> Path:
    """A file whose second line is the faulty one."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in (GOOD, *rows)]
    (place / "pairs.jsonl").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return place / "pairs.jsonl"


# ---------------------------------------------------------------- files


def test_an_empty_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    assert "is empty" in refused(tmp_path, tmp_path / "pairs.jsonl", model)


def test_a_file_that_is_not_there(tmp_path: Path, model: Path) -> None:
    assert "no such file" in refused(tmp_path, tmp_path / "nowhere.jsonl", model)


def test_a_truncated_gzip(tmp_path: Path, model: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in calls.trl_rows(500)).encode())
    (tmp_path / "pairs.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    said = refused(tmp_path, tmp_path / "pairs.jsonl.gz", model)
    assert "pairs.jsonl.gz:" in said
    assert "truncated" in said or "damaged" in said


def test_a_file_that_is_no_parquet(tmp_path: Path, model: Path) -> None:
    (tmp_path / "pairs.parquet").write_text("no")
    assert "pairs.parquet" in refused(tmp_path, tmp_path / "pairs.parquet", model)


# ---------------------------------------------------------------- rows

TURN = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
OTHER = {"role": "assistant", "content": "what"}
MADE = {"prompt": [TURN], "chosen": [REPLY], "rejected": [OTHER]}


def nested(levels: int) -> dict[str, Any]:
    """An object so many levels deep."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


ROWS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "not JSON": ("{'prompt': 1}", "JSON"),
    "not an object": ("[1, 2]", "object"),
    "missing field": ({"prompt": "a", "chosen": "b"}, "rejected: missing field"),
    "unknown field": ({**GOOD, "wieght": 2}, "did you mean 'weight'?"),
    "wrongly typed field": ({**GOOD, "weight": "heavy"}, "weight: "),
    "wrongly typed text": ({**GOOD, "chosen": 7}, "chosen"),
    "field out of range": ({**GOOD, "p": 1.5}, "p: "),
    "chosen equal to rejected": ({**GOOD, "chosen": "go away"}, "chosen equals rejected"),
    "empty response": ({**GOOD, "rejected": "  "}, "the response is empty"),
    "roles out of order": ({**MADE, "prompt": [TURN, TURN]}, "turns must alternate"),
    "system turn late": (
        {**MADE, "prompt": [TURN, REPLY, {"role": "system", "content": "x"}, TURN]},
        "only come first",
    ),
    "prompt that ends with an answer": ({**MADE, "prompt": [TURN, REPLY]}, "must end with a user or tool turn"),
    "unknown role": ({**MADE, "prompt": [{"role": "robot", "content": "x"}]}, "role"),
    "weight that overflows": ({**MADE, "weight": 1.5e308}, "weight: input should be less than or equal to 1000000"),
    "tools nested too deeply": ({**MADE, "tools": [nested(70)]}, "tools: it is nested more than 64 levels deep"),
    "tools nested far too deeply": (json.dumps({**MADE, "tools": [nested(300)]}), "is not JSON: it is nested more"),
    "prompt longer than the limit": ({**GOOD, "prompt": "why " * 100}, "over data.max_prompt = 100"),
    "control tokens": ({**GOOD, "chosen": "ok<|im_end|>"}, "'<|im_end|>', a control token"),
    "control tokens in the prompt": ({**GOOD, "prompt": "<|im_start|>system"}, "the user turn contains"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, model: Path, name: str) -> None:
    row, why = ROWS[name]
    data = lines(tmp_path, row)
    said = refused(tmp_path, data, model, "data.max_prompt=100")
    assert said.startswith(f"{data}:2: ")
    assert why in said
    assert said.count("data.bad_rows=drop") == 1


def test_bad_rows_can_be_left_out_and_are_kept_aside(tmp_path: Path, model: Path) -> None:
    texts = [json.dumps(row) for row in calls.trl_rows(8)] + [
        row if isinstance(row, str) else json.dumps(row) for row, _ in ROWS.values()
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    changes = ("data.max_prompt=100", "data.bad_rows=drop", "--json")
    done = druthers("train", *job(tmp_path, tmp_path / "pairs.jsonl", model, *changes)).json
    assert done["pairs"]["rejected"] == len(ROWS)
    aside = [json.loads(line) for line in (tmp_path / "run" / "data" / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in aside] == [str(9 + i) for i in range(len(ROWS))]
    assert all(row["why"] for row in aside)


def test_a_response_longer_than_the_limit_is_cut_and_counted(tmp_path: Path, model: Path) -> None:
    rows = [{**row, "chosen": "thank you so very much indeed"} for row in calls.trl_rows(8)]
    data = calls.jsonl(tmp_path / "pairs.jsonl", rows)
    done = druthers("train", *job(tmp_path, data, model, "data.max_response=8", "--json"))
    assert done.json["pairs"]["rejected"] == 0
    cut = json.loads((tmp_path / "run" / "data" / "summary.json").read_text())["cut"]
    assert cut == {"chosen": 8, "rejected": 8}
    assert "cut to 8 tokens: 8 chosen, 8 rejected responses" in done.err
    from druthers.tokens import tokenize

    for pair in read(str(tmp_path / "run" / "data" / "train.jsonl"), Pair):
        made = tokenize(pair, tiny.tokenizer(), max_prompt=1000, max_response=8)
        assert (len(made.chosen), made.chosen[-1]) == (8, tiny.tokenizer().eos_token_id)


def test_responses_that_are_the_same_after_the_cut_are_refused(tmp_path: Path, model: Path) -> None:
    data = lines(tmp_path, {**GOOD, "chosen": "the same begin", "rejected": "the same end"})
    assert "same 5 tokens" in refused(tmp_path, data, model, "data.max_response=5")


def test_too_few_prompts_to_split(tmp_path: Path, model: Path) -> None:
    assert "needs at least 2" in refused(tmp_path, lines(tmp_path), model)


# ---------------------------------------------------------------- models


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    model = tiny.folder(tmp_path / "model", template=None)
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert "no chat template" in refused(tmp_path, data, model)


@pytest.mark.parametrize(
    "kind", ["masked", "encoder-decoder", "unknown", "no config", "broken config", "file", "nowhere"]
)
def test_a_model_that_is_no_causal_language_model(tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    if kind not in ("file", "nowhere"):
        tiny.tokenizer().save_pretrained(model)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    if kind == "masked":
        BertForMaskedLM(BertConfig(vocab_size=259, **small)).save_pretrained(model)
    elif kind == "encoder-decoder":
        config = T5Config(vocab_size=259, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
        T5ForConditionalGeneration(config).save_pretrained(model)
    elif kind == "unknown":
        (model / "config.json").write_text('{"model_type": "abacus"}')
    elif kind == "broken config":
        (model / "config.json").write_text("{")
    elif kind == "file":
        model.write_text("x")
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    said = refused(tmp_path, data, model)
    assert "model" in said


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    model = tiny.folder(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert "cannot be loaded" in druthers("align", *job(tmp_path, data, model)).fault


# ---------------------------------------------------------------- settings and run directories


def test_an_unknown_setting_is_offered_its_nearest_name(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    said = refused(tmp_path, data, model, "train.lerning_rate=1e-6")
    assert said == "unknown setting 'train.lerning_rate'; did you mean 'train.learning_rate'?"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nepoch = 2\n")
    assert "did you mean 'train.epochs'?" in refused(tmp_path, data, model, "--recipe", recipe)
    assert "not valid TOML" in refused(tmp_path, data, model, "--recipe", data)
    assert not (tmp_path / "run").exists()


def test_a_corrected_command_may_use_the_folder_of_the_refused_one(tmp_path: Path, model: Path) -> None:
    refused(tmp_path, tmp_path / "typo.jsonl", model)
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert druthers("curate", *job(tmp_path, data, model)).code == 0


def test_a_folder_that_holds_another_run(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert druthers("curate", *job(tmp_path, data, model)).code == 0
    refused_and_untouched(tmp_path, data, model, "data.limit=2", "data.limit was None, now 2")
    assert druthers("train", *job(tmp_path, data, model, "train.max_steps=1")).code == 0
    refused_and_untouched(tmp_path, data, model, "train.max_steps=3", "train.max_steps was 1, now 3")


def refused_and_untouched(tmp_path: Path, data: Path, model: Path, setting: str, difference: str) -> None:
    before = {name: (tmp_path / "run" / name).read_bytes() for name in calls.files(tmp_path / "run")}
    said = druthers("align", *job(tmp_path, data, model, setting)).fault
    assert f"holds another run ({difference})" in said
    assert {name: (tmp_path / "run" / name).read_bytes() for name in calls.files(tmp_path / "run")} == before


def test_curated_data_may_be_trained_on_with_other_settings(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert druthers("curate", *job(tmp_path, data, model)).code == 0
    assert "absent.toml" in druthers("align", *job(tmp_path, data, model, "evaluate.rubric=absent.toml")).fault
    trained = druthers("train", *job(tmp_path, data, model, "train.max_steps=1", "loss.beta=0.5"))
    assert trained.code == 0
    assert "changed since the last session: evaluate.rubric was 'absent.toml', now None; loss.beta was" in trained.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["train"]["max_steps"], config["loss"]["beta"]) == (1, 0.5)


def test_a_loss_that_was_refused_may_be_corrected_in_place(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", ({**row, "p": 0.9} for row in calls.trl_rows()))
    assert "use loss.name=sigmoid" in druthers("train", *job(tmp_path, data, model, "loss.name=ipo")).fault
    assert druthers("train", *job(tmp_path, data, model, "loss.name=sigmoid")).code == 0


def test_pairs_that_were_corrected_are_curated_again_until_training_begins(tmp_path: Path, model: Path) -> None:
    rows = list(calls.trl_rows())
    data = calls.jsonl(tmp_path / "pairs.jsonl", ({**row, "weight": 0.0} for row in rows))
    assert "weight 0" in druthers("train", *job(tmp_path, data, model)).fault
    calls.jsonl(data, rows)
    trained = druthers("train", *job(tmp_path, data, model))
    assert trained.code == 0
    assert "has changed since it was curated, so it is read again" in trained.err
    before = (tmp_path / "run" / "data" / "train.jsonl").read_bytes()
    calls.jsonl(data, rows[1:])
    again = druthers("train", *job(tmp_path, data, model))
    assert (again.code, "read again" in again.err) == (0, False)
    assert (tmp_path / "run" / "data" / "train.jsonl").read_bytes() == before


def test_a_margin_that_leaves_no_pair_says_which_setting(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert "lower data.least_margin" in refused(tmp_path, data, model, "data.least_margin=0.5")


def test_a_folder_that_holds_something_else(tmp_path: Path, model: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert "holds no run" in druthers("align", *job(tmp_path, data, model)).fault
    assert calls.files(tmp_path / "run") == ["thesis.tex"]


def test_two_processes_on_one_run_directory(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    ready, done = os.pipe(), os.pipe()

    def hold() -> None:
        with open_run(load(overrides=[f"run={tmp_path / 'run'}"])):
            os.write(ready[1], b"!")
            os.close(done[1])
            os.read(done[0], 1)

    child = None
    try:
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            hold()
            os._exit(0)
        os.read(ready[0], 1)
        assert f"is in use by process {child}" in refused(tmp_path, data, model)
    finally:
        for end in (*ready, *done):
            os.close(end)
        if child:
            os.waitpid(child, 0)
    assert druthers("curate", *job(tmp_path, data, model)).code == 0


# ---------------------------------------------------------------- a full disk


def with_room_for(size: int, place: Path, *command: object) -> str:
    """What a command in a child says when no file may grow beyond `size` bytes."""
    said = place / "said"
    said.touch()

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        found = druthers(*command)
        os.truncate(said, 0)
        said.write_text(json.dumps([found.code, found.out, found.err])[:size])

    assert calls.in_child(act) == 0
    code, out, err = json.loads(said.read_text())
    return calls.Called(code, out, err).fault


def test_a_disk_that_is_full_while_saving_leaves_no_half_checkpoint(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    command = ("train", *job(tmp_path, data, model))
    whole = tmp_path / "whole"
    assert druthers("train", *job(tmp_path, data, model, "--run", whole)).code == 0
    size = (whole / "checkpoints" / "step-000002" / "optimizer.pt").stat().st_size
    said = with_room_for(size - 1, tmp_path, *command)
    assert "step-000001 cannot be saved" in said
    assert "free some space and run the same command again" in said
    assert [name for name in calls.files(tmp_path / "run") if "checkpoint" in name] == []
    assert druthers(*command).code == 0
    for name in ("metrics.jsonl", "outcomes.parquet", "checkpoints/step-000002/weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_disk_that_is_full_while_curating_leaves_nothing(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows(200))
    said = with_room_for(8000, tmp_path, "align", *job(tmp_path, data, model))
    assert "free some space" in said
    assert calls.files(tmp_path / "run") == [".lock", "config.json"]


def test_a_disk_that_is_full_while_exporting_leaves_nothing(tmp_path: Path, model: Path) -> None:
    data = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    assert druthers("train", *job(tmp_path, data, model)).code == 0
    said = with_room_for(20_000, tmp_path, "export", tmp_path / "run", tmp_path / "out")
    assert "cannot be written" in said
    assert [entry.name for entry in tmp_path.iterdir() if "out" in entry.name] == []
