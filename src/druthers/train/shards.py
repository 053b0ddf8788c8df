"""Weights and optimizer state of a run whose weights are split over ranks: written by all, read by any number of them.

One flat table of tensors, by `torch.distributed.checkpoint`: `weight.NAME`, and of each trained weight what the
optimizer keeps of it under the optimizer's own word, such as `exp_avg.NAME`. Split tensors stand there once, in the
parts the ranks had; who reads them takes the rows it needs.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from druthers.devices import lost, part
from druthers.models import Loaded, trainable
from druthers.records import InputError, first_line

INDEX = ".metadata"
"""The file that is written last."""
WEIGHT = "weight"


def write(folder: Path, policy: Loaded, optimizer: Optimizer) -> str:
    """Every rank its part; why one of them could not, which all of them then learn, or nothing."""
    table: dict[str, Any] = {}
    for name, weight in trainable(policy).items():
        table[f"{WEIGHT}.{name}"] = weight.detach()
        table |= {f"{kind}.{name}": value for kind, value in optimizer.state.get(weight, {}).items()}
    try:
        with one_sentence():
            save(table, storage_writer=FileSystemWriter(folder))
    except OSError as error:
        return str(error)
    return ""


@torch.no_grad()
def read(folder: Path, policy: Loaded, optimizer: Optimizer) -> None:
    """Put weights and optimizer state back, on the ranks there are now, which may be one.

    Raises InputError when they belong to another model, and others (`checkpoint.restore`) when a file is damaged.
    """
    own = trainable(policy)
    with one_sentence():
        entries = FileSystemReader(folder).read_metadata().state_dict_metadata
        check_names({name: size for kind, name, size in sizes(entries) if kind == WEIGHT}, policy, folder)
        table = {key: place(entry, own[key.partition(".")[2]]) for key, entry in entries.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process", UserWarning)
            load(table, storage_reader=FileSystemReader(folder), no_dist=not dist.is_initialized())
    for key, value in table.items():
        kind, _, name = key.partition(".")
        if kind == WEIGHT:
            own[name].copy_(value)
        else:
            optimizer.state[own[name]][kind] = value


def sizes(entries: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Word, name and shape of every tensor of a table."""
    for key, entry in entries.items():
        kind, _, name = key.partition(".")
        if isinstance(entry, TensorStorageMetadata):
            yield kind, name, tuple(entry.size)


def place(entry: Any, weight: Tensor) -> Any:
    """Where a tensor is read to: split as its weight is when it has its shape, whole otherwise."""
    if not isinstance(entry, TensorStorageMetadata):
        return None
    kind = entry.properties.dtype
    if entry.size == weight.shape:
        return torch.zeros_like(weight, dtype=kind, requires_grad=False)
    return torch.zeros(entry.size, dtype=kind, device=weight.device)


@torch.no_grad()
def read_whole(weights: Path, state: Path, policy: Loaded, optimizer: Optimizer) -> None:
    """Each rank its part of what one process wrote: weights as safetensors, the optimizer by `torch.save`."""
    own = trainable(policy)
    with safe_open(weights, "pt") as saved:
        check_names({name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}, policy, weights)  # noqa: SIM118
        for name, weight in own.items():
            weight.copy_(part(saved.get_tensor(name), weight))
    kept = torch.load(state, map_location="cpu", weights_only=True, mmap=True)["state"]
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    for i, weight in enumerate(ordered):
        for kind, value in kept.get(i, {}).items():
            split = isinstance(value, Tensor) and value.shape == weight.shape
            optimizer.state[weight][kind] = part(value, weight) if split else there(value, weight)


def there(value: Any, weight: Tensor) -> Any:
    """What an optimizer keeps of a weight beside tensors of its shape, on its device, where a fused one wants it."""
    return value.to(weight.device) if isinstance(value, Tensor) else value


def check_names(found: dict[str, tuple[int, ...]], policy: Loaded, place: Path) -> None:
    """Names and shapes must be those of the weights that are trained; raises InputError for others."""
    if found != {name: tuple(weight.shape) for name, weight in trainable(policy).items()}:
        raise InputError(f"{place}: the weights belong to another model or adapter than {policy.name!r}")


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """What torch's checkpoints raise of one rank, on all of them and as no Exception, as an OSError.

    A rank that cannot be reached any more stays what it is.
    """
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        if lost(cause):
            raise cause from error
        raise OSError(f"rank {rank}: {first_line(cause)}") from error
