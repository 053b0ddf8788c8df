"""Many processes train one model, each on a device of its own: who they are, what they agree on, how weights are split.

`torchrun` starts the processes (ranks) and tells them about each other in environment variables; one process is a world
of its own, in which nothing here does anything. Weights, gradients and optimizer state are split by rows over the
ranks (FSDP2); everything else (the order of the pairs, the schedule, what the metrics say) every rank works out alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from druthers.batching import Batch, collate
from druthers.distributions import Other, read
from druthers.ladder import made_up
from druthers.logprobs import pair_logps
from druthers.models import Loaded, computing
from druthers.recompute import layers_of
from druthers.records import InputError, first_line

T = TypeVar("T")

PAUSE = 0.02
"""Seconds between two looks at whether rank 0 is done: long enough to cost nothing, short beside what it does."""
MOMENT = 5.0
"""Most seconds that rank 0 stays at a fault, for the others to say theirs or nothing."""
ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Most that a response's log-probability may move when the weights are split, in nats a token."""


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's place among them. Rank 0 writes and speaks for all.

    `store` is a few words that all ranks can read, whatever else they are doing; `keeps` it: it ends with this
    process. `here` of them run on this machine.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    keeps: bool = False
    here: int = 1
    turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the screen."""
        return self.rank == 0

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all ranks, in place, for a tensor on the CPU; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(part)
        return part

    def most(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        found = torch.tensor(number, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.item()

    def first(self, act: Callable[[], T]) -> T:
        """What `act` returns on rank 0, which alone does it, however long it takes; its InputError is everyone's."""
        if self.size == 1:
            return act()
        name, fault, box = f"first/{next(self.turns)}", "", cast(list[T], [None])
        if self.leads:
            try:
                box[0] = act()
            except InputError as error:
                fault = str(error)
            self.store.set(name, fault)
        else:
            # Not a collective: those have a time limit, and no signal is heard in them.
            while not self.store.check([name]):
                time.sleep(PAUSE)
            fault = self.store.get(name).decode()
        if fault:
            raise InputError(fault)
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def union(self, part: Mapping[str, int]) -> dict[str, int]:
        """The parts of all ranks in one, on every rank."""
        if self.size == 1:
            return dict(part)
        parts = cast(list[Mapping[str, int]], [{}] * self.size)
        dist.all_gather_object(parts, part)
        return {name: number for each in parts for name, number in each.items()}

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The split weights put together, on the CPU of rank 0 and one after another; nothing on the other ranks."""
        found = {}
        for name, weight in weights.items():
            full = together(weight.detach())
            if self.leads:
                found[name] = full.cpu().contiguous()
        return found

    def speaks(self, fault: str, *, lost: bool = False) -> bool:
        """Whether this rank is to say a fault: the first that has it; a lost connection only as the first of all."""
        try:
            alike = 0 if lost else self.store.add(hashlib.sha256(fault.encode()).hexdigest(), 1)
            faults = self.store.add("faults", 1)  # last: rank 0 waits for it
            return bool((faults if lost else alike) == 1)
        except RuntimeError:  # the store went with the rank that kept it
            return True

    def linger(self) -> None:
        """Where the store ends with this process: stay until the others have asked who speaks, or a moment."""
        until = time.monotonic() + MOMENT
        with contextlib.suppress(RuntimeError):
            while self.keeps and self.store.add("faults", 0) < self.size and time.monotonic() < until:
                time.sleep(PAUSE)

    def leave(self) -> None:
        """Part from the other ranks, for good; all of them do at the same place."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = World()


@contextlib.contextmanager
def joined(*, device: str) -> Iterator[World]:
    """The world that `torchrun` made, left at the end of the block; ALONE in a process that was started by itself.

    `device` is the setting model.device. A fault that several ranks have is said by one of them, the others exit
    silently; the process must then end, for only that tells the other ranks, wherever they are (to leave properly may
    wait for them). Raises InputError for a world that cannot be joined, and where the connection to another breaks.
    """
    if (size := number("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    rank = number("RANK", None)
    try:
        world = join(device, local=number("LOCAL_RANK", rank), here=number("LOCAL_WORLD_SIZE", size))
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"rank {rank} of {size} cannot join the others: {first_line(error)}; start them all with torchrun"
        ) from error
    try:
        yield world
    except InputError as error:
        deafen()
        speaks = world.speaks(str(error))
        world.linger()
        if not speaks:
            raise SystemExit(1) from error
        raise
    except RuntimeError as error:
        if not lost(error):
            raise
        text = (
            f"a process of the run ended or cannot be reached (rank {rank} of {size}: {reason(error)}); "
            "what was saved is kept, and the same command continues, on any number of processes"
        )
        deafen()
        speaks = world.speaks(text, lost=True)
        world.linger()
        if not speaks:
            raise SystemExit(1) from error
        raise InputError(text) from error
    else:
        world.leave()


def number(name: str, default: int | None) -> int:
    """A whole number of the environment that torchrun sets."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise InputError(
            f"{name} = {text!r} in the environment, but with WORLD_SIZE set it must be a whole number; "
            "start the processes with torchrun, or unset WORLD_SIZE"
        )
    return int(text)


def join(device: str, *, local: int, here: int) -> World:
    """Meet the other ranks. On CUDA every rank of this machine (`here` of them) has the card of its local number."""
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if ":" in device:
        raise InputError(
            f"model.device = {device!r} names one device, but {here} processes run on this machine; "
            "use model.device=cuda"
        )
    if on_cuda and torch.cuda.device_count() < here:
        raise InputError(
            f"{here} processes run on this machine, which has {torch.cuda.device_count()} CUDA devices; "
            "start torchrun with --nproc-per-node of that number, or use model.device=cpu"
        )
    if on_cuda:
        torch.cuda.set_device(local)
    with mortal():
        store, rank, size = next(iter(rendezvous("env://")))
        # What is not on a card goes by gloo: results, words, and objects, which so wait for no kernel.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=PrefixStore("ranks", store),
            rank=rank,
            world_size=size,
        )
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return World(rank, size, PrefixStore("words", store), keeps=rank == 0 and not by_agent, here=here)


def deafen() -> None:
    """torchrun ends the ranks that are left by a signal, which must not come between a fault and its sentence."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def mortal() -> Iterator[None]:
    """A signal ends the process at once inside the block: whoever waits for others in C++ runs no handler of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lost(error: BaseException) -> bool:
    """Whether an error says that another rank cannot be reached: torch has a class for it, gloo only words."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def reason(error: BaseException) -> str:
    """What an error says first, without gloo's place in its own code and its advice.

    >>> reason(RuntimeError("[gloo/pair.cc:537] Read error [::1]:9: Connection reset by peer. This is typically"))
    'Read error [::1]:9: Connection reset by peer'
    """
    return re.sub(r"^\[[^ ]*\] ", "", first_line(error)).split(". ")[0]


class Whole(nn.Module):
    """Batch to log-probabilities (2, B) as one module, so that its weights stand together while its head is used."""

    def __init__(self, policy: Loaded) -> None:
        super().__init__()
        self.model, self.scorer = policy.model, policy.scorer

    def forward(
        self, batch: Batch, *, needs: Collection[str] = (), other: Other | None = None, chunk: int | None = None
    ) -> Tensor:
        """As `logprobs.pair_logps`, or as `distributions.read` where something is needed beside the sums."""
        if needs:
            return read(self.scorer, batch, needs=needs, other=other, chunk=chunk)
        return pair_logps(self.scorer, batch, chunk=chunk)


def shard(policy: Loaded, world: World) -> Loaded:
    """The policy with its weights split over the ranks, in place; the policy itself where there is one rank.

    Every layer is put together for its own forward and backward, in the compute type; what is around the layers
    (embeddings, last norm, head) for that of the whole, as it is kept. Gradients are summed in float32, never averaged.
    Raises InputError for weights that are not all float32, and when the split model does not give the
    log-probabilities that it gave whole.
    """
    if world.size == 1:
        return policy
    check_float32(policy)
    check_alike(policy, world)
    before_CB = probe(policy)
    mesh = init_device_mesh(policy.device.type, (world.size,))
    in_layers = None if policy.compute == torch.float32 else policy.compute
    layers = MixedPrecisionPolicy(param_dtype=in_layers, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in reversed(layers_of(policy.model)):
        fully_shard(layer, mesh=mesh, mp_policy=layers)
    whole = Whole(policy)
    fully_shard(whole, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    split = replace(policy, whole=whole)
    gap = (probe(split) - before_CB).abs().max().item()
    if not gap <= ALIKE[policy.compute]:
        raise InputError(
            f"model {policy.name!r} gives other log-probabilities when its weights are split over {world.size} "
            f"processes (difference {gap:.1e} nat a token); train it in one process"
        )
    return split


@torch.no_grad()
def probe(policy: Loaded) -> Tensor:
    """Log-probabilities of a made-up pair, (2, 1), per token."""
    pair = made_up(policy.causal.get_input_embeddings().num_embeddings, window=None)
    batch = collate([pair], pad_id=policy.pad_id, rung=policy.layout.rung, device=policy.device)
    with computing(policy):
        return policy.logps(batch).cpu() / batch.length_CB.cpu()


def check_float32(policy: Loaded) -> None:
    """FSDP splits what is of one type; raises InputError for weights that are held in another."""
    others = {str(weight.dtype).removeprefix("torch.") for weight in policy.model.parameters()} - {"float32"}
    if others:
        raise InputError(
            f"model {policy.name!r} has weights in {', '.join(sorted(others))}, but only float32 ones are split over "
            "processes; train it in one process, or hold its weights in float32"
        )


def check_alike(policy: Loaded, world: World) -> None:
    """All ranks must have the same weights and compute alike; raises InputError on one that does not."""
    own = (policy.sha, policy.layout.rung, str(policy.compute).removeprefix("torch."))
    theirs = world.first(lambda: own)
    if own != theirs:
        raise InputError(
            f"rank {world.rank} has model {own[0][:12]} in {own[1]} rows and {own[2]}, but rank 0 has {theirs[0][:12]} "
            f"in {theirs[1]} rows and {theirs[2]}; give every machine the same model, model.layout and model.precision"
        )


def part(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has in full, split as `like` is; no rank is asked."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def together(tensor: Tensor) -> Tensor:
    """A split tensor put together, on every rank at once; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip(weights: Mapping[str, Tensor], *, most: float) -> float:
    """Scale the gradients down to a global norm of at most `most`; returns the norm before."""
    return together(torch.nn.utils.clip_grad_norm_(weights.values(), most)).item()
