"""Reference scores on disk: one row a response, in Parquet parts that are added and never changed.

A folder holds what one reference gives; every part says what its scores depend on. A part appears whole or not at all,
under a lock that is held for the writing alone, so any number of processes add to one folder, and where two scored the
same response the part with the lower number counts: a value that was read once stays what it is. The folder may be
copied to another machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from druthers.batching import side
from druthers.records import InputError, first_line
from druthers.storage import replacing
from druthers.tokens import TokenizedPair

KEY = "S16"
HEADER = b"druthers.reference"
SCHEMA = pa.schema([("response", pa.binary(16)), ("logp", pa.float64()), ("token_logps", pa.list_(pa.float32()))])
ROWS = 1024
"""Rows of a row group, the least that is read to have the tokens of one response."""
MANY, SMALL = 32, 2**24
"""How many parts below how many bytes may stand beside each other before they become one."""
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What reading a part that is damaged or no part raises."""

Keys = NDArray[np.bytes_]
Header = Mapping[str, Mapping[str, Any]]
"""`depends_on`: what the scores depend on; `made_with`: what else is good to know. JSON values by name."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of the responses of B pairs without their ids: keys, keys of the prompts, tokens of the rows."""

    keys_CB: Keys
    prompt_B: Keys
    size_CB: NDArray[np.int64]


def asked_of(pairs: Iterable[TokenizedPair]) -> Asked:
    """The responses of some pairs, which are looked at once, one after the other."""
    keys, sizes = bytearray(), array("q")
    for pair in pairs:
        prompt = hashlib.blake2b(id_bytes(pair.prompt), digest_size=16)
        keys += prompt.digest()
        for c in (0, 1):
            ids, scored = side(pair, c)
            whole = prompt.copy()
            whole.update(id_bytes(ids))
            whole.update(np.packbits(np.asarray(scored, dtype=bool)).tobytes())
            keys += whole.digest()
            sizes.append(len(pair.prompt) + len(ids))
    prompt_B, *keys_CB = np.frombuffer(bytes(keys), dtype=KEY).reshape(-1, 3).T
    return Asked(np.stack(keys_CB), prompt_B, np.array(sizes, dtype=np.int64).reshape(-1, 2).T)


def keys_of(pairs: Iterable[TokenizedPair]) -> Keys:
    """What each response's scores depend on beside the model, hashed, (2, B): prompt, response, which tokens count."""
    return asked_of(pairs).keys_CB


def id_bytes(ids: Sequence[int]) -> bytes:
    """Number and values of token ids, in the same bytes on every machine."""
    return np.asarray([len(ids), *ids], dtype="<i4").tobytes()


def folder_name(header: Header) -> str:
    """A name for everything the scores depend on; the hash of the weights covers the configuration."""
    basis = {key: value for key, value in header["depends_on"].items() if not key.startswith("config.")}
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:24]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs; for a hash of weights that differs the configuration, where it says more."""
    found = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    config = [key for key in found if key.startswith("config.")]
    if not config:
        return found
    return [key for key in found if (key != "weights" if "weights" in found else key not in config)]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs as 'name = old (now new)', at most three of them; '' when nothing does.

    >>> differences({"compute": "float32", "weights": "ab"}, {"compute": "bfloat16", "weights": "ab"})
    'compute = float32 (now bfloat16)'
    """
    found = changes(then, now)
    said = [f"{key} = {brief(then.get(key))} (now {brief(now.get(key))})" for key in found[:3]]
    return ", ".join([*said, *([f"{len(found) - 3} more"] if len(found) > 3 else [])])


def brief(value: object) -> str:
    """A value, cut where it is long."""
    return str(value) if len(str(value)) <= 40 else f"{str(value)[:12]}..."


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its responses and their summed log-probs in nats, or why it is not used."""

    path: Path
    keys: Keys
    logps: NDArray[np.float64]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """Where the scores of every response stand: `keys` in order, each with its sum in nats, its part and row there."""

    keys: Keys
    logps: NDArray[np.float64]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    parts: tuple[Path, ...]
    faults: tuple[str, ...]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Places of some keys, of the same shape; -1 for one that is not there."""
        if not len(self.keys):
            return np.full(keys.shape, -1)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


def parts_in(folder: Path) -> list[Path]:
    """The parts of a folder in their order."""
    return sorted(folder.glob("part-[0-9]*.parquet"))


def numbers_of(path: Path) -> list[int]:
    """The number of a part; of one that was made of several the lowest and the highest.

    >>> numbers_of(Path("part-000002-000011.parquet"))
    [2, 11]
    """
    return [int(number) for number in re.findall(r"\d+", path.stem)]


def highest(folder: Path) -> int:
    """The highest number of a part in a folder; 0 where there is none."""
    return max((number for path in parts_in(folder) for number in numbers_of(path)), default=0)


def read_index(folder: Path, header: Header) -> Index:
    """Keys and sums of all parts; one that cannot be read, or was scored otherwise, is a fault and counts as absent.

    A part that is gone since the folder was listed was made one with others, so the folder is listed again.
    """
    while True:
        found = [read_part(path, header) for path in parts_in(folder)]
        if all(part.path.is_symlink() or part.path.exists() for part in found if part.fault):
            return index_of([part for part in found if not part.fault], tuple(p.fault for p in found if p.fault))


def index_of(parts: Sequence[Part], faults: tuple[str, ...]) -> Index:
    """One index over the columns of all parts; the first part that holds a response counts."""
    counts = [len(part.keys) for part in parts]
    keys, first = np.unique(np.concatenate([np.empty(0, KEY), *(p.keys for p in parts)]), return_index=True)
    logps = np.concatenate([np.empty(0), *(p.logps for p in parts)])[first]
    number = np.repeat(np.arange(len(parts)), counts)[first]
    row = np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)])[first]
    return Index(keys, logps, number, row, tuple(p.path for p in parts), faults)


def read_part(path: Path, header: Header) -> Part:
    """Keys and sums of one part, if it can be read and depends on what it should."""
    none = np.empty(0, KEY), np.empty(0)
    try:
        changed = differences(header_of(path)["depends_on"], header["depends_on"])
        keys, logps = columns_of(path)
    except BROKEN as error:
        return Part(path, *none, f"{path} cannot be read ({first_line(error)})")
    return Part(path, *none, f"{path} was scored with {changed}") if changed else Part(path, keys, logps)


def is_damaged(path: Path) -> bool:
    """Whether a part cannot be read, whatever it was scored with; call it with the lock held."""
    try:
        header_of(path)
        columns_of(path)
    except BROKEN:
        return True
    return False


def header_of(path: Path) -> Header:
    """What a part says of itself."""
    return dict(json.loads((pq.read_schema(path, memory_map=True).metadata or {})[HEADER]))


def opened(path: Path) -> pq.ParquetFile:
    """A part, its checksums watched."""
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Raises InputError for a part that turns out damaged, FileNotFoundError for one that is gone."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path} of the reference cache is damaged ({first_line(error)}); delete it and run again"
        ) from error


def columns_of(path: Path) -> tuple[Keys, NDArray[np.float64]]:
    """Keys and sums of one part."""
    with opened(path) as file:
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
        table = file.read(columns=["response", "logp"]).combine_chunks()
    (chunk,) = table.column("response").chunks
    keys = np.frombuffer(chunk.buffers()[1], dtype=KEY, count=len(chunk), offset=chunk.offset * 16)
    return keys.copy(), table.column("logp").to_numpy()


class Cache:
    """The scores of one reference, in one folder below `root`; raises InputError where the folder cannot be used."""

    def __init__(self, root: Path, header: Header) -> None:
        self.folder, self.header = root / folder_name(header), header
        self.index = read_index(self.folder, header)

    def refresh(self) -> None:
        """Take in what was added since, by this process and by others."""
        self.index = read_index(self.folder, self.header)

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of the responses are there."""
        return self.index.find(keys) >= 0

    def part_of(self, keys: Keys) -> NDArray[np.int64]:
        """Which part, counted from 0, a response stands in; -1 where it is not there."""
        at = self.index.find(keys)
        return np.where(at < 0, -1, self.index.part[at]) if len(self.index.part) else at

    def made_with(self, key: bytes) -> Mapping[str, Any]:
        """Model, machine and versions that a response was scored with."""
        return header_of(self.index.parts[self.part_of(np.array(key, dtype=KEY))])["made_with"]

    def logps(self, keys: Keys) -> NDArray[np.float64]:
        """Sums of the responses' log-probs in nats, shaped like the keys; raises InputError when one is missing."""
        return self.index.logps[self.places(keys)]

    def places(self, keys: Keys) -> NDArray[np.int64]:
        """Where responses stand in the index."""
        at = self.index.find(keys)
        if (at < 0).any():
            raise InputError(
                f"the reference cache {self.folder} lacks {(at < 0).sum()} of {at.size} responses that were scored; "
                "run the same command again to score them"
            )
        return at

    def tokens(self, keys: Keys) -> list[NDArray[np.float32]]:
        """Log-probs of the scored tokens of some responses in nats, one array a key, read from disk.

        A response that `data.max_response` cut is another one: its end-of-turn token moved.
        """
        while True:
            try:
                return self.read_tokens(keys.ravel())
            except FileNotFoundError:  # made one with others by another process
                self.refresh()

    def read_tokens(self, keys: Keys) -> list[NDArray[np.float32]]:
        """The same, from the parts as the index knows them; every row group is read once."""
        at, index = self.places(keys), self.index
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(at)
        for part in np.unique(index.part[at]):
            with undamaged(index.parts[part]), opened(index.parts[part]) as file:
                counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                starts = np.cumsum([0, *counts])
                mine = np.flatnonzero(index.part[at] == part)
                group = np.searchsorted(starts, index.row[at[mine]], side="right") - 1
                for g in np.unique(group):
                    lists = file.read_row_group(g, columns=["token_logps"]).column("token_logps").combine_chunks()
                    offsets, flat = lists.offsets.to_numpy(), lists.values.to_numpy()
                    for i in mine[group == g]:
                        row = index.row[at[i]] - starts[g]
                        found[i] = flat[offsets[row] : offsets[row + 1]].copy()
        return found

    def add(self, keys: Keys, tokens: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Write the scores of some responses as a new part; `refresh` takes them in.

        What could not be read is put aside under another name, and many small parts become one. Raises InputError
        when the disk is full or the folder cannot be written.
        """
        table = table_of(keys, tokens)
        with locked(self.folder):
            self.write(self.folder / f"part-{highest(self.folder) + 1:06d}.parquet", [table])
            if self.index.faults:
                for path in filter(is_damaged, parts_in(self.folder)):
                    path.replace(path.with_suffix(".damaged"))
            if sum(path.stat().st_size < SMALL for path in parts_in(self.folder)) > MANY:
                self.compact()

    def write(self, path: Path, tables: Iterator[pa.Table] | Sequence[pa.Table]) -> None:
        """Tables as one part."""
        schema = SCHEMA.with_metadata({HEADER: json.dumps(self.header)})
        how: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        with replacing(path) as file, pq.ParquetWriter(file, schema, **how) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROWS)

    def compact(self) -> None:
        """Make the small parts one, in the place of the first of them, with those rows that count.

        It has a name of its own, so that whoever still knows the old ones does not read its rows for theirs: its last
        number is the highest of all parts, which no part made of several had before a new one was added.
        """
        index = read_index(self.folder, self.header)
        small = [i for i, path in enumerate(index.parts) if path.stat().st_size < SMALL]

        def kept() -> Iterator[pa.Table]:
            for i in small:
                with opened(index.parts[i]) as file:
                    yield file.read().take(np.sort(index.row[index.part == i])).cast(SCHEMA)

        if len(small) > 1:
            first, last = numbers_of(index.parts[small[0]])[0], highest(self.folder)
            self.write(self.folder / f"part-{first:06d}-{last:06d}.parquet", kept())
            for i in small:
                index.parts[i].unlink()


def table_of(keys: Keys, tokens: Sequence[NDArray[np.floating[Any]]]) -> pa.Table:
    """Rows of a part; sums are taken in float64 before the tokens are rounded to float32."""
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    flat = np.concatenate([np.empty(0, np.float32), *tokens], dtype=np.float32, casting="same_kind")
    return pa.table(
        [
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())]),
            pa.array([array.sum(dtype=np.float64) for array in tokens], pa.float64()),
            pa.ListArray.from_arrays(offsets, flat),
        ],
        schema=SCHEMA,
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Write to the folder alone; waits for another process that writes, and sweeps what a killed one left behind."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"reference cache {folder} cannot be written: {error.strerror}; free some space, or set DRUTHERS_CACHE "
                "to a folder you can write"
            ) from error
        yield


def unused(root: Path, header: Header, keys: Keys) -> str:
    """Why the likest of the other caches that hold some of these responses cannot serve; '' when there is none.

    Only those of the same weights or of a model of the same name are looked at.
    """
    now, name = header["depends_on"], header["made_with"]["model"]
    likest: list[tuple[int, Path, str]] = []
    for folder in sorted(root.iterdir()):
        for path in parts_in(folder)[:1]:
            with contextlib.suppress(*BROKEN):
                other = header_of(path)
                then = other["depends_on"]
                count = len(changes(then, now))
                if count and (then["weights"] == now["weights"] or other["made_with"]["model"] == name):
                    likest.append((count, folder, differences(then, now)))
    for _, folder, changed in sorted(likest):
        with contextlib.suppress(*BROKEN):
            if any(np.isin(keys, columns_of(path)[0]).any() for path in parts_in(folder)):
                return f"{folder} holds some of these responses, but was scored with {changed}"
    return ""
