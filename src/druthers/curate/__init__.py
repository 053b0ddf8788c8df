"""Rows to clean pairs: import, grade, remove duplicates and leaks, split; what is not kept has a reason."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np

from druthers import storage
from druthers.blocks import BlockTokenizer
from druthers.config import DataSettings, Settings
from druthers.curate import clusters, filters
from druthers.curate.clusters import Clusters
from druthers.curate.columns import Columns
from druthers.curate.facts import Facts, Texts, texts_in
from druthers.curate.filters import Fates, Mask
from druthers.curate.gold import Gold
from druthers.curate.grading import findings, pairs_from_ranking, policy_of
from druthers.curate.inspection import Inspection, inspect, of_annotators
from druthers.curate.intake import Desk, Judged
from druthers.curate.ledger import Ledger, Refusal, Shelf
from druthers.curate.meaning import part
from druthers.curate.nearness import NEAR, Hashes, Places, among, once
from druthers.curate.pooling import annotators
from druthers.curate.quality import bias, leak
from druthers.curate.quality.onpolicy import age
from druthers.curate.remembered import Memory, binding, bound, held_before, memories, named_files, remember
from druthers.curate.repair import Back, put_back
from druthers.curate.split import threshold
from druthers.curate.weighing import Grades, by_ratings, once_a_prompt, regraded, ties
from druthers.records import InputError, Pair, assistant, user
from druthers.storage import Source, encode
from druthers.tokens import Tokenizer, tokenize

__all__ = ["CurateSummary", "curate", "pairs_from_ranking"]

Progress = Callable[[int, int], None]
KEPT_IN_MIND = 1 << 12
"""Pairs that are read again, to be compared, and not forgotten at once."""


@dataclass(frozen=True)
class CurateSummary:
    """What went in and what came out; written as `summary.json`.

    Of rows that are pairs, rows = train + heldout + all rejected + beyond_limit. Where rows hold opinions, `graded`
    says what became of those (`pooling.Tally`), and all pairs that were made, and rows and prompts that gave none, are
    train + heldout + all rejected + beyond_limit. Token counts are those of the kept pairs, responses after the cut to
    `data.max_response`; `longer_chosen` is the share of kept pairs whose chosen response has more tokens.
    `held_before` are the files whose prompts were kept out of training, and how many of those are here.
    """

    source: str
    source_sha256: str | None
    heldout_source: str | None
    format: str
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
    redacted: dict[str, int]
    graded: dict[str, Any] | None = None
    held_before: dict[str, Any] | None = None


def curate(
    settings: Settings,
    *,
    out: Path,
    tokenizer: Tokenizer,
    workers: int = 1,
    most: int | None = None,
    beside: Path | None = None,
    today: date | None = None,
    progress: Progress | None = None,
) -> CurateSummary:
    """The pairs of `settings.data` as `train.jsonl`, `heldout.jsonl`, `rejected.jsonl` and `summary.json` in `out`.

    The same input and settings give the same bytes, whatever the number of processes that read. Of each source of
    training pairs the first `most` rows are read. `beside` is the run directory, where runs beside it are to be asked
    which prompts they hold out; what they say is input too. By `today` the age of rows with a date is told. `progress`
    is called with (rows done, rows in all or 0 if unknown).
    Raises InputError for a bad file, for one that changes while it is read, for the first bad row unless
    `data.bad_rows` is "drop", and when nothing is left to train on or to hold out; then none of the files appears.
    """
    data = settings.data
    source = storage.locate(data.pairs, data.heldout)
    beside = None if beside is None else beside.absolute()
    _probe(tokenizer)
    with contextlib.ExitStack() as stack:
        check = stack.enter_context(storage.unchanged(_inputs(settings)))
        back = put_back(storage.several(data.keep))
        known = memories(data.held_before, beside=beside, seed=settings.seed)
        files = {
            name: stack.enter_context(storage.replacing(out / f"{name}.jsonl"))
            for name in ("rejected", "heldout", "train")
        }
        again, unpaired = (cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=out))) for _ in range(2))
        ledger = Ledger(files["rejected"], again, unpaired, stop=data.bad_rows == "stop")
        spool = stack.enter_context(storage.scratch(out))
        shelf = Shelf(cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=out))), Columns(spool))
        desk = Desk(
            settings,
            BlockTokenizer(tokenizer, max_prompt=data.max_prompt, max_response=data.max_response),
            ledger,
            shelf,
            spool=spool,
            workers=workers,
            most=most,
            tell=_teller(source, progress),
            looked_at=back.personal,
        )
        held, shared = desk.take(source)
        policy, told = policy_of(settings.grade), shelf.facts()
        if not len(told):
            _say_of_thumbs(desk, storage.listed(source.train), out / "collect.jsonl")
            _none_left("train", source.train, ledger)
        facts = by_ratings(told, shelf.ends, policy)
        name = functools.partial(_name, source.train, ledger)
        gold = desk.gold.numbers if desk.gold else None
        before = binding(known, all_=held is None)
        sides = decide(
            facts,
            shelf,
            data,
            held=held,
            form=shared,
            name=name,
            before=before,
            back=back,
            seed=settings.seed,
            gold=gold,
            even=ties(facts, policy),
        )
        _book(sides, facts, shelf, data, ledger)
        if desk.judged and settings.grade.weight == "prompt":
            facts = once_a_prompt(facts, (sides.train | sides.heldout) & shelf.judged())
        _deal(sides, shelf, files, grades_B3=facts.grades_B3, told_B3=told.grades_B3)
        _check_filled(sides, source, ledger)
        summary = _summarize(sides, facts, source=source, desk=desk)
        summary = replace(summary, held_before=bound(known, facts.asked_B, all_=held is None))
        check()  # behind the hash, which is then of what was read
        seen = _inspect(sides, facts, desk, known, beside=beside, today=today)
        _point(seen, facts, shelf, out / "findings")
        remember(out, facts.asked_B[sides.heldout])
        _copy(ledger.again, out / "collect.jsonl")
        _copy(ledger.unpaired, out / "unpaired.jsonl")
        if sides.clusters is not None and data.clusters is not None:
            clusters.save(sides.clusters, data.clusters)
    snapshot = {side: storage.sha256(out / f"{side}.jsonl") for side in ("train", "heldout")}
    storage.write_json(out / "quality.json", {"snapshot": snapshot} | seen.as_dict())
    storage.write_json(out / "summary.json", asdict(summary))
    return summary


def fingerprint(settings: Settings) -> str | None:
    """One SHA-256 over the files the pairs come from, or None where one of them is a URL; InputError for none."""
    paths = _inputs(settings)
    if any("://" in path for path in paths):
        return None
    return hashlib.sha256(" ".join(map(storage.sha256, paths)).encode()).hexdigest()


def _inputs(settings: Settings) -> list[str]:
    """The files, folders and URLs the pairs come from."""
    data, gold = settings.data, settings.grade.gold
    found = storage.locate(data.pairs, data.heldout)
    before = [str(path) for _, path in named_files(data.held_before)]
    golden = storage.files(gold) if gold else ()
    return [*found.train, *found.heldout, *storage.several(data.keep), *golden, *before]


def _copy(lines: BinaryIO, path: Path) -> None:
    """Lines as a file of the run; none where there are none."""
    if not lines.tell():
        path.unlink(missing_ok=True)
        return
    lines.seek(0)
    with storage.replacing(path) as file:
        shutil.copyfileobj(lines, file)


def _say_of_thumbs(desk: Desk, name: str, path: Path) -> None:
    """Raises InputError where all that is known are thumbs of which no pair can be made.

    The prompts to be answered again are written even then: they are what to go on with.
    """
    tallies = [each.tally for each in desk.judged]
    alone = functools.reduce(operator.add, (each.alone for each in tallies), Counter[str]())
    if not alone or alone["prompts"] < sum(each.items for each in tallies):
        return
    _copy(desk.ledger.again, path)
    again = f"sample second answers (`druthers sample {path} -o candidates.jsonl -n 2`) and have the two compared, or "
    raise InputError(
        f"{name}: holds thumbs on {alone['answers']:,} answers ({alone['up']:,} up, {alone['down']:,} down) to "
        f"{alone['prompts']:,} prompts, and no two answers to one prompt were judged differently, so no pair can be "
        f"made of them; {again if path.is_file() else ''}train on the single answers (KTO), which druthers does not "
        "do yet"
    )


def _inspect(
    sides: Sides, facts: Facts, desk: Desk, known: Sequence[Memory], *, beside: Path | None, today: date | None
) -> Inspection:
    """All findings: about the pairs, prompts that runs beside this one hold out, and those who judged for training."""
    seen = inspect(
        facts,
        train=sides.train,
        heldout=sides.heldout,
        reasons=desk.ledger.reasons,
        groups=desk.shelf.groups,
        seed=desk.settings.seed,
        good=desk.settings.grade.good,
    )
    pairs_E2 = leak.quoted(facts, train=sides.train, heldout=sides.heldout)
    seen = seen.with_lines("D1.response_leak", quoted_lines(pairs_E2, facts, desk.shelf))
    told = [leak.leaking(pairs_E2, heldout=sides.heldout, rows=seen.rows("D1.response_leak"))]
    seen = replace(seen, findings=[*told, *seen.findings])
    if beside is not None:
        told = held_before(facts.asked_B[sides.train], known, run=beside)
        seen = replace(seen, findings=[*told, *seen.findings])
    if today is not None and (aged := age(desk.ledger.days, today=today)) is not None:
        seen = replace(seen, findings=[*seen.findings, aged])
    for judged in desk.judged:
        if judged.side == "train":
            seen = _with_opinions(seen, judged, alone=bool(desk.shelf.judged().all()))
    return seen if desk.gold is None else _with_gold(seen, desk.gold)


def quoted_lines(pairs_E2: Places, facts: Facts, shelf: Shelf) -> list[bytes]:
    """Held-out pairs with the training pair that has a response of theirs."""
    return [
        encode(
            {
                "pair_id": facts.id_B[held].decode(),
                "where": shelf.where(facts, held),
                "why": f"a response of it is trained on in {shelf.where(facts, trained)}",
                "trained_id": facts.id_B[trained].decode(),
            }
        )
        for held, trained in pairs_E2.tolist()
    ]


def _with_gold(seen: Inspection, gold: Gold) -> Inspection:
    """The findings about answers on gold items, and each annotator's own."""
    told, lines = gold.findings()
    by = gold.by_annotator()
    people = [person | ({"gold": by[person["name"]]} if person["name"] in by else {}) for person in seen.annotators]
    return replace(seen, findings=seen.findings + told, lines={**seen.lines, **lines}, annotators=people)


def _with_opinions(seen: Inspection, judged: Judged, *, alone: bool) -> Inspection:
    """The findings about those who judged, beside the others.

    Where all pairs were made of opinions (`alone`), what decides is told of choices, which know the order of showing,
    and not of the pairs once more.
    """
    told = findings(judged.known)
    if (biases := judged.pool.seen.biases()) is not None:
        of_choices = bias.findings(biases)
        told += of_choices if alone else of_choices[:1]
        if alone:
            seen = replace(seen, findings=[one for one in seen.findings if not one.id.startswith("D4.")])
    told += judged.pool.seen.both_bad()
    told, lines = of_annotators(told, judged.tally.doubted)
    return replace(
        seen, findings=seen.findings + told, lines={**seen.lines, **lines}, annotators=annotators(judged.known)
    )


def _probe(tokenizer: Tokenizer) -> None:
    """What is wrong with the tokenizer itself is said before any row is read, and is nobody's row's fault."""
    pair = Pair(prompt=user("Name a fruit."), chosen=assistant("Plum."), rejected=assistant("Carrot."))
    tokenize(pair, tokenizer, max_prompt=1 << 20, max_response=1 << 20)


@dataclass(frozen=True)
class Sides:
    """What becomes of the pairs on a shelf: masks of the two sides, the fates of the others, and prompts by meaning."""

    train: Mask
    heldout: Mask
    fates: Fates
    clusters: Clusters | None = None


def decide(
    facts: Facts,
    shelf: Shelf,
    data: DataSettings,
    *,
    held: int | None,
    form: Hashes,
    name: Callable[[], str],
    before: Hashes,
    back: Back,
    seed: int = 0,
    gold: Hashes | None = None,
    even: Mapping[str, Places] = {},
) -> Sides:
    """Which pairs are trained on and which held out; with `held` the first so many are held out already.

    `form` is what many prompts have, `before` the prompts that were held out before; they and those like them are held
    out again, or, where the held-out pairs are given, left out of training. `back` are pairs that are put back, `gold`
    the numbers of comparisons that are neither, `even` pairs that the ratings of their sides leave out, by the reason.
    `name` gives the source as messages show it, with what was refused so far.
    """
    result = filters.fates(len(facts), np.isin(facts.id_B, back.id_K))
    if gold is not None:
        filters.leave_out_gold(result, facts, gold)
    for reason, at in even.items():
        result.leave_out(at, reason)
    place = np.cumsum(facts.size_B) - facts.size_B

    @functools.lru_cache(KEPT_IN_MIND)
    def look(i: int) -> Texts:
        return texts_in(shelf.line(int(place[i]), int(facts.size_B[i])))

    prompts = filters.alike(facts, look, least=NEAR, form=form)
    leader_P = filters.leaders_of(prompts)
    before_P = among(facts.asked_B[prompts.first_P], before)
    heldout = np.arange(len(facts)) < (held or 0)
    filters.leave_out_leaks(result, prompts, held_B=heldout)
    if held is not None:
        filters.leave_out_held_before(result, prompts, leader_P, before_P=before_P, held_B=heldout)
    again = filters.held_again(prompts, leader_P, before_P)[prompts.prompt_B]
    filters.leave_out_duplicates(result, facts)
    filters.leave_out_near(result, facts, look, least=NEAR, form=form)
    filters.leave_out_contradictions(result, facts)
    found = None
    if data.clusters is not None:
        given, path = None if held is None else heldout, Path(data.clusters)
        parted = part(
            facts,
            look,
            kept_B=result.kept_B,
            heldout_B=given,
            again_B=again,
            path=path,
            share=data.heldout_share,
            seed=seed,
            encoder=data.encoder,
        )
        heldout, found = parted.heldout_B, parted.found
        result.leave_out(np.flatnonzero(parted.between_B), "between_sides")
        filters.leave_out_leaks(result, prompts, held_B=heldout)
    elif held is None:
        number_B = filters.numbers_of(facts, prompts, leader_P)
        free, many = once(number_B[result.kept_B & ~again]).tolist(), len(once(number_B[result.kept_B & again]))
        bound = threshold(free, share=data.heldout_share, name=name(), held=many)
        heldout = (number_B < np.uint64(bound)) | again
        filters.leave_out_leaks(result, prompts, held_B=heldout)
    close = np.flatnonzero(~heldout & (facts.grades_B3[:, 1] < data.least_margin) & result.kept_B)
    result.leave_out(close, "small_margin")
    train = ~heldout & result.kept_B
    within = np.cumsum(train) <= (len(facts) if data.limit is None else data.limit)
    return Sides(train & within, heldout & result.kept_B, result, found)


def _book(sides: Sides, facts: Facts, shelf: Shelf, data: DataSettings, ledger: Ledger) -> None:
    """Write down the pairs that are left out because of others, and count those beyond the limit."""
    found = sides.fates
    ledger.beyond_limit = int((found.kept_B & ~sides.train & ~sides.heldout).sum())
    place = np.cumsum(facts.size_B) - facts.size_B
    for i in np.flatnonzero(~found.kept_B).tolist():
        reason, other = str(found.reason_B[i]), int(found.other_B[i])
        if reason == "small_margin":
            why = f"the margin {facts.grades_B3[i, 1]:g} is under data.least_margin = {data.least_margin:g}"
        else:
            why = filters.WHY[reason].format(other=shelf.where(facts, other) if other >= 0 else "")
        line = shelf.line(int(place[i]), int(facts.size_B[i]))
        ledger.refuse(Refusal(shelf.where(facts, i), reason, why, json.loads(line)))


def _deal(sides: Sides, shelf: Shelf, files: dict[str, BinaryIO], *, grades_B3: Grades, told_B3: Grades) -> None:
    """Copy the lines of the two sides to their files, those that are graded other than they were told to with that."""
    changed_B = (grades_B3 != told_B3).any(1)
    for i, (line, train, heldout) in enumerate(
        zip(shelf.lines(), sides.train.tolist(), sides.heldout.tolist(), strict=True)
    ):
        if train or heldout:
            if changed_B[i]:
                p, margin, weight = grades_B3[i].tolist()
                line = regraded(line, p=p, margin=margin, weight=weight)
            files["train" if train else "heldout"].write(line)


REMEDIES = {
    "unjudged": "have the responses judged, by people or with `druthers judge FILE --out PAIRS`",
    "one_response": "give a second response to each prompt, as `druthers sample` makes them, and have both judged",
    "no_opinion": "have the responses judged, by people or with `druthers judge FILE --out PAIRS`",
    "tie": "keep ties with grade.ties=soft, or collect responses that differ more",
    "below_gap": "lower grade.least_gap",
    "both_bad": "have the prompts answered again",
    "gate": "lower the gate in grade.gates",
    "small_margin": "lower data.least_margin (0 keeps every pair), or grade the pairs",
    "leak": "name held-out pairs of other prompts in data.heldout, or leave it out and a share is held out",
    "held_before": "give rows with other prompts, or leave data.held_before out",
    "prompt_too_long": "raise data.max_prompt",
}
"""What to do where nothing is left, by the reason most rows were refused for."""


def _point(seen: Inspection, facts: Facts, shelf: Shelf, folder: Path) -> None:
    """Write which pairs a finding is about; files of earlier findings go."""
    for left in folder.glob("*.jsonl"):
        if left.stem not in {*seen.about, *seen.lines}:
            left.unlink()
    for name, lines in seen.lines.items():
        with storage.replacing(folder / f"{name}.jsonl") as file:
            file.writelines(lines)
    for name, places in seen.about.items():
        with storage.replacing(folder / f"{name}.jsonl") as file:
            for i in places.tolist():
                file.write(encode({"pair_id": facts.id_B[i].decode(), "where": shelf.where(facts, i)}))


def _check_filled(sides: Sides, source: Source, ledger: Ledger) -> None:
    for side, paths in (("train", source.train), ("heldout", source.heldout or source.train)):
        if not getattr(sides, side).any():
            _none_left(side, paths, ledger)


def _none_left(side: str, paths: Sequence[str], ledger: Ledger) -> NoReturn:
    most = max(ledger.reasons, key=ledger.reasons.__getitem__, default="")
    remedy = REMEDIES.get(most, "give more rows")
    raise InputError(f"{_name(paths, ledger)}: no pair is left for {side}; {remedy}")


def _name(paths: Sequence[str], ledger: Ledger) -> str:
    """The sources, with what was refused, for a message that too little is left."""
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(ledger.reasons.items()))
    return storage.listed(paths) + (f" (refused: {refused}; the first: {ledger.example})" if refused else "")


def _summarize(sides: Sides, facts: Facts, *, source: Source, desk: Desk) -> CurateSummary:
    ledger, tallies, given = desk.ledger, [each.tally for each in desk.judged], desk.settings.data
    masks = {"train": sides.train, "heldout": sides.heldout}
    counts = {side: int(mask.sum()) for side, mask in masks.items()}
    refused = sum(ledger.reasons.values())
    pooled = sum(each.pool.rows for each in desk.judged)
    graded = functools.reduce(operator.add, tallies) if tallies else None
    whole = ledger.rows - pooled + (graded.pairs + graded.unmade if graded else 0)
    assert whole == sum(counts.values()) + refused + ledger.beyond_limit, "a row or a pair was lost"
    kept = sides.train | sides.heldout
    table, margin = facts.counts_B5[kept].astype(np.float64), facts.grades_B3[kept, 1]
    lengths = {name: table[:, i] for i, name in enumerate(("prompt", "chosen", "rejected"))}
    return CurateSummary(
        source=storage.listed(given.pairs),
        source_sha256=fingerprint(desk.settings),
        heldout_source=storage.listed(given.heldout or given.pairs) if source.heldout else None,
        format=", ".join(desk.forms),
        rows=ledger.rows,
        kept=len(table),
        train=counts["train"],
        heldout=counts["heldout"],
        beyond_limit=ledger.beyond_limit,
        rejected=dict(sorted(ledger.reasons.items())),
        prompts={side: len(np.unique(facts.prompt_B[mask])) for side, mask in masks.items()},
        tokens={f"{name}_mean": round(float(of.mean()), 2) for name, of in lengths.items()}
        | {f"{name}_max": int(of.max()) for name, of in lengths.items()},
        cut={"chosen": int(table[:, 3].sum()), "rejected": int(table[:, 4].sum())},
        longer_chosen=round(float((lengths["chosen"] > lengths["rejected"]).mean()), 4),
        margin={"mean": round(float(margin.mean()), 4), "max": round(float(margin.max()), 4)},
        ignored_columns=dict(sorted(ledger.ignored.items())),
        joined_turns=ledger.joined,
        redacted={"pairs": ledger.repaired, **dict(sorted(ledger.redacted.items()))} if ledger.repaired else {},
        graded=graded.as_dict() if graded else None,
    )


def _teller(source: Source, progress: Progress | None) -> Callable[[int], None]:
    """A call for some rows that were read."""
    if progress is None:
        return lambda rows: None
    counts = [storage.count(path) for path in (*source.train, *source.heldout)]
    total, done = sum(counts) if all(counts) else 0, 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    return tell
