"""The data page, the card and the screen: read from files alone, inert, small whatever the data, honest about gaps."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from druthers import cli
from druthers.findings import finding
from druthers.records import Finding, InputError, Limits, Pair, Rows, assistant, user
from druthers.report import card, data_lines, datacharts, figures, findings, write_data_page
from druthers.report.dataset import pairs_named, read_data
from druthers.report.screen import MOST, WIDEST, lines
from druthers.stats import Interval, Undefined
from tests.test_report import EVIL, Outline

LIMIT_BYTES = 1_500_000
SUMMARY: dict[str, Any] = {
    "source": "/somewhere/else/voice/pairs.jsonl",
    "source_sha256": "ab" * 32,
    "heldout_source": None,
    "format": "trl",
    "rows": 10,
    "kept": 6,
    "train": 4,
    "heldout": 2,
    "beyond_limit": 1,
    "rejected": {"leak": 2, "empty_response": 1},
    "prompts": {"train": 4, "heldout": 2},
    "tokens": {f"{part}_{of}": 9 for part in ("prompt", "chosen", "rejected") for of in ("mean", "max")},
    "cut": {"chosen": 0, "rejected": 1},
    "longer_chosen": 0.75,
    "margin": {"mean": 0.0, "max": 0.0},
    "ignored_columns": {},
    "joined_turns": 0,
}
ABOVE, BELOW = Limits(warn=0.1, fail=0.3), Limits(warn=0.4, fail=0.2, bad="below")
STATES = (
    finding("D1.leak", 2, "Two leak.", n=9, unit="prompts", limits=Limits(fail=0), action="Remove them."),
    finding(
        "D4.position", Interval(3.0, 2.5, 3.5, 900), "Left wins.", unit="points", limits=Limits(warn=2.0, fail=5.0)
    ),
    finding("D3.alpha", Interval(0.3, 0.1, 0.5, 100), "Little agreement.", limits=BELOW, about={"group": "de"}),
    finding("D1.near", Interval(0.02, 0.01, 0.03, 500), "Few copies.", limits=ABOVE),
    finding("D8.diversity", 31.0, "Diverse.", n=99),
    finding("D10.flip", Undefined("nothing is scored yet"), "Flips."),
)


def pair(number: int) -> Pair:
    return Pair(prompt=user(f"Question {number}?"), chosen=assistant("Plum."), rejected=assistant("Carrot."))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def quality_of(*found: Finding, **more: Any) -> dict[str, Any]:
    rows = [one.model_dump(mode="json", exclude_defaults=True) for one in found]
    return {"created": "2026-11-28T05:00:00Z", "source": "x", "verdict": "warn", "findings": rows, **more}


def write_data(run: Path, quality: dict[str, Any] | None = None, **summary: Any) -> Path:
    """A run directory with curated pairs and nothing else but its settings."""
    for side, numbers in (("train", range(4)), ("heldout", range(4, 6))):
        write_lines(run / f"data/{side}.jsonl", [pair(i).line() for i in numbers])
    refused = [("leak", "train.jsonl:1"), ("leak", "train.jsonl:2"), ("empty_response", "train.jsonl:3")]
    rejected = [{"where": w, "reason": r, "why": f"why {r}", "row": {"prompt": f"asked at {w}"}} for r, w in refused]
    write_lines(run / "data/rejected.jsonl", rejected)
    (run / "data/summary.json").write_text(json.dumps(SUMMARY | summary))
    (run / "config.json").write_text(
        json.dumps({"seed": 3, "model": {"path": "default"}, "data": {"pairs": "a b.jsonl"}})
    )
    if quality is not None:
        (run / "data/quality.json").write_text(json.dumps(quality))
    return run


def page_of(run: Path) -> Outline:
    return Outline(write_data_page(run).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the page


def test_an_older_run_has_a_page_that_says_what_was_not_measured(tmp_path: Path) -> None:
    page = page_of(write_data(tmp_path))
    assert "Not measured" in page.text
    assert "data/quality.json is not in this run: the pairs were curated without measuring them." in page.text
    assert "60.0 %" in page.text
    assert "of 10 rows became pairs" in page.text
    assert "asked at train.jsonl:2" in page.text
    assert [d for d in page.all("details") if "open" in d] == []
    assert "Raise data.limit" in page.text


def test_every_state_of_a_finding_is_told_worst_first(tmp_path: Path) -> None:
    page = page_of(write_data(tmp_path, quality_of(*STATES)))
    order = ["Duplicates and leaks: leaks", "Biases: order", "Agreement: Krip", "near copies", "Learnability"]
    body = page.text.partition("What was found")[2]
    assert [body.index(name) for name in order] == sorted(body.index(name) for name in order)
    for words in (
        "✕ fail",
        "⚠ warn",
        "◐ uncertain",
        "✓ pass",
        "Of 6 findings: 1 failed, 1 warned, 1 uncertain, 2 passed, 1 not computed.",
        "What to do: Remove them.",
        "The interval lies on both sides of a limit; about 400 would decide, where there are 100.",
        "nothing is scored yet",
        "warns above 2, fails above 5 points",
        "0.10 to 0.50",
        "1.0 % to 3.0 %",
        "group de",
    ):
        assert words in page.text


def test_a_finding_shows_its_rows_with_the_texts_of_their_pairs(tmp_path: Path) -> None:
    rows = Rows(file="findings/D1.leak.jsonl", count=30)
    run = write_data(tmp_path, quality_of(finding("D1.leak", 30, "Leaks.", n=40, limits=Limits(fail=0), rows=rows)))
    named = [{"pair_id": pair(5).id, "why": "it leaks"}, *({"where": f"a:{i}", "why": "so"} for i in range(29))]
    write_lines(run / "data/findings/D1.leak.jsonl", named)
    page = page_of(run)
    for words in ("30 rows: the first 20", "it leaks", "Question 5?", "a:18", "data/findings/D1.leak.jsonl"):
        assert words in page.text
    assert "a:19" not in page.text


@pytest.mark.parametrize("file", ["../../secret.jsonl", "/etc/hostname", "findings/none.jsonl"])
def test_rows_outside_the_data_are_not_read(tmp_path: Path, file: str) -> None:
    (tmp_path / "secret.jsonl").write_text('{"where": "hidden"}\n')
    rows = Rows(file=file, count=1)
    run = write_data(
        tmp_path / "a" / "run", quality_of(finding("D1.x", 1, "X.", n=1, rows=rows, limits=Limits(fail=0)))
    )
    page = page_of(run)
    assert "hidden" not in page.text
    assert "They are not in this run." in page.text


def test_text_of_the_data_is_inert_wherever_it_stands(tmp_path: Path) -> None:
    rows = Rows(file="findings/x.jsonl", count=1)
    bad = finding(EVIL, 1.0, EVIL, n=1, unit=EVIL, limits=Limits(fail=0), about={EVIL: EVIL}, rows=rows, action=EVIL)
    unknown = finding("D2.x", Undefined(EVIL), EVIL)
    bars = {"name": EVIL, "kind": "bars", "title": EVIL, "unit": EVIL, "labels": [EVIL], "values": [3], "text": EVIL}
    bins = {"name": "t", "kind": "histogram", "title": EVIL, "unit": EVIL, "edges": [0, 1], "counts": {EVIL: [2]}}
    over = {"name": "c", "kind": "curve", "title": EVIL, "over": EVIL, "series": {EVIL: [{"x": 1, "value": 2}]}}
    more = {
        "figures": [bars, bins, over],
        "annotators": [{"name": EVIL, "n": 3, "reliability": [0.5, 0.4, 0.6]}],
        "advice": [{"question": EVIL, "answer": EVIL, "rule": EVIL, "evidence": [EVIL]}],
    }
    run = write_data(tmp_path, quality_of(bad, unknown, **more), source=EVIL, rejected={EVIL: 1})
    evil_row = {"where": EVIL, "reason": EVIL, "why": EVIL, "row": {EVIL: EVIL}}
    write_lines(run / "data/rejected.jsonl", [evil_row])
    write_lines(run / "data/findings/x.jsonl", [{"where": EVIL, "why": EVIL, EVIL: [EVIL]}])
    page = page_of(run)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.text.count('<script>document.title="x"') >= 15
    assert "{{ 7 * 7 }}" in page.text
    outside_code = re.sub(r"`[^`]*`", "", card(run).split("---\n", 2)[2])
    assert re.search(r"(?<!\\)<", outside_code) is None


def test_the_page_is_accessible(tmp_path: Path) -> None:
    more = {"annotators": [{"name": "ann", "n": 3, "reliability": [0.5, 0.4, 0.6]}]}
    twice = finding("D1.leak", 1, "Again.", n=9, limits=Limits(fail=0), about={"group": "en"})
    page = page_of(write_data(tmp_path, quality_of(*STATES, twice, **more)))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"] or "" for attrs in page.all("a")}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = {link for link in links if not link.startswith("#")}
    assert files
    assert all((tmp_path / link).is_file() for link in files)
    assert all(s.get("role") == "img" and s.get("aria-label") for s in page.all("svg") if s.get("class") != "box")
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("details")) == len(page.all("summary"))


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = write_data(tmp_path, quality_of(*STATES))
    assert write_data_page(run).read_bytes() == write_data_page(run).read_bytes()


def test_the_page_stays_small_whatever_the_data(tmp_path: Path) -> None:
    """200,000 refused rows of many reasons, and hundreds of findings, each with long rows full of marks."""
    long = "<&>é" * 300
    found = [
        finding(f"D1.x{i}", 1.0, long, n=9, unit="rows", limits=Limits(fail=0), action=long, about={"group": long},
                rows=Rows(file=f"findings/{i}.jsonl", count=10**7))
        for i in range(400)
    ]  # fmt: skip
    figure = {"kind": "histogram", "title": long, "edges": list(range(5001)), "counts": {long: [1] * 5000}}
    bars = {"kind": "bars", "title": long, "labels": [long] * 500, "values": [1] * 500}
    points = {"kind": "points", "title": long, "series": {long: [{"x": i, "value": i % 7} for i in range(5000)]}}
    more = {
        "figures": [{"name": f"{kind['kind']}{i}", **kind} for i in range(20) for kind in (figure, bars, points)],
        "annotators": [{"name": long + str(i), "n": 1, "reliability": [0.5, 0.4, 0.6]} for i in range(1000)],
        "advice": [{"question": long, "answer": long, "rule": long, "evidence": [long] * 30}] * 30,
    }
    run = write_data(tmp_path, quality_of(*found, **more), rows=200_010)
    for i in range(400):
        write_lines(
            run / f"data/findings/{i}.jsonl", [{"where": long, "why": long, "a": long, "b": long, "c": [long]}] * 3
        )
    with (run / "data/rejected.jsonl").open("w") as file:
        for i in range(200_000):
            row = {"prompt": long} if i < 300 else {}
            file.write(json.dumps({"where": f"a:{i}", "reason": f"r{i % 100}", "why": "so", "row": row}) + "\n")
    page = write_data_page(run)
    assert page.stat().st_size < LIMIT_BYTES
    refused = read_data(run).refused
    assert sum(of.count for of in refused.values()) == 200_000
    assert len(refused) <= 41
    assert "280 more findings stand in" in Outline(page.read_text()).text


@pytest.mark.parametrize("file", ["quality.json", "rejected.jsonl", "train.jsonl"])
def test_a_file_may_be_missing_or_damaged(tmp_path: Path, file: str) -> None:
    run = write_data(tmp_path, quality_of(*STATES))
    (run / "data" / file).write_bytes(b'{"half\n[1]\n')
    page_of(run)
    (run / "data" / file).unlink()
    page = page_of(run)
    assert "4 pairs" in page.text


def test_a_damaged_finding_is_named_and_the_others_stand(tmp_path: Path) -> None:
    quality = quality_of(*STATES)
    quality["findings"].append({"id": "D1.bad", "status": "odd", "text": ""})
    page = page_of(write_data(tmp_path, quality))
    assert "data/quality.json: finding 6 it is damaged (status" in page.text
    assert "Two leak." in page.text


def test_any_number_may_be_of_a_wrong_type(tmp_path: Path) -> None:
    odd = {"figures": "x", "annotators": [3, {"reliability": "x"}], "advice": [None], "findings": {"a": 1}}
    run = write_data(tmp_path, odd, **dict.fromkeys(SUMMARY, "x"))
    page_of(run)
    card(run)
    assert lines({key: [] for key in SUMMARY}, odd)


def test_without_a_summary_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no data/summary\.json; name a run directory"):
        write_data_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_found_by_their_ids(tmp_path: Path) -> None:
    run = write_data(tmp_path)
    wanted = {pair(1).id, pair(5).id, "0" * 24}
    assert set(pairs_named(run, wanted)) == {pair(1).id, pair(5).id}


# ---------------------------------------------------------------- figures


def test_chosen_and_rejected_share_a_figure_where_their_bins_are_the_same() -> None:
    def bins(name: str, edges: list[int]) -> dict[str, Any]:
        counts = {"train": [1] * (len(edges) - 1), "heldout": [2] * (len(edges) - 1)}
        return {"name": name, "kind": "histogram", "title": name, "edges": edges, "counts": counts}

    both = datacharts.figures_of({"figures": [bins("n_chosen", [0, 5, 9]), bins("n_rejected", [0, 5, 9])]})
    assert [[row[:2] for row in chart.numbers] for _, chart in both] == [[["chosen", "6"], ["rejected", "6"]]]  # type: ignore[union-attr]
    apart = datacharts.figures_of({"figures": [bins("n_chosen", [0, 5]), bins("n_rejected", [0, 6])]})
    assert [name for name, _ in apart] == ["n_chosen", "n_rejected"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300).filter(any), st.floats(0.01, 1))
def test_merged_bins_lose_nothing_and_quantiles_lie_inside(counts: list[int], share: float) -> None:
    edges = [float(i) for i in range(len(counts) + 1)]
    given = [float(n) for n in counts]
    few, merged = datacharts.merged(edges, {"a": given})
    assert sum(merged["a"]) == sum(counts)
    assert len(merged["a"]) == len(few) - 1 <= datacharts.MOST_BINS
    assert edges[0] <= datacharts.quantile(edges, given, share) <= edges[-1]


@given(
    st.floats(-100, 100),
    st.floats(0, 50),
    st.floats(-100, 100),
    st.floats(0.01, 50),
    st.sampled_from(["above", "below"]),
)
def test_a_number_lies_in_the_zone_its_limits_say(
    value: float, half: float, warn: float, more: float, bad: Any
) -> None:
    given = Limits(warn=warn, fail=warn + more if bad == "above" else warn - more, bad=bad)
    scale = figures.zones_scale([value, value - half, value + half], [warn, given.fail or 0.0])
    zones = findings.zones(given, scale)
    assert scale.low < scale.high
    assert [a for _, a, _ in zones[1:]] == [b for _, _, b in zones[:-1]]
    zone = {"fine": "pass", "warned": "warn", "failed": "fail"}[figures.zone_of(value, zones)]
    exact = finding("D4.x", value, "X.", limits=given).status
    assert zone == exact or value in (warn, given.fail)


# ---------------------------------------------------------------- the card


def front_of(text: str) -> dict[str, Any]:
    head = text.split("---\n")[1]
    found = yaml.safe_load(head)
    assert isinstance(found, dict)
    return found


def test_the_card_begins_with_what_the_hub_reads(tmp_path: Path) -> None:
    text = card(write_data(tmp_path, quality_of(*STATES)))
    front = front_of(text)
    assert front["license"] == "unknown"
    assert front["task_categories"] == ["text-generation"]
    assert front["size_categories"] == ["n<1K"]
    assert front["pretty_name"] == "voice"
    files = front["configs"][0]["data_files"]
    assert [(f["split"], f["path"]) for f in files] == [("train", "train.jsonl"), ("heldout", "heldout.jsonl")]
    assert front_of(card(tmp_path, licence="mit"))["license"] == "mit"


@pytest.mark.parametrize("source", ['a "b": #c\\.jsonl', "---\nlicense: mit", "🍑: [x]", "yes", "1.0", "\u2028\x00"])
def test_the_front_of_a_card_is_yaml_whatever_the_source_is_called(tmp_path: Path, source: str) -> None:
    front = front_of(card(write_data(tmp_path, source=source)))
    assert isinstance(front["pretty_name"], str)
    assert front["license"] == "unknown"


def test_the_card_says_what_was_done_and_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    text = card(write_data(tmp_path, quality_of(*STATES)))
    for words in (
        "Verdict: **warn**",
        "| Duplicates and leaks: leaks | ✕ fail | 2 prompts | — | 9 | fails above 0 prompts |",
        "Prompt is held out too | 2 | `leak` |",
        "- Left wins.",
        "Learnability: pairs that training cannot flip could not be computed: nothing is scored yet",
        "druthers curate --data 'a b.jsonl' --run runs/again seed=3",
        "Unknown: nobody has said under which licence",
    ):
        assert words in text
    assert "/somewhere/else" not in text
    assert str(tmp_path) not in text


def test_a_card_names_each_of_several_sources_and_no_password(tmp_path: Path) -> None:
    run = write_data(tmp_path, source="/home/me/a b.jsonl and /home/me/c.csv and https://example.org/d.csv")
    pairs = ["/home/me/a b.jsonl", "/home/me/c.csv", "https://me:secret@example.org/d.csv?key=1"]
    (run / "config.json").write_text(json.dumps({"data": {"pairs": pairs}}))
    text = card(run)
    assert "druthers curate 'a b.jsonl' c.csv https://example.org/d.csv --run runs/again" in text
    assert "`a b.jsonl and c.csv and https://example.org/d.csv`" in text
    assert not re.search("secret|key=1|/home/me/c", text)
    page = page_of(run).text
    assert not re.search("secret|key=1", page)


def test_an_area_is_told_so_that_its_limits_compare_and_one_is_one(tmp_path: Path) -> None:
    area = finding("D5.shortcut", Interval(0.96, 0.91, 0.98, 9), "Told.", unit="AUC", limits=Limits(warn=0.65))
    gap = finding("D13.cut", Interval(0.0, -2.2, 2.2, 9), "Cut.", unit="points", limits=Limits(warn=1.0))
    page = page_of(write_data(tmp_path, quality_of(area, gap)))
    for words in ("0.96 AUC", "0.91 to 0.98", "0.0 points", "warns above 1 point"):
        assert words in page.text
    assert "1 points" not in page.text


def test_a_question_with_several_answers_is_asked_once_and_no_answer_is_left_out(tmp_path: Path) -> None:
    advice = [{"question": f"Q{i // 3}?", "answer": f"Answer {i}.", "rule": f"R{i}"} for i in range(18)]
    page = page_of(write_data(tmp_path, quality_of(*STATES, advice=advice)))
    assert [page.text.count(f"Q{i}?") for i in range(6)] == [1] * 6
    assert all(f"Answer {i}." in page.text for i in range(18))


def test_what_people_said_of_prompts_is_counted_in_prompts(tmp_path: Path) -> None:
    made = {"items": 9, "unmade": 3, "comparisons": 9, "pairs": 6, "reasons": {"tie": 1}, "policy": "1"}
    run = write_data(tmp_path, quality_of(*STATES), graded=made, rejected={"tie": 1, "both_bad": 2, "malformed": 1})
    page = page_of(run)
    for words in ("1 prompt,", "2 prompts,", "1 row,", "4 rows and prompts"):
        assert words in page.text
    said = " ".join(line.text for line in data_lines(run, page=run / "data.html"))
    assert "4 rows and prompts set aside" in said
    assert "2 prompts to ask again in data/collect.jsonl" in said


def test_texts_of_any_script_stand_in_their_own_direction(tmp_path: Path) -> None:
    run = write_data(tmp_path, quality_of(*STATES))
    page = page_of(run)
    assert {attrs.get("dir") for attrs in page.all("dd") if attrs.get("class") == "said"} == {"auto"}


# ---------------------------------------------------------------- the screen


def test_the_screen_says_one_thing_once(tmp_path: Path) -> None:
    both = [
        finding("D3.alpha", Interval(value, 0.0, 0.1, 100), "By 'tone'.", limits=BELOW, about=about, action="Sharpen.")
        for value, about in (
            (0.05, {"criterion": "tone", "metric": "nominal"}),
            (0.06, {"criterion": "tone", "metric": "ordinal"}),
        )
    ]
    summary = SUMMARY | {"rows": 1, "train": 1, "rejected": {"leak": 1}, "longer_chosen": 1.0}
    said = [line.text for line in lines(summary, quality_of(*both), width=80)]
    assert said[0].endswith("1 row, read as trl")
    assert said[1] == "1 pair to train on, 2 held out; chosen is the longer one in 100.0 %"
    assert [text for text in said if "By 'tone'" in text] == [
        "✕ fail  Agreement: Krippendorff's α (metric nominal): By 'tone'."
    ]
    assert "1 more warning or failure" in said
    assert "1 row set aside in data/rejected.jsonl: prompt is held out too 1" in said
    assert [text for text in said if text.startswith("1. ")] == ["1. Krippendorff's α: Sharpen."]
    assert all(line.text.isprintable() and len(line.text) <= 30 for line in lines(summary, {}, width=40)[:-1])


def test_the_screen_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    run = write_data(tmp_path, quality_of(*STATES, advice=[{"question": "Is it enough?", "answer": "No: 90 more."}]))
    found = data_lines(run, page=run / "data.html")
    text = "\n".join(line.text for line in found)
    for words in (
        "10 rows, read as trl",
        "✕ fail",
        "Two leak.",
        "prompt is held out too 2",
        "No: 90 more.",
        "Remove them.",
    ):
        assert words in text
    assert [line.name for line in found if line.name] == ["data", "found", "done", "enough", "next", "page"]
    assert found[-1].text == str(run / "data.html")


@pytest.mark.parametrize("width", [60, 80, 96, 120])
def test_the_screen_is_as_wide_as_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """A line that the terminal breaks again would show in the table as a row more."""
    long = "A sentence about these pairs that takes more than the columns there are, whichever they may be. " * 2
    run = write_data(tmp_path, quality_of(*(one.model_copy(update={"text": long}) for one in STATES)))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)  # the path of the page is a line as long as it is
    said = io.StringIO()
    console = Console(file=said, width=width)
    with contextlib.redirect_stdout(said):
        table = cli.data_screen({"run": str(run.relative_to(tmp_path))})
    console.print(table)
    assert len(said.getvalue().splitlines()) == table.row_count
    assert max(map(len, table.columns[1]._cells)) > width - 10 - max(map(len, long.split()))


@given(
    st.lists(st.sampled_from(STATES), max_size=40), st.text(max_size=400), st.integers(0, 30), st.integers(40, WIDEST)
)
def test_the_screen_is_one_screen_whatever_it_says(found: list[Finding], words: str, reasons: int, width: int) -> None:
    long = [one.model_copy(update={"text": words, "action": f"{words} {i}"}) for i, one in enumerate(found)]
    advice = [
        {"question": "Is it enough?", "answer": words * 9},
        *({"question": "Q", "answer": f"{i}"} for i in range(9)),
    ]
    summary = SUMMARY | {"source": words, "joined_turns": 4, "rejected": {f"{words}{i}": i for i in range(reasons)}}
    shown = lines(summary, quality_of(*long, advice=advice), page="runs/x/data.html", width=width)
    assert len(shown) <= MOST
    assert all(len(line.text) + 10 <= width and line.text.isprintable() for line in shown)
