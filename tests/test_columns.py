"""Facts come back from their files as they went in, lot by lot."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers.blocks import BlockTokenizer
from druthers.curate.columns import Columns
from druthers.curate.facts import Facts, facts, form_of, nothing
from druthers.curate.nearness import Sets
from druthers.records import Pair, assistant, user
from tests import tiny

TOKENIZER = BlockTokenizer(tiny.tokenizer(), max_prompt=4000, max_response=4000)
LONG = " ".join(f"word{i}" for i in range(40))


def known(*prompts: str) -> Facts:
    pairs = [Pair(prompt=user(text), chosen=assistant(f"{text} yes"), rejected=assistant("no")) for text in prompts]
    return facts(pairs, TOKENIZER.tokenize(pairs), seed=0, form=form_of([pair.prompt for pair in pairs]))


def arrays(found: Facts) -> list[NDArray[Any]]:
    values = [getattr(found, each.name) for each in fields(Facts)]
    return [array for v in values for array in ((v.hash_S, v.at) if isinstance(v, Sets) else (v,))]


def test_lots_come_back_as_one_with_their_types_and_shapes(tmp_path: Path) -> None:
    held = Columns(tmp_path)
    lots = [known("a", LONG), known(), known(f"{LONG} more", "ü")]
    for lot in lots:
        held.add(lot)
    whole = held.facts()
    assert len(whole) == held.count == 4
    for found, parts in zip(arrays(whole), zip(*map(arrays, lots), strict=True), strict=True):
        assert found.dtype == parts[0].dtype
        if found.dtype != np.int64 or len(found) == 4:  # all but where sets begin
            assert np.array_equal(found, np.concatenate(parts), equal_nan=found.dtype.kind == "f")
    for i, text in enumerate(("a", LONG, f"{LONG} more", "ü")):
        assert whole.passages.of(i).tolist() == known(text).passages.of(0).tolist()
    assert len(whole.passages.of(1)) > 0


def test_nothing_that_was_added_is_nothing(tmp_path: Path) -> None:
    held = Columns(tmp_path)
    held.add(nothing())
    assert len(held.facts()) == 0
    assert len(held.facts().passages) == 0


def test_pairs_without_passages_have_empty_sets(tmp_path: Path) -> None:
    held = Columns(tmp_path)
    held.add(known("a", "b"))
    assert [held.facts().passages.of(i).tolist() for i in range(2)] == [[], []]


def test_what_was_read_cannot_be_written_to(tmp_path: Path) -> None:
    held = Columns(tmp_path)
    held.add(known("a"))
    assert not held.facts().id_B.flags.writeable
