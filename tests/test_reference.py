"""The cached reference: what is scored and when, its bits after a kill, other machines, other models, refusals."""

from __future__ import annotations

import itertools
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers.batching import Rung, collate
from druthers.config import ModelSettings
from druthers.models import Loaded, attach_adapter, choose_layout, score_pairs, score_tokens, weights_sha
from druthers.records import InputError
from druthers.storage import cache_folder
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import reference
from druthers.train.reference_cache import Cache, asked_of, keys_of, parts_in
from tests import tiny
from tests.calls import in_child

BUDGET = 4
"""So small that a few pairs make several windows."""


pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def tokenized(count: int) -> list[TokenizedPair]:
    tokenizer = tiny.tokenizer()
    return [tokenize(pair, tokenizer, max_prompt=100, max_response=100) for pair in tiny.pairs(count)]


PAIRS = tokenized(14)


def policy(*, seed: int = 0, rung: Rung = "padded", compute: torch.dtype = torch.float32, **changes: Any) -> Loaded:
    """The tiny model as `models.load` would give it."""
    made = tiny.model(seed, vocab=259, **changes)
    loaded = Loaded(made, tiny.tokenizer(), "tiny", weights_sha(made), compute, torch.device("cpu"))
    return loaded if rung == "padded" else choose_layout(loaded, rung)


def scores_of(pairs: Sequence[TokenizedPair], *, by: Loaded | None = None, **how: Any) -> Tensor:
    """The cached reference of the pairs, shape (2, B)."""
    by = by or policy()
    found = reference.choose("auto", by, pairs, token_budget=BUDGET, **how)
    return found.scores(collate(pairs, pad_id=by.pad_id), pairs, by)


def cache_of(by: Loaded | None = None) -> Cache:
    """The cache of a model, as it is on the disk."""
    return Cache(cache_folder("reference"), reference.header_for(by or policy()))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses each call scored."""
    counts: list[int] = []

    def counting(loaded: Loaded, pairs: Sequence[TokenizedPair], **how: Any) -> Any:
        counts.append(sum(bool(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)))
        return score_tokens(loaded, pairs, **how)

    monkeypatch.setattr(reference, "score_tokens", counting)
    return counts


# ---------------------------------------------------------------- scored once


@pytest.mark.parametrize("rung", ["padded", "padding-free", "shared"])
def test_what_is_cached_are_the_model_s_own_scores(rung: Rung) -> None:
    by = policy(rung=rung)
    expected = score_pairs(by, PAIRS, token_budget=1)
    assert abs(scores_of(PAIRS, by=by).numpy() - expected).max() < 1e-4
    tokens = reference.cached(by, PAIRS, token_budget=BUDGET).tokens(PAIRS)
    assert [tuple(map(len, both)) for both in tokens] == [(len(p.chosen), len(p.rejected)) for p in PAIRS]
    flat = [array for both in tokens for array in both]
    right = [array for both in score_tokens(by, PAIRS, token_budget=1) for array in both]
    assert max(abs(a - b).max() for a, b in zip(flat, right, strict=True)) < 1e-5
    assert {array.dtype for array in flat} == {np.dtype(np.float32)}


def test_the_tokens_of_a_response_that_is_cut_on_the_right_are_those_that_remain() -> None:
    short = [replace(p, chosen=p.chosen[:4], chosen_scored=p.chosen_scored[:4]) for p in PAIRS]
    whole, part = (reference.cached(policy(), some, token_budget=BUDGET).tokens(some) for some in (PAIRS, short))
    assert max(abs(a[:4] - b).max() for (a, _), (b, _) in zip(whole, part, strict=True)) < 1e-5


def test_the_cache_is_filled_once(own_cache: Path, scored: list[int]) -> None:
    first = scores_of(PAIRS)
    files = {file: file.read_bytes() for file in own_cache.rglob("*") if file.is_file()}
    assert sum(scored) == 2 * len(PAIRS)
    scored.clear()
    assert torch.equal(scores_of(PAIRS), first)
    assert scored == [2 * reference.SAMPLE]
    assert {file: file.read_bytes() for file in own_cache.rglob("*") if file.is_file()} == files


def test_only_what_is_new_is_scored_and_added(scored: list[int]) -> None:
    first = scores_of(PAIRS[:9])
    (part,) = parts_in(cache_of().folder)
    before = part.read_bytes()
    assert torch.equal(scores_of(PAIRS[:9][::-1]), first.flip(1))
    scored.clear()
    assert torch.equal(scores_of(PAIRS)[:, :9], first)
    assert sum(scored) == 2 * reference.SAMPLE + 2 * (len(PAIRS) - 9)
    assert part.read_bytes() == before
    assert [pq.read_metadata(file).num_rows for file in parts_in(cache_of().folder)] == [18, 10]


@pytest.mark.parametrize("rung", ["padded", "shared"])
def test_a_response_in_several_pairs_is_scored_once(scored: list[int], rung: Rung) -> None:
    """All pairs of five responses to one prompt, on either side."""
    responses = [(pair.chosen, pair.chosen_scored) for pair in PAIRS[:5]]
    ranked = [
        TokenizedPair("", PAIRS[0].prompt, a, b, a_scored, b_scored)
        for (a, a_scored), (b, b_scored) in itertools.permutations(responses, 2)
    ]
    by = policy(rung=rung)
    found = scores_of(ranked, by=by)
    assert sum(scored) == 5
    assert abs(found.numpy() - score_pairs(by, ranked, token_budget=1)).max() < 1e-4
    assert cache_of(by).index.keys.size == 5


def test_no_random_number_is_drawn() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    scores_of(PAIRS)
    scores_of(PAIRS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def test_progress_ends_with_all_responses() -> None:
    seen: list[tuple[int, int]] = []
    scores_of([*PAIRS, *PAIRS[:3]], progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 2
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (28, 28)
    assert {total for _, total in seen} == {28}


def test_a_pair_that_was_not_asked_for_has_no_score() -> None:
    found = reference.choose("cache", policy(), PAIRS[:3], token_budget=BUDGET)
    with pytest.raises(InputError, match="lacks 2 of 2 responses"):
        found.scores(collate(PAIRS[3:4], pad_id=0), PAIRS[3:4], policy())


# ---------------------------------------------------------------- windows


SHORT = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


def short_pair(prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]) -> TokenizedPair:
    return TokenizedPair("", prompt, chosen, rejected, (True,) * len(chosen), (True,) * len(rejected))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.builds(short_pair, SHORT, SHORT, SHORT), min_size=1, max_size=12), st.integers(1, 40), st.data())
def test_windows_hold_every_response_once_and_go_on_where_they_were_left(
    pairs: list[TokenizedPair], tokens: int, data: st.DataObject
) -> None:
    asked = asked_of(pairs)
    keys_CB = asked.keys_CB
    cut = list(reference.windows(asked, np.ones(keys_CB.shape, dtype=bool), tokens=tokens))
    found = [[keys_CB[c, b] for c, b in cells] for cells in cut]
    assert sorted(key for keys in found for key in keys) == np.unique(keys_CB).tolist()
    prompts = [{pairs[b].prompt for _, b in cells} for cells in cut]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    done = data.draw(st.integers(0, len(cut)))
    left_CB = ~np.isin(keys_CB, [key for keys in found[:done] for key in keys])
    again = reference.windows(asked, left_CB, tokens=tokens) if left_CB.any() else iter(())
    assert [[keys_CB[c, b] for c, b in cells] for cells in again] == found[done:]
    for cells in cut:
        rows, places = reference.rows_of(pairs, cells)
        sides = [(rows[row].prompt, (rows[row].chosen, rows[row].rejected)[c]) for row, c in places]
        wanted = [(pairs[b].prompt, (pairs[b].chosen, pairs[b].rejected)[c]) for c, b in cells]
        assert sides == wanted


# ---------------------------------------------------------------- interrupted


def kill_at_part(number: int) -> None:
    """Score, until a part of that number would be written."""
    add = Cache.add

    def fatal(cache: Cache, *given: Any) -> None:
        if len(parts_in(cache.folder)) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        add(cache, *given)

    Cache.add = fatal  # type: ignore[method-assign]
    scores_of(PAIRS)


@pytest.mark.parametrize("rung", ["padded", "shared"])
def test_scoring_that_was_killed_keeps_its_parts_and_gives_the_same_bits(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int], rung: Rung
) -> None:
    monkeypatch.setattr(reference, "EVERY", 0.0)
    monkeypatch.setattr(reference, "SAMPLE", 1)
    by = policy(rung=rung)
    whole = scores_of(PAIRS, by=by)
    parts = len(parts_in(cache_of(by).folder))
    assert parts >= 4
    shutil.rmtree(own_cache)
    monkeypatch.setattr(f"{__name__}.policy", lambda: by)
    for number in (1, 3):
        assert in_child(partial(kill_at_part, number)) == signal.SIGKILL
        assert len(parts_in(cache_of(by).folder)) == number
    scored.clear()
    kept = cache_of(by).index.keys.size
    assert torch.equal(scores_of(PAIRS, by=by), whole)
    assert sum(scored) == 2 + 2 * len(PAIRS) - kept
    assert len(parts_in(cache_of(by).folder)) == parts


def test_a_full_disk_is_one_sentence_and_spares_what_stands(tmp_path: Path) -> None:
    first = scores_of(PAIRS[:4])
    said = tmp_path / "said"

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            scores_of(PAIRS)
        except InputError as error:
            os.write(os.open(said, os.O_WRONLY | os.O_CREAT), str(error).encode())

    assert in_child(act) == 0
    assert "part-000002.parquet: cannot be written: File too large; free some space and run again" in said.read_text()
    assert "\n" not in said.read_text()
    assert torch.equal(scores_of(PAIRS)[:, :4], first)


# ---------------------------------------------------------------- other machines, other models


def test_a_cache_from_another_machine_is_taken_after_a_sample(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    """The folder is copied without its lock, and named by the variable; a read-only copy would do."""
    first = scores_of(PAIRS)
    there = tmp_path / "there"
    shutil.copytree(own_cache / "reference", there / "reference", ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(own_cache)
    monkeypatch.setenv("DRUTHERS_CACHE", str(there))
    before = sorted(there.rglob("*"))
    scored.clear()
    assert torch.equal(scores_of(PAIRS), first)
    assert scored == [2 * reference.SAMPLE]
    assert sorted(there.rglob("*")) == before


def rewritten(path: Path, **columns: Any) -> None:
    """A part with other values in some columns, its header kept."""
    table = pq.read_table(path)
    for name, change in columns.items():
        at, column = table.schema.get_field_index(name), table.column(name)
        changed = pa.array([change(value) for value in column.to_pylist()], column.type)
        table = table.set_column(at, table.schema.field(at), changed)
    pq.write_table(table, path)


def test_a_little_rounding_of_another_machine_is_taken_and_more_is_refused_with_the_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = scores_of(PAIRS)
    (part,) = parts_in(cache_of().folder)
    whole = part.read_bytes()
    rewritten(part, token_logps=lambda tokens: [x + 2e-5 for x in tokens], logp=lambda x: x + 2e-5)
    assert torch.equal(scores_of(PAIRS), first + 2e-5)
    for changed in ({"token_logps": lambda tokens: [x + 1e-3 for x in tokens]}, {"logp": lambda x: x - 0.5}):
        part.write_bytes(whole)
        rewritten(part, **changed)
        with pytest.raises(InputError) as caught:
            scores_of(PAIRS)
        said = str(caught.value)
        assert str(part.parent) in said
        assert "nat a token in 8 pairs scored again (limit 0.0001)" in said
        assert "delete the folder and run again" in said
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(InputError, match=r"made with torch = 2.* \(now 9.9\)"):
        scores_of(PAIRS)


def test_the_sample_looks_into_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad part among good ones is found, also when it is small."""
    for stop in (2, 13, 14):
        scores_of(PAIRS[:stop])
    *_, last = parts_in(cache_of().folder)
    rewritten(last, logp=lambda x: x - 5)
    with pytest.raises(InputError, match="disagrees with the reference"):
        scores_of(PAIRS)


def test_another_model_has_a_folder_of_its_own_and_the_reason_is_said(own_cache: Path) -> None:
    said: list[str] = []
    scores_of(PAIRS, say=said.append)
    assert said == []
    first = cache_of().folder
    kept = {file: file.read_bytes() for file in parts_in(first)}
    others = {
        r"weights = \w{12}... \(now \w{12}...\)": policy(seed=1),
        r"config.rope_parameters.rope_theta = 10000.0 \(now 500.0\)": policy(
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}
        ),
        r"compute = float32 \(now bfloat16\)": policy(compute=torch.bfloat16),
        r"attention = sdpa \(now druthers\), rows = padded \(now shared\)": policy(rung="shared"),
    }
    for reason, other in others.items():
        said.clear()
        scores_of(PAIRS, by=other, say=said.append)
        (text,) = said
        assert re.search(reason, text), text
        assert f"again into {cache_of(other).folder}, and the old ones stay" in text
        said.clear()
        scores_of(PAIRS, by=other, say=said.append)
        assert said == []
    assert len([folder for folder in (own_cache / "reference").iterdir() if parts_in(folder)]) == 1 + len(others)
    assert {file: file.read_bytes() for file in parts_in(first)} == kept


def test_an_adapter_finds_the_cache_of_its_base(scored: list[int]) -> None:
    first = scores_of(PAIRS)
    scored.clear()
    adapted = attach_adapter(policy(), ModelSettings(adapter="lora", lora_rank=2))
    with torch.no_grad():
        for weight in adapted.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert torch.equal(scores_of(PAIRS, by=adapted), first)
    assert scored == [2 * reference.SAMPLE]


def test_a_damaged_part_is_named_and_scored_again_and_nothing_else(scored: list[int]) -> None:
    first = scores_of(PAIRS[:5])
    scores_of(PAIRS)
    broken, _ = parts_in(cache_of().folder)
    broken.write_bytes(broken.read_bytes()[:-9])
    said: list[str] = []
    scored.clear()
    assert torch.equal(scores_of(PAIRS, say=said.append)[:, :5], first)
    assert said == [said[0]]
    assert f"{broken} cannot be read (" in said[0]
    assert said[0].endswith("what it holds is scored again")
    assert sum(scored) == 2 * reference.SAMPLE + 2 * 5
    said.clear()
    scores_of(PAIRS, say=said.append)
    assert said == []


def test_the_header_says_what_the_scores_depend_on() -> None:
    scores_of(PAIRS)
    header = reference.header_for(policy())
    assert Cache(cache_folder("reference"), header).made_with(keys_of(PAIRS)[0, 0])["torch"] == torch.__version__
    depends = header["depends_on"]
    assert depends["weights"] == policy().sha
    assert (depends["compute"], depends["device"], depends["rows"]) == ("float32", "cpu", "padded")
    assert depends["attention"] == "sdpa"
    assert depends["config.num_hidden_layers"] == 2
