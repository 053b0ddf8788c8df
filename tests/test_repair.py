"""What is done about a row that is as it should not be, and that a held-out prompt is remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from druthers import config, embeddings, storage
from druthers.curate import CurateSummary, curate
from druthers.curate.remembered import FILE, numbers_in
from druthers.records import InputError, Pair, Prompt
from tests import tiny

TOKENIZER = tiny.tokenizer()
LETTER = {"prompt": "Who wrote?", "chosen": "It was ann@example.org.", "rejected": "It was +49 30 901820."}


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(storage.encode, rows)))
    return path


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i * 37}?", "chosen": f"good answer {i}", "rejected": "bad"} for i in range(count)]


def run(path: Path, out: Path, *, beside: Path | None = None, seed: int = 0, **data: Any) -> CurateSummary:
    extra = {f"data.{key}": value for key, value in data.items()} | {"data.pairs": str(path), "seed": seed}
    return curate(config.load(extra=extra), out=out, tokenizer=TOKENIZER, beside=beside)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def kept(out: Path) -> list[Pair]:
    return [Pair.model_validate(line) for side in ("train", "heldout") for line in lines(out / f"{side}.jsonl")]


def held_out(out: Path) -> list[Pair]:
    return [Pair.model_validate(line) for line in lines(out / "heldout.jsonl")]


def findings(out: Path) -> dict[str, dict[str, Any]]:
    return {found["id"]: found for found in json.loads((out / "quality.json").read_text("utf-8"))["findings"]}


# ---------------------------------------------------------------- personal data


def test_personal_data_stays_is_redacted_or_takes_its_pair_with_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*rows(30), LETTER])
    for policy in ("keep", "redact", "drop"):
        run(path, tmp_path / policy, personal=policy)
    texts = {
        policy: {pair.chosen[0].content for pair in kept(tmp_path / policy) if "Who" in pair.prompt[0].content}
        for policy in ("keep", "redact", "drop")
    }
    assert texts == {"keep": {LETTER["chosen"]}, "redact": {"It was [mail]."}, "drop": set()}
    summary = json.loads((tmp_path / "redact" / "summary.json").read_text("utf-8"))
    assert summary["redacted"] == {"pairs": 1, "mail": 1, "phone": 1}
    assert findings(tmp_path / "redact")["D13.personal"]["value"] == 0
    (refused,) = lines(tmp_path / "drop" / "rejected.jsonl")
    assert (refused["reason"], refused["why"]) == (
        "personal",
        "holds personal data or secrets (1 mail, 1 phone), see data.personal",
    )


def test_responses_that_differ_in_personal_data_alone_are_no_pair_without_it(tmp_path: Path) -> None:
    twins = LETTER | {"rejected": "It was bob@example.org."}
    path = put(tmp_path / "a.jsonl", [*rows(30), twins])
    summary = run(path, tmp_path / "data", personal="redact", bad_rows="drop")
    assert summary.rejected == {"same_response": 1}
    assert summary.redacted == {}


# ---------------------------------------------------------------- rows that are put back


def test_what_a_filter_set_aside_wrongly_is_put_back_with_its_line(tmp_path: Path) -> None:
    torn = {"prompt": "Better?", "chosen": "yes it is", "rejected": "no it is not"}
    turned = torn | {"chosen": torn["rejected"], "rejected": torn["chosen"]}
    path = put(tmp_path / "a.jsonl", [*rows(30), torn, turned])
    first = run(path, tmp_path / "first")
    assert first.rejected == {"contradiction": 2}
    right = [line for line in lines(tmp_path / "first" / "rejected.jsonl") if line["where"].endswith(":31")]
    back = put(tmp_path / "back.jsonl", right)
    second = run(path, tmp_path / "second", keep=str(back))
    assert second.rejected == {"contradiction": 1}
    (pair,) = [pair for pair in kept(tmp_path / "second") if pair.prompt[0].content == "Better?"]
    assert pair.chosen[0].content == torn["chosen"]
    assert first.kept + 1 == second.kept
    assert first.source_sha256 != second.source_sha256


def test_what_is_no_pair_or_held_out_cannot_be_put_back(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*rows(30), {"prompt": "x"}])
    run(path, tmp_path / "data", bad_rows="drop")
    back = put(tmp_path / "back.jsonl", lines(tmp_path / "data" / "rejected.jsonl"))
    with pytest.raises(InputError, match=r"back\.jsonl:1: only lines of rejected\.jsonl .* not 'malformed'; correct"):
        run(path, tmp_path / "again", bad_rows="drop", keep=str(back))
    assert not (tmp_path / "again" / "train.jsonl").exists()


# ---------------------------------------------------------------- held out once


def test_training_on_what_a_run_beside_holds_out_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(200))
    one, two, three = (tmp_path / "runs" / name for name in ("one", "two", "three"))
    run(path, one / "data", beside=one)
    assert "D1.held_before" not in findings(one / "data")
    run(path, two / "data", beside=two)
    none = findings(two / "data")["D1.held_before"]
    assert none["value"] == none["high"] == 0
    assert not none.get("uncertain")
    run(path, three / "data", beside=three, seed=1)
    told = findings(three / "data")["D1.held_before"]
    held = {pair.prompt for pair in map(Pair.model_validate, lines(one / "data" / "heldout.jsonl"))}
    trained = {pair.prompt for pair in map(Pair.model_validate, lines(three / "data" / "train.jsonl"))}
    assert told["status"] == "warn"
    assert told["text"].startswith(f"{len(held & trained)} training prompts are held out in runs beside this one: one")
    assert f"data.heldout={one}/data/heldout.jsonl" in told["action"]
    four = tmp_path / "runs" / "four"
    run(path, four / "data", beside=four, seed=1, heldout=str(one / "data" / "heldout.jsonl"))
    assert findings(four / "data")["D1.held_before"]["text"].find("one (") < 0


def test_hashes_of_prompts_are_the_same_under_every_seed_and_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(20))
    heldout = put(tmp_path / "b.jsonl", [{"prompt": f"held {i}", "chosen": "x", "rejected": "y"} for i in range(5)])
    for seed in (0, 1):
        run(path, tmp_path / str(seed), seed=seed, heldout=str(heldout))
    assert (tmp_path / "0" / FILE).read_bytes() == (tmp_path / "1" / FILE).read_bytes()
    numbers = numbers_in(tmp_path / "0" / FILE)
    assert numbers is not None
    assert len(numbers) == 5
    (tmp_path / "bad.txt").write_text("not a number\n")
    assert numbers_in(tmp_path / "bad.txt") is None


# ---------------------------------------------------------------- to be asked again


def test_prompts_without_a_pair_are_a_file_to_sample_from_and_it_goes_when_they_do(tmp_path: Path) -> None:
    votes = [{"prompt": f"q {i}?", "response_a": "x", "response_b": "y", "winner": "a"} for i in range(30)]
    bad = {
        "prompt": "Bad?",
        "response_a": "x",
        "response_b": "y",
        "winner": "tie",
        "tie_kind": "both_bad",
        "group": "g",
    }
    run(put(tmp_path / "a.jsonl", [*votes, bad]), tmp_path / "data")
    (asked,) = storage.read(str(tmp_path / "data" / "collect.jsonl"), Prompt)
    assert (asked.prompt[0].content, asked.group, asked.reason) == ("Bad?", "g", "both_bad")
    run(put(tmp_path / "a.jsonl", votes), tmp_path / "data")
    assert not (tmp_path / "data" / "collect.jsonl").exists()


# ---------------------------------------------------------------- sides by meaning

SAID = [
    ("How do I reset my password?", "What is the way to reset my password?"),
    ("What is the capital of France?", "Which city is the capital of France?"),
    ("How long should I boil an egg?", "For how long do I have to boil an egg?"),
    ("Why is the sky blue?", "What is the reason that the sky is blue?"),
    ("Recommend me a book about Rome.", "Can you recommend a book on ancient Rome?"),
    ("How can I cancel my subscription?", "I want to cancel my subscription, how?"),
]


@pytest.mark.skipif(embeddings.installed() is None, reason="the packaged encoder is not installed")
def test_prompts_that_mean_the_same_share_a_side_and_keep_it_as_data_grow(tmp_path: Path) -> None:
    texts = [text for two in SAID for text in two]
    some = [{"prompt": text, "chosen": f"good {i}", "rejected": "bad"} for i, text in enumerate(texts[::2])]
    every = [{"prompt": text, "chosen": f"good {i}", "rejected": "bad"} for i, text in enumerate(texts)]
    file = tmp_path / "prompts.npz"
    run(put(tmp_path / "a.jsonl", some), tmp_path / "one", clusters=str(file), heldout_share=0.4)
    before = {pair.prompt[0].content for pair in held_out(tmp_path / "one")}
    assert 0 < len(before) < len(some)
    run(put(tmp_path / "b.jsonl", every), tmp_path / "two", clusters=str(file), heldout_share=0.1, seed=3)
    after = {pair.prompt[0].content for pair in held_out(tmp_path / "two")}
    assert before == after & set(texts[::2])
    trained = {pair.prompt[0].content for pair in kept(tmp_path / "two")} - after
    for one, other in SAID:
        assert not (one in after and other in trained), (one, other)


@pytest.mark.skipif(embeddings.installed() is None, reason="the packaged encoder is not installed")
def test_training_prompts_that_mean_what_a_held_out_file_asks_are_left_out(tmp_path: Path) -> None:
    ones, others = zip(*SAID, strict=True)
    path = put(tmp_path / "a.jsonl", [{"prompt": t, "chosen": "yes it is", "rejected": "no"} for t in ones] + rows(20))
    held = put(tmp_path / "b.jsonl", [{"prompt": others[0], "chosen": "yes", "rejected": "no"}])
    summary = run(path, tmp_path / "data", clusters=str(tmp_path / "c.npz"), heldout=str(held))
    assert summary.rejected == {"between_sides": 1}
    (refused,) = lines(tmp_path / "data" / "rejected.jsonl")
    assert refused["row"]["prompt"][0]["content"] == ones[0]
    assert not (tmp_path / "c.npz").exists()


def test_a_file_that_holds_no_clusters_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: is not a file of clusters"):
        run(put(tmp_path / "a.jsonl", rows(30)), tmp_path / "data", clusters=str(file))
    assert file.read_text() == "mine"


def test_sides_by_meaning_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "installed", lambda: None)
    with pytest.raises(InputError, match=r"install it with `pip install .*`, or leave data\.clusters out"):
        run(put(tmp_path / "a.jsonl", rows(30)), tmp_path / "data", clusters=str(tmp_path / "c.npz"))
    assert not (tmp_path / "c.npz").exists()
