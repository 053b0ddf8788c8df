"""Circles of preferences against counting all threes by hand."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers.curate.quality import cycles as room
from druthers.curate.quality.cycles import cycles, findings
from druthers.stats import Interval

ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4), st.sampled_from([1.0, 0.9, 0.5, 0.2])),
    max_size=40,
).map(lambda rows: [row for row in rows if row[1] != row[2]])


def by_hand(rows: list[tuple[int, int, int, float]]) -> tuple[int, int, list[bool]]:
    """Cyclic and complete threes, and which rows lie on a cycle; what is said both ways is no order."""
    ahead: dict[int, set[tuple[int, int]]] = defaultdict(set)
    counts: dict[int, int] = defaultdict(int)
    for prompt, one, other, p in rows:
        counts[prompt] += 1
        if p != 0.5:
            ahead[prompt].add((one, other) if p > 0.5 else (other, one))
    ways = {q: {(a, b) for a, b in said if (b, a) not in said} for q, said in ahead.items() if counts[q] >= 3}
    cyclic, complete, on = 0, 0, set()
    for q, said in ways.items():
        for three in itertools.combinations(range(5), 3):
            within = {(a, b) for a, b in said if a in three and b in three}
            complete += len(within) == 3
            if len(within) == 3 and {a for a, _ in within} == set(three) == {b for _, b in within}:
                cyclic += 1
                on |= {(q, *edge) for edge in within}
    inside = [p != 0.5 and (q, *((a, b) if p > 0.5 else (b, a))) in on for q, a, b, p in rows]
    return cyclic, complete, inside


@pytest.mark.parametrize("cells", [1, 1 << 22])
@given(ROWS)
def test_threes_are_counted_as_by_hand_whatever_the_lot(cells: int, rows: list[tuple[int, int, int, float]]) -> None:
    names = np.array([[7 + a, 7 + b] for _, a, b, _ in rows], dtype=np.uint64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CELLS", cells)
        found = cycles(np.array([q for q, *_ in rows], dtype=np.int64), names, np.array([p for *_, p in rows]))
    assert (found.cyclic, found.complete, found.inside_B.tolist()) == by_hand(rows)


def test_a_share_of_circles_has_an_interval_over_prompts_and_warns() -> None:
    prompts = np.repeat(np.arange(60), 3)
    circle, order = [[1, 2], [2, 3], [3, 1]], [[1, 2], [2, 3], [1, 3]]
    names = np.array([pair for i in range(60) for pair in (circle if i % 2 else order)], dtype=np.uint64)
    found = cycles(prompts, names, np.ones(180))
    assert isinstance(found.share, Interval)
    assert (found.share.value, found.share.n) == (0.5, 60)
    assert 0.37 < found.share.low < 0.5 < found.share.high < 0.63
    (told,) = findings(found, rows=None)
    assert (told.id, told.status) == ("D2.cycles", "warn")
    assert findings(cycles(prompts, names, np.full(180, 0.5)), rows=None) == []
