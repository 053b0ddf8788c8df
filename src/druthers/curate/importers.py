r"""Rows of other tools to `Pair`s: TRL's forms and Anthropic HH transcripts, each fault with a reason code.

`read_pair` is the one door. The TRL forms (strings or message lists, prompt explicit or inside both sides) follow the
dataset page of TRL; the HH form is `"\n\nHuman: ...\n\nAssistant: ..."`, of which only the last answer is the response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from druthers.records import Pair
from druthers.storage import explain, offer

Form = Literal["druthers", "trl", "hh"]
Row = Mapping[str, Any]

SIDES = ("chosen", "rejected")
FIELDS = {name: name for name in ("p", "margin", "weight", "group", "source", "criterion", "tools")} | {
    "m": "margin",
    "w": "weight",
}
IGNORED = (
    *("id", "row_id", "prompt_id", "messages", "score_chosen", "score_rejected"),
    *("chosen_rating", "rejected_rating", "chosen_score", "rejected_score", "chosen_model", "rejected_model"),
)
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class RowFault(ValueError):
    """Why a row cannot be used: a short reason code to count by, and a sentence."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True)
class Imported:
    """A pair out of a row, the columns that were left aside, and whether turns of one speaker were joined."""

    pair: Pair
    ignored: tuple[str, ...] = ()
    joined: bool = False


@dataclass(frozen=True)
class Draft:
    """The fields of a pair before they are checked."""

    fields: dict[str, Any]
    joined: bool = False


def detect(row: Row) -> Form:
    r"""The form of a row by its looks; "trl" when it looks like nothing else.

    >>> detect({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"})
    'hh'
    >>> detect({"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot."})
    'trl'
    """
    opening = row.get("prompt", row.get("chosen"))
    if isinstance(opening, str) and opening.lstrip().startswith("Human:"):
        return "hh"
    lists = all(isinstance(row.get(name), list) for name in ("prompt", *SIDES))
    hashed = re.fullmatch("[0-9a-f]{24}", str(row.get("id", "0" * 24)))
    return "druthers" if lists and hashed and set(row) <= set(Pair.model_fields) else "trl"


def read_pair(row: Row, form: Form) -> Imported:
    """One row as a pair; RowFault says what is wrong with it.

    >>> read_pair({"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot.", "id": 7}, "trl").ignored
    ('id',)
    """
    ignored = () if form == "druthers" else tuple(name for name in row if name in IGNORED)
    draft = READERS[form](row)
    try:
        return Imported(Pair.model_validate(draft.fields), ignored, draft.joined)
    except ValidationError as error:
        raise RowFault(_reason(error, draft.fields), explain(error, Pair)) from None


def from_druthers(row: Row) -> Draft:
    """Our own lines stand as they are."""
    return Draft(dict(row))


def from_trl(row: Row) -> Draft:
    """TRL rows: explicit or implicit prompt, as strings or message lists."""
    fields = _extras(row)
    sides = [_required(row, side) for side in SIDES]
    prompt = row.get("prompt")
    if all(isinstance(side, str) for side in sides):
        return Draft(fields | _from_strings(prompt, *sides))
    if not all(isinstance(side, list) for side in sides):
        raise RowFault("malformed", "chosen and rejected must both be texts or both be lists of messages")
    chosen, rejected = (_messages(name, side) for name, side in zip(SIDES, sides, strict=True))
    if isinstance(prompt, list) or (isinstance(prompt, str) and _answers(chosen) and _answers(rejected)):
        asked = _user(prompt) if isinstance(prompt, str) else _messages("prompt", prompt)
        return Draft(fields | {"prompt": asked, "chosen": chosen, "rejected": rejected})
    return Draft(fields | _from_transcripts(chosen, rejected, prompt))


def from_hh(row: Row) -> Draft:
    """HH transcripts; turns of one speaker in a row are joined in the prompt and refused in the answer."""
    fields = _extras(row)
    opening = row.get("prompt") or ""
    if not isinstance(opening, str):
        raise RowFault("malformed", "prompt: must be a text in a row of HH transcripts")
    sides = {side: _split(side, opening + _text(row, side)) for side in SIDES}
    prompts = {side: turns[:-1] for side, turns in sides.items()}
    if prompts["chosen"] != prompts["rejected"]:
        raise RowFault("prompt_mismatch", "chosen and rejected do not share the turns before the last answer")
    answers = {side: [turns[-1]] for side, turns in sides.items()}
    prompt = _join(prompts["chosen"])
    return Draft(fields | {"prompt": prompt} | answers, joined=len(prompt) < len(prompts["chosen"]))


READERS: dict[Form, Callable[[Row], Draft]] = {"druthers": from_druthers, "trl": from_trl, "hh": from_hh}


# ---------------------------------------------------------------- columns


def _extras(row: Row) -> dict[str, Any]:
    """The optional columns under our names; a null is a column that is not there."""
    known = ("prompt", *SIDES, *FIELDS)
    for name in row:
        if name not in known and name not in IGNORED:
            raise RowFault("malformed", f"{name}: unknown column{offer(name, known)}")
    given = {name: value for name, value in row.items() if name in FIELDS and value is not None}
    for short in ("m", "w"):
        if short in given and FIELDS[short] in given:
            raise RowFault("malformed", f"{short}: stands beside {FIELDS[short]!r}, which means the same; keep one")
    fields = {FIELDS[name]: value for name, value in given.items()}
    if isinstance(fields.get("tools"), str):
        fields["tools"] = _tools(fields["tools"])
    return fields


def _tools(text: str) -> object:
    """Tools written as JSON text, the only way they keep their shape in Parquet."""
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        raise RowFault("malformed", "tools: is a text, but not JSON; give a list of tool schemas") from None


def _required(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise RowFault("malformed", f"{name}: missing field; every line needs it")
    return row[name]


def _text(row: Row, name: str) -> str:
    value = _required(row, name)
    if not isinstance(value, str):
        raise RowFault("malformed", f"{name}: must be a transcript (a text with 'Human:' and 'Assistant:' turns)")
    return value


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Message dicts without nulls; a message that only calls tools may have no content."""
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise RowFault("malformed", f"{name}.{number}: must be a message with 'role' and 'content'")
    cleaned = [{key: item for key, item in message.items() if item is not None} for message in value]
    return [{"content": ""} | message if "tool_calls" in message else message for message in cleaned]


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


# ---------------------------------------------------------------- prompts inside the responses


def _from_strings(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    if prompt is None:
        raise RowFault(
            "malformed",
            "prompt: missing field, and chosen and rejected are plain texts in which nothing marks where it ends; "
            "give a 'prompt', or message lists, or HH transcripts that begin with 'Human:'",
        )
    asked = _user(prompt) if isinstance(prompt, str) else prompt
    return {"prompt": asked} | {
        side: [{"role": "assistant", "content": text}] for side, text in zip(SIDES, (chosen, rejected), strict=True)
    }


def _from_transcripts(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]], prompt: Any) -> dict[str, Any]:
    """Whole conversations on both sides, split at the last group of assistant (and tool) messages."""
    asked, good = _split_last(chosen)
    asked_too, bad = _split_last(rejected)
    if asked != asked_too:
        raise RowFault("prompt_mismatch", "chosen and rejected do not share the messages before the last answer")
    if not asked:
        raise RowFault(
            "malformed", "prompt: missing field, and chosen and rejected hold no user message to take it from"
        )
    if prompt is not None and prompt not in [message.get("content") for message in asked]:
        raise RowFault("prompt_mismatch", "prompt is not among the user messages of chosen and rejected")
    return {"prompt": asked, "chosen": good, "rejected": bad}


def _split_last(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    at = len(messages)
    while at and messages[at - 1].get("role") in ("assistant", "tool"):
        at -= 1
    return messages[:at], messages[at:]


def _answers(messages: list[dict[str, Any]]) -> bool:
    return bool(messages) and messages[0].get("role") == "assistant"


# ---------------------------------------------------------------- HH transcripts


def _split(side: str, transcript: str) -> list[dict[str, Any]]:
    """The turns of a transcript, one leading space taken off each; the last one is the answer."""
    before, *parts = TURN.split(transcript)
    if before.strip() or not parts:
        raise RowFault("malformed", f"{side}: a transcript must begin with 'Human:'")
    turns = [
        {"role": SPEAKERS[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise RowFault("bad_roles", f"{side}: the transcript must end with an 'Assistant:' turn")
    if len(turns) > 1 and turns[-2]["role"] == "assistant":
        raise RowFault("bad_roles", f"{side}: the answer falls into two 'Assistant:' turns, so its end is not certain")
    empty = next((i for i, turn in enumerate(turns[:-1]) if not turn["content"].strip()), None)
    if empty is not None:
        raise RowFault("malformed", f"{side}: turn {empty} ({turns[empty]['role']}) is empty")
    return turns


def _join(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring turns of one speaker as one turn, a blank line between them."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = turn | {"content": f"{joined[-1]['content']}\n\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined


def _reason(error: ValidationError, fields: Row) -> str:
    """The code of a fault found by `Pair` itself."""
    faults = error.errors()
    if any(fault["type"] != "value_error" for fault in faults):
        return "malformed"
    place = faults[0]["loc"]
    if not place:
        return "same_response" if fields.get("chosen") == fields.get("rejected") else "malformed"
    return "empty_response" if place[0] in SIDES and _blank(fields[str(place[0])]) else "bad_roles"


def _blank(messages: Sequence[Mapping[str, Any]]) -> bool:
    last = messages[-1]
    return last.get("role") == "assistant" and not str(last.get("content", "")).strip()
