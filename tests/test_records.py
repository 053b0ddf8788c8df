"""Ids are hashes of content, nothing unknown passes, and what is written reads back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from druthers.records import (
    DEEPEST,
    Candidate,
    Candidates,
    Exchange,
    Judgement,
    Message,
    Outcome,
    Pair,
    Prompt,
    Record,
    assistant,
    content_id,
    text_of,
    user,
)

texts = st.text(max_size=12)
words = texts.filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Message, ...]:
    """Every legal order: an optional system turn, then turns that end with a user or a tool."""
    turns = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message(role="user", content=draw(texts)), Message(role="assistant", content=draw(texts))]
    if turns and turns[-1].role == "assistant" and draw(st.booleans()):
        return (*turns, Message(role="tool", content=draw(texts), name="f", tool_call_id="1"))
    return (*turns, Message(role="user", content=draw(texts)))


@st.composite
def pairs(draw: st.DrawFn, *, margins: bool = True) -> Pair:
    chosen, rejected = draw(st.lists(words, min_size=2, max_size=2, unique=True))
    return Pair(
        prompt=draw(prompts()),
        chosen=assistant(chosen),
        rejected=assistant(rejected),
        p=draw(st.floats(0, 1)),
        margin=draw(st.floats(0, 1e6)) if margins else 0.0,
        weight=draw(st.floats(0, 1e6)),
        group=draw(texts),
        source=draw(texts),
        tools=draw(st.none() | st.lists(st.dictionaries(texts, values, max_size=2), max_size=2)),
    )


candidate = st.builds(Candidate, content=texts, score=st.none() | numbers, rank=st.none() | st.integers(1, 9))
records = st.one_of(
    pairs(),
    st.builds(Prompt, prompt=prompts(), group=texts),
    st.builds(
        Candidates, prompt=prompts(), responses=st.lists(candidate, min_size=1, max_size=3).map(tuple), group=texts
    ),
    st.builds(Judgement, prompt_id=texts, judge=texts, a=texts, b=texts, outcome=st.sampled_from(["a", "b", "tie"])),
    st.builds(Exchange, prompt=prompts(), response=texts, temperature=numbers, logp=st.none() | numbers),
    st.builds(
        Outcome,
        split=st.sampled_from(["train", "heldout"]),
        logp_chosen=numbers,
        logp_rejected=numbers,
        logratio_chosen=numbers,
        logratio_rejected=numbers,
        loss=numbers,
    ),
)


@given(records)
def test_every_record_reads_back_from_its_line(record: Record) -> None:
    line = json.loads(json.dumps(record.line()))
    assert type(record).model_validate(line) == record


@given(pairs())
def test_the_id_is_of_the_content_alone(pair: Pair) -> None:
    assert pair.line()["id"] == pair.id
    assert pair.model_copy(update={"weight": 7.0}).id == pair.id
    assert Pair.model_validate(pair.line() | {"id": "", "p": 0.5, "group": "other", "weight": 2.0}).id == pair.id
    changed = pair.line() | {"id": "", "chosen": [{"role": "assistant", "content": pair.chosen[0].content + "!"}]}
    if changed["chosen"] != changed["rejected"]:
        assert Pair.model_validate(changed).id != pair.id
    assert pair.prompt_id == Prompt(prompt=pair.prompt).prompt_id


@given(pairs(margins=False))
def test_swapping_twice_changes_nothing(pair: Pair) -> None:
    swapped = pair.swap()
    assert (swapped.chosen, swapped.rejected, swapped.weight) == (pair.rejected, pair.chosen, pair.weight)
    assert swapped.p == 1 - pair.p
    assert swapped.id != pair.id
    assert swapped.swap().id == pair.id
    assert swapped.swap().p == pytest.approx(pair.p)


@pytest.mark.parametrize("field", ["margin", "weight"])
@pytest.mark.parametrize("value", [1e6 * (1 + 1e-9), 1.5e308, 10**400])
def test_grades_that_would_overflow_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"), **{field: value})


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("levels", [DEEPEST - 2, DEEPEST - 1, 300, 900])
def test_tools_and_calls_are_so_deep_and_no_deeper(levels: int) -> None:
    """Two levels are the list and its object."""
    tools = [{"a": nested(levels)}]
    turn = {"role": "assistant", "content": "x"}
    row = {"prompt": [{"role": "user", "content": "Q"}], "chosen": [turn], "rejected": [{**turn, "content": "y"}]}
    for made in (row | {"tools": tools}, row | {"chosen": [turn | {"tool_calls": tools}]}):
        if levels <= DEEPEST - 2:
            pair = Pair.model_validate(made)
            assert Pair.model_validate_json(json.dumps(pair.line())) == pair
        else:
            with pytest.raises(ValidationError, match=f"nested more than {DEEPEST} levels deep; write it flatter"):
                Pair.model_validate(made)


def test_a_pair_with_a_margin_cannot_be_swapped() -> None:
    pair = Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"), margin=1)
    with pytest.raises(ValueError, match="a negative margin has no meaning"):
        pair.swap()


@given(values)
def test_an_id_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    def turned(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: turned(item) for key, item in reversed(inner.items())}
        return [turned(item) for item in inner] if isinstance(inner, list) else inner

    assert content_id(value) == content_id(turned(value))
    assert len(content_id(value)) == 24


def test_an_id_is_the_same_on_every_machine() -> None:
    pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    assert content_id({"b": 1, "a": "é"}) == "aa58fba8483623bed37c1b02"
    assert pair.id == "d1074719a6896f03a8f484c2"


TURNS = dict(zip("suat", ("system", "user", "assistant", "tool"), strict=True))


def turns(letters: str) -> list[dict[str, Any]]:
    return [{"role": TURNS[letter], "content": f"{i}"} for i, letter in enumerate(letters)]


@pytest.mark.parametrize("letters", ["u", "su", "uau", "uat", "uatt", "uatau", "suatu"])
def test_prompts_in_order_pass(letters: str) -> None:
    assert text_of(Prompt.model_validate({"prompt": turns(letters)}).prompt) == "\n".join(map(str, range(len(letters))))


@pytest.mark.parametrize(
    ("letters", "sentence"),
    [
        ("", "at least 1 item"),
        ("us", "turn 1 is 'system', but a system turn may only come first"),
        ("a", "turn 0 is 'assistant' after None"),
        ("sau", "turn 1 is 'assistant' after 'system'"),
        ("uaau", "turn 2 is 'assistant' after 'assistant'"),
        ("uu", "turns 0 and 1 are both 'user'"),
        ("ut", "turn 1 is 'tool', but a tool turn must follow an assistant turn"),
        ("ua", "the prompt ends with a turn of 'assistant'"),
        ("s", "the prompt ends with a turn of 'system'"),
    ],
)
def test_prompts_out_of_order_are_refused(letters: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Prompt.model_validate({"prompt": turns(letters)})


@pytest.mark.parametrize(
    ("letters", "sentence"),
    [
        ("", "at least 1 item"),
        ("u", "must begin and end with an assistant turn"),
        ("at", "must begin and end with an assistant turn"),
        ("ta", "must begin and end with an assistant turn"),
        ("aua", "may hold only assistant and tool turns"),
        ("aa", "turns 0 and 1 are both 'assistant'"),
    ],
)
def test_responses_out_of_order_are_refused(letters: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Pair.model_validate({"prompt": turns("u"), "chosen": turns(letters), "rejected": turns("ata")})


def test_an_empty_response_is_one_unless_it_calls_a_tool() -> None:
    call = Message(role="assistant", content="", tool_calls=[{"function": {"name": "clock"}}])
    assert Pair(prompt=user("Q"), chosen=(call,), rejected=assistant("b")).chosen == (call,)
    with pytest.raises(ValidationError, match="the response is empty"):
        Pair(prompt=user("Q"), chosen=assistant("\n"), rejected=assistant("b"))


LINE = Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b")).line()


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"p": 1.01},
        {"p": float("nan")},
        {"p": True},
        {"p": "1"},
        {"weight": -1},
        {"weight": float("inf")},
        {"margin": -0.1},
        {"group": 7},
        {"group": None},
        {"tools": {}},
        {"prompt": "Q"},
        {"prompt": [{"role": "user", "content": 7}]},
        {"prompt": [{"role": "User", "content": "Q"}]},
        {"prompt": [{"role": "user", "content": "Q", "mood": "good"}]},
        {"rejected": LINE["chosen"]},
        {"id": "0" * 24},
    ],
)
def test_nothing_unknown_or_of_another_type_passes(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Pair.model_validate(LINE | change)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Pair.model_validate(LINE).p = 0.5  # type: ignore[misc]
