"""Memory: what is free here, what a micro-batch keeps alive, and how much of it must be made again to fit.

Letters: T tokens in a row, N scored response tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from druthers.batching import Rung, collate
from druthers.blocks import facts_of
from druthers.crew import Crew
from druthers.logprobs import alive
from druthers.models import Loaded, computing, trainable
from druthers.recompute import KINDS, Kind, layers_of, recomputing
from druthers.records import InputError, first_line
from druthers.tokens import TokenizedPair

GIB = 2**30
SPARE = 0.9
"""Share of the free memory that may be planned for."""
PROBES = (64, 192)
"""Tokens of the two rows that are measured; what a row keeps grows with its tokens."""
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Where Linux says how much a control group may hold and holds, in its second and its first version."""
CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, *, sharing: int = 1) -> int | None:
    """Bytes that this process may still fill on a device; None where the system does not say.

    On a CPU the lesser of what the machine has left and what its control groups allow, where they are set, by the
    number of processes that are `sharing` it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    groups = groups_of(Path("/proc/self/cgroup"), CGROUPS)
    known = [left for left in (machine_left(Path("/proc/meminfo")), *map(group_left, groups)) if left is not None]
    return min(known) // sharing if known else None


def room_bytes(device: torch.device) -> int | None:
    """Bytes that this process could hold on a device in all: what it holds and what is free."""
    free = free_bytes(device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    return None if free is None else free + held


def groups_of(listed: Path, root: Path) -> list[Path]:
    """Folders of the control groups of a process and of those around them, as far as they are seen from here.

    In a container the listed path is the machine's and the own group stands at the root.
    """
    try:
        lines = [line.split(":", 2) for line in listed.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    found = [root, root / "memory"]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            top = root / controllers
            inner = top / path.strip("/")
            found += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return list(dict.fromkeys(found))


def machine_left(meminfo: Path) -> int | None:
    """Bytes the machine could give out without swapping."""
    with contextlib.suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def group_left(group: Path) -> int | None:
    """Bytes the control group may still fill, its cache of files counted as free; None where it has no limit."""
    for most, now in LIMITS:
        limit, used = number(group / most), number(group / now)
        if limit is not None and used is not None:
            return max(0, limit - used + cached_files(group / "memory.stat"))
    return None


def number(file: Path) -> int | None:
    """The number in a file; None where there is no such file or it says something else ('max')."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def cached_files(stat: Path) -> int:
    """Bytes of files in memory that the system drops when it needs room."""
    try:
        rows = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    found = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def resident_bytes() -> int:
    """Bytes of memory that this process holds now; where the system does not say, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return most_resident_bytes()
    return pages * resource.getpagesize()


def most_resident_bytes() -> int:
    """The most memory this process has held: getrusage counts in kibibytes, on macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_gib(device: torch.device) -> float:
    """The most memory this process has held, in GiB; on CUDA the most the allocator has."""
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else most_resident_bytes()
    return most / GIB


@contextlib.contextmanager
def fitting(choice: Choice, device: torch.device) -> Iterator[None]:
    """Memory that runs out inside the block, as one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a training step does not fit into the memory of {device} ({first_line(error)}; "
            f"recompute: {choice.text}); lower train.token_budget, or set train.recompute=layers"
        ) from error


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made inside the block that are alive: `now`, and the most at any time, `most`.

    What an operation takes and gives back within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it made."""
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in inputs and storage._cdata not in self.seen:
                    self.note(storage)
        return made

    def note(self, storage: Any) -> None:
        """Count a storage until it goes."""
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self.seen.pop(key, None)
            self.now -= size

        self.seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a row of T tokens keeps for its backward and the most alive in it, each a + b T, head excluded."""

    kept: tuple[float, float]
    most: tuple[float, float]

    def at(self, tokens: int) -> tuple[int, int]:
        """Kept and most for a row of so many tokens."""
        return tuple(int(max(0.0, a + b * tokens)) for a, b in (self.kept, self.most))  # type: ignore[return-value]


def footprint(member: Loaded, kind: Kind) -> Footprint:
    """Measured on two short made-up rows, forward and backward, gradients of weights dropped as they come."""
    reads = member.causal.config.to_dict().get("max_position_embeddings") or PROBES[1]
    sizes = [tokens * min(PROBES[1], reads) // PROBES[1] for tokens in PROBES]
    with dropped_gradients(member), recomputing([member], kind):
        (few, *small), (many, *large) = (probe(member, tokens) for tokens in sizes)
    lines = []
    for a, b in zip(small, large, strict=True):
        slope = (b - a) / (many - few)
        lines.append((a - slope * few, slope))
    return Footprint(*lines)


@contextlib.contextmanager
def dropped_gradients(member: Loaded) -> Iterator[None]:
    """Inside the block no gradient of a weight outlives its making."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    hooks = [w.register_post_accumulate_grad_hook(drop) for w in trainable(member).values()]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def probe(member: Loaded, tokens: int) -> tuple[int, int, int]:
    """Tokens computed of a made-up row, bytes kept after its forward and the most in its backward too.

    The backbone alone; `tokens` are those of the shared layout, the others compute more.
    """
    batch = collate([half_prompt(tokens)], pad_id=0, rung=member.layout.rung, device=member.device)
    layout = {} if batch.layout is None else {"layout": batch.layout}
    with Living() as living:
        with computing(member):
            hidden_STH = member.scorer.backbone(
                input_ids=batch.input_ids_ST, position_ids=batch.position_ids_ST, use_cache=False, **layout
            ).last_hidden_state
        kept = living.now
        hidden_STH.backward(torch.ones_like(hidden_STH))
    return batch.input_ids_ST.numel(), kept, living.most


def largest(pairs: Sequence[TokenizedPair], *, token_budget: int, crew: int, rung: Rung) -> tuple[int, int]:
    """Tokens of the largest micro-batch that a plan may make of the pairs, and how many of them are scored.

    Pairs of one prompt beyond the budget, which stay together, are counted as pairs of their own.
    """
    sizes_B, answers = tokens_alone(pairs, rung), int(facts_of(pairs).lengths_B3[:, 1:].sum())
    whole = int(sizes_B.sum())
    tokens = max(min(token_budget // crew, whole), int(sizes_B.max()))
    return tokens, math.ceil(tokens * answers / whole)


def tokens_alone(pairs: Sequence[TokenizedPair], rung: Rung) -> NDArray[np.int64]:
    """Tokens computed for every pair in rows of its own, padding too, (B,)."""
    prompt_B, chosen_B, rejected_B = facts_of(pairs).lengths_B3.T
    if rung == "padded":
        return np.asarray(2 * (prompt_B + np.maximum(chosen_B, rejected_B)))
    return np.asarray(prompt_B * (1 if rung == "shared" else 2) + chosen_B + rejected_B)


def half_prompt(tokens: int) -> TokenizedPair:
    """A pair of so many tokens in a shared row: half prompt, the rest two responses that begin differently."""
    half, quarter = tokens // 2, tokens // 4
    scored = (True,) * quarter
    return TokenizedPair("", (0,) * half, (1,) * quarter, (2,) * quarter, scored, scored)


@dataclass(frozen=True, slots=True)
class Standing:
    """Bytes that stand through training: weights, their copies for computing, gradient sums of every member, states."""

    weights: int
    copies: int
    sums: int
    states: int


def size_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors, shared ones once.

    >>> weight = torch.zeros(4, 2)
    >>> size_of([weight, weight.view(-1)])
    32
    """
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def standing(crew: Crew, *, states: int) -> Standing:
    """What a crew and its optimizer hold from the first step on."""
    held = list(trainable(crew.policy).values())
    weights = size_of([*crew.policy.model.parameters(), *crew.policy.model.buffers()])
    everything = size_of([w for m in (crew.policy, *crew.members) for w in (*m.model.parameters(), *m.model.buffers())])
    sums = len(crew.members) * sum(weight.numel() * weight.element_size() for weight in held)
    return Standing(weights, everything - weights, sums, states)


def head_bytes(scorer: Any, scored: int, compute: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the response-only head for N scored tokens: in its forward, in its backward, and what that leaves.

    A block of logits stands in the compute type and in float32, beside the weights of its words in the compute type;
    the backward has the gradients of the hidden states and, where the head learns, of its weights whole, in float32.
    """
    if type(scorer.head) is not nn.Linear:
        return 0, 0, 0
    weight, size = scorer.head.weight, compute.itemsize
    words, width = weight.shape
    block = min(scored * words, alive(scorer.head, weight.device))
    part = min(words, block // max(1, scored)) * width * size
    cast = part if weight.dtype != compute else 0
    learns = words * width * 4 if weight.requires_grad else 0
    forward = block * (size + 4) + cast
    return forward, forward + learns + (part if learns else 0) + scored * width * 4, learns


def micro_batch_bytes(member: Loaded, found: Footprint, *, tokens: int, scored: int) -> int:
    """The most that one forward and backward of T tokens has alive beyond what stands."""
    kept, most = found.at(tokens)
    forward, backward, left = head_bytes(member.scorer, scored, member.compute)
    gradients = sum(weight.numel() * weight.element_size() for weight in trainable(member).values())
    return max(kept + forward, kept + backward, most + left, gradients)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is made again in the backward, why, and the bytes each kind was found to need (those that were tried)."""

    kind: Kind
    text: str
    needs: dict[Kind, int]


def choose(
    wanted: str,
    crew: Crew,
    *,
    states: int,
    tokens: int,
    scored: int,
    free: int | None,
    kinds: Sequence[Kind] = KINDS,
) -> Choice:
    """The least recomputing of `kinds` whose need fits `free` bytes, or the kind that was asked for.

    `states` are bytes the optimizer is still to take, `tokens` and `scored` those of the largest micro-batch; every
    member may have one at once.
    """
    if wanted != "auto":
        return Choice(wanted, f"{wanted} (train.recompute)", {})  # type: ignore[arg-type]
    member, rest = crew.members[-1], standing(crew, states=states)
    if free is None:
        return Choice("none", "none (this system does not say how much memory is free)", {})
    kinds = kinds if layers_of(member.model) else KINDS[:1]
    needs: dict[Kind, int] = {}
    for kind in kinds:
        each = micro_batch_bytes(member, footprint(member, kind), tokens=tokens, scored=scored)
        needs[kind] = rest.sums + rest.states + len(crew.members) * each
        if needs[kind] <= SPARE * free:
            return Choice(kind, reason(kind, needs, tokens, free), needs)
    text = f"{reason(kinds[-1], needs, tokens, free)}; it may not fit: lower train.token_budget"
    return Choice(kinds[-1], text, needs)


def reason(kind: Kind, needs: dict[Kind, int], tokens: int, free: int) -> str:
    """One line for the screen."""
    said = ", ".join(f"{name} needs {need / GIB:.2f} GiB" for name, need in needs.items())
    return f"{kind} ({said}, {free / GIB:.2f} GiB free, micro-batches of up to {tokens:,} tokens)"
