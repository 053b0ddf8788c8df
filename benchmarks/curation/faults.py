"""Ten kinds of fault: planted by one command, measured by another.

    faults.py plant FOLDER [--pairs 20000] [--faults 200] [--seed 0] [--text FILE.jsonl[.gz]]
    faults.py measure FOLDER [--out result.json] [KEY=VALUE]...

`plant` writes pairs.jsonl with nine kinds and heldout.jsonl (pairs.py), votes.jsonl, in which one of twelve annotators
swapped all of its labels, and two harder ones, in which it swapped one of two and one of five (votes.py). `measure`
runs `druthers curate` on each, and holds what it says against what was planted: faults that set a row aside by
data/rejected.jsonl, the others by the files that the findings of quality.json name. It ends with status 1 where recall
or precision of a kind is below 0.95, or the annotator is not named or another one is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pairs
import votes

BAR = 0.95
SIGNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "duplicate": (("duplicate",), ()),
    "near_duplicate": (("near_duplicate",), ()),
    "leak": (("leak",), ()),
    "contradiction": (("contradiction",), ()),
    "same_response": (("same_response",), ()),
    "empty": (("empty_response",), ("D13.empty",)),
    "tokens": (("control_tokens",), ("D13.template", "D13.control")),
    "personal": ((), ("D13.personal",)),
    "truncated": ((), ("D13.cut",)),
}
"""For every kind of fault the reasons for which rows are set aside, and the findings that name rows."""
VOTES = {"votes": (200, 200), "votes-half": (400, 200), "votes-fifth": (1000, 200)}
"""Files of votes: answers of the bad annotator, and how many of them are swapped."""


def curate(run: Path, data: Path, words: Iterable[str]) -> dict[str, Any]:
    """What the command prints."""
    command = [sys.executable, "-c", "from druthers.cli import main; main()", "curate", "--json"]
    command += ["--data", str(data), "--run", str(run), "data.bad_rows=drop", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(row) for row in file]


def numbers(rows: Iterable[dict[str, Any]], name: str) -> set[int]:
    """The lines of one source that some rows are about."""
    places = [row["where"].rpartition(":") for row in rows]
    return {int(number) for path, _, number in places if Path(path).name == name}


def findings(run: Path) -> list[dict[str, Any]]:
    """What quality.json says."""
    told: list[dict[str, Any]] = json.loads((run / "data" / "quality.json").read_text(encoding="utf-8"))["findings"]
    return told


def flagged(run: Path, name: str) -> dict[str, set[int]]:
    """By reason and by finding, the lines of the source `name` that are set aside or named."""
    data = run / "data"
    aside: dict[str, list[dict[str, Any]]] = {}
    for row in lines(data / "rejected.jsonl"):
        aside.setdefault(row["reason"], []).append(row)
    for one in findings(run):
        if "rows" in one and one["id"] != "D3.annotator":
            aside[one["id"]] = lines(data / one["rows"]["file"])
    return {sign: numbers(rows, name) for sign, rows in aside.items()}


def score(mine: set[int], meant: set[int]) -> dict[str, Any]:
    """Recall and precision of some lines."""
    right = len(mine & meant)
    return {
        "planted": len(meant),
        "flagged": len(mine),
        "recall": round(right / len(meant), 4) if meant else 1.0,
        "precision": round(right / len(mine), 4) if mine else 0.0,
    }


def found(run: Path, planted: dict[str, list[int]], *, name: str) -> dict[str, dict[str, Any]]:
    """Recall and precision of every kind of fault of the pairs."""
    seen = flagged(run, name)
    result = {}
    for fault, meant in planted.items():
        signs = SIGNS[fault][0] + SIGNS[fault][1]
        result[fault] = score(set().union(*(seen.get(sign, set()) for sign in signs)), set(meant))
    return result


def named(run: Path, planted: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Whether the annotator is named alone, and how many of the labels that are named were swapped."""
    told = [one for one in findings(run) if one["id"] == "D3.annotator"]
    of = {one["slice"]["annotator"]: one for one in told if one["status"] != "pass"}
    bad = of.get(planted["annotator"])
    mine = numbers(lines(run / "data" / bad["rows"]["file"]), name) if bad and "rows" in bad else set()
    return score(mine, set(planted["swapped"])) | {"named": sorted(of), "alone": list(of) == [planted["annotator"]]}


def plant(folder: Path, *, count: int, faults: int, seed: int, text: Path | None) -> None:
    """All files."""
    folder.mkdir(parents=True, exist_ok=True)
    words = pairs.words_of(text)
    writer = pairs.Writer(words, seed)
    pairs.write(folder / "pairs.jsonl", writer, count=count, faults=faults, heldout=folder / "heldout.jsonl")
    for name, (bad, swapped) in VOTES.items():
        scale = faults / 200
        votes.write(
            folder / f"{name}.jsonl",
            pairs.Writer(words, seed),
            items=count,
            each=[2, 3],
            right=0.97,
            bad=round(bad * scale),
            swapped=round(swapped * scale),
        )


def measure(folder: Path, words: list[str]) -> dict[str, Any]:
    """All figures; the last two files are harder than the bar asks for."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for path in [folder / "pairs.jsonl", *(folder / f"{name}.jsonl" for name in VOTES)]:
            run = Path(place) / path.stem
            held = [f"data.heldout={folder / 'heldout.jsonl'}"] if path.stem == "pairs" else []
            summary = curate(run, path, [*held, *words])
            planted = json.loads(path.with_suffix(".faults.json").read_text(encoding="utf-8"))
            if path.stem == "pairs":
                result |= {"rows": summary["rows"], "rejected": summary["rejected"]}
                result["found"] = found(run, planted, name=path.name)
            else:
                result["found"][path.stem] = named(run, planted, name=path.name)
    asked = [one for kind, one in result["found"].items() if kind not in ("votes-half", "votes-fifth")]
    held_B = [min(one["recall"], one["precision"]) >= BAR and one.get("alone", True) for one in asked]
    return result | {"bar": BAR, "verdict": "pass" if all(held_B) else "fail"}


def main() -> None:
    """Plant, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plant", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path)
    args, words = parser.parse_known_args()
    if args.what == "plant":
        plant(args.folder, count=args.pairs, faults=args.faults, seed=args.seed, text=args.text)
        return
    result = measure(args.folder, words)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(result["verdict"] != "pass")


if __name__ == "__main__":
    main()
