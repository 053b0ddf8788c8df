"""What people said becomes graded pairs, wherever it stands in the source, and nothing is lost on the way."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from druthers import config, storage
from druthers.curate import CurateSummary, curate, gather, intake, pooling
from druthers.curate.grading import UNMADE
from druthers.records import InputError, Pair
from druthers.report import write_data_page
from druthers.report.screen import done
from druthers.run import sweep
from tests import tiny

TOKENIZER = tiny.tokenizer()


def run(path: Path, out: Path, *, workers: int = 1, **extra: Any) -> CurateSummary:
    keys = {key.replace("__", "."): value for key, value in extra.items()}
    made = config.load(extra={"data.pairs": str(path)} | keys)
    return curate(made, out=out, tokenizer=TOKENIZER, workers=workers)


def put(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(storage.encode, rows)))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pairs(out: Path) -> list[Pair]:
    found = [Pair.model_validate(line) for side in ("train", "heldout") for line in lines(out / f"{side}.jsonl")]
    return sorted(found, key=lambda pair: pair.prompt[0].content)


def short(out: Path) -> list[tuple[str, str, str, float]]:
    return [(p.prompt[0].content, p.chosen[0].content, p.rejected[0].content, p.p) for p in pairs(out)]


def vote(prompt: str, a: str, b: str, winner: str, who: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response_a": a, "response_b": b, "winner": winner, "annotator": who} | more


FRUIT = [vote(f"Name fruit {i}.", "Plum.", "Carrot.", "a", "ann") for i in range(40)]


def test_votes_on_two_responses_count_together_in_whatever_order_they_were_shown(tmp_path: Path) -> None:
    rows = [
        vote("Name a fruit.", *shown, who)
        for shown, who in (
            (("Plum.", "Carrot.", "a"), "ann"),
            (("Carrot.", "Plum.", "b"), "bob"),
            (("Carrot.", "Plum.", "a"), "cid"),
        )
    ]
    summary = run(put(tmp_path / "a.jsonl", [rows[0], *FRUIT, *rows[1:]]), tmp_path / "data")
    (found,) = [each for each in short(tmp_path / "data") if each[0] == "Name a fruit."]
    assert found[1:3] == ("Plum.", "Carrot.")
    assert 0.5 < found[3] < 1
    assert summary.graded is not None
    assert (summary.rows, summary.graded["items"], summary.graded["pairs"], summary.kept) == (43, 41, 41, 41)


def test_rows_of_every_fate_are_accounted_for_each_once(tmp_path: Path) -> None:
    rows = [
        *FRUIT,
        vote("Tied?", "Yes.", "No.", "tie", "ann"),
        vote("Bad?", "Er.", "Um.", "tie", "ann", tie_kind="both_bad"),
        vote("Same?", "Yes.", "Yes.", "a", "ann"),
        vote("Silent?", "Yes.", "No.", "", "ann"),
        vote("Lost?", "Yes.", "No.", "a", "ann") | {"prompt": 7},
        FRUIT[3],
    ]
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data", data__bad_rows="drop")
    assert summary.rejected == {"both_bad": 1, "malformed": 1, "no_opinion": 1, "same_text": 1, "tie": 1}
    refused = lines(tmp_path / "data" / "rejected.jsonl")
    places = {row["reason"]: int(row["where"].rpartition(":")[2]) for row in refused}
    assert places == {"tie": 41, "both_bad": 42, "same_text": 43, "no_opinion": 44, "malformed": 45}
    assert all(row["why"] == UNMADE[row["reason"]] for row in refused if row["reason"] in ("tie", "both_bad"))
    assert summary.graded is not None
    assert (summary.graded["unmade"], summary.graded["pairs"]) == (2, 40)
    assert len(rows) == summary.rows == 46


def test_ties_are_kept_where_the_policy_says_so_and_the_version_tells(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*FRUIT, vote("Tied?", "Yes.", "No.", "tie", "ann")])
    one = run(path, tmp_path / "one")
    two = run(path, tmp_path / "two", grade__ties="soft")
    assert [p for prompt, *_, p in short(tmp_path / "two") if prompt == "Tied?"] == [0.5]
    assert one.graded is not None
    assert two.graded is not None
    assert one.graded["policy"] != two.graded["policy"]
    assert (two.kept, one.kept) == (41, 40)


def unpaired_in(out: Path) -> Counter[str]:
    path = out / "unpaired.jsonl"
    return Counter(line["reason"] for line in lines(path)) if path.exists() else Counter()


def test_comparisons_that_gave_no_pair_beside_others_of_their_prompt_are_a_file_and_are_told(tmp_path: Path) -> None:
    texts = ["Plum.", "Fig.", "Carrot.", " "]
    rows = [{"prompt": f"Fruit {i}?", "responses": texts, "ranks": [1, 1, 3, 4]} for i in range(20)]
    rows += [{"prompt": "All alike?", "responses": texts[:2], "ranks": [1, 1]}]
    path = put(tmp_path / "a.jsonl", rows)
    summary = run(path, tmp_path / "data")
    assert summary.graded is not None
    assert summary.graded["unpaired"] == unpaired_in(tmp_path / "data") == {"empty": 60, "tie": 20}
    assert summary.graded["reasons"] == {"empty": 60, "tie": 21}
    assert summary.rejected == {"tie": 1}
    line = next(line for line in lines(tmp_path / "data" / "unpaired.jsonl") if line["reason"] == "tie")
    assert (line["where"], line["why"]) == (f"{path}:1", UNMADE["tie"])
    assert [response["content"] for response in line["responses"]] == ["Plum.", "Fig."]
    assert line["prompt"] == [{"role": "user", "content": "Fruit 0?"}]
    assert "80 comparisons gave no pair, in data/unpaired.jsonl: 60 judged against nothing, 20 tied" in done(
        json.loads((tmp_path / "data" / "summary.json").read_text("utf-8"))
    )
    page = write_data_page(tmp_path).read_text("utf-8")
    assert "<li><b>Tied</b>: 20. grade.ties=soft keeps ties" in page
    run(path, tmp_path / "data", grade__ties="soft", grade__pairs="best-worst")
    assert unpaired_in(tmp_path / "data") == {"empty": 60}
    run(put(tmp_path / "a.jsonl", FRUIT), tmp_path / "data")
    assert not (tmp_path / "data" / "unpaired.jsonl").exists()


def test_a_table_of_ratings_gives_pairs_of_all_responses_to_a_prompt_that_weigh_one_together(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frage", "antwort", "note", "lang"])
        for note in (9, 5, 2):
            writer.writerows([f"Question {i}?", f"answer of {note}, {i}", note, "de"] for i in range(30))
    summary = run(
        path,
        tmp_path / "data",
        data__columns={"frage": "prompt", "antwort": "response", "note": "rating", "lang": "group"},
    )
    found = pairs(tmp_path / "data")
    assert (summary.format, len(found), {pair.group for pair in found}) == ("ratings", 90, {"de"})
    weights = Counter[str]()
    for pair in found:
        weights[pair.prompt_id] += pair.weight
        assert int(pair.chosen[0].content.split()[2][0]) > int(pair.rejected[0].content.split()[2][0])
        assert pair.margin > 0
    assert all(abs(weight - 1) < 1e-9 for weight in weights.values())


def crowd(items: int, *, seed: int, liar: str = "mallory") -> list[dict[str, Any]]:
    """Two of six annotators judge each item; all are right nine times of ten, one in shuffled order, but the liar."""
    random_ = random.Random(seed)
    skill = dict.fromkeys(("ann", "bob", "cid", "dora", "eve"), 0.92) | {liar: 0.05}
    rows = []
    for i in range(items):
        texts = [f"good {i} {random_.random()}", f"bad {i} {random_.random()}"]
        for who in random_.sample(sorted(skill), 2):
            right, turned = random_.random() < skill[who], random_.random() < 0.5
            a, b = texts[::-1] if turned else texts
            rows.append(vote(f"Item number {i * 37} of {chr(97 + i % 26) * 4}?", a, b, "ba"[right != turned], who))
    random_.shuffle(rows)
    return rows


def test_an_annotator_who_swaps_is_named_with_the_answers_and_the_pairs_stand_the_right_way(tmp_path: Path) -> None:
    rows = crowd(600, seed=1)
    run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    quality = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))
    (named,) = [f for f in quality["findings"] if f["id"] == "D3.annotator"]
    assert (named["slice"]["annotator"], named["status"]) == ("mallory", "fail")
    told = lines(tmp_path / "data" / named["rows"]["file"])
    assert len(told) == named["rows"]["count"] == sum(row["annotator"] == "mallory" for row in rows)
    assert {row["annotator"] for row in told} == {"mallory"}
    ids = {pair.id for pair in pairs(tmp_path / "data")}
    assert {name for row in told for name in row["pair_ids"]} <= ids
    right = [pair.chosen[0].content.startswith("good") for pair in pairs(tmp_path / "data")]
    assert sum(right) > 0.9 * len(right)
    assert {each["name"] for each in quality["annotators"]} == {"ann", "bob", "cid", "dora", "eve", "mallory"}


def test_a_side_that_is_pressed_too_often_is_told(tmp_path: Path) -> None:
    rows = [row | {"winner": "a" if i % 10 < 8 else "b"} for i, row in enumerate(crowd(400, seed=2))]
    run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    quality = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))
    (found,) = [f for f in quality["findings"] if f["id"] == "D4.position"]
    assert found["value"] == pytest.approx(30, abs=0.01)
    assert found["status"] == "fail"


def test_longer_answers_that_stand_first_are_a_bias_of_length_and_not_of_the_side(tmp_path: Path) -> None:
    """Four times of five the longer one wins, wherever it stands; it stands first in three of four comparisons."""
    draw, rows = random.Random(5), []
    for i in range(900):
        long, short_ = f"plum {'and pear ' * draw.randrange(3, 9)}{i}", f"plum and {i}"
        first, second = (long, short_) if i % 4 else (short_, long)
        wins = "a" if (draw.random() < 0.8) == (first == long) else "b"
        rows.append(vote(f"Name fruit {i * 37} of {chr(97 + i % 26) * 4}?", first, second, wins, f"p{i % 9}"))
    run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    told = {f["id"]: f for f in json.loads((tmp_path / "data/quality.json").read_text("utf-8"))["findings"]}
    assert told["D4.position"]["status"] == "pass"
    assert told["D4.position"]["low"] < 0 < told["D4.position"]["high"]
    assert told["D4.length"]["value"] == pytest.approx(30, abs=4)
    assert told["D4.length"]["n"] == told["D4.position"]["n"] == 900


def test_the_order_of_rows_and_the_number_of_processes_and_memory_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = crowd(80, seed=3)
    path = put(tmp_path / "a.jsonl", rows)
    run(path, tmp_path / "one")
    monkeypatch.setattr(intake, "ALONE", 1)
    run(path, tmp_path / "two", workers=2)
    monkeypatch.setattr(pooling, "AT_ONCE", 7)
    monkeypatch.setattr(gather, "MEMORY", 100)
    run(path, tmp_path / "three")
    for name in ("train.jsonl", "heldout.jsonl", "rejected.jsonl", "quality.json", "summary.json"):
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "two" / name).read_bytes() == (tmp_path / "three" / name).read_bytes(), name


@pytest.mark.parametrize(("form", "workers"), [("thumbs", 2), ("ratings", 1)])
def test_thumbs_and_ratings_come_back_with_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, workers: int
) -> None:
    name, (good, poor) = ("label", (True, False)) if form == "thumbs" else ("rating", (9, 2))
    rows = [
        {"prompt": f"Name fruit {i}.", "response": f"{word} {i}", name: said}
        for i in range(90)
        for word, said in (("Plum", good), ("Carrot", poor))[: 1 + (i % 3 > 0)]
    ]
    path = put(tmp_path / "a.jsonl", rows)
    one = run(path, tmp_path / "one", grade__good=8)
    monkeypatch.setattr(intake, "ALONE", 1)
    monkeypatch.setattr(pooling, "AT_ONCE", 7)
    run(path, tmp_path / "two", workers=workers, grade__good=8)
    for file in ("train.jsonl", "heldout.jsonl", "quality.json", "summary.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    quality = json.loads((tmp_path / "two/quality.json").read_text("utf-8"))
    figures = {one["name"]: one for one in quality["figures"]}
    assert one.graded is not None
    alone = one.graded.get("alone")
    if form == "thumbs":
        assert alone == {"answers": 30, "down": 0, "prompts": 30, "up": 30}
        assert "ratings_chosen" not in figures
    else:
        assert alone is None
        assert sum(figures["ratings_chosen"]["counts"]["chosen"]) == one.train
        assert {each["id"]: each.get("value") for each in quality["findings"]}["D11.rated"] == 0


def test_of_votes_the_pairs_are_counted_that_are_alike_and_not_the_votes(tmp_path: Path) -> None:
    rows = [row | {"annotator": who} for row in FRUIT for who in ("ann", "bob", "cy")]
    made = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    quality = json.loads((tmp_path / "data" / "quality.json").read_text())
    counted = {one["id"]: one["n"] for one in quality["findings"]}
    assert made.rows == 3 * len(FRUIT)
    assert {counted[name] for name in ("D1.duplicate", "D1.near", "D1.leak", "D2.contradiction")} == {len(FRUIT)}


def test_what_two_groups_prefer_is_no_contradiction_and_no_duplicate(tmp_path: Path) -> None:
    rows = [
        vote(f"Explain {i}.", f"short {i}", f"long and thorough {i}", winner, "ann", group=group)
        for i in range(30)
        for group, winner in (("beginners", "a"), ("experts", "b"), ("children", "a"))
    ]
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    assert summary.rejected == {}
    assert Counter(pair.group for pair in pairs(tmp_path / "data")) == {"beginners": 30, "experts": 30, "children": 30}


def test_criteria_apart_give_a_pair_each(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}?", "responses": [f"one {i}", f"two {i}"], "ratings": {"tone": [4, 2], "truth": [1, 5]}}
        for i in range(30)
    ]
    path = put(tmp_path / "a.jsonl", rows)
    run(path, tmp_path / "apart", grade__combine="apart")
    found = {(pair.criterion, pair.chosen[0].content[:3]) for pair in pairs(tmp_path / "apart")}
    assert found == {("tone", "one"), ("truth", "two")}
    run(path, tmp_path / "sum", grade__criteria={"tone": 3.0, "truth": 1.0})
    assert {pair.chosen[0].content[:3] for pair in pairs(tmp_path / "sum")} == {"one"}


def test_what_is_held_on_disk_while_opinions_are_joined_is_swept_after_a_kill(tmp_path: Path) -> None:
    made = config.load(extra={"data.pairs": str(put(tmp_path / "a.jsonl", FRUIT))})
    begin = (
        "import os, sys; from pathlib import Path; from druthers import config, curate; from tests import tiny;"
        "curate.Desk.take = lambda self, source: os.kill(os.getpid(), 9);"
        "made = config.load(extra={'data.pairs': sys.argv[1]});"
        "out = Path(sys.argv[2]); out.mkdir(parents=True); curate.curate(made, out=out, tokenizer=tiny.tokenizer())"
    )
    made_by = subprocess.run([sys.executable, "-c", begin, made.data.pairs, tmp_path / "run" / "data"], check=False)
    assert made_by.returncode == -9
    assert any(path.is_dir() for path in (tmp_path / "run" / "data").iterdir())
    sweep(tmp_path / "run")
    assert not list((tmp_path / "run" / "data").iterdir())


def test_a_criterion_that_nobody_judged_by_is_told_with_the_nearest(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}", "responses": ["A", "B"], "ratings": {"taste": [9 - j, 4], "tone": [1, 5]}, "annotator": "a"}
        for i in range(20)
        for j in range(2)
    ]
    path = put(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=r"^grade\.criteria\.tasty: nobody judged by .*; did you mean 'taste'\?"):
        run(path, tmp_path / "x", grade__criteria={"tone": 1.0, "tasty": 2.0})
    with pytest.raises(InputError, match=r"^grade\.gates\.safety: nobody judged by .*; known are taste, tone"):
        run(path, tmp_path / "y", grade__gates={"safety": 2.0})
    assert not list(tmp_path.glob("*/*.jsonl"))
    assert run(path, tmp_path / "z", grade__criteria={"tone": 1.0, "taste": 2.0}).kept == 20


def test_a_bad_row_stops_with_its_place_but_silence_and_ties_do_not(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*FRUIT, vote("Q?", "x", "y", "maybe", "ann")])
    with pytest.raises(InputError, match=r"a\.jsonl:41: winner: .*data\.bad_rows=drop"):
        run(path, tmp_path / "data")
    assert not (tmp_path / "data" / "train.jsonl").exists()
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == []
    assert run(put(path, [*FRUIT, vote("Q?", "x", "y", "tie", "ann")]), tmp_path / "data").rejected == {"tie": 1}


def test_thumbs_on_single_responses_say_what_is_missing(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": f"answer {i}", "label": bool(i % 2)} for i in range(20)]
    said = r"holds thumbs on 20 answers \(10 up, 10 down\) to 20 prompts, and no two .* no pair .*druthers sample .*KTO"
    with pytest.raises(InputError, match=said):
        run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    asked = lines(tmp_path / "data" / "collect.jsonl")
    assert [row["prompt"][0]["content"] for row in asked] == [f"Q{i}?" for i in range(20)]
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["collect.jsonl"]


def test_thumbs_that_all_point_one_way_leave_no_prompt_to_be_answered_again(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": f"answer {w}", "label": True} for i in range(3) for w in "ab"]
    with pytest.raises(InputError, match=r"6 answers \(6 up, 0 down\) to 3 prompts, .* made of them; train on the"):
        run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_thumbs_that_make_no_pair_are_counted_beside_those_that_do(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "Robin."}]
    rows: list[dict[str, Any]] = [
        {"prompt": f"Q{i}?", "completion": f"answer {i} {word}", "label": up}
        for i in range(5)
        for word, up in (("good", True), ("bad", False))
    ]
    rows += [{"messages": talk, "feedback": "👎"}, {"prompt": "Alone?", "completion": "Yes.", "label": True}]
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    assert summary.graded is not None
    assert summary.graded["alone"] == {"answers": 2, "down": 1, "prompts": 2, "up": 1}
    assert (summary.kept, summary.rejected) == (5, {"one_response": 2})


def test_thumbs_of_one_prompt_pair_up_with_down(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}?", "completion": f"answer {i} {word}", "label": up}
        for i in range(30)
        for word, up in (("good", True), ("bad", False), ("fine", True))
    ]
    run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    found = {
        (pair.chosen[0].content.split()[2], pair.rejected[0].content.split()[2]) for pair in pairs(tmp_path / "data")
    }
    assert found == {("good", "bad"), ("fine", "bad")}


def test_a_held_out_file_may_have_another_form(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", FRUIT)
    other = put(tmp_path / "b.jsonl", [{"prompt": "Name a bird.", "chosen": "Robin.", "rejected": "Stone."}])
    summary = run(path, tmp_path / "data", data__heldout=str(other))
    assert (summary.format, summary.train, summary.heldout, summary.rows) == ("votes", 40, 1, 41)


def test_a_prompt_of_thousands_of_responses_is_cut_into_items_and_stays_cheap(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": f"Hello number {i}", "label": bool(i % 2)} for i in range(1200)]
    rows += [
        {"prompt": f"Q{i}?", "completion": f"{word} {i}", "label": up}
        for i in range(20)
        for word, up in (("a", True), ("b", False))
    ]
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data", grade__most=3)
    assert summary.graded is not None
    assert summary.graded["items"] == 20 + 12
    assert summary.graded["pairs"] == 20 + 12 * 3


def test_sources_of_several_forms_come_together_and_votes_of_two_files_are_one_crowd(tmp_path: Path) -> None:
    rows = crowd(300, seed=4)
    one = put(tmp_path / "one.jsonl", rows[:300])
    two = put(tmp_path / "two.jsonl", rows[300:])
    other = put(
        tmp_path / "c.jsonl", [{"prompt": f"Bird {i}?", "chosen": "Robin.", "rejected": "Stone."} for i in range(9)]
    )
    parts = run(one, tmp_path / "parts", data__pairs=(str(one), str(other), str(two)))
    whole = run(put(tmp_path / "whole.jsonl", rows), tmp_path / "whole")
    assert (parts.format, parts.rows, parts.kept) == ("votes, trl", whole.rows + 9, whole.kept + 9)
    assert set(short(tmp_path / "whole")) < set(short(tmp_path / "parts"))
    assert parts.source == f"{one} and {other} and {two}"


def test_only_the_first_rows_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    path, other = (
        put(tmp_path / "a.jsonl", FRUIT),
        put(
            tmp_path / "b.jsonl",
            [{"prompt": f"Bird {i}?", "chosen": "Robin.", "rejected": "Stone."} for i in range(40)],
        ),
    )
    made = config.load(extra={"data.pairs": (str(path), str(other))})
    assert curate(made, out=tmp_path / "data", tokenizer=TOKENIZER, most=7).rows == 14


answers = st.tuples(
    st.sampled_from("pqr"),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["a", "b", "tie", ""]),
    st.sampled_from(["ann", "bob"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(answers, max_size=12), st.sampled_from(["all", "best-worst", "adjacent"]))
def test_whatever_is_said_nothing_is_lost(tmp_path: Path, said: Sequence[tuple[str, ...]], which: str) -> None:
    rows = [vote(f"about {p}?", f"text {a}", f"text {b}", winner, who) for p, a, b, winner, who in said]
    summary = run(put(tmp_path / "a.jsonl", [*FRUIT, *rows]), tmp_path / "data", grade__pairs=which)
    made = summary.graded
    assert made is not None
    read = sum(a == b or not winner for _, a, b, winner, _ in said)
    left = summary.train + summary.heldout + sum(summary.rejected.values()) + summary.beyond_limit
    assert left == made["pairs"] + made["unmade"] + read
    assert made["comparisons"] == made["pairs"] + sum(made["reasons"].values())
    assert unpaired_in(tmp_path / "data") == made["unpaired"]
    assert all(count <= made["reasons"][reason] for reason, count in made["unpaired"].items())
    assert summary.rows == len(FRUIT) + len(rows)


# ---------------------------------------------------------------- both sides, columns, and what does not fit


def test_opinions_on_both_sides_are_summed_and_only_those_of_training_are_told_of(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*FRUIT, vote("Tied?", "Yes.", "No.", "tie", "ann")])
    held = put(tmp_path / "b.jsonl", [vote(f"Bird {i}?", "Robin.", "Stone.", "a", "zoe") for i in range(7)])
    summary = run(path, tmp_path / "data", data__heldout=str(held))
    assert summary.graded is not None
    assert (summary.graded["items"], summary.graded["pairs"], summary.graded["unmade"]) == (48, 47, 1)
    left = summary.train + summary.heldout + sum(summary.rejected.values()) + summary.beyond_limit
    assert left == summary.graded["pairs"] + summary.graded["unmade"] == summary.rows
    quality = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))
    assert [one["name"] for one in quality["annotators"]] == ["ann"]


def test_those_who_judged_the_held_out_part_alone_are_not_told_of_as_those_of_training(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [{"prompt": f"q {i}?", "chosen": "Plum.", "rejected": "No."} for i in range(9)])
    held = put(tmp_path / "b.jsonl", [vote(f"Bird {i}?", "Robin.", "Stone.", "a", "zoe") for i in range(7)])
    run(path, tmp_path / "data", data__heldout=str(held))
    quality = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))
    assert "annotators" not in quality
    assert not any(one["id"].startswith("D3.") for one in quality["findings"])


def test_a_mapped_column_that_is_nowhere_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row | {"sprache": "de"} for row in FRUIT])
    with pytest.raises(InputError, match=r"data\.columns\.spache: none of the first rows \(40\) .* mean 'sprache'"):
        run(path, tmp_path / "data", data__columns={"spache": "group"})
    run(path, tmp_path / "data", data__columns={"sprache": "group"})
    assert {pair.group for pair in pairs(tmp_path / "data")} == {"de"}


def test_what_a_policy_cannot_be_applied_to_is_said_with_file_and_line(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}?", "responses": [f"one {i}", f"two {i}"], "ratings": {"tone": [4, 2], "truth": [1, 5]}}
        for i in range(30)
    ]
    mixed = {"prompt": "Odd?", "responses": ["x", "y"], "ratings": {"tone": [4, 2]}, "ranks": {"truth": [1, 2]}}
    path = put(tmp_path / "a.jsonl", [*rows, mixed])
    with pytest.raises(InputError, match=r"a\.jsonl:31: criteria tone, truth are judged on the scales rank and rating"):
        run(path, tmp_path / "sum")
    with pytest.raises(InputError, match=r"a\.jsonl:31: the gate 'truth' is judged on the scale 'rank'"):
        run(path, tmp_path / "gate", grade__combine="apart", grade__gates={"truth": 1.0})


def total_weights(out: Path) -> set[float]:
    """What the pairs of each prompt and group weigh together."""
    found: Counter[tuple[str, str]] = Counter()
    for pair in pairs(out):
        found[pair.prompt_id, pair.group] += pair.weight
    return {round(weight, 9) for weight in found.values()}


def test_people_who_judged_the_same_answers_in_tasks_of_their_own_are_one_crowd(tmp_path: Path) -> None:
    def task(i: int, who: int, selected: str) -> dict[str, Any]:
        result = {"from_name": "pw", "to_name": "a,b", "type": "pairwise", "value": {"selected": selected}}
        asked = {"prompt": f"Name fruit {i}.", "answer1": f"Plum {i}.", "answer2": f"Carrot {i}."}
        return {"id": 10 * i + who, "data": asked, "annotations": [{"completed_by": who, "result": [result]}]}

    rows = [task(i, who, "right" if who == 3 and not i % 4 else "left") for who in (1, 2, 3) for i in range(40)]
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data", data__format="labelstudio")
    assert (summary.rows, summary.kept, summary.rejected) == (120, 40, {})
    assert {pair.chosen[0].content.split()[0] for pair in pairs(tmp_path / "data")} == {"Plum"}
    people = json.loads((tmp_path / "data" / "quality.json").read_text())["annotators"]
    assert [(one["name"], one["n"]) for one in people] == [("1", 40), ("2", 40), ("3", 40)]


@pytest.mark.parametrize("left_out", [False, True], ids=["all kept", "some left out as near copies"])
def test_the_pairs_of_a_prompt_weigh_one_together_whatever_the_filters_took(tmp_path: Path, *, left_out: bool) -> None:
    draw = random.Random(0)

    def answer() -> str:
        return " ".join(draw.choice(["plum", "river", "stone", "lamp", "bird", "cloud", "rope"]) for _ in range(30))

    rows = []
    for i in range(30):
        rated = [answer(), answer(), answer()]
        rated.append(f"{rated[2]} indeed" if left_out else answer())
        scored = [
            {"model": str(j), "response": text, "overall_score": 9.0 - 2 * j - (j == 3 and left_out)}
            for j, text in enumerate(rated)
        ]
        rows.append({"instruction": f"What about {answer()} {i}?", "completions": scored})
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    assert (summary.rejected.get("near_duplicate", 0) > 0) is left_out
    assert total_weights(tmp_path / "data") == {1.0}
    assert len({pair.weight for pair in pairs(tmp_path / "data")}) == 1


def test_comparisons_of_one_post_weigh_one_together_in_each_group(tmp_path: Path) -> None:
    rows = [
        {"history": f"Post {i}", "human_ref_A": f"yes {j}", "human_ref_B": f"no {j}", "labels": j % 2,
         "score_A": 9 if j % 2 else 2, "score_B": 3 if j % 2 else 8, "domain": "x"}
        for i in range(20)
        for j in range(4)
    ]  # fmt: skip
    summary = run(put(tmp_path / "a.jsonl", rows), tmp_path / "data")
    assert summary.kept == 80
    assert total_weights(tmp_path / "data") == {1.0}
    assert {pair.weight for pair in pairs(tmp_path / "data")} == {0.25}
    run(tmp_path / "a.jsonl", tmp_path / "competence", grade__weight="competence")
    assert total_weights(tmp_path / "competence") == {4.0}


def bad_shares(folder: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    run(put(folder / "a.jsonl", rows), folder / "data")
    told = json.loads((folder / "data/quality.json").read_text("utf-8"))["findings"]
    return {
        one.get("slice", {}).get("source", ""): (one["value"], one["n"]) for one in told if one["id"] == "D11.both_bad"
    }


def test_how_often_both_responses_are_bad_is_told_by_who_wrote_them(tmp_path: Path) -> None:
    good = [one | {"model_a": "m1", "model_b": "m2"} for one in FRUIT]
    bad = [
        vote(f"Name vegetable {i}.", "Plum.", "Stone.", "tie (both bad)", "ann", model_a="m1", model_b="m3")
        for i in range(20)
    ]
    assert bad_shares(tmp_path, good + bad) == {"": (20 / 60, 60), "m1": (20 / 60, 60), "m2": (0, 40), "m3": (1, 20)}
    asked = [row["prompt"][0]["content"] for row in lines(tmp_path / "data/collect.jsonl")]
    assert asked == [f"Name vegetable {i}." for i in range(20)]


def test_where_no_tie_says_of_what_kind_it_is_nothing_is_said_of_both(tmp_path: Path) -> None:
    assert bad_shares(tmp_path, [*FRUIT, vote("Tied?", "Yes.", "No.", "tie", "ann")]) == {}
