r"""Rows that say themselves what is chosen and what is rejected: TRL, HH transcripts, OpenAI, SageMaker, our own.

The TRL forms (strings or message lists, prompt explicit or inside both sides) follow the dataset page of TRL; the HH
form is `"\n\nHuman: ...\n\nAssistant: ..."`, of which only the last answer is the response. Each reader gives the
fields of a `Pair` before they are checked, and whether turns of one speaker were joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from druthers.curate.importers.columns import Row, brief, fields, items, required
from druthers.curate.importers.faults import RowFault
from druthers.curate.importers.talk import (
    Talk,
    check_json,
    join,
    messages,
    parts,
    split_last,
    tools,
    transcript,
    user,
    with_system,
)
from druthers.records import Pair
from druthers.storage import explain

SIDES = ("chosen", "rejected")
FIELDS = {name: name for name in ("p", "margin", "weight", "group", "source", "criterion", "tools")} | {
    "m": "margin",
    "w": "weight",
}
Fields = dict[str, Any]


def pair(found: Fields) -> Pair:
    """The fields as a pair; RowFault says what is wrong with them."""
    try:
        made = Pair.model_validate(found)
    except ValidationError as error:
        raise RowFault(_reason(error, found), explain(error, Pair)) from None
    if _spaced(made):
        why = "chosen and rejected differ in the white space around them alone, so the pair teaches nothing; remove it"
        raise RowFault("same_response", why)
    return made


def from_druthers(row: Row) -> tuple[Fields, bool]:
    """Our own lines stand as they are."""
    for side in ("prompt", *SIDES):
        for message in row.get(side) or () if isinstance(row.get(side), list) else ():
            if isinstance(message, dict) and message.get("tool_calls"):
                check_json(f"{side}.tool_calls", message["tool_calls"])
    if row.get("tools"):
        check_json("tools", row["tools"])
    return dict(row), False


def from_trl(row: Row) -> tuple[Fields, bool]:
    """TRL rows: explicit or implicit prompt, as strings or message lists."""
    found = _extras(row)
    sides = [required(row, side) for side in SIDES]
    prompt = row.get("prompt")
    if all(isinstance(side, str) for side in sides):
        return found | _from_strings(prompt, *sides, system=row.get("system")), False
    if not all(isinstance(side, list) for side in sides):
        raise RowFault("malformed", "chosen and rejected must both be texts or both be lists of messages")
    chosen, rejected = (messages(name, side) for name, side in zip(SIDES, sides, strict=True))
    if isinstance(prompt, list) or (isinstance(prompt, str) and _answers(chosen) and _answers(rejected)):
        asked = user(prompt) if isinstance(prompt, str) else messages("prompt", prompt)
        return found | {"prompt": with_system(asked, row.get("system")), "chosen": chosen, "rejected": rejected}, False
    return found | _from_talks(chosen, rejected, prompt, system=row.get("system")), False


def from_hh(row: Row) -> tuple[Fields, bool]:
    """HH transcripts; turns of one speaker in a row are joined in the prompt and refused in the answer."""
    found = _extras(row)
    opening = row.get("prompt") or ""
    if not isinstance(opening, str):
        raise RowFault("malformed", "prompt: must be a text in a row of HH transcripts")
    sides = {side: transcript(side, opening + _transcript_text(row, side)) for side in SIDES}
    prompts = {side: turns[:-1] for side, turns in sides.items()}
    if prompts["chosen"] != prompts["rejected"]:
        raise RowFault("prompt_mismatch", "chosen and rejected do not share the turns before the last answer")
    answers = {side: [turns[-1]] for side, turns in sides.items()}
    prompt = join(prompts["chosen"])
    joined = len(prompt) < len(prompts["chosen"])
    return found | {"prompt": with_system(prompt, row.get("system"))} | answers, joined


OPENAI = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


def from_openai(row: Row) -> tuple[Fields, bool]:
    """Rows of the preference fine-tuning of OpenAI and those who follow it: input, preferred and non-preferred output.

    The developer's turn is a system turn; an output may be one message or a list of them.
    """
    given = fields("input", required(row, "input"))
    for name in given:
        if name not in ("messages", "tools", "parallel_tool_calls"):
            raise RowFault("malformed", f"input.{name}: unknown field; known are messages, tools, parallel_tool_calls")
    talk = messages("input.messages", items("input.messages", given.get("messages")))
    prompt = [m | {"role": "system"} if m.get("role") == "developer" else m for m in talk]
    sides = {side: _output(name, required(row, name)) for side, name in OPENAI.items()}
    return _extras(row) | {"prompt": prompt, "tools": tools(given.get("tools"))} | sides, False


def _output(name: str, value: object) -> Talk:
    return messages(name, [value] if isinstance(value, dict) else items(name, value))


SCHEMA = "bedrock-conversation-2024"
"""The version of the shape of Converse that is read here; it may be left out."""
LABELS = {"preferred": "chosen", "non-preferred": "rejected"}


def from_sagemaker(row: Row) -> tuple[Fields, bool]:
    """SageMaker's managed DPO in the shape of Converse: the last turn holds two candidates with a label each."""
    if row.get("schemaVersion") not in (None, SCHEMA):
        why = f"must be {SCHEMA!r}, the version that is known here, but it is {brief(row['schemaVersion'])}"
        raise RowFault("unsupported", f"schemaVersion: {why}; rewrite the rows by it, or leave the field out")
    talk = items("messages", required(row, "messages"))
    if not talk or not isinstance(talk[-1], dict) or "candidates" not in talk[-1]:
        raise RowFault("malformed", "messages: the last one must hold 'candidates'")
    if any("candidates" in turn for turn in talk[:-1] if isinstance(turn, dict)):
        raise RowFault("malformed", "messages: candidates may stand in the last one only")
    given = items("system", row["system"]) if row.get("system") is not None else []
    system = [{"role": "system", "content": parts("system", given)}] if given else []
    prompt = [_converse(f"messages.{i}", turn) for i, turn in enumerate(talk[:-1])]
    return {"prompt": system + prompt} | _candidates(items("messages.candidates", talk[-1]["candidates"])), False


def _converse(name: str, turn: object) -> dict[str, Any]:
    given = fields(name, turn)
    content = parts(f"{name}.content", items(f"{name}.content", given.get("content")))
    return {"role": given.get("role"), "content": content}


def _candidates(given: list[Any]) -> Fields:
    sides: dict[str, Talk] = {}
    for i, one in enumerate(given):
        name = f"messages.candidates.{i}"
        candidate = fields(name, one)
        label = candidate.get("preferenceLabel")
        side = LABELS.get(label) if isinstance(label, str) else None
        if side is None:
            why = f"must be 'preferred' or 'non-preferred', but it is {brief(label)}"
            raise RowFault("malformed", f"{name}.preferenceLabel: {why}")
        if side in sides:
            raise RowFault("malformed", f"{name}.preferenceLabel: a second candidate is {label!r}; give one of each")
        content = parts(f"{name}.content", items(f"{name}.content", candidate.get("content")))
        sides[side] = [{"role": "assistant", "content": content}]
    if len(sides) < 2:
        raise RowFault("malformed", "messages.candidates: one must be 'preferred' and one 'non-preferred'")
    return {**sides}


# ---------------------------------------------------------------- columns


def _extras(row: Row) -> Fields:
    """The optional columns under our names; a null is a column that is not there."""
    given = {name: value for name, value in row.items() if name in FIELDS and value is not None}
    if not given:
        return {}
    for short in ("m", "w"):
        if short in given and FIELDS[short] in given:
            raise RowFault("malformed", f"{short}: stands beside {FIELDS[short]!r}, which means the same; keep one")
    found = {FIELDS[name]: value for name, value in given.items()}
    if "tools" in found:
        found["tools"] = tools(found["tools"])
    return found


def _transcript_text(row: Row, name: str) -> str:
    value = required(row, name)
    if not isinstance(value, str):
        raise RowFault("malformed", f"{name}: must be a transcript (a text with 'Human:' and 'Assistant:' turns)")
    return value


# ---------------------------------------------------------------- prompts inside the responses


def _from_strings(prompt: Any, chosen: str, rejected: str, *, system: object) -> Fields:
    if prompt is None:
        raise RowFault(
            "malformed",
            "prompt: missing field, and chosen and rejected are plain texts in which nothing marks where it ends; "
            "give a 'prompt', or message lists, or HH transcripts that begin with 'Human:'",
        )
    asked = user(prompt) if isinstance(prompt, str) else prompt
    if isinstance(asked, list):
        asked = with_system(messages("prompt", asked), system)
    return {"prompt": asked} | {
        side: [{"role": "assistant", "content": content}]
        for side, content in zip(SIDES, (chosen, rejected), strict=True)
    }


def _from_talks(chosen: Talk, rejected: Talk, prompt: Any, *, system: object) -> Fields:
    """Whole conversations on both sides, split at the last group of assistant (and tool) messages."""
    asked, good = split_last(chosen)
    asked_too, bad = split_last(rejected)
    if asked != asked_too:
        raise RowFault("prompt_mismatch", "chosen and rejected do not share the messages before the last answer")
    if not asked:
        raise RowFault(
            "malformed", "prompt: missing field, and chosen and rejected hold no user message to take it from"
        )
    if prompt is not None and prompt not in [message.get("content") for message in asked]:
        raise RowFault("prompt_mismatch", "prompt is not among the user messages of chosen and rejected")
    return {"prompt": with_system(asked, system), "chosen": good, "rejected": bad}


def _answers(talk: Talk) -> bool:
    return bool(talk) and talk[0].get("role") == "assistant"


# ---------------------------------------------------------------- reasons


def _reason(error: ValidationError, found: Row) -> str:
    """The code of a fault found by `Pair` itself."""
    faults = error.errors()
    if any(fault["type"] != "value_error" for fault in faults):
        return "malformed"
    place = faults[0]["loc"]
    if not place:
        return "same_response" if found.get("chosen") == found.get("rejected") else "malformed"
    return "empty_response" if place[0] in SIDES and _blank(found[str(place[0])]) else "bad_roles"


def _spaced(made: Pair) -> bool:
    """Whether both sides are the same but for white space before and behind their messages."""
    if made.chosen[-1].content.strip() != made.rejected[-1].content.strip():
        return False
    sides = [
        [m.template_form() | {"content": m.content.strip()} for m in side] for side in (made.chosen, made.rejected)
    ]
    return sides[0] == sides[1]


def _blank(talk: Sequence[Mapping[str, Any]]) -> bool:
    last = talk[-1]
    return last.get("role") == "assistant" and not str(last.get("content", "")).strip()
