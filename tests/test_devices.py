"""Several ranks on the tiny model: the curve of one process, whatever happens to one of them.

The ranks are forked children of this process that meet by gloo on this machine; a kill is a real one.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from druthers import __version__, devices
from druthers.batching import Rung, collate, layout_of, plan
from druthers.config import ModelSettings, Settings, load
from druthers.crew import Crew
from druthers.devices import ALONE, World, joined
from druthers.models import Loaded, attach_adapter, choose_layout, trainable, weights_sha
from druthers.records import InputError
from druthers.run import Run
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import Interrupted, checkpoint, loop, train
from tests import calls, tiny

Row = dict[str, Any]
STEPS = 6


pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


# ---------------------------------------------------------------- ranks, and a run of theirs


@dataclass(frozen=True)
class Ended:
    """Exit status of a rank, negative for a signal, and what it said at the end."""

    code: int
    said: str


def port() -> int:
    """A free one."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def forked(count: int, folder: Path, act: Callable[[int], Ended]) -> list[Ended]:
    """`act` in `count` children, with the environment that torchrun gives its ranks; how each ended."""
    where, children = port(), []
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            children.append(child)
            continue
        found = Ended(99, "")
        signal.alarm(240)  # compiling takes long
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(where)}
        said = folder / f"rank-{rank}"
        said.write_text("")
        try:
            found = act(rank)
        finally:
            said.write_text(traceback.format_exc() if found.code == 99 else found.said)
            os._exit(found.code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [Ended(code, (folder / f"rank-{rank}").read_text()) for rank, code in enumerate(codes)]


def together(count: int, folder: Path, act: Callable[[World], object]) -> list[Ended]:
    """`act` on every one of `count` ranks that have met, ended as the command line ends."""

    def end(rank: int) -> Ended:
        try:
            with joined(device="cpu") as world:
                act(world)
        except InputError as error:
            return Ended(1, str(error))
        except Interrupted as stop:
            return Ended(128 + stop.signal, "")
        except SystemExit as stop:
            return Ended(int(stop.code or 0), "")
        return Ended(0, "")

    return forked(count, folder, end)


def tokenized(count: int, *, skip: int = 0) -> list[TokenizedPair]:
    tokenizer = tiny.tokenizer()
    return [tokenize(pair, tokenizer, max_prompt=100, max_response=100) for pair in tiny.pairs(count + skip)[skip:]]


PAIRS, HELDOUT = tokenized(14), tokenized(4, skip=14)


def policy(adapter: str = "none", *, compute: torch.dtype = torch.float32) -> Loaded:
    """The tiny model as `models.load` would give it."""
    made = tiny.model(vocab=259)
    plain = Loaded(made, tiny.tokenizer(), "tiny", weights_sha(made), compute, torch.device("cpu"))
    plain = choose_layout(plain, "auto")
    return plain if adapter == "none" else attach_adapter(plain, ModelSettings(adapter="lora", lora_rank=2))


def settings(*changes: str) -> Settings:
    """Six steps of four pairs; evaluations after 4 and 6, a checkpoint also after 3."""
    few = ("pairs_per_step=4", "epochs=1.5", "evaluate_every=4", "checkpoint_every=3", "token_budget=200")
    return load(overrides=[*(f"train.{change}" for change in few), "train.learning_rate=1e-3", *changes])


def run_to_end(
    folder: Path,
    *changes: str,
    world: World = ALONE,
    adapter: str = "none",
    compute: torch.dtype = torch.float32,
    pairs: Sequence[TokenizedPair] = PAIRS,
    note: Callable[[Row], None] = lambda row: None,
) -> Row:
    learner = policy(adapter, compute=compute)
    return train(Run(folder), settings(*changes), learner, pairs=pairs, heldout=HELDOUT, note=note, world=world)


def by(count: int, folder: Path, *changes: str, **how: Any) -> list[Ended]:
    """The run by several ranks."""
    return together(count, folder, lambda world: run_to_end(folder, *changes, world=world, **how))


def at(step: int, rank: int, act: Callable[[], object]) -> Callable[[World], Callable[[Row], None]]:
    """A `note` that acts after a step, on one rank."""

    def of(world: World) -> Callable[[Row], None]:
        return lambda row: act() if (row["split"], row["step"], world.rank) == ("train", step, rank) else None

    return of


def stopped(count: int, folder: Path, act: Callable[[], object], *, step: int, rank: int, **how: Any) -> list[Ended]:
    """A run in which one rank does something after a step."""
    note = at(step, rank, act)
    return together(count, folder, lambda world: run_to_end(folder, world=world, note=note(world), **how))


def close(a: Path, b: Path, *, within: float = 1e-5, but: Sequence[str] = ()) -> None:
    """The same curves: every number of every line of metrics, and the same lines."""
    left, right = Run(a).metrics(), Run(b).metrics()
    assert [(row["step"], row["split"]) for row in left] == [(row["step"], row["split"]) for row in right]
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key, value in ((key, value) for key, value in one.items() if key not in but):
            assert other[key] == (
                pytest.approx(value, rel=within, abs=within) if isinstance(value, float) else value
            ), key


def well(ended: list[Ended]) -> None:
    assert ended == [Ended(0, "")] * len(ended)


# ---------------------------------------------------------------- the curve


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_curve_is_that_of_one_process(tmp_path: Path, own_cache: Path, adapter: str, count: int) -> None:
    run_to_end(tmp_path / "one", adapter=adapter)
    shutil.rmtree(own_cache)
    well(by(count, tmp_path / "many", adapter=adapter))
    close(tmp_path / "one", tmp_path / "many")
    one, many = (load_file(checkpoint.best(tmp_path / name) / "weights.safetensors") for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.allclose(one[name], many[name], atol=1e-5) for name in one)
    assert sorted(entry.name for entry in (tmp_path / "many" / "checkpoints").iterdir()) == ["best.json", "step-000006"]


@pytest.mark.parametrize(("adapter", "kind"), [("none", "layers"), ("lora", "selective")])
def test_split_layers_are_recomputed_too(tmp_path: Path, adapter: str, kind: str) -> None:
    run_to_end(tmp_path / "one", adapter=adapter)
    well(by(2, tmp_path / "many", f"train.recompute={kind}", adapter=adapter))
    close(tmp_path / "one", tmp_path / "many")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of other parts of torch
def test_split_layers_are_compiled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the accuracy of the first step, where policy and reference differ by rounding alone.

    Ranks compile in their own thread: torch's pool of threads, once used, does not outlive a fork.
    """
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    run_to_end(tmp_path / "one")
    well(by(2, tmp_path / "many", "train.compile=layers"))
    close(tmp_path / "one", tmp_path / "many", but=("rewards/accuracies",))


def test_an_optimizer_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    ended = by(2, tmp_path / "many", "train.optimizer=adamw-8bit")
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert "train.optimizer = 'adamw-8bit'" in said
    assert "use train.optimizer=adamw, or one process" in said


@pytest.mark.parametrize(("adapter", "kind"), [("none", "copy"), ("lora", "adapter")])
def test_a_live_reference_is_split_too(tmp_path: Path, adapter: str, kind: str) -> None:
    changes = (f"train.reference={kind}", "train.max_steps=2")
    run_to_end(tmp_path / "one", *changes, adapter=adapter)
    well(by(2, tmp_path / "many", *changes, adapter=adapter))
    close(tmp_path / "one", tmp_path / "many")


def test_ranks_without_a_pair_of_their_own_wait_in_step(tmp_path: Path) -> None:
    """Steps of one pair, and of one whose weight is zero, on three ranks."""
    pairs = [replace(pair, weight=float(i % 3)) for i, pair in enumerate(PAIRS[:5])]
    changes = ("train.pairs_per_step=1", "train.epochs=1")
    run_to_end(tmp_path / "one", *changes, pairs=pairs)
    well(by(3, tmp_path / "many", *changes, pairs=pairs))
    close(tmp_path / "one", tmp_path / "many")


def test_bfloat16_layers_keep_float32_masters(tmp_path: Path) -> None:
    """Layers are put together in bfloat16, norms among them; what is trained and saved stays float32."""
    changes = ("train.reference=copy", "train.max_steps=3")
    run_to_end(tmp_path / "one", *changes, compute=torch.bfloat16)
    well(by(2, tmp_path / "many", *changes, compute=torch.bfloat16))
    close(tmp_path / "one", tmp_path / "many", within=0.05)
    weights = load_file(checkpoint.best(tmp_path / "many") / "weights.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@functools.cache
def split_in_name() -> Loaded:
    """A policy that a crew takes for a split one."""
    whole = torch.nn.Module()
    whole.set_requires_gradient_sync = lambda last: None
    return replace(policy(), whole=whole)


PAIR_LISTS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=24)


@given(PAIR_LISTS, st.integers(2, 5), st.integers(20, 300), st.sampled_from(["shared", "padding-free", "padded"]))
def test_every_rank_has_as_many_micro_batches_and_like_loads(
    lengths: list[tuple[int, int, int]], size: int, budget: int, rung: Rung
) -> None:
    pairs = [
        TokenizedPair(f"{i}", tuple(range(a)), (i,) * b, (i + 99,) * c, (True,) * b, (True,) * c)
        for i, (a, b, c) in enumerate(lengths)
    ]
    groups = plan(pairs, token_budget=budget * size, crew=size, rung=rung)
    split = split_in_name()
    crews = [Crew(split, [split], world=World(rank, size)) for rank in range(size)]
    turns = [list(crew.turns(groups, 0)) for crew in crews]
    assert len({len(own) for own in turns}) == 1
    assert sorted(i for own in turns for group in own for i in group) == list(range(len(pairs)))
    if rung == "padding-free" and len(pairs) >= size:
        cost = [sum(tree.size for tree in layout_of([pair], rung)) for pair in pairs]
        loads = [sum(cost[i] for group in own for i in group) for own in turns]
        assert max(loads) - min(loads) <= max(cost) * len(turns[0])


# ---------------------------------------------------------------- what may happen to a rank


def test_a_killed_rank_ends_all_and_any_number_of_ranks_continues(tmp_path: Path) -> None:
    """Two ranks until one is killed, then four until one of them is asked to stop, then one process."""
    run_to_end(tmp_path / "whole")
    cut = tmp_path / "cut"
    first, second = stopped(2, cut, lambda: os.kill(os.getpid(), signal.SIGKILL), step=4, rank=1)
    assert second.code == -signal.SIGKILL
    assert first.code == 1
    assert "a process of the run ended or cannot be reached (rank 0 of 2: " in first.said
    assert "the same command continues" in first.said
    assert [row["step"] for row in Run(cut).metrics()][-1] == 4
    ended = stopped(4, cut, lambda: os.kill(os.getpid(), signal.SIGTERM), step=5, rank=2)
    assert ended == [Ended(128 + signal.SIGTERM, "")] * 4
    found = checkpoint.latest(cut)
    assert found is not None
    assert found.name == "step-000005"
    run_to_end(cut)
    close(tmp_path / "whole", cut)


def test_ranks_continue_what_one_process_began_and_bit_for_bit_what_they_began(tmp_path: Path) -> None:
    class PowerCut(BaseException):
        """Nothing in the code may catch this."""

    def cut(row: Row) -> None:
        if row["step"] == 4:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "cut", note=cut, adapter="lora")
    shutil.copytree(tmp_path / "cut", tmp_path / "twice")
    well(by(2, tmp_path / "cut", adapter="lora"))
    stopped(2, tmp_path / "twice", lambda: os.kill(os.getpid(), signal.SIGINT), step=5, rank=0, adapter="lora")
    well(by(2, tmp_path / "twice", adapter="lora"))
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "twice" / "metrics.jsonl").read_bytes()
    weights = [(checkpoint.best(tmp_path / name) / "weights.safetensors").read_bytes() for name in ("cut", "twice")]
    assert weights[0] == weights[1]
    run_to_end(tmp_path / "whole", adapter="lora")
    close(tmp_path / "whole", tmp_path / "cut")


def test_a_disk_that_is_full_for_one_rank_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ended = stopped(2, tmp_path / "cut", fill, step=4, rank=1)
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert "step-000004 cannot be saved: rank 1: " in said
    assert "step-000003 is kept; free some space" in said
    assert [entry.name for entry in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000003"]
    well(by(2, tmp_path / "cut"))
    run_to_end(tmp_path / "whole")
    close(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("file", ["__1_0.distcp", ".metadata", "position.json"])
def test_a_damaged_part_is_one_sentence(tmp_path: Path, file: str) -> None:
    stopped(2, tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM), step=1, rank=0)
    (place,) = (tmp_path / "checkpoints" / "step-000001").rglob(file)
    place.write_bytes(place.read_bytes()[:100])
    ended = by(2, tmp_path)
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert "step-000001 is damaged: " in said
    assert "\n" not in said


@pytest.mark.parametrize("file", ["__0_0.distcp", "__1_0.distcp"])
def test_a_bit_that_flipped_in_a_part_is_noticed(tmp_path: Path, file: str) -> None:
    stopped(2, tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM), step=1, rank=0)
    (place,) = (tmp_path / "checkpoints" / "step-000001").rglob(file)
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    ended = by(2, tmp_path)
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert f"step-000001 is damaged: shards/{file} is not what was written; delete that folder" in said


def test_what_all_ranks_find_is_said_once(tmp_path: Path) -> None:
    pairs = [replace(pair, margin=math.inf) for pair in PAIRS]
    ended = by(2, tmp_path, pairs=pairs)
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert "the loss or its gradient is not finite" in said


def test_what_rank_0_finds_is_everyones_fault_and_said_once(tmp_path: Path) -> None:
    def refuse() -> None:
        raise InputError("no such pairs")

    ended = together(3, tmp_path, lambda world: world.first(refuse))
    assert [end.code for end in ended] == [1, 1, 1]
    assert [end.said for end in ended if end.said] == ["no such pairs"]


def test_a_fault_of_one_rank_alone_ends_the_others_without_another_sentence(tmp_path: Path) -> None:
    def act(world: World) -> None:
        if world.rank == 1:
            raise InputError("only here")
        world.most(1.0)

    ended = together(3, tmp_path, act)
    assert [end.code for end in ended] == [1, 1, 1]
    assert [end.said for end in ended if end.said] == ["only here"]


def test_a_rank_0_that_is_killed_while_others_wait_for_it_ends_them(tmp_path: Path) -> None:
    def act(world: World) -> None:
        world.most(0)  # all have met
        world.first(lambda: os.kill(os.getpid(), signal.SIGKILL))

    ended = together(2, tmp_path, act)
    assert [end.code for end in ended] == [-signal.SIGKILL, 1]
    assert "a process of the run ended or cannot be reached (rank 1 of 2: " in ended[1].said


def test_ranks_with_other_weights_are_refused(tmp_path: Path) -> None:
    def act(world: World) -> None:
        devices.shard(replace(policy(), sha=f"{world.rank}" * 64), world)

    ended = together(2, tmp_path, act)
    assert [end.code for end in ended] == [1, 1]
    assert [end.said for end in ended if end.said] == [
        "rank 1 has model 111111111111 in shared rows and float32, but rank 0 has 000000000000 in shared rows and "
        "float32; give every machine the same model, model.layout and model.precision"
    ]


def test_weights_of_another_type_are_not_split() -> None:
    learner = policy()
    learner.model.lm_head.bfloat16()
    with pytest.raises(InputError, match="has weights in bfloat16, but only float32 ones are split"):
        devices.shard(learner, World(0, 2))


def test_a_model_that_is_another_one_when_split_is_refused(tmp_path: Path) -> None:
    def act(world: World) -> None:
        learner = policy()
        forward = devices.Whole.forward
        devices.Whole.forward = lambda whole, batch, **given: forward(whole, batch, **given) + 1.0  # type: ignore[method-assign]
        devices.shard(learner, world)

    ended = together(2, tmp_path, act)
    assert [end.code for end in ended] == [1, 1]
    (said,) = [end.said for end in ended if end.said]
    assert "gives other log-probabilities when its weights are split over 2 processes" in said


def test_what_the_ranks_agree_on(tmp_path: Path) -> None:
    def act(world: World) -> None:
        assert world.leads == (world.rank == 0)
        assert world.first(lambda: world.rank) == 0
        assert world.most(-world.rank) == 0
        assert world.sum(torch.tensor([world.rank, math.inf])).tolist() == [3, math.inf]
        split = devices.shard(policy(), world)
        whole = world.whole(trainable(split))
        assert bool(whole) == world.leads
        assert all(torch.equal(weight, whole[name]) for name, weight in trainable(policy()).items() if whole)
        batch = collate(PAIRS[:3], pad_id=split.pad_id, rung=split.layout.rung)
        with torch.no_grad():
            assert torch.allclose(split.logps(batch), policy().logps(batch), atol=1e-5)
        assert sum(weight.to_local().numel() for weight in trainable(split).values()) < 0.45 * sum(
            weight.numel() for weight in trainable(split).values()
        )

    well(together(3, tmp_path, act))


# ---------------------------------------------------------------- how ranks are started


@pytest.mark.parametrize(
    ("environment", "device", "said"),
    [
        ({"WORLD_SIZE": "2"}, "cpu", "RANK = '' in the environment"),
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE = 'two' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cpu", "rank 0 of 2 cannot join the others"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cuda:1", "names one device, but 2 processes"),
        ({"WORLD_SIZE": "99", "RANK": "0"}, "cuda", "99 processes run on this machine"),
    ],
)
def test_a_world_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str, said: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught, joined(device=device):
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verbs_of_one_process_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert calls.druthers("report", "runs/x").fault == (
        "`druthers report` runs in one process, only align and train in many; start it without torchrun"
    )


def test_ranks_align_with_one_voice_and_one_process_exports(tmp_path: Path) -> None:
    """The command of the README without torchrun around it: one screen, one result, files any other verb can read."""
    model = tiny.folder(tmp_path / "model")
    data, run = calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows()), tmp_path / "run"
    command = ("align", "--json", "--data", data, "--run", run, f"model.path={model}", "model.adapter=lora", *calls.FEW)

    def align(rank: int) -> Ended:
        found = calls.druthers(*command)
        (tmp_path / f"out-{rank}").write_text(found.out)
        (tmp_path / f"err-{rank}").write_text(found.err)
        return Ended(found.code, "")

    assert forked(2, tmp_path, align) == [Ended(0, "")] * 2
    assert json.loads((tmp_path / "out-0").read_text())["verdict"]
    assert "weights split over 2 processes" in (tmp_path / "err-0").read_text()
    assert [(tmp_path / f"{name}-1").read_text() for name in ("out", "err")] == ["", ""]
    assert Run(run).json("environment.json")["ranks"] == 2
    assert calls.druthers("export", run, tmp_path / "exported", "--json").json["folder"] == str(tmp_path / "exported")


def test_ctrl_c_is_answered_by_one_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank hears it, and rank 0 says what became of it."""
    model, data = tiny.folder(tmp_path / "model"), calls.jsonl(tmp_path / "pairs.jsonl", calls.trl_rows())
    advance = loop.advance

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return advance(*given)

    def learn(rank: int) -> Ended:
        found = calls.druthers("train", "--data", data, "--model", model, "--run", tmp_path / "run", *calls.FEW)
        return Ended(found.code, found.err)

    monkeypatch.setattr(loop, "advance", interrupted)
    leading, other = forked(2, tmp_path, learn)
    assert (leading.code, other) == (128 + signal.SIGINT, Ended(128 + signal.SIGINT, ""))
    assert leading.said.splitlines()[-1] == "stopped at step 1 of 2; saved, and the same command continues from there"


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "druthers", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"druthers {__version__}\n")
