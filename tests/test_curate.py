"""No row is lost: in = train + held out + refused (+ beyond the limit); each refusal has a reason."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from druthers import config, storage
from druthers.curate import CurateSummary, curate, pairs_from_ranking, reading, split
from druthers.records import Candidate, Candidates, InputError, Message, Pair, user
from tests import tiny

TOKENIZER = tiny.tokenizer()
NAMES = ("train", "heldout", "rejected")
HARMLESS = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless"


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}?", "chosen": f"good answer {number}", "rejected": "bad"} | changes


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(storage.encode(row) for row in rows))
    return path


def run(path: Path | str, out: Path, **data: Any) -> CurateSummary:
    seed = data.pop("seed", 0)
    extra = {f"data.{key}": value for key, value in data.items()} | {"data.pairs": str(path), "seed": seed}
    return curate(config.load(extra=extra), out=out, tokenizer=TOKENIZER)


def attempt(path: Path, out: Path, **data: Any) -> CurateSummary | str:
    try:
        return run(path, out, **data)
    except InputError as error:
        return str(error)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pairs(out: Path, side: str) -> list[Pair]:
    return [Pair.model_validate(line) for line in lines(out / f"{side}.jsonl")]


def total(summary: CurateSummary) -> int:
    return summary.train + summary.heldout + sum(summary.rejected.values()) + summary.beyond_limit


# ---------------------------------------------------------------- the way through


def test_rows_to_be_put_back_are_read_before_all_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        run(tmp_path / "not-read-either.jsonl", tmp_path / "out", keep=str(tmp_path / "none.jsonl"))


def test_what_nobody_judged_is_refused_with_what_would_judge_it(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Name a fruit."}]
    rows = [{"prompt": talk, "responses": [{"content": "Plum."}, {"content": "Fig."}]}]
    with pytest.raises(InputError, match=r"1 unjudged; .*no pair is left for train; have the responses judged"):
        run(put(tmp_path / "candidates.jsonl", rows), tmp_path / "out")


def test_rows_become_two_sides_with_books(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i, margin=i % 2, id=i) for i in range(200)])
    out = tmp_path / "data"
    summary = run(path, out)
    train, heldout = pairs(out, "train"), pairs(out, "heldout")
    assert (summary.rows, summary.kept, summary.format) == (200, 200, "trl")
    assert (summary.train, summary.heldout) == (len(train), len(heldout))
    assert 8 <= len(heldout) <= 35
    assert {pair.prompt for pair in train}.isdisjoint(pair.prompt for pair in heldout)
    assert [pair.prompt[0].content for pair in train] == sorted(
        (pair.prompt[0].content for pair in train), key=lambda text: int(text[9:-1])
    )
    assert json.loads((out / "summary.json").read_text("utf-8")) == asdict(summary)
    assert summary.ignored_columns == {"id": 200}
    assert summary.margin == {"mean": 0.5, "max": 1.0}
    assert (summary.longer_chosen, summary.cut) == (1.0, {"chosen": 0, "rejected": 0})
    assert summary.tokens["rejected_mean"] == 4
    assert summary.prompts == {"train": len(train), "heldout": len(heldout)}
    assert lines(out / "rejected.jsonl") == []
    assert sorted(entry.name for entry in out.iterdir()) == [
        "findings",
        "heldout-prompts.txt",
        "heldout.jsonl",
        "quality.json",
        "rejected.jsonl",
        "summary.json",
        "train.jsonl",
    ]


def test_the_same_input_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i % 90, rejected=f"bad {i // 2}") for i in range(120)] + [{"prompt": "x"}])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(path, tmp_path / name, bad_rows="drop", seed=seed)
    files = {name: [(tmp_path / name / f"{side}.jsonl").read_bytes() for side in NAMES] for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_a_held_out_file_of_its_own_is_held_out_whole_and_leaks_leave_training(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(1), row(2), row(3), row(4)])
    heldout = put(tmp_path / "b.jsonl", [row(2, prompt=" Question  2?\n"), row(9), row(9)])
    summary = run(path, tmp_path / "data", heldout=str(heldout))
    assert [pair.prompt[0].content for pair in pairs(tmp_path / "data", "train")] == [
        f"question {i}?" for i in (1, 3, 4)
    ]
    assert (summary.heldout, summary.rejected, total(summary)) == (2, {"duplicate": 1, "leak": 1}, 7)
    assert summary.heldout_source == str(heldout)
    assert [(line["where"], line["reason"]) for line in lines(tmp_path / "data" / "rejected.jsonl")] == [
        (f"{heldout}:3", "duplicate"),
        (f"{path}:2", "leak"),
    ]


def test_a_folder_with_both_parts_needs_no_settings(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", [row(1)])
    put(tmp_path / "heldout.jsonl", [row(2)])
    summary = run(tmp_path, tmp_path / "data")
    assert (summary.train, summary.heldout) == (1, 1)


def test_the_limit_takes_the_first_training_pairs_and_counts_the_rest(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i) for i in range(100)])
    whole, part = run(path, tmp_path / "whole"), run(path, tmp_path / "part", limit=7)
    assert pairs(tmp_path / "part", "train") == pairs(tmp_path / "whole", "train")[:7]
    assert pairs(tmp_path / "part", "heldout") == pairs(tmp_path / "whole", "heldout")
    assert (part.train, part.beyond_limit, total(part)) == (7, whole.train - 7, 100)


def test_pairs_graded_too_closely_are_set_aside_from_training_alone(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i) | {"margin": i % 4 / 4} for i in range(100)])
    whole, part = run(path, tmp_path / "whole"), run(path, tmp_path / "part", least_margin=0.5)
    decided = [pair for pair in pairs(tmp_path / "whole", "train") if pair.margin >= 0.5]
    assert pairs(tmp_path / "part", "train") == decided
    assert pairs(tmp_path / "part", "heldout") == pairs(tmp_path / "whole", "heldout")
    assert part.rejected == {"small_margin": whole.train - len(decided)}
    why = {line["why"] for line in lines(tmp_path / "part" / "rejected.jsonl")}
    assert "the margin 0.25 is under data.least_margin = 0.5" in why


def test_no_held_out_prompt_takes_the_place_of_training_pairs_graded_too_closely(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i) for i in range(100)])
    said = attempt(path, tmp_path / "data", least_margin=0.5)
    assert isinstance(said, str)
    assert "no pair is left for train" in said
    assert "small_margin" in said
    assert not (tmp_path / "data" / "train.jsonl").exists()


def test_two_prompts_split_into_one_each_whatever_the_share(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(1), row(1, rejected="worse"), row(2)])
    for share in (1e-9, 1 - 1e-9):
        summary = run(path, tmp_path / "data", heldout_share=share)
        assert summary.prompts == {"train": 1, "heldout": 1}


def test_long_responses_are_cut_and_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i, chosen="long " * 20) for i in range(20)])
    summary = run(path, tmp_path / "data", max_response=10)
    assert summary.cut == {"chosen": 20, "rejected": 0}
    assert summary.tokens["chosen_max"] == 10


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    made = tiny.pairs(30)
    storage.write(tmp_path / "a.jsonl", made)
    if suffix == ".json":
        storage.write_json(tmp_path / "a.json", [pair.line() for pair in made])
    else:
        storage.write(tmp_path / f"a{suffix}", made)
    for name in ("a.jsonl", f"a{suffix}"):
        assert run(tmp_path / name, tmp_path / name.replace(".", "-")).format == "druthers"
    for side in ("train", "heldout"):
        assert pairs(tmp_path / "a-jsonl", side) == pairs(tmp_path / f"a{suffix}".replace(".", "-"), side)


def test_a_url_is_a_source_like_any_other(tmp_path: Path) -> None:
    storage.write("memory://curate/a.jsonl", tiny.pairs(20))
    assert run("memory://curate/a.jsonl", tmp_path).kept == 20


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(storage.encode(row(999)) + b'{"prompt": "half a l')


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 - 7)


def replaced(path: Path) -> None:
    os.replace(put(path.with_name("new"), [row(i) for i in range(500, 600)]), path)


def rewritten(path: Path) -> None:
    data = path.read_bytes().replace(b"good", b"poor")
    time.sleep(0.02)  # longer than a tick of the clock of file systems
    path.write_bytes(data)


@pytest.mark.parametrize("change", [grown, cut, replaced, rewritten, Path.unlink])
@pytest.mark.parametrize("bad_rows", ["stop", "drop"])
@pytest.mark.parametrize("form", ["pairs", "votes"])
def test_a_source_that_changes_while_it_is_read_stops_the_run(
    change: Callable[[Path], None], bad_rows: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash that is written down would not be that of what was read."""
    monkeypatch.setattr(reading, "RUN", 400)
    path, out = tmp_path / "a.jsonl", tmp_path / "data"
    votes = {"response_a": "good answer", "response_b": "bad", "winner": "a"}
    put(path, [row(i) if form == "pairs" else {"prompt": f"question {i}?"} | votes for i in range(100)])
    settings = config.load(extra={"data.pairs": str(path), "data.bad_rows": bad_rows})
    changes = iter([change])

    def progress(done: int, of: int) -> None:
        for each in changes:
            each(path)

    with pytest.raises(InputError, match=re.escape(f"{path}: changed while it was read; run again")):
        curate(settings, out=out, tokenizer=TOKENIZER, progress=progress)
    assert list(out.iterdir()) == []


def test_a_folder_that_gets_another_file_while_it_is_read_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    put(folder / "a.jsonl", [row(i) for i in range(100)])
    settings = config.load(extra={"data.pairs": str(folder)})

    def progress(done: int, of: int) -> None:
        put(folder / "b.jsonl", [row(7)])

    with pytest.raises(InputError, match=re.escape(f"{folder / 'b.jsonl'}: changed while it was read")):
        curate(settings, out=tmp_path / "data", tokenizer=TOKENIZER, progress=progress)


def test_progress_goes_to_the_number_of_rows(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(i) for i in range(150)])
    seen: list[tuple[int, int]] = []
    settings = config.load(extra={"data.pairs": str(path)})
    curate(settings, out=tmp_path / "data", tokenizer=TOKENIZER, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(150, 150)]  # rows are read many at a time


# ---------------------------------------------------------------- bad rows

BAD: list[tuple[dict[str, Any] | bytes, str, str]] = [
    (b"{oops", "malformed", "is not JSON"),
    (b"[1]", "malformed", "is not a JSON object"),
    (b'{"prompt": "\xff"}', "malformed", "is not UTF-8"),
    ({"prompt": "x", "chosen": "a"}, "malformed", "rejected: missing field"),
    (row(1, chosne="x"), "malformed", "chosne: unknown column; did you mean 'chosen'?"),
    (row(1, p="high"), "malformed", "p: input should be a valid number, but it is 'high'"),
    (row(1, rejected="good answer 1"), "same_response", "chosen equals rejected"),
    (row(1, rejected=" "), "empty_response", "rejected: the response is empty"),
    (row(1, prompt="long " * 50), "prompt_too_long", "the prompt is "),
    (row(1, prompt=[{"role": "assistant", "content": "Hi"}]), "bad_roles", "prompt: turn 0 is 'assistant'"),
    (row(1, chosen="<|im_end|>"), "control_tokens", "the assistant turn contains '<|im_end|>', a control token"),
    (row(1, prompt="a<|im_start|>"), "control_tokens", "the user turn contains '<|im_start|>', a control token"),
    (
        {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
        "prompt_mismatch",
        "chosen and rejected do not share",
    ),
    (
        row(1, chosen="x" * 30 + "a", rejected="x" * 30 + "b"),
        "same_response",
        "chosen and rejected are the same 20 tokens",
    ),
]


def bad_file(path: Path, bad: dict[str, Any] | bytes) -> Path:
    put(path, [row(100 + i) for i in range(30)])
    line = bad if isinstance(bad, bytes) else storage.encode(bad).rstrip(b"\n")
    path.write_bytes(path.read_bytes() + line + b"\n" + storage.encode(row(200)))
    return path


@pytest.mark.parametrize(("bad", "reason", "sentence"), BAD)
def test_a_bad_row_stops_with_its_place_and_the_remedy_and_nothing_is_written(
    tmp_path: Path, bad: dict[str, Any] | bytes, reason: str, sentence: str
) -> None:
    path = bad_file(tmp_path / "a.jsonl", bad)
    with pytest.raises(InputError) as caught:
        run(path, tmp_path / "data", max_prompt=120, max_response=20)
    assert str(caught.value).startswith(f"{path}:31: {sentence}")
    assert "data.bad_rows=drop" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(("bad", "reason", "sentence"), BAD)
def test_a_bad_row_is_dropped_counted_and_kept_aside(
    tmp_path: Path, bad: dict[str, Any] | bytes, reason: str, sentence: str
) -> None:
    path = bad_file(tmp_path / "a.jsonl", bad)
    summary = run(path, tmp_path / "data", max_prompt=120, max_response=20, bad_rows="drop")
    assert (summary.rows, summary.kept, summary.rejected) == (32, 31, {reason: 1})
    (refused,) = lines(tmp_path / "data" / "rejected.jsonl")
    assert (refused["where"], refused["reason"]) == (f"{path}:31", reason)
    assert refused["why"].startswith(sentence)
    text = bad.decode("utf-8", "replace") if isinstance(bad, bytes) else None
    assert refused["row"] == (bad if text is None else {"line": text})


def test_duplicates_never_stop_and_are_kept_once(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(1), row(2), row(1), row(1, weight=0.5), row(3)])
    summary = run(path, tmp_path / "data")
    assert (summary.kept, summary.rejected) == (3, {"duplicate": 2})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty; give at least one row"),
        (b"\x1f\x8b\x08\x00", "the compressed data ends early"),
    ],
)
def test_a_bad_file_stops_also_where_bad_rows_are_dropped(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        run(path, tmp_path / "data", bad_rows="drop")
    assert list((tmp_path / "data").iterdir()) == []


def test_what_stood_there_before_survives_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(put(tmp_path / "a.jsonl", [row(i) for i in range(20)]), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError):
        run(bad_file(tmp_path / "b.jsonl", b"{oops"), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(1), row(1, prompt="QUESTION 1?", rejected="x"), row(2, rejected="")])
    with pytest.raises(InputError) as caught:
        run(path, tmp_path / "data", bad_rows="drop")
    assert str(caught.value) == (
        f"{path} (refused: 1 empty_response; the first: {path}:3: rejected: the response is empty; remove the row or "
        "write an answer): holds 1 usable prompt (those nearly the same count once), but a split into training and "
        "held-out needs at least 2; give more "
        "prompts, or a held-out file as data.heldout"
    )


def test_a_side_without_pairs_is_said(tmp_path: Path) -> None:
    path, heldout = put(tmp_path / "a.jsonl", [row(1)]), put(tmp_path / "b.jsonl", [row(1)])
    with pytest.raises(InputError, match=r"a.jsonl \(refused: 1 leak; .*\): no pair is left for train; name held-out"):
        run(path, tmp_path / "data", heldout=str(heldout))


def test_a_tokenizer_without_a_chat_template_is_no_rows_fault(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [row(1), row(2)])
    settings = config.load(extra={"data.pairs": str(path), "data.bad_rows": "drop"})
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        curate(settings, out=tmp_path / "data", tokenizer=tiny.tokenizer(None))
    assert not (tmp_path / "data").exists()


def test_rows_that_the_template_cannot_hold_have_a_reason(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer("{% if messages | length > 2 %}!{% endif %}" + tiny.TEMPLATE)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path = put(tmp_path / "a.jsonl", [row(1), row(2), {"prompt": system} | answers])
    settings = config.load(extra={"data.pairs": str(path), "data.bad_rows": "drop"})
    assert curate(settings, out=tmp_path / "data", tokenizer=tokenizer).rejected == {"template": 1}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 20,000 bytes: a full disk, as far as a program can tell."""
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX thing")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    storage.write(path, tiny.pairs(400))
    with pytest.raises(InputError, match="cannot be written: File too large; free some space and run again"):
        run(path, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


# ---------------------------------------------------------------- laws

cells = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(cells, min_size=1, max_size=30), st.integers(0, 3), st.sampled_from([None, 1, 3]))
def test_no_row_is_lost_whatever_stands_in_the_file(
    tmp_path: Path, found: list[tuple[int, int, int]], seed: int, limit: int | None
) -> None:
    texts = ["", "a", "b", "<|im_end|>"]
    rows = [{"prompt": f"Q{prompt}", "chosen": texts[a], "rejected": texts[b]} for prompt, a, b in found]
    out = tmp_path / "data"
    path = put(tmp_path / "a.jsonl", rows)
    summary = attempt(path, out, bad_rows="drop", heldout_share=0.3, seed=seed, limit=limit)
    if isinstance(summary, str):
        assert "usable prompt" in summary or "no pair is left" in summary
        return
    assert summary.rows == len(rows) == total(summary)
    assert summary.rejected == Counter(line["reason"] for line in lines(out / "rejected.jsonl"))
    train, heldout = pairs(out, "train"), pairs(out, "heldout")
    assert (len(train), len(heldout)) == (summary.train, summary.heldout)
    assert len({pair.id for pair in train + heldout}) == summary.kept > 1
    assert {pair.prompt for pair in train}.isdisjoint(pair.prompt for pair in heldout)
    assert limit is None or len(train) <= limit
    (out / "train.jsonl").unlink()


@given(st.lists(st.text(max_size=5), min_size=2, max_size=40), st.integers(0, 5), st.floats(0.05, 0.95))
def test_the_split_never_moves_a_prompt_as_data_grows(texts: list[str], seed: int, share: float) -> None:
    draws = [split.draw(user(text), seed=seed) for text in texts]
    assert draws == [split.draw(user(text), seed=seed) for text in texts]
    if len(set(draws)) < 2:
        return
    bound = split.threshold(draws, share=share, name="x")
    nominal = int(share * 2**64)
    assert 0 < sum(draw < bound for draw in draws) < len(draws)
    if min(draws) < nominal <= max(draws):
        assert bound == nominal


def test_the_share_of_prompts_held_out_is_the_share_asked_for() -> None:
    draws = [split.draw(user(f"prompt {i}"), seed=3) for i in range(4000)]
    bound = split.threshold(draws, share=0.1, name="x")
    assert abs(sum(draw < bound for draw in draws) / 4000 - 0.1) < 0.02


def test_roles_and_turn_borders_count_for_what_a_prompt_is() -> None:
    one = (Message(role="user", content="a"), Message(role="assistant", content="b"), Message(role="user", content="c"))
    assert split.draw(one, seed=0) != split.draw(user("a b c"), seed=0)
    assert split.draw(user("ab"), seed=0) != split.draw(user("a b"), seed=0)


# ---------------------------------------------------------------- rankings


def rated(*scores: float | None, ranks: tuple[int, ...] = ()) -> Candidates:
    return Candidates(
        prompt=user("Q"),
        responses=tuple(
            Candidate(content=f"answer {i}", score=score, rank=ranks[i] if ranks else None, source="m")
            for i, score in enumerate(scores)
        ),
        group="g",
    )


def test_a_ranking_gives_graded_pairs_that_count_as_one_prompt() -> None:
    made = pairs_from_ranking(rated(1.0, 3.0, 2.0, 3.0), margin_scale=0.5)
    found = [(pair.chosen[0].content[-1], pair.rejected[0].content[-1], pair.margin) for pair in made]
    assert found == [("1", "0", 1.0), ("3", "0", 1.0), ("1", "2", 0.5), ("3", "2", 0.5), ("2", "0", 0.5)]
    assert sum(pair.weight for pair in made) == pytest.approx(1)
    assert {(pair.group, pair.source, pair.p) for pair in made} == {("g", "m", 1.0)}


def test_only_the_clearest_on_request_and_ranks_where_there_are_no_scores() -> None:
    (made,) = pairs_from_ranking(rated(1.0, 3.0, 2.0), most=1)
    assert (made.chosen[0].content, made.rejected[0].content, made.weight) == ("answer 1", "answer 0", 1.0)
    (made,) = pairs_from_ranking(rated(None, None, ranks=(2, 1)))
    assert made.chosen[0].content == "answer 1"


def test_ties_blanks_and_equal_texts_give_no_pairs() -> None:
    assert pairs_from_ranking(rated(1.0, 1.0)) == []
    assert pairs_from_ranking(rated(1.0, 1.0), most=1) == []
    same = (Candidate(content="a", score=2), Candidate(content=" ", score=1), Candidate(content="a", score=1))
    assert pairs_from_ranking(Candidates(prompt=user("Q"), responses=same)) == []
    assert pairs_from_ranking(Candidates(prompt=user("Q"), responses=same[1:2]), most=1) == []


def test_a_response_that_breaks_a_must_is_only_ever_rejected() -> None:
    cut, whole, worst = (
        Candidate(content=text, score=score, rules={"complete": kept})
        for text, score, kept in (("best but cut", 3.0, 0.0), ("whole", 2.0, 1.0), ("worst", 1.0, 0.0))
    )
    row = Candidates(prompt=user("Q"), responses=(cut, whole, worst))
    found = [(p.chosen[0].content, p.rejected[0].content) for p in pairs_from_ranking(row, must=("complete",))]
    assert found == [("whole", "worst")]
    assert pairs_from_ranking(row.model_copy(update={"responses": (cut, worst)}), must=("complete",)) == []


def test_words_the_chosen_response_lacks_cost_it_its_lead() -> None:
    texts = {"one": 3.0, "one two three": 2.0, "one two": 1.0}
    row = Candidates(prompt=user("Q"), responses=tuple(Candidate(content=t, score=s) for t, s in texts.items()))
    made = pairs_from_ranking(row, margin_scale=1.0, length_cost=0.5)
    found = [(p.chosen[0].content, p.rejected[0].content, p.margin) for p in made]
    assert found == [("one", "one two", 1.5), ("one two three", "one two", 1.0)]
    with pytest.raises(InputError, match="a margin needs scores"):
        pairs_from_ranking(rated(None, None, ranks=(1, 2)), length_cost=0.5)


def test_models_that_met_are_both_named() -> None:
    mixed = (Candidate(content="a", score=2, source="x"), Candidate(content="b", score=1, source="y"))
    assert pairs_from_ranking(Candidates(prompt=user("Q"), responses=mixed))[0].source == "x over y"


@pytest.mark.parametrize(("scores", "scale"), [((None, 1.0), 0.0), ((None, None), 1.0)])
def test_unrated_responses_are_refused(scores: tuple[float | None, ...], scale: float) -> None:
    with pytest.raises(InputError, match=r"response 0 has no score, but .*; rate it with `druthers judge`"):
        pairs_from_ranking(rated(*scores, ranks=(1, 2) if scale else ()), margin_scale=scale)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.floats(0, 10))
def test_every_pair_prefers_the_higher_score_and_none_is_left_out(scores: list[int], scale: float) -> None:
    made = pairs_from_ranking(rated(*map(float, scores)), margin_scale=scale)
    worth = {f"answer {i}": score for i, score in enumerate(scores)}
    gaps = [worth[pair.chosen[0].content] - worth[pair.rejected[0].content] for pair in made]
    assert all(gap > 0 for gap in gaps)
    assert len(made) == sum(a != b for i, a in enumerate(scores) for b in scores[:i])
    assert [pair.margin for pair in made] == pytest.approx([scale * gap for gap in gaps])
    assert not made or sum(pair.weight for pair in made) == pytest.approx(1)


# ---------------------------------------------------------------- real rows


@pytest.mark.skipif(not HARMLESS.is_dir(), reason="the HH harmless transcripts are not on this machine")
def test_real_hh_transcripts_keep_all_but_the_broken_rows(tmp_path: Path) -> None:
    given_data = {
        "heldout": str(HARMLESS / "dev.jsonl.gz"),
        "bad_rows": "drop",
        "max_prompt": 8192,
        "max_response": 8192,
    }
    summary = run(HARMLESS / "train.jsonl.gz", tmp_path, **given_data)
    assert (summary.format, summary.rows, summary.train, summary.heldout) == ("hh", 2019, 1679, 314)
    assert summary.rejected == {"bad_roles": 5, "empty_response": 4, "leak": 17}
    assert (summary.joined_turns, summary.prompts["heldout"]) == (4, 314)
