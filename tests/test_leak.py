"""Responses that stand on both sides are found with their rows, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.blocks import BlockTokenizer
from druthers.curate.facts import Facts, facts
from druthers.curate.filters import RARE
from druthers.curate.quality.leak import leaking, quoted
from druthers.records import Pair, assistant, user
from tests import tiny
from tests.test_filters import curated, text

TOKENIZER = BlockTokenizer(tiny.tokenizer(), max_prompt=4000, max_response=4000)
NONE = np.zeros(0, dtype=np.uint64)


def known(pairs: list[Pair]) -> Facts:
    return facts(pairs, TOKENIZER.tokenize(pairs), seed=0, form=NONE)


def pair(number: int, chosen: str, rejected: str) -> Pair:
    return Pair(prompt=user(f"question {number}"), chosen=assistant(chosen), rejected=assistant(rejected))


def found(heldout: list[Pair], train: list[Pair]) -> list[list[int]]:
    """Places of held-out pairs, and of training pairs behind them."""
    held = np.arange(len(heldout) + len(train)) < len(heldout)
    return quoted(known([*heldout, *train]), train=~held, heldout=held).tolist()


def test_a_response_is_found_whichever_side_it_is_on_however_it_is_spelt_and_where_it_is_part_of_another() -> None:
    draw = random.Random(0)
    long = [text(draw, 200) for _ in range(4)]
    held = [pair(i, each, text(draw, 50)) for i, each in enumerate(long)]
    train = [
        pair(10, long[0].upper() + "!", text(draw, 30)),
        pair(11, text(draw, 30), long[1]),
        pair(12, f"{text(draw, 60)} {long[2]} {text(draw, 60)}", text(draw, 30)),
        pair(13, text(draw, 200), text(draw, 200)),
    ]
    assert found(held, train) == [[0, 4], [1, 5], [2, 6]]


def test_short_answers_and_those_that_many_prompts_have_do_not_count() -> None:
    draw = random.Random(1)
    short, long = "Yes, of course it is, and it always was so.", text(draw, 60)
    assert found([pair(0, short, "No.")], [pair(1, short, "No.")]) == []
    few, many = ([pair(i + 1, long, text(draw, 20)) for i in range(count)] for count in (RARE, RARE + 1))
    assert found([pair(0, long, "No.")], few) == [[0, 1]]
    assert found([pair(0, long, "No.")], many) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20))
def test_it_is_what_comparing_all_whole_responses_gives(seed: int, held: int, trained: int) -> None:
    draw = random.Random(seed)
    answers = [text(draw, draw.choice((5, 14, 18))) for _ in range(6)]
    made = [pair(i, *draw.sample(answers, 2)) for i in range(held + trained)]
    both = [{one.chosen[0].content, one.rejected[0].content} for one in made]
    rare = {a for a in answers if len(a.split()) >= 13 and sum(a in texts for texts in both[held:]) <= RARE}
    wanted = [i for i in range(held) if any(a in both[i] and any(a in t for t in both[held:]) for a in rare)]
    assert [one for one, _ in found(made[:held], made[held:])] == wanted


def test_the_finding_counts_held_out_pairs_and_warns_where_they_are_many() -> None:
    draw = random.Random(2)
    held = [pair(i, text(draw, 40), text(draw, 40)) for i in range(100)]
    train = [pair(200 + i, one.chosen[0].content, "no") for i, one in enumerate(held[:20])]
    mask = np.arange(120) < 100
    about = known([*held, *train])
    told = leaking(quoted(about, train=~mask, heldout=mask), heldout=mask, rows=None)
    assert (told.status, told.value, told.n) == ("warn", 0.2, 100)
    assert (told.low, told.high, told.uncertain) == (0.2, 0.2, False)
    none = leaking(np.zeros((0, 2), dtype=np.int64), heldout=mask, rows=None)
    assert (none.status, none.value, none.uncertain, none.action) == ("pass", 0, False, "")
    assert told.text.startswith("20 of 100 held-out pairs have a response")


def test_curation_tells_it_with_the_rows_of_both_sides(tmp_path: Path) -> None:
    draw = random.Random(3)

    def row() -> dict[str, Any]:
        return {"prompt": text(draw, 20), "chosen": text(draw, 30), "rejected": text(draw, 30)}

    train, held = [row() for _ in range(30)], [row() for _ in range(10)]
    held[4]["rejected"] = train[7]["chosen"]
    curated(tmp_path, train, held)
    quality = json.loads((tmp_path / "data" / "quality.json").read_text("utf-8"))
    (told,) = [one for one in quality["findings"] if one["id"] == "D1.response_leak"]
    assert (told["value"], told["rows"]["count"]) == (0.1, 1)
    (line,) = (tmp_path / "data" / told["rows"]["file"]).read_text("utf-8").splitlines()
    assert json.loads(line)["where"] == f"{tmp_path}/heldout.jsonl:5"
    assert json.loads(line)["why"] == f"a response of it is trained on in {tmp_path}/train.jsonl:8"
