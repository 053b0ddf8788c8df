"""What is left out because of other pairs: each with the row that is the cause, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import config, storage
from druthers.blocks import BlockTokenizer
from druthers.curate import CurateSummary, curate, filters
from druthers.curate.facts import Facts, Texts, facts, form_of, texts_in
from druthers.curate.nearness import NEAR, Hashes, candidates
from druthers.records import Pair, assistant, user
from tests import tiny

TOKENIZER = BlockTokenizer(tiny.tokenizer(), max_prompt=4000, max_response=4000)
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "dklmnrst"]


def text(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def changed(draw: random.Random, given_text: str) -> str:
    """The text with a word in another case, a comma, and a word exchanged."""
    words = given_text.split()
    words[draw.randrange(len(words))] = "other"
    words[0] = words[0].upper() + ","
    return "  ".join(words)


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> Pair:
    return Pair(prompt=user(prompt), chosen=assistant(chosen), rejected=assistant(rejected), **more)


def texts(one: Pair) -> Texts:
    return texts_in(storage.encode(one.line()))


def known(pairs: Sequence[Pair]) -> Facts:
    return facts(pairs, TOKENIZER.tokenize(pairs), seed=0, form=form_of([pair.prompt for pair in pairs]))


def near(pairs: Sequence[Pair]) -> filters.Fates:
    found = filters.fates(len(pairs))
    filters.leave_out_near(
        found, known(pairs), lambda i: texts(pairs[i]), least=NEAR, form=form_of([pair.prompt for pair in pairs])
    )
    return found


def test_pairs_of_one_prompt_with_other_responses_are_no_duplicates() -> None:
    draw = random.Random(0)
    prompt, answers = text(draw, 80), [text(draw, 40) for _ in range(4)]
    pairs = [pair(prompt, a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]]
    assert near(pairs).kept_B.all()


def test_each_part_must_be_nearly_the_same() -> None:
    draw = random.Random(1)
    parts = [text(draw, 30) for _ in range(3)]
    copy = [changed(draw, part) for part in parts]
    assert near([pair(*parts), pair(*copy)]).reason_B.tolist() == ["", "near_duplicate"]
    for other in range(3):
        mixed = [text(draw, 30) if i == other else part for i, part in enumerate(copy)]
        assert near([pair(*parts), pair(*mixed)]).kept_B.all()
    assert near([pair(*parts), pair(copy[0], copy[2], copy[1])]).kept_B.all()  # the sides exchanged


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_a_contradiction_takes_all_rows_of_its_two_responses_and_no_other(rows: list[tuple[int, bool]]) -> None:
    pairs = [
        pair(f"question {q}?", *(("a", "b") if way else ("B", " A")), weight=i + 1) for i, (q, way) in enumerate(rows)
    ]
    found = filters.fates(len(pairs))
    filters.leave_out_contradictions(found, known(pairs))
    ways: dict[int, set[bool]] = {}
    for question, way in rows:
        ways.setdefault(question, set()).add(way)
    for (question, way), reason, other in zip(rows, found.reason_B.tolist(), found.other_B.tolist(), strict=True):
        assert reason == ("contradiction" if len(ways[question]) == 2 else "")
        if reason:
            assert rows[other] == (question, not way)


# ---------------------------------------------------------------- prompts


def sides(pairs: Sequence[Pair], share: float = 0.3, form: Hashes | None = None) -> dict[str, bool]:
    """Whether each prompt is held out; the form is theirs where none is given."""
    form = form_of([pair.prompt for pair in pairs]) if form is None else form
    about = facts(pairs, TOKENIZER.tokenize(pairs), seed=0, form=form)
    found = filters.alike(about, lambda i: texts(pairs[i]), least=NEAR, form=form)
    numbers = filters.numbers_of(about, found, filters.leaders_of(found))
    return {p.prompt[0].content: bool(n < share * 2**64) for p, n in zip(pairs, numbers.tolist(), strict=True)}


def families(seed: int, count: int) -> list[Pair]:
    """Prompts, some of which are another one with a word exchanged."""
    draw = random.Random(seed)
    prompts = [text(draw, 25) for _ in range(count)]
    prompts += [changed(draw, prompt) for prompt in prompts for _ in range(draw.randrange(3))]
    draw.shuffle(prompts)
    return [pair(prompt, "yes", "no") for prompt in prompts]


def test_prompts_that_are_alike_land_on_one_side() -> None:
    draw = random.Random(2)
    prompts = [text(draw, 25) for _ in range(300)]
    found = sides([pair(p, "yes", "no") for p in [*prompts, *(changed(draw, p) for p in prompts)]])
    spelt = list(found)
    together = sum(found[a] == found[b] for a, b in zip(spelt[:300], spelt[300:], strict=True))
    assert together >= 297
    assert 0.2 < np.mean(list(found.values())) < 0.4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200))
def test_rows_added_behind_the_others_move_no_prompt(seed: int, cut: int) -> None:
    pairs = families(seed, 60)
    before, after = sides(pairs[:cut]), sides(pairs)
    assert {prompt: after[prompt] for prompt in before} == before


def drawn_from(draw: random.Random, count: int) -> list[Pair]:
    """Prompts made of few passages, few questions and few exchanged words, so that many share some of each."""
    passages, questions = ([text(draw, length) for _ in range(3)] for length in (30, 12))
    made = []
    for _ in range(count):
        parts = [draw.choice(passages), draw.choice(questions)] if draw.random() < 0.6 else [text(draw, 20)]
        parts += [text(draw, draw.choice((0, 3, 40)))]
        prompt = " ".join(parts)
        made.append(pair(changed(draw, prompt) if draw.random() < 0.4 else prompt, "yes", "no"))
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_whatever_is_added_behind_them_no_prompt_changes_its_side(seed: int, before: int, added: int) -> None:
    pairs = drawn_from(random.Random(seed), before + added)
    form = form_of([pair.prompt for pair in pairs[:before]])
    first = sides(pairs[:before], form=form)
    whole = sides(pairs, form=form)
    assert {prompt: whole[prompt] for prompt in first} == first


@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=4, max_size=25), st.integers(2, 25))
def test_texts_that_come_later_take_no_candidates_away(rows: list[list[int]], cut: int) -> None:
    signature_NK = np.array(rows, dtype=np.uint32).reshape(-1, 6)
    whole = {tuple(two) for two in candidates(signature_NK, least=0.3).tolist()}
    for two in candidates(signature_NK[:cut], least=0.3).tolist():
        assert tuple(two) in whole


def test_a_passage_binds_the_first_that_have_it_however_many_follow() -> None:
    draw = random.Random(9)
    passage = text(draw, 40)
    pairs = [pair(f"{passage} {text(draw, 60)}", "yes", "no") for _ in range(filters.RARE + 3)]
    none = np.zeros(0, dtype=np.uint64)
    about = facts(pairs, TOKENIZER.tokenize(pairs), seed=0, form=none)
    edges = filters.copied(about, np.arange(len(pairs)), form=none)
    assert edges.tolist() == [[0, i] for i in range(1, filters.RARE)]


def test_a_conversation_goes_with_the_longer_one_it_begins() -> None:
    draw = random.Random(3)
    begun = [text(draw, 60) for _ in range(200)]
    longer = [f"{turn} {text(draw, 120)}" for turn in begun]
    found = sides([pair(p, "yes", "no") for p in [*begun, *longer]])
    spelt = list(found)
    assert sum(found[a] == found[b] for a, b in zip(spelt[:200], spelt[200:], strict=True)) == 200


def test_a_form_that_many_prompts_share_binds_none_of_them() -> None:
    draw = random.Random(4)
    form = text(draw, 40)
    pairs = [pair(f"{form} {text(draw, 40)}", "yes", "no") for _ in range(50)]
    about = known(pairs)
    form_ = form_of([pair.prompt for pair in pairs])
    assert len(filters.alike(about, lambda i: texts(pairs[i]), least=NEAR, form=form_).edges) == 0


def test_prompts_of_one_long_form_are_told_apart_by_the_rest(tmp_path: Path) -> None:
    draw = random.Random(7)
    form = text(draw, 200)
    rows = [{"prompt": f"{form}\n\n{text(draw, 12)}", "chosen": "good", "rejected": "poor"} for _ in range(200)]
    summary = curated(tmp_path, rows, [])
    assert (summary.kept, summary.rejected) == (200, {})
    assert 5 <= summary.heldout <= 40


def test_short_prompts_of_common_words_are_not_one_for_their_common_answers(tmp_path: Path) -> None:
    asked = [
        f"{verb} {noun} {rest}?" for verb in ("is", "was") for noun in ("it", "this", "that") for rest in WORDS[:60]
    ]
    asked += ["is it?", "was this?", "that was it?"]
    summary = curated(tmp_path, [{"prompt": p, "chosen": "Yes.", "rejected": "No."} for p in asked], [])
    assert (summary.kept, summary.rejected) == (len(asked), {})


# ---------------------------------------------------------------- planted faults

PLANTED = 100


def curated(
    folder: Path, rows: Sequence[dict[str, Any]], heldout: Sequence[dict[str, Any]], **data: Any
) -> CurateSummary:
    for name, some in (("train", rows), ("heldout", heldout)):
        if some:
            (folder / f"{name}.jsonl").write_bytes(b"".join(map(storage.encode, some)))
    given_data = {"pairs": str(folder), "bad_rows": "drop"} | data
    extra = {f"data.{key}": value for key, value in given_data.items()}
    return curate(config.load(extra=extra), out=folder / "data", tokenizer=tiny.tokenizer())


def row(draw: random.Random) -> dict[str, str]:
    return {"prompt": text(draw, 25), "chosen": text(draw, 30), "rejected": text(draw, 30)}


def planted(draw: random.Random) -> tuple[list[tuple[str, dict[str, str]]], list[dict[str, str]]]:
    """Rows, each with the fault planted in it ("" for none), in any order but that copies come last; held-out rows."""
    plain = [row(draw) for _ in range(3000)]
    heldout = [row(draw) for _ in range(200)]
    some = draw.sample(range(len(plain)), 3 * PLANTED)
    lots: list[tuple[str, dict[str, str]]] = [("", each) for each in plain]
    lots += [("duplicate", dict(plain[i])) for i in some[:PLANTED]]
    copied = [plain[i] for i in some[PLANTED : 2 * PLANTED]]
    lots += [("near_duplicate", {key: changed(draw, value) for key, value in each.items()}) for each in copied]
    for i in some[2 * PLANTED :]:
        lots[i] = ("contradiction", plain[i])
        lots.append(("contradiction", plain[i] | {"chosen": plain[i]["rejected"], "rejected": plain[i]["chosen"]}))
    for i in range(PLANTED):
        prompt = heldout[i]["prompt"] if i % 2 else changed(draw, heldout[i]["prompt"])
        lots.append(("leak", row(draw) | {"prompt": prompt}))
    return lots, heldout


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_faults_are_found_and_nothing_else(tmp_path: Path, seed: int) -> None:
    lots, heldout = planted(random.Random(seed))
    summary = curated(tmp_path, [each for _, each in lots], heldout, max_prompt=4000, max_response=4000)
    meant = Counter(fault for fault, _ in lots if fault)
    found: dict[str, set[int]] = {}
    for _, refused in storage.rows(str(tmp_path / "data" / "rejected.jsonl")):
        found.setdefault(refused["reason"], set()).add(int(refused["where"].rpartition(":")[2]) - 1)
    for fault, count in meant.items():
        right = sum(lots[i][0] == fault for i in found[fault])
        assert right / count >= 0.95, fault
        assert right / len(found[fault]) >= 0.95, fault
    assert summary.rows == summary.kept + sum(summary.rejected.values()) == len(lots) + len(heldout)


def test_several_processes_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lots, heldout = planted(random.Random(5))
    for name, alone, run, workers in (("one", 1 << 30, 4 << 20, 1), ("many", 1 << 10, 1 << 16, 2)):
        monkeypatch.setattr("druthers.curate.intake.ALONE", alone)
        monkeypatch.setattr("druthers.curate.reading.RUN", run)
        folder = tmp_path / name
        folder.mkdir()
        put = {"train": [each for _, each in lots], "heldout": heldout}
        for side, some in put.items():
            (folder / f"{side}.jsonl").write_bytes(b"".join(map(storage.encode, some)))
        extra = {"data.pairs": str(folder), "data.bad_rows": "drop"}
        curate(config.load(extra=extra), out=folder / "data", tokenizer=tiny.tokenizer(), workers=workers)
    for name in ("train", "heldout"):
        assert (tmp_path / "one/data" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "many/data" / f"{name}.jsonl"
        ).read_bytes()
    refused = [(tmp_path / name / "data/rejected.jsonl").read_text("utf-8") for name in ("one", "many")]
    assert refused[0].replace("/one/", "/many/") == refused[1]
