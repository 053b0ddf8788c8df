"""A run directory: one process at a time, one set of settings, and nothing that belongs to somebody else."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers.config import Settings, load, to_json
from druthers.records import InputError
from druthers.run import Run, environment, flat, locked, merge, note_code, open_run
from tests.calls import in_child

ROW = {"step": 0, "split": "train", "loss": 0.5, "pairs": 4, "tokens": 60}

HOLD = """
import sys
from druthers.config import load
from druthers.run import open_run
with open_run(load(overrides=["run=" + sys.argv[1]])):
    print("held", flush=True)
    sys.stdin.read()
"""


def settings(folder: Path, *changes: str) -> Settings:
    return load(overrides=[f"run={folder}", *changes])


def begin(folder: Path, *changes: str) -> Run:
    """A run that has come as far as its training."""
    run = curated(folder, *changes)
    run.path("metrics.jsonl").write_text("")
    return run


def finish(folder: Path, *changes: str) -> Run:
    """A run that has its verdict."""
    run = begin(folder, *changes)
    run.update_summary({"verdict": "better"})
    return run


def curated(folder: Path, *changes: str) -> Run:
    """A run that has come as far as its curated data."""
    with open_run(settings(folder, *changes)) as run:
        run.path("data/summary.json").write_text("{}")
    return run


def refusal(folder: Path, *changes: str) -> str:
    with pytest.raises(InputError) as caught, open_run(settings(folder, *changes)):
        pass
    return str(caught.value)


# ---------------------------------------------------------------- opening


def test_a_new_run_holds_its_settings_and_a_lock(tmp_path: Path) -> None:
    with open_run(settings(tmp_path / "a" / "b", "train.epochs=3")) as run:
        assert run.settings().train.epochs == 3
    assert sorted(entry.name for entry in (tmp_path / "a" / "b").iterdir()) == [".lock", "config.json"]
    assert (tmp_path / "a" / "b" / "config.json").read_text() == to_json(run.settings())


def test_the_same_settings_open_it_again(tmp_path: Path) -> None:
    begin(tmp_path / "run", "train.epochs=3")
    with open_run(settings(tmp_path / "run", "train.epochs=3")) as run:
        assert run.has("data/summary.json")


def test_another_number_of_threads_opens_it_too(tmp_path: Path) -> None:
    begin(tmp_path / "run", "threads=2")
    with open_run(settings(tmp_path / "run", "threads=1")) as run:
        assert (run.settings().threads, run.changed) == (1, ())


def test_a_moved_run_opens_at_its_new_place(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    with open_run(settings(tmp_path / "moved")) as run:
        assert run.folder == tmp_path / "moved"


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("train.epochs=2", "train.epochs was 1.0, now 2.0"),
        ("data.pairs=other.jsonl", "data.pairs was 'brand-voice', now 'other.jsonl'"),
        ("loss.name=ipo", "loss.name was 'sigmoid', now 'ipo'"),
        ("evaluate.rubric=house", "evaluate.rubric was None, now 'house'"),
    ],
)
def test_another_run_is_refused_and_the_difference_is_named(tmp_path: Path, change: str, first: str) -> None:
    finish(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert first in refusal(tmp_path / "run", change)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize("change", ["seed=1", "model.path=other", "data.limit=3"])
def test_curated_data_is_fixed_by_the_settings_that_made_it(tmp_path: Path, change: str) -> None:
    curated(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert f"{change.partition('=')[0]} was" in refusal(tmp_path / "run", change)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize("change", ["model.adapter=lora", "loss.name=ipo", "train.epochs=2", "evaluate.count=7"])
def test_curated_data_takes_other_settings_of_the_later_stages(tmp_path: Path, change: str) -> None:
    curated(tmp_path / "run")
    with open_run(settings(tmp_path / "run", change)) as run:
        assert to_json(run.settings()) == to_json(settings(tmp_path / "run", change))
        assert change.partition("=")[0] in {said.partition(" was ")[0] for said in run.changed}


@pytest.mark.parametrize("change", ["model.adapter=lora", "loss.name=ipo", "train.epochs=2", "seed=1"])
def test_the_first_step_fixes_the_settings_of_training(tmp_path: Path, change: str) -> None:
    begin(tmp_path / "run")
    assert f"{change.partition('=')[0]} was" in refusal(tmp_path / "run", change)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-000001/position.json"])
def test_the_settings_of_training_stay_fixed_when_the_data_folder_is_gone(tmp_path: Path, left: str) -> None:
    run = curated(tmp_path / "run")
    run.path(left).write_text("")
    (tmp_path / "run" / "data" / "summary.json").unlink()
    for change in ("seed=1", "data.limit=3", "train.learning_rate=1e-3"):
        assert f"{change.partition('=')[0]} was" in refusal(tmp_path / "run", change)


def test_a_trained_run_may_be_evaluated_in_another_way(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with open_run(settings(tmp_path / "run", "evaluate.batch_size=8")) as run:
        assert run.changed == ("evaluate.batch_size was 96, now 8",)
        assert run.settings().evaluate.batch_size == 8


def test_a_run_that_got_nowhere_is_begun_anew(tmp_path: Path) -> None:
    with open_run(settings(tmp_path / "run", "data.pairs=typo.jsonl")):
        pass
    with open_run(settings(tmp_path / "run", "data.pairs=right.jsonl")) as run:
        assert run.settings().data.pairs == "right.jsonl"


def test_a_setting_that_an_older_version_did_not_know_has_its_default(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    tree = run.json("config.json")
    del tree["train"]["weight_decay"]
    run.path("config.json").write_text(json.dumps(tree))
    with open_run(settings(tmp_path / "run")):
        pass
    assert "train.weight_decay was 0.0, now 0.1" in refusal(tmp_path / "run", "train.weight_decay=0.1")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not empty and holds no run" in refusal(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


FOREIGN = {
    "model": '{"model_type": "llama", "vocab_size": 3}',
    "empty": "{}",
    "list": "[]",
    "damaged": "{",
    "other": '{"run": "x", "data": {}, "train": {"epochz": 1}}',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_folder_with_a_config_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "deep").mkdir()
    theirs = {"config.json": FOREIGN[kind], "deep/.draft.tmp": "x", ".weights.1-2.tmp": "y"}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'config.json'}")
    assert said.endswith("name another folder with run=FOLDER")
    assert "delete" not in said
    found = {file.relative_to(tmp_path).as_posix(): file for file in tmp_path.rglob("*") if file.is_file()}
    assert {name: file.read_text() for name, file in found.items()} == theirs


def test_only_what_a_killed_process_of_ours_left_is_swept(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "data" / ".train.jsonl.12-34.tmp").write_text("half")
    (tmp_path / ".mine.tmp").write_text("kept")
    (tmp_path / ".folder.1-2.tmp").mkdir()
    (tmp_path / "data" / ".scratch.12-34.tmp").mkdir()
    (tmp_path / "data" / ".scratch.12-34.tmp" / "tmpabc").write_text("half")
    with open_run(settings(tmp_path)):
        pass
    assert {path.name for path in tmp_path.rglob(".*.tmp")} == {".mine.tmp", ".folder.1-2.tmp"}


def test_a_run_killed_before_its_first_file_was_whole_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ".config.json.12-34.tmp").write_text("{")
    with open_run(settings(tmp_path)) as run:
        assert run.has("config.json")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with open_run(settings(tmp_path)) as run:
        assert run.has("config.json")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    assert "name another with run=FOLDER" in refusal(tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["n" * 300, f"{'n' * 300}/below"])
def test_a_name_that_is_too_long_is_said(tmp_path: Path, name: str) -> None:
    assert "File name too long; name another with run=FOLDER" in refusal(tmp_path / name)


def test_a_lock_needs_no_room_on_the_disk(tmp_path: Path) -> None:
    """A file that may not grow stands for a full disk."""

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with locked(tmp_path):
            pass

    assert in_child(act) == 0
    assert (tmp_path / ".lock").read_text() == ""


def test_a_full_disk_is_said_before_anything_is_read(tmp_path: Path) -> None:
    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        assert "free some space" in refusal(tmp_path)

    assert in_child(act) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_folder_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert f"cannot be locked: {os.strerror(number)}; name another" in refusal(tmp_path)


def test_a_folder_that_cannot_be_locked_is_said(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    assert "cannot be written" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"train": {"epochz": 1}}', '{"train": {"epochs": "many"}}'])
def test_broken_settings_are_one_sentence(tmp_path: Path, text: str) -> None:
    begin(tmp_path / "run").path("config.json").write_text(text)
    said = refusal(tmp_path / "run")
    assert "\n" not in said
    assert "delete" not in said


# ---------------------------------------------------------------- the lock


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process with the run open."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_told_who_holds_the_run_and_a_kill_frees_it(tmp_path: Path) -> None:
    with hold(tmp_path / "run") as holder:
        said = refusal(tmp_path / "run")
        assert f"is in use by process {holder.pid}" in said
        assert "\n" not in said
        assert f"process {holder.pid};" in refusal(tmp_path / "run")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=20)
        with open_run(settings(tmp_path / "run")):
            assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_a_fault_frees_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_run(settings(tmp_path)):
        raise KeyError
    with open_run(settings(tmp_path)):
        pass


# ---------------------------------------------------------------- files


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(InputError, match="so it is not a run directory"):
        run.settings()
    run.path("file").write_text("")
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        Run(tmp_path / "file").settings()
    run.path("summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: not valid JSON"):
        run.summary()
    run.path("summary.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        run.summary()


def test_the_summary_grows_by_sections(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.summary() == {}
    run.update_summary({"seconds": {"curate": 1.0}, "verdict": "better"})
    assert run.update_summary({"seconds": {"train": 2.0}, "verdict": "worse"}) == {
        "seconds": {"curate": 1.0, "train": 2.0},
        "verdict": "worse",
    }
    assert run.summary()["verdict"] == "worse"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_metrics_are_the_lines_of_their_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    lines = [json.dumps(ROW | {"step": step}) for step in (1, 2)]
    run.path("metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in run.metrics()] == [1, 2]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", "null", "\xff", "[" * 5000, json.dumps(ROW).replace("split", "splkt")]
)
def test_a_damaged_line_of_metrics_is_named(tmp_path: Path, line: str) -> None:
    run = Run(tmp_path)
    run.path("metrics.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: is damaged") as caught:
        run.metrics()
    assert "\n" not in str(caught.value)


TREES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xy"), st.integers()), max_size=3
)


@given(TREES, TREES)
def test_merging_keeps_the_new_and_loses_nothing_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    both = merge(old, new)
    assert merge(both, new) == both
    assert both.keys() == old.keys() | new.keys()
    assert flat(new).items() <= flat(both).items() or any(value == {} for value in new.values())


def test_the_run_notes_where_it_ran(tmp_path: Path) -> None:
    note = environment(
        device="cpu",
        precision="float32",
        attention="sdpa",
        layout="padded",
        threads=1,
        ranks=1,
        torch_version="2",
        transformers_version="5",
    )
    expected = {"druthers", "python", "torch", "transformers", "platform", "cpu", "threads", "device", "precision"}
    assert note.keys() == expected | {"attention", "layout", "ranks", "commit"}
    note_code(Run(tmp_path))
    assert (tmp_path / "code.diff").is_file()
