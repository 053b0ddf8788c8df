"""Advice: each rule fires where it should and not just beside it; every question is answered, whatever is known."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import fields, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import cli
from druthers.curate import advice, examination, rules
from druthers.curate.advice import Evidence, Group, Rule, advise, numbers
from druthers.curate.rules import FEW_PROMPTS, QUESTIONS, SOURCES
from druthers.power import Curve, Point, fit_curve
from druthers.records import Advice, Finding, Limits
from druthers.stats import Interval

IDS = (
    *("D1.duplicate", "D1.near", "D1.leak", "D1.held_before", "D1.response_leak", "D1.semantic"),
    *("D2.contradiction", "D2.cycles"),
    *("D3.alpha", "D3.noise", "D3.annotator", "D4.position", "D4.length", "D4.markdown", "D4.refusal"),
    *("D5.shortcut", "D6.noise", "D6.suspects", "D6.gold", "D7.effective", "D7.prompts", "D7.crowded"),
    *("D8.coverage", "D8.shift", "D8.diversity", "D9.ches", "D9.edit", "D10.stuck", "D10.ranked"),
    *("D11.chosen", "D11.rated", "D11.both_bad", "D12.onpolicy", "D12.logprob", "D12.age"),
    *("D13.cut", "D13.limit", "D13.personal", "D13.refusal", "D13.language"),
)
RULES: dict[str, Rule] = {rule.id: rule for question in QUESTIONS for rule in question.every}
Status = Literal["pass", "warn", "fail", "undefined"]


def found(name: str, status: Status = "pass", value: float | None = 0.05, **more: Any) -> Finding:
    """A finding with an interval around its value."""
    if status == "undefined" or value is None:
        return Finding(id=name, status=status, text=f"{name} says so.", undefined="nobody looked", **more)
    given = {"low": value - 0.01, "high": value + 0.01, "n": 500} | more
    return Finding(id=name, status=status, text=f"{name} says so.", value=value, **given)


def share(value: float, *, half: float = 0.02, n: int = 900) -> Interval:
    return Interval(value, value - half, value + half, n)


def with_findings(evidence: Evidence, *new: Finding) -> Evidence:
    """The evidence with these findings instead of those of the same id."""
    names = {finding.id for finding in new}
    return replace(evidence, findings=(*(f for f in evidence.findings if f.id not in names), *new))


def without(evidence: Evidence, *names: str) -> Evidence:
    return replace(evidence, findings=tuple(f for f in evidence.findings if f.id not in names))


def curve(*accuracies: float, error: float) -> Curve:
    points = [Point(1000 * 2**i, accuracy, error) for i, accuracy in enumerate(accuracies)]
    made = fit_curve(points, seed=0, resamples=200)
    assert isinstance(made, Curve)
    return made


HEALTHY = Evidence(
    findings=tuple(found(name) for name in IDS),
    pairs=5000,
    prompts=4000,
    heldout=1600,
    heldout_prompts=1500,
    asked=1000,
    longer=0.5,
    cut=(0.0, 0.0),
    groups={"de": Group(2400, 1500), "en": Group(2600, 1500)},
    options="--data pairs.jsonl",
    smaller="druthers train --data pairs.jsonl --run RUN-half data.limit=2500",
)
"""Data that no rule has anything against."""


def bad(name: str, status: Status = "fail", value: float = 0.05, **more: Any) -> Evidence:
    return with_findings(HEALTHY, found(name, status, value, **more))


def near(name: str) -> Evidence:
    """Almost at its limit: it passes, and is not certain."""
    return with_findings(HEALTHY, found(name, "pass"))


def changed(**values: Any) -> Evidence:
    return replace(HEALTHY, **values)


BARE = Evidence()
RISING = curve(0.60, 0.66, 0.71, 0.75, error=0.003)
LEVEL = curve(0.70, 0.70, 0.70, error=0.002)
VAGUE = curve(0.60, 0.66, 0.70, error=0.03)

CASES: dict[str, tuple[Evidence, Evidence]] = {
    # method: what fires, and what is just beside it
    "A1.thumbs": (changed(unpaired=20_000), changed(unpaired=19_999)),
    "A1.taste": (
        with_findings(changed(tastes=share(0.36)), found("D3.noise", value=0.2)),
        with_findings(changed(tastes=share(0.34)), found("D3.noise", value=0.2)),
    ),
    "A1.guidelines-first": (bad("D3.alpha", value=0.1), bad("D3.alpha", "warn", 0.3)),
    "A1.ties-first": (changed(ties=share(0.55)), changed(ties=share(0.51))),
    "A1.chosen-first": (bad("D11.chosen", "warn", 0.52), bad("D11.chosen", "warn", 0.505)),
    "A1.criteria": (changed(conflicts=share(0.25)), changed(conflicts=share(0.21))),
    "A1.sft-first": (bad("D12.logprob", "pass", -3.0), bad("D12.logprob", "pass", -2.505)),
    "A1.online": (changed(rounds=2, rubric="house.toml"), changed(rounds=1, rubric="house.toml")),
    "A1.rounds": (changed(rounds=2), changed(rounds=2, rubric="house.toml")),
    "A1.few": (changed(prompts=FEW_PROMPTS - 1), changed(prompts=FEW_PROMPTS)),
    "A1.groups": (
        changed(groups={"de": Group(1000, 1500), "en": Group(4000, 1500)}),
        changed(groups={"de": Group(1250, 1500), "en": Group(3750, 1500)}),
    ),
    "A1.graded": (changed(graded=500), changed(graded=499)),
    "A1.dpo": (HEALTHY, without(HEALTHY, "D12.logprob")),
    "A1.unknown": (without(HEALTHY, "D1.leak"), HEALTHY),
    # clean
    "A2.leak": (bad("D1.held_before", "warn"), near("D1.held_before")),
    "A2.responses": (bad("D1.response_leak", "warn"), near("D1.response_leak")),
    "A2.duplicates": (bad("D1.semantic", "warn"), near("D1.semantic")),
    "A2.contradictions": (bad("D2.contradiction", "warn"), near("D2.contradiction")),
    "A2.agreement": (bad("D3.alpha", "warn", slice={"criterion": "tone"}), near("D3.alpha")),
    "A2.noise": (bad("D6.noise", "warn"), near("D6.noise")),
    "A2.annotators": (bad("D6.gold", "warn", slice={"annotator": "ann"}), bad("D6.gold", "warn")),
    "A2.position": (bad("D4.position", "warn"), bad("D4.length", "warn")),
    "A2.chosen": (bad("D11.chosen", "warn"), near("D11.chosen")),
    "A2.personal": (bad("D13.personal", "warn"), near("D13.personal")),
    "A2.language": (bad("D13.language", "warn"), near("D13.language")),
    "A2.undecided": (
        bad("D1.near", "pass", uncertain=True, needed=9000),
        bad("D8.coverage", "pass", uncertain=True, needed=9000),
    ),
    "A2.clean": (HEALTHY, without(HEALTHY, "D13.personal")),
    "A2.unknown": (without(HEALTHY, "D1.near", "D1.duplicate"), without(HEALTHY, "D1.near")),
    # enough
    "A3h.short": (changed(heldout_prompts=HEALTHY.accuracy_needs - 1), changed(heldout_prompts=HEALTHY.accuracy_needs)),
    "A3h.asked": (changed(rubric="house.toml", asked=782), changed(rubric="house.toml", asked=783)),
    "A3h.enough": (changed(heldout_prompts=HEALTHY.accuracy_needs), changed(heldout_prompts=5)),
    "A3h.unknown": (changed(heldout_prompts=None), HEALTHY),
    "A3p.few": (changed(prompts=FEW_PROMPTS - 1), changed(prompts=FEW_PROMPTS)),
    "A3p.crowded": (bad("D7.prompts", "warn"), near("D7.prompts")),
    "A3p.uneven": (bad("D7.effective", "warn"), near("D7.effective")),
    "A3p.spread": (HEALTHY, without(HEALTHY, "D7.effective")),
    "A3p.unknown": (without(HEALTHY, "D7.effective"), HEALTHY),
    "A3g.short": (changed(groups={"de": Group(2400, 900)}), changed(groups={"de": Group(2400, 1000)})),
    "A3g.enough": (HEALTHY, changed(groups={"de": Group(2400, 900)})),
    "A3g.unknown": (changed(groups={}), HEALTHY),
    # more
    "A4.ceiling": (
        with_findings(changed(accuracy=share(0.79, half=0.015)), found("D3.noise", value=0.2)),
        with_findings(changed(accuracy=share(0.78, half=0.015)), found("D3.noise", value=0.2)),
    ),
    "A4.rising": (changed(curve=RISING), changed(curve=VAGUE)),
    "A4.level": (changed(curve=LEVEL), changed(curve=VAGUE)),
    "A4.undecided": (changed(curve=VAGUE), changed(curve=RISING)),
    "A4.unknown": (HEALTHY, changed(curve=LEVEL)),
    # next
    "A5.coverage": (bad("D8.shift", "warn"), near("D8.shift")),
    "A5.candidates": (changed(ties=share(0.55)), changed(ties=share(0.51))),
    "A5.contested": (bad("D2.contradiction", "warn"), near("D2.contradiction")),
    "A5.groups": (
        changed(groups={"de": Group(1000, 1500), "en": Group(4000, 1500)}),
        changed(groups={"de": Group(1250, 1500), "en": Group(3750, 1500)}),
    ),
    "A5.fresh": (bad("D12.onpolicy", "warn"), near("D12.onpolicy")),
    "A5.old": (bad("D12.age", "warn"), near("D12.age")),
    "A5.flips": (bad("D10.stuck", "warn"), near("D10.stuck")),
    "A5.heldout": (changed(heldout_prompts=700), HEALTHY),
    "A5.nothing": (HEALTHY, without(HEALTHY, "D8.coverage")),
    "A5.unknown": (without(HEALTHY, "D8.coverage"), HEALTHY),
    # besides
    "A6.length": (bad("D4.length", "warn"), near("D4.length")),
    "A6.format": (bad("D4.markdown", "warn"), near("D4.markdown")),
    "A6.refusal": (bad("D4.refusal", "warn"), near("D4.refusal")),
    "A6.shortcut": (bad("D5.shortcut", "warn"), near("D5.shortcut")),
    "A6.nothing": (HEALTHY, without(HEALTHY, "D5.shortcut")),
    "A6.unknown": (without(HEALTHY, "D4.markdown"), HEALTHY),
    # risk
    "A7.displacement": (bad("D9.edit", "warn"), near("D9.edit")),
    "A7.flips": (bad("D10.stuck", "warn"), near("D10.stuck")),
    "A7.foreign": (bad("D12.onpolicy", "warn"), near("D12.onpolicy")),
    "A7.overoptimisation": (changed(epochs=1.5), changed(epochs=1.0)),
    "A7.accuracy-alone": (
        changed(accuracy=share(0.6), won=share(0.51)),
        changed(accuracy=share(0.6), won=share(0.53)),
    ),
    "A7.refusal": (bad("D4.refusal", "warn"), near("D4.refusal")),
    "A7.cut": (changed(cut=(0.0, 0.011)), changed(cut=(0.01, 0.01))),
    "A7.unfinished": (bad("D13.cut", "warn"), near("D13.cut")),
    "A7.personal": (bad("D13.personal", "warn"), near("D13.personal")),
    "A7.nothing": (HEALTHY, without(HEALTHY, "D9.ches")),
    "A7.unknown": (without(HEALTHY, "D13.refusal"), HEALTHY),
}


def answers(evidence: Evidence) -> list[Advice]:
    return advise(evidence, QUESTIONS)


def fired(evidence: Evidence) -> set[str]:
    return {answer.rule for answer in answers(evidence)}


def test_every_rule_has_its_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_the_rule_fires_where_it_should_and_not_just_beside_it(rule: str) -> None:
    hit, miss = CASES[rule]
    assert rule in fired(hit)
    assert rule not in fired(miss)


@pytest.mark.parametrize("rule", CASES)
def test_an_answer_says_its_numbers_and_its_sources(rule: str) -> None:
    answer = next(a for a in answers(CASES[rule][0]) if a.rule == rule)
    for name in answer.evidence:
        if "." in name:
            assert f"[{name}" in answer.why
    for source in answer.sources:
        assert source == "default" or f"arXiv {source}" in answer.why
    assert "not measured to" not in answer.answer
    if rule.endswith(".unknown"):
        assert answer.missing
    else:
        assert answer.evidence or rule in ("A3g.short", "A3g.enough", "A4.level", "A4.rising", "A4.undecided")
        assert not answer.missing or (rule, answer.missing) == ("A4.ceiling", (HEALTHY.curve_missing,))


def test_with_nothing_known_every_question_says_what_it_takes() -> None:
    found = answers(BARE)
    assert [a.rule for a in found] == [question.unknown.id for question in QUESTIONS]
    assert all(a.missing for a in found)
    assert "783 held-out prompts" in next(a for a in found if a.rule == "A3h.unknown").answer


def test_a_rule_that_fires_beside_missing_evidence_says_what_was_not_checked() -> None:
    method = answers(without(changed(graded=5000), "D1.leak"))[0]
    assert method.rule == "A1.graded"
    assert method.missing == ("leaks (D1.leak)",)


def test_healthy_data_is_told_to_train_by_dpo() -> None:
    assert answers(HEALTHY)[0].answer == "DPO fits."


def test_what_could_not_be_measured_is_said_with_its_reason() -> None:
    found_ = with_findings(HEALTHY, found("D12.logprob", "undefined", None))
    method = answers(found_)[0]
    assert method.rule == "A1.unknown"
    assert method.missing == ("how likely the chosen answers are to the model (D12.logprob: nobody looked)",)


def test_worse_things_come_before_finer_ones() -> None:
    both = with_findings(changed(prompts=10, ties=share(0.9), graded=5000), found("D3.alpha", "fail"))
    assert answers(both)[0].rule == "A1.guidelines-first"
    assert answers(without(both, "D3.alpha"))[0].rule == "A1.ties-first"


def test_chosen_answers_that_their_source_rates_poor_are_better_not_trained_on() -> None:
    assert answers(bad("D11.rated"))[0].rule == "A1.chosen-first"
    assert answers(bad("D11.rated", "warn"))[0].rule != "A1.chosen-first"
    assert RULES["A2.chosen"].when(bad("D11.rated", "warn"))


def test_of_several_criteria_the_overall_one_decides() -> None:
    def alpha(criterion: str, status: Status, metric: str = "nominal") -> Finding:
        return found("D3.alpha", status, slice={"criterion": criterion, "metric": metric})

    fine = with_findings(HEALTHY, alpha("tone", "fail"), alpha("overall", "pass"), alpha("overall", "fail", "ordinal"))
    assert not fine.fails("D3.alpha")
    assert with_findings(HEALTHY, alpha("tone", "fail"), alpha("truth", "pass")).fails("D3.alpha")


def test_a_win_rate_asks_for_a_count_that_is_one() -> None:
    action = {a.rule: a.action for a in answers(changed(rubric="house.toml", improvement=0.01, heldout_prompts=30_000))}
    assert action["A3h.asked"].endswith("evaluate.count=19620")


def test_noise_takes_more_held_out_prompts_and_ties_fewer() -> None:
    noisy = with_findings(HEALTHY, found("D3.noise", value=20.0, unit="%"))
    assert noisy.noise == 0.2
    assert noisy.accuracy_needs == 2178
    assert changed(ties=share(0.4)).win_rate_needs == 469
    assert with_findings(HEALTHY, found("D3.noise", value=0.6)).noise == 0.49


def test_an_earlier_run_is_the_mark_to_beat() -> None:
    clean = with_findings(HEALTHY, found("D3.noise", value=0.0))
    assert replace(clean, accuracy=share(0.6)).accuracy_needs == 1474


def test_of_many_slices_the_three_worst_are_said() -> None:
    slices = [found("D3.annotator", "fail", 0.1 * i, slice={"annotator": f"a{i}"}) for i in range(6)]
    answer = next(a for a in answers(with_findings(HEALTHY, *slices)) if a.rule == "A2.annotators")
    assert answer.answer.endswith("a0, a1, a2, a3, a4, a5.")
    assert answer.why.count("[D3.annotator") == 3
    assert "3 more like it" in answer.why


# ---------------------------------------------------------------- rules as data


def test_questions_and_rules_have_names_of_their_own() -> None:
    listed = [rule.id for question in QUESTIONS for rule in question.every]
    assert [name for name, count in Counter(listed).items() if count > 1] == []
    assert all(rule.id.startswith(f"{question.id}.") for question in QUESTIONS for rule in question.every)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_a_rule_names_what_exists(rule: Rule) -> None:
    """Findings of the list, counts of the evidence, facts of `numbers`, papers that are summed up, and no others."""
    counts = {field.name for field in fields(Evidence)}
    needs = rule.needs if isinstance(rule.needs, tuple) else ()
    assert all(name in IDS if "." in name else name in counts for name in needs)
    facts = numbers(HEALTHY)
    for template in (rule.answer, rule.because, rule.action):
        assert {name for _, name, _, _ in string.Formatter().parse(template) if name is not None} <= set(facts)
    cited = set(re.findall(r"arXiv (\d{4}\.\d{5})", rule.because))
    assert cited == {source for source in rule.sources if source != "default"}
    assert cited <= set(SOURCES)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_an_action_names_commands_that_exist(rule: Rule) -> None:
    verbs = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    for evidence in (HEALTHY, BARE, replace(BARE, pairs=9)):
        action = rule.action.format_map(numbers(evidence))
        assert set(re.findall(r"druthers (\w+)", action)) <= verbs


def test_the_ids_that_inspect_makes_are_those_the_rules_read() -> None:
    """Of what takes embeddings or the model; what it makes beyond them is there to be read by people alone."""
    of_inspect = {name for name in IDS if name in examination.IDS or name.startswith(("D8.", "D9.", "D10."))}
    assert of_inspect | {"D6.noise", "D11.chosen", "D12.logprob", "D12.onpolicy", "D13.language"} <= set(
        examination.IDS
    )
    assert set(advice.OF_INSPECT) <= set(examination.IDS)


def test_what_was_not_measured_names_the_command_that_does() -> None:
    curated = without(HEALTHY, "D8.coverage", *advice.OF_INSPECT)
    action = {a.rule: a.action for a in answers(curated)}
    assert action["A1.unknown"] == action["A7.unknown"] == "druthers inspect RUN"
    assert action["A5.unknown"] == "druthers inspect RUN --prompts PROMPTS.jsonl"
    assert {a.action for a in answers(BARE) if a.rule in ("A1.unknown", "A2.unknown", "A5.unknown", "A7.unknown")} == {
        "druthers curate  --run RUN"
    }
    tried = with_findings(curated, found("D12.logprob", "undefined", None))
    assert {a.rule: a.action for a in answers(tried)}["A7.unknown"] == ""


def test_every_paper_is_used() -> None:
    used = {source for rule in RULES.values() for source in rule.sources}
    assert set(SOURCES) == used - {"default"}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_the_condition_in_words_names_the_findings_of_the_condition(rule: Rule) -> None:
    """Turning a finding that the words do not name to failure never makes the rule of an inclusive question fire."""
    question = next(q for q in QUESTIONS if rule in q.rules) if rule not in general() else None
    if question is None:
        return
    for name in IDS:
        told = name in rule.fires or (name == "D3.noise" and "1 - D3.noise" in rule.fires)
        if not told and "as in A1.sft-first" not in rule.fires and rule.id != "A2.undecided":
            assert rule.when(bad(name, value=0.05)) == rule.when(HEALTHY), name


def general() -> set[Rule]:
    return {rule for question in QUESTIONS for rule in (question.fine, question.unknown) if rule is not None}


# ---------------------------------------------------------------- laws

statuses = st.sampled_from(["pass", "warn", "fail", "undefined"])
slices = st.sampled_from([{}, {"group": "de"}, {"group": "en"}, {"annotator": "ann"}, {"criterion": "tone"}])
unit_shares = st.floats(0.0, 1.0).map(lambda v: Interval(v, max(0.0, v - 0.05), min(1.0, v + 0.05), 100))


@st.composite
def any_finding(draw: st.DrawFn) -> Finding:
    status = draw(statuses)
    value = None if status == "undefined" else draw(st.floats(-5, 5))
    limits = draw(st.sampled_from([None, Limits(warn=0.1, fail=0.2)]))
    more = {
        "slice": draw(slices),
        "uncertain": draw(st.booleans()),
        "limits": limits,
        "unit": draw(st.sampled_from(["", "%"])),
    }
    return found(draw(st.sampled_from(IDS)), status, value, **more)


counts = st.none() | st.integers(0, 10**7)


@st.composite
def any_evidence(draw: st.DrawFn) -> Evidence:
    groups = st.builds(Group, st.integers(0, 10**6), st.integers(0, 10**5))
    return Evidence(
        findings=tuple(draw(st.lists(any_finding(), max_size=12))),
        improvement=draw(st.floats(0.001, 0.5)),
        rounds=draw(st.integers(1, 3)),
        **{name: draw(counts) for name in ("pairs", "prompts", "heldout", "heldout_prompts", "asked")},
        unpaired=draw(st.integers(0, 10**6)),
        graded=draw(st.integers(0, 10**6)),
        **{name: draw(st.none() | unit_shares) for name in ("ties", "conflicts", "accuracy", "won")},
        longer=draw(st.none() | st.floats(0, 1)),
        cut=draw(st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1))),
        groups=draw(st.dictionaries(st.sampled_from(["de", "en", "fr"]), groups)),
        rubric=draw(st.booleans()),
        epochs=draw(st.floats(0.1, 5)),
        curve=draw(st.sampled_from([None, RISING, LEVEL, VAGUE])),
    )


@settings(deadline=None)
@given(any_evidence())
def test_every_question_is_answered_whatever_is_known(evidence: Evidence) -> None:
    given = answers(evidence)
    assert given == answers(evidence)
    for question in QUESTIONS:
        own = [a.rule for a in given if a.question == question.text]
        assert len(own) == len(set(own)) >= 1
        assert len(own) == 1 or not question.exclusive
        assert question.fine is None or question.fine.id not in own or len(own) == 1
    assert list(dict.fromkeys(a.question for a in given)) == [question.text for question in QUESTIONS]
    assert all(a.answer and "{" not in a.answer + a.why + a.action for a in given)


@settings(deadline=None, max_examples=60)
@given(any_evidence(), st.lists(any_finding(), min_size=1, max_size=8))
def test_more_evidence_never_takes_an_answer_away(evidence: Evidence, more: list[Finding]) -> None:
    """What is missing can only get less, and a question that was answered stays answered."""
    known = {finding.id for finding in evidence.findings}
    grown = replace(evidence, findings=(*evidence.findings, *(f for f in more if f.id not in known)))
    before, after = missing(evidence), missing(grown)
    for question in QUESTIONS:
        assert after[question.text] <= before[question.text]


def missing(evidence: Evidence) -> dict[str, int]:
    """How much each question says is missing."""
    lacking = dict.fromkeys((question.text for question in QUESTIONS), 0)
    for answer in answers(evidence):
        lacking[answer.question] += len(answer.missing)
    return lacking


@settings(deadline=None, max_examples=40)
@given(any_evidence(), st.integers(0, 10**6))
def test_counts_that_become_known_take_nothing_away_either(evidence: Evidence, count: int) -> None:
    for name in ("pairs", "prompts", "heldout_prompts", "asked"):
        if getattr(evidence, name) is None:
            grown = replace(evidence, **{name: count})
            assert all(missing(grown)[text] <= n for text, n in missing(evidence).items())


def test_the_thresholds_are_those_of_the_page() -> None:
    """Numbers in the words of a condition come from the constants, so that the two cannot part."""
    assert f"{rules.FEW_PROMPTS} prompts" in RULES["A1.few"].fires
    assert f"{rules.FAR} nats" in RULES["A1.sft-first"].fires
