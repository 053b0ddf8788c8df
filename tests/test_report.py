"""The report: it reads only a run directory, says what is missing, and makes nothing of untrusted text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers.records import Exchange, InputError, Judgement, user
from druthers.report import figures, samples, write_report
from druthers.report.reading import TREES, estimate, read_run
from druthers.stats import Interval, Undefined
from tests.run_directory import RULES, write_run

LIMIT_BYTES = 1_000_000
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Outline(HTMLParser):
    """Tags, texts and ids of a page; fails where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts).replace("\u202f", " "))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "voice", prompts=40, steps=24)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "voice"))


def page_of(run: Path) -> Outline:
    return Outline(write_report(run).read_text(encoding="utf-8"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file, or every line of a JSONL file, in place."""
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(row) for row in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_page_stands_in_the_run_and_says_what_the_files_say(run: Path) -> None:
    page = page_of(run)
    answers = json.loads((run / "evaluation/answers.json").read_text())
    assert (run / "report.html").stat().st_size < LIMIT_BYTES / 4
    for share in (answers["sampled"]["win_rate"]["value"], answers["greedy"]["win_rate"]["value"]):
        assert f"{100 * share:.1f} %" in page.text
    assert "Better" in page.text
    assert "SmolLM2-135M-Instruct" in page.text
    assert all(rule.label in page.text for rule in RULES.values())
    assert "is not in this run" not in page.text
    assert "Better:" not in page.text


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_page_is_self_contained_and_runs_nothing(run: Path) -> None:
    page = page_of(run)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    attributes = {key for _, attrs in page.tags for key in attrs}
    assert not any(key.startswith("on") for key in attributes)
    assert all((attrs["href"] or "").startswith("#") for attrs in page.all("a"))
    css = (run / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_every_figure_has_a_name_and_every_link_a_target(run: Path) -> None:
    page = page_of(run)
    images = [attrs for attrs in page.all("svg") if attrs.get("class") != "box"]
    assert len(images) > 15
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in images)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {(attrs["href"] or "")[1:] for attrs in page.all("a")} <= set(ids)
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]


def test_every_svg_is_well_formed(run: Path) -> None:
    page = write_report(run).read_text()
    found = re.findall(r'<svg class="(?:track|plot).*?</svg>(?=</td>|</div>)', page, flags=re.DOTALL)
    assert len(found) > 15
    for svg in found:
        tree = ElementTree.fromstring(svg)
        assert not any("nan" in value.lower() for node in tree.iter() for value in node.attrib.values())


EVIL = '</style></p><script>document.title="x"</script><img src=x onerror=alert(1)><!-- {{ 7 * 7 }} "\' &amp;'


def test_model_text_is_inert_wherever_it_stands(run: Path) -> None:
    for file in ("answers-sampled", "judgements-sampled"):
        (run / f"evaluation/{file}.jsonl").unlink()
    sides = [
        Exchange(prompt=user(EVIL), response=EVIL, model=m, seed=0, temperature=0.7, tokens=9, finished=True)
        for m in ("base", "aligned")
    ]
    judged = Judgement(
        prompt_id=sides[0].prompt_id,
        judge="j",
        a="base",
        b="aligned",
        outcome="b",
        rules_a={EVIL: 0.0},
        rules_b={EVIL: 1},
    )
    write = {"answers": [s.line() for s in sides], "judgements": [judged.line()]}
    for name, lines in write.items():
        (run / f"evaluation/{name}-sampled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewrite(
        run / "evaluation/answers.json", lambda t: t["rules"].update({EVIL: {**t["rules"]["short"], "label": EVIL}})
    )
    rewrite(run / "summary.json", lambda t: t.update(text=EVIL))
    rewrite(run / "evaluation/pairs.json", lambda t: t.update(text=EVIL))
    rewrite(run / "inputs.json", lambda t: t["model"].update(name=EVIL))
    rewrite(run / "data/summary.json", lambda t: t.update(source=EVIL, rejected={EVIL: 1}))
    rewrite(run / "config.json", lambda t: t["model"].update(path=EVIL))
    page = page_of(run)
    assert not page.all("script")
    assert not page.all("img")
    assert page.text.count('<script>document.title="x"</script>') >= 10
    assert "{{ 7 * 7 }}" in page.text


def test_long_samples_are_cut_and_say_so(run: Path) -> None:
    def lengthen(line: dict[str, Any]) -> None:
        line["response"] = "<&>" * 100_000

    rewrite(run / "evaluation/answers-sampled.jsonl", lengthen)
    page = page_of(run)
    assert (run / "report.html").stat().st_size < LIMIT_BYTES
    assert f"{300_000 - samples.LONGEST_ANSWER} more characters" in page.text


def test_a_long_training_keeps_the_page_small(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    train = json.loads(next(line for line in lines if '"train"' in line))
    more = [json.dumps({**train, "step": step}) for step in range(25, 20_000)]
    (run / "metrics.jsonl").write_text("\n".join(lines + more) + "\n")
    page_of(run)
    assert (run / "report.html").stat().st_size < LIMIT_BYTES / 2


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run directory, because it has no config\.json; name a folder"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="is not a run directory"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_only_a_config_says_what_is_absent(original: Path, tmp_path: Path) -> None:
    shutil.copy(original / "config.json", tmp_path)
    page = page_of(tmp_path)
    assert "Not judged" in page.text
    for file in (*TREES, "metrics.jsonl", "outcomes.parquet", "evaluation/answers-sampled.jsonl"):
        assert file in page.text
    assert "metrics.jsonl is not in this run: the train stage has not taken a step here." in page.text


@pytest.mark.parametrize("file", [*TREES, "metrics.jsonl", "outcomes.parquet", "evaluation/judgements-sampled.jsonl"])
def test_any_file_may_be_missing_or_damaged(run: Path, file: str) -> None:
    (run / file).write_bytes(b'{"half')
    assert "it is damaged" in page_of(run).text
    (run / file).write_bytes(b"")
    page_of(run)
    (run / file).unlink()
    page = page_of(run)
    assert file in page.text
    assert "Samples" in page.text


def test_any_number_may_be_of_a_wrong_type(run: Path) -> None:
    for file in TREES:
        rewrite(run / file, lambda tree: tree.update(dict.fromkeys(tree, "x")))
    rewrite(run / "metrics.jsonl", lambda line: line.update({"loss": None, "rewards/margins": "x"}))
    assert "Not judged" in page_of(run).text


def test_without_a_rubric_the_page_says_why_there_is_no_win_rate(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "voice", prompts=12, steps=8, rubric=None))
    assert "Not judged The answers were not judged, because no rubric is set" in page.text
    assert "of held-out pairs ranked in the preferred order" in page.text
    assert "evaluation/answers.json says why: no rubric judged the answers." in page.text
    assert "the setting evaluate.rubric is unset" in page.text
    assert "summary.json: win_rate no rubric judged the answers" in page.text
    assert len(page.all("article")) == samples.BEST + samples.RANDOM
    assert "Nobody judged these answers, so they were drawn at random with seed 0." in page.text


def test_a_check_outside_its_limit_is_told_at_the_top(run: Path) -> None:
    rewrite(run / "evaluation/answers.json", lambda t: t["length"].update(ratio=1.62))
    rewrite(run / "evaluation/answers.json", lambda t: t["repetition"].update(aligned=t["repetition"]["base"] + 0.02))
    page = page_of(run)
    assert "Outside its limit: length, repetition." in page.text


@pytest.mark.parametrize(("verdict", "shown"), [("worse", "Worse"), ("no difference shown", "No difference shown")])
def test_the_verdict_is_the_one_of_the_summary(run: Path, verdict: str, shown: str) -> None:
    rewrite(run / "summary.json", lambda t: t.update(verdict=verdict, text="Because of 41.0 %."))
    assert f"{shown} Because of 41.0 %." in page_of(run).text


def test_margins_before_training_are_drawn_where_they_differ(run: Path) -> None:
    before, after = np.array([-2.0, -1.0, 0.5, 2.0]), np.array([-1.0, 1.0, 2.0, 3.0])
    assert 'class="curve base"' in figures.histogram(before, after, label="x")
    assert "before: all at 0" in figures.histogram(np.zeros(4), after, label="x")
    assert read_run(run).margins.steps[0] == 0


def test_an_estimate_outside_its_interval_is_undefined() -> None:
    assert isinstance(estimate({"a": {"value": 2, "low": 0, "high": 1, "n": 3}}, "a"), Undefined)
    assert isinstance(estimate({"a": {"value": float("nan"), "low": 0, "high": 1}}, "a"), Undefined)
    assert estimate({"a": {"value": 1, "low": 0, "high": 1, "n": 3}}, "a") == Interval(1, 0, 1, 3)


def comparison(gain: float, number: int) -> samples.Comparison:
    base, aligned = (
        Exchange(prompt=user(f"Q{number}"), response="A", model=m, seed=0, temperature=1, tokens=1, finished=True)
        for m in ("base", "aligned")
    )
    judgement = Judgement(
        prompt_id=base.prompt_id, judge="j", a="base", b="aligned", outcome="tie", score_a=0.0, score_b=gain
    )
    return samples.Comparison(base, aligned, judgement)


@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), max_size=25), st.integers(0, 3))
def test_samples_are_picked_by_rule_whatever_the_order(gains: list[float], seed: int) -> None:
    every = [comparison(gain, i) for i, gain in enumerate(gains)]
    picked = samples.pick(every, seed=seed)
    assert len({id(p.comparison) for p in picked}) == len(picked) == min(len(every), 10)
    assert picked == samples.pick(every[::-1], seed=seed)
    by = {why: [p.comparison.gain for p in picked if p.why == why] for why in ("best", "worst", "random")}
    assert by["best"] == sorted(gains, reverse=True)[:4]
    assert by["worst"] == sorted(by["worst"])
    if by["worst"] and by["random"]:
        assert max(by["worst"]) <= min(by["best"] + by["random"])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    found = figures.ticks(low, low + width)
    assert len(found) <= 7
    assert all(low - 1e-6 * width - 1e-9 * abs(low) <= t <= low + width * (1 + 1e-6) + 1e-9 * abs(low) for t in found)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_bins_hold_the_values_and_split_at_zero(values: list[float]) -> None:
    array = np.array(values)
    edges = figures.bins(array)
    assert 0.0 in edges
    assert len(edges) <= 40
    assert figures.binned(array, edges).sum() == pytest.approx(1)
