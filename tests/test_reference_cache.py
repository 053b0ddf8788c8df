"""The cache of reference scores as files: parts, their order, damage, many writers, and refusals."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from druthers.records import InputError
from druthers.tokens import TokenizedPair
from druthers.train import reference_cache
from druthers.train.reference_cache import KEY, Cache, Header, Keys, differences, keys_of, parts_in, unused
from tests.calls import forked, in_child

Tokens = list[NDArray[np.float32]]
LAW = settings(max_examples=25, deadline=None, derandomize=True)


def header(**changed: Any) -> Header:
    """What the scores of a made-up reference depend on."""
    return {"depends_on": {"weights": "aa", "compute": "float32", **changed}, "made_with": {"model": "tiny"}}


def some(count: int, *, seed: int = 0) -> tuple[Keys, Tokens]:
    """Keys with zero bytes in them and at their ends, and none to eight tokens each."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 3, (count, 16), dtype=np.uint8)
    raw[:, 4:8] = np.arange(count, dtype=">u4").view(np.uint8).reshape(-1, 4)
    raw[:, 8] = seed
    tokens = [random.normal(size=random.integers(0, 9)).astype(np.float32) for _ in range(count)]
    return np.frombuffer(raw.tobytes(), dtype=KEY), tokens


def same(cache: Cache, keys: Keys, tokens: Tokens) -> None:
    """The cache holds exactly these."""
    assert cache.has(keys).all()
    assert all(map(np.array_equal, cache.tokens(keys), tokens))
    assert cache.logps(keys).tolist() == [array.sum(dtype=np.float64) for array in tokens]


def pair(prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]) -> TokenizedPair:
    """Every token scored."""
    return TokenizedPair("", prompt, chosen, rejected, (True,) * len(chosen), (True,) * len(rejected))


# ---------------------------------------------------------------- keys


IDS = st.lists(st.integers(0, 2), min_size=0, max_size=3).map(tuple)


@LAW
@given(IDS, IDS, st.lists(st.booleans(), max_size=3).map(tuple), IDS, IDS, st.lists(st.booleans(), max_size=3))
def test_two_responses_have_one_key_only_where_prompt_ids_and_mask_are_the_same(
    prompt: Any, ids: Any, scored: Any, other_prompt: Any, other_ids: Any, other_scored: Any
) -> None:
    """Also where tokens wander from the prompt to the response."""
    one = (prompt, ids, (*scored, *[True] * 3)[: len(ids)])
    two = (other_prompt, other_ids, (*other_scored, *[True] * 3)[: len(other_ids)])
    keys = [keys_of([TokenizedPair("", p, i, (9,), s, (True,))])[0, 0] for p, i, s in (one, two)]
    assert (keys[0] == keys[1]) == (one == two)


def test_a_response_has_the_same_key_on_either_side_and_beside_any_other() -> None:
    keys = keys_of([pair((1,), (2,), (3,)), pair((1,), (3,), (2,)), pair((1,), (2,), (4,))])
    assert keys.shape == (2, 3)
    assert keys[0].tolist() == [keys[1, 1], keys[1, 0], keys[0, 0]]
    assert keys[0, 0] != keys[1, 0] != keys[1, 2]


# ---------------------------------------------------------------- parts


@LAW
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 3))
def test_what_is_added_is_found_again(counts: list[int], many: int) -> None:
    """However many parts it came in, and in whatever number of them it ends up."""
    keys, tokens = some(sum(counts))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(reference_cache, "MANY", many)
        patch.setattr(reference_cache, "ROWS", 7)
        folder = Path(name)
        cache = Cache(folder, header())
        for stop, count in zip(itertools.accumulate(counts), counts, strict=True):
            cache.add(keys[stop - count : stop], tokens[stop - count : stop])
        assert not cache.has(keys).any()
        cache.refresh()
        assert 1 <= len(parts_in(cache.folder)) <= many
        same(cache, keys, tokens)
        same(Cache(folder, header()), keys[::-1], tokens[::-1])
        assert not cache.has(some(3, seed=1)[0]).any()


def test_a_value_that_was_read_once_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process scored the same responses a little differently and was later; parts are then made one."""
    keys, tokens = some(20)
    cache = Cache(tmp_path, header())
    cache.add(keys, tokens)
    monkeypatch.setattr(reference_cache, "MANY", 2)
    for shift in (1, 2):
        cache.add(keys, [array + shift for array in tokens])
        cache.refresh()
        same(cache, keys, tokens)
    (file,) = parts_in(cache.folder)
    assert pq.read_table(file).num_rows == len(keys)


def test_large_parts_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, tokens = some(420)
    cache = Cache(tmp_path, header())
    cache.add(keys[:400], tokens[:400])
    (large,) = parts_in(cache.folder)
    monkeypatch.setattr(reference_cache, "SMALL", large.stat().st_size)
    monkeypatch.setattr(reference_cache, "MANY", 1)
    before = large.read_bytes(), large.stat().st_ino
    for i in range(400, 420, 4):
        cache.add(keys[i : i + 4], tokens[i : i + 4])
    assert (large.read_bytes(), large.stat().st_ino) == before
    assert len(parts_in(cache.folder)) == 2
    cache.refresh()
    same(cache, keys, tokens)


def test_tokens_are_found_when_another_process_made_the_parts_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that did not count are gone then, so that others stand where they stood."""
    keys, tokens = some(112)
    cache = Cache(tmp_path, header())
    cache.add(keys[:102], tokens[:102])
    monkeypatch.setattr(reference_cache, "SMALL", parts_in(cache.folder)[0].stat().st_size)
    for i in range(100, 112, 4):
        cache.add(keys[i : i + 4], tokens[i : i + 4])
    cache.refresh()
    monkeypatch.setattr(reference_cache, "MANY", 1)
    others = some(2, seed=1)
    Cache(tmp_path, header()).add(*others)
    assert [path.name for path in parts_in(cache.folder)] == ["part-000001.parquet", "part-000002-000005.parquet"]
    same(cache, keys, tokens)


def test_what_is_missing_is_never_a_number(tmp_path: Path) -> None:
    keys, tokens = some(5)
    cache = Cache(tmp_path, header())
    for ask in (cache.logps, cache.tokens):
        with pytest.raises(InputError, match="lacks 5 of 5 responses"):
            ask(keys)
    cache.add(keys[1:], tokens[1:])
    cache.refresh()
    for ask in (cache.logps, cache.tokens):
        with pytest.raises(InputError, match=r"^the reference cache .* lacks 1 of 5 responses"):
            ask(keys)
        ask(keys[1:])


def test_a_part_that_is_damaged_when_its_tokens_are_read_is_named(tmp_path: Path) -> None:
    """Also where it is read after another process made the parts one."""
    keys, tokens = some(50)
    cache = Cache(tmp_path, header())
    cache.add(keys, tokens)
    cache.refresh()
    (file,) = parts_in(cache.folder)
    renamed, whole = file.with_name("part-000001-000002.parquet"), file.read_bytes()
    at = whole.index(tokens[0].tobytes() + tokens[1].tobytes())
    for place in (file, renamed):
        file.unlink(missing_ok=True)
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(InputError, match=f"^{place} of the reference cache is damaged .*; delete it and run again"):
            cache.tokens(keys)


def test_files_that_are_no_parts_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has a number; others are left where they are, also when parts are made one."""
    keys, tokens = some(9)
    cache = Cache(tmp_path, header())
    cache.add(keys[:3], tokens[:3])
    monkeypatch.setattr(reference_cache, "MANY", 1)
    others = [cache.folder / name for name in ("part-.parquet", "part-copy.parquet", ".part-000009.parquet")]
    for other in others:
        other.write_bytes(parts_in(cache.folder)[0].read_bytes())
    for i in (3, 6):
        cache.add(keys[i : i + 3], tokens[i : i + 3])
    cache.refresh()
    same(cache, keys, tokens)
    assert all(map(Path.exists, others))
    assert [path.name for path in parts_in(cache.folder)] == ["part-000001-000003.parquet"]


# ---------------------------------------------------------------- many writers


def write_parts(folder: Path, seed: int) -> None:
    """Twenty parts, one after the other."""
    keys, tokens = some(40, seed=seed)
    cache = Cache(folder, header())
    for i in range(0, 40, 2):
        cache.add(keys[i : i + 2], tokens[i : i + 2])


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, parts being made one again and again; a third reads meanwhile."""
    monkeypatch.setattr(reference_cache, "MANY", 3)
    writers = [forked(partial(write_parts, tmp_path, seed)) for seed in range(2)]
    for _ in range(20):
        cache = Cache(tmp_path, header())
        assert cache.index.faults == ()
        keys = cache.index.keys
        assert cache.logps(keys).tolist() == [array.sum(dtype=np.float64) for array in cache.tokens(keys)]
        time.sleep(0.005)
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0]
    cache = Cache(tmp_path, header())
    assert len(parts_in(cache.folder)) <= 3
    for seed in range(2):
        same(cache, *some(40, seed=seed))


def killed_at(name: str, act: Callable[[], object]) -> None:
    """Do it in a child that is killed when `os.<name>` is called."""

    def kill(*given: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        setattr(os, name, kill)
        act()

    assert in_child(child) == signal.SIGKILL


def test_a_kill_while_a_part_is_written_leaves_the_others_and_no_litter(tmp_path: Path) -> None:
    keys, tokens = some(6)
    cache = Cache(tmp_path, header())
    cache.add(keys[:3], tokens[:3])
    killed_at("replace", partial(cache.add, keys[3:], tokens[3:]))
    assert len(list(cache.folder.glob(".*.tmp"))) == 1
    cache.refresh()
    same(cache, keys[:3], tokens[:3])
    assert not cache.has(keys[3:]).any()
    cache.add(keys[3:], tokens[3:])
    cache.refresh()
    same(cache, keys, tokens)
    assert list(cache.folder.glob(".*.tmp")) == []


def test_a_kill_while_parts_are_made_one_changes_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, tokens = some(9)
    cache = Cache(tmp_path, header())
    for i in range(0, 6, 3):
        cache.add(keys[i : i + 3], tokens[i : i + 3])
    monkeypatch.setattr(reference_cache, "MANY", 1)
    killed_at("unlink", partial(cache.add, keys[6:], tokens[6:]))
    assert len(parts_in(cache.folder)) == 4
    cache.refresh()
    same(cache, keys, tokens)


def test_what_a_kill_left_of_parts_made_one_is_not_lost_with_the_next_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged part stands beside those it was made of, and a large part that is not made one with them came last."""
    keys, tokens = some(409)
    cache = Cache(tmp_path, header())
    monkeypatch.setattr(reference_cache, "SMALL", 6000)
    for i in range(0, 6, 3):
        cache.add(keys[i : i + 3], tokens[i : i + 3])
    monkeypatch.setattr(reference_cache, "MANY", 1)
    killed_at("unlink", partial(cache.add, keys[6:9], tokens[6:9]))
    cache.add(keys[9:], tokens[9:])
    cache.refresh()
    same(cache, keys, tokens)
    assert [path.name for path in parts_in(cache.folder)] == ["part-000001-000004.parquet", "part-000004.parquet"]


# ---------------------------------------------------------------- what is not used


@pytest.mark.parametrize("damage", ["empty", "text", "half", "columns", "bare", "link"])
def test_a_damaged_part_is_named_and_put_aside_when_its_rows_stand_again(tmp_path: Path, damage: str) -> None:
    keys, tokens = some(10)
    cache = Cache(tmp_path, header())
    cache.add(keys[:5], tokens[:5])
    cache.add(keys[5:], tokens[5:])
    first, _ = parts_in(cache.folder)
    whole = first.read_bytes()
    first.unlink()
    if damage == "columns":
        pq.write_table(pa.table({"response": ["a"]}), first)
    elif damage == "bare":
        pq.write_table(reference_cache.table_of(keys[:5], tokens[:5]).replace_schema_metadata(None), first)
    elif damage == "link":
        first.symlink_to("nowhere")
    else:
        first.write_bytes({"empty": b"", "text": b"no parquet", "half": whole[: len(whole) // 2]}[damage])
    cache.refresh()
    (fault,) = cache.index.faults
    assert fault.startswith(f"{first} cannot be read (")
    assert "\n" not in fault
    assert cache.has(keys).tolist() == [False] * 5 + [True] * 5
    cache.add(keys[:5], tokens[:5])
    cache.refresh()
    same(cache, keys, tokens)
    assert cache.index.faults == ()
    assert os.path.lexists(first.with_suffix(".damaged"))


def test_one_changed_byte_is_no_other_number(tmp_path: Path) -> None:
    """Sums and keys are checked when the part is opened, tokens when they are read."""
    keys, tokens = some(50)
    cache = Cache(tmp_path, header())
    cache.add(keys, tokens)
    (file,) = parts_in(cache.folder)
    whole, found = file.read_bytes(), 0
    for at in range(4, len(whole) - 1500, 97):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        cache.refresh()
        if cache.index.faults:
            found += 1
            continue
        with contextlib.suppress(InputError):
            same(cache, keys, tokens)
            found -= 1
        found += 1
    assert found > 20


def test_a_part_that_was_scored_otherwise_is_named_with_what_changed_and_left_alone(tmp_path: Path) -> None:
    """A file that somebody copied into the folder of another reference."""
    keys, tokens = some(6)
    other = Cache(tmp_path, header(compute="bfloat16"))
    other.add(keys, tokens)
    cache = Cache(tmp_path, header())
    cache.folder.mkdir()
    (stray,) = parts_in(other.folder)
    stray = stray.rename(cache.folder / stray.name)
    cache.refresh()
    assert cache.index.faults == (f"{stray} was scored with compute = bfloat16 (now float32)",)
    assert not cache.has(keys).any()
    before = stray.read_bytes()
    cache.add(keys, tokens)
    cache.refresh()
    same(cache, keys, tokens)
    assert stray.read_bytes() == before


def test_the_reason_names_old_and_new() -> None:
    then, now = {"weights": "a" * 64, "rows": "padded"}, {"weights": "b" * 64, "rows": "shared"}
    assert differences(then, now) == "rows = padded (now shared), weights = aaaaaaaaaaaa... (now bbbbbbbbbbbb...)"
    assert differences(then, then) == ""
    assert differences(then | {"config.theta": 1.0}, now | {"config.theta": 2.0, "rows": "padded"}) == (
        "config.theta = 1.0 (now 2.0)"
    )
    assert differences({"config.a": 1}, {"config.b": 1}) == ""
    assert differences(dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)).endswith("c = 1 (now 2), 2 more")


def test_the_likest_other_cache_that_holds_a_response_is_named(tmp_path: Path) -> None:
    keys, tokens = some(6)
    assert unused(tmp_path, header(), keys) == ""
    near, far = header(compute="bfloat16"), header(compute="bfloat16", rows="padded")
    Cache(tmp_path, far).add(keys, tokens)
    Cache(tmp_path, near).add(*some(6, seed=1))
    assert unused(tmp_path, header(), keys).endswith(
        "holds some of these responses, but was scored with compute = bfloat16 (now float32), rows = padded (now None)"
    )
    Cache(tmp_path, near).add(keys[:1], tokens[:1])
    assert unused(tmp_path, header(), keys) == (
        f"{Cache(tmp_path, near).folder} holds some of these responses, "
        "but was scored with compute = bfloat16 (now float32)"
    )
    another = {"depends_on": {"weights": "bb", "compute": "float32"}, "made_with": {"model": "another"}}
    assert unused(tmp_path, another, keys) == ""
    (tmp_path / "old.parquet").write_text("a cache of an older version")
    assert unused(tmp_path, another, keys) == ""


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file", header())
    with pytest.raises(InputError, match=r"reference cache .* cannot be written: Not a directory; free some space"):
        cache.add(*some(1))


@pytest.mark.parametrize("name", ["flock", "unlink"])
def test_a_folder_that_cannot_be_locked_or_swept_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some network file systems know no locks."""
    cache = Cache(tmp_path, header())
    cache.folder.mkdir()
    (cache.folder / ".part-000001.parquet.1-2.tmp").write_bytes(b"")

    def refuse(*given: object, **more: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(reference_cache.fcntl if name == "flock" else os, name, refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match=r"reference cache .* cannot be written: No locks available; free some space"):
        cache.add(*some(1))
    assert len(os.listdir("/proc/self/fd")) == before
    assert parts_in(cache.folder) == []
