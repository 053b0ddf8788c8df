"""Tokenized pairs of a file as flat arrays on disk: made once by several processes, then mapped into memory.

A file holds the arrays of `blocks.Block`, block after block, then a table of contents as JSON, and at its end the
length of the table and a checksum of all before it. Its name is a hash of everything the ids depend on. It is written
to another name and renamed, so two runs at once do no harm; one that is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken

from druthers import processes, storage
from druthers.blocks import Block, BlockTokenizer, TokenizedPairs
from druthers.pieces import Ragged
from druthers.records import InputError, Message, Pair, user
from druthers.storage import Lines
from druthers.tokens import Tokenizer, render

FORM = "1"
"""Version of everything between text and ids, and of the file; raise it where either changes."""
PLACES, OBJECTS = ("_file", "_path"), ("tokenizer_object", "device_map")
"""Ends of the names of settings that say where a tokenizer lies, and settings that say nothing more of it."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")
RUN = 4 << 20
"""Bytes of text that are tokenized at once."""
ALONE = 32 << 20
"""Bytes of text up to which starting other processes takes longer than it saves, and for each of which one is."""
LOOK = 1 << 20
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at it.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "What."}}},
    },
}
PROBES: tuple[tuple[tuple[Message, ...], list[dict[str, Any]] | None], ...] = (
    (user("Hi"), None),
    ((Message(role="system", content="Be kind."), *user("Hi")), None),
    (
        (
            *user("Hi"),
            Message(role="assistant", content="", tool_calls=[CALL]),
            Message(role="tool", content="Seen.", name="look", tool_call_id="call00001"),
        ),
        [TOOL],
    ),
)
"""Conversations, and the tools given with each, that show what a template writes today: dates stand in any of them."""
TAIL = struct.Struct("<QI4s")
SIGN = b"drut"
ALIGNED = 64
Progress = Callable[[int, int], None]


class Damaged(Exception):
    """A file is not what was written."""


def tokenized(
    path: Path,
    tokenizer: Tokenizer,
    *,
    max_prompt: int,
    max_response: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> TokenizedPairs:
    """The pairs of a JSONL file as token ids: from the cache, else tokenized by up to `workers` processes.

    Raises InputError as `storage.read` and `tokens.tokenize` do, for the first pair in the file that is at fault, and
    for a full disk. `progress` is called with (pairs done, pairs in all).
    """
    basis = [FORM, storage.sha256(path), fingerprint(tokenizer), str(max_prompt), str(max_response)]
    basis += [f"{library} {version(library)}" for library in LIBRARIES]
    name = hashlib.sha256("\n".join(basis).encode()).hexdigest()[:32]
    place = storage.cache_folder("tokens") / f"{name}.bin"
    try:
        return opened(place)
    except (FileNotFoundError, Damaged):
        storage.sweep(place.parent, now=time.time())
        work = Work(BlockTokenizer(tokenizer, max_prompt=max_prompt, max_response=max_response))
        write(place, work, path, workers=workers, progress=progress)
    return opened(place)


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of everything of a tokenizer that ids depend on, and of what its chat template writes today.

    (Some write the date.) Of a tokenizer with a core of its library that is what the core writes of itself and the
    settings around it; another one is saved to temporary files, and InputError says where that cannot be done.
    """
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        around = (settings_of(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map)
        digest.update(json.dumps(around, sort_keys=True, default=plain).encode())
    else:
        digest.update(saved(tokenizer))
    for messages, tools in PROBES:
        try:
            digest.update(render(messages, tokenizer, tools=tools, ask=True).encode())
        except InputError as error:  # such a template knows no system turn, or no tools
            digest.update(str(error).encode())
    return digest.hexdigest()


def settings_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer was made with, but for where it was read from."""
    return {k: v for k, v in tokenizer.init_kwargs.items() if not k.endswith(PLACES) and k not in OBJECTS}


def plain(value: object) -> str:
    """Something beside JSON among a tokenizer's settings, by what it says of itself, not where it lies in memory."""
    return repr(value) if isinstance(value, AddedToken) else type(value).__name__


def saved(tokenizer: Tokenizer) -> bytes:
    """Names and hashes of the files of a tokenizer; InputError where the temporary folder does not take them."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
            return "".join(f"{file.name} {storage.sha256(file)}\n" for file in files).encode()
    except OSError as error:
        raise InputError(
            f"temporary folder {os.environ.get('TMPDIR') or '/tmp'} cannot be written: {error.strerror}; "
            "free some space, or set TMPDIR to another folder"
        ) from error


@dataclass(frozen=True)
class Work:
    """What a process does: lines to a block."""

    tokenizer: BlockTokenizer

    def __call__(self, lines: Lines) -> Block:
        """Raises InputError for the first line at fault, whether in its form or in what it says."""
        rows = storage.read_lines(lines, Pair)
        pairs: list[Pair] = []
        try:
            pairs += rows
        except InputError:
            self.tokenizer.tokenize(pairs)  # of the pairs before the faulty line one may be refused
            raise
        return self.tokenizer.tokenize(pairs)


def write(place: Path, work: Work, path: Path, *, workers: int, progress: Progress | None) -> None:
    """Tokenize a file into the cache."""
    total = storage.count(str(path)) if progress else 0
    count = max(1, min(workers, path.stat().st_size // ALONE))
    if count > 1:
        work.tokenizer.writer.learn_usual()
    contents: list[dict[str, Any]] = []
    done = 0
    runs = storage.runs_of_lines(path, size=RUN)
    with storage.replacing(place) as file, contextlib.ExitStack() as stack:
        sink = Summed(file)
        for block in stack.enter_context(contextlib.closing(processes.over(work, runs, count=count))):
            contents.append({"groups": block.groups, "arrays": [sink.array(a) for a in arrays_of(block)]})
            done += len(block)
            if progress:
                progress(done, total)
        table = json.dumps(contents).encode()
        sink.write(table)
        file.write(TAIL.pack(len(table), sink.sum, SIGN))


class Summed:
    """A file that is written with its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum, self.size = file, 0, 0

    def write(self, data: bytes) -> None:
        """Some bytes."""
        self.file.write(data)
        self.sum, self.size = zlib.crc32(data, self.sum), self.size + len(data)

    def array(self, values: NDArray[Any]) -> tuple[str, int, int]:
        """An array, at a place its type may stand; its type, place and length."""
        self.write(bytes(-self.size % ALIGNED))
        start = self.size
        self.write(values.tobytes())
        return values.dtype.str, start, len(values)


def arrays_of(block: Block) -> Iterator[NDArray[Any]]:
    """The arrays of a block in the order of its fields, a ragged one as two."""
    for field in fields(block):
        value = getattr(block, field.name)
        if isinstance(value, Ragged):
            yield from (value.values, value.at)
        elif isinstance(value, np.ndarray):
            yield value


def block_of(arrays: Sequence[NDArray[Any]], groups: Sequence[str]) -> Block:
    """The block of some arrays."""
    names, prompts, prompts_at, responses, responses_at, scored, cut, p, margin, weight, group = arrays
    return Block(
        id_B=names,
        prompts=Ragged(prompts, prompts_at),
        responses=Ragged(responses, responses_at),
        scored=scored,
        cut_R=cut,
        p_B=p,
        margin_B=margin,
        weight_B=weight,
        group_B=group,
        groups=tuple(groups),
    )


def opened(place: Path) -> TokenizedPairs:
    """The pairs of a file of the cache, mapped into memory; raises Damaged or FileNotFoundError."""
    with readable(place).open("rb") as file:
        size = checked(file)
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    contents = json.loads(view[size : -TAIL.size])
    return TokenizedPairs(
        [
            block_of(
                [np.frombuffer(view, kind, count=count, offset=start) for kind, start, count in entry["arrays"]],
                entry["groups"],
            )
            for entry in contents
        ]
    )


def readable(place: Path) -> Path:
    """A file that can be read, or that is not there; InputError for another."""
    try:
        with place.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(
            f"cache file {place} cannot be read: {error.strerror}; delete it, or set DRUTHERS_CACHE to another folder"
        ) from error
    return place


def checked(file: BinaryIO) -> int:
    """Where the table of contents begins, all bytes read and found right.

    They are read, not mapped: pages that are touched would count as memory of this process.
    """
    whole = os.fstat(file.fileno()).st_size
    if whole <= TAIL.size:
        raise Damaged
    left, found = whole - TAIL.size, 0
    while left:
        data = file.read(min(LOOK, left))
        if not data:
            raise Damaged
        found, left = zlib.crc32(data, found), left - len(data)
    length, wanted, sign = TAIL.unpack(file.read(TAIL.size))
    if found != wanted or sign != SIGN or length > whole - TAIL.size:
        raise Damaged
    return int(whole - TAIL.size - length)
