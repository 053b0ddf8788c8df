"""AdamW with states of 8 bits: two bytes a weight where torch's own keeps eight.

Letters: N values of a piece of a tensor, R blocks, B values of a block.

A state is stored block by block as what is left of a float32 number when all but its upper bits are dropped: exponent
and a few bits of mantissa, counted down from the largest value of the block. It is the same grid of values whatever the
block's largest is, so a value that did not change is stored again as it was. What is dropped is rounded up or down at
random, so that the stored value is right on average: a second moment moves by a thousandth a step, far less than 8 bits
resolve, and rounded to the nearest value it would never move at all. Weights in bfloat16 are rounded alike
(https://arxiv.org/abs/2010.06192); states of 8 bits in blocks are from https://arxiv.org/abs/2110.02861.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Values that share a largest one."""
SMALL = 4096
"""Tensors with fewer values keep float32 states: they weigh nothing, and norms and biases are delicate."""
PIECE = 1 << 20
"""Values worked on at once, so that the float32 numbers on the way take no memory to speak of."""
MANTISSA = 23
"""Bits of mantissa in float32."""
ROOT_BITS, MEAN_BITS = 4, 3
"""Bits of mantissa kept: 256 values span sixteen octaves with four of them, 128 values (and a sign) with three."""


def blocked(flat_N: Tensor) -> Tensor:
    """(N,) as (R, B), zeros behind its end."""
    return F.pad(flat_N, (0, -len(flat_N) % BLOCK)).view(-1, BLOCK)


def round_bits(value: Tensor, noise: Tensor, *, drop: int) -> Tensor:
    """The bits of float32 values without the lowest `drop` of them, as int32; `noise` is uniform in [0, 2 ** drop).

    The magnitude is rounded up with a probability of its distance from the value below, so the mean is exact.

    >>> at = torch.tensor([1.0, 1.5, -1.5])
    >>> (round_bits(at, torch.tensor([0, 0, 2**22], dtype=torch.int32), drop=23) << 23).view(torch.float32).tolist()
    [1.0, 1.0, -2.0]
    """
    return (value.view(torch.int32) + noise.to(torch.int32)) >> drop


def pack(size_RB: Tensor, noise_RB: Tensor, *, kept: int, largest: int) -> tuple[Tensor, Tensor]:
    """Values that are not negative as codes 0..`largest` (R, B) and the code of each block's largest (R, 1), int16.

    Values under the span of the codes become code 0. `noise_RB` holds at least 23 - `kept` random bits.
    """
    drop = MANTISSA - kept
    raw_RB = round_bits(size_RB, noise_RB & ((1 << drop) - 1), drop=drop)
    top_R1 = raw_RB.amax(1, keepdim=True)
    return raw_RB.sub_(top_R1).add_(largest).clamp_(min=0), top_R1.to(torch.int16)


def unpack(code_RB: Tensor, top_R1: Tensor, *, kept: int, largest: int) -> Tensor:
    """float32 values of codes; the inverse of `pack` for values that stand on the grid."""
    raw_RB = code_RB.to(torch.int32).add_(top_R1.to(torch.int32) - largest).clamp_(min=0)
    return raw_RB.bitwise_left_shift_(MANTISSA - kept).view(torch.float32)


def pack_root(root_RB: Tensor, noise_RB: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of second moments: codes uint8. One that is under the span counts as the smallest in it.

    So a step may come out too small where 65,536 times larger gradients stand beside it, but never too large.
    """
    code_RB, top_R1 = pack(root_RB, noise_RB, kept=ROOT_BITS, largest=255)
    return code_RB.to(torch.uint8), top_R1


def unpack_root(code_RB: Tensor, top_R1: Tensor) -> Tensor:
    """The square roots."""
    return unpack(code_RB, top_R1, kept=ROOT_BITS, largest=255)


def pack_mean(mean_RB: Tensor, noise_RB: Tensor) -> tuple[Tensor, Tensor]:
    """First moments: sign and seven bits as uint8. One that is under the span counts as zero."""
    code_RB, top_R1 = pack(mean_RB.abs(), noise_RB, kept=MEAN_BITS, largest=127)
    return (code_RB + ((mean_RB < 0).to(torch.int32) << 7)).to(torch.uint8), top_R1


def unpack_mean(code_RB: Tensor, top_R1: Tensor) -> Tensor:
    """The first moments."""
    level_RB = code_RB & 127
    size_RB = unpack(level_RB, top_R1, kept=MEAN_BITS, largest=127)
    return torch.where(level_RB == 0, 0.0, torch.where(code_RB > 127, -size_RB, size_RB))


def to_bfloat16(value: Tensor, noise: Tensor) -> Tensor:
    """float32 to bfloat16, up or down at random, right on average; `noise` holds at least 16 random bits."""
    return (round_bits(value, noise & 0xFFFF, drop=16) << 16).view(torch.float32).to(torch.bfloat16)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose states take two bytes a weight; bfloat16 weights are rounded at random, float32 ones not at all.

    All randomness is a function of `seed`, the number of the tensor's steps and its place, so a run that continues
    from `state_dict` takes the very steps of one that was never stopped.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        seed: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(params, defaults)
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        place = 0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, group, place=place)
                place += 1

    def move(self, weight: Tensor, group: dict[str, Any], *, place: int) -> None:
        """One step of one tensor, piece by piece."""
        state = self.state[weight]
        if not state:
            state.update(fresh(weight))
        state["steps"] += 1  # its own: a weight may have no gradient in a step
        steps = int(state["steps"])
        draw = torch.Generator(weight.device)
        draw.manual_seed(random.Random(f"{self.seed} {steps} {place}").getrandbits(63))
        flat, grad = weight.detach().view(-1), weight.grad.reshape(-1)  # type: ignore[union-attr]
        for piece in pieces(len(flat)):
            noise = torch.empty(piece.stop - piece.start, dtype=torch.int64, device=weight.device)
            noise.random_(generator=draw)
            mean, root = read_states(state, piece)
            value, mean, root = adamw(flat[piece].float(), grad[piece].float(), mean, root, group, steps)
            flat[piece] = to_bfloat16(value, noise >> 40) if weight.dtype == torch.bfloat16 else value.to(weight.dtype)
            write_states(state, piece, mean, root, noise)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their types: torch would cast them to the weight's."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, weight in zip(saved, own, strict=True):
            if key in state_dict["state"]:
                kept = state_dict["state"][key]
                self.state[weight] = {k: (v if k == "steps" else v.to(weight.device)).clone() for k, v in kept.items()}


def adamw(
    value: Tensor, grad: Tensor, mean: Tensor, root: Tensor, group: dict[str, Any], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One step in float32 (https://arxiv.org/abs/1711.05101): new value, first moment, root of the second."""
    beta1, beta2 = group["betas"]
    mean = mean.lerp(grad, 1 - beta1)
    root = root.square_().lerp_(grad.square(), 1 - beta2).sqrt_()
    rate = group["lr"] / (1 - beta1**steps)
    scale = root / math.sqrt(1 - beta2**steps) + group["eps"]
    return (value * (1 - group["lr"] * group["weight_decay"])).addcdiv_(mean, scale, value=-rate), mean, root


def fresh(weight: Tensor) -> dict[str, Tensor]:
    """States of zero, and of no steps."""
    steps = torch.zeros((), dtype=torch.int64)  # on the CPU, where it is read
    if weight.numel() < SMALL:
        whole = {name: weight.new_zeros(weight.numel(), dtype=torch.float32) for name in ("mean", "root")}
        return {"steps": steps, **whole}
    blocks = math.ceil(weight.numel() / BLOCK)
    codes = {name: weight.new_zeros(blocks, BLOCK, dtype=torch.uint8) for name in ("mean", "root")}
    return {"steps": steps, **codes} | {
        f"{name}_top": weight.new_zeros(blocks, 1, dtype=torch.int16) for name in ("mean", "root")
    }


def read_states(state: dict[str, Tensor], piece: slice) -> tuple[Tensor, Tensor]:
    """First moment and root of the second of a piece, float32 (N,)."""
    if "mean_top" not in state:
        return state["mean"][piece], state["root"][piece].clone()
    rows = slice(piece.start // BLOCK, math.ceil(piece.stop / BLOCK))
    mean_RB = unpack_mean(state["mean"][rows], state["mean_top"][rows])
    root_RB = unpack_root(state["root"][rows], state["root_top"][rows])
    count = piece.stop - piece.start
    return mean_RB.view(-1)[:count], root_RB.view(-1)[:count]


def write_states(state: dict[str, Tensor], piece: slice, mean: Tensor, root: Tensor, noise: Tensor) -> None:
    """The states of a piece, rounded by the lower 40 bits of the noise where they are kept in 8."""
    if "mean_top" not in state:
        state["mean"][piece], state["root"][piece] = mean, root
        return
    rows = slice(piece.start // BLOCK, math.ceil(piece.stop / BLOCK))
    noise_RB = blocked(noise)
    state["mean"][rows], state["mean_top"][rows] = pack_mean(blocked(mean), noise_RB)
    state["root"][rows], state["root_top"][rows] = pack_root(blocked(root), noise_RB >> 20)


def state_bytes(weights: Iterable[Tensor], kind: str) -> int:
    """Bytes of the optimizer's states once a step was taken.

    >>> [state_bytes([torch.zeros(512, 512)], kind) / 512**2 for kind in ("adamw", "adamw-8bit")]
    [8.0, 2.015625]
    """
    return sum(each_state(weight.numel(), kind) for weight in weights)


def each_state(count: int, kind: str) -> int:
    """Bytes of the two states of one tensor."""
    if kind == "adamw" or count < SMALL:
        return 8 * count
    return 2 * math.ceil(count / BLOCK) * (BLOCK + 2)


def pieces(count: int) -> Iterator[slice]:
    """The ranges that are worked on at once."""
    for start in range(0, count, PIECE):
        yield slice(start, min(start + PIECE, count))
