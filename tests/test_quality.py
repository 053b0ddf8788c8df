"""The other numbers about a set of preferences: clusters, shortcut, noise, margin, learnability, chosen, hygiene."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from druthers import stats
from druthers.curate import hygiene as texts
from druthers.curate import surface
from druthers.curate.quality import chosen, clusters, hygiene, learn, margin, noise, shortcut
from druthers.records import Finding
from druthers.stats import Estimate, Interval, Undefined


def interval(found: Estimate) -> Interval:
    assert isinstance(found, Interval), found
    return found


def only(found: list[Finding], name: str) -> Finding:
    return next(one for one in found if one.id == name)


# ---------------------------------------------------------------- clusters


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_with_a_row_in_each_cluster_a_share_is_wilsons_but_for_the_t(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    if n < 2:
        return
    ours = interval(clusters.share(np.arange(n) < hits, range(n)))
    plain = interval(stats.wilson(hits, n))
    assert ours.value == plain.value
    assert ours.low <= plain.low + 1e-9
    assert ours.high >= plain.high - 1e-9
    if n > 200:
        assert [ours.low, ours.high] == pytest.approx([plain.low, plain.high], abs=0.004)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=50), st.randoms(use_true_random=False)
)
def test_order_of_rows_and_names_of_clusters_do_not_matter(rows: list[tuple[bool, int]], order: Any) -> None:
    shuffled = list(rows)
    order.shuffle(shuffled)
    one = clusters.share([hit for hit, _ in rows], [c for _, c in rows])
    other = clusters.share([hit for hit, _ in shuffled], [f"c{7 * c}" for _, c in shuffled])
    if isinstance(one, Undefined):
        assert one == other
    else:
        assert [one.value, one.low, one.high] == pytest.approx(
            [interval(other).value, interval(other).low, interval(other).high]
        )


@pytest.mark.parametrize(
    ("groups", "each", "rate", "spread"),
    [(40, 1, 0.5, 0.0), (40, 5, 0.7, 3.0), (15, 20, 0.6, 4.0), (400, 5, 0.97, 6.0)],
)
def test_shares_are_covered(groups: int, each: int, rate: float, spread: float) -> None:
    draw, hits = np.random.default_rng(3), 0
    label = np.repeat(np.arange(groups), each)
    for _ in range(600):
        luck = draw.beta(spread * rate, spread * (1 - rate), groups) if spread else np.full(groups, rate)
        found = interval(clusters.share(draw.random(groups * each) < luck[label], label))
        hits += found.low <= rate <= found.high
    assert 0.93 - 0.01 <= hits / 600 <= 0.97 + 0.01


@pytest.mark.parametrize(
    ("groups", "each", "first", "second"), [(200, 1, 0.1, 0.05), (300, 3, 0.04, 0.01), (100, 1, 0.5, 0.5)]
)
def test_differences_are_covered(groups: int, each: int, first: float, second: float) -> None:
    draw, hits = np.random.default_rng(4), 0
    label = np.repeat(np.arange(groups), each)
    for _ in range(600):
        luck = draw.beta(2, 2, groups)[label] * 2
        columns = [draw.random(groups * each) < rate * luck for rate in (first, second)]
        found = interval(clusters.difference(*columns, label))
        hits += found.low <= first - second <= found.high
    assert 0.93 - 0.01 <= hits / 600 <= 0.97 + 0.015


def test_no_clusters_no_interval() -> None:
    for found in (
        clusters.share([], []),
        clusters.mean([1.0], [0]),
        clusters.share([1, 0], [5, 5]),
        clusters.difference([], [], []),
    ):
        assert isinstance(found, Undefined)
        assert found.reason


# ---------------------------------------------------------------- shortcut


def looks(draw: np.random.Generator, pairs: int) -> NDArray[Any]:
    """Numbers as `surface` gives them, for sides that differ by chance."""
    table = draw.poisson(3, size=(pairs, len(surface.NAMES))).astype(float)
    place = {name: i for i, name in enumerate(surface.NAMES)}
    table[:, place["characters"]] = np.round(np.exp(5 + 0.5 * draw.normal(size=pairs)))
    table[:, place["words"]] = table[:, place["characters"]] // 6
    for name in ("apology", "refusal"):
        table[:, place[name]] = draw.random(pairs) < 0.1
    for name in ("capitals", "repeats"):
        table[:, place[name]] = draw.random(pairs) / 10
    table[:, place["first_word"]] = draw.integers(1, 20, pairs)
    return table


def chosen_by(
    draw: np.random.Generator, pairs: int, name: str | None, force: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    one, other = looks(draw, pairs), looks(draw, pairs)
    if name is None:
        return one, other
    place = surface.NAMES.index(name)
    pull = force * (np.log1p(one[:, place]) - np.log1p(other[:, place]))
    first = (draw.random(pairs) < expit(pull))[:, None]
    return np.where(first, one, other), np.where(first, other, one)


def test_a_set_without_shortcut_is_no_better_than_a_coin() -> None:
    calm = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        found = shortcut.shortcut(*chosen_by(draw, 1000, None, 0), np.arange(1000) // 2, seed=seed)
        calm += (
            only(shortcut.findings(found), "D5.shortcut").status == "pass" and interval(found.auc).value < shortcut.WARN
        )
    assert calm >= 19


@pytest.mark.parametrize(
    ("name", "family", "force"),
    [("characters", "length", 4.0), ("bullets", "format", 4.0), ("refusal", "apology or refusal", 30.0)],
)
def test_what_drives_a_shortcut_is_named(name: str, family: str, force: float) -> None:
    draw = np.random.default_rng(0)
    found = shortcut.shortcut(*chosen_by(draw, 3000, name, force), np.arange(3000), seed=0)
    assert max(found.pull, key=found.pull.__getitem__) == family
    told = only(shortcut.findings(found), "D5.shortcut")
    if name == "characters":
        assert told.status == "fail"
    assert family in told.text or interval(found.auc).value <= shortcut.GOOD


def test_exchanging_the_sides_changes_no_auc() -> None:
    draw = np.random.default_rng(1)
    best, worst = chosen_by(draw, 500, "characters", 1.0)
    one, other = (shortcut.shortcut(*sides, np.arange(500), seed=3) for sides in ((best, worst), (worst, best)))
    assert interval(one.auc).value == pytest.approx(interval(other.auc).value, abs=1e-6)
    assert interval(one.gap).value == pytest.approx(-interval(other.gap).value)


def test_the_auc_is_that_of_every_pair_in_both_orientations() -> None:
    score = np.array([3.0, -1.0, 0.0, 2.0, 2.0])
    both = [(s > -t) + (s == -t) / 2 for s in score for t in score]
    assert shortcut.beaten(score).mean() == pytest.approx(float(np.mean(both)))


def test_the_interval_of_the_auc_covers() -> None:
    """300 sets of scores whose true AUC is known: of normal scores of mean m and variance 1 it is Phi(m sqrt 2)."""
    draw, hits, truth = np.random.default_rng(8), 0, 0.5 * math.erfc(-0.3)
    fold, code = np.zeros(400, dtype=np.int64), np.arange(400) // 2
    for _ in range(300):
        luck = np.repeat(draw.normal(size=200), 2)
        score = 0.3 + np.sqrt(0.5) * luck + np.sqrt(0.5) * draw.normal(size=400)
        found = interval(shortcut.auc(shortcut.beaten(score), fold, code, 200))
        hits += found.low <= truth <= found.high
    assert 0.93 - 0.015 <= hits / 300 <= 0.97 + 0.015


def test_the_sample_is_seeded_and_a_big_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "SAMPLE", 300)
    draw = np.random.default_rng(1)
    sides = chosen_by(draw, 1000, "characters", 2.0)
    one, again, other = (shortcut.shortcut(*sides, np.arange(1000), seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert interval(one.auc).n == 300


def test_a_shortcut_of_too_little_or_of_nothing_is_undefined() -> None:
    few = looks(np.random.default_rng(0), 50)
    assert isinstance(shortcut.shortcut(few, few, np.arange(50), seed=0).auc, Undefined)
    same = np.repeat(few, 4, axis=0)
    alike = shortcut.shortcut(same, same, np.arange(200), seed=0).auc
    assert isinstance(alike, Undefined)
    assert "look alike" in alike.reason
    with pytest.raises(ValueError, match="do not fit"):
        shortcut.shortcut(few, few[:, :3], np.arange(50), seed=0)


# ---------------------------------------------------------------- noise


def flipped(
    draw: np.random.Generator, pairs: int, share: float, *, plain: float = 6.0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features (N, 16) of pairs chosen by a hidden direction, a share of them flipped, and which."""
    feature = draw.normal(size=(pairs, 16)).astype(np.float32)
    feature *= np.sign(feature[:, :1] + feature[:, 1:2] + draw.logistic(size=(pairs, 1)) / plain)
    wrong = draw.random(pairs) < share
    return np.where(wrong[:, None], -feature, feature), wrong


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_planted_noise_comes_back(share: float) -> None:
    draw = np.random.default_rng(2)
    feature, wrong = flipped(draw, 6000, share)
    found = noise.noise(feature, np.arange(6000) // 2, seed=0)
    one = interval(found.wrong)
    assert one.low - 0.01 <= share <= one.high
    assert one.high - one.low < 0.1
    if share:
        assert wrong[found.suspects].mean() > 3 * share if share < 0.2 else wrong[found.suspects].mean() > 0.6
        assert (np.diff(found.p_N[found.suspects]) >= 0).all()
        assert found.p_N[found.suspects].max() < noise.SUSPECT


def test_the_interval_of_the_noise_covers() -> None:
    draw, hits = np.random.default_rng(5), 0
    for seed in range(60):
        feature, _ = flipped(draw, 1500, 0.15, plain=50.0)
        one = interval(noise.noise(feature, np.arange(1500), seed=seed).wrong)
        hits += one.low <= 0.15 <= one.high
    assert hits >= 53


def test_features_that_know_nothing_say_nothing() -> None:
    draw = np.random.default_rng(0)
    found = noise.noise(draw.normal(size=(1000, 8)), np.arange(1000), seed=0)
    assert isinstance(found.wrong, Undefined)
    assert "too seldom" in found.wrong.reason
    assert only(noise.findings(found), "D6.noise").status == "undefined"
    assert isinstance(noise.noise(np.ones((10, 2)), np.arange(10), seed=0).right, Undefined)
    with pytest.raises(ValueError, match="one row for each pair"):
        noise.noise(np.ones((10, 2)), np.arange(9), seed=0)


def test_gold_follows_the_rule_of_pausing() -> None:
    """Of 10 answers 5 right are too few and 6 are not; of 20, 11 and 12; of 30, 17 and 18."""
    for answered, worst in ((10, 5), (20, 11), (30, 17)):
        assert noise.gold(worst, answered).pause
        assert not noise.gold(worst + 1, answered).pause
    assert not noise.gold(0, 9).pause
    assert isinstance(noise.gold(0, 0).accuracy, Undefined)
    assert [noise.gold_finding("ann", right, 20).status for right in (20, 0)] == ["pass", "warn"]
    assert [noise.gold(right, 20).poor for right in (20, 11, 0)] == [False, True, True]
    both = noise.gold_of_all([(20, 20), (0, 20)], items=20)
    assert (both.value, both.n, both.status) == (0.5, 40, "pass")
    assert noise.gold_of_all([], items=3).undefined == "nobody judged one of the 3 gold items"
    with pytest.raises(ValueError, match="between 0 and those answered"):
        noise.gold(3, 2)


# ---------------------------------------------------------------- margin, learnability, chosen


def test_information_counts_what_weights_leave() -> None:
    found = margin.information(np.ones(100), np.arange(100.0), np.r_[np.full(99, 0.01), 100.0], np.arange(100) // 10)
    told = margin.findings(found)
    assert only(told, "D7.effective").status == "warn"
    assert found.effective == pytest.approx(1.02, abs=0.01)
    assert (found.prompts, found.crowded, found.crowded_pairs) == (10, 10, 100)
    assert found.lowest_N.sum() == 10
    assert sum(found.margin.counts) == sum(found.p.counts) == 100
    assert len(found.weight.edges) == len(found.weight.counts) + 1


def effective(p: Any, *, prompt: Any = None) -> Finding:
    ones = np.ones(len(p))
    prompts = np.arange(len(p)) if prompt is None else prompt
    return only(margin.findings(margin.information(p, 0 * ones, ones, prompts)), "D7.effective")


def test_ties_count_for_nothing_however_many_they_are() -> None:
    some = effective(np.r_[np.ones(600), np.full(400, 0.5)])
    assert (some.value, some.status, some.action) == (0.6, "pass", "")
    assert some.text == (
        "By their weights and by how sure they are, 1,000 pairs of 1,000 prompts count as 600 alike ones. 400 of them "
        "are ties (p = 0.5), and say nothing of which response is better."
    )
    most = effective(np.r_[np.ones(400), np.full(600, 0.5)])
    assert (most.status, most.action) == (
        "warn",
        "Collect responses that differ more, or leave the ties out (grade.ties=drop).",
    )
    told = margin.findings(margin.information([0.5] * 9, [0] * 9, [1] * 9, range(9)))
    assert (only(told, "D7.effective").value, only(told, "D7.effective").status) == (0.0, "warn")
    assert only(told, "D7.prompts").value == pytest.approx(1.0)
    nothing = margin.findings(margin.information([1.0] * 9, [0] * 9, [0] * 9, range(9)))
    assert only(nothing, "D7.prompts").undefined == "every weight is 0"


@pytest.mark.parametrize("p", [0.51, 0.8, 1.0, 0.0])
def test_pairs_that_are_all_as_sure_count_alike(p: float) -> None:
    assert effective(np.full(50, p)).value == pytest.approx(1.0)


def test_prompts_that_hold_most_of_the_pairs_are_told() -> None:
    crowded = np.r_[np.zeros(90), np.arange(1, 11)]
    ones = np.ones(100)
    told = margin.findings(margin.information(ones, ones, ones, crowded))
    assert (only(told, "D7.prompts").status, only(told, "D7.effective").status) == ("warn", "pass")
    shared = np.r_[np.full(90, 1 / 90), np.ones(10)]
    told = margin.findings(margin.information(ones, ones, shared, crowded))
    assert only(told, "D7.prompts").value == pytest.approx(1.0)
    assert only(told, "D7.crowded").text == "1 of 11 prompts has more than 4 pairs, 90 pairs in all."


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.1, 10))
def test_the_effective_number_ignores_the_unit_of_weights(weights: list[float], unit: float) -> None:
    ones = np.ones(len(weights))
    one, other = (margin.information(ones, ones, np.array(weights) * u, ones.astype(int)) for u in (1.0, unit))
    assert one.effective == pytest.approx(other.effective, rel=1e-6) or sum(weights) < 1e-150
    assert one.effective <= len(weights) + 1e-6
    assert only(margin.findings(one), "D7.lowest").status == "undefined"


def test_pairs_that_the_reference_ranks_wrong_too_firmly_are_stuck() -> None:
    assert pytest.approx(2.2522, abs=1e-4) == learn.BOUND
    assert -math.log(float(expit(learn.BOUND))) == pytest.approx(learn.LEAST_LOSS)
    gap = np.r_[np.full(30, 2.26), np.full(50, 2.24), np.full(20, -1.0)]
    found = learn.learnability(np.zeros(100), gap / 0.1, np.arange(100), beta=0.1)
    assert interval(found.stuck).value == 0.3
    assert interval(found.ranked).value == 0.2
    assert found.stuck_N.tolist() == [True] * 30 + [False] * 70
    assert [one.id for one in learn.findings(found)] == ["D10.stuck", "D10.ranked"]
    with pytest.raises(ValueError, match="finite"):
        learn.learnability([math.nan], [0.0], [0], beta=0.1)
    with pytest.raises(ValueError, match="positive"):
        learn.learnability([0.0], [0.0], [0], beta=0.0)


def test_many_stuck_pairs_are_worth_a_warning() -> None:
    for share, status in ((0.5, "warn"), (0.1, "pass")):
        gap = np.where(np.arange(400) < 400 * share, 99.0, -1.0)
        found = learn.learnability(np.zeros(400), gap, np.arange(400), beta=0.1)
        assert only(learn.findings(found), "D10.stuck").status == status


def test_what_training_turned_is_counted_among_the_pairs_that_were_wrong() -> None:
    """Of four pairs the reference ranks three wrong; the policy turns one of them and ties another."""
    reference = [[-9.0, -9.0, -9.0, -1.0], [-5.0, -5.0, -5.0, -5.0]]
    policy = [[-4.0, -5.0, -9.0, -9.0], [-5.0, -5.0, -5.0, -5.0]]
    found = learn.turned(reference, policy, range(4))
    assert (found.value, found.n, found.id) == (0.5, 3, "D10.turned")
    assert learn.turned([[0.0], [-1.0]], [[0.0], [-1.0]], [0]).undefined == "the reference ranks no held-out pair wrong"


def test_answers_in_another_language_count_where_they_are_chosen() -> None:
    no, some = np.zeros(500, dtype=bool), np.arange(500) < 40
    chosen_, rejected = (hygiene.strange(hygiene.sides(*both, np.arange(500))) for both in ((some, no), (no, some)))
    assert (chosen_.status, chosen_.value) == ("warn", 0.08)
    assert (rejected.status, rejected.value) == ("pass", 0.0)
    assert "8.0 of 100 rejected" in rejected.text


def test_poor_chosen_answers_are_counted_where_they_are_rated() -> None:
    rating = np.r_[np.full(40, 2.0), np.full(60, 8.0), np.full(10, np.nan)]
    found = chosen.chosen(rating, np.arange(110), threshold=5)
    told = chosen.findings(found)
    assert only(told, "D11.chosen").status == "warn"
    assert "10 have no rating" in only(told, "D11.chosen").text
    assert isinstance(chosen.chosen([math.nan], [0], threshold=5).poor, Undefined)


def test_judgements_that_call_both_bad_count_for_whoever_wrote_one_of_the_answers() -> None:
    bad = [1] * 30 + [0] * 70 + [1] * 5
    writers = [[0] * 30 + [1] * 70 + [2] * 5, [0] * 30 + [0] * 20 + [1] * 50 + [-1] * 5]
    told = chosen.both_bad(bad, writers, range(105), names=["poor", "good", "few"])
    assert [(one.slice.get("source", ""), one.value, one.n, one.status) for one in told] == [
        ("", 1 / 3, 105, "warn"),
        ("good", 0.0, 70, "pass"),
        ("poor", 0.6, 50, "warn"),
    ]
    assert len(chosen.both_bad(bad, [[0] * 105] * 2, range(105), names=["poor"])) == 1
    assert [one.status for one in chosen.both_bad([], [[], []], [], names=[])] == ["undefined"]


# ---------------------------------------------------------------- hygiene


def bits(kind: str, share: float, pairs: int, draw: np.random.Generator) -> NDArray[Any]:
    return np.where(draw.random(pairs) < share, texts.BIT[kind], 0)


def test_answers_cut_on_one_side_are_flagged() -> None:
    draw, none = np.random.default_rng(0), np.zeros(3000, dtype=bool)
    uneven = hygiene.check(
        bits("cut", 0.02, 3000, draw), bits("cut", 0.06, 3000, draw), np.arange(3000), refused=(none, none)
    )
    even = hygiene.check(
        bits("cut", 0.05, 3000, draw), bits("cut", 0.05, 3000, draw), np.arange(3000), refused=(none, none)
    )
    told = only(hygiene.findings(uneven), "D13.cut")
    assert told.status == "warn"
    assert told.value is not None
    assert told.value < -1
    assert only(hygiene.findings(even), "D13.cut").status == "pass"


def test_every_fault_has_its_finding() -> None:
    faulty = [texts.faults(t) for t in ("It is ann@a.org.", "A<|im_end|>", "B\x00.", "```\nx", "C.\n\nUser: D.", "\n")]
    clean = [0] * len(faulty)
    found = hygiene.check(
        faulty,
        clean,
        range(6),
        refused=([True] * 6, [False] * 6),
        asked_N=[texts.BIT["template"], texts.BIT["empty"]] + [0] * 4,
        strange=(clean, clean),
    )
    told = {one.id: one for one in hygiene.findings(found)}
    assert {name for name, one in told.items() if one.status == "warn"} == {
        "D13.fence", "D13.control", "D13.template", "D13.turn", "D13.personal",
    }  # fmt: skip
    assert told["D13.empty"].status == "fail"
    assert told["D13.refusal"].value == 100
    assert "1 mail" in told["D13.personal"].text
    assert told["D13.template"].text == "1 answer and 1 prompt hold tokens of a chat template."
    assert (told["D13.template"].value, told["D13.template"].n, told["D13.empty"].value) == (2, 18, 2)
    nothing = hygiene.check(clean, clean, range(6), refused=(clean, clean))
    assert {one.status for one in hygiene.findings(nothing)} == {"pass"}
    with pytest.raises(ValueError, match="as many of each"):
        hygiene.check(clean, [0], range(6), refused=(clean, clean))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_exchanging_the_sides_turns_the_difference(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sides = [draw.random(200) < rate for rate in (0.1, 0.2)]
    label = draw.integers(60, size=200)
    one, other = clusters.difference(*sides, label), clusters.difference(*sides[::-1], label)
    assert interval(one).low == pytest.approx(-interval(other).high)
    assert interval(one).value == pytest.approx(-interval(other).value)
