"""Seconds of processor time that reading, and `druthers curate` as a whole, take for rows of each form.

    forms.py read FOLDER [--only votes.jsonl ...]
    forms.py write FOLDER [--rows 100000] [--only votes.jsonl ...]
    forms.py measure FOLDER [--against SRC] [--threads 2] [--only votes.jsonl ...] [--out result.json]

Texts are passages of the packaged set (pairs.py), seeded. Rows of votes, ratings and thumbs are of one annotator on one
or two responses, two to four to a prompt, within a thousand rows of one another; all other rows hold a prompt whole.
`read` tells the seconds of one process for 100,000 rows: to parse them, and to parse and import them. `measure` tells
those of the command and its processes, user and system; memory is the sum over them, looked at every half second. With
`--against`, another copy of the sources reads the same files in turn, and it is said whether both write the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import watched
from pairs import Row, Writer, line, words_of

from druthers import config, storage
from druthers.curate.importers import Importer
from druthers.curate.intake import first_of, form_in

PEOPLE = tuple(f"ann-{i:02}" for i in range(1, 13))
WINDOW = 1000
"""Rows within which those of one prompt stand."""
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def shuffled(rows: Iterator[list[Row]], writer: Writer) -> Iterator[Row]:
    """The rows of items that are judged in several rows, mixed with those of others."""
    waiting: list[Row] = []
    for several in rows:
        waiting += several
        while len(waiting) > WINDOW:
            at = writer.draw.randrange(len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            yield waiting.pop()
    yield from waiting


def pairs(writer: Writer) -> Iterator[Row]:
    """Finished pairs, as texts."""
    while True:
        yield {"prompt": writer.text(8, 80), "chosen": writer.text(20, 130), "rejected": writer.text(20, 130)}


def votes(writer: Writer) -> Iterator[Row]:
    """One vote a row."""
    yield from shuffled(_votes(writer), writer)


def _votes(writer: Writer) -> Iterator[list[Row]]:
    draw = writer.draw
    while True:
        prompt, two = writer.text(8, 80), [writer.text(20, 130), writer.text(20, 130)]
        several = []
        for judge in draw.sample(PEOPLE, draw.choice((2, 3))):
            turned, right = draw.random() < 0.5, draw.random() < 0.9
            a, b = two[::-1] if turned else two
            several.append(
                {
                    "prompt": prompt,
                    "response_a": a,
                    "response_b": b,
                    "annotator": judge,
                    "winner": "ab"[right == turned],
                }
            )
        yield several


def ratings(writer: Writer) -> Iterator[Row]:
    """One rated response a row, four to a prompt."""
    yield from shuffled(_ratings(writer), writer)


def _ratings(writer: Writer) -> Iterator[list[Row]]:
    while True:
        prompt, judge = writer.text(8, 80), writer.draw.choice(PEOPLE)
        yield [
            {
                "prompt": prompt,
                "response": writer.text(20, 130),
                "rating": writer.draw.randint(1, 9),
                "annotator": judge,
            }
            for _ in range(4)
        ]


def unpaired(writer: Writer) -> Iterator[Row]:
    """A thumb a row, four to a prompt."""
    for row in ratings(writer):
        yield {"prompt": row["prompt"], "completion": row["response"], "label": row["rating"] > 5}


def ranking(writer: Writer) -> Iterator[Row]:
    """Four responses and their ranks."""
    while True:
        ranks = [1, 2, 3, 4]
        writer.draw.shuffle(ranks)
        responses = [writer.text(20, 130) for _ in ranks]
        judge = writer.draw.choice(PEOPLE)
        yield {"prompt": writer.text(8, 80), "responses": responses, "ranks": ranks, "annotator": judge}


def ultrafeedback(writer: Writer) -> Iterator[Row]:
    """Four completions with a score and four ratings each."""
    draw = writer.draw
    while True:
        completions = [
            {
                "model": f"model-{i}",
                "response": writer.text(20, 130),
                "overall_score": float(draw.randint(1, 10)),
                "annotations": {a: {"Rating": str(draw.randint(1, 5)), "Rationale": "So."} for a in ASPECTS},
            }
            for i in range(4)
        ]
        yield {"source": "passages", "instruction": writer.text(8, 80), "completions": completions}


def argilla(writer: Writer) -> Iterator[Row]:
    """Records with two responses and the answers of two users."""
    draw = writer.draw
    while True:
        said = [
            {"value": draw.choice(("a", "b")), "user_id": judge, "status": "submitted"}
            for judge in draw.sample(PEOPLE, 2)
        ]
        fields = {"prompt": writer.text(8, 80), "response_a": writer.text(20, 130), "response_b": writer.text(20, 130)}
        yield {"id": str(draw.getrandbits(64)), "fields": fields, "responses": {"preference": said}}


def labelstudio(writer: Writer) -> Iterator[Row]:
    """Tasks with two answers and the annotations of two people."""
    draw, number = writer.draw, 0
    while True:
        number += 1
        data = {"prompt": writer.text(8, 80), "answer1": writer.text(20, 130), "answer2": writer.text(20, 130)}
        notes = [
            {
                "id": i,
                "completed_by": {"email": f"{judge}@example.org"},
                "result": [
                    {
                        "from_name": "pw",
                        "to_name": "answer1,answer2",
                        "type": "pairwise",
                        "value": {"selected": draw.choice(("left", "right"))},
                    }
                ],
            }
            for i, judge in enumerate(draw.sample(PEOPLE, 2))
        ]
        yield {"id": number, "data": data, "annotations": notes, "predictions": []}


MADE: dict[str, Callable[[Writer], Iterator[Row]]] = {
    "pairs.jsonl": pairs,
    "pairs.csv": pairs,
    "pairs.parquet": pairs,
    "pairs.json": pairs,
    "votes.jsonl": votes,
    "votes.csv": votes,
    "votes.parquet": votes,
    "ratings.jsonl": ratings,
    "unpaired.jsonl": unpaired,
    "ranking.jsonl": ranking,
    "ultrafeedback.jsonl": ultrafeedback,
    "ultrafeedback.parquet": ultrafeedback,
    "argilla.json": argilla,
    "labelstudio.json": labelstudio,
}


# ---------------------------------------------------------------- files


def write(path: Path, rows: Iterator[Row], count: int) -> None:
    """So many rows in the form the suffix says."""
    found = (next(rows) for _ in range(count))
    if path.suffix == ".parquet":
        write_parquet(path, found)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            first = next(found)
            table = csv.DictWriter(file, list(first))
            table.writeheader()
            table.writerow(first)
            table.writerows(found)
        elif path.suffix == ".json":
            marks = iter(["[\n"])
            file.writelines(next(marks, ",\n") + json.dumps(row, indent=1, ensure_ascii=False) for row in found)
            file.write("\n]\n")
        else:
            file.writelines(map(line, found))


def write_parquet(path: Path, rows: Iterator[Row]) -> None:
    """Groups of ten thousand rows."""
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    while lot := list(itertools.islice(rows, 10_000)):
        table = pa.Table.from_pylist(lot)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


# ---------------------------------------------------------------- measuring


def digest(run: Path) -> str:
    """One hash over all that a curation wrote but the names of places."""
    data = run / "data"
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.suffix in (".jsonl", ".json")]
    found = hashlib.sha256()
    for path in files:
        found.update(str(path.relative_to(data)).encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def measured(path: Path, *, src: Path | None, threads: int) -> Row:
    """One run of the command, the sources of `src` if that is given."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        command = [sys.executable, "-c", "from druthers.cli import main; main()", "curate", "--json"]
        command += ["--data", str(path), "--run", str(run), "data.bad_rows=drop", f"threads={threads}"]
        own = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = own if src is None else str(src)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            took, most, summary = watched(command)
        finally:
            os.environ["PYTHONPATH"] = own
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "rows": summary["rows"],
            "pairs": summary["kept"],
            "seconds": round(took, 1),
            "processor": round(processor, 1),
            "peak_gib": round(most, 2),
            "digest": digest(run),
        }


def read(path: Path) -> Row:
    """Seconds that one process takes for 100,000 rows, without and with what is made of them."""
    settings = config.load(extra={"data.pairs": str(path)})
    importer = Importer.of(str(path), form_in(first_of(str(path)), settings.data))
    since = time.process_time()
    count = sum(1 for _ in storage.lines(str(path)))
    parsed = time.process_time()
    for each in storage.lines(str(path)):
        importer.read(each)
    made = time.process_time()
    scale = 100_000 / count
    found = {"parse": (parsed - since) * scale, "import": (made - parsed) * scale}
    return {"rows": count, "megabytes": path.stat().st_size // 10**6} | {k: round(v, 2) for k, v in found.items()}


def main() -> None:
    """Read the command line, write or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=list(MADE), choices=list(MADE))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in args.only:
        path = args.folder / name
        if args.what == "write":
            write(path, MADE[name](Writer(words_of(None), 0)), args.rows)
            continue
        if args.what == "read":
            results[name] = read(path)
            print(json.dumps({name: results[name]}), flush=True)
            continue
        found = {}
        for label, src in (("before", args.against), ("now", None)) if args.against else (("now", None),):
            found[label] = measured(path, src=src, threads=args.threads)
        same = len({one.pop("digest") for one in found.values()}) == 1
        results[name] = found | ({"same": same} if args.against else {})
        print(json.dumps({name: results[name]}), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
