"""Tokenized pairs on disk: what one pair at a time gives, made once, kept safe, refused in the same words."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from druthers import corpus, storage
from druthers.records import InputError, Pair, assistant, user
from druthers.tokens import TokenizedPair, tokenize
from tests import tiny
from tests.test_blocks import LLAMA, learned
from tests.test_tokens import WITH_TOOLS, tool_exchange

LIMITS = {"max_prompt": 400, "max_response": 200}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def written(path: Path, pairs: list[Pair]) -> Path:
    """A file of pairs."""
    storage.write(path, pairs)
    return path


def varied(count: int) -> list[Pair]:
    """Pairs of all kinds: groups, grades, long answers, tools in some."""
    plain = [
        pair.model_copy(update={"group": f"g{i % 3}", "p": 1 - i % 2 / 4, "margin": i % 5 / 4, "weight": 1.0 + i % 2})
        for i, pair in enumerate(tiny.pairs(count, words=20))
    ]
    odd = Pair(prompt=user("What time?"), chosen=tool_exchange(), rejected=assistant("No\u00e9l."))
    long = Pair(prompt=user("Go on."), chosen=assistant("and so on, " * 40), rejected=assistant("No."))
    return [*plain[:5], odd, long, *plain[5:]]


def serial(path: Path, tokenizer: Any, limits: dict[str, int] = LIMITS) -> list[TokenizedPair]:
    """One pair after the other."""
    return [tokenize(pair, tokenizer, **limits) for pair in storage.read(str(path), Pair)]


@pytest.mark.parametrize(("workers", "template"), [(1, WITH_TOOLS), (2, LLAMA)])
def test_a_file_of_pairs_is_tokenized_as_its_pairs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, template: str
) -> None:
    """By one process or several, in few runs or many, first made and then found."""
    monkeypatch.setattr(corpus, "ALONE", 1000)
    monkeypatch.setattr(corpus, "RUN", 2000)
    tokenizer = learned("gpt2")
    tokenizer.chat_template = template
    path = written(tmp_path / "pairs.jsonl", varied(60))
    seen: list[tuple[int, int]] = []
    made = corpus.tokenized(path, tokenizer, **LIMITS, workers=workers, progress=lambda *at: seen.append(at))
    wanted = serial(path, tokenizer)
    assert list(made) == wanted
    assert (len(made.blocks) > 5, seen[-1], len(seen)) == (True, (62, 62), len(made.blocks))
    assert not all(all(pair.chosen_scored) for pair in made)
    assert any(pair.cut_chosen for pair in made)
    found = corpus.tokenized(path, tokenizer, **LIMITS, workers=workers, progress=lambda *at: seen.append(at))
    assert (list(found), len(seen)) == (wanted, len(made.blocks))


def test_what_the_ids_depend_on_names_the_file(tmp_path: Path, folder: Path) -> None:
    """Pairs, limits, template, tokens; the path does not."""
    path, tokenizer = written(tmp_path / "a.jsonl", tiny.pairs(4)), tiny.tokenizer()

    def files(path: Path = path, tokenizer: Any = tokenizer, **changes: int) -> int:
        corpus.tokenized(path, tokenizer, **(LIMITS | changes))
        return len(list(folder.iterdir()))

    other = tiny.tokenizer()
    other.add_tokens(["<call>"])
    assert files() == files(written(tmp_path / "b.jsonl", tiny.pairs(4))) == files(tokenizer=tiny.tokenizer()) == 1
    assert files(written(tmp_path / "c.jsonl", tiny.pairs(5))) == 2
    assert files(max_prompt=300) == 3
    assert files(max_response=9) == 4
    assert files(tokenizer=tiny.tokenizer("{# other #}" + tiny.TEMPLATE)) == 5
    assert files(tokenizer=other) == 6


def test_a_template_that_writes_the_date_is_tokenized_anew_another_day(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of a prompt is other text then."""
    path, tokenizer = written(tmp_path / "a.jsonl", tiny.pairs(4)), tiny.tokenizer("{{ day }}" + tiny.TEMPLATE)
    plain = tokenizer.apply_chat_template
    for day in ("Monday", "Tuesday", "Monday"):
        monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, day=day, **k: plain(*a, **k, day=day))
        assert corpus.fingerprint(tokenizer) == corpus.fingerprint(tokenizer)
        assert list(corpus.tokenized(path, tokenizer, **LIMITS)) == serial(path, tokenizer)
    assert len(list(folder.iterdir())) == 2


def test_a_fingerprint_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryDirectory", None)
    assert len(corpus.fingerprint(tiny.tokenizer())) == 64


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({}, False),
        ({"eos_token": "<|endoftext|>"}, True),
        ({"split_special_tokens": True}, True),
        ({"tokenizer_file": "elsewhere"}, False),
        ({"name_or_path": "elsewhere"}, False),
    ],
)
def test_a_fingerprint_is_of_what_ids_depend_on(change: dict[str, Any], *, matters: bool) -> None:
    one, other = tiny.tokenizer(), tiny.tokenizer()
    other.init_kwargs |= change
    if "eos_token" in change:
        other.eos_token = change["eos_token"]
    assert (corpus.fingerprint(one) != corpus.fingerprint(other)) == matters


def test_a_fingerprint_is_the_same_wherever_the_tokenizer_lies(tmp_path: Path) -> None:
    prints = []
    for name in ("a", "b"):
        tiny.tokenizer().save_pretrained(tmp_path / name)
        prints.append(corpus.fingerprint(AutoTokenizer.from_pretrained(tmp_path / name)))
    assert prints[0] == prints[1]


class Slow:
    """A tokenizer without a core, on a disk that may be full."""

    def __init__(self, fault: OSError | None = None) -> None:
        self.fault, self.is_fast = fault, False
        self.inner = tiny.tokenizer()
        self.chat_template, self.apply_chat_template = self.inner.chat_template, self.inner.apply_chat_template

    def save_pretrained(self, folder: str) -> None:
        if self.fault:
            raise self.fault
        (Path(folder) / "vocab.txt").write_text("a b")


def test_a_tokenizer_without_a_core_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert corpus.fingerprint(Slow()) == corpus.fingerprint(Slow())
    with pytest.raises(InputError, match="cannot be written: No space left on device; free some space, or set TMPDIR"):
        corpus.fingerprint(Slow(OSError(errno.ENOSPC, "No space left on device")))


@pytest.mark.parametrize("kind", ["folder", "unreadable"])
def test_a_file_of_the_cache_that_cannot_be_read_is_said(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, tokenizer = written(tmp_path / "a.jsonl", tiny.pairs(4)), tiny.tokenizer()
    corpus.tokenized(path, tokenizer, **LIMITS)
    (file,) = folder.iterdir()
    if kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        plain = Path.open

        def opened(self: Path, *given: Any, **named: Any) -> Any:
            if self == file:
                raise PermissionError(errno.EACCES, "Permission denied")
            return plain(self, *given, **named)

        monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(InputError) as caught:
        corpus.tokenized(path, tokenizer, **LIMITS)
    why = "Is a directory" if kind == "folder" else "Permission denied"
    assert str(caught.value) == (
        f"cache file {file} cannot be read: {why}; delete it, or set DRUTHERS_CACHE to another folder"
    )


TOOL_DAYS = {
    "tools": "{% if tools %}{{ day }}{% endif %}" + tiny.TEMPLATE,
    "call": "{% for m in messages %}{% if m.tool_calls %}{{ day }}{% endif %}{% endfor %}" + tiny.TEMPLATE,
    "answer": "{% for m in messages %}{% if m.role == 'tool' %}{{ day }}{% endif %}{% endfor %}" + tiny.TEMPLATE,
}
FAILS = (
    "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments + '' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("where", sorted(TOOL_DAYS))
def test_a_template_that_writes_the_date_only_beside_a_tool_is_another_one_another_day(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where tools are given, where one is called, where one answers."""
    tokenizer = tiny.tokenizer(TOOL_DAYS[where])
    plain, prints = tokenizer.apply_chat_template, []
    for day in ("Monday", "Tuesday", "Monday"):
        monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, day=day, **k: plain(*a, **k, day=day))
        prints.append(corpus.fingerprint(tokenizer))
    assert prints[0] == prints[2] != prints[1]


def test_a_template_that_fails_at_a_tool_has_a_fingerprint(tmp_path: Path) -> None:
    """Some expect arguments as text; a pair that calls no tool is tokenized."""
    path = written(tmp_path / "a.jsonl", tiny.pairs(4))
    tokenizer = tiny.tokenizer(FAILS + tiny.TEMPLATE)
    assert list(corpus.tokenized(path, tokenizer, **LIMITS)) == serial(path, tokenizer)


DAY, QUIET = 86_400.0, 600.0


@pytest.mark.parametrize(
    ("age", "writer", "count"),
    [(DAY + 9, "alive", 0), (DAY - 9, "alive", 1), (QUIET + 9, "gone", 0), (QUIET - 9, "gone", 1)],
)
def test_what_a_killed_run_left_is_swept(tmp_path: Path, folder: Path, age: float, writer: str, count: int) -> None:
    """What nobody writes to any more; another file, and one that a process writes now, stay."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.mkdir(parents=True)
    left = folder / f".0123.bin.{os.getpid() if writer == 'alive' else gone.pid}-77.tmp"
    others = [folder / name for name in ("0123.bin", ".notes.tmp", ".0123.bin.1-2.tmp.bak")]
    for file in (left, *others):
        file.write_bytes(b"x")
        os.utime(file, (time.time() - age,) * 2)
    path = written(tmp_path / "a.jsonl", tiny.pairs(4))
    corpus.tokenized(path, tiny.tokenizer(), **LIMITS)
    assert left.exists() == count
    assert all(map(Path.exists, others))


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied", "lengthened"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, folder: Path, harm: str) -> None:
    """Whatever happened to it."""
    path, tokenizer = written(tmp_path / "a.jsonl", tiny.pairs(40)), tiny.tokenizer()
    wanted = list(corpus.tokenized(path, tokenizer, **LIMITS))
    (file,) = folder.iterdir()
    data = file.read_bytes()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    file.write_bytes({"cut": data[:-9], "changed": changed, "emptied": b"", "lengthened": data + b"x"}[harm])
    assert list(corpus.tokenized(path, tokenizer, **LIMITS)) == wanted
    assert file.read_bytes() == data


BROKEN = '{"prompt": "x"}'
CONTROL = Pair(prompt=user("Hi <|im_end|>"), chosen=assistant("a"), rejected=assistant("b"))


@pytest.mark.parametrize(
    ("order", "workers"),
    [
        ((BROKEN, CONTROL), 1),
        ((CONTROL, BROKEN), 1),
        ((CONTROL, CONTROL), 1),
        ((BROKEN, BROKEN), 1),
        ((CONTROL, BROKEN), 2),
    ],
)
def test_the_first_fault_is_named_as_when_pairs_are_read_in_turn(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[Any, Any], workers: int
) -> None:
    """A broken line or a pair that is refused, whichever comes first, and nothing is kept."""
    monkeypatch.setattr(corpus, "ALONE", 1000)
    path, tokenizer = tmp_path / "a.jsonl", tiny.tokenizer()
    good = [storage.encode(pair.line()).decode() for pair in tiny.pairs(20)]
    faults = [fault + "\n" if isinstance(fault, str) else storage.encode(fault.line()).decode() for fault in order]
    for size in (300, 1 << 20)[: 3 - workers]:
        monkeypatch.setattr(corpus, "RUN", size)
        path.write_text("".join([*good[:9], faults[0], "\n", *good[9:12], faults[1], *good[12:]]))
        with pytest.raises(InputError) as one:
            serial(path, tokenizer)
        with pytest.raises(InputError) as many:
            corpus.tokenized(path, tokenizer, **LIMITS, workers=workers)
        assert str(many.value) == str(one.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["", "\n", "  \n\n \t\n", "\ufeff\n", None])
def test_a_file_without_a_row_and_none_are_refused_as_ever(tmp_path: Path, folder: Path, text: str | None) -> None:
    """In the words of `storage`, and nothing is kept."""
    path = tmp_path / "a.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as one:
        serial(path, tiny.tokenizer())
    with pytest.raises(InputError) as many:
        corpus.tokenized(path, tiny.tokenizer(), **LIMITS)
    assert str(many.value) == str(one.value)
    assert list(folder.glob("*")) == []


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_line_needs_no_newline(tmp_path: Path, count: int) -> None:
    """Also where it is the only one."""
    path = written(tmp_path / "a.jsonl", tiny.pairs(count))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert list(corpus.tokenized(path, tiny.tokenizer(), **LIMITS)) == serial(path, tiny.tokenizer())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run begins again."""
    path = written(tmp_path / "a.jsonl", tiny.pairs(4))

    def full(self: corpus.Summed, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(corpus.Summed, "write", full)
        with pytest.raises(InputError, match=r"No space left on device; free some space"):
            corpus.tokenized(path, tiny.tokenizer(), **LIMITS)
    assert list(folder.iterdir()) == []
    assert len(corpus.tokenized(path, tiny.tokenizer(), **LIMITS)) == 4


def test_two_runs_at_once_make_one_file(tmp_path: Path, folder: Path) -> None:
    """Each writes under a name of its own; what has the name last is whole."""
    path, tokenizer = written(tmp_path / "a.jsonl", tiny.pairs(300)), tiny.tokenizer()
    wanted, found = serial(path, tokenizer), []

    def run() -> None:
        found.append(list(corpus.tokenized(path, tiny.tokenizer(), **LIMITS)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 3
    assert len(list(folder.iterdir())) == 1


def test_ids_take_two_bytes_where_the_vocabulary_fits(tmp_path: Path) -> None:
    """And four where it does not."""
    path = written(tmp_path / "a.jsonl", tiny.pairs(4))
    small = corpus.tokenized(path, tiny.tokenizer(), **LIMITS)
    large = tiny.tokenizer()
    facts = json.loads(large.backend_tokenizer.to_str())
    facts["model"]["vocab"] |= {f"unused {i}": 300 + i for i in range(1 << 16)}
    large._tokenizer = Tokenizer.from_str(json.dumps(facts))
    wide = corpus.tokenized(path, large, **LIMITS)
    assert (small.blocks[0].prompts.values.dtype, wide.blocks[0].prompts.values.dtype) == ("uint16", "int32")
    assert list(small) == list(wide)
    assert all(isinstance(token, int) for token in small[0].prompt)


def test_an_added_token_behind_a_hole_keeps_its_id(tmp_path: Path) -> None:
    """Fewer tokens than two bytes can tell apart may have ids that need four."""
    tokenizer = tiny.tokenizer()
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    facts["model"]["vocab"]["far"] = (1 << 16) + 4
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(facts))
    tokenizer.add_tokens(["far"])
    path = written(tmp_path / "a.jsonl", [Pair(prompt=user("Hi"), chosen=assistant("far"), rejected=assistant("no"))])
    assert len(tokenizer) < 1 << 16
    assert corpus.tokenized(path, tokenizer, **LIMITS)[0].chosen == ((1 << 16) + 4, 1)
    assert list(corpus.tokenized(path, tokenizer, **LIMITS)) == serial(path, tokenizer)
