"""Losses: one pure function per equation, `(2, B)` log-probabilities in, `(B,)` losses out, and the dictionary of them.

* `paired`, `coupled`, `free`, `unpaired`, `lists`, `supervised`: the equations, by what they need.
* `divergences`: transforms that put another f-divergence in place of the reverse KL.
* `weighting`, `mixture`: weights that depend on the policy, and sums of losses.
* `terms`, `catalogue`: what a loss is given, what it is, and all of them by name with their knobs.
"""

from druthers.losses.catalogue import LOSSES
from druthers.losses.mixture import Part, mixed
from druthers.losses.paired import ipo, sigmoid
from druthers.losses.terms import NEEDS, Loss, State, Terms, logratios, weighted_mean

__all__ = ["LOSSES", "NEEDS", "Loss", "Part", "State", "Terms", "ipo", "logratios", "mixed", "sigmoid", "weighted_mean"]
