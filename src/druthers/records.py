"""What stands on one line of a file.

Every record is frozen, refuses unknown keys, and its id is a hash of its content, so the same line has the same id on
every machine. `InputError` is the one exception for bad input: its text is one sentence a user can act on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

DEEPEST = 64
"""Levels of objects and lists in one another that tools and calls of them may have; whole rows twice as many."""
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class InputError(ValueError):
    """Bad input from outside; the text names the value, the rule and the remedy in one sentence."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text.

    >>> first_line(OSError("no space\\nleft")), first_line(EOFError())
    ('no space', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def content_id(content: object) -> str:
    """First 24 hex digits of the SHA-256 of canonical JSON.

    >>> content_id({"b": 1, "a": "é"}) == content_id({"a": "é", "b": 1})
    True
    """
    text = CANONICAL.encode(content)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def check_depth(value: object, *, most: int = DEEPEST) -> object:
    """A value of JSON, whose objects and lists stand at most so many levels in one another.

    What reads, hashes and writes it goes down level by level and would fail. Raises ValueError for a deeper one.
    """
    level = [value]
    for _ in range(most):
        level = [inner for item in level for inner in _inside(item) if isinstance(inner, dict | list | tuple)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {most} levels deep; write it flatter")


def _inside(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list | tuple) else ()


class Record(BaseModel):
    """Base of every line: frozen, no unknown keys, no coercion of one type into another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def line(self) -> dict[str, Any]:
        """The record as it is written: JSON values, defaults left out, the id first where there is one."""
        body = self.model_dump(mode="json", exclude_defaults=True)
        own = getattr(self, "id", None)
        return body if own is None else {"id": own, **{k: v for k, v in body.items() if k != "id"}}


Role = Literal["system", "user", "assistant", "tool"]
Calls = Annotated[list[dict[str, Any]], BeforeValidator(check_depth)]
"""Tools, or calls of them."""
MOST = 1e6
"""Up to where a margin or weight is one: sums of larger ones lose the others, and at last themselves."""


class Message(Record):
    """One turn of a conversation, in the form chat templates read.

    >>> Message(role="user", content="My kettle leaks.").content
    'My kettle leaks.'
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: Calls | None = None
    tool_call_id: str | None = None

    def template_form(self) -> dict[str, Any]:
        """The dict a chat template expects: only the keys that are set."""
        if self.tool_calls is None and self.name is None and self.tool_call_id is None:
            return {"role": self.role, "content": self.content}
        return self.model_dump(mode="json", exclude_none=True)


Messages = Annotated[tuple[Message, ...], Field(min_length=1, strict=False)]


def user(text: str) -> tuple[Message, ...]:
    """A prompt of one user turn."""
    return (Message(role="user", content=text),)


def spoken_to(prompt: object) -> object:
    """A text as a user's turn, anything else as it is."""
    return user(prompt) if isinstance(prompt, str) else prompt


def assistant(text: str) -> tuple[Message, ...]:
    """A response of one assistant turn."""
    return (Message(role="assistant", content=text),)


def text_of(messages: Iterable[Message]) -> str:
    """The contents of the messages, joined by newlines."""
    return "\n".join(message.content for message in messages)


def asked(prompt: Iterable[Message]) -> str:
    """The text of a prompt that says what it is about: all turns but the system's, which many prompts share.

    >>> asked((Message(role="system", content="Be brief."), *user("Name a fruit.")))
    'Name a fruit.'
    """
    return text_of(message for message in prompt if message.role != "system")


def check_prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt: an optional system turn, then user, assistant and tool turns, ending before the assistant speaks.

    Raises ValueError naming the turn that is out of order.
    """
    for i, message in enumerate(messages):
        before = messages[i - 1].role if i else None
        if message.role == "system" and i:
            raise ValueError(f"turn {i} is 'system', but a system turn may only come first")
        if message.role == "tool" and before not in ("assistant", "tool"):
            raise ValueError(f"turn {i} is 'tool', but a tool turn must follow an assistant turn")
        if message.role == "assistant" and before not in ("user", "tool"):
            raise ValueError(f"turn {i} is 'assistant' after {before!r}, but an assistant turn must follow a user turn")
        if message.role == "user" and before == "user":
            raise ValueError(f"turns {i - 1} and {i} are both 'user', but turns must alternate")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(
            f"the prompt ends with a turn of {messages[-1].role!r}, but it must end with a user or tool turn"
        )
    return messages


def check_response(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A response: assistant (and tool) turns, beginning and ending with the assistant, not empty."""
    if messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise ValueError("a response must begin and end with an assistant turn")
    if any(m.role not in ("assistant", "tool") for m in messages):
        raise ValueError("a response may hold only assistant and tool turns")
    for i, (before, after) in enumerate(itertools.pairwise(messages)):
        if before.role == after.role == "assistant":
            raise ValueError(f"turns {i} and {i + 1} are both 'assistant', but turns must alternate")
    if not messages[-1].content.strip() and not messages[-1].tool_calls:
        raise ValueError("the response is empty; remove the row or write an answer")
    return messages


class Pair(Record):
    """A prompt with a preferred and a non-preferred response.

    `p` is the probability that `chosen` is truly better (1 certain, 0.5 a tie), `margin` how much better in units of
    the reward beta * log(policy / reference), `weight` how much the pair counts. The id is a hash of prompt, chosen,
    rejected and tools, so the same comparison with another weight keeps its id.

    >>> pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    >>> pair.swap().chosen[0].content, round(pair.swap().p, 1), len(pair.id)
    ('Carrot.', 0.0, 24)
    """

    id: str = ""
    prompt: Messages
    chosen: Messages
    rejected: Messages
    p: float = Field(1.0, ge=0, le=1)
    margin: float = Field(0.0, ge=0, le=MOST)
    weight: float = Field(1.0, ge=0, le=MOST)
    group: str = ""
    criterion: str = ""
    source: str = ""
    tools: Calls | None = None

    _prompt = field_validator("prompt")(check_prompt)
    _responses = field_validator("chosen", "rejected")(check_response)

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError("chosen equals rejected, so the pair teaches nothing; remove the row")
        own = content_id(
            [[m.template_form() for m in side] for side in (self.prompt, self.chosen, self.rejected)] + [self.tools]
        )
        if self.id not in ("", own):
            raise ValueError(
                f"id {self.id!r} is not the hash of the content ({own}); leave the id out or restore the text"
            )
        object.__setattr__(self, "id", own)
        return self

    @property
    def prompt_id(self) -> str:
        """Hash of the prompt alone: pairs of one prompt share it, and splits go by it."""
        return content_id([m.template_form() for m in self.prompt])

    def swap(self) -> Pair:
        """The same knowledge with the sides exchanged: p becomes 1 - p."""
        if self.margin:
            raise ValueError("a pair with a margin cannot be swapped: a negative margin has no meaning")
        exchanged = {"id": "", "chosen": self.rejected, "rejected": self.chosen, "p": 1 - self.p}
        return Pair.model_validate(dict(self) | exchanged)


class Prompt(Record):
    """A question without an answer: what `sample` reads and held-out evaluation asks.

    The prompt may be a text, which is a user's turn. `reason` says why it was queued for collection, where it was.

    >>> Prompt.model_validate({"prompt": "Name a fruit."}).prompt[0].role
    'user'
    """

    prompt: Messages
    group: str = ""
    reason: str = ""

    _text = field_validator("prompt", mode="before")(spoken_to)
    _prompt = field_validator("prompt")(check_prompt)

    @property
    def prompt_id(self) -> str:
        """Hash of the messages."""
        return content_id([m.template_form() for m in self.prompt])


class Candidate(Record):
    """One of N responses to a prompt, with what is known of its worth."""

    content: str
    score: float | None = None
    rank: int | None = Field(None, ge=1)
    rules: dict[str, float] = Field(default_factory=dict)
    source: str = ""


class Opinion(Record):
    """What one annotator said of the responses to a prompt, by one criterion.

    `worth` has a number for each response, in their order; higher is better, None is not judged. The scale says what
    the numbers mean: of a "rating" the differences in points, of a "rank" the order alone, of a "choice" between two
    responses the difference as steps of strength (0 a tie, 1 slightly better, 2 clearly, 3 much). `tie` says of a tied
    choice whether both were good or both bad.

    >>> Opinion(annotator="ann", scale="choice", worth=(2.0, 0.0)).worth
    (2.0, 0.0)
    """

    annotator: str = ""
    criterion: str = ""
    scale: Literal["rating", "rank", "choice"]
    worth: Annotated[tuple[float | None, ...], Field(min_length=1, strict=False)]
    tie: Literal["", "both_good", "both_bad"] = ""

    @model_validator(mode="after")
    def _judged(self) -> Self:
        known = [worth for worth in self.worth if worth is not None]
        if not known:
            raise ValueError("an opinion must judge at least one response; leave it out")
        if self.scale == "choice" and len(known) != 2:
            raise ValueError(f"a choice judges two responses, not {len(known)}; use the scale 'rank' or 'rating'")
        if self.tie and (self.scale != "choice" or known[0] != known[1]):
            raise ValueError(f"tie = {self.tie!r} stands beside responses that are not tied; leave one out")
        return self


class Candidates(Record):
    """A prompt with N responses, rated or ranked; what `sample` writes (unrated) and `judge` reads.

    `opinions` are what single annotators said; a score or rank on the responses themselves is that of one nameless
    annotator.
    """

    prompt: Messages
    responses: Annotated[tuple[Candidate, ...], Field(min_length=1, strict=False)]
    group: str = ""
    opinions: Annotated[tuple[Opinion, ...], Field(strict=False)] = ()
    tools: Calls | None = None

    _prompt = field_validator("prompt")(check_prompt)

    @model_validator(mode="after")
    def _opinions_fit(self) -> Self:
        for i, opinion in enumerate(self.opinions):
            if len(opinion.worth) != len(self.responses):
                raise ValueError(
                    f"opinion {i} has {len(opinion.worth)} numbers for {len(self.responses)} responses; give one each"
                )
        return self

    @property
    def prompt_id(self) -> str:
        """Hash of the messages."""
        return content_id([m.template_form() for m in self.prompt])


class Judgement(Record):
    """Which of two responses to a prompt is better, and who said so.

    `outcome` is in the canonical frame: "a", "b" or "tie". `consistent` is False when the judge contradicted itself
    after the sides were exchanged (such a judgement is a tie).
    """

    prompt_id: str
    judge: str
    a: str
    b: str
    outcome: Literal["a", "b", "tie"]
    score_a: float | None = None
    score_b: float | None = None
    rules_a: dict[str, float] = {}
    rules_b: dict[str, float] = {}
    consistent: bool = True


class Outcome(Record):
    """What one pair did at one step: the row every report joins on.

    Log-probabilities are sums over the scored response tokens, in nats; a log-ratio is policy minus reference.
    """

    pair_id: str
    step: int
    split: Literal["train", "heldout"]
    logp_chosen: float
    logp_rejected: float
    logratio_chosen: float
    logratio_rejected: float
    length_chosen: int
    length_rejected: int
    loss: float


class Limits(Record):
    """From where on a number is worth a warning, and from where on it fails; `bad` is the side that is bad."""

    warn: float | None = None
    fail: float | None = None
    bad: Literal["above", "below"] = "above"


class Rows(Record):
    """A file beside the findings with the rows a number is about, one a line, and how many they are."""

    file: str
    count: int


class Finding(Record):
    """One number about the data or the model, what it is held against, and a sentence that says what it means.

    `low` and `high` are the 95 % interval, `n` how much it was computed from; where there is no number, `undefined`
    says why. `uncertain` is set where the interval lies on both sides of a limit, and `needed` is the n that would
    decide. `action` is what to do about it.
    """

    id: str
    status: Literal["pass", "warn", "fail", "undefined"]
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    limits: Limits | None = None
    slice: dict[str, str] = {}
    uncertain: bool = False
    needed: int | None = None
    undefined: str = ""
    rows: Rows | None = None
    action: str = ""


Texts = Annotated[tuple[str, ...], Field(strict=False)]


class Advice(Record):
    """One answer to one question about what the data can teach, with the rule that fired and what it saw.

    `evidence` are the ids of the findings and the names of the counts that the rule saw, `why` says them with their
    numbers, `action` is a command, or empty, `sources` are arXiv ids or "default". `missing` is what the question also
    takes: where it is not empty, that much of the answer is not known.
    """

    question: str
    answer: str
    rule: str
    why: str = ""
    evidence: Texts = ()
    action: str = ""
    sources: Texts = ()
    missing: Texts = ()


class Exchange(Record):
    """One generated answer: who was asked what, how it was sampled, and what came back.

    `ids` are the very tokens that were sampled, the end token included; their text may tokenise otherwise.
    """

    prompt: Messages
    response: str
    model: str
    seed: int
    temperature: float
    tokens: int
    finished: bool
    logp: float | None = None
    ids: Annotated[tuple[int, ...], Field(strict=False)] = ()

    @property
    def prompt_id(self) -> str:
        """Hash of the messages."""
        return content_id([m.template_form() for m in self.prompt])
