"""Ratings that stand beside pairs: what they make of margins and ties, and what they say of the chosen side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import config, storage
from druthers.curate import CurateSummary, curate
from druthers.curate.grading import Policy, grade, survey
from druthers.curate.weighing import graded, regraded
from druthers.records import Candidates, Pair, assistant, user
from tests import tiny

TOKENIZER = tiny.tokenizer()
GAPS = st.lists(st.integers(-40, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=12)
STRENGTHS = st.sampled_from(["auto", "margin", "p", "none"])


def run(path: Path, out: Path, **extra: Any) -> CurateSummary:
    keys = {key.replace("__", "."): value for key, value in extra.items()}
    made = config.load(extra={"data.pairs": str(path)} | keys)
    return curate(made, out=out, tokenizer=TOKENIZER)


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(storage.encode, rows)))
    return path


def row(i: int, chosen: float | None, rejected: float | None, **more: Any) -> dict[str, Any]:
    told = {"prompt": f"Name fruit {i}.", "chosen": f"Plum {i}.", "rejected": f"Carrot {i}."}
    return told | {"score_chosen": chosen, "score_rejected": rejected} | more


def kept(out: Path) -> dict[str, Pair]:
    lines = [line for side in ("train", "heldout") for line in (out / f"{side}.jsonl").read_text("utf-8").splitlines()]
    return {pair.prompt[0].content: pair for pair in map(Pair.model_validate, map(json.loads, lines))}


def findings(out: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in json.loads((out / "quality.json").read_text("utf-8"))["findings"]}


@settings(deadline=None)
@given(gaps=GAPS, strength=STRENGTHS, least_gap=st.sampled_from([0.0, 0.5]), scale=st.sampled_from([None, 0.0, 0.25]))
def test_both_sides_of_a_pair_are_graded_as_two_rated_responses_are(
    gaps: list[float], strength: Any, least_gap: float, scale: float | None
) -> None:
    """The ratings of a pair whose label they support mean what they do in a table of ratings."""
    gaps = [abs(gap) for gap in gaps]
    policy = Policy(strength=strength, least_gap=least_gap, margin_scale=scale, ties="soft")
    said = [{"scale": "rating", "worth": (5.0 + gap, 5.0)} for gap in gaps]
    two = ({"content": "Plum."}, {"content": "Fig."})
    rows = [Candidates(prompt=user(f"Q{i}"), responses=two, opinions=(one,)) for i, one in enumerate(said)]
    expected = [(pair.p, pair.margin) for made in grade(lambda: rows, policy) for pair in made.pairs]
    assert graded(np.array([5.0 + gap - 5.0 for gap in gaps]), policy).tolist() == [list(each) for each in expected]
    assert survey(lambda: rows, policy).rows == len(gaps)


@settings(deadline=None)
@given(gaps=GAPS, strength=STRENGTHS)
def test_ratings_against_the_label_never_make_it_surer(gaps: list[float], strength: Any) -> None:
    found = graded(np.array(gaps), Policy(strength=strength))
    against = np.array(gaps) < 0
    assert (found[against, 1] == 0).all()
    assert (found[:, 0] >= 0.5).all()
    sure = found[~against & (np.array(gaps) > 0), 0]
    assert not len(sure) or not against.any() or found[against, 0].max() <= sure.min() or strength != "p"


def test_a_line_is_written_anew_with_what_is_not_as_usual() -> None:
    pair = Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"), group="de", source="s")
    new = Pair.model_validate(json.loads(regraded(storage.encode(pair.line()), p=0.5, margin=0.0, weight=2.0)))
    assert (new.id, new.p, new.margin, new.weight, new.group) == (pair.id, 0.5, 0.0, 2.0, "de")
    assert regraded(storage.encode(new.line()), p=1.0, margin=0.0, weight=1.0) == storage.encode(pair.line())
    assert storage.encode(new.line()) == regraded(storage.encode(pair.line()), p=0.5, margin=0.0, weight=2.0)


ROWS = [
    *[row(i, 8.0, 6.0) for i in range(20)],
    row(20, 9.0, 5.0),
    row(21, 5.0, 5.0),
    row(22, 3.0, 7.0),
    row(23, 9.0, 1.0, margin=0.25),
    row(24, 9.0, 1.0, p=0.75),
    row(25, 9.0, None),
    row(26, 7.0, 6.5),
]


def test_gaps_of_ratings_become_margins_of_which_the_median_is_one(tmp_path: Path) -> None:
    summary = run(put(tmp_path / "a.jsonl", ROWS), tmp_path / "data")
    found = {int(asked.split()[2][:-1]): (pair.p, pair.margin) for asked, pair in kept(tmp_path / "data").items()}
    assert summary.rejected == {"tie": 1}
    assert (found[0], found[20], found[22], found[26]) == ((1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (1.0, 0.25))
    assert (found[23], found[24], found[25]) == ((1.0, 0.25), (0.75, 0.0), (1.0, 0.0))
    told = findings(tmp_path / "data")["D2.ratings"]
    assert "2 have a p or margin of their own, which counts before the ratings" in told["text"]
    assert summary.margin["max"] == 2.0


def test_ties_by_rating_stay_where_the_policy_says_so(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", ROWS)
    soft = run(path, tmp_path / "soft", grade__ties="soft")
    assert soft.rejected == {}
    assert kept(tmp_path / "soft")["Name fruit 21."].p == 0.5
    close = run(path, tmp_path / "close", grade__least_gap=1.0, grade__margin_scale=0.5)
    assert close.rejected == {"below_gap": 1, "tie": 1}
    assert kept(tmp_path / "close")["Name fruit 0."].margin == 1.0
    none = run(path, tmp_path / "none", grade__strength="none", grade__ties="soft")
    assert none.margin["max"] == 0.25


def test_each_source_has_its_own_scale_and_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    large = put(tmp_path / "large.jsonl", [row(i, 80.0, 60.0) for i in range(10)])
    small = put(tmp_path / "small.jsonl", [row(i, 0.8, 0.6) for i in range(10, 20)])
    plain = put(tmp_path / "plain.jsonl", [row(i, None, None) for i in range(20, 30)])
    made = config.load(extra={"data.pairs": [str(large), str(plain), str(small)]})
    for name in ("one", "two"):
        curate(made, out=tmp_path / name, tokenizer=TOKENIZER)
    margins = {pair.margin for pair in kept(tmp_path / "one").values()}
    assert margins == {0.0, 1.0}
    assert sum(pair.margin for pair in kept(tmp_path / "one").values()) == 20
    for file in ("train.jsonl", "heldout.jsonl", "quality.json", "summary.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("form", "good", "status"), [("pairs", 5, "pass"), ("pairs", 8.5, "fail"), ("table", 8.5, "fail")]
)
def test_chosen_responses_are_held_against_the_rating_that_is_good(
    form: str, good: float, status: str, tmp_path: Path
) -> None:
    rows = [row(i, 8.0, 6.0) for i in range(60)]
    if form == "table":
        rows = [
            {"prompt": one["prompt"], "response": one[side], "rating": one[f"score_{side}"]}
            for one in rows
            for side in ("chosen", "rejected")
        ]
    run(put(tmp_path / "a.jsonl", rows), tmp_path / "data", grade__good=good)
    told = findings(tmp_path / "data")["D11.rated"]
    assert (told["status"], told["value"]) == (status, float(status == "fail"))
    assert (tmp_path / "data" / "findings" / "D11.rated.jsonl").is_file() == (status == "fail")


def test_without_a_good_rating_there_is_a_figure_and_of_thumbs_none(tmp_path: Path) -> None:
    run(put(tmp_path / "a.jsonl", ROWS), tmp_path / "data")
    figures = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))["figures"]
    (ratings,) = [one for one in figures if one["name"] == "ratings_chosen"]
    assert sum(ratings["counts"]["chosen"]) == len((tmp_path / "data" / "train.jsonl").read_text().splitlines())
    assert "D11.rated" not in findings(tmp_path / "data")
    thumbs = [
        {"prompt": f"Q{i}?", "completion": word, "label": up} for i in range(30) for word, up in (("a", 1), ("b", 0))
    ]
    run(put(tmp_path / "b.jsonl", thumbs), tmp_path / "thumbs", grade__good=5)
    quality = json.loads((tmp_path / "thumbs" / "quality.json").read_text("utf-8"))
    assert not [one for one in quality["figures"] if one["name"] == "ratings_chosen"]
    assert "D11.rated" not in {one["id"] for one in quality["findings"]}
