"""Why a row cannot be used."""

from __future__ import annotations


class RowFault(ValueError):
    """Why a row cannot be used: a short reason code to count by, and a sentence that names the field.

    >>> str(RowFault("malformed", "chosen: missing field")), RowFault("no_opinion", "nobody judged it").reason
    ('chosen: missing field', 'no_opinion')
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason

    def __reduce__(self) -> tuple[type[RowFault], tuple[str, str]]:
        """A fault may cross from one process to another."""
        return RowFault, (self.reason, str(self))
