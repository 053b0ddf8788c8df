"""Training on the tiny model: schedules, the kept checkpoints, the reference, and a run that nothing can hurt.

A kill is a real one: the run lives in a forked child that SIGKILL takes in the middle of a line of the code.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from druthers import storage
from druthers.batching import Order
from druthers.config import ModelSettings, Settings, TrainSettings, load
from druthers.models import Loaded, attach_adapter, remove_tree, trainable, weights_sha
from druthers.objectives import IPOSettings
from druthers.records import InputError, Outcome
from druthers.run import Run
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import Interrupted, checkpoint, logs, loop, reference, train
from druthers.train.interruption import Interruption
from tests import tiny
from tests.calls import in_child

STEPS = 6
Row = dict[str, Any]


class PowerCut(BaseException):
    """Nothing in the code may catch this."""


pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


# ---------------------------------------------------------------- the run of these tests


def tokenized(count: int, *, skip: int = 0) -> list[TokenizedPair]:
    tokenizer = tiny.tokenizer()
    return [tokenize(pair, tokenizer, max_prompt=100, max_response=100) for pair in tiny.pairs(count + skip)[skip:]]


PAIRS, HELDOUT = tokenized(14), tokenized(4, skip=14)


def policy(adapter: str = "none") -> Loaded:
    """The tiny model as `models.load` would give it; an adapter always begins alike."""
    made = tiny.model(vocab=259)
    plain = Loaded(made, tiny.tokenizer(), "tiny", weights_sha(made), torch.float32, torch.device("cpu"))
    if adapter == "none":
        return plain
    torch.manual_seed(0)
    return attach_adapter(plain, ModelSettings(adapter="lora", lora_rank=2))


def settings(*changes: str) -> Settings:
    """Six steps of four pairs in two epochs; evaluations after 4 and 6, a checkpoint also after 3."""
    few = ("pairs_per_step=4", "epochs=1.5", "evaluate_every=4", "checkpoint_every=3", "token_budget=400")
    return load(overrides=[*(f"train.{change}" for change in few), "train.learning_rate=1e-3", *changes])


def run_to_end(
    folder: Path,
    *changes: str,
    pairs: Sequence[TokenizedPair] = PAIRS,
    heldout: Sequence[TokenizedPair] = HELDOUT,
    note: Callable[[Row], None] = lambda row: None,
    adapter: str = "none",
) -> Row:
    return train(Run(folder), settings(*changes), policy(adapter), pairs=pairs, heldout=heldout, note=note)


def traces(folder: Path) -> dict[str, bytes]:
    """What must come out alike however often a run was stopped: all but the clock (`open_run` sweeps temporaries)."""
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file() and f.suffix != ".tmp"}
    found = {name: file.read_bytes() for name, file in files.items() if not name.endswith("position.json")}
    for name in files.keys() - found.keys():
        found[name] = json.dumps({**json.loads(files[name].read_text()), "seconds": 0}).encode()
    return found


def same(a: Path, b: Path) -> None:
    left, right = traces(a), traces(b)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def checkpoints(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "checkpoints").iterdir())


def refusal(folder: Path, *changes: str, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        run_to_end(folder, *changes, **how)
    said = str(caught.value)
    assert "\n" not in said
    return said


# ---------------------------------------------------------------- schedules

SCHEDULES = st.sampled_from(["linear", "cosine", "constant"])


@given(st.integers(1, 200), st.floats(0, 0.9), SCHEDULES)
def test_the_learning_rate_rises_to_its_peak_and_never_again(
    total: int, share: float, shape: Literal["linear", "cosine", "constant"]
) -> None:
    t = TrainSettings(learning_rate=2.0, warmup_share=share, schedule=shape)
    rates = [loop.learning_rate_at(step, total=total, settings=t) for step in range(total)]
    top = max(0, math.ceil(share * total) - 1)
    assert rates[top] == pytest.approx(2.0)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert all(0 < rate <= 2.0 for rate in rates)


def test_the_three_shapes() -> None:
    halfway = {
        shape: loop.learning_rate_at(
            50,
            total=100,
            settings=TrainSettings.model_validate({"schedule": shape, "learning_rate": 1, "warmup_share": 0}),
        )
        for shape in ("linear", "cosine", "constant")
    }
    assert halfway == {"linear": 0.5, "cosine": pytest.approx(0.5), "constant": 1.0}


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.floats(0.1, 3),
    st.none() | st.integers(1, 50),
    st.none() | st.integers(1, 50),
)
def test_a_run_ends_with_an_evaluation_and_a_checkpoint(
    count: int, step: int, epochs: float, every: int | None, save: int | None
) -> None:
    t = TrainSettings(pairs_per_step=step, epochs=epochs, evaluate_every=every, checkpoint_every=save)
    found = loop.make_schedule(count, t)
    assert found.total in found.evaluate <= found.save
    assert all(1 <= at <= found.total for at in found.save)
    assert every or len(found.evaluate) <= 4


# ---------------------------------------------------------------- a run


def test_a_run_leaves_metrics_outcomes_and_two_checkpoints(tmp_path: Path) -> None:
    told: list[Row] = []
    section = run_to_end(tmp_path, note=told.append)
    rows = Run(tmp_path).metrics()
    assert rows == told
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if row["split"] == "heldout"] == [0, 4, 6]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert section["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert section["steps"] == STEPS
    outcomes = list(storage.read(str(tmp_path / "outcomes.parquet"), Outcome))
    assert len(outcomes) == 3 * len(HELDOUT) + 14 + 2 * 4
    assert {o.pair_id for o in outcomes if o.split == "heldout"} == {pair.id for pair in HELDOUT}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not (tmp_path / loop.OUTCOME_LOG).exists()


def test_each_epoch_trains_every_pair_once(tmp_path: Path) -> None:
    run_to_end(tmp_path, "train.epochs=1", "train.evaluate_every=4")
    trained = [o for o in storage.read(str(tmp_path / "outcomes.parquet"), Outcome) if o.split == "train"]
    assert sorted(o.pair_id for o in trained) == sorted(pair.id for pair in PAIRS)


@pytest.mark.parametrize(("metric", "pick"), [("loss", min), ("accuracy", max), ("margin", max)])
def test_the_best_checkpoint_is_that_of_the_named_metric(
    tmp_path: Path, metric: str, pick: Callable[[Sequence[float]], float]
) -> None:
    run_to_end(tmp_path, f"train.best_metric={metric}", "train.learning_rate=0.03", "train.evaluate_every=1")
    seen = {
        r["step"]: r[loop.METRIC_KEYS[metric]] for r in Run(tmp_path).metrics() if r["split"] == "heldout" and r["step"]
    }
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["value"] == pick(list(seen.values()))
    assert best["step"] == next(step for step, value in seen.items() if value == best["value"])
    assert best == {**best, "metric": metric, "folder": checkpoint.name(best["step"])}
    assert checkpoints(tmp_path) == sorted({"best.json", best["folder"], checkpoint.name(STEPS)})


def test_the_best_checkpoint_outlives_later_ones(tmp_path: Path) -> None:
    folders: set[frozenset[str]] = set()

    def note(row: Row) -> None:
        if (tmp_path / "checkpoints").is_dir():
            folders.add(frozenset(checkpoints(tmp_path)))

    swapped = [
        replace(
            pair,
            chosen=pair.rejected,
            rejected=pair.chosen,
            chosen_scored=pair.rejected_scored,
            rejected_scored=pair.chosen_scored,
        )
        for pair in PAIRS[:4]
    ]
    run_to_end(tmp_path, "train.evaluate_every=2", heldout=swapped, note=note)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["step"] < STEPS
    assert max(len(found) for found in folders) <= 3
    assert [file.name for file in (tmp_path / "checkpoints" / best["folder"]).iterdir()].count("optimizer.pt") == 0
    last = tmp_path / "checkpoints" / checkpoint.name(STEPS) / "weights.safetensors"
    assert (checkpoint.best(tmp_path) / "weights.safetensors").read_bytes() != last.read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run_to_end(tmp_path)
    before, told = traces(tmp_path), list[Row]()
    again = run_to_end(tmp_path, note=told.append)
    assert told == []
    assert traces(tmp_path) == before
    assert {**again, "peak_memory_gib": 0} == {**first, "peak_memory_gib": 0}


def test_before_there_is_a_checkpoint_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no trained checkpoint"):
        checkpoint.best(tmp_path)


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize(("adapter", "kinds"), [("none", ("cache", "copy")), ("lora", ("cache", "copy", "adapter"))])
def test_the_references_agree(tmp_path: Path, adapter: str, kinds: tuple[str, ...]) -> None:
    losses = []
    for kind in kinds:
        section = run_to_end(tmp_path / kind, f"train.reference={kind}", adapter=adapter)
        assert section["reference"] == kind
        losses.append([row["loss"] for row in Run(tmp_path / kind).metrics()])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)


def test_the_adapter_of_a_model_without_one_is_refused(tmp_path: Path) -> None:
    assert "needs model.adapter = 'lora'" in refusal(tmp_path, "train.reference=adapter")


def test_a_cache_that_is_not_the_reference_is_refused_before_anything_is_written(
    tmp_path: Path, own_cache: Path
) -> None:
    reference.choose("cache", policy(), [*PAIRS, *HELDOUT], token_budget=400)
    (file,) = own_cache.rglob("*.parquet")
    table = pq.read_table(file)
    shifted = pa.array([value - 1 for value in table.column("logp").to_pylist()])
    pq.write_table(table.set_column(1, "logp", shifted), file)
    said = refusal(tmp_path / "run")
    assert "disagrees with the reference" in said
    assert str(file.parent) in said
    assert not (tmp_path / "run").exists()
    remove_tree(file.parent)
    run_to_end(tmp_path / "run")


def test_what_of_the_cache_is_not_used_is_said(tmp_path: Path, own_cache: Path) -> None:
    run_to_end(tmp_path / "first")
    (file,) = own_cache.rglob("*.parquet")
    file.write_text("no parquet")
    said: list[str] = []
    again = policy()
    train(Run(tmp_path / "second"), settings(), again, pairs=PAIRS, heldout=HELDOUT, say=said.append)
    (about,) = [text for text in said if text.startswith("reference cache: ")]
    assert f"{file} cannot be read" in about
    same(tmp_path / "first", tmp_path / "second")


def test_a_reference_that_is_another_model_stops_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(policy(), model=tiny.model(seed=1, vocab=259))
    monkeypatch.setattr(reference, "second_copy", lambda loaded: other)
    assert "policy and reference differ by" in refusal(tmp_path, "train.reference=copy")
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- what cannot be learned


@pytest.mark.parametrize("grade", [{"p": 0.8}, {"margin": 0.5}])
@pytest.mark.parametrize("side", ["train", "heldout"])
def test_a_loss_that_would_ignore_the_grades_is_refused(tmp_path: Path, grade: dict[str, Any], side: str) -> None:
    graded = [*PAIRS[:4], replace(PAIRS[4], **grade)]
    how: dict[str, Any] = {"pairs": graded} if side == "train" else {"heldout": graded}
    said = refusal(tmp_path, "loss.name=ipo", **how)
    assert f"pair {PAIRS[4].id}" in said
    assert "'ipo' cannot honour" in said
    run_to_end(tmp_path, "train.max_steps=1", **how)


def test_a_loss_that_honours_one_grade_refuses_the_other(tmp_path: Path) -> None:
    """The hinge has a margin and no p."""
    assert "'hinge' cannot honour" in refusal(tmp_path, "loss.name=hinge", pairs=[*PAIRS[:4], replace(PAIRS[4], p=0.8)])
    settings = load(overrides=["loss.name=hinge"])
    assert loop.make_loss(settings, [replace(PAIRS[4], margin=0.5)], PAIRS[:2]).margin


@pytest.mark.parametrize("name", ["kto", "bco-unpaired", "apo-zero-unpaired", "samp"])
def test_a_loss_that_asks_for_more_than_the_loop_gives_is_refused(tmp_path: Path, name: str) -> None:
    assert f"loss.name = {name!r}" in refusal(tmp_path, f"loss.name={name}")


@pytest.mark.parametrize("name", ["bco", "beta-dpo", "aot", "tdpo2"])
def test_a_loss_that_sees_the_whole_step_goes_on_where_it_stopped(tmp_path: Path, name: str) -> None:
    """What it remembers, and what it draws, are those of a run that was never stopped."""

    def cut(row: Row) -> None:
        if row["step"] == 3:
            raise PowerCut

    plain = [replace(pair, p=1.0, margin=0.0) for pair in (*PAIRS, *HELDOUT)]
    how: dict[str, Any] = {"pairs": plain[: len(PAIRS)], "heldout": plain[len(PAIRS) :]}
    changes = (f"loss.name={name}", "train.checkpoint_every=1")
    run_to_end(tmp_path / "whole", *changes, **how)
    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "cut", *changes, **how, note=cut)
    run_to_end(tmp_path / "cut", *changes, **how)
    same(tmp_path / "whole", tmp_path / "cut")
    losses = [row["loss"] for row in Run(tmp_path / "whole").metrics() if row["split"] == "train"]
    assert len(set(losses)) == len(losses) > 3


def test_ipo_learns_hard_pairs(tmp_path: Path) -> None:
    run_to_end(tmp_path, "loss.name=ipo", "train.max_steps=2")
    assert Run(tmp_path).metrics()[0]["loss"] == pytest.approx((1 / (2 * IPOSettings().beta)) ** 2, abs=1e-4)


@pytest.mark.parametrize("side", ["pairs", "heldout"])
def test_weights_that_are_all_zero_are_refused(tmp_path: Path, side: str) -> None:
    said = refusal(tmp_path, **{side: [replace(pair, weight=0.0) for pair in PAIRS]})
    assert "weight 0" in said


def test_a_step_of_weight_zero_changes_nothing(tmp_path: Path) -> None:
    first = set(Order(PAIRS, pairs_per_step=4, seed=0).step(0))
    pairs = [replace(pair, weight=float(i not in first)) for i, pair in enumerate(PAIRS)]
    run_to_end(tmp_path, pairs=pairs)
    rows = [row for row in Run(tmp_path).metrics() if row["split"] == "train"]
    assert (rows[0]["loss"], rows[0]["grad_norm"]) == (None, 0.0)
    assert rows[1]["grad_norm"] > 0


def test_a_loss_that_is_no_number_names_the_pair_and_spares_the_weights(tmp_path: Path) -> None:
    bad = Order(PAIRS, pairs_per_step=4, seed=0).step(2)[1]
    pairs = [replace(pair, margin=math.inf) if i == bad else pair for i, pair in enumerate(PAIRS)]
    learner, kept = policy(), dict[str, Tensor]()

    def note(row: Row) -> None:
        kept.update({name: weight.detach().clone() for name, weight in trainable(learner).items()})

    with pytest.raises(InputError) as caught:
        train(Run(tmp_path), settings("train.checkpoint_every=2"), learner, pairs=pairs, heldout=HELDOUT, note=note)
    assert "step 3: the loss or its gradient is not finite" in str(caught.value)
    assert f"worst pair {pairs[bad].id}" in str(caught.value)
    assert all(torch.equal(weight, kept[name]) for name, weight in trainable(learner).items())
    assert Run(tmp_path).metrics()[-1]["step"] == 2
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step-000002"


def test_a_held_out_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    said = refusal(tmp_path, heldout=[HELDOUT[0], replace(HELDOUT[1], margin=math.inf)])
    assert "the held-out loss is not finite" in said
    assert HELDOUT[1].id in said
    assert Run(tmp_path).metrics() == []


def test_a_run_that_diverges_is_one_sentence_and_saves_nothing_of_it(tmp_path: Path) -> None:
    assert "not finite" in refusal(tmp_path, "train.learning_rate=1e30", "train.warmup_share=0")
    assert not (tmp_path / "checkpoints" / checkpoint.name(STEPS)).exists()
    assert all(math.isfinite(row["loss"]) for row in Run(tmp_path).metrics())


# ---------------------------------------------------------------- resume is exact

FORMS = [("none", "cache"), ("none", "copy"), ("lora", "cache"), ("lora", "adapter")]


@pytest.mark.parametrize(("adapter", "kind"), FORMS)
def test_a_run_stopped_after_any_line_of_its_metrics_continues_bit_for_bit(
    tmp_path: Path, adapter: str, kind: str
) -> None:
    """One run is stopped after its first line, continued until one line more, and so on to its end."""
    change = f"train.reference={kind}"
    run_to_end(tmp_path / "whole", change, adapter=adapter)
    lines = len(Run(tmp_path / "whole").metrics())
    for stop in range(lines):

        def cut(row: Row, stop: int = stop) -> None:
            if len(Run(tmp_path / "cut").metrics()) == stop + 1:
                raise PowerCut

        with pytest.raises(PowerCut):
            run_to_end(tmp_path / "cut", change, adapter=adapter, note=cut)
    run_to_end(tmp_path / "cut", change, adapter=adapter)
    same(tmp_path / "whole", tmp_path / "cut")


WATCHED = tuple(str(Path(module.__file__)) for module in (loop, logs, checkpoint, storage) if module.__file__)


class Fuse:
    """Counts the lines of the watched files that begin, and kills this process at one of them (0: never)."""

    def __init__(self, line: int) -> None:
        self.line, self.seen = line, 0

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """A trace function, for every frame."""
        if frame.f_code.co_filename not in WATCHED:
            return None
        self.seen += event == "line"
        if self.line and self.seen >= self.line:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.trace

    def light(self) -> None:
        """Begin to count, in the frames that are running too."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            frame.f_trace = self.trace
            frame = frame.f_back
        sys.settrace(self.trace)

    def burn(self, folder: Path, *, adapter: str, start: Callable[[Row], bool]) -> int:
        """Run to the end, or to the kill; counting begins with the line of metrics that `start` knows."""
        run_to_end(folder, adapter=adapter, note=lambda row: self.light() if start(row) else None)
        sys.settrace(None)
        return self.seen


def lines_in(folder: Path, *, adapter: str, start: Callable[[Row], bool]) -> int:
    """How many lines a run takes from `start` to its end."""
    told = folder.with_suffix(".lines")
    assert in_child(lambda: told.write_text(str(Fuse(0).burn(folder, adapter=adapter, start=start)))) == 0
    remove_tree(folder)
    return int(told.read_text())


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_killed_at_any_moment_continues_bit_for_bit(tmp_path: Path, adapter: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_to_end(whole, adapter=adapter)
    moments, kills = random.Random(adapter), 0
    lines = lines_in(cut, adapter=adapter, start=lambda row: row["step"] == 0)
    for _ in range(6):
        fuse = Fuse(moments.randrange(1, lines // 2))
        kills += in_child(partial(fuse.burn, cut, adapter=adapter, start=bool)) == signal.SIGKILL
    assert kills >= 3
    run_to_end(cut, adapter=adapter)
    same(whole, cut)


def test_a_run_killed_while_it_saves_continues_bit_for_bit(tmp_path: Path) -> None:
    """Kills spread over the lines behind the last evaluation: saving, noting the best, pruning, the outcomes."""

    def last(row: Row) -> bool:
        return bool(row["step"] == STEPS and row["split"] == "heldout")

    def cut(row: Row) -> None:
        if last(row):
            raise PowerCut

    run_to_end(tmp_path / "whole")
    lines = lines_in(tmp_path / "counted", adapter="none", start=last)
    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "almost", note=cut)
    for line in range(1, lines, max(1, lines // 16)):
        folder = tmp_path / f"cut-{line}"
        shutil.copytree(tmp_path / "almost", folder)
        status = in_child(partial(Fuse(line).burn, folder, adapter="none", start=last))
        assert status == signal.SIGKILL
        run_to_end(folder)
        same(tmp_path / "whole", folder)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 5, STEPS])
def test_a_signal_saves_and_the_same_command_continues(tmp_path: Path, number: signal.Signals, at: int) -> None:
    def ask(row: Row) -> None:
        if row["step"] == at and row["split"] == ("train" if at else "heldout"):
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        run_to_end(tmp_path / "cut", note=ask)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert caught.value.signal == number
    assert caught.value.step == max(1, at)
    found = checkpoint.latest(tmp_path / "cut")
    assert found is not None
    assert found.name == checkpoint.name(max(1, at))
    run_to_end(tmp_path / "whole")
    run_to_end(tmp_path / "cut")
    same(tmp_path / "whole", tmp_path / "cut")


def test_the_first_signal_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption():
        signal.raise_signal(signal.SIGTERM)
    assert "stopping after this step, then saving" in capfd.readouterr().err


def test_the_second_signal_does_not_wait() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------- a full disk


def write_until(size: int, folder: Path, *changes: str) -> str:
    """What a run in a child says when no file may grow beyond `size` bytes."""
    said = folder.with_suffix(".said")
    said.touch()

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            run_to_end(folder, *changes)
        except InputError as error:
            said.write_text(str(error))

    assert in_child(act) == 0
    return said.read_text()


def test_a_full_disk_spares_the_previous_checkpoint(tmp_path: Path) -> None:
    run_to_end(tmp_path / "whole")

    def cut(row: Row) -> None:
        if row["step"] == 5:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "cut", note=cut)
    sizes = [file.stat().st_size for file in (tmp_path / "cut" / "checkpoints" / "step-000004").iterdir()]
    for size in (max(sizes) - 1, sorted(sizes)[-2] - 1):
        said = write_until(size, tmp_path / "cut")
        assert "step-000006 cannot be saved" in said
        assert "step-000004 is kept; free some space and run the same command again" in said
        assert "\n" not in said
        assert checkpoints(tmp_path / "cut") == ["best.json", "step-000004"]
    run_to_end(tmp_path / "cut")
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_disk_that_is_full_at_the_first_checkpoint_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.save", full)
    said = refusal(tmp_path)
    assert "No space left on device; no earlier one exists; free some space" in said
    assert checkpoints(tmp_path) == []


def test_a_disk_that_is_full_while_logging_is_said_and_continuing_works(tmp_path: Path) -> None:
    run_to_end(tmp_path / "whole", "train.reference=copy")
    said = write_until(1500, tmp_path / "cut", "train.reference=copy")
    assert "cannot be written: File too large; free some space" in said
    run_to_end(tmp_path / "cut", "train.reference=copy")
    same(tmp_path / "whole", tmp_path / "cut")


# ---------------------------------------------------------------- damage


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that lost its power in step 5."""

    def cut(row: Row) -> None:
        if row["step"] == 5:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "cut", note=cut)
    return tmp_path / "cut"


@pytest.mark.parametrize("file", ["optimizer.pt", "weights.safetensors", "position.json"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "object"])
def test_a_damaged_checkpoint_is_one_sentence(stopped: Path, file: str, damage: str) -> None:
    place = stopped / "checkpoints" / "step-000004" / file
    whole = place.read_bytes()
    place.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello", "object": b"{}x"}[damage])
    assert f"checkpoint {place.parent} is damaged" in refusal(stopped)


def flip(place: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)


@pytest.mark.parametrize("file", ["optimizer.pt", "weights.safetensors"])
def test_a_bit_that_flipped_is_noticed(stopped: Path, file: str) -> None:
    place = stopped / "checkpoints" / "step-000004"
    flip(place / file)
    said = refusal(stopped)
    assert said.startswith(f"checkpoint {place} is damaged: {file} is not what was written; delete that folder")


def test_best_weights_that_are_not_what_was_written_are_refused(tmp_path: Path) -> None:
    run_to_end(tmp_path)
    place = checkpoint.best_weights(tmp_path)
    assert place == checkpoint.best(tmp_path) / "weights.safetensors"
    flip(place)
    with pytest.raises(InputError, match=r"weights\.safetensors is not what was written; restore it from a copy"):
        checkpoint.best_weights(tmp_path)


def test_a_checkpoint_of_a_version_without_sums_is_read(tmp_path: Path, stopped: Path) -> None:
    place = stopped / "checkpoints" / "step-000004" / "position.json"
    note = json.loads(place.read_text())
    assert note.pop("crc32").keys() == {"optimizer.pt", "weights.safetensors"}
    place.write_text(json.dumps(note))
    checkpoint.best_weights(stopped)
    run_to_end(stopped)
    run_to_end(tmp_path / "whole")
    assert (stopped / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "{", '{"step": 4, "folder": "../.."}', '{"folder": "step-000004"}']
)
def test_a_damaged_note_of_the_best_is_written_again(tmp_path: Path, text: str) -> None:
    run_to_end(tmp_path)
    note = tmp_path / "checkpoints" / "best.json"
    kept = note.read_bytes()
    note.write_text(text)
    with pytest.raises(InputError, match=r"best\.json: .*; delete .*summary\.json and run `druthers train`"):
        checkpoint.best(tmp_path)
    run_to_end(tmp_path)
    assert note.read_bytes() == kept


@pytest.mark.parametrize("line", [b"{", b"{}", b"[]", b"null", b'{"pair_id": 3}', b"\xff"])
def test_a_damaged_line_of_outcomes_is_named(stopped: Path, line: bytes) -> None:
    log = stopped / loop.OUTCOME_LOG
    first, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(line.ljust(len(first) - 1) + b"\n" + b"".join(rest))
    said = refusal(stopped)
    assert said.startswith(f"{log}:1: ")
    assert f"delete {stopped / 'checkpoints'} and run the same command again" in said
    remove_tree(stopped / "checkpoints")
    run_to_end(stopped)


def test_a_mean_that_overflows_is_said(tmp_path: Path) -> None:
    said = refusal(tmp_path, pairs=[replace(pair, weight=1.5e308) for pair in PAIRS])
    assert "not finite" in said
    assert b"NaN" not in (tmp_path / "metrics.jsonl").read_bytes()


def test_a_checkpoint_with_fields_of_another_version_is_one_sentence(stopped: Path) -> None:
    (stopped / "checkpoints" / "step-000004" / "position.json").write_text('{"steps": 4}')
    assert "is damaged" in refusal(stopped)


def test_without_the_damaged_checkpoint_the_run_begins_again(tmp_path: Path, stopped: Path) -> None:
    (stopped / "checkpoints" / "step-000004" / "optimizer.pt").write_text("x")
    said = refusal(stopped)
    assert "delete that folder" in said
    remove_tree(stopped / "checkpoints" / "step-000004")
    run_to_end(stopped)
    run_to_end(tmp_path / "whole")
    same(tmp_path / "whole", stopped)


def test_a_checkpoint_of_another_model_is_refused(stopped: Path) -> None:
    assert "belong to another model" in refusal(stopped, adapter="lora")


def test_a_log_that_lost_lines_is_not_filled_up_with_zeros(stopped: Path) -> None:
    log = stopped / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:100])
    assert "shorter than its checkpoint says" in refusal(stopped)
    assert log.stat().st_size == 100


@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 12), st.integers(0, 3))
def test_only_pairs_that_some_step_sees_are_scored(count: int, size: int, steps: int, seed: int) -> None:
    """A run of less than an epoch asks the reference about its own pairs alone."""
    pairs = [TokenizedPair(f"{i}", (1,), (2,), (3,), (True,), (True,)) for i in range(count)]
    settings = TrainSettings(pairs_per_step=size, max_steps=steps)
    schedule = loop.make_schedule(count, settings)
    order = Order(pairs, pairs_per_step=size, seed=seed)
    used = loop.used_pairs(pairs, schedule, order)
    seen = [i for s in range(schedule.total) for i in order.step(s)]
    assert {pair.id for pair in used} == {f"{i}" for i in seen}
    assert len(used) == len({pair.id for pair in used})
