"""Every row form gives the pair that is meant, and every bad row a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from druthers.curate.importers import Form, RowFault, detect, read_pair
from druthers.records import Message, Pair, assistant, user

FRUIT = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
TURN = {"role": "user", "content": "Name a fruit."}
PLUM, CARROT = ({"role": "assistant", "content": text} for text in ("Plum.", "Carrot."))
HH = {
    "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: Plum.",
    "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: Carrot.",
}
FORMS: list[tuple[dict[str, Any], Form]] = [
    (FRUIT.line(), "druthers"),
    ({"prompt": [TURN], "chosen": [PLUM], "rejected": [CARROT]}, "druthers"),
    ({"prompt": [TURN], "chosen": [PLUM], "rejected": [CARROT], "score_chosen": 8}, "trl"),
    ({"prompt": [TURN], "chosen": [PLUM], "rejected": [CARROT], "id": "row-7"}, "trl"),
    ({"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot."}, "trl"),
    ({"prompt": "Name a fruit.", "chosen": [PLUM], "rejected": [CARROT]}, "trl"),
    ({"prompt": [TURN], "chosen": "Plum.", "rejected": "Carrot."}, "trl"),
    ({"chosen": [TURN, PLUM], "rejected": [TURN, CARROT]}, "trl"),
    ({"prompt": "Name a fruit.", "chosen": [TURN, PLUM], "rejected": [TURN, CARROT], "messages": [TURN, PLUM]}, "trl"),
    (HH, "hh"),
    ({"prompt": "\n\nHuman: Name a fruit.\n\nAssistant:", "chosen": " Plum.", "rejected": " Carrot."}, "hh"),
]


@pytest.mark.parametrize(("row", "form"), FORMS)
def test_each_form_is_recognised_and_gives_the_same_pair(row: dict[str, Any], form: Form) -> None:
    assert detect([row]) == form
    assert read_pair(row, form).pair == FRUIT


def test_optional_columns_under_long_and_short_names() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    more = {
        "p": 0.75,
        "m": 2,
        "w": 0.5,
        "group": "de",
        "source": "set",
        "criterion": "kind",
        "tools": '[{"name": "f"}]',
    }
    pair = read_pair(row | more, "trl").pair
    assert (pair.p, pair.margin, pair.weight, pair.group, pair.source) == (0.75, 2.0, 0.5, "de", "set")
    assert (pair.criterion, pair.tools) == ("kind", [{"name": "f"}])
    assert read_pair(row | {"margin": 2, "weight": 0.5}, "trl").pair.margin == 2.0
    assert read_pair(HH | {"p": 0.75}, "hh").pair.p == 0.75


def test_columns_that_carry_nothing_for_us_are_left_aside_by_name_and_nulls_are_absent() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_model": "m", "id": 3, "group": None, "p": None}
    imported = read_pair(row, "trl")
    assert imported.ignored == ("chosen_model", "id")
    assert (imported.pair.p, imported.pair.group) == (1.0, "")


def test_columns_that_nobody_knows_are_all_named_at_once_with_the_way_out() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "wieght": 1, "zzz": 2}
    with pytest.raises(RowFault) as fault:
        read_pair(row, "trl")
    assert str(fault.value) == (
        "wieght, zzz: unknown columns; did you mean 'weight' by wieght? to leave them aside set "
        "data.columns.wieght=ignore data.columns.zzz=ignore"
    )
    assert read_pair(row, "trl", columns={"wieght": "ignore", "zzz": "ignore"}).ignored == ("wieght", "zzz")


RATED: list[tuple[dict[str, Any], tuple[float, float, bool]]] = [
    ({"score_chosen": 8.5, "score_rejected": 3}, (8.5, 5.5, False)),
    ({"chosen-rating": 5, "rejected-rating": "4.5", "chosen-model": "m1", "rejected-model": "m2"}, (5, 0.5, False)),
    ({"chosen_avg_rating": 4.0, "rejected_avg_rating": 4.75, "dataset": "set"}, (4, -0.75, False)),
    ({"rating_chosen": 5, "rating_rejected": 5, "p": 0.9}, (5, 0, True)),
    ({"chosen_reward": -1.5, "rejected_reward": -2, "m": 0}, (-1.5, 0.5, True)),
]


@pytest.mark.parametrize(("more", "rated"), RATED)
@pytest.mark.parametrize("row", [{"prompt": [TURN], "chosen": [PLUM], "rejected": [CARROT]}, HH])
def test_ratings_of_both_sides_are_read_under_the_names_of_the_hub(
    row: dict[str, Any], more: dict[str, Any], rated: tuple[float, float, bool]
) -> None:
    form = detect([row | more])
    imported = read_pair(row | more, form)
    assert form == ("hh" if row is HH else "trl")
    assert tuple(imported.rated) == rated
    assert not {name for name in imported.ignored if "model" not in name} - {"dataset"}


def test_a_rating_that_nobody_gave_is_none_and_what_is_no_rating_says_how_to_go_on() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    half = read_pair(row | {"score_chosen": 8, "score_rejected": None}, "trl").rated
    assert (half.chosen, half.gap == half.gap) == (8.0, False)
    with pytest.raises(RowFault, match=r"score_chosen: must be a number.*data\.columns\.score_chosen=ignore"):
        read_pair(row | {"score_chosen": "great"}, "trl")
    both = row | {"score_chosen": 8, "chosen_rating": 4, "score_rejected": 1}
    with pytest.raises(RowFault, match="chosen_rating: stands beside 'score_chosen', and both may be the rating"):
        read_pair(both, "trl")
    assert read_pair(both, "trl", columns={"chosen_rating": "ignore"}).rated.gap == 7.0


def test_a_conversation_with_tools_is_split_before_the_last_answers() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]}
    seen = {"role": "tool", "content": "12:00", "name": "clock"}
    earlier = [TURN, PLUM, {"role": "user", "content": "And the time?"}]
    row = {"chosen": [*earlier, call, seen, {"role": "assistant", "content": "Noon."}], "rejected": [*earlier, CARROT]}
    pair = read_pair(row, "trl").pair
    assert [m.role for m in pair.prompt] == ["user", "assistant", "user"]
    assert [m.role for m in pair.chosen] == ["assistant", "tool", "assistant"]
    assert pair.chosen[0].content == ""


def test_hh_turns_lose_one_space_and_only_the_last_answer_is_the_response() -> None:
    start = "\n\nHuman: Hi\n\nAssistant:  Hello \n\nHuman: Human: me\n"
    pair = read_pair({"chosen": start + "\n\nAssistant: A\n\nB", "rejected": start + "\n\nAssistant:b"}, "hh").pair
    assert [m.content for m in pair.prompt] == ["Hi", " Hello ", "Human: me\n"]
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("A\n\nB", "b")


def test_hh_turns_of_one_speaker_are_joined_in_the_prompt() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nAssistant: Still there?\n\nHuman: Yes"
    imported = read_pair({"chosen": start + "\n\nAssistant: Good.", "rejected": start + "\n\nAssistant: So?"}, "hh")
    assert imported.joined
    assert [m.content for m in imported.pair.prompt] == ["Hi", "Hello!\n\nStill there?", "Yes"]


H, A = "\n\nHuman: ", "\n\nAssistant: "
BAD: list[tuple[dict[str, Any], Form, str, str]] = [
    ({"prompt": "Q", "chosen": "a"}, "trl", "malformed", "rejected: missing field"),
    ({"prompt": "Q", "chosen": "a", "rejected": None}, "trl", "malformed", "rejected: missing field"),
    (
        {"promt": "Q", "chosen": "a", "rejected": "b"},
        "trl",
        "malformed",
        "promt: unknown column; did you mean 'prompt'?",
    ),
    (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "images": []},
        "trl",
        "malformed",
        "images: unknown column; known are",
    ),
    ({"prompt": "Q", "chosen": "a", "rejected": ["b"]}, "trl", "malformed", "chosen and rejected must both be texts"),
    ({"prompt": "Q", "chosen": 1, "rejected": 2}, "trl", "malformed", "chosen and rejected must both be texts"),
    ({"prompt": 7, "chosen": "a", "rejected": "b"}, "trl", "malformed", "prompt: input should be a valid tuple"),
    ({"prompt": "Q", "chosen": ["a"], "rejected": ["b"]}, "trl", "malformed", "chosen.0: must be a message"),
    (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "p": "1"},
        "trl",
        "malformed",
        "p: input should be a valid number",
    ),
    (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "m": -1},
        "trl",
        "malformed",
        "margin: input should be greater than",
    ),
    (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "m": 1, "margin": 1},
        "trl",
        "malformed",
        "m: stands beside 'margin'",
    ),
    (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "tools": "f("},
        "trl",
        "malformed",
        "tools: is a text, but not JSON",
    ),
    (
        {"prompt": [TURN], "chosen": [PLUM | {"mood": 1}], "rejected": [CARROT]},
        "trl",
        "malformed",
        "chosen.0.mood: unknown",
    ),
    (
        {"chosen": "Q a", "rejected": "Q b"},
        "trl",
        "malformed",
        "prompt: missing field, and chosen and rejected are plain",
    ),
    (
        {"chosen": [PLUM], "rejected": [CARROT]},
        "trl",
        "malformed",
        "prompt: missing field, and chosen and rejected hold no",
    ),
    ({"prompt": "Q", "chosen": "a", "rejected": " \n"}, "trl", "empty_response", "rejected: the response is empty"),
    ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "trl", "same_response", "chosen equals rejected"),
    ({"prompt": [PLUM], "chosen": [PLUM], "rejected": [CARROT]}, "trl", "bad_roles", "prompt: turn 0 is 'assistant'"),
    (
        {"prompt": [TURN, TURN], "chosen": [PLUM], "rejected": [CARROT]},
        "trl",
        "bad_roles",
        "prompt: turns 0 and 1 are both",
    ),
    (
        {"prompt": [TURN], "chosen": [PLUM, PLUM], "rejected": [CARROT]},
        "trl",
        "bad_roles",
        "chosen: turns 0 and 1 are both",
    ),
    ({"prompt": [TURN], "chosen": [TURN], "rejected": [CARROT]}, "trl", "bad_roles", "chosen: a response must begin"),
    (
        {"chosen": [TURN, PLUM], "rejected": [TURN | {"content": "?"}, CARROT]},
        "trl",
        "prompt_mismatch",
        "chosen and rejected do",
    ),
    (
        {"prompt": "Else", "chosen": [TURN, PLUM], "rejected": [TURN, CARROT]},
        "trl",
        "prompt_mismatch",
        "prompt is not among",
    ),
    (FRUIT.line() | {"id": "0" * 24}, "druthers", "malformed", "id '000000000000000000000000' is not the hash"),
    (FRUIT.line() | {"chosne": 1}, "druthers", "malformed", "chosne: unknown field; did you mean 'chosen'?"),
    (FRUIT.line() | {"chosen": FRUIT.line()["rejected"]}, "druthers", "same_response", "chosen equals rejected"),
    (HH | {"rejected": [CARROT]}, "hh", "malformed", "rejected: must be a transcript"),
    (HH | {"rejected": "Carrot."}, "hh", "malformed", "rejected: a transcript must begin with 'Human:'"),
    (HH | {"rejected": "Oh" + HH["rejected"]}, "hh", "malformed", "rejected: a transcript must begin with 'Human:'"),
    (HH | {"prompt": [TURN]}, "hh", "malformed", "prompt: must be a text"),
    (HH | {"rejected": f"{H}Hi"}, "hh", "bad_roles", "rejected: the transcript must end with an 'Assistant:' turn"),
    (HH | {"rejected": f"{H}Hi{A}a{A}b"}, "hh", "bad_roles", "rejected: the answer falls into two 'Assistant:' turns"),
    ({side: f"{A}Hi{H}Hi{A}{side}" for side in HH}, "hh", "bad_roles", "prompt: turn 0 is 'assistant'"),
    ({side: f"{A}{side}" for side in HH}, "hh", "malformed", "prompt: tuple should have at least 1 item"),
    ({side: f"{H}Hi{A} {H}Hi{A}{side}" for side in HH}, "hh", "malformed", "chosen: turn 1 (assistant) is empty"),
    (HH | {"rejected": f"{H}Hi{A}Carrot."}, "hh", "prompt_mismatch", "chosen and rejected do not share the turns"),
    (HH | {"rejected": f"{H}Name a fruit.{A} "}, "hh", "empty_response", "rejected: the response is empty"),
    (HH | {"rejected": HH["chosen"]}, "hh", "same_response", "chosen equals rejected"),
    (HH | {"rejected": HH["chosen"] + "\n"}, "hh", "same_response", "chosen and rejected differ in the white space"),
    ({"prompt": "Q", "chosen": "a", "rejected": " a\n"}, "trl", "same_response", "chosen and rejected differ in the"),
]


@pytest.mark.parametrize(("row", "form", "reason", "sentence"), BAD)
def test_every_bad_row_has_a_reason_and_a_sentence(row: dict[str, Any], form: Form, reason: str, sentence: str) -> None:
    with pytest.raises(RowFault) as caught:
        read_pair(row, form)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(sentence)


spoken = st.text(alphabet="ab :é\n", min_size=1, max_size=8).filter(str.strip)


@given(st.lists(st.tuples(spoken, spoken), min_size=1, max_size=3), spoken)
def test_hh_transcripts_read_back_as_the_turns_they_were_written_from(turns: list[tuple[str, str]], other: str) -> None:
    assume(other.strip() != turns[-1][1].strip())
    texts = [text for turn in turns for text in turn]
    start = "".join(f"{label}{text}" for label, text in zip((H, A) * len(turns), texts[:-1], strict=False))
    pair = read_pair({"chosen": f"{start}{A}{texts[-1]}", "rejected": f"{start}{A}{other}"}, "hh").pair
    assert [m.content for m in (*pair.prompt, *pair.chosen, *pair.rejected)] == [*texts, other]


@given(st.lists(spoken, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1), spoken, spoken)
def test_implicit_and_explicit_prompts_mean_the_same(texts: list[str], good: str, bad: str) -> None:
    assume(good.strip() != bad.strip())
    prompt = [
        Message(role="assistant" if i % 2 else "user", content=text).template_form() for i, text in enumerate(texts)
    ]
    answers = {"chosen": [PLUM | {"content": good}], "rejected": [PLUM | {"content": bad}]}
    explicit = read_pair({"prompt": prompt} | answers, "trl")
    implicit = read_pair({side: prompt + answer for side, answer in answers.items()}, "trl")
    assert explicit == implicit
    assert explicit.pair == read_pair(json.loads(json.dumps(explicit.pair.line())), "druthers").pair


def test_a_name_that_is_a_cell_or_damage_is_not_repeated_whole() -> None:
    with pytest.raises(RowFault, match=r"^k{60}…: unknown column of 1,000,000 characters; if it is a table") as told:
        read_pair({"prompt": "Q", "chosen": "A", "rejected": "B", "k" * 1_000_000: 1}, "trl")
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_column_without_a_name_to_set_is_not_said_to_be_set_aside(name: str) -> None:
    with pytest.raises(RowFault, match="is no name of a column; name it, or take it out of the row"):
        read_pair({"prompt": "q", "chosen": "a", "rejected": "b", name: 1}, "trl")
