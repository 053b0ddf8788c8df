"""What people say of responses, as `Opinion`s: words and numbers for choices, thumbs, ratings and ranks."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from druthers.curate.importers.columns import Row, brief, items, member, named, number, plain
from druthers.curate.importers.faults import RowFault
from druthers.curate.importers.talk import Talk, answer, tools
from druthers.records import Candidates
from druthers.storage import explain

Said = dict[str, Any]
"""The fields of an `Opinion` before they are checked."""

STEMS = ("response", "answer", "completion", "output", "reply", "generation", "candidate", "option", "text", "model")
SIDE = re.compile(
    rf"(?:(?:{'|'.join(STEMS)}|assistant|summary)_?)?(a|b|1|2|left|right|first|second)(?:_(?:is_)?better)?"
)
FIRST = frozenset({"a", "1", "left", "first"})
TIES = {
    **dict.fromkeys(("tie", "equal", "same", "draw", "both", "neutral", "no_preference", "about_the_same"), ""),
    **dict.fromkeys(("both_good", "tie_both_good", "tie_bothgood", "bothgood"), "both_good"),
    **dict.fromkeys(("both_bad", "tie_both_bad", "tie_bothbad", "bothbad", "neither"), "both_bad"),
}
NOTHING = frozenset(
    (
        "",
        "none",
        "null",
        "na",
        "n_a",
        "skip",
        "skipped",
        "cant_judge",
        "can_t_judge",
        "cannot_judge",
        "cant_choose",
        "can_t_choose",
        "unsure",
        "not_sure",
        "unknown",
        "invalid",
    )
)
STRENGTHS = {
    **dict.fromkeys(("slight", "slightly", "slightly_better", "weak"), 1.0),
    **dict.fromkeys(("clear", "clearly", "clearly_better", "better", "moderate"), 2.0),
    **dict.fromkeys(("much", "much_better", "strong", "strongly", "significantly_better"), 3.0),
}
PLAIN = 2.0
"""The strength of a choice that says none."""
UP = frozenset(
    ("1", "true", "yes", "y", "up", "thumbs_up", "thumb_up", "good", "like", "liked", "positive", "desirable")
)
DOWN = frozenset(
    (
        "0",
        "_1",
        "false",
        "no",
        "n",
        "down",
        "thumbs_down",
        "thumb_down",
        "bad",
        "dislike",
        "disliked",
        "negative",
        "undesirable",
    )
)
THUMBS = {"👍": 1.0, "👎": 0.0}


def word(value: object) -> str:
    """A label as words are compared: "Both bad!" and "both-bad" are one.

    >>> word("Both bad!"), word(1), word(2.0), word(True)
    ('both_bad', '1', '2', 'true')
    """
    return re.sub(r"[^0-9a-z]+", "_", plain(value).lower().replace("'", "")).rstrip("_") if value is not None else ""


# ---------------------------------------------------------------- choices between two


def choice(name: str, value: object, *, strength: object = None) -> Said | None:
    """Which of two is better, in words; None where the judge would not say.

    >>> choice("winner", "B", strength=3)
    {'scale': 'choice', 'worth': (0.0, 3.0)}
    >>> choice("winner", "tie (bothbad)"), choice("winner", "can't judge")
    ({'scale': 'choice', 'worth': (0.0, 0.0), 'tie': 'both_bad'}, None)
    """
    said = word(value).lstrip("_")
    if said in NOTHING:
        return None
    if said in TIES:
        return tied(TIES[said])
    found = SIDE.fullmatch(said)
    if not found:
        raise RowFault("malformed", f"{name}: must be a, b, tie, both_good or both_bad, but it is {brief(value)}")
    return won(steps("strength", strength), first=found[1] in FIRST)


def signed(name: str, value: object, *, toward: str = "a", tie: object = None) -> Said | None:
    """A choice on a scale from -3 to 3, on which positive numbers are for `toward`; or in words.

    >>> signed("answer", 1), signed("overall_preference", -2, toward="b")
    ({'scale': 'choice', 'worth': (1.0, 0.0)}, {'scale': 'choice', 'worth': (2.0, 0.0)})
    """
    try:
        step = number(name, value)
    except RowFault:
        return choice(name, value)
    if step is None:
        return None
    if step not in (-3, -2, -1, 0, 1, 2, 3):
        raise RowFault("malformed", f"{name}: must be a whole number from -3 to 3, but it is {brief(value)}")
    return won(abs(step), first=(step > 0) == (toward == "a")) if step else tied(TIES.get(word(tie), ""))


def won(strength: float, *, first: bool) -> Said:
    """A choice for one side."""
    return {"scale": "choice", "worth": (strength, 0.0) if first else (0.0, strength)}


def tied(kind: str) -> Said:
    """A choice for neither."""
    return {"scale": "choice", "worth": (0.0, 0.0)} | ({"tie": kind} if kind else {})


def steps(name: str, value: object) -> float:
    """How much better, in steps from 1 to 3; 2 where it is not said."""
    if value is None or word(value) in NOTHING or value == 0:
        return PLAIN
    found = STRENGTHS.get(word(value)) or number(name, value)
    if found not in (1, 2, 3):
        raise RowFault("malformed", f"{name}: must be 1 (slightly), 2 (clearly) or 3 (much), but it is {brief(value)}")
    return float(found or PLAIN)


# ---------------------------------------------------------------- thumbs, ratings, ranks


def thumb(name: str, value: object) -> float | None:
    """1.0 for a thumb up, 0.0 for one down, None for none.

    >>> thumb("label", True), thumb("feedback", "👎"), thumb("vote", -1), thumb("vote", None)
    (1.0, 0.0, 0.0, None)
    """
    if isinstance(value, str) and (found := THUMBS.get(value.strip()[:1])) is not None:
        return found
    said = word(value)
    if said in UP or said in DOWN:
        return float(said in UP)
    if said in NOTHING or said == "neutral":
        return None
    raise RowFault("malformed", f"{name}: must be true or false, up or down, 1 or 0, but it is {brief(value)}")


def ratings(name: str, given: Sequence[object], *, of: int) -> Said | None:
    """One number a response; None where nobody gave one."""
    return _worth("rating", name, given, of=of, sign=1.0)


def ranks(name: str, given: Sequence[object], *, of: int) -> Said | None:
    """The rank of each response, the least the best; equal ranks tie.

    >>> ranks("ranks", [2, 1, 1], of=3)
    {'scale': 'rank', 'worth': (-2.0, -1.0, -1.0)}
    """
    return _worth("rank", name, given, of=of, sign=-1.0)


def _worth(scale: str, name: str, given: Sequence[object], *, of: int, sign: float) -> Said | None:
    if len(given) != of:
        raise RowFault("malformed", f"{name}: has {len(given)} numbers for {of} responses; give one each, or null")
    found = [number(f"{name}.{i}", value) for i, value in enumerate(given)]
    worth = tuple(None if value is None else sign * value for value in found)
    return None if all(value is None for value in worth) else {"scale": scale, "worth": worth}


def order(name: str, given: Sequence[object], *, names: Sequence[str]) -> Said:
    """Names of responses from the best to the worst, groups of them where they tie; those not named are not judged.

    >>> order("order", ["c", ["a", "b"]], names=["a", "b", "c", "d"])["worth"]
    (-2.0, -2.0, -1.0, None)
    """
    worth: list[float | None] = [None] * len(names)
    for rank, group in enumerate(given, 1):
        for each in group if isinstance(group, list) else [group]:
            said = plain(each)
            if said not in names or worth[names.index(said)] is not None:
                why = "stands there twice" if said in names else f"is none of {', '.join(names)}"
                raise RowFault("malformed", f"{name}: {brief(each)} {why}")
            worth[names.index(said)] = -float(rank)
    if all(value is None for value in worth):
        raise RowFault("no_opinion", f"{name}: names no response")
    return {"scale": "rank", "worth": tuple(worth)}


# ---------------------------------------------------------------- responses and the item


def spread(row: Row, stems: Sequence[str]) -> list[tuple[str, object]]:
    """Columns of one family in their order: response_a, response_b, ... or response1, response2, ...

    >>> spread({"answer_2": "No.", "answer_1": "Yes.", "p": 1}, ("answer",))
    [('answer_1', 'Yes.'), ('answer_2', 'No.')]
    """
    return [(name, row[name]) for name in _family(tuple(row), tuple(stems))]


@functools.lru_cache(1 << 10)
def _family(names: tuple[str, ...], stems: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of one family; the rows of a source have the same names again and again."""
    for stem in stems:
        places = [(found[1], name) for name in names if (found := member(name, (stem,)))]
        if len(places) > 1:
            return tuple(name for _, name in sorted(places))
    return ()


def answers(row: Row, *, least: int = 2) -> list[Said]:
    """The responses of a row, as a list or in columns, with their models where these are named."""
    if row.get("responses") is not None:
        given = [(f"responses.{i}", each) for i, each in enumerate(items("responses", row["responses"]))]
    else:
        given = spread(row, STEMS)
    if len(given) < least:
        raise RowFault(
            "malformed", f"responses: {len(given)} found, but a row needs {least}; give responses, or response_a, …"
        )
    found = [{"content": answer(name, _content(value))} for name, value in given]
    return [one | {"source": source} if source else one for one, source in zip(found, _models(row, given), strict=True)]


CONTENTS = ("content", "response", "text", "answer", "completion", "output")


def _content(value: object) -> object:
    """The text of a response that is an object; a message of the assistant stays one."""
    if isinstance(value, dict) and "role" not in value:
        return next((value[name] for name in CONTENTS if value.get(name) is not None), None)
    return value


def _models(row: Row, given: Sequence[tuple[str, object]]) -> list[str]:
    """Whose each response is; "" where it is not said."""
    listed = next((items(name, row[name]) for name in ("models", "sources") if row.get(name) is not None), None)
    if listed is not None and len(listed) != len(given):
        raise RowFault("malformed", f"models: has {len(listed)} names for {len(given)} responses; give one each")
    if listed is None and all(isinstance(value, dict) for _, value in given):
        return [named(value, "model", "source") for _, value in given if isinstance(value, dict)]
    column = [plain(name) for _, name in spread(row, ("model",)) if name is not None]
    named_so = [plain(name) if name is not None else "" for name in listed or ()] or column
    return named_so if len(named_so) == len(given) else [""] * len(given)


def distinct(found: Sequence[Said]) -> Sequence[Said]:
    """Two responses that can be compared: neither is empty, and they differ."""
    for i, one in enumerate(found):
        if not one["content"].strip():
            raise RowFault("empty_response", f"response {i}: is empty; remove the row or write an answer")
    if len(found) == 2 and found[0]["content"].strip() == found[1]["content"].strip():
        raise RowFault("same_text", "both responses are the same text, so the row says nothing; remove it")
    return found


def candidates(row: Row, prompt: Talk, responses: Sequence[Said], opinions: Sequence[Said]) -> Candidates:
    """The item; RowFault where nobody said anything, or something is wrong with it."""
    if not opinions:
        raise RowFault("no_opinion", "nobody judged a response in this row")
    given: Said = {"prompt": prompt, "responses": responses, "opinions": opinions, "group": named(row, "group")}
    if row.get("tools") is not None:
        given["tools"] = tools(row["tools"])
    return build(given)


def build(given: Said) -> Candidates:
    """The fields as `Candidates`; RowFault says what is wrong with them."""
    try:
        return Candidates.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        roles = fault["type"] == "value_error" and fault["loc"][:1] == ("prompt",)
        raise RowFault("bad_roles" if roles else "malformed", explain(error, Candidates)) from None
