"""Gold items measure those who judge, in whatever form and order they stand, and are never trained on or held out."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers import config
from druthers.curate import curate, gather, intake
from druthers.curate.gather import Placed
from druthers.curate.gold import Gold, read_gold
from druthers.curate.opinions import Policy
from druthers.curate.quality import noise
from druthers.records import Candidates, Finding, InputError, Opinion, Pair, assistant, user
from tests import tiny
from tests.test_pooling import lines, put, vote

TOKENIZER = tiny.tokenizer()
GOLD = [vote(f"Gold {i}?", "Right.", "Wrong.", "a", "") for i in range(30)]
"""Thirty items of which the first response is right."""


def judged(who: str, *, right: int) -> list[dict[str, Any]]:
    """An annotator's answers: on the gold items, shown the other way round, and on items of everybody's."""
    gold = [vote(f"Gold {i}?", "Wrong.", "Right.", "b" if i < right else "a", who) for i in range(30)]
    return [*gold, *(vote(f"Name fruit {i}.", "Plum.", "Carrot.", "a", who) for i in range(40))]


def made(folder: Path, rows: list[dict[str, Any]], gold: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    """The findings of gold, the rest of quality.json, and the summary, of rows that are curated with gold."""
    pairs, file = put(folder / "rows.jsonl", rows), put(folder / "gold.jsonl", gold)
    keys = {key.replace("__", "."): value for key, value in extra.items()}
    settings = config.load(extra={"data.pairs": str(pairs), "grade.gold": str(file)} | keys)
    summary = curate(settings, out=folder / "data", tokenizer=TOKENIZER)
    quality = json.loads((folder / "data/quality.json").read_text("utf-8"))
    told = [Finding.model_validate(one) for one in quality["findings"] if one["id"] == "D6.gold"]
    return {"told": told, "quality": quality, "summary": summary, "data": folder / "data"}


def prompts(data: Path) -> set[str]:
    return {
        Pair.model_validate(row).prompt[0].content
        for side in ("train", "heldout")
        for row in lines(data / f"{side}.jsonl")
    }


def test_annotators_are_measured_by_gold_items_and_nobody_trains_on_them(tmp_path: Path) -> None:
    found = made(tmp_path, [*judged("ann", right=29), *judged("bob", right=12)], GOLD)
    whole, bob = found["told"]
    assert (whole.slice, whole.value, whole.n) == ({}, 41 / 60, 60)
    assert (bob.slice, bob.status, bob.n) == ({"annotator": "bob"}, "warn", 30)
    assert bob.action.startswith("Pause")
    missed = lines(found["data"] / bob.rows.file)
    assert len(missed) == bob.rows.count == 18
    assert missed[0] | {"where": ""} == {
        "where": "",
        "annotator": "bob",
        "why": "said the first is better; right is the second",
    }
    by = {one["name"]: one["gold"] for one in found["quality"]["annotators"]}
    assert by["ann"] == noise.gold(29, 30).accuracy.as_dict()
    assert not any(prompt.startswith("Gold") for prompt in prompts(found["data"]))
    assert found["summary"].rejected["gold"] == 30
    assert not (found["data"] / "collect.jsonl").exists()
    assert found["summary"].graded["reasons"] == {"gold": 30}


def test_gold_answers_say_nothing_of_agreement_and_of_the_side(tmp_path: Path) -> None:
    """Bob is wrong on gold alone, where everything right stands second: he agrees with ann on what is learned from."""
    found = made(tmp_path, [*judged("ann", right=30), *judged("bob", right=0)], GOLD)
    noise_ = next(one for one in found["quality"]["findings"] if one["id"] == "D3.noise")
    assert noise_["value"] == 0
    side = next(one for one in found["quality"]["findings"] if one["id"] == "D4.position")
    assert (side["value"], side["n"]) == (pytest.approx(50, abs=1), 80)


def test_pairs_of_gold_items_are_left_out_too_however_they_are_spelled(tmp_path: Path) -> None:
    rows = [{"prompt": f"Name fruit {i}.", "chosen": "Plum.", "rejected": "Carrot."} for i in range(40)]
    rows += [{"prompt": f" gold  {i}?", "chosen": "wrong.", "rejected": "RIGHT."} for i in range(5)]
    found = made(tmp_path, rows, [{"prompt": f"Gold {i}?", "chosen": "Right.", "rejected": "Wrong."} for i in range(9)])
    assert found["summary"].rejected == {"gold": 5}
    assert found["summary"].kept == 40
    (told,) = found["told"]
    assert told.undefined == "nobody judged one of the 9 gold items"


def test_gold_items_with_personal_data_are_known_when_it_is_redacted(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"prompt": f"Write to ann{i}@example.org?", "chosen": "Do.", "rejected": "No."}

    plain = [{"prompt": f"Name fruit {i}.", "chosen": "Plum.", "rejected": "Carrot."} for i in range(40)]
    found = made(tmp_path, [*plain, row(1)], [row(1)], data__personal="redact")
    assert (found["summary"].rejected, found["summary"].kept) == ({"gold": 1}, 40)


def test_a_gold_item_that_was_put_back_stays_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"Name fruit {i}.", "chosen": "Plum.", "rejected": "Carrot."} for i in range(40)]
    gold = {"prompt": "Gold?", "chosen": "Right.", "rejected": "Wrong."}
    pair = Pair(prompt=user("Gold?"), chosen=assistant("Right."), rejected=assistant("Wrong."))
    back = put(tmp_path / "back.jsonl", [{"reason": "duplicate", "row": pair.line()}])
    found = made(tmp_path, [*rows, gold], [gold], data__keep=str(back))
    assert found["summary"].rejected == {"gold": 1}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Votes with dates, writers, kinds of ties and gold, rankings with ties, and opinions on whole items."""
    folder = tmp_path / "rows"
    folder.mkdir()
    votes = [*judged("ann", right=29), *judged("bob", right=12)]
    votes += [vote(f"Bad {i}?", f"Er {i}.", "Um.", "tie", "ann", tie_kind="both_bad") for i in range(30)]
    for i, row in enumerate(votes):
        row |= {"model_a": f"m{i % 3}", "model_b": f"m{i % 5}", "created_at": f"2026-0{1 + i % 9}-11"}
    put(folder / "a.jsonl", votes[::-1])
    texts = ["Plum.", "Fig.", "Carrot.", "Leek."]
    put(folder / "b.jsonl", [{"prompt": f"Rank {i}?", "responses": texts, "ranks": [1, 1, 3, 4]} for i in range(40)])
    said = [{"annotator": who, "scale": "choice", "worth": [1.0, 0.0, None]} for who in ("ann", "cid")]
    three = [{"content": text} for text in ("Wrong.", "Right.", "Other.")]
    whole = [{"prompt": [{"role": "user", "content": f"Gold {i}?"}], "responses": three} for i in range(30)]
    put(folder / "c.jsonl", [row | {"opinions": said} for row in whole])
    return folder


def test_what_gold_choices_and_dates_say_is_the_same_from_any_number_of_processes(
    tmp_path: Path, several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "gold.jsonl", GOLD)
    given_ = config.load(extra={"data.pairs": str(several), "grade.gold": str(file)})
    curate(given_, out=tmp_path / "one", tokenizer=TOKENIZER, today=date(2027, 1, 1))
    monkeypatch.setattr(intake, "ALONE", 1)
    monkeypatch.setattr(gather, "MEMORY", 100)
    curate(given_, out=tmp_path / "two", tokenizer=TOKENIZER, today=date(2027, 1, 1), workers=2)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json*"))
    assert [(tmp_path / "two" / name).read_bytes() for name in names] == [
        (tmp_path / "one" / name).read_bytes() for name in names
    ]
    quality = json.loads((tmp_path / "one/quality.json").read_text("utf-8"))
    found = {(one["id"], *one.get("slice", {}).values()): one for one in quality["findings"]}
    assert found["D6.gold",]["n"] == 120
    assert found["D11.both_bad", "m0"]["n"] < found["D11.both_bad",]["n"]
    assert found["D12.age",]["n"] == 170
    assert Counter(line["reason"] for line in lines(tmp_path / "one/unpaired.jsonl"))["tie"] == 40
    numbers = [int(one["where"].rpartition(":")[2]) for one in lines(tmp_path / "one/findings/D6.gold.2.jsonl")]
    assert len(numbers) == 18, "those of bob"
    assert numbers == sorted(numbers)


# ---------------------------------------------------------------- what is accepted


def gold_of(folder: Path, rows: list[dict[str, Any]], **policy: Any) -> Gold:
    return read_gold(str(put(folder / "gold.jsonl", rows)), Policy(**policy), columns={})


def scored(gold: Gold, *opinions: Opinion, texts: tuple[str, ...] = ("Right.", "Wrong.")) -> dict[str, tuple[int, int]]:
    responses = tuple({"content": text} for text in texts)
    item = Candidates(prompt=user("Gold 0?"), responses=responses, opinions=opinions)
    gold.take(Placed(item, "a.jsonl:1"), gold.scores)
    return {name: (one.right, one.answered) for name, one in gold.scores.items()}


def choice(who: str, first: float, second: float, tie: str = "", criterion: str = "") -> Opinion:
    said = {"annotator": who, "criterion": criterion, "scale": "choice", "worth": (first, second), "tie": tie}
    return Opinion.model_validate(said)


def test_all_that_gold_rows_say_of_an_item_is_accepted(tmp_path: Path) -> None:
    gold = gold_of(tmp_path, [GOLD[0], GOLD[0] | {"winner": "tie (both bad)"}])
    said = (
        choice("right", 1.0, 0.0),
        choice("bad", 0.0, 0.0, "both_bad"),
        choice("even", 0.0, 0.0),
        choice("good", 0.0, 0.0, "both_good"),
        choice("wrong", 0.0, 3.0),
    )
    assert {name: right for name, (right, _) in scored(gold, *said).items()} == {
        "right": 1,
        "bad": 1,
        "even": 1,
        "good": 0,
        "wrong": 0,
    }


def test_an_answer_is_held_against_gold_of_its_criterion_and_the_overall_one_may_be_their_sum(tmp_path: Path) -> None:
    gold = gold_of(tmp_path, [GOLD[0] | {"criterion": "tone"}, GOLD[0] | {"winner": "b"}])
    said = (choice("ann", 0.0, 1.0, criterion="tone"), choice("ann", 0.0, 3.0, criterion="truth"))
    assert scored(gold, *said) == {"ann": (1, 2)}


@given(st.permutations(["Right.", "Wrong.", "Fig."]))
def test_ratings_of_more_responses_stay_and_choices_between_two_gold_ones_go(order: list[str]) -> None:
    gold = Gold(Policy())
    gold.learn(Pair(prompt=user("Gold 0?"), chosen=assistant("Right."), rejected=assistant("Wrong.")))
    worth = {"Right.": 3.0, "Wrong.": 1.0, "Fig.": 2.0}
    rating = Opinion(annotator="ann", scale="rating", worth=tuple(worth[text] for text in order))
    two = [None if text == "Fig." else float(text == "Wrong.") for text in order]
    wrong = Opinion(annotator="bob", scale="choice", worth=tuple(two))
    item = Candidates(
        prompt=user("Gold 0?"), responses=tuple({"content": text} for text in order), opinions=(rating, wrong)
    )
    left = gold.take(Placed(item, "a.jsonl:1"), gold.scores).item
    assert left.opinions == (rating,)
    assert {name: one.right for name, one in gold.scores.items()} == {"ann": 1, "bob": 0}


def test_gold_may_be_a_table_of_ratings_and_what_has_other_prompts_is_untouched(tmp_path: Path) -> None:
    gold = gold_of(
        tmp_path,
        [
            {"prompt": "Gold 0?", "response": "Right.", "rating": 5},
            {"prompt": "Gold 0?", "response": "Wrong.", "rating": 1},
        ],
    )
    assert scored(gold, choice("ann", 2.0, 0.0)) == {"ann": (1, 1)}
    other = Placed(
        Candidates(
            prompt=user("Name a fruit."),
            responses=({"content": "Right."}, {"content": "Wrong."}),
            opinions=(choice("ann", 0.0, 1.0),),
        )
    )
    assert gold.take(other, gold.scores) is other


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Gold?", "response": "Right.", "rating": 5}, "gold.jsonl:1: no two responses are compared in it"),
        ({"prompt": "Gold?", "chosen": "Right."}, "gold.jsonl:1: rejected: missing field"),
        (vote("Gold?", "Right.", "Wrong.", "", "ann"), "gold.jsonl:1: nobody judged a response"),
    ],
)
def test_a_gold_row_that_says_nothing_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        gold_of(tmp_path, [row])
