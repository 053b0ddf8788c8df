"""`Pair` to `TokenizedPair`, one at a time: the meaning of tokenisation, which `blocks.py` repeats for many at once.

Token ids are built by segment: the prompt is rendered and encoded once and its ids stand verbatim in both branches, so
a boundary that differs between chosen and rejected cannot exist. Only assistant turns of the response are scored, and
the end-of-turn token always is, also when a long response is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jinja2 import TemplateError

from druthers.records import InputError, Message, Pair

Reason = Literal["control_tokens", "template", "prompt_too_long", "same_response"]


class Refused(InputError):
    """Why a pair cannot be trained on: the sentence, and a code to count by."""

    def __init__(self, why: str, *, reason: Reason = "template") -> None:
        super().__init__(why)
        self.reason = reason


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    eos_token_id: int | None
    chat_template: str | None
    added_tokens_decoder: dict[int, Any]
    special_tokens_map: dict[str, Any]
    init_kwargs: dict[str, Any]
    is_fast: bool

    @property
    def backend_tokenizer(self) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def save_pretrained(self, save_directory: str) -> object: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def apply_chat_template(
        self, conversation: Any, *, tools: Any = ..., tokenize: bool = ..., add_generation_prompt: bool = ...
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of one pair. Responses end with the end-of-turn token; `*_scored` marks tokens of assistant turns."""

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    chosen_scored: tuple[bool, ...]
    rejected_scored: tuple[bool, ...]
    p: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    group: str = ""
    cut_chosen: bool = False
    cut_rejected: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two rows."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def control_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """Texts that the tokenizer turns into one special token, such as '<|im_end|>', whether or not it has a role."""
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def written(message: Message) -> str:
    """Everything of a message that a chat template may write into the text."""
    return f"{message.content} {message.name} {message.tool_call_id} {message.tool_calls}"


BARE = " None None None"
"""What `written` has behind the content of a message that is nothing but a role and a content."""


def check_text(messages: Iterable[Message], tokenizer: Tokenizer) -> None:
    """Refuse text that would be read as template structure."""
    control = control_tokens(tokenizer)
    for message in messages:
        text = written(message)
        for token in sorted(control):
            if token in text:
                raise Refused(
                    f"the {message.role} turn contains {token!r}, a control token of the chat template, "
                    "which would be read as structure; remove it from the text",
                    reason="control_tokens",
                )


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, tools: list[dict[str, Any]] | None, ask: bool) -> str:
    """The conversation as the chat template writes it; `ask` adds the opening of an assistant turn."""
    if not tokenizer.chat_template:
        raise Refused(
            "the tokenizer has no chat template, so a conversation cannot be written as text; "
            "use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json"
        )
    conversation = [message.template_form() for message in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tools=tools, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError, ValueError, LookupError) as error:  # the program's own refusal, or its failure
        raise Refused(
            f"the chat template cannot write this conversation ({error}); change the row or the template"
        ) from error
    return str(text)


def encode_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, *, tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """Ids of the prompt up to and including the opening of the assistant turn."""
    check_text(messages, tokenizer)
    return tokenizer.encode(render(messages, tokenizer, tools=tools, ask=True), add_special_tokens=False)


def split_turn(text: str, ends: tuple[str, ...]) -> tuple[str, str]:
    """The text of a turn up to its end token (one of `ends`), and the white space that templates write behind it."""
    bare = text.rstrip()
    return (bare, text[len(bare) :]) if bare.endswith(ends) else (text, "")


def encode_turn(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of an assistant turn, its end token last: the template's own, or else the tokenizer's."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if text.endswith(tuple(control_tokens(tokenizer))):
        return ids
    if tokenizer.eos_token_id is None:
        raise endless()
    return [*ids, tokenizer.eos_token_id]


def endless() -> Refused:
    """A turn has no end token."""
    return Refused(
        "neither the chat template nor the tokenizer has an end-of-turn token; set `eos_token` in tokenizer_config.json"
    )


class Write(Protocol):
    """A conversation to its text; `ask` adds the opening of an assistant turn."""

    def __call__(self, messages: Sequence[Message], *, ask: bool) -> str: ...


def turns(
    prompt: Sequence[Message], response: Sequence[Message], write: Write, *, ends: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """The text of a response behind its prompt: for each assistant turn what stands before it, and the turn itself."""
    so_far = write(prompt, ask=True)
    behind = ""
    for i, message in enumerate(response):
        if message.role != "assistant":
            continue
        before = [*prompt, *response[:i]]
        opening = write(before, ask=True) if i else so_far
        closing = write([*before, message], ask=False)
        if not opening.startswith(so_far) or not closing.startswith(opening):
            raise Refused(
                "the chat template rewrites earlier turns when a turn is added, "
                "so the response has no fixed place in the text; use a template that only appends"
            )
        header = behind + opening[len(so_far) :]
        text, behind = split_turn(closing[len(opening) :], ends)
        yield header, text
        so_far = closing


def encode_response(
    prompt: Sequence[Message],
    response: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], list[bool]]:
    """Ids of the response and, for each, whether it is scored (assistant turns are, tool turns and headers are not)."""
    check_text(response, tokenizer)
    ids: list[int] = []
    scored: list[bool] = []

    def write(messages: Sequence[Message], *, ask: bool) -> str:
        return render(messages, tokenizer, tools=tools, ask=ask)

    for opening, text in turns(prompt, response, write, ends=tuple(control_tokens(tokenizer))):
        header, turn = tokenizer.encode(opening, add_special_tokens=False), encode_turn(text, tokenizer)
        ids += header + turn
        scored += [False] * len(header) + [True] * len(turn)
    return ids, scored


def cut(ids: list[int], scored: list[bool], limit: int) -> tuple[tuple[int, ...], tuple[bool, ...], bool]:
    """At most `limit` tokens; a cut response keeps its end-of-turn token as the last one.

    >>> cut([5, 6, 7, 8, 1], [True] * 5, 3)
    ((5, 6, 1), (True, True, True), True)
    """
    if len(ids) <= limit:
        return tuple(ids), tuple(scored), False
    return (*ids[: limit - 1], ids[-1]), (*scored[: limit - 1], scored[-1]), True


def too_long(length: int, *, max_prompt: int) -> Refused:
    """A prompt has too many tokens."""
    return Refused(
        f"the prompt is {length} tokens, over data.max_prompt = {max_prompt}; raise that",
        reason="prompt_too_long",
    )


def alike(length: int, *, max_response: int) -> Refused:
    """Both responses are the same tokens."""
    return Refused(
        f"chosen and rejected are the same {length} tokens (after the cut to data.max_response = "
        f"{max_response}), so the pair teaches nothing; raise the limit",
        reason="same_response",
    )


def tokenize(pair: Pair, tokenizer: Tokenizer, *, max_prompt: int, max_response: int) -> TokenizedPair:
    """Ids of one pair under the chat template.

    Raises Refused when the prompt is longer than `max_prompt` tokens, when a text contains control tokens, when the
    tokenizer has no chat template, or when both responses are the same after being cut to `max_response` tokens.
    """
    prompt = encode_prompt(pair.prompt, tokenizer, tools=pair.tools)
    if len(prompt) > max_prompt:
        raise too_long(len(prompt), max_prompt=max_prompt)
    chosen, chosen_scored, cut_chosen = cut(
        *encode_response(pair.prompt, pair.chosen, tokenizer, tools=pair.tools), max_response
    )
    rejected, rejected_scored, cut_rejected = cut(
        *encode_response(pair.prompt, pair.rejected, tokenizer, tools=pair.tools), max_response
    )
    if chosen == rejected:
        raise alike(len(chosen), max_response=max_response)
    return TokenizedPair(
        id=pair.id,
        prompt=tuple(prompt),
        chosen=chosen,
        rejected=rejected,
        chosen_scored=chosen_scored,
        rejected_scored=rejected_scored,
        p=pair.p,
        margin=pair.margin,
        weight=pair.weight,
        group=pair.group,
        cut_chosen=cut_chosen,
        cut_rejected=cut_rejected,
    )
