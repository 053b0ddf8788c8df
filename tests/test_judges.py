"""The rule rubric: each kind of rule, the laws of scoring, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.judges import (
    KINDS,
    Reading,
    Rubric,
    compare,
    content_stems,
    load_rubric,
    parse_rubric,
    parse_rule,
    rate,
    sentences_of,
    stem,
)
from druthers.records import Candidate, Candidates, InputError, Message, user

LAW = settings(max_examples=60, deadline=None, derandomize=True)
HOUSE = load_rubric("brand-voice")
ASKED = user("My new kettle leaks at the handle. What should I do?")
GOOD = (
    "I'm sorry that your kettle leaks at the handle, that is annoying when it is new. A loose seal is the usual cause, "
    "and you can press it back once the kettle is cold. If it still drips, stop using it. "
    "Please send a photo of the handle with your receipt."
)
WORDS = ("kettle", "leaks", "sorry", "please", "you", "the", "handle", "check", "now", "idea")
ENDS = (".", "!", "?", ",", "", "\n", "…")
TEXT = st.one_of(
    st.text(max_size=80),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(ENDS)), max_size=40).map(
        lambda parts: " ".join(word + end for word, end in parts)
    ),
)


def rubric(*rules: dict[str, Any]) -> Rubric:
    rows = [{"name": f"r{i}", "label": "a rule", **rule} for i, rule in enumerate(rules)]
    return parse_rubric({"name": "test", "rules": rows}, where="test")


def kept(text: str, *, asked: str = "", **rule: Any) -> bool:
    made = parse_rule({"name": "r", "label": "a rule", **rule}, where="test")
    return KINDS[made.kind][1](made, Reading(asked=asked, text=text))


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"kind": "first_sentence", "patterns": [r"\bsorry\b"]}, "I am SORRY. Now go.", "Go now. I am sorry."),
        ({"kind": "last_sentence", "patterns": ["^please"]}, "Well. Please wait.", "Please wait. Well."),
        ({"kind": "last_sentence", "patterns": ["^please"]}, "Well. Please wait!", "Well. Please wait for the"),
        ({"kind": "requires", "patterns": ["a+b", "you"]}, "for you", "for him"),
        ({"kind": "forbids", "patterns": [r"\d{4,}", "https?:"]}, "order 12", "order 12345"),
        ({"kind": "banned", "phrases": ["as an AI"]}, "has an aim", "Well, as an ai, no."),
        ({"kind": "banned", "phrases": ["don't know"]}, "I do know", "I don’t know"),
        ({"kind": "banned", "phrases": ["(laughs)"]}, "she laughs", "Yes (Laughs)."),
        ({"kind": "word_count", "least": 2, "most": 3}, "one two-fold three", "one"),
        ({"kind": "word_count", "most": 3}, "one", "one two three four"),
        ({"kind": "complete"}, 'He said "yes."', "He said yes and"),
        ({"kind": "complete"}, "That is it… ", "First:\n1."),
        ({"kind": "complete"}, "Done (really!)", "Bye 😀"),
        ({"kind": "distinct_sentences"}, "Go. Stay.", "Go on! Stay. go on."),
        ({"kind": "fresh_words", "size": 2}, "a b c a c b", "a b c a b"),
        ({"kind": "fresh_words", "size": 2, "most": 0.3}, "a b c a b", "a b a b a b"),
        ({"kind": "in_role"}, "The user: said nothing", "Fine.\nUser: thanks"),
        ({"kind": "in_role"}, "a < b", "Fine.<|im_end|>"),
        ({"kind": "in_role"}, "The system works.", "Fine.\nassistant\nHello"),
        ({"kind": "in_role", "roles": ["Bob"]}, "User: hi", "Bob: hi"),
    ],
)
def test_kinds_of_rule(rule: dict[str, Any], good: str, bad: str) -> None:
    assert kept(good, **rule)
    assert not kept(bad, **rule)


@pytest.mark.parametrize(
    ("text", "words", "sentences", "expected"),
    [
        ("The kettle is fine.", 1, None, True),
        ("The kettle is fine.", 2, None, False),
        ("Kettles with leaking handles are rare.", 3, None, True),
        ("Hello. How nice. The kettle leaks.", 1, 2, False),
        ("Hello. The kettle leaks.", 2, 2, True),
        ("", 1, None, False),
    ],
)
def test_mentions(*, text: str, words: int, sentences: int | None, expected: bool) -> None:
    rule = {"kind": "mentions", "words": words} | ({} if sentences is None else {"sentences": sentences})
    assert kept(text, asked=ASKED[0].content, **rule) == expected


def test_a_question_without_enough_content_asks_for_what_it_has() -> None:
    assert kept("Anything.", asked="What should I do?", kind="mentions", words=2)
    assert kept("A kettle.", asked="Kettle?", kind="mentions", words=2)


def test_empty_text_has_no_sentence_and_keeps_no_rule_that_wants_one() -> None:
    for rule in (
        {"kind": "first_sentence", "patterns": [""]},
        {"kind": "complete"},
        {"kind": "requires", "patterns": ["x"]},
    ):
        assert not kept("", **rule)


def test_sentences_do_not_end_in_abbreviations_numbers_of_lists_or_decimals() -> None:
    assert sentences_of("Ask Mrs. Lee, e.g. today. It costs 3.5 euros.\n\n1. Go.") == (
        "Ask Mrs. Lee, e.g. today.",
        "It costs 3.5 euros.",
        "1. Go.",
    )


@given(TEXT)
@LAW
def test_sentences_lose_nothing_but_space(text: str) -> None:
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())


@given(st.from_regex(r"[a-z]{3,12}", fullmatch=True))
@LAW
def test_a_stem_begins_its_word_and_holds_three_letters(word: str) -> None:
    assert word.startswith(stem(word))
    assert len(stem(word)) >= 3


def test_content_words_are_stemmed_and_small_words_dropped() -> None:
    assert content_stems("Do the handles' screws keep dropping?") == content_stems("handle, screw, dropped")


# ---------------------------------------------------------------- scores


def test_the_score_is_the_weight_kept() -> None:
    rules = rubric({"kind": "complete", "weight": 3}, {"kind": "word_count", "most": 2, "weight": 1})
    assert rules.score(ASKED, "One two three.").total == 0.75
    assert rules.score(ASKED, "One two three.").rules == {"r0": 1.0, "r1": 0.0}
    assert rules.score(ASKED, "One.").total == 1.0


def test_a_broken_gate_makes_it_nothing() -> None:
    rules = rubric({"kind": "complete"}, {"kind": "banned", "phrases": ["damn"], "gate": True, "weight": 0})
    assert rules.score(ASKED, "Well.").total == 1.0
    assert rules.score(ASKED, "Damn.").total == 0.0


def test_only_the_last_user_turn_counts() -> None:
    turns = (*user("My bike squeaks."), Message(role="assistant", content="Oh."), *user("And the kettle leaks."))
    rules = rubric({"kind": "mentions", "words": 1})
    assert rules.score(turns, "Kettles do.").total == 1.0
    assert rules.score(turns, "Bikes do.").total == 0.0


@given(TEXT, TEXT)
@LAW
def test_exchanging_the_sides_exchanges_the_verdict(a: str, b: str) -> None:
    there, back = compare(HOUSE, ASKED, a, b), compare(HOUSE, ASKED, b, a)
    assert back.outcome == {"a": "b", "b": "a", "tie": "tie"}[there.outcome]
    assert (back.score_a, back.score_b, back.rules_a, back.rules_b) == (
        there.score_b,
        there.score_a,
        there.rules_b,
        there.rules_a,
    )


@given(TEXT)
@LAW
def test_a_response_ties_with_itself_and_scores_within_bounds(text: str) -> None:
    assert compare(HOUSE, ASKED, text, text).outcome == "tie"
    score = HOUSE.score(ASKED, text)
    assert 0 <= score.total <= 1
    assert score == HOUSE.score(ASKED, text)


PROHIBITIONS = rubric(
    {"kind": "banned", "phrases": ["calm down"]},
    {"kind": "forbids", "patterns": [r"\d{4}"]},
    {"kind": "distinct_sentences"},
    {"kind": "in_role", "gate": True},
)


@given(TEXT, st.sampled_from([" calm down. ", " 20481 ", "\nUser: hm. ", "\nx y.\nx y.\n"]))
@LAW
def test_breaking_a_prohibition_never_raises_the_score(text: str, break_it: str) -> None:
    assert PROHIBITIONS.score(ASKED, text + break_it).total <= PROHIBITIONS.score(ASKED, text).total
    assert PROHIBITIONS.score(ASKED, text + break_it).total < 1


@given(st.integers(0, 40), st.integers(1, 30))
@LAW
def test_a_banned_phrase_within_the_house_voice_lowers_the_score(place: int, times: int) -> None:
    words = GOOD.split(" ")
    inserted = " ".join([*words[: place + 5], *(["rest", "assured"] * times), *words[place + 5 :]])
    assert HOUSE.score(ASKED, inserted).total < HOUSE.score(ASKED, GOOD).total == 1


@given(st.lists(TEXT, min_size=1, max_size=6))
@LAW
def test_ranks_follow_scores_and_equal_scores_share_one(texts: list[str]) -> None:
    asked = Candidates(prompt=ASKED, responses=tuple(Candidate(content=text) for text in texts), group="g")
    rated = rate(HOUSE, asked)
    assert [r.content for r in rated.responses] == texts
    assert rated.group == "g"
    for a in rated.responses:
        assert a.score is not None
        assert a.rules == HOUSE.score(ASKED, a.content).rules
        assert a.rank == 1 + sum((b.score or 0) > a.score for b in rated.responses)


def test_a_judgement_names_judge_and_sides() -> None:
    verdict = compare(HOUSE, ASKED, "No.", GOOD, names=("base", "aligned"))
    assert (verdict.judge, verdict.a, verdict.b, verdict.outcome) == ("brand-voice", "base", "aligned", "b")
    assert verdict.consistent
    assert verdict.score_b == 1.0
    assert set(verdict.rules_a) == set(HOUSE.labels)


# ---------------------------------------------------------------- the house voice


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (GOOD, set()),
        (GOOD.replace("I'm sorry that", "So").replace("annoying", "a pity"), {"acknowledges"}),
        (GOOD.replace("kettle leaks at the handle", "thing is broken"), {"names_the_thing"}),
        (GOOD[: GOOD.index(" A loose")], {"length", "next_step"}),
        (GOOD + " " + GOOD.replace("kettle", "pot").replace("seal", "ring"), {"length", "fresh", "distinct_sentences"}),
        (GOOD[:-20], {"complete", "next_step"}),
        (GOOD + " Have a nice day.", {"next_step"}),
        (GOOD.replace("A loose", "\n- A loose"), {"plain_text"}),
        (GOOD + " 😀", {"plain_words", "complete", "next_step"}),
        (GOOD.replace("photo", "photo of order 4471209"), {"no_inventions"}),
        (GOOD.replace("with your receipt", "to help@shop.com"), {"no_inventions", "plain_words"}),
        (GOOD.replace("A loose", "We will refund you within 24 hours. A loose"), {"no_inventions"}),
        (GOOD.replace("A loose", "As an AI, I know: a loose"), {"banned"}),
        (GOOD.replace(" you ", " one ").replace("your", "the"), {"to_the_reader"}),
        (GOOD + "\nUser: Thanks.\nPlease wait.", {"in_role"}),
    ],
)
def test_the_house_voice_sees_each_fault(text: str, broken: set[str]) -> None:
    rules = HOUSE.score(ASKED, text).rules
    assert {name for name, value in rules.items() if not value} == broken


def test_the_house_voice_is_labelled_for_the_report() -> None:
    assert len(HOUSE.labels) == len(HOUSE.rules) >= 8
    assert all(label[0].islower() and not label.endswith(".") for label in HOUSE.labels.values())
    assert all(rule.weight > 0 or rule.gate for rule in HOUSE.rules)


# ---------------------------------------------------------------- refusals

RULE = '[[rules]]\nname = "brief"\nlabel = "brief"\nkind = "word_count"\nmost = 5\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: missing"),
        ('name = "x"\n', "rules: a rubric needs at least one rule"),
        ('name = "x"\nrule = 1\n' + RULE, "rule: unknown key; did you mean 'rules'?"),
        ('name = "x"\n' + RULE + "moste = 3\n", "rule 'brief': moste: unknown field; did you mean 'most'?"),
        (
            'name = "x"\n' + RULE.replace("word_count", "wordcount"),
            "kind 'wordcount' is not a kind of rule; did you mean",
        ),
        ('name = "x"\n' + RULE.replace("most = 5", ""), "rule 'brief': most: missing field"),
        ('name = "x"\n' + RULE + "least = 9\n", "least = 9 is above most = 5"),
        ('name = "x"\n' + RULE + "weight = -1\n", "rule 'brief': weight: input should be greater than or equal to 0"),
        ('name = "x"\n' + RULE + RULE, "rule 'brief' is written twice"),
        ('name = "x"\n' + RULE + "weight = 0\n", "all weights are 0"),
        (
            'name = "x"\n[[rules]]\nname = "p"\nlabel = "p"\nkind = "forbids"\npatterns = ["("]\n',
            "'(' is not a regular",
        ),
        ('name = "x"\n[[rules]]\nname = "p"\nlabel = "p"\nkind = "banned"\nphrases = []\n', "phrases: "),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_rubric_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rubric.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_rubric(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_rubric_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'brand-vioce' is neither a file nor one of brand-voice"):
        load_rubric("brand-vioce")
    with pytest.raises(InputError, match="cannot be read"):
        load_rubric(str(tmp_path))


def test_a_must_is_named_and_leaves_the_score_alone() -> None:
    rows = [
        {"name": "brief", "label": "b", "kind": "word_count", "most": 2, "weight": 3},
        {"name": "whole", "label": "w", "kind": "complete", "must": True},
    ]
    rubric = parse_rubric({"name": "r", "rules": rows}, where="r.toml")
    assert rubric.musts == ("whole",)
    assert rubric.score(user("Q"), "cut off").total == 0.75
