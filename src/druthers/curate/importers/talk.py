r"""Conversations as other tools write them: message lists, HH transcripts, content in parts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from druthers.curate.importers.columns import Row, brief, loads, text
from druthers.curate.importers.faults import RowFault

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
Talk = list[dict[str, Any]]


def user(content: str) -> Talk:
    """A prompt of one user turn."""
    return [{"role": "user", "content": content}]


def messages(name: str, value: Sequence[Any]) -> Talk:
    """Message dicts without nulls; a message that only calls tools may have no content, and content in parts is joined.

    >>> messages("prompt", [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    found = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise RowFault("malformed", f"{name}.{number}: must be a message with 'role' and 'content'")
        cleaned = {key: item for key, item in message.items() if item is not None}
        if "tool_calls" in cleaned:
            check_json(f"{name}.{number}.tool_calls", cleaned["tool_calls"])
            cleaned = {"content": ""} | cleaned
        if isinstance(cleaned.get("content"), list):
            cleaned["content"] = parts(f"{name}.{number}.content", cleaned["content"])
        found.append(cleaned)
    return found


def parts(name: str, value: Sequence[Any]) -> str:
    """Content written in parts, of which only texts are supported, as one text."""
    texts = []
    for number, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RowFault(
                "unsupported", f"{name}.{number}: must be a part with a 'text'; other content is not trained on"
            )
        texts.append(part["text"])
    return "".join(texts)


def check_json(name: str, value: object) -> None:
    """RowFault for what JSON cannot hold: a Parquet row may have dates, bytes and NaN deep inside tools."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowFault("malformed", f"{name}: cannot be written as JSON: {error}") from None


def tools(value: object) -> object:
    """Tool schemas, also as JSON text, the only way they keep their shape in Parquet; an empty list is none."""
    if isinstance(value, str):
        found = loads(value) if value.strip() else []
        if found is None:
            raise RowFault("malformed", "tools: is a text, but not JSON; give a list of tool schemas")
        value = found
    check_json("tools", value)
    return value or None


def with_system(prompt: Any, system: object) -> Any:
    """A prompt with a system turn before it, where the row has one of its own.

    >>> with_system(user("Hi"), "Be brief.")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """
    if system is None or (isinstance(system, str) and not system.strip()):
        return prompt
    return [{"role": "system", "content": text("system", system)}, *prompt] if isinstance(prompt, list) else prompt


def asked(name: str, row: Row) -> Talk:
    """The prompt in a column: a text, an HH transcript that waits for the assistant, or a list of messages."""
    value = row.get(name)
    if value is None:
        raise RowFault("malformed", f"{name}: missing field; every line needs it")
    if isinstance(value, list):
        found = messages(name, value)
    elif isinstance(value, str):
        found = prompt_of(name, value) if value.lstrip().startswith("Human:") else user(value)
    else:
        raise RowFault("malformed", f"{name}: must be a text or a list of messages, but it is {brief(value)}")
    if found and found[-1].get("role") == "assistant" and not str(found[-1].get("content", "")).strip():
        found = found[:-1]
    whole: Talk = with_system(found, row.get("system"))
    return whole


def prompt_of(name: str, said: str) -> Talk:
    """The turns of an HH transcript up to an answer that is not there yet."""
    return join(transcript(name, said if said.rstrip().endswith("Assistant:") else f"{said}\n\nAssistant:")[:-1])


def transcript(name: str, said: str) -> Talk:
    """The turns of an HH transcript, one leading space taken off each; the last one is the answer."""
    before, *cut = TURN.split(said)
    if before.strip() or not cut:
        raise RowFault("malformed", f"{name}: a transcript must begin with 'Human:'")
    turns = [
        {"role": SPEAKERS[speaker], "content": content.removeprefix(" ")}
        for speaker, content in zip(cut[::2], cut[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise RowFault("bad_roles", f"{name}: the transcript must end with an 'Assistant:' turn")
    if len(turns) > 1 and turns[-2]["role"] == "assistant":
        raise RowFault("bad_roles", f"{name}: the answer falls into two 'Assistant:' turns, so its end is not certain")
    empty = next((i for i, turn in enumerate(turns[:-1]) if not turn["content"].strip()), None)
    if empty is not None:
        raise RowFault("malformed", f"{name}: turn {empty} ({turns[empty]['role']}) is empty")
    return turns


def join(turns: Sequence[dict[str, Any]]) -> Talk:
    """Neighbouring turns of one speaker as one turn, a blank line between them."""
    joined: Talk = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = turn | {"content": f"{joined[-1]['content']}\n\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined


def split_last(talk: Talk) -> tuple[Talk, Talk]:
    """A conversation before and from its last group of assistant (and tool) messages."""
    at = len(talk)
    while at and talk[at - 1].get("role") in ("assistant", "tool"):
        at -= 1
    return talk[:at], talk[at:]


def answer(name: str, value: object) -> str:
    """A response that is rated: one text, or one message of the assistant."""
    if isinstance(value, str):
        return value
    turns = messages(name, [value] if isinstance(value, dict) else value if isinstance(value, list) else [])
    if len(turns) != 1 or turns[0].get("role", "assistant") != "assistant" or turns[0].get("tool_calls"):
        why = "must be a text or one assistant message; responses of several turns are supported as chosen and rejected"
        raise RowFault("unsupported", f"{name}: {why}")
    return text(name, turns[0].get("content"))
