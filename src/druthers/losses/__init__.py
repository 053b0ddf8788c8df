"""Losses of preferences: one pure function per equation, and a dictionary of them bound to their settings.

`(2, B)` log-probabilities in, `(B,)` losses out; the objective of a step is `sum(w l) / sum(w)` over all of its pairs.
`LOSSES[name](**knobs)` gives a `Loss`; docs/losses.md says when to use which.
"""

from __future__ import annotations

from druthers.losses.catalogue import LOSSES
from druthers.losses.paired import ipo, sigmoid
from druthers.losses.terms import Loss, Need, State, Terms, logratios

__all__ = ["LOSSES", "Loss", "Need", "State", "Terms", "ipo", "logratios", "sigmoid"]
