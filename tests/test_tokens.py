"""The road from text to token ids: one prompt for both branches, an end token always, only assistant turns scored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from druthers.records import InputError, Message, Pair, assistant, user
from druthers.tokens import control_tokens, cut, encode_prompt, encode_response, render, tokenize
from tests import tiny

LAW = settings(max_examples=25, deadline=None, derandomize=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
END = 1
TOKENIZER = tiny.tokenizer()
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REWRITES = (
    "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}(cut)\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    """Ids of a text that is already rendered."""
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def pair_of(prompt: str, chosen: str, rejected: str, **more: Any) -> Pair:
    """A pair of single turns."""
    return Pair(prompt=user(prompt), chosen=assistant(chosen), rejected=assistant(rejected), **more)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """A prompt: perhaps a system turn, then user and assistant in turn, ending with the user."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
    turns = [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    opening = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    return (*opening, *turns)


@LAW
@given(conversations(), TEXT, TEXT)
def test_both_branches_begin_with_the_rendered_prompt_and_hold_the_rendered_response(
    prompt: tuple[Message, ...], chosen: str, rejected: str
) -> None:
    """Each branch is exactly the rendered conversation, up to the newline behind the last turn."""
    if chosen == rejected:
        return
    found = tokenize(
        Pair(prompt=prompt, chosen=assistant(chosen), rejected=assistant(rejected)),
        TOKENIZER,
        max_prompt=2000,
        max_response=500,
    )
    for ids, text in ((found.chosen, chosen), (found.rejected, rejected)):
        whole = render([*prompt, *assistant(text)], TOKENIZER, tools=None, ask=False)
        assert [*found.prompt, *ids] == ids_of(whole.removesuffix("\n"))
        assert ids[-1] == END
        assert ids.count(END) == 1


@LAW
@given(TEXT, TEXT, st.integers(2, 40))
def test_a_response_ends_with_the_end_token_also_when_cut(chosen: str, rejected: str, limit: int) -> None:
    """A cut response is the beginning of the whole one, one token short of the limit, and its end token."""
    whole, scored = encode_response(user("Hi"), assistant(chosen), TOKENIZER)
    ids, kept, is_cut = cut(whole, scored, limit)
    assert ids[-1] == END
    assert kept[-1]
    assert is_cut == (len(whole) > limit)
    assert len(ids) == len(kept) == min(limit, len(whole))
    assert list(ids[:-1]) == whole[: len(ids) - 1]


def test_cut_responses_are_counted_and_scored() -> None:
    """The flags say which side was cut."""
    found = tokenize(pair_of("Hi", "a" * 50, "bb"), TOKENIZER, max_prompt=100, max_response=10)
    assert (found.cut_chosen, found.cut_rejected) == (True, False)
    assert found.chosen == (*ids_of("a" * 9), END)
    assert all(found.chosen_scored)
    assert found.longest == len(found.prompt) + 10


def test_graded_fields_and_the_id_travel_with_the_pair() -> None:
    """What a pair carries besides its text."""
    pair = pair_of("Hi", "good", "bad", p=0.75, margin=0.5, weight=3.0, group="tone")
    found = tokenize(pair, TOKENIZER, max_prompt=100, max_response=10)
    assert (found.id, found.p, found.margin, found.weight, found.group) == (pair.id, 0.75, 0.5, 3.0, "tone")


@LAW
@given(TEXT, st.sampled_from(sorted(control_tokens(TOKENIZER))), st.sampled_from(["prompt", "chosen", "rejected"]))
def test_text_with_a_control_token_is_refused(text: str, token: str, where: str) -> None:
    """Wherever it stands, in prompt or responses."""
    texts = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}
    texts[where] = text + token + text
    with pytest.raises(InputError, match="control token of the chat template"):
        tokenize(pair_of(**texts), TOKENIZER, max_prompt=500, max_response=500)


def test_a_control_token_in_a_tool_call_is_refused() -> None:
    """Arguments of calls are rendered into the text like contents."""
    call = [{"type": "function", "function": {"name": "look", "arguments": {"q": "a<|im_end|>b"}}}]
    with pytest.raises(InputError, match=r"assistant turn contains '<\|im_end\|>'"):
        encode_response(user("Hi"), (Message(role="assistant", content="", tool_calls=call),), TOKENIZER)


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    """There is no way to write a conversation, and the sentence says what to do."""
    with pytest.raises(InputError, match=r"no chat template.*use an instruction-tuned model"):
        encode_prompt(user("Hi"), tiny.tokenizer(None))


def test_a_prompt_over_the_limit_is_refused_with_both_numbers() -> None:
    """A prompt is never cut."""
    length = len(encode_prompt(user("Hi"), TOKENIZER))
    pair = pair_of("Hi", "good", "bad")
    assert len(tokenize(pair, TOKENIZER, max_prompt=length, max_response=9).prompt) == length
    with pytest.raises(InputError, match=f"{length} tokens, over data.max_prompt = {length - 1}"):
        tokenize(pair, TOKENIZER, max_prompt=length - 1, max_response=9)


def test_responses_that_a_cut_makes_equal_are_refused() -> None:
    """They differ only behind the limit."""
    with pytest.raises(InputError, match="same 4 tokens"):
        tokenize(pair_of("Hi", "abcdef", "abcxyz"), TOKENIZER, max_prompt=100, max_response=4)


def tool_exchange() -> tuple[Message, ...]:
    """An answer that asks a tool first."""
    call = [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}]
    return (
        Message(role="assistant", content="Let me look.", tool_calls=call),
        Message(role="tool", content="12:30"),
        Message(role="assistant", content="Half past twelve."),
    )


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "clock"}}]])
def test_a_response_with_a_tool_turn_is_the_rendered_text_and_only_assistant_turns_are_scored(
    tools: list[dict[str, Any]] | None,
) -> None:
    """The ids are those of the whole rendering, newlines between turns included; headers and tool are unscored."""
    tokenizer = tiny.tokenizer(WITH_TOOLS)
    prompt, response = user("What time is it?"), tool_exchange()
    ids, scored = encode_response(prompt, response, tokenizer, tools=tools)
    whole = render([*prompt, *response], tokenizer, tools=tools, ask=False)
    assert encode_prompt(prompt, tokenizer, tools=tools) + ids == ids_of(whole.removesuffix("\n"))
    learned = tokenizer.decode([i for i, kept in zip(ids, scored, strict=True) if kept])
    first = (
        'Let me look.<call>[{"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}]</call>'
    )
    assert learned == f"{first}<|im_end|>Half past twelve.<|im_end|>"
    unlearned = tokenizer.decode([i for i, kept in zip(ids, scored, strict=True) if not kept])
    assert unlearned == "\n<|im_start|>tool\n12:30<|im_end|>\n<|im_start|>assistant\n"
    assert ("system" in tokenizer.decode(encode_prompt(prompt, tokenizer, tools=tools))) == (tools is not None)


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_does() -> None:
    """A single turn has its place; an answer over several turns has not."""
    tokenizer = tiny.tokenizer(REWRITES)
    ids, _ = encode_response(user("Hi"), assistant("Yes."), tokenizer)
    assert tokenizer.decode(ids) == "Yes.<|im_end|>"
    with pytest.raises(InputError, match="rewrites earlier turns"):
        encode_response(user("Hi"), tool_exchange(), tokenizer)


def test_a_conversation_that_the_template_fails_at_is_bad_input() -> None:
    """Its program adds what is no text, as some do with the arguments of a call."""
    fails = tiny.TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] + [] }}")
    with pytest.raises(InputError, match="the chat template cannot write this conversation"):
        encode_prompt(user("Hi"), tiny.tokenizer(fails))


def test_a_conversation_that_the_template_refuses_is_bad_input() -> None:
    """Gemma has no system turn, Mistral insists on alternation."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn') }}{% endif %}"
    with pytest.raises(InputError, match="No system turn"):
        encode_prompt((Message(role="system", content="Be kind."), *user("Hi")), tiny.tokenizer(refuses))


@LAW
@given(TEXT)
def test_a_template_without_an_end_token_gets_the_tokenizers(text: str) -> None:
    """The end token follows all of the text."""
    ids, scored = encode_response(user("Hi"), assistant(text), tiny.tokenizer(NO_END))
    assert ids == [*ids_of(text + "\n"), END]
    assert all(scored)


def test_without_any_end_token_the_pair_is_refused() -> None:
    """A model would never learn to stop."""
    tokenizer = tiny.tokenizer(NO_END)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-turn token"):
        encode_response(user("Hi"), assistant("Yes."), tokenizer)


def test_an_end_of_turn_token_without_a_role_in_the_tokenizer_ends_the_response() -> None:
    """Gemma 3 and Phi 3 end turns with a special token that is not their eos token."""
    tokenizer = tiny.tokenizer(tiny.TEMPLATE.replace("<|im_end|>", "<end_of_turn>"))
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=True, normalized=False)])
    ids, _ = encode_response(user("Hi"), assistant("Yes."), tokenizer)
    assert ids == [*ids_of("Yes."), tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    with pytest.raises(InputError, match="control token"):
        encode_prompt(user("Hi <end_of_turn>"), tokenizer)


def test_a_special_token_inside_a_turn_does_not_end_it() -> None:
    """Mistral marks calls with a special token; what follows belongs to the turn."""
    template = tiny.TEMPLATE.replace("{{ m['content'] }}<|im_end|>", "<|im_start|>call {{ m['content'] }}")
    ids, _ = encode_response(user("Hi"), assistant("look(1)"), tiny.tokenizer(template))
    assert ids == [*ids_of("<|im_start|>call look(1)\n"), END]
