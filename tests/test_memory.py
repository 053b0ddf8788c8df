"""What is free, what is alive, and what is chosen from both."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from druthers import memory
from druthers.batching import Rung, collate
from druthers.config import ModelSettings
from druthers.crew import crew_of
from druthers.logprobs import pair_logps
from druthers.memory import GIB, Living, choose, footprint, largest, micro_batch_bytes, standing
from druthers.models import Loaded, attach_adapter, choose_layout, computing, trainable
from druthers.recompute import KINDS, Kind, recomputing
from druthers.records import InputError
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import loop
from druthers.train.optimizer import state_bytes
from tests import tiny

TOKENIZER = tiny.tokenizer()
PAIRS = [tokenize(pair, TOKENIZER, max_prompt=100, max_response=100) for pair in tiny.pairs(8)]


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """So that a crew has two members."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def policy(adapter: str = "none", compute: torch.dtype = torch.float32, *, rung: str = "auto") -> Loaded:
    """The tiny model, wide enough that activations weigh something."""
    made = tiny.model(vocab=259, hidden_size=128, intermediate_size=192, num_hidden_layers=3)
    plain = choose_layout(Loaded(made, TOKENIZER, "tiny", "", compute, torch.device("cpu")), rung)
    return plain if adapter == "none" else attach_adapter(plain, ModelSettings(adapter="lora", lora_rank=4))


# ---------------------------------------------------------------- what is free


def test_the_machine_says_what_it_could_give(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:    60 kB\n")
    assert memory.machine_left(file) == 60 * 1024
    assert memory.machine_left(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 50\n"}, 350),
        ({"memory.max": "1000", "memory.current": "700"}, 300),
        ({"memory.max": "max", "memory.current": "700"}, None),
        ({"memory.max": "1000", "memory.current": "1200"}, 0),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 40\n",
            },
            140,
        ),
        ({}, None),
    ],
)
def test_a_control_group_says_what_it_still_allows(tmp_path: Path, files: dict[str, str], left: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory.group_left(tmp_path) == left


def test_the_groups_of_a_process_and_those_around_it_are_asked(tmp_path: Path) -> None:
    listed = tmp_path / "cgroup"
    listed.write_text("4:memory:/job/task\n3:cpuset:/other\n0::/slice/unit\n")
    found = memory.groups_of(listed, Path("/c"))
    assert {Path("/c/memory/job/task"), Path("/c/memory/job"), Path("/c/memory")} <= set(found)
    assert {Path("/c/slice/unit"), Path("/c/slice"), Path("/c")} <= set(found)
    assert not any("other" in folder.parts for folder in found)
    assert memory.groups_of(tmp_path / "none", Path("/c")) == [Path("/c"), Path("/c/memory")]


def test_processes_that_share_a_machine_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_left", lambda file: 8000)
    monkeypatch.setattr(memory, "group_left", lambda group: None)
    assert memory.free_bytes(torch.device("cpu"), sharing=4) == 2000


def test_memory_that_runs_out_is_one_sentence() -> None:
    choice, said = (
        memory.Choice("none", "none (needs 3 GiB)", {}),
        r"memory of cuda .*needs 3 GiB.*lower train.token_budget",
    )
    with pytest.raises(InputError, match=said), memory.fitting(choice, torch.device("cuda")):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("system", "peak"), [("linux", 3 * 2**20), ("darwin", 3 * 2**10)])
def test_the_peak_is_in_the_units_of_the_system(monkeypatch: pytest.MonkeyPatch, system: str, peak: int) -> None:
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**10))
    assert memory.most_resident_bytes() == peak


def test_here_something_is_free_and_less_is_held() -> None:
    assert memory.free_bytes(torch.device("cpu")) > 0  # type: ignore[operator]
    before = memory.resident_bytes()
    with mmap.mmap(-1, 64 * 2**20) as kept:  # not malloc, which may have as much at hand
        kept.write(b"1" * len(kept))
        assert memory.resident_bytes() - before > 0.9 * len(kept)


# ---------------------------------------------------------------- what is alive


def test_living_counts_what_is_made_until_it_goes() -> None:
    with Living() as living:
        a = torch.zeros(1000)
        view = a[10:]
        b = a + 1
        del b
        view.add_(1)
        assert living.now == 4000
        del a
        assert living.now == 4000
        del view
        assert living.now == 0
    assert living.most == 8000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rung", ["shared", "padding-free", "padded"])
@pytest.mark.parametrize(("adapter", "compute"), [("none", torch.float32), ("lora", torch.bfloat16)])
def test_a_long_row_needs_what_two_short_ones_said(adapter: str, compute: torch.dtype, rung: Rung, kind: Kind) -> None:
    member = policy(adapter, compute, rung=rung)
    batch = collate([memory.half_prompt(800)], pad_id=2, rung=rung)
    tokens = batch.input_ids_ST.numel()
    assert (tokens == 800) == (rung == "shared")
    expected = micro_batch_bytes(member, footprint(member, kind), tokens=tokens, scored=400)
    with recomputing([member], kind), Living() as living:
        with computing(member):
            logp_CB = pair_logps(member.scorer, batch)
        (logp_CB[0] - logp_CB[1]).sum().backward()
    assert expected == pytest.approx(living.most, rel=0.15)
    assert not any(weight.grad is None for weight in trainable(member).values())


def test_a_probe_leaves_no_gradient_and_stays_within_the_context() -> None:
    member = policy()
    member.causal.config.max_position_embeddings = 48
    footprint(member, "none")
    assert all(weight.grad is None for weight in trainable(member).values())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_what_stands_is_what_the_tensors_hold(adapter: str, compute: torch.dtype) -> None:
    member = policy(adapter, compute)
    crew, optimizer = crew_of(member), loop.make_optimizer(member, loop.TrainSettings())
    moved = list(trainable(member).values())
    found = standing(crew, states=state_bytes(moved, "adamw"))
    size = sum(weight.numel() for weight in member.model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in member.model.buffers())
    assert found.weights == 4 * size + buffers
    assert found.copies == sum(copy.numel() * copy.element_size() for copy in copies_of(crew))
    assert (found.copies > 0.3 * found.weights) == (compute == torch.bfloat16)
    assert found.sums == 2 * 4 * sum(weight.numel() for weight in moved)
    for weight in moved:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert found.states == sum(t.numel() * t.element_size() for t in states)


def copies_of(crew: Any) -> list[torch.Tensor]:
    """Weights and buffers that the members hold beside the policy's."""

    def held(loaded: Loaded) -> dict[int, torch.Tensor]:
        return {t.data_ptr(): t for t in (*loaded.model.parameters(), *loaded.model.buffers())}

    every = {at: tensor for member in crew.members for at, tensor in held(member).items()}
    return [every[at] for at in every.keys() - held(crew.policy).keys()]


# ---------------------------------------------------------------- what is chosen


@pytest.fixture
def needs() -> dict[Kind, int]:
    """What each kind needs, the free memory being none."""
    return choice(0).needs


def choice(free: int | None, wanted: str = "auto") -> memory.Choice:
    """What a crew of two chooses for rows of 4,000 tokens."""
    return choose(wanted, crew_of(policy()), states=1000, tokens=4000, scored=2000, free=free)


def test_the_least_recomputing_that_fits_is_chosen(needs: dict[Kind, int]) -> None:
    assert needs["none"] > needs["selective"] > needs["layers"]
    for kind, need in needs.items():
        found = choice(int(need / memory.SPARE) + 10)
        assert found.kind == kind
        assert found.text.startswith(f"{kind} (")
        assert f"{kind} needs {need / GIB:.2f} GiB" in found.text
        assert "4,000 tokens" in found.text


def test_what_fits_nowhere_is_said(needs: dict[Kind, int]) -> None:
    found = choice(needs["layers"] // 2)
    assert found.kind == "layers"
    assert "lower train.token_budget" in found.text


def test_an_unknown_amount_of_memory_recomputes_nothing_and_a_name_is_obeyed() -> None:
    assert choice(None).kind == "none"
    assert [choice(0, wanted=kind).kind for kind in KINDS] == list(KINDS)


@pytest.mark.parametrize("rung", ["shared", "padding-free", "padded"])
@pytest.mark.parametrize("budget", [10, 150, 10_000])
def test_no_micro_batch_is_larger_than_the_largest(rung: Rung, budget: int) -> None:
    from druthers.batching import plan

    tokens, scored = largest(PAIRS, token_budget=budget, crew=2, rung=rung)
    groups = plan(PAIRS, token_budget=budget, crew=2, rung=rung)
    assert max(memory.tokens_alone([PAIRS[i] for i in group], rung).sum() for group in groups) <= tokens
    assert 0 < scored <= tokens


def test_rows_are_counted_by_their_layout() -> None:
    pair = TokenizedPair("", (1,) * 5, (2,) * 3, (3,) * 4, (True,) * 3, (True,) * 4)
    counted = {rung: memory.tokens_alone([pair], rung).item() for rung in ("shared", "padding-free", "padded")}  # type: ignore[arg-type]
    assert counted == {"shared": 12, "padding-free": 17, "padded": 18}
