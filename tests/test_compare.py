"""Runs side by side: what is paired, what is refused with a reason, and a page for any folders that are runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from druthers.evaluate.along import point
from druthers.report import compared
from druthers.report.compared import matches
from druthers.report.compared.comparison import names_of
from druthers.report.compared.entries import flop, read_entry
from druthers.report.compared.matches import holm
from druthers.report.reading import read_run
from druthers.stats import Interval, Undefined
from tests import calls, tiny
from tests.calls import druthers
from tests.frontier_file import write_frontier
from tests.run_directory import write_run
from tests.test_report import LIMIT_BYTES, Outline
from tests.trl_output import write_trl

GOLDEN = Path(__file__).with_name("compare_golden.json")
KEPT = {"prompts", "points", "kind", "name", "run", "of", "by", "over", "a", "b", "measure", "scorer"}
"""Keys whose values are the same on every machine; of others only their kind is."""


def changed(folder: Path, **settings: Any) -> Path:
    """The config.json of a run with some dotted settings changed (`loss__beta`)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, value in settings.items():
        *branches, leaf = key.split("__")
        tree = config
        for branch in branches:
            tree = tree[branch]
        tree[leaf] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three synthetic runs: one that is better everywhere, and two seeds of a weaker one."""
    place = tmp_path_factory.mktemp("runs")
    made = {}
    for name, gain, seed in (("strong", 0.5, 0), ("weak-0", 0.1, 0), ("weak-1", 0.1, 1)):
        folder = changed(write_run(place / name, prompts=12, steps=8), run=str(place / name), seed=seed)
        changed(folder, loss__beta=0.1 if name == "strong" else 0.5)
        write_frontier(folder, gain=gain, reach=6.0 if name == "strong" else 6.5, seed=hash_of(name))
        made[name] = folder
    return made


def hash_of(name: str) -> int:
    """A seed by a name."""
    return sum(map(ord, name))


def page_of(found: compared.Comparison, place: Path) -> Outline:
    """The page of a comparison, taken apart."""
    text = compared.write_comparison(found, place / "compare.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT_BYTES
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    return Outline(text)


# ---------------------------------------------------------------- what is said of runs


def test_the_better_run_beats_the_points_of_the_others(runs: dict[str, Path]) -> None:
    found = compared.compare([runs["strong"], runs["weak-0"]])
    shares = {(duel.of, duel.by): duel.share for duel in found.duels}
    lost, won = shares["weak-0", "strong"], shares["strong", "weak-0"]
    assert isinstance(lost, Interval)
    assert isinstance(won, Interval)
    assert lost.value == 1.0
    assert lost.low > 0.5
    assert won.value == 0.0
    assert found.beaten == {"strong": (0, 4), "weak-0": (4, 4)}
    assert "weak-0" not in found.front
    (lead,) = found.leads
    assert isinstance(lead.gap, Interval)
    assert lead.gap.low > 0
    assert any("strong beats 100" in one for one in compared.sentences(found))


def test_runs_that_differ_in_their_seed_alone_are_one_method(runs: dict[str, Path]) -> None:
    found = compared.compare(list(runs.values()))
    assert [method.name for method in found.methods] == ["strong", "weak-0 + weak-1"]
    assert found.differing.keys() == {"loss.beta", "seed"}
    assert not any("luck of the prompts and not" in remark for remark in found.remarks)


def test_settings_in_which_no_run_differs_are_left_out(runs: dict[str, Path]) -> None:
    found = compared.compare([runs["strong"], runs["weak-0"]])
    assert found.differing == {"loss.beta": {"strong": "0.1", "weak-0": "0.5"}}


def test_the_win_matrix_is_paired_by_prompt(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["strong"], other)
    file = other / "evaluation" / "judgements-sampled.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines[:-2]:
        line["score_b"] = line["score_b"] / 2 - 0.01
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-1], {**lines[-1], "prompt_id": "new"}]))
    (match,) = matches.matches([read_entry(runs["strong"], name="a"), read_entry(other, name="b")], seed=0)
    prompts = len({line["prompt_id"] for line in lines})
    assert (match.wins, match.ties, match.losses) == (prompts - 2, 1, 0)  # one is the same, one answered by one alone
    assert match.win_rate.n == prompts - 1
    assert match.p_holm == match.p == pytest.approx(2 * 0.5 ** (prompts - 2))


def test_accuracy_is_compared_on_the_pairs_both_hold_out(runs: dict[str, Path]) -> None:
    a, b = (read_entry(runs[name], name=name) for name in ("strong", "weak-0"))
    assert 0 < len(a.right) == len(b.right)
    same = matches.accuracy_gap(a, b, seed=0)
    assert isinstance(same, Interval)
    assert same.value == 0.0
    assert same.n == len(a.right)
    assert a.measures["accuracy"].as_dict()["value"] == pytest.approx(np.mean(list(a.right.values())))


def test_corrected_p_values_follow_holm() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_operations_follow_from_tokens_and_parameters(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["strong"], folder)
    lines = [
        {"step": 0, "split": "heldout", "epoch": 0.0, "tokens": 10},
        {"step": 1, "split": "train", "epoch": 1.0, "tokens": 100},
        {"step": 2, "split": "train", "epoch": 2.0, "tokens": 100},
        {"step": 2, "split": "heldout", "epoch": 2.0, "tokens": 10},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "inputs.json").write_text(json.dumps({"model": {"parameters": 1000}}), encoding="utf-8")
    whole = changed(folder, model__adapter="none")
    reference = 2 * (100 + 10)
    assert flop(read_run(whole)) == Interval(*[1000.0 * (200 * 6 + 10 * 2 + reference)] * 3, 1)
    assert flop(read_run(changed(folder, model__adapter="lora"))) == Interval(
        *[1000.0 * (200 * 4 + 10 * 2 + reference)] * 3, 1
    )


# ---------------------------------------------------------------- what is not compared


def test_points_measured_by_another_scorer_are_not_held_against_each_other(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["weak-0"], other)
    write_frontier(other, scorer="somebody")
    found = compared.compare([runs["strong"], runs["weak-0"], other])
    reasons = {duel.share.reason for duel in found.duels if isinstance(duel.share, Undefined)}
    assert reasons == {"their points were not measured alike (scorer)"}
    assert [entry.name for entry in found.drawn] == ["strong", "weak-0"]
    assert any(remark.startswith("other: measured along training by another scorer") for remark in found.remarks)


def test_other_prompts_are_no_common_ground(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["weak-0"], other)
    file = write_frontier(other)
    file.write_text(file.read_text(encoding="utf-8").replace("prompt-", "else-"), encoding="utf-8")
    found = compared.compare([runs["strong"], other])
    assert {duel.share.as_dict()["undefined"] for duel in found.duels} == {
        "the points were measured on no prompts in common"
    }
    assert "the points were measured on no prompts in common" in page_of(found, tmp_path).text


def test_answers_sampled_otherwise_play_no_match(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["strong"], other)
    changed(other, evaluate__temperature=1.5)
    found = compared.compare([runs["strong"], other])
    (match,) = found.matches
    assert match.win_rate == Undefined("their answers were sampled in different ways")


def test_without_a_reward_the_points_are_not_drawn_and_it_is_said_why(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs["strong"], tmp_path / name)
        file = tmp_path / name / "evaluation" / "frontier.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            rows = {key: line["rows"][key] for key in ("prompt_id", "tokens", "finished", "k1", "k3")}
            line |= point(rows, step=line["step"], seed=0) | {"rows": rows, "scorer": None}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = compared.compare([tmp_path / "a", tmp_path / "b"])
    assert {duel.share.as_dict()["undefined"] for duel in found.duels} == {"the points along training have no reward"}
    assert "The points along training have no reward: the runs have no rubric" in page_of(found, tmp_path).text


def test_without_points_along_training_the_ends_are_drawn(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs["strong"], tmp_path / name)
        (tmp_path / name / "evaluation" / "frontier.jsonl").unlink()
    found = compared.compare([tmp_path / "a", tmp_path / "b"])
    assert found.measure == "win_rate"
    assert [len(entry.points) for entry in found.drawn] == [1, 1]
    page = page_of(found, tmp_path).text
    assert "A point a run, its kept checkpoint" in page
    assert "No two runs have points that can be held against each other" in page


def test_different_data_are_said(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(runs["strong"], tmp_path / name)
        file = tmp_path / name / "data" / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**summary, "source_sha256": name}), encoding="utf-8")
    found = compared.compare([tmp_path / "one", tmp_path / "other"])
    assert any(remark.startswith("one / other: learned from different preferences") for remark in found.remarks)


# ---------------------------------------------------------------- odd folders


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("empty", "model", "file", "nowhere", "n" * 300):
        fault = druthers("compare", tmp_path / name, "--out", tmp_path / "page.html").fault
        assert "is neither a run directory" in fault or "cannot be read" in fault, name
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_an_html_file(runs: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    assert "ends in .html" in druthers("compare", runs["strong"], "--out", target).fault
    assert not target.exists()


@pytest.mark.parametrize(
    "gone",
    [
        ("summary.json", "evaluation", "outcomes.parquet"),
        ("evaluation",),
        ("data",),
        ("metrics.jsonl", "inputs.json"),
        ("outcomes.parquet", "data/heldout.jsonl"),
    ],
    ids=lambda names: names[0],
)
def test_a_run_that_is_not_whole_has_a_fair_page(runs: dict[str, Path], tmp_path: Path, gone: tuple[str, ...]) -> None:
    half = tmp_path / "half"
    shutil.copytree(runs["weak-0"], half)
    for name in gone:
        shutil.rmtree(half / name) if (half / name).is_dir() else (half / name).unlink()
    found = compared.compare([runs["strong"], half])
    page = page_of(found, tmp_path)
    assert "half" in page.text
    if gone[0] == "summary.json":
        assert "half is not trained to its end (step 8 so far)." in page.text
        assert isinstance(found.entries[1].measures["accuracy"], Interval)


def test_a_damaged_frontier_is_a_remark(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, text in (("a", '{"step": 1, "rows": {"prompt_id": ["x"], "reward": []}}\n'), ("b", "{"), ("c", "{}\n")):
        shutil.copytree(runs["weak-0"], tmp_path / name)
        (tmp_path / name / "evaluation" / "frontier.jsonl").write_text(text, encoding="utf-8")
        found = compared.compare([runs["strong"], tmp_path / name])
        assert any("frontier.jsonl:1" in remark for remark in found.remarks)
        assert not found.entries[1].points


def test_the_same_run_twice_stands_once(runs: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(runs["strong"])
    found = compared.compare([runs["strong"], link, runs["strong"]])
    assert len(found.entries) == 1
    assert sum("stands here once" in remark for remark in found.remarks) == 2
    assert "strong alone ranks" in page_of(found, tmp_path).text


def test_copies_are_said_to_be_copies(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["strong"], tmp_path / "strong")
    found = compared.compare([runs["strong"], tmp_path / "strong"])
    assert len({entry.name for entry in found.entries}) == 2
    assert len(found.methods) == 2
    assert any("have the same settings and seed" in remark for remark in found.remarks)
    (match,) = found.matches
    assert match.win_rate.as_dict()["value"] == 0.5
    there, back = (duel.share for duel in found.duels)
    assert there == back


def test_names_are_the_shortest_that_differ() -> None:
    assert names_of([Path("/r/a/x"), Path("/r/b/x"), Path("/r/b/y"), Path("/")]) == ["a/x", "b/x", "y", "/"]


def test_names_may_be_any_text(runs: dict[str, Path], tmp_path: Path) -> None:
    name = "<b>β=0.1</b> 日本 & “x”"
    shutil.copytree(runs["strong"], tmp_path / name)
    found = compared.compare([runs["weak-0"], tmp_path / name])
    text = compared.write_comparison(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>β" not in text
    assert name in Outline(text).text


def test_thirty_runs_have_a_page(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = []
    for i in range(30):
        folder = tmp_path / f"run-{i}"
        shutil.copytree(runs["strong"], folder)
        write_frontier(changed(folder, loss__beta=0.01 * (i + 1)), prompts=8, seed=i, steps=(0, 5, 10))
        folders.append(folder)
    found = compared.compare(folders)
    assert len(found.duels) == 30 * 29
    assert "30 runs" in page_of(found, tmp_path).text


# ---------------------------------------------------------------- runs of TRL


def test_a_trl_folder_is_a_run_with_what_it_has(runs: dict[str, Path], tmp_path: Path) -> None:
    found = compared.compare([runs["strong"], write_trl(tmp_path / "trl")])
    entry = found.entries[1]
    assert (entry.kind, entry.kept) == ("trl", 6)
    right = entry.measures["accuracy"]
    assert isinstance(right, Interval)
    assert (right.value, right.n) == (1.0, 8)
    counted = {key: entry.measures[key].as_dict()["value"] for key in ("pairs", "steps", "train_seconds", "flop")}
    assert counted == {"pairs": 16.0, "steps": 6.0, "train_seconds": 64.4745, "flop": 182052864.0}
    assert entry.measures["kl"] == Undefined("not recorded in a TRL output folder")
    assert entry.settings["model.path"] == "org/tiny"
    assert "not recorded" in page_of(found, tmp_path).text


def test_the_newest_checkpoint_of_a_trl_folder_tells_how_far_it_came(tmp_path: Path) -> None:
    folder = write_trl(tmp_path / "trl")
    for step in (4, 10):
        (folder / f"checkpoint-{step}").mkdir(exist_ok=True)
        changes = {"global_step": step, "max_steps": 20, "best_global_step": None, "best_model_checkpoint": None}
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")) | changes
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "trainer_state.json").unlink()
    (entry,) = compared.compare([folder]).entries
    assert entry.kept == 10
    assert any("not trained to its end (step 10 of 20)" in remark for remark in entry.remarks)


@pytest.mark.parametrize("log", [None, "text", [1], [{"eval_rewards/accuracies": 7}], []])
def test_an_odd_trainer_state_is_said_or_not_recorded(tmp_path: Path, log: Any) -> None:
    folder = write_trl(tmp_path / "trl", log_history=log)
    found = druthers("compare", folder, "--out", tmp_path / "page.html", "--json")
    if isinstance(log, list) and log != [1]:
        assert found.json["runs"][0]["measures"]["accuracy"]["value"] is None
    else:
        assert "log_history" in found.fault


# ---------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def real(shared_cache: Path) -> list[Path]:
    """Two tiny runs that differ in beta."""
    tiny.folder(shared_cache / "model")
    calls.jsonl(shared_cache / "pairs.jsonl", calls.trl_rows(24))
    (shared_cache / "house.toml").write_text(calls.RUBRIC, encoding="utf-8")
    for name, beta in (("soft", 1.0), ("firm", 0.1)):
        options = (
            "--model",
            shared_cache / "model",
            "--data",
            shared_cache / "pairs.jsonl",
            "--run",
            shared_cache / name,
        )
        more = (f"evaluate.rubric={shared_cache / 'house.toml'}", "evaluate.along=4", f"loss.beta={beta}")
        found = druthers("align", *options, *calls.FEW, *more)
        assert found.code == 0, found.err
    return [shared_cache / name for name in ("soft", "firm")]


def shape(value: Any, key: str = "") -> Any:
    """JSON with what differs from machine to machine replaced by what it is."""
    if isinstance(value, dict):
        return {name: shape(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner, key) for inner in value]
    if isinstance(value, bool) or value is None or key in KEPT:
        return value
    return "number" if isinstance(value, int | float) else key if key in ("path", "page") else value


def test_two_real_runs_give_the_golden_json(real: list[Path], tmp_path: Path) -> None:
    found = druthers("compare", *real, "--out", tmp_path / "page.html", "--json").json
    ours = shape({**found, "remarks": len(found["remarks"]) > 0})
    for run in ours["runs"]:  # which point is on top is for the machine to say
        run["points_beaten"] = "number"
    for one in ours["frontier"]["points"]:
        one["on_front"] = "truth"
    assert ours == json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert (tmp_path / "page.html").is_file()


def test_the_numbers_of_a_real_run_are_those_of_its_files(real: list[Path], tmp_path: Path) -> None:
    found = druthers("compare", *real, "--out", tmp_path / "page.html", "--json").json
    for run, folder in zip(found["runs"], real, strict=True):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / "evaluation/frontier.jsonl").read_text().splitlines()]
        kept = next(line for line in lines if line["step"] == summary["train"]["best_step"])
        assert run["measures"]["reward"] == kept["reward"]
        assert run["measures"]["win_rate"] == summary["win_rate"]
        assert run["measures"]["accuracy"] == summary["heldout"]["accuracy"]
        assert run["measures"]["pairs"]["value"] == summary["train"]["pairs"]
        drawn = [one for one in found["frontier"]["points"] if one["run"] == run["name"]]
        assert [one["kl"] for one in drawn] == [line["kl"]["k1"] for line in lines]


def test_for_people_there_is_a_table(real: list[Path], tmp_path: Path) -> None:
    found = druthers("compare", *real, "--out", tmp_path / "page.html")
    assert found.code == 0, found.err
    for words in ("soft", "firm", "ranked", "KL", "page.html"):
        assert words in found.out
