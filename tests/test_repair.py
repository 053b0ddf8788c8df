"""What is done about a row that is as it should not be, and that a held-out prompt is remembered."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import config, embeddings, storage
from druthers.curate import CurateSummary, clusters, curate
from druthers.curate.remembered import FILE, numbers_in
from druthers.records import InputError, Pair, Prompt
from tests import tiny
from tests.test_embeddings import encoder_folder

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


@pytest.mark.parametrize("policy", ["drop", "redact"])
def test_what_somebody_found_to_be_no_personal_data_is_put_back_as_it_is(tmp_path: Path, policy: str) -> None:
    other = LETTER | {"prompt": "Who else?", "chosen": "It was bob@example.org."}
    path = put(tmp_path / "a.jsonl", [*rows(30), LETTER, other])
    run(path, tmp_path / "first", personal="drop")
    right = [line for line in lines(tmp_path / "first" / "rejected.jsonl") if line["where"].endswith(":31")]
    back = put(tmp_path / "back.jsonl", right)
    run(path, tmp_path / "second", personal=policy, keep=str(back))
    texts = [pair.chosen[0].content for pair in kept(tmp_path / "second") if "Who" in pair.prompt[0].content]
    assert texts == [LETTER["chosen"]] + ["It was [mail]."] * (policy == "redact")


@pytest.mark.parametrize("reason", ["leak", "held_before", "between_sides"])
def test_what_would_stand_on_both_sides_is_not_put_back_and_it_is_said_why(tmp_path: Path, reason: str) -> None:
    path = put(tmp_path / "a.jsonl", rows(30))
    back = put(tmp_path / "back.jsonl", [{"where": "a.jsonl:1", "reason": reason, "why": "", "row": {"id": "0" * 24}}])
    said = rf"back\.jsonl:1: a pair with the reason '{reason}' cannot be put back: its prompt .* measured"
    with pytest.raises(InputError, match=said):
        run(path, tmp_path / "data", keep=str(back))


def test_a_pair_that_is_put_back_is_left_out_as_a_leak_all_the_same(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*rows(5), rows(1)[0]])
    run(path, tmp_path / "first", heldout=str(put(tmp_path / "b.jsonl", rows(9)[8:])))
    back = put(tmp_path / "back.jsonl", lines(tmp_path / "first" / "rejected.jsonl"))
    second = run(path, tmp_path / "second", keep=str(back), heldout=str(put(tmp_path / "c.jsonl", rows(1))))
    assert second.rejected == {"leak": 2}


def test_what_is_no_pair_or_held_out_cannot_be_put_back(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*rows(30), {"prompt": "x"}])
    run(path, tmp_path / "data", bad_rows="drop")
    back = put(tmp_path / "back.jsonl", lines(tmp_path / "data" / "rejected.jsonl"))
    with pytest.raises(InputError, match=r"back\.jsonl:1: only lines of rejected\.jsonl .* not 'malformed'; correct"):
        run(path, tmp_path / "again", bad_rows="drop", keep=str(back))
    assert not (tmp_path / "again" / "train.jsonl").exists()


# ---------------------------------------------------------------- held out once


def begin(path: Path, run_folder: Path, *, seed: int = 0, **data: Any) -> CurateSummary:
    """A run directory beside others, as `druthers curate` makes it."""
    storage.write_json(run_folder / "config.json", {"seed": seed})
    return run(path, run_folder / "data", beside=run_folder, seed=seed, **data)


def asked_in(run_folder: Path, side: str) -> set[str]:
    return {line["prompt"][0]["content"] for line in lines(run_folder / "data" / f"{side}.jsonl")}


def test_training_on_what_a_run_of_another_seed_holds_out_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(200))
    one, two, three = (tmp_path / "runs" / name for name in ("one", "two", "three"))
    begin(path, one)
    assert "D1.held_before" not in findings(one / "data")
    begin(path, two)
    none = findings(two / "data")["D1.held_before"]
    assert none["value"] == none["high"] == 0
    assert not none.get("uncertain")
    begin(path, three, seed=1)
    told = findings(three / "data")["D1.held_before"]
    both = asked_in(one, "heldout") & asked_in(three, "train")
    assert told["status"] == "warn"
    assert told["text"].startswith(f"{len(both)} training prompts are held out in runs beside this one: one")
    assert f"data.held_before={one} keeps them out" in told["action"]
    four = tmp_path / "runs" / "four"
    begin(path, four, seed=1, heldout=str(one / "data" / "heldout.jsonl"))
    assert findings(four / "data")["D1.held_before"]["text"].find("one (") < 0


def test_the_same_rows_beside_a_run_of_them_give_the_same_sides(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(60))
    first, second = begin(path, tmp_path / "one"), begin(path, tmp_path / "two")
    count = first.prompts["heldout"]
    digest = storage.sha256(tmp_path / "one" / "data" / FILE)
    file = {"name": "one", "sha256": digest, "prompts": count, "found": count}
    assert (first.held_before, second.held_before) == (None, {"prompts": count, "files": [file]})
    for side in ("train", "heldout"):
        assert asked_in(tmp_path / "one", side) == asked_in(tmp_path / "two", side)
    third = tmp_path / "elsewhere" / "three"
    begin(path, third, held_before=str(tmp_path / "one"))
    for name in ("train.jsonl", "heldout.jsonl", FILE):
        assert (third / "data" / name).read_bytes() == (tmp_path / "two" / "data" / name).read_bytes()


WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "dklmn"]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25), st.integers(1, 25), st.sampled_from(["behind", "before", "both"]))
def test_a_set_that_grows_never_trains_on_what_was_held_out(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, more: int, where: str
) -> None:
    """Also where the form changes with the rows, copies come in front of what they copy, and few prompts are there."""
    draw, folder = random.Random(seed), tmp_path_factory.mktemp("grown")
    known = [" ".join(draw.choices(WORDS, k=draw.choice((2, 12, 40)))) for _ in range(count)]
    new = [" ".join(draw.choices(WORDS, k=12)) for _ in range(more)]
    new = [f"{draw.choice(known)} {text[: draw.randrange(40)]}" if draw.random() < 0.5 else text for text in new]
    cut = {"behind": 0, "before": more, "both": more // 2}[where]
    made = [[{"prompt": p, "chosen": "yes it is", "rejected": "no"} for p in texts] for texts in (known, new)]
    try:
        begin(put(folder / "a.jsonl", made[0]), folder / "one")
        begin(put(folder / "b.jsonl", [*made[1][:cut], *made[0], *made[1][cut:]]), folder / "two")
    except InputError as error:
        assert re.search("usable prompt|every prompt was held out|no pair is left", str(error))  # noqa: PT017
        return
    before = asked_in(folder / "one", "heldout")
    aside = lines(folder / "two" / "data" / "rejected.jsonl")
    copies = {line["row"]["prompt"][0]["content"] for line in aside if line["reason"].endswith("duplicate")}
    assert before <= asked_in(folder / "two", "heldout") | copies
    assert before.isdisjoint(asked_in(folder / "two", "train"))


def test_a_copy_in_front_of_a_prompt_that_was_held_out_goes_with_it(tmp_path: Path) -> None:
    draw = random.Random(4)
    some = [{"prompt": " ".join(draw.choices(WORDS, k=30)), "chosen": "yes it is", "rejected": "no"} for _ in range(80)]
    begin(put(tmp_path / "a.jsonl", some), tmp_path / "one")
    copies = [row | {"prompt": f"{row['prompt']} then"} for row in some]
    begin(put(tmp_path / "b.jsonl", copies + some), tmp_path / "two")
    held = asked_in(tmp_path / "one", "heldout")
    assert held | {f"{text} then" for text in held} <= asked_in(tmp_path / "two", "heldout")


def test_with_pairs_to_hold_out_named_files_keep_their_prompts_out_of_training_and_runs_beside_are_told(
    tmp_path: Path,
) -> None:
    path = put(tmp_path / "a.jsonl", rows(100))
    begin(path, tmp_path / "one")
    held = asked_in(tmp_path / "one", "heldout")
    other = put(tmp_path / "b.jsonl", [{"prompt": "Else?", "chosen": "x", "rejected": "y"}])
    auto = begin(path, tmp_path / "two", heldout=str(other))
    assert (auto.train, auto.rejected, auto.held_before) == (100, {}, None)
    assert findings(tmp_path / "two" / "data")["D1.held_before"]["status"] == "warn"
    (tmp_path / "two").rename(tmp_path / "elsewhere")
    for name in ("one", f"one/data/{FILE}", "one/data"):
        summary = begin(path, tmp_path / "three", heldout=str(other), held_before=str(tmp_path / name), bad_rows="stop")
        assert summary.rejected == {"held_before": len(held)}
        assert held.isdisjoint(asked_in(tmp_path / "three", "train"))
        assert (summary.held_before or {})["prompts"] == len(held)
    why = {line["why"] for line in lines(tmp_path / "three" / "data" / "rejected.jsonl")}
    assert why == {"the prompt, or one like it, was held out before (data.held_before)"}


def test_nothing_is_held_out_again_where_none_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(100))
    begin(path, tmp_path / "one", heldout_share=0.5)
    again = begin(path, tmp_path / "two")
    plain = begin(path, tmp_path / "three", held_before="none")
    assert again.heldout > 30 > plain.heldout
    assert plain.held_before is None
    assert findings(tmp_path / "three" / "data")["D1.held_before"]["status"] == "warn"


def test_a_named_file_that_is_none_is_said_and_counts_as_a_source(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(30))
    (tmp_path / "notes.txt").write_text("mine")
    for name, what in (("gone", "is not there"), ("notes.txt", f"is no {FILE}"), ("", f"holds no {FILE}")):
        with pytest.raises(InputError, match=rf"data\.held_before: .*{what}; name such a file or the run"):
            begin(path, tmp_path / "runs" / "one", held_before=str(tmp_path / name))
    with pytest.raises(InputError, match="'none' stands beside other names"):
        begin(path, tmp_path / "runs" / "one", held_before=["none", str(tmp_path / "notes.txt")])
    one = begin(path, tmp_path / "runs" / "one")
    two = begin(path, tmp_path / "runs" / "two", held_before=str(tmp_path / "runs" / "one"))
    assert one.source_sha256 != two.source_sha256


def test_where_all_was_held_out_before_it_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rows(30))
    every = put(tmp_path / "b.jsonl", rows(31))
    other = put(tmp_path / "c.jsonl", [{"prompt": "z", "chosen": "a", "rejected": "b"}])
    begin(other, tmp_path / "one", heldout=str(every))
    with pytest.raises(InputError, match="every prompt was held out before, so none is left to train on"):
        begin(path, tmp_path / "two")


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
def test_by_meaning_too_what_was_held_out_before_is_so_again_and_its_paraphrases_with_it(tmp_path: Path) -> None:
    ones, others = zip(*SAID, strict=True)
    some = [{"prompt": t, "chosen": "yes it is", "rejected": "no"} for t in ones]
    begin(put(tmp_path / "a.jsonl", some), tmp_path / "one", heldout_share=0.4)
    held = asked_in(tmp_path / "one", "heldout")
    every = some + [{"prompt": t, "chosen": "yes it is", "rejected": "no"} for t in others]
    grown = put(tmp_path / "b.jsonl", every)
    begin(grown, tmp_path / "two", clusters=str(tmp_path / "c.npz"), heldout_share=0.01)
    trained = asked_in(tmp_path / "two", "train")
    assert held <= asked_in(tmp_path / "two", "heldout")
    for one, other in SAID:
        assert not (one in held and other in trained), (one, other)


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


def test_sides_by_meaning_take_any_encoder_and_the_file_belongs_to_it(tmp_path: Path) -> None:
    path, file = put(tmp_path / "a.jsonl", rows(40)), str(tmp_path / "c.npz")
    small, wide = (encoder_folder(tmp_path / str(width), width=width, seed=width, spread=1.0) for width in (32, 48))
    run(path, tmp_path / "one", clusters=file, encoder=str(small))
    again = run(path, tmp_path / "two", clusters=file, encoder=str(small), seed=3)
    assert held_out(tmp_path / "one") == held_out(tmp_path / "two")
    assert again.heldout
    with pytest.raises(InputError, match="the clusters were made with encoder"):
        run(path, tmp_path / "three", clusters=file, encoder=str(wide))
    run(path, tmp_path / "four", clusters=str(tmp_path / "d.npz"), encoder=str(wide))
    assert [clusters.load(tmp_path / name).leader_GD.shape[1] for name in ("c.npz", "d.npz")] == [32, 48]


@pytest.mark.parametrize(
    ("encoder", "said"), [("lexical", "data.encoder = lexical compares texts by"), ("gone", "gone")]
)
def test_an_encoder_that_sides_cannot_rest_on_is_refused(tmp_path: Path, encoder: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(put(tmp_path / "a.jsonl", rows(30)), tmp_path / "data", clusters=str(tmp_path / "c.npz"), encoder=encoder)
    assert not (tmp_path / "c.npz").exists()


def test_sides_by_meaning_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "installed", lambda: None)
    with pytest.raises(InputError, match=r"install it with `pip install .*`, or leave data\.clusters out"):
        run(put(tmp_path / "a.jsonl", rows(30)), tmp_path / "data", clusters=str(tmp_path / "c.npz"))
    assert not (tmp_path / "c.npz").exists()
