"""What is done about a pair that is as it should not be: personal data in it, or a filter that is wrong about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from druthers import storage
from druthers.curate import pii
from druthers.curate.facts import ID
from druthers.curate.importers import RowFault
from druthers.records import InputError, Message, Pair

SIDES = ("prompt", "chosen", "rejected")
KEPT = ("duplicate", "near_duplicate", "contradiction", "small_margin")
"""Reasons for which a pair that is set aside can be put back as it is."""


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


def put_back(paths: Iterable[str]) -> NDArray[np.bytes_]:
    """The ids of the pairs on some lines of rejected.jsonl, which no filter sets aside again.

    Raises InputError for a line that is none, or whose reason says that the row is no pair.
    """
    ids = []
    for path in paths:
        for where, line in storage.rows(path):
            row, reason = line.get("row"), line.get("reason")
            if reason not in KEPT or not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise InputError(
                    f"{where}: only lines of rejected.jsonl with the reasons {', '.join(KEPT)} can be put back, not "
                    f"{reason!r}; correct such a row and give it as another source"
                )
            ids.append(row["id"].encode())
    return np.array(sorted(set(ids)), dtype=ID)
