"""From opinions to pairs: every pair of responses is a pair or has a reason, and the same rows give the same bytes."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from druthers import config
from druthers.curate import opinions
from druthers.curate.grading import Graded, Policy, findings, grade, policy_of, survey
from druthers.curate.survey import Heard
from druthers.records import Candidate, Candidates, InputError, Opinion, user
from druthers.stats import Interval


def row(
    *said: Opinion, texts: Sequence[str] = ("A", "B"), question: str = "Q", scores: Sequence[float | None] = ()
) -> Candidates:
    responses = tuple(
        Candidate(content=text, score=scores[i] if scores else None, source="m") for i, text in enumerate(texts)
    )
    return Candidates(prompt=user(question), responses=responses, opinions=said, group="g")


def choice(annotator: str, *worth: float | None, tie: Any = "", criterion: str = "") -> Opinion:
    return Opinion(annotator=annotator, scale="choice", worth=worth, tie=tie, criterion=criterion)


def rating(annotator: str, *worth: float | None, criterion: str = "") -> Opinion:
    return Opinion(annotator=annotator, scale="rating", worth=worth, criterion=criterion)


def ranked(annotator: str, *worth: float | None, criterion: str = "") -> Opinion:
    return Opinion(annotator=annotator, scale="rank", worth=worth, criterion=criterion)


def graded(rows: Sequence[Candidates], **policy: Any) -> list[Graded]:
    return list(grade(lambda: rows, Policy(**policy)))


def one(*said: Opinion, texts: Sequence[str] = ("A", "B"), **policy: Any) -> Graded:
    return graded([row(*said, texts=texts)], **policy)[0]


def short(found: Graded) -> list[tuple[str, str, float, float]]:
    return [(pair.chosen[0].content, pair.rejected[0].content, pair.p, pair.margin) for pair in found.pairs]


def crowd(
    accuracy: dict[str, float], *, rows: int, each: int, seed: int = 0, bad: tuple[str, float] = ("", 0.0)
) -> tuple[list[Candidates], list[set[str]]]:
    """Rows whose better answer is "good", judged by some of the annotators; of `bad` a share of labels is swapped."""
    draw = random.Random(seed)
    made, swapped = [], []
    for number in range(rows):
        texts = draw.sample(("good", "bad"), 2)
        said, turned = [], set()
        for name in draw.sample(sorted(accuracy), each):
            first = (texts[0] == "good") == (draw.random() < accuracy[name])
            if name == bad[0] and draw.random() < bad[1]:
                first, turned = not first, turned | {name}
            said.append(choice(name, float(first), float(not first)))
        made.append(row(*said, texts=texts, question=f"q{number}"))
        swapped.append(turned)
    return made, swapped


# ---------------------------------------------------------------- one opinion


def test_a_single_rating_gives_a_margin_and_never_p_too() -> None:
    rows = [row(scores=(3.0, 1.0), question="a"), row(scores=(1.0, 5.0), question="b")]
    first, second = graded(rows, margin_scale=0.5)
    assert short(first) == [("A", "B", 1.0, 1.0)]
    assert short(second) == [("B", "A", 1.0, 2.0)]
    assert [short(each)[0][3] for each in graded(rows)] == [pytest.approx(2 / 3), pytest.approx(4 / 3)]
    soft = [short(each)[0] for each in graded(rows, strength="p")]
    assert [(p, margin) for _, _, p, margin in soft] == [(0.65, 0), (0.92, 0)]
    assert [short(each)[0][2:] for each in graded(rows, strength="none")] == [(1.0, 0), (1.0, 0)]


def test_a_single_choice_has_p_by_its_strength_or_a_margin() -> None:
    rows = [row(choice("ann", k, 0.0), question=str(k)) for k in (1.0, 2.0, 3.0)]
    assert [short(each)[0][2:] for each in graded(rows)] == [(0.65, 0), (0.8, 0), (0.92, 0)]
    assert [short(each)[0][2:] for each in graded(rows, strength="margin", margin_scale=2.0)] == [
        (1, 2),
        (1, 4),
        (1, 6),
    ]
    alike = [row(choice("ann", 1.0, 0.0), question=str(k)) for k in range(3)]
    assert {short(each)[0][2:] for each in graded(alike)} == {(1.0, 0.0)}


def test_ties_are_dropped_or_soft_and_both_bad_never_trains() -> None:
    level = choice("ann", 0.0, 0.0)
    assert (one(level).pairs, one(level).reasons) == ((), {"tie": 1})
    assert short(one(level, ties="soft", texts=("b", "a"))) == [("a", "b", 0.5, 0.0)]
    bad = choice("ann", 0.0, 0.0, tie="both_bad")
    assert one(bad, ties="soft").reasons == {"both_bad": 1}
    good = choice("ann", 0.0, 0.0, tie="both_good")
    assert short(one(good, ties="soft"))[0][2] == 0.5
    a = choice("bob", 1.0, 0.0)
    assert one(bad, a, ties="soft").reasons == {"both_bad": 1}
    assert one(bad, a, choice("cid", 1.0, 0.0)).pairs


def test_close_ratings_are_ties_with_a_reason_of_their_own() -> None:
    assert one(rating("ann", 3.0, 2.9), least_gap=0.2).reasons == {"below_gap": 1}
    assert one(rating("ann", 3.0, 3.0), least_gap=0.2).reasons == {"tie": 1}
    assert one(rating("ann", 3.0, 2.8), least_gap=0.2).pairs or one(rating("ann", 3.0, 2.75), least_gap=0.2).pairs


def test_what_gives_no_pair_says_why() -> None:
    assert one(rating("ann", 1.0), texts=("A",)).reasons == {"one_response": 1}
    assert one().reasons == {"unjudged": 1}
    assert one(rating("ann", 1.0, None)).reasons == {"unjudged": 1}
    assert one(rating("ann", 1.0, 2.0), texts=("A", "A")).reasons == {"same_text": 1}
    assert one(rating("ann", 1.0, 2.0), texts=("A", "A\n")).reasons == {"same_text": 1}
    assert one(rating("ann", 1.0, 2.0), texts=("A", " ")).reasons == {"empty": 1}
    assert graded([]) == []


# ---------------------------------------------------------------- several opinions


def test_majorities_are_counted_and_even_ones_tie() -> None:
    a, b, t = choice("a", 1.0, 0.0), choice("b", 0.0, 1.0), choice("t", 0.0, 0.0)
    assert short(one(a, choice("c", 3.0, 0.0), b, labels="majority")) == [("A", "B", 1.0, 0.0)]
    assert one(a, b, labels="majority").reasons == {"tie": 1}
    assert one(a, t, choice("u", 0.0, 0.0), labels="majority").reasons == {"tie": 1}
    assert short(one(a, t, labels="majority")) == [("A", "B", 1.0, 0.0)]


@pytest.mark.parametrize("each", [2, 3, 5])
def test_one_who_answers_the_wrong_way_round_is_named_and_read_turned_round(each: int) -> None:
    people = {f"ann{i}": 0.9 for i in range(7)} | {"bad": 0.9}
    rows, swapped = crowd(people, rows=600, each=each, bad=("bad", 1.0))
    known = survey(lambda: rows, Policy())
    assert [n for n, person in known.graded[""].annotators.items() if person.verdict] == ["bad"]
    named = [each for each in findings(known) if each.id == "D3.annotator"]
    assert [(each.status, each.slice["annotator"]) for each in named] == [("fail", "bad")]
    found = list(grade(lambda: rows, Policy(), known=known))
    doubts = [("bad" in each.doubted, bool(turned)) for each, turned in zip(found, swapped, strict=True)]
    assert all(doubted for doubted, turned in doubts if turned)
    assert not any(doubted for doubted, turned in doubts if not turned)
    right = [each.pairs[0].chosen[0].content == "good" for each in found if each.pairs]
    assert sum(right) / len(rows) > {2: 0.85, 3: 0.93, 5: 0.97}[each]


def test_one_who_swaps_a_part_is_named_where_the_others_hardly_err() -> None:
    people = {f"ann{i}": 0.995 for i in range(7)} | {"bad": 0.995}
    rows, swapped = crowd(people, rows=3000, each=3, bad=("bad", 0.3))
    known = survey(lambda: rows, Policy())
    assert [n for n, person in known.graded[""].annotators.items() if person.verdict] == ["bad"]
    found = list(grade(lambda: rows, Policy(), known=known))
    doubts = Counter(("bad" in each.doubted, bool(turned)) for each, turned in zip(found, swapped, strict=True))
    assert doubts[True, True] / (doubts[True, True] + doubts[False, True]) >= 0.95
    assert doubts[True, True] / (doubts[True, True] + doubts[True, False]) >= 0.95


def test_a_single_answer_counts_as_much_as_its_annotator() -> None:
    people = {"good": 0.97, "fair": 0.8, "bad": 0.03, "other": 0.8}
    rows, _ = crowd(people, rows=400, each=3)
    alone = [row(choice(name, 1.0, 0.0), question=name) for name in (*people, "new")]
    found = dict(zip((*people, "new"), graded([*rows, *alone])[-5:], strict=True))
    assert short(found["bad"])[0][:2] == ("B", "A")
    assert short(found["good"])[0][2] > short(found["new"])[0][2] > 0.5
    weighed = graded([*rows, *alone], weight="competence")[-5:]
    weight = {name: each.pairs[0].weight for name, each in zip((*people, "new"), weighed, strict=True)}
    assert weight["good"] > weight["new"] == 1 > weight["fair"] > 0.5
    assert weight["bad"] == pytest.approx(weight["good"], abs=0.1)


def test_rankings_of_several_become_probabilities_that_count_as_one_prompt() -> None:
    texts = ("best", "mid", "worst")
    rows = [
        row(ranked("a", -1.0, -2.0, -3.0), ranked("b", -1.0, -2.0, -3.0), ranked("c", -1.0, -3.0, -2.0), texts=texts)
    ]
    (found,) = graded(rows)
    p = {(chosen, rejected): p for chosen, rejected, p, _ in short(found)}
    assert set(p) == {("best", "mid"), ("best", "worst"), ("mid", "worst")}
    assert p["best", "worst"] > p["mid", "worst"] > 0.5
    assert sum(pair.weight for pair in found.pairs) == pytest.approx(1)
    assert {pair.group for pair in found.pairs} == {"g"}


def test_which_pairs_of_a_prompt() -> None:
    texts, said = ("d", "c", "b", "a"), rating("ann", 1.0, 2.0, 3.0, 4.0)
    named = {
        kind: ["".join(each[:2]) for each in short(one(said, texts=texts, pairs=kind, margin_scale=1.0))]
        for kind in ("all", "best-worst", "adjacent")
    }
    assert named == {"all": ["ad", "ac", "bd", "ab", "bc", "cd"], "best-worst": ["ad"], "adjacent": ["ab", "bc", "cd"]}
    few = one(said, texts=texts, most=2, margin_scale=1.0)
    assert ["".join(each[:2]) for each in short(few)] == ["ad", "ac"]
    assert few.reasons == {"beyond_most": 4}
    assert one(said, texts=texts, pairs="adjacent").reasons == {"not_selected": 3}
    assert [pair.weight for pair in few.pairs] == [0.5, 0.5]


# ---------------------------------------------------------------- criteria and gates


def test_criteria_are_summed_by_their_weights_or_kept_apart() -> None:
    said = (rating("ann", 5.0, 1.0, criterion="help"), rating("ann", 1.0, 3.0, criterion="brief"))
    assert short(one(*said, margin_scale=1.0)) == [("A", "B", 1.0, 1.0)]
    heavy = {"criteria": (("brief", 3.0), ("help", 1.0)), "margin_scale": 1.0}
    assert short(one(*said, **heavy)) == [("B", "A", 1.0, 0.5)]
    apart = one(*said, combine="apart")
    assert {(pair.criterion, pair.chosen[0].content, pair.weight) for pair in apart.pairs} == {
        ("help", "A", 0.5),
        ("brief", "B", 0.5),
    }
    only = one(*said, combine="apart", criteria=(("brief", 1.0),))
    assert [pair.criterion for pair in only.pairs] == ["brief"]
    overall = rating("ann", 1.0, 2.0)
    assert short(one(*said, overall))[0][:2] == ("B", "A")
    assert short(one(*said, overall, criteria=(("", 1.0), ("help", 9.0))))[0][:2] == ("A", "B")


def test_criteria_of_different_annotators_are_summed_over_all() -> None:
    said = (rating("ann", 5.0, 1.0, criterion="help"), rating("bob", 1.0, 3.0, criterion="brief"))
    assert short(one(*said, criteria=(("brief", 3.0), ("help", 1.0)), margin_scale=1.0)) == [("B", "A", 1.0, 0.5)]
    with pytest.raises(InputError, match="cannot be summed"):
        one(said[0], choice("ann", 1.0, 0.0, criterion="brief"))


def test_criteria_that_no_response_was_judged_by_together_give_no_pair() -> None:
    parts = [
        rating("ann", 1.0, None, None, criterion="taste"),
        rating("ann", None, 5.0, None, criterion="price"),
        rating("bob", None, None, 2.0, criterion="taste"),
    ]
    texts = ("A", "B", "C")
    for labels in ("auto", "bradley-terry", "dawid-skene", "majority"):
        assert one(*parts, texts=texts, labels=labels).reasons == {"unjudged": 3}, labels


def test_how_often_a_criterion_contradicts_the_whole_is_counted() -> None:
    rows = [
        row(rating("a", 2.0, 1.0), rating("a", 1.0 + (i < 3), 1.5, criterion="brief"), question=str(i))
        for i in range(4)
    ]
    found = survey(lambda: rows, Policy()).conflicts["brief"]
    assert isinstance(found, Interval)
    assert (found.value, found.n) == (0.25, 4)


def test_a_response_that_fails_a_gate_is_never_chosen_over_one_that_passes() -> None:
    gate = {"gates": (("safe", 3.0),), "criteria": (("", 1.0),)}
    best_unsafe = (rating("ann", 5.0, 1.0), rating("ann", 1.0, 4.0, criterion="safe"))
    assert short(one(*best_unsafe, **gate)) == [("B", "A", 1.0, 0.0)]
    assert one(best_unsafe[0], rating("ann", 1.0, 2.0, criterion="safe"), **gate).reasons == {"gate": 1}
    assert one(best_unsafe[0], rating("ann", None, 4.0, criterion="safe"), **gate).reasons == {"gate_unjudged": 1}
    both = rating("ann", 3.0, 4.0, criterion="safe")
    assert short(one(best_unsafe[0], both, margin_scale=1.0, **gate)) == [("A", "B", 1.0, 4.0)]
    assert (
        one(rating("bob", 2.0, 4.0, criterion="safe"), both, best_unsafe[0], **gate).pairs[0].chosen[0].content == "B"
    )
    with pytest.raises(InputError, match="the gate 'safe' is judged on the scale 'rank'"):
        one(ranked("ann", -1.0, -2.0, criterion="safe"), **gate)


# ---------------------------------------------------------------- laws


numbers = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 3.0]))


@st.composite
def any_rows(draw: st.DrawFn) -> list[Candidates]:
    rows = []
    for number in range(draw(st.integers(1, 5))):
        K = draw(st.integers(1, 4))
        said = []
        for _ in range(draw(st.integers(0, 4))):
            worth = draw(st.lists(numbers, min_size=K, max_size=K).filter(lambda w: any(x is not None for x in w)))
            scale = draw(st.sampled_from(["rating", "rank"]))
            said.append(Opinion(annotator=draw(st.sampled_from("abc")), scale=scale, worth=tuple(worth)))
        texts = draw(st.lists(st.sampled_from(["x", "y", "z", "w", " "]), min_size=K, max_size=K))
        rows.append(row(*said, texts=texts, question=f"q{number}"))
    return rows


policies = st.fixed_dictionaries(
    {
        "labels": st.sampled_from(["auto", "majority", "dawid-skene", "bradley-terry"]),
        "ties": st.sampled_from(["drop", "soft"]),
        "strength": st.sampled_from(["auto", "p", "margin", "none"]),
        "pairs": st.sampled_from(["all", "best-worst", "adjacent"]),
        "most": st.sampled_from([None, 1, 2]),
        "least_gap": st.sampled_from([0.0, 1.5]),
    }
)


def as_bytes(found: list[Graded]) -> str:
    return json.dumps([[pair.line() for pair in each.pairs] + [each.reasons, each.doubted] for each in found])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_rows(), policies, st.randoms(use_true_random=False))
def test_nothing_is_lost_and_neither_order_matters(
    rows: list[Candidates], policy: dict[str, Any], draw: random.Random
) -> None:
    found = graded(rows, **policy)
    for each, given_row in zip(found, rows, strict=True):
        K = len(given_row.responses)
        assert len(each.pairs) + sum(each.reasons.values()) == max(1, comb(K, 2))
        assert not each.pairs or sum(pair.weight for pair in each.pairs) == pytest.approx(1)
        for pair in each.pairs:
            assert pair.p >= 0.5
            assert pair.margin == 0 or pair.p == 1
            assert pair.p > 0.5 or policy["ties"] == "soft"
    shuffled = [
        each.model_copy(update={"opinions": tuple(draw.sample(each.opinions, len(each.opinions)))}) for each in rows
    ]
    assert as_bytes(graded(shuffled, **policy)) == as_bytes(found)
    turned = []
    for each in rows:
        order = draw.sample(range(len(each.responses)), len(each.responses))
        said = tuple(o.model_copy(update={"worth": tuple(o.worth[i] for i in order)}) for o in each.opinions)
        turned.append(each.model_copy(update={"responses": tuple(each.responses[i] for i in order), "opinions": said}))
    again = graded(turned, **policy)
    distinct = all(len({r.content for r in each.responses}) == len(each.responses) for each in rows)
    if distinct:
        assert [Counter(short(each)) for each in again] == [Counter(short(each)) for each in found]
        assert [each.reasons for each in again] == [each.reasons for each in found]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(any_rows(), policies, st.integers(1, 5))
def test_what_was_said_can_be_heard_by_several(rows: list[Candidates], policy: dict[str, Any], at_once: int) -> None:
    """Each hears some rows; together they know what one knows who heard all."""
    by = Policy(**policy)
    whole = Heard(by)
    for begin in range(0, len(rows), at_once):
        part = Heard(by)
        for row in rows[begin : begin + at_once]:
            part.add(row)
        whole.take(part)
    assert repr(whole.survey(seed=0)) == repr(survey(lambda: rows, by))


def test_renaming_annotators_changes_only_names() -> None:
    rows, _ = crowd({"a": 0.9, "b": 0.7, "c": 0.8}, rows=200, each=3)
    names = {"a": "z", "b": "y", "c": "x"}
    renamed = [
        each.model_copy(
            update={"opinions": tuple(o.model_copy(update={"annotator": names[o.annotator]}) for o in each.opinions)}
        )
        for each in rows
    ]
    for one_row, other in zip(graded(renamed), graded(rows), strict=True):
        assert [each[:2] for each in short(one_row)] == [each[:2] for each in short(other)]
        assert [each[2] for each in short(one_row)] == pytest.approx([each[2] for each in short(other)], abs=3e-6)


def test_the_card_is_plain_json_and_names_the_policy() -> None:
    rows, _ = crowd({"a": 0.9, "b": 0.7, "c": 0.8}, rows=60, each=2)
    card = survey(lambda: rows, Policy(ties="soft")).as_dict()
    assert json.loads(json.dumps(card, allow_nan=False))["rows"] == 60
    assert card["policy"]["version"] == Policy(ties="soft").version != Policy().version
    (table,) = card["graded"]
    assert table["criterion"] == "overall"
    assert table["nominal"]["n"] == table["overlapped"] == 60
    assert {person["name"] for person in table["annotators"]} == {"a", "b", "c"}


def test_findings_say_where_annotators_part_and_where_nothing_is_known() -> None:
    rows, _ = crowd({"a": 0.5, "b": 0.5, "c": 0.5}, rows=300, each=2)
    found = {each.id: each for each in findings(survey(lambda: rows, Policy()))}
    assert (found["D3.alpha"].status, found["D3.noise"].status) == ("fail", "pass")
    alone = findings(survey(lambda: [row(choice("a", 1.0, 0.0))], Policy()))
    assert {(each.id, each.status) for each in alone} == {("D3.alpha", "undefined"), ("D3.noise", "undefined")}


def test_the_settings_make_the_policy() -> None:
    policy = policy_of(config.GradeSettings(criteria={"help": 2, "overall": 1}, gates={"safe": 3}, strength="none"))
    assert policy.criteria == (("", 1.0), ("help", 2.0))
    assert (policy.gates, policy.strength) == ((("safe", 3.0),), "none")
    assert policy_of(config.GradeSettings()) == Policy()
    for section, wrong in (("criteria", 0), ("criteria", True), ("gates", "yes")):
        with pytest.raises(ValidationError, match=section):
            config.GradeSettings.model_validate({section: {"help": wrong}})


def test_scores_and_ranks_of_responses_are_one_nameless_view() -> None:
    found = opinions.views(row(rating("ann", 1.0, 2.0), scores=(4.0, None)))
    assert [(view.annotator, view.scale) for view in found[""]] == [("ann", "rating"), ("", "rating")]
    two = tuple(Candidate(content=text, rank=rank) for text, rank in (("A", 2), ("B", 1)))
    assert short(graded([Candidates(prompt=user("Q"), responses=two)])[0]) == [("B", "A", 1.0, 0.0)]


def test_every_row_is_graded_in_its_place() -> None:
    rows = [row(choice("a", 1.0, 0.0), question=f"q{i}") for i in range(1030)]
    assert [each.row.prompt[0].content for each in itertools.islice(graded(rows), 1020, 1030)] == [
        f"q{i}" for i in range(1020, 1030)
    ]
