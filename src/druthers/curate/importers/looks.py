"""Which form a row has by its looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from druthers.curate.importers.choices import spread
from druthers.curate.importers.columns import RATING, Row
from druthers.curate.importers.exports import META
from druthers.curate.importers.opinions import CRITERIA, RESPONSES, STEMS, THUMBS, VOTED
from druthers.records import Candidates, Pair

SIDES = ("chosen", "rejected")


def looks(row: Row) -> str:
    """The name of the form, or "" where a row looks like none.

    >>> looks({"history": "Which?", "human_ref_A": "This.", "human_ref_B": "That.", "labels": 1}), looks({"text": "Hi"})
    ('shp', '')
    """
    return next((form for form, fits in LOOKS.items() if fits(row)), "")


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _any(row: Row, names: Any) -> bool:
    return any(row.get(name) is not None for name in names)


def _hh(row: Row) -> bool:
    opening = row.get("prompt", row.get("chosen"))
    return _has(row, *SIDES) and isinstance(opening, str) and opening.lstrip().startswith("Human:")


def _druthers(row: Row) -> bool:
    lists = all(isinstance(row.get(name), list) for name in ("prompt", *SIDES))
    return (
        lists
        and bool(re.fullmatch("[0-9a-f]{24}", str(row.get("id", "0" * 24))))
        and set(row) <= set(Pair.model_fields)
    )


def _candidates(row: Row) -> bool:
    given = row.get("responses")
    own = isinstance(given, list) and all(
        isinstance(one, dict) and "content" in one and "role" not in one for one in given
    )
    return own and isinstance(row.get("prompt"), list) and set(row) <= set(Candidates.model_fields)


def _sagemaker(row: Row) -> bool:
    talk = row.get("messages")
    return isinstance(talk, list) and any(isinstance(turn, dict) and "candidates" in turn for turn in talk)


def _labelstudio(row: Row) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations", row.get("completions")), list)


def _argilla(row: Row) -> bool:
    if isinstance(row.get("fields"), dict):
        return _any(row, ("responses", "suggestions", "_server_id"))
    flat = any(name.endswith((".responses", ".suggestion")) for name in row)
    return flat or ("external_id" in row and any(name.endswith("-suggestion") for name in row))


def _groundtruth(row: Row) -> bool:
    return any(name in row for name in ("source", "source-ref")) and (
        any(name.endswith(META) for name in row) or "responses" in row
    )


def _ultrafeedback(row: Row) -> bool:
    given = row.get("completions")
    return isinstance(given, list) and bool(given) and all(isinstance(one, dict) and "response" in one for one in given)


def _several(row: Row) -> bool:
    listed = any(isinstance(row.get(name), list) for name in ("responses", "generations", "answers"))
    return listed or bool(spread(row, STEMS)) or _has(row, "conversation_a", "conversation_b") or _json_list(row)


def _json_list(row: Row) -> bool:
    given = row.get("responses")
    return isinstance(given, str) and given.lstrip().startswith("[")


def _votes(row: Row) -> bool:
    return _several(row) and _any(row, (*VOTED, "votes", "individual_preference"))


def _ranking(row: Row) -> bool:
    named = ("ratings", "scores", "ranks", "order", "answers")
    return _several(row) and (_any(row, named) or bool(spread(row, ("rating", "score", "rank"))) or _on_them(row))


def _on_them(row: Row) -> bool:
    given = row.get("responses", row.get("generations"))
    return isinstance(given, list) and any(
        isinstance(one, dict) and _any(one, ("rank", "rating", "score")) for one in given
    )


def _unpaired(row: Row) -> bool:
    return (_any(row, RESPONSES) or isinstance(row.get("messages"), list)) and _any(row, THUMBS)


def _ratings(row: Row) -> bool:
    rated = _any(row, ("rating", "score", "overall", *CRITERIA)) or any(name.startswith(RATING) for name in row)
    return _any(row, RESPONSES) and rated


LOOKS: dict[str, Callable[[Row], bool]] = {
    "openai": lambda row: _has(row, "preferred_output", "non_preferred_output"),
    "sagemaker": _sagemaker,
    "hh": _hh,
    "druthers": _druthers,
    "trl": lambda row: _has(row, *SIDES),
    "labelstudio": _labelstudio,
    "argilla": _argilla,
    "shp": lambda row: _has(row, "human_ref_A", "human_ref_B"),
    "ultrafeedback": _ultrafeedback,
    "candidates": _candidates,
    "groundtruth": _groundtruth,
    "votes": _votes,
    "ranking": _ranking,
    "unpaired": _unpaired,
    "ratings": _ratings,
}
"""How each form is known, the most telling first."""
