"""`druthers advise` on run directories made by hand: what it reads, what it says, and the prompts it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers import storage
from druthers.config import load, to_json
from druthers.counsel import options_of
from druthers.curate import census
from druthers.curate.census import Census, Orders
from druthers.curate.gaps import Gaps
from druthers.records import Finding, InputError, Pair, Prompt, Rows, assistant, user
from druthers.stats import Interval
from tests.calls import Called, druthers, jsonl

ROOT = Path(__file__).parents[1]


def pair(question: str, **more: Any) -> Pair:
    return Pair(prompt=user(question), chosen=assistant("Yes."), rejected=assistant("No."), **more)


def prompt(question: str, **more: Any) -> dict[str, Any]:
    return Prompt(prompt=user(question), **more).line()


def lines(path: Path, records: Iterable[Pair]) -> Path:
    return jsonl(path, (record.line() for record in records))


def finding(name: str, status: str, value: float | None = 0.3, **more: Any) -> dict[str, Any]:
    given = {"id": name, "status": status, "text": f"{name} is {status}.", "value": value, "n": 400}
    if value is not None:
        given |= {"low": value - 0.02, "high": value + 0.02}
    return given | more


def made(
    folder: Path,
    *,
    train: list[Pair],
    heldout: list[Pair],
    findings: list[dict[str, Any]] | None = None,
    rejected: list[dict[str, Any]] | None = None,
    settings: tuple[str, ...] = (),
) -> Path:
    """A curated run directory."""
    (folder / "data").mkdir(parents=True)
    own = load(overrides=[f"run={folder}", "data.pairs=pairs.jsonl", *settings])
    (folder / "config.json").write_text(to_json(own))
    lines(folder / "data/train.jsonl", train)
    lines(folder / "data/heldout.jsonl", heldout)
    jsonl(folder / "data/rejected.jsonl", rejected or [])
    reasons = [row["reason"] for row in rejected or []]
    summary = {
        "format": "druthers",
        "train": len(train),
        "heldout": len(heldout),
        "kept": len(train) + len(heldout),
        "rejected": {reason: reasons.count(reason) for reason in set(reasons)},
        "prompts": {"train": len({p.prompt_id for p in train}), "heldout": len({p.prompt_id for p in heldout})},
        "cut": {"chosen": 0, "rejected": 1},
        "longer_chosen": 0.5,
    }
    storage.write_json(folder / "data/summary.json", summary)
    if findings is not None:
        storage.write_json(folder / "data/quality.json", {"findings": findings})
    return folder


def some(count: int, word: str, **more: Any) -> list[Pair]:
    return [pair(f"{word} {i}?", **more) for i in range(count)]


def finished(folder: Path, *, pairs: int, accuracy: float, prompts: int = 400, evaluated: bool = True) -> Path:
    """The rest of a trained run."""
    storage.write_json(folder / "inputs.json", {"model": {"sha256": "abc"}})
    summary: dict[str, Any] = {"train": {"pairs": pairs, "best_step": 4}}
    if evaluated:
        known = {"value": accuracy, "low": accuracy - 0.004, "high": accuracy + 0.004, "n": prompts}
        summary["heldout"] = {"accuracy": known}
    row = {"split": "heldout", "loss": 0.6, "rewards/accuracies": accuracy, "pairs": prompts, "tokens": 9}
    rows = [row | {"step": step} for step in (0, 4)]
    jsonl(folder / "metrics.jsonl", rows)
    storage.write_json(folder / "summary.json", summary)
    return folder


def rules(called: Called) -> list[str]:
    return [answer["rule"] for answer in called.json["answers"]]


def answer(called: Called, rule: str) -> dict[str, Any]:
    return next(a for a in called.json["answers"] if a["rule"] == rule)


# ---------------------------------------------------------------- what it says


def test_without_findings_it_says_what_makes_them(tmp_path: Path) -> None:
    run = made(tmp_path / "run", train=some(200, "train"), heldout=some(5, "held"))
    called = druthers("advise", run, "--json")
    assert "druthers curate" in called.json["quality"]
    assert "leaks (D1.leak)" in answer(called, "A2.unknown")["missing"]
    assert "A3h.short" in rules(called)
    unknown = answer(called, "A4.unknown")["action"]
    assert f"--run {run}-quarter data.limit=50" in unknown
    assert f"--run {run}-half data.limit=100" in unknown
    assert unknown.startswith("druthers train --data pairs.jsonl")
    assert f"druthers advise {run} --runs {run}-quarter --runs {run}-half" in unknown


def test_findings_are_read_and_said_with_their_numbers(tmp_path: Path) -> None:
    found = [finding("D3.alpha", "fail", 0.1), finding("D8.coverage", "warn", 0.6), finding("D3.noise", "pass", 0.2)]
    run = made(tmp_path / "run", train=some(400, "train"), heldout=some(50, "held"), findings=found)
    called = druthers("advise", run, "--json")
    assert called.json["quality"] == "data/quality.json"
    first = called.json["answers"][0]
    assert first["rule"] == "A1.guidelines-first"
    assert first["evidence"] == ["D3.alpha", "D3.noise"]
    assert "[D3.alpha: 0.1 (0.08 to 0.12), n = 400]" in first["why"]
    assert "A5.coverage" in rules(called)
    assert "2,178 held-out prompts" in answer(called, "A3h.short")["answer"]


def test_people_see_question_answer_rule_and_command(tmp_path: Path) -> None:
    run = made(tmp_path / "run", train=some(20, "train"), heldout=some(5, "held"))
    called = druthers("advise", run)
    assert called.code == 0
    shown = " ".join(called.out.split())
    for words in ("Which method?", "A1.few", "arXiv 2312.01552", "do: druthers align", "missing:", "Findings"):
        assert words in shown


def test_the_improvement_is_the_users(tmp_path: Path) -> None:
    run = made(tmp_path / "run", train=some(20, "train"), heldout=some(60, "held"))
    assert "A3h.enough" in rules(druthers("advise", run, "--improvement", 20, "--json"))
    assert "A3h.short" in rules(druthers("advise", run, "--json"))


def test_groups_grading_ties_and_criteria_are_counted(tmp_path: Path) -> None:
    train = [
        *some(30, "de", group="de", p=0.8),
        *some(5, "en", group="en"),
        *some(40, "tie", p=0.5),
        *(pair(f"both {i}?", criterion=c, p=p) for i in range(40) for c, p in (("tone", 0.9), ("facts", 0.1))),
    ]
    run = made(tmp_path / "run", train=train, heldout=some(4, "held", group="de"), settings=("train.epochs=2",))
    called = druthers("advise", run, "--json")
    assert called.json["answers"][0]["rule"] == "A1.criteria"
    assert answer(called, "A5.groups")["answer"] == "Pairs of en."
    assert "de" in answer(called, "A3g.short")["answer"]
    assert "A7.overoptimisation" in rules(called)


def test_a_rubric_and_rounds_point_to_fresh_answers(tmp_path: Path) -> None:
    settings = ("evaluate.rubric=brand-voice",)
    run = made(tmp_path / "run", train=some(20, "t"), heldout=some(900, "h"), settings=settings)
    called = druthers("advise", run, "--rounds", 2, "--json")
    assert called.json["answers"][0]["rule"] == "A1.online"
    assert "evaluate.count=783" in answer(called, "A3h.asked")["action"]


def test_before_curation_the_answers_say_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(to_json(load(overrides=[f"run={run}"])))
    called = druthers("advise", run, "--json", "--prompts", tmp_path / "next.jsonl")
    assert all(a["rule"].endswith(".unknown") for a in called.json["answers"])
    assert called.json["prompts"]["count"] == 0
    assert not (tmp_path / "next.jsonl").exists()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: (run / "config.json").unlink(), "not a run directory"),
        (lambda run: (run / "data/quality.json").write_text("{}"), "no list of findings"),
        (lambda run: (run / "data/quality.json").write_text('{"findings": [{"id": "x"}]}'), "findings.0: "),
        (lambda run: (run / "data/quality.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "data/train.jsonl").write_text("{\n"), "train.jsonl:1"),
    ],
)
def test_a_broken_run_is_refused_in_one_sentence(tmp_path: Path, break_it: Any, words: str) -> None:
    run = made(tmp_path / "run", train=some(4, "t"), heldout=some(2, "h"), findings=[])
    break_it(run)
    assert words in druthers("advise", run).fault


# ---------------------------------------------------------------- learning curve


def sizes(place: Path, *, accuracies: tuple[float, ...], **more: Any) -> list[Path]:
    """Runs of 1, 1/2, 1/4 ... of the pairs, with the same held-out ones."""
    heldout = some(400, "held")
    runs = []
    for i, accuracy in enumerate(accuracies):
        n = 800 >> i
        limit = (f"data.limit={n}",) if i else ()
        run = made(place / f"run{n}", train=some(8, "train"), heldout=heldout, settings=limit)
        runs.append(finished(run, pairs=n, accuracy=accuracy, **more))
    return runs


def options(runs: list[Path]) -> list[object]:
    return [runs[0], *(word for run in runs[1:] for word in ("--runs", run))]


def test_runs_of_several_sizes_say_what_more_would_bring(tmp_path: Path) -> None:
    runs = sizes(tmp_path, accuracies=(0.76, 0.72, 0.66, 0.58))
    found = answer(druthers("advise", *options(runs), "--json"), "A4.rising")
    assert found["answer"].startswith("More pairs of this kind would help: from 800 to 1,600 brings +")
    assert "81.1% would take 2,9" in found["why"]  # 5 points over the curve at 800 pairs
    assert "runs of 100, 200, 400, 800 pairs" in found["why"]


def test_a_level_curve_says_that_more_of_the_same_brings_nothing(tmp_path: Path) -> None:
    runs = sizes(tmp_path, accuracies=(0.70, 0.70, 0.70))
    assert "A4.level" in rules(druthers("advise", *options(runs), "--json"))


def test_runs_that_were_not_evaluated_count_by_their_best_step(tmp_path: Path) -> None:
    runs = sizes(tmp_path, accuracies=(0.76, 0.72, 0.66), evaluated=False)
    assert "A4.undecided" in rules(druthers("advise", *options(runs), "--json"))


def test_too_few_sizes_are_said_as_what_is_missing(tmp_path: Path) -> None:
    runs = sizes(tmp_path, accuracies=(0.76, 0.72))
    assert "there are 2" in answer(druthers("advise", *options(runs), "--json"), "A4.unknown")["missing"][0]


def test_runs_that_differ_in_more_than_their_size_are_refused(tmp_path: Path) -> None:
    runs = sizes(tmp_path, accuracies=(0.76, 0.72, 0.66))
    faults = []
    own = load(overrides=[f"run={runs[1]}", "data.pairs=pairs.jsonl", "train.learning_rate=1e-3"])
    (runs[1] / "config.json").write_text(to_json(own))
    faults.append(druthers("advise", *options(runs)).fault)
    storage.write_json(runs[1] / "inputs.json", {"model": {"sha256": "other"}})
    faults.append(druthers("advise", *options(runs)).fault)
    lines(runs[1] / "data/heldout.jsonl", some(399, "held"))
    faults.append(druthers("advise", *options(runs)).fault)
    (runs[1] / "summary.json").unlink()
    faults.append(druthers("advise", *options(runs)).fault)
    for fault, words in zip(
        faults,
        ("train.learning_rate", "other model weights", "other held-out pairs", "not trained to its end"),
        strict=True,
    ):
        assert words in fault


# ---------------------------------------------------------------- prompts to collect


def test_prompts_to_collect_are_ranked_and_each_stands_once_with_its_reasons(tmp_path: Path) -> None:
    doubtful = pair("doubtful?")
    torn = pair("torn and scarce?", p=0.6, group="en")
    train = [*some(20, "de", group="de"), pair("scarce?", group="en"), pair("tied?", p=0.5), torn, doubtful]
    rejected = [
        {"where": "x:1", "reason": "contradiction", "why": "", "row": pair("torn and scarce?").line()},
        {"where": "x:2", "reason": "duplicate", "why": "", "row": pair("duplicate?").line()},
        {"where": "x:3", "reason": "both_bad", "why": "", "row": {"prompt": "bad?", "responses": []}},
        {"where": "x:4", "reason": "tie", "why": "", "row": {"text": "?"}},
    ]
    noise = finding("D6.suspects", "pass", rows={"file": "suspects.jsonl", "count": 1})
    run = made(tmp_path / "run", train=train, heldout=[pair("held?", p=0.45)], findings=[noise], rejected=rejected)
    jsonl(run / "data/suspects.jsonl", [{"id": doubtful.id, "why": "?"}])
    jsonl(run / "data/uncovered.jsonl", [prompt("uncovered?", reason="far from all training prompts"), prompt("tied?")])
    out = tmp_path / "next.jsonl"
    called = druthers("advise", run, "--prompts", out, "--json")
    written = list(storage.read(str(out), Prompt))
    assert [(p.prompt[0].content, p.group, p.reason) for p in written] == [
        ("tied?", "", "coverage gap; tied"),
        ("uncovered?", "", "far from all training prompts"),
        ("torn and scarce?", "", "contradicted; torn; group with few pairs"),
        ("bad?", "", "both answers bad"),
        ("held?", "", "torn; held out"),
        ("doubtful?", "", "doubtful label"),
        ("scarce?", "en", "group with few pairs"),
    ]
    found = called.json["prompts"]
    assert (found["count"], found["found"], found["unreadable"]) == (7, 7, 1)
    assert found["reasons"]["contradicted"] == 1
    again = druthers("advise", run, "--prompts", out, "--most", 2, "--json").json["prompts"]
    assert again["count"] == 2
    assert len(list(storage.read(str(out), Prompt))) == 2
    shown = " ".join(druthers("advise", run, "--prompts", out).out.split())
    assert "7 in " in shown.replace(str(out), "")


@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0.2, 0.5, 0.6, 1.0]), st.sampled_from(["", "a"]))),
    st.integers(1, 12),
)
def test_no_prompt_is_made_up_or_written_twice(rows: list[tuple[int, float, str]], most: int) -> None:
    known = [pair(f"q{i}", p=p, group=group) for i, p, group in rows]
    gaps = Gaps(scarce={"a"}, most=most)
    gaps.pairs([one.line() for one in known], heldout=False)
    ranked = gaps.ranked()
    ids = [p.prompt_id for p in ranked]
    assert len(ids) == len(set(ids)) <= most
    assert set(ids) <= {one.prompt_id for one in known}
    assert all(p.reason for p in ranked)
    if most >= 9:  # of nine prompts
        wanted = {one.prompt_id for one in known if one.p in (0.5, 0.6) or one.group == "a"}
        assert set(ids) == wanted


def test_of_one_reason_no_more_are_kept_than_are_wanted_and_the_rest_are_counted() -> None:
    gaps = Gaps(most=3)
    gaps.pairs((pair(f"q{i % 50}?", p=0.5).line() for i in range(100)), heldout=False)
    gaps.pairs([pair("torn?", p=0.6).line(), pair("q2?", p=0.6).line()], heldout=True)
    assert (len(gaps.found), gaps.beyond) == (4, 94)
    assert [p.reason for p in gaps.ranked()] == ["torn; tied; held out", "torn; held out", "tied"]


# ---------------------------------------------------------------- counts


def test_criteria_that_disagree_are_counted_by_comparison_whichever_side_is_named_first() -> None:
    found = Orders()
    same = pair("same?", criterion="tone")
    for one in (same, pair("same?", criterion="facts"), pair("apart?", criterion="tone")):
        found.add(one.line(), one.criterion, forward=True)
    turned = pair("apart?", criterion="facts").swap()
    found.add(turned.line(), turned.criterion, forward=turned.p > 0.5)
    swapped = Pair(prompt=user("apart?"), chosen=assistant("No."), rejected=assistant("Yes."), criterion="other")
    found.add(swapped.line(), swapped.criterion, forward=True)
    conflicts = found.conflicts()
    assert isinstance(conflicts, Interval)
    assert (conflicts.value, conflicts.n) == (0.5, 2)
    assert Orders().conflicts() is None


def test_comparisons_on_which_groups_differ_are_counted_within_a_criterion() -> None:
    counted = Census()
    sure = {"de": [0.9] * 40, "en": [0.9] * 30 + [0.1] * 10}
    rows = [pair(f"q{i}?", group=group, p=p) for group, ps in sure.items() for i, p in enumerate(ps)]
    counted.train(row.line() for row in rows)
    tastes = counted.tastes.conflicts()
    assert isinstance(tastes, Interval)
    assert (tastes.value, tastes.n) == (0.25, 40)
    other = Census()
    other.train([pair("q?", group="de", criterion="tone").line(), pair("q?", group="en", criterion="truth").line()])
    assert other.tastes.conflicts() is None


def test_of_very_many_comparisons_a_share_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "SAMPLED", 64)
    counted = Census()
    counted.train(
        pair(f"q{i}?", criterion=c, p=0.9 if (c == "tone") or i % 4 else 0.1).line()
        for i in range(2000)
        for c in ("tone", "facts")
    )
    assert 16 <= len(counted.criteria.orders) <= 64
    conflicts = counted.criteria.conflicts()
    assert isinstance(conflicts, Interval)
    assert conflicts.low < 0.25 < conflicts.high


@given(
    st.floats(0, 1),
    st.floats(0, 9),
    st.text('a]}{",: pé', max_size=9),
    st.sampled_from(["", "tone", '"p": 0.5']) | st.text('a]"', max_size=4),
    st.none() | st.just([{"type": "function", "function": {"name": "f", "parameters": {"p": 1}}}]),
)
def test_grades_read_without_their_texts_are_those_of_the_whole_row(
    p: float, margin: float, group: str, criterion: str, tools: list[dict[str, Any]] | None
) -> None:
    text = f'a ] "p": 0.5, {group}'
    row = pair(text, p=p, margin=margin, group=group, criterion=criterion, tools=tools).line()
    found = census.grades(storage.encode(row), whole=("criterion",))
    assert found is None or found == {k: v for k, v in row.items() if k not in ("id", "prompt", "chosen", "rejected")}
    assert found is not None or criterion or tools or "]" in group


def test_held_out_prompts_are_counted_once_in_their_group() -> None:
    counted = Census()
    rows = [pair("a?", group="de"), pair("a?", group="de").swap(), pair("b?", group="de"), pair("c?")]
    counted.heldout(row.line() for row in rows)
    assert dict(counted.heldout_groups) == {"de": 2}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.pairs=a b.jsonl", "train.epochs=0.5"),
        ("loss.name=cdpo", "loss.smoothing=0.2"),
        ("evaluate.count=none",),
    ],
)
def test_the_options_give_the_same_settings_again(overrides: tuple[str, ...]) -> None:
    import shlex

    own = load(overrides=overrides)
    words = shlex.split(options_of(own))
    data, *rest = words[1:]
    assert load(overrides=rest, extra={"data.pairs": data}) == own


def test_a_finding_round_trips_with_its_rows() -> None:
    made_ = Finding(id="D6.noise", status="warn", text="x", value=0.1, rows=Rows(file="a", count=1))
    assert storage.parse(json.loads(json.dumps(made_.model_dump(mode="json"))), Finding, where="x") == made_


def test_the_page_of_the_rules_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "advice_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_stands_on_the_page() -> None:
    from druthers.curate.rules import QUESTIONS

    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    for question in QUESTIONS:
        assert f"### {question.text}" in page
        for rule in question.every:
            assert f"| `{rule.id}` | {rule.fires} |" in page
            assert all(source in page for source in rule.sources)


def test_fresh_answers_are_those_of_the_newest_model(tmp_path: Path) -> None:
    settings = ("model.path=tiny", "evaluate.rubric=brand-voice")
    run = made(tmp_path / "run", train=some(20, "t"), heldout=some(4, "h"), settings=settings)
    action = answer(druthers("advise", run, "--rounds", 2, "--json"), "A1.online")["action"]
    judged = "druthers judge candidates.jsonl -o pairs.jsonl --rubric brand-voice"
    sampled = f"druthers sample {run}/data/train.jsonl --model {{}} -o candidates.jsonl -n 4 && {judged}"
    assert action == sampled.format("tiny")
    finished(run, pairs=20, accuracy=0.6)
    action = answer(druthers("advise", run, "--rounds", 2, "--json"), "A1.online")["action"]
    exported = f"(test -d {run}-model || druthers export {run} {run}-model) && "
    assert action == exported + sampled.format(f"{run}-model")


def test_pairs_are_asked_each_prompt_once(tmp_path: Path) -> None:
    from druthers.pipeline import prompts_in

    lines(tmp_path / "pairs.jsonl", [pair("one?", group="de"), pair("two?"), pair("one?", group="de", p=0.8)])
    found = [(one.prompt[0].content, one.group) for one in prompts_in(str(tmp_path / "pairs.jsonl"))]
    assert found == [("one?", "de"), ("two?", "")]
    jsonl(tmp_path / "prompts.jsonl", [prompt("three?", reason="torn"), {"prompt": 3}])
    with pytest.raises(InputError, match=r"prompts.jsonl:2: prompt"):
        list(prompts_in(str(tmp_path / "prompts.jsonl")))
