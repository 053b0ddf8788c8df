"""Rows to clean pairs: import, check, remove duplicates and leaks, split; every row that is not kept has a reason."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from druthers import storage
from druthers.blocks import BlockTokenizer
from druthers.config import DataSettings, Settings
from druthers.curate.importers import Form, Imported, RowFault, check, detect, read_pair
from druthers.curate.ledger import Ledger, Shelf
from druthers.curate.ranking import pairs_from_ranking
from druthers.curate.split import WHOLE, draw, threshold
from druthers.records import InputError, Pair, assistant, user
from druthers.storage import Line, Source
from druthers.tokens import Refused, TokenizedPair, Tokenizer, tokenize

__all__ = ["CurateSummary", "curate", "pairs_from_ranking"]

Progress = Callable[[int, int], None]
LOOKS = 100
EVERY = 64
AT_ONCE = 512
"""Rows that are read, and if one of them is asked for tokenized, at a time."""


@dataclass(frozen=True)
class CurateSummary:
    """What went in and what came out; written as `summary.json`.

    rows = train + heldout + all rejected + beyond_limit. Token counts are those of the kept pairs, responses after the
    cut to `data.max_response`; `longer_chosen` is the share of kept pairs whose chosen response has more tokens.
    """

    source: str
    source_sha256: str | None
    heldout_source: str | None
    format: Form
    rows: int
    kept: int
    train: int
    heldout: int
    beyond_limit: int
    rejected: dict[str, int]
    prompts: dict[str, int]
    tokens: dict[str, float]
    cut: dict[str, int]
    longer_chosen: float
    margin: dict[str, float]
    ignored_columns: dict[str, int]
    joined_turns: int


def curate(settings: Settings, *, out: Path, tokenizer: Tokenizer, progress: Progress | None = None) -> CurateSummary:
    """The pairs of `settings.data` as `train.jsonl`, `heldout.jsonl`, `rejected.jsonl` and `summary.json` in `out`.

    The same input and settings give the same bytes. `progress` is called with (rows done, rows in all or 0 if unknown).
    Raises InputError for a bad file, for the first bad row unless `data.bad_rows` is "drop", and when nothing is left
    to train on or to hold out; then none of the files appears.
    """
    data = settings.data
    found = storage.locate(data.pairs)
    source = Source(found.train, data.heldout or found.heldout)
    _probe(tokenizer)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(storage.replacing(out / f"{name}.jsonl"))
            for name in ("rejected", "heldout", "train")
        }
        ledger = Ledger(files["rejected"], stop=data.bad_rows == "stop")
        held, main = (Shelf(cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=out)))) for _ in range(2))
        tell = _teller(source, ledger, progress)
        _fill(held, main, source, data, ledger, tokenizer=tokenizer, seed=settings.seed, tell=tell)
        bound = _bound(main, source, data, ledger)
        sides = _deal(held, main, files, bound=bound, limit=data.limit, ledger=ledger)
        _check_filled(sides, source, ledger)
        summary = _summarize(sides, held, main, source=source, given=data, ledger=ledger)
    storage.write_json(out / "summary.json", asdict(summary))
    return summary


def fingerprint(data: DataSettings) -> str | None:
    """One SHA-256 over the files the pairs come from, or None where they come from a URL; InputError for none."""
    found = storage.locate(data.pairs)
    paths = [path for path in (found.train, data.heldout or found.heldout) if path]
    if any("://" in path for path in paths):
        return None
    return hashlib.sha256(" ".join(map(storage.sha256, paths)).encode()).hexdigest()


def _fill(
    held: Shelf,
    main: Shelf,
    source: Source,
    data: DataSettings,
    ledger: Ledger,
    *,
    tokenizer: Tokenizer,
    seed: int,
    tell: Callable[[], None],
) -> None:
    """Read the held-out part (if there is one of its own), then the rest, onto their shelves."""
    many = BlockTokenizer(tokenizer, max_prompt=data.max_prompt, max_response=data.max_response)

    def shelve(line: Line, pair: Pair, fit: Fit, shelf: Shelf, number: int) -> bool:
        return _shelve(line, pair, shelf, ledger, number=number, fit=fit)

    if source.heldout:
        for line, pair, fit in _pairs(source.heldout, ledger, tell, data=data, tokenizer=many):
            shelve(line, pair, fit, held, draw(pair.prompt, seed=seed))
    leaks = frozenset(held.draws)
    bound = 0 if source.heldout else int(data.heldout_share * WHOLE)
    trained = 0
    for line, pair, fit in _pairs(source.train, ledger, tell, data=data, tokenizer=many):
        number = draw(pair.prompt, seed=seed)
        if number in leaks:
            ledger.refuse(line, RowFault("leak", "the prompt is also among the held-out ones"))
        elif number >= bound and pair.margin < data.least_margin:
            why = f"the margin {pair.margin:g} is under data.least_margin = {data.least_margin:g}"
            ledger.refuse(line, RowFault("small_margin", why))
        elif number >= bound and data.limit is not None and trained >= data.limit:
            ledger.beyond_limit += 1
        elif shelve(line, pair, fit, main, number):
            trained += number >= bound


def _pairs(
    path: str,
    ledger: Ledger,
    tell: Callable[[], None],
    *,
    data: DataSettings,
    tokenizer: BlockTokenizer,
) -> Iterator[tuple[Line, Pair, Fit]]:
    """The rows of a path that are pairs, and how to learn whether one fits the model; the others are booked."""
    with contextlib.closing(storage.lines(path)) as lines:
        first = list(itertools.islice(lines, LOOKS if data.format == "auto" else 0))
        ledger.form = _form(first, data) if data.format == "auto" else data.format
        check(data.columns, ledger.form)
        for run in _runs(itertools.chain(first, lines)):
            imported = [_import(line, ledger.form, data) for line in run]
            fits = Fits([found.pair for found in imported if isinstance(found, Imported)], tokenizer)
            places = itertools.count()
            for line, found in zip(run, imported, strict=True):
                ledger.rows += 1
                tell()
                if isinstance(found, RowFault):
                    ledger.refuse(line, found)
                    continue
                ledger.ignored.update(found.ignored)
                ledger.joined += found.joined
                yield line, found.pair, functools.partial(fits.of, next(places))


def _runs(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines some at a time; those before a fault of the whole file come before the fault."""
    run: list[Line] = []
    try:
        for line in lines:
            run.append(line)
            if len(run) == AT_ONCE:
                yield run
                run = []
    except InputError:
        yield run
        raise
    yield run


Fit = Callable[[], TokenizedPair | Refused]
"""The tokens of a pair, or why it does not fit the model."""


class Fits:
    """The tokens of some pairs, all made when the first are asked for: rows beyond a limit are never asked about."""

    def __init__(self, pairs: list[Pair], tokenizer: BlockTokenizer) -> None:
        self.pairs, self.tokenizer = pairs, tokenizer

    def of(self, place: int) -> TokenizedPair | Refused:
        """Those of one pair."""
        return self.found[place]

    @functools.cached_property
    def found(self) -> list[TokenizedPair | Refused]:
        """Those of all."""
        block, refused = self.tokenizer.sort(self.pairs)
        good = map(block.pair, itertools.count())
        return [refused[i] if i in refused else next(good) for i in range(len(self.pairs))]


def _form(first: Iterable[Line], data: DataSettings) -> Form:
    """The form of the first rows."""
    return detect([line.row for line in first if not line.fault], columns=data.columns)


def _import(line: Line, form: Form, data: DataSettings) -> Imported | RowFault:
    try:
        if line.fault:
            return RowFault("malformed", line.fault)
        return read_pair(line.row, form, columns=data.columns, cells=line.cells)
    except RowFault as fault:
        return fault


def _shelve(line: Line, pair: Pair, shelf: Shelf, ledger: Ledger, *, number: int, fit: Fit) -> bool:
    """Keep a pair that is new and fits the model; whether it was kept."""
    try:
        if bytes.fromhex(pair.id) in shelf.ids:
            raise RowFault("duplicate", "the same prompt and responses stand in an earlier row")
        tokens = fit()
        if isinstance(tokens, Refused):
            raise RowFault(tokens.reason, str(tokens))
        shelf.add(pair, tokens, number)
    except RowFault as fault:
        ledger.refuse(line, fault)
        return False
    return True


def _probe(tokenizer: Tokenizer) -> None:
    """What is wrong with the tokenizer itself is said before any row is read, and is nobody's row's fault."""
    pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    tokenize(pair, tokenizer, max_prompt=1 << 20, max_response=1 << 20)


def _bound(main: Shelf, source: Source, data: DataSettings, ledger: Ledger) -> int:
    """The bound below which a prompt is held out.

    Where all training pairs were set aside for their margin, a held-out prompt does not take their place.
    """
    if source.heldout:
        return 0
    bound = threshold(main.draws, share=data.heldout_share, name=_name(source.train, ledger))
    return max(bound, int(data.heldout_share * WHOLE)) if ledger.reasons["small_margin"] else bound


def _deal(
    held: Shelf, main: Shelf, files: dict[str, BinaryIO], *, bound: int, limit: int | None, ledger: Ledger
) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Copy the shelves to the files of the two sides; per side, which pairs of held and then main it got."""
    files["heldout"].writelines(held.lines())
    numbers = np.array(main.draws, dtype=np.uint64)
    heldout = numbers < np.uint64(bound)
    train = ~heldout & (np.cumsum(~heldout) <= (len(numbers) if limit is None else limit))
    for line, is_heldout, is_train in zip(main.lines(), heldout, train, strict=True):
        if is_heldout or is_train:
            files["heldout" if is_heldout else "train"].write(line)
    ledger.beyond_limit += int((~heldout & ~train).sum())
    return {
        "train": np.concatenate([np.zeros(len(held), dtype=bool), train]),
        "heldout": np.concatenate([np.ones(len(held), dtype=bool), heldout]),
    }


REMEDIES = {
    "small_margin": "lower data.least_margin (0 keeps every pair), or grade the pairs",
    "leak": "name held-out pairs of other prompts in data.heldout, or leave it out and a share is held out",
    "prompt_too_long": "raise data.max_prompt",
}
"""What to do where nothing is left, by the reason most rows were refused for."""


def _check_filled(sides: dict[str, np.ndarray[Any, np.dtype[np.bool_]]], source: Source, ledger: Ledger) -> None:
    for side, path in (("train", source.train), ("heldout", source.heldout or source.train)):
        if not sides[side].any():
            most = max(ledger.reasons, key=ledger.reasons.__getitem__, default="")
            remedy = REMEDIES.get(most, "give more rows")
            raise InputError(f"{_name(path, ledger)}: no pair is left for {side}; {remedy}")


def _name(path: str, ledger: Ledger) -> str:
    """The source, with what was refused, for a message that too little is left."""
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(ledger.reasons.items()))
    return storage.shown(path) + (f" (refused: {refused}; the first: {ledger.example})" if refused else "")


def _summarize(
    sides: dict[str, np.ndarray[Any, np.dtype[np.bool_]]],
    held: Shelf,
    main: Shelf,
    *,
    source: Source,
    given: DataSettings,
    ledger: Ledger,
) -> CurateSummary:
    counts = {side: int(mask.sum()) for side, mask in sides.items()}
    refused = sum(ledger.reasons.values())
    assert ledger.rows == sum(counts.values()) + refused + ledger.beyond_limit, "a row was lost"
    draws = np.array([*held.draws, *main.draws], dtype=np.uint64)
    table = np.concatenate([held.table(), main.table()])[sides["train"] | sides["heldout"]]
    lengths = {name: table[:, i] for i, name in enumerate(("prompt", "chosen", "rejected"))}
    return CurateSummary(
        source=storage.shown(given.pairs),
        source_sha256=fingerprint(given),
        heldout_source=storage.shown(given.heldout or given.pairs) if source.heldout else None,
        format=ledger.form,
        rows=ledger.rows,
        kept=len(table),
        train=counts["train"],
        heldout=counts["heldout"],
        beyond_limit=ledger.beyond_limit,
        rejected=dict(sorted(ledger.reasons.items())),
        prompts={side: len(np.unique(draws[mask])) for side, mask in sides.items()},
        tokens={f"{name}_mean": round(float(of.mean()), 2) for name, of in lengths.items()}
        | {f"{name}_max": int(of.max()) for name, of in lengths.items()},
        cut={"chosen": int(table[:, 3].sum()), "rejected": int(table[:, 4].sum())},
        longer_chosen=round(float((lengths["chosen"] > lengths["rejected"]).mean()), 4),
        margin={"mean": round(float(table[:, 5].mean()), 4), "max": round(float(table[:, 5].max()), 4)},
        ignored_columns=dict(sorted(ledger.ignored.items())),
        joined_turns=ledger.joined,
    )


def _teller(source: Source, ledger: Ledger, progress: Progress | None) -> Callable[[], None]:
    """A call for every row that passes on every 64th."""
    if progress is None:
        return lambda: None
    total = sum(storage.count(path) for path in (source.train, source.heldout) if path)

    def tell() -> None:
        if ledger.rows % EVERY == 0 or ledger.rows == total:
            progress(ledger.rows, total)

    return tell
