"""Which pairs share a step and a micro-batch, and how rows are laid out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.attention import Layout
from druthers.batching import Order, Rung, by_prompt, collate, layout_of, plan, step_count
from druthers.tokens import TokenizedPair

LAW = settings(max_examples=30, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32)


@st.composite
def tokenized(draw: st.DrawFn) -> TokenizedPair:
    """A pair of random ids; tokens before the last may be unscored, as tool turns are."""
    ids = st.lists(st.integers(3, 99), min_size=1, max_size=12)
    prompt, chosen, rejected = draw(ids), draw(ids), draw(ids)
    masks = [(*(draw(st.booleans()) for _ in side[1:]), True) for side in (chosen, rejected)]
    grades = [draw(st.floats(0, 1)), draw(st.floats(0, 5)), draw(st.floats(0, 9))]
    return TokenizedPair("", tuple(prompt), tuple(chosen), tuple(rejected), *masks, *grades)


@LAW
@given(st.lists(tokenized(), max_size=25), st.integers(16, 300))
def test_a_plan_covers_every_pair_once_and_keeps_the_budget(pairs: list[TokenizedPair], budget: int) -> None:
    """Padded tokens: two rows a pair, as wide as the longest row. Only a pair alone may be over the budget."""
    groups = plan(pairs, token_budget=budget)
    assert sorted(i for group in groups for i in group) == list(range(len(pairs)))
    for group in groups:
        padded = collate([pairs[i] for i in group], pad_id=2).input_ids_ST.numel()
        assert padded <= budget or len(group) == 1
    longest = [pairs[i].longest for group in groups for i in group]
    assert longest == sorted(longest, reverse=True)


def pairs_of(contrasts: Sequence[int]) -> list[TokenizedPair]:
    """Pairs whose chosen response is longer than the rejected one by so many tokens."""
    sides = [(max(1, 1 + c), max(1, 1 - c)) for c in contrasts]
    return [TokenizedPair("", (1,), (2,) * a, (3,) * b, (True,) * a, (True,) * b) for a, b in sides]


Kind = Literal["shuffled", "stratified"]
KINDS = st.sampled_from(get_args(Kind))
CONTRASTS = st.lists(st.integers(-40, 20), min_size=1, max_size=60)


@LAW
@given(CONTRASTS, KINDS, st.integers(1, 20), SEEDS, st.integers(0, 3))
def test_every_epoch_visits_every_pair_once(contrasts: list[int], kind: Kind, size: int, seed: int, epoch: int) -> None:
    """Whole steps but the last, which may be short; none is empty."""
    per_epoch = step_count(len(contrasts), pairs_per_step=size, epochs=1, max_steps=None)
    order = Order(pairs_of(contrasts), kind=kind, pairs_per_step=size, seed=seed)
    steps = [order.step(epoch * per_epoch + i) for i in range(per_epoch)]
    assert Counter(i for step in steps for i in step) == Counter(range(len(contrasts)))
    assert all(len(step) == size for step in steps[:-1])
    assert steps[-1]


@LAW
@given(st.integers(1, 9), st.integers(1, 9), SEEDS, st.integers(0, 3))
def test_every_step_is_a_cross_section_of_the_length_contrasts(size: int, steps: int, seed: int, epoch: int) -> None:
    """With contrasts 0, 1, 2 and so on in any order, a step's k-th smallest lies in the k-th block of them."""
    contrasts = np.random.default_rng(seed).permutation(size * steps)
    order = Order(pairs_of(contrasts.tolist()), kind="stratified", pairs_per_step=size, seed=seed)
    for step in order.epoch(epoch):
        assert [c // steps for c in sorted(contrasts[step])] == list(range(size))


@LAW
@given(CONTRASTS, KINDS, SEEDS, st.integers(0, 9), st.integers(0, 99))
def test_the_order_is_a_function_of_seed_and_step(
    contrasts: list[int], kind: Kind, seed: int, step: int, noise: int
) -> None:
    """What was drawn before, here or elsewhere, does not matter."""
    pairs = pairs_of(contrasts)
    order = Order(pairs, kind=kind, pairs_per_step=7, seed=seed)
    first = order.step(step)
    torch.manual_seed(noise)
    order.step(noise)
    assert order.step(step) == first == Order(pairs, kind=kind, pairs_per_step=7, seed=seed).step(step)


@LAW
@given(st.integers(2, 9), st.integers(1, 9), st.data())
def test_a_short_last_step_favours_no_stratum(size: int, steps: int, data: st.DataObject) -> None:
    """Over many epochs its pairs come from low and high contrasts alike; whole steps still have one of every block."""
    left = data.draw(st.integers(1, size - 1))
    order = Order(pairs_of(range(size * steps + left)), kind="stratified", pairs_per_step=size, seed=0)
    epochs = [order.epoch(epoch) for epoch in range(60)]
    assert all(len(epoch[-1]) == left for epoch in epochs)
    middle = (size * steps + left - 1) / 2
    assert abs(np.mean([np.mean(epoch[-1]) for epoch in epochs]) - middle) < 0.25 * (middle + 1)
    for step in epochs[0][:-1]:
        assert all(steps * k <= i < (steps + 1) * (k + 1) for k, i in enumerate(sorted(step)))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_seeds_and_epochs_give_different_orders(kind: Kind) -> None:
    """Among 50 pairs no two of these agree, whether their contrasts differ or not."""
    for contrasts in ([0] * 50, range(50)):
        pairs = pairs_of(contrasts)
        drawn = [Order(pairs, kind=kind, pairs_per_step=8, seed=seed) for seed in range(4)]
        orders = [order.epoch(epoch) for order in drawn for epoch in range(4)]
        assert len({str(order) for order in orders}) == 16


def test_step_count_rounds_epochs_and_honours_the_limit() -> None:
    """At least one step, at most `max_steps`."""
    assert step_count(100, pairs_per_step=16, epochs=2, max_steps=None) == 14
    assert step_count(100, pairs_per_step=16, epochs=0.01, max_steps=None) == 1
    assert step_count(100, pairs_per_step=16, epochs=3, max_steps=5) == 5


@LAW
@given(st.lists(tokenized(), min_size=1, max_size=6))
def test_a_batch_holds_the_rows_and_points_at_the_token_before_each_scored_one(pairs: list[TokenizedPair]) -> None:
    """Read back from the tensors alone: rows and (predicting position, target, owner) of every scored token."""
    batch = collate(pairs, pad_id=2)
    count, width = len(pairs), batch.input_ids_ST.shape[1]
    sides = [(p.prompt, p.chosen, p.chosen_scored) for p in pairs]
    sides += [(p.prompt, p.rejected, p.rejected_scored) for p in pairs]
    expected = []
    for row, (prompt, ids, scored) in enumerate(sides):
        whole = [*prompt, *ids]
        assert batch.input_ids_ST[row].tolist() == whole + [2] * (width - len(whole))
        at = [len(prompt) + i for i, kept in enumerate(scored) if kept]
        expected += [(row, i - 1, whole[i]) for i in at]
        assert batch.length_CB[row // count, row % count] == len(at)
    rows, positions = batch.gather_N // width, batch.gather_N % width
    assert list(zip(rows.tolist(), positions.tolist(), batch.target_N.tolist(), strict=True)) == expected
    assert batch.owner_N.tolist() == [row for row, _, _ in expected]
    assert batch.position_ids_ST.tolist() == [list(range(width))] * (2 * count)
    assert batch.tokens == sum(len(prompt) + len(ids) for prompt, ids, _ in sides)
    assert batch.size == count


@LAW
@given(tokenized())
def test_the_first_rejected_token_is_predicted_from_the_last_prompt_token_of_its_own_row(pair: TokenizedPair) -> None:
    """Of both rows, where the first token is scored."""
    batch = collate([pair], pad_id=2)
    width = batch.input_ids_ST.shape[1]
    for row, scored in enumerate((pair.chosen_scored, pair.rejected_scored)):
        if scored[0]:
            first = batch.gather_N[batch.owner_N == row][0].item()
            assert first == row * width + len(pair.prompt) - 1


@LAW
@given(st.lists(tokenized(), min_size=1, max_size=4))
def test_grades_are_exact(pairs: list[TokenizedPair]) -> None:
    """Graded fields keep every bit that the records have."""
    batch = collate(pairs, pad_id=2)
    assert batch.p_B.tolist() == [pair.p for pair in pairs]
    assert batch.margin_B.tolist() == [pair.margin for pair in pairs]
    assert batch.weight_B.tolist() == [pair.weight for pair in pairs]


# ---------------------------------------------------------------- rows without padding

PACKED = ("shared", "padding-free")
FEW = st.lists(st.integers(3, 5), min_size=1, max_size=5).map(tuple)


@st.composite
def related(draw: st.DrawFn) -> list[TokenizedPair]:
    """Pairs of a few prompts, whose responses often begin alike, are the same, or one the beginning of the other."""
    prompts = draw(st.lists(FEW, min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 8))):
        chosen, rejected = draw(FEW), draw(FEW)
        masks = [(*(draw(st.booleans()) for _ in ids[1:]), True) for ids in (chosen, rejected)]
        made.append(TokenizedPair("", draw(st.sampled_from(prompts)), chosen, rejected, *masks))
    return made


def contexts(layout: Layout, ids: list[int]) -> list[tuple[int, ...]]:
    """What every place of a row has read, itself included: the prefix of its tree and its branch."""
    found: list[tuple[int, ...]] = []
    at = 0
    for tree in layout:
        prefix = tuple(ids[at : at + tree.prefix])
        found += [prefix[: i + 1] for i in range(tree.prefix)]
        at += tree.prefix
        for length in tree.branches:
            branch = tuple(ids[at : at + length])
            found += [prefix + branch[: i + 1] for i in range(length)]
            at += length
    assert at == len(ids)
    return found


@LAW
@given(related(), st.sampled_from(PACKED))
def test_every_scored_token_is_predicted_by_the_place_that_read_all_before_it(
    pairs: list[TokenizedPair], rung: Rung
) -> None:
    """Read back from the tensors alone, for every cell, with positions that count what was read."""
    batch = collate(pairs, pad_id=2, rung=rung)
    assert batch.layout is not None
    (ids,), (positions,) = batch.input_ids_ST.tolist(), batch.position_ids_ST.tolist()
    read = contexts(batch.layout, ids)
    assert positions == [len(context) - 1 for context in read]
    for c, b in ((c, b) for c in (0, 1) for b in range(len(pairs))):
        pair, response = pairs[b], int(batch.response_CB[c, b])
        ids_cb, scored = ((pair.chosen, pair.chosen_scored), (pair.rejected, pair.rejected_scored))[c]
        mine = batch.owner_N == response
        found = [
            (read[i], t) for i, t in zip(batch.gather_N[mine].tolist(), batch.target_N[mine].tolist(), strict=True)
        ]
        assert found == [(pair.prompt + ids_cb[:i], ids_cb[i]) for i, kept in enumerate(scored) if kept]
        assert batch.length_CB[c, b] == sum(scored)
    assert batch.owner_N.tolist() == sorted(batch.owner_N.tolist())
    assert batch.tokens == sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)


@LAW
@given(related())
def test_a_shared_row_holds_a_prompt_and_a_response_once(pairs: list[TokenizedPair]) -> None:
    """One tree a prompt, one branch a different response, and nothing of them twice that all begin with."""
    layout = layout_of(pairs, "shared")
    groups = list(by_prompt(pairs).values())
    assert len(layout) == len(groups)
    for tree, group in zip(layout, groups, strict=True):
        sides = {(p.chosen, p.chosen_scored) for p in (pairs[i] for i in group)}
        sides |= {(p.rejected, p.rejected_scored) for p in (pairs[i] for i in group)}
        assert len(tree.branches) == len(sides)
        firsts = {ids[: tree.prefix - len(pairs[group[0]].prompt) + 1] for ids, _ in sides}
        assert len(firsts) > 1 or any(length == 0 for length in tree.branches)


@LAW
@given(related(), st.integers(1, 180), st.integers(1, 3), st.sampled_from(PACKED))
def test_a_packed_plan_covers_every_pair_once_within_the_budget(
    pairs: list[TokenizedPair], budget: int, crew: int, rung: Rung
) -> None:
    """Pairs of one prompt stay together where it is shared; the crew has a whole number of micro-batches each."""
    groups = plan(pairs, token_budget=budget, crew=crew, rung=rung)
    assert Counter(i for group in groups for i in group) == Counter(range(len(pairs)))
    units = list(by_prompt(pairs).values()) if rung == "shared" else [[i] for i in range(len(pairs))]
    assert all(any(set(unit) <= set(group) for group in groups) for unit in units)
    for group in groups:
        size = sum(tree.size for tree in layout_of([pairs[i] for i in group], rung))
        assert size * crew <= budget or any(set(unit) == set(group) for unit in units)
    assert len(groups) % crew == 0 or len(groups) == len(units)


def test_packed_micro_batches_are_of_like_size() -> None:
    """The difference is at most one pair of the smallest: here 12 pairs of 10 to 21 tokens in four micro-batches."""
    pairs = [TokenizedPair("", (i,), (2,) * n, (3,) * n, (True,) * n, (True,) * n) for i, n in enumerate(range(5, 17))]
    groups = plan(pairs, token_budget=160, crew=2, rung="shared")
    sizes = [sum(tree.size for tree in layout_of([pairs[i] for i in group], "shared")) for group in groups]
    assert len(groups) == 4
    assert max(sizes) - min(sizes) <= 11
