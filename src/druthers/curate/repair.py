"""What is done about a pair that is as it should not be: personal data in it, or a filter that is wrong about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from druthers import storage
from druthers.curate import pii
from druthers.curate.facts import ID
from druthers.curate.importers import RowFault
from druthers.records import InputError, Message, Pair

SIDES = ("prompt", "chosen", "rejected")
KEPT = ("duplicate", "near_duplicate", "contradiction", "small_margin", "personal")
"""Reasons for which a pair that is set aside can be put back as it is."""
WHY_NOT = {
    "leak": "its prompt is held out, so a model that is trained on it would be measured on what it has seen",
    "held_before": "its prompt was held out before, so a model that is trained on it would be measured on what it has "
    "seen; data.held_before says by which files",
    "between_sides": "its prompt means nearly what one of the other side means, so it would be trained on and measured "
    "at once",
}
"""Why others cannot be, where looking at them changes nothing."""


@dataclass(frozen=True)
class Back:
    """Pairs that are put back, by id: all of them, and those whose personal data stays as it is."""

    id_K: NDArray[np.bytes_]
    personal: frozenset[str]


def kinds_in(pair: Pair) -> Counter[str]:
    """The kinds of personal data and secrets in the texts of a pair, with how many there are of each.

    >>> from druthers.records import assistant, user
    >>> kinds_in(Pair(prompt=user("I am ann@example.org."), chosen=assistant("Hi!"), rejected=assistant("What?")))
    Counter({'mail': 1})
    """
    texts = (message.content for side in SIDES for message in getattr(pair, side))
    return Counter(span.kind for text in texts for span in pii.spans(text))


def redacted(pair: Pair) -> Pair:
    """The pair with the kind of each span of personal data in its place; RowFault where no pair is left of it.

    Arguments of tool calls stay as they are.
    """

    def cleared(talk: Iterable[Message]) -> list[Message]:
        return [message.model_copy(update={"content": pii.redact(message.content)}) for message in talk]

    sides = {side: cleared(getattr(pair, side)) for side in SIDES}
    try:
        return Pair.model_validate(dict(pair) | sides | {"id": ""})
    except ValidationError:
        raise RowFault("same_response", "chosen equals rejected once the personal data in them is redacted") from None


def put_back(paths: Iterable[str]) -> Back:
    """The pairs on some lines of rejected.jsonl, which no filter sets aside again.

    Raises InputError for a line that is none, whose pair would stand on both sides, or whose reason says that the row
    is no pair.
    """
    ids: dict[str, set[str]] = {reason: set() for reason in KEPT}
    for path in paths:
        for where, line in storage.rows(path):
            row, reason = line.get("row"), line.get("reason")
            if isinstance(reason, str) and reason in WHY_NOT:
                raise InputError(f"{where}: a pair with the reason {reason!r} cannot be put back: {WHY_NOT[reason]}")
            if reason not in KEPT or not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise InputError(
                    f"{where}: only lines of rejected.jsonl with the reasons {', '.join(KEPT)} can be put back, not "
                    f"{reason!r}; correct such a row and give it as another source"
                )
            ids[reason].add(row["id"])
    every = sorted(name.encode() for name in set().union(*ids.values()))
    return Back(np.array(every, dtype=ID), frozenset(ids["personal"]))
