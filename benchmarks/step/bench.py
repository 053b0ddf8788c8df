"""druthers, TRL and a plain loop side by side: `make bench`, or `bench.py --help` with an environment for the peers.

Every measurement is a process of its own and a file under results/; what stands there is not run again unless its code,
settings or pairs have changed or it cannot be read, so a run that was stopped continues. Within a block the contenders
go forwards and backwards (A-B-B-A). The driver needs the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import table
from cell import RATE, RUNGS, SPAWNED, Spec, read_json, write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".bench"
OURS = {"PYTHONPATH": str(ROOT / "src")}
"""For what runs druthers: the code beside this file, whatever is installed."""
DOCS = ROOT / "docs" / "benchmarks.md"
PARTS = ("compare", "flops", "ladder", "scaling")
GLIBC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2147483648:"
    "glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
)
"""All of malloc in huge pages and nothing given back: faster for some, and more memory."""


@dataclass(frozen=True)
class Size:
    """How much of a shape is run: pairs a step, timed steps (of the slow contenders too), and the trials for TRL.

    Plain attention keeps the scores of every layer, which grow with the square of the length.
    """

    pairs: int = 16
    steps: int = 1
    slow_steps: int = 0
    trial_pairs: int = 8
    micro_batches: tuple[int, ...] = (1, 2, 4)
    attentions: tuple[str, ...] = ("sdpa", "eager")


SIZES = {
    "hh": Size(steps=4, slow_steps=1),
    "uf": Size(trial_pairs=4),
    "tldr": Size(trial_pairs=4),
    "rag": Size(pairs=4, trial_pairs=2, micro_batches=(1, 2), attentions=("sdpa",)),
}
QUICK = Size(pairs=4, steps=2, slow_steps=1, trial_pairs=2, micro_batches=(1, 2))
COUNTS = {"hh": 64, "uf": 16, "tldr": 16, "rag": 4}
"""Pairs in the id files."""
LENGTHS = (128, 256, 512, 1024, 2048)
BUDGETS = (512, 1024, 2048, 4096, 8192)
STEP_SIZES = (4, 16, 64)


@dataclass(frozen=True)
class Bench:
    """What stays the same in all cells."""

    results: Path
    peers: str
    model: str
    threads: int
    hh: Path | None
    quick: bool

    def spec(self, contender: str, shape: str, mode: str, **how: Any) -> Spec:
        """A cell of this machine and model."""
        return Spec(
            contender=contender,
            mode=mode,
            shape=shape,
            model=self.model,
            pairs_file=str(self.ids(shape)),
            threads=self.threads,
            **how,
        )

    def ids(self, shape: str) -> Path:
        """The id file of a shape, written when it is not there.

        Its folder is named by what it is made from, the file by its content.
        """
        shape = "fixed-48" if self.quick and shape in SIZES else shape
        count = 8 if self.quick else COUNTS.get(shape, 16)
        sources = [HERE / "ids.py", HERE / "cell.py", *sorted(Path(self.model).glob("*.json"))]
        told, made = ["--count", str(count)], ""
        if shape == "hh" and self.hh is not None:
            told, made, sources = [*told, "--hh", str(self.hh)], own_code(), [*sources, self.hh]
        key = hashlib.sha256(f"{digest(sources)} {made}".encode()).hexdigest()[:16]
        folder = KEPT / "ids" / f"{shape}-{count}-{key}"
        if not (found := list(folder.glob("*.json"))):
            command = [sys.executable, str(HERE / "ids.py"), shape, str(folder), "--model", self.model, *told]
            subprocess.run(command, check=True, env={**os.environ, **OURS})
            found = list(folder.glob("*.json"))
        return found[0]

    def cell(self, name: str, spec: Spec, *, may_fail: bool = False) -> dict[str, Any]:
        """The result of a contender's cell."""
        file = KEPT / "specs" / f"{name}.json"
        write_json(file, asdict(spec))
        ours = spec.contender == "druthers"
        script = HERE / f"run_{spec.contender}.py"
        env = {"THP_MEM_ALLOC_ENABLE": "1"} | ({"GLIBC_TUNABLES": GLIBC} if spec.memory == "malloc" else {})
        told = {**asdict(spec), "model": Path(spec.model).name, "pairs_file": digest([Path(spec.pairs_file)])}
        return self.job(
            name,
            [sys.executable if ours else self.peers, str(script), str(file)],
            env=OURS if ours else env,
            key=f"{json.dumps(told)} {code(script)} {own_code() if ours else digest([HERE / 'requirements.txt'])}",
            may_fail=may_fail,
        )

    def job(
        self, name: str, command: list[str], *, env: dict[str, str], key: str, may_fail: bool = False
    ) -> dict[str, Any]:
        """Run a command whose last argument is the file it writes, unless its result is there."""
        path, stamp = self.results / f"{name}.json", hashlib.sha256(key.encode()).hexdigest()[:16]
        there = read_json(path) if path.is_file() else {}
        if there is None:
            print(f"{path} cannot be read; it is measured again", flush=True)
        elif there.get("key") == stamp:
            return there
        log, out = KEPT / "logs" / f"{name}.log", KEPT / "out" / f"{name}.json"
        for file in (log, out):
            file.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        commit, since = machine.commit(), time.time()
        others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("w", encoding="utf-8") as screen:
            done = subprocess.run(
                [*command, str(out)],
                stdout=screen,
                stderr=subprocess.STDOUT,
                env={**others, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", SPAWNED: f"{since}", **env},
                cwd=HERE,
            )
        failed = done.returncode != 0 or not out.is_file()
        if failed and not may_fail:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
            sys.exit(f"{tail}\n{name} ended with code {done.returncode}; its log is {log}")
        result = {"failed": done.returncode} if failed else json.loads(out.read_text(encoding="utf-8"))
        result |= {"key": stamp, "took": round(time.time() - since, 1), "commit": commit}
        write_json(path, result)
        print(f"{time.strftime('%H:%M:%S')}  {name}  {table.brief(result)}  ({result['took']:.0f} s)", flush=True)
        return result


def digest(files: Iterable[Path]) -> str:
    """Hash of the contents of some files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def code(script: Path) -> str:
    """Hash of a script and of what it shares with the driver."""
    return digest([script, HERE / "cell.py"])


def own_code() -> str:
    """Hash of druthers itself."""
    return digest(sorted((ROOT / "src" / "druthers").rglob("*.py")))


def tuned(bench: Bench, shape: str, mode: str, size: Size) -> Spec:
    """TRL's fastest setting here: of the micro-batches, then of the attentions, then of the ways to hold memory."""
    start = bench.spec("trl", shape, mode, steps=1, pairs_per_step=size.trial_pairs)

    def fastest(specs: list[Spec]) -> Spec:
        found = {}
        for spec in specs:
            name = f"{shape}-{mode}/trial-{spec.micro_batch}-{spec.attention}-{spec.memory.replace(' ', '-')}"
            result = bench.cell(name, spec, may_fail=True)
            if "failed" not in result:
                found[spec] = sum(result["seconds"])
        if not found:
            sys.exit(f"TRL ran in none of its settings on {shape}; the logs are under {KEPT / 'logs'}")
        return min(found, key=lambda spec: found[spec])

    best = fastest([replace(start, micro_batch=micro) for micro in size.micro_batches])
    best = fastest([replace(best, attention=attention) for attention in size.attentions])
    best = fastest([best, replace(best, memory="malloc")])
    return replace(best, steps=size.steps, pairs_per_step=size.pairs)


def compare(bench: Bench, shape: str, mode: str) -> None:
    """A block: the trials, then all contenders forwards and backwards."""
    size = QUICK if bench.quick else SIZES[shape]
    peer = tuned(bench, shape, mode, size)
    block = {
        "druthers": bench.spec("druthers", shape, mode, steps=size.steps, pairs_per_step=size.pairs),
        "trl-tuned": peer,
    }
    if size.slow_steps:
        slow = replace(peer, steps=size.slow_steps)
        block["trl-default"] = replace(slow, level="default", attention="sdpa", memory="huge pages")
        block["plain"] = replace(slow, contender="plain")
    for turn, names in enumerate((list(block), list(reversed(block)))):
        for name in names:
            bench.cell(f"{shape}-{mode}/{name}-{turn}", block[name])


def flops(bench: Bench, mode: str) -> None:
    """The box's rate, and the operations of a step, counted on one thread with the micro-batches of two."""
    out = [sys.executable, str(HERE / "matmul.py"), "--model", bench.model, "--threads", str(bench.threads)]
    out += ["--seconds", "0.05"] if bench.quick else []
    bench.job("matmul", out, env=OURS | {"THP_MEM_ALLOC_ENABLE": "1"}, key=f"{code(HERE / 'matmul.py')} {out[3:]}")
    size = QUICK if bench.quick else SIZES["hh"]
    steps = min(2, size.steps)
    spec = bench.spec("druthers", "hh", mode, steps=steps, pairs_per_step=size.pairs, count_flops=True)
    bench.cell(f"hh-{mode}/flops", replace(spec, threads=1, token_budget=spec.token_budget // 2))


def ladder(bench: Bench) -> None:
    """Every rung forwards and backwards (forwards alone when quick), and the equality of all."""
    ids = bench.ids("hh")
    same = ["--model", bench.model, "--pairs-file", str(ids), "--threads", str(bench.threads)]
    script = [sys.executable, str(HERE / "ladder.py")]
    key = f"{code(HERE / 'ladder.py')} {own_code()} {digest([ids])} {Path(bench.model).name} {bench.threads}"
    steps = ["--steps", "1" if bench.quick else "2", "--pairs-per-step", "2" if bench.quick else "16"]
    for turn, rungs in enumerate((RUNGS,) if bench.quick else (RUNGS, RUNGS[::-1])):
        for rung in rungs:
            name = f"ladder/{RUNGS.index(rung)}-{rung.replace(' ', '-')}-{turn}"
            bench.job(name, [*script, "time", *same, *steps, rung], env=OURS, key=f"{key} {rung} {steps}")
    pairs = ["--pairs", "2" if bench.quick else "8"]
    bench.job("ladder/equal", [*script, "equal", *same, *pairs], env=OURS, key=f"{key} {pairs}")


def scaling(bench: Bench) -> None:
    """druthers alone as pairs get longer, as the budget of tokens grows, and as a step has more pairs."""

    def one(name: str, shape: str, *, pairs: int, **how: Any) -> None:
        spec = bench.spec("druthers", shape, "full", steps=1, pairs_per_step=4 if bench.quick else pairs, **how)
        bench.cell(f"scaling/{name}", spec)

    for length in LENGTHS[:1] if bench.quick else LENGTHS:
        one(f"length-{length}", f"fixed-{length}", pairs=16)
    for budget in BUDGETS[:1] if bench.quick else BUDGETS:
        one(f"budget-{budget}", "hh", pairs=16, token_budget=budget)
    for pairs in STEP_SIZES[:1] if bench.quick else STEP_SIZES:
        one(f"pairs-{pairs}", "hh", pairs=pairs)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SIZES), help="shapes, by comma: hh, uf, tldr, rag")
    parser.add_argument("--mode", default="full,lora", help="full, lora; the shapes other than hh are full alone")
    parser.add_argument("--what", default=",".join(PARTS), help="parts, by comma: compare, flops, ladder, scaling")
    parser.add_argument("--quick", action="store_true", help="tiny pairs, to see that all works; results aside")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, run nothing")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/benchmarks.md as well")
    parser.add_argument("--hh", type=Path, help="HH transcripts (train.jsonl.gz of harmless-base); else random ids")
    peers = str(KEPT / "peers" / "bin" / "python")
    parser.add_argument("--peers", type=os.path.abspath, default=peers, help="python of the peers")  # run elsewhere
    parser.add_argument("--model", help="model folder; the packaged default model when unset")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="physical cores when unset")
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


def default_model() -> str:
    """The folder of the packaged model."""
    ask = "from druthers import models; print(models.unpacked())"
    return subprocess.run(
        [sys.executable, "-c", ask], check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **OURS}
    ).stdout.strip()


def check(args: argparse.Namespace) -> None:
    """End the run with one sentence where an option names nothing."""
    for option, asked, known in (("what", args.what, PARTS), ("mode", args.mode, RATE), ("only", args.only, SIZES)):
        for name in asked.split(","):
            if name not in known:
                sys.exit(f"--{option} {name}: it may be {', '.join(known)}")
    if args.hh and not args.hh.is_file():
        sys.exit(f"--hh {args.hh}: there is no such file; name train.jsonl.gz of harmless-base")
    if args.model and not (Path(args.model) / "config.json").is_file():
        sys.exit(f"--model {args.model}: the folder has no config.json; name a Hugging Face model folder")
    if "compare" in args.what.split(",") and not args.table and not Path(args.peers).is_file():
        rest = ",".join(part for part in PARTS if part != "compare")
        sys.exit(f"--peers {args.peers}: there is no such python; use `make bench`, or leave them out by --what {rest}")


def blocks(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Shapes and modes to compare."""
    modes = args.mode.split(",")
    for shape in args.only.split(","):
        for mode in modes if shape == "hh" else ["full"] if "full" in modes else []:
            yield shape, mode


def measure(args: argparse.Namespace, results: Path) -> None:
    """Run what was asked for."""
    machine.check(results / "machine.json")
    model = str(Path(args.model).resolve()) if args.model else default_model()
    bench = Bench(results, args.peers, model, args.threads, args.hh and args.hh.resolve(), args.quick)
    what, chosen = args.what.split(","), list(blocks(args))
    if "compare" in what:
        for shape, mode in chosen:
            compare(bench, shape, mode)
    if "flops" in what:
        modes = [mode for shape, mode in chosen if shape == "hh"]
        for mode in modes[:1] if bench.quick else modes:
            flops(bench, mode)
    if "ladder" in what:
        ladder(bench)
    if "scaling" in what:
        scaling(bench)


def main() -> None:
    """Measure, and print the table."""
    args = options()
    check(args)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends what is being measured too
    results = args.results or (KEPT / "quick" if args.quick else HERE / "results")
    if not args.table:
        try:
            measure(args, results)
        except KeyboardInterrupt:
            sys.exit("stopped; what was measured is kept, and the same command continues")
    text = table.whole(results)
    print(text)
    if args.docs:
        table.insert(DOCS, text)


if __name__ == "__main__":
    main()
