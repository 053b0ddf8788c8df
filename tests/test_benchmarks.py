"""The driver, tables and counters of benchmarks/step; the measurements themselves are `make bench`."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from druthers import attention, storage
from druthers.batching import collate
from druthers.logprobs import pair_logps
from druthers.models import scorer_of
from druthers.tokens import TokenizedPair
from tests import tiny

STEP = Path(__file__).parents[1] / "benchmarks" / "step"
ENGINE = STEP.parent / "engine"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/step or benchmarks/engine, which are scripts beside one another."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # some of them set it
    monkeypatch.syspath_prepend(str(ENGINE))
    monkeypatch.syspath_prepend(str(STEP))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if is_script(module)]:
        del sys.modules[name]


def is_script(module: ModuleType) -> bool:
    """Whether a module came from one of the two folders."""
    return Path(getattr(module, "__file__", None) or ".").parent in (STEP, ENGINE)


@pytest.mark.parametrize("name", ["cell", "ids", "run_druthers", "table"])
def test_examples_run(step: Any, name: str) -> None:
    found = doctest.testmod(step(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_lengths_have_the_mean_of_their_shape(step: Any) -> None:
    ids = step("ids")
    found = ids.lengths_of(ids.synthetic("tldr", count=32, words=1000))
    assert found["prompt"] == pytest.approx(350, rel=0.02)
    assert found["chosen"] == pytest.approx(35, rel=0.03)
    assert ids.synthetic("tldr", count=4, words=1000) == ids.synthetic("tldr", count=4, words=1000)


def test_the_first_step_warms_up_with_the_longest_pairs(step: Any) -> None:
    cell = step("cell")
    pairs = [cell.Ids((1,) * n, (2,) * n, (3,) * n) for n in (20, 40, 30, 10, 50, 60, 70, 80)]
    warm, first, second = cell.steps_of(pairs, steps=2, size=4)
    assert [len(pair.prompt) for pair in first] == [40, 30, 20, 10]
    assert [len(pair.prompt) for pair in second] == [80, 70, 60, 50]
    assert [len(pair.prompt) for pair in warm] == [40, 8, 8, 8]
    with pytest.raises(ValueError, match="need 12 pairs"):
        cell.steps_of(pairs, steps=3, size=4)


def a_bench(step: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A driver whose files lie in a folder."""
    bench = step("bench")
    monkeypatch.setattr(bench, "KEPT", folder / "kept")
    return bench.Bench(folder / "results", sys.executable, "model", 1, None, quick=True)


def writer(text: str) -> list[str]:
    """A command that writes a JSON text to the file it is told."""
    return [sys.executable, "-c", f"import sys, pathlib as p; p.Path(sys.argv[1]).write_text('{text}')"]


def test_a_job_runs_once_and_again_when_its_key_changes(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = a_bench(step, tmp_path, monkeypatch)
    one = bench.job("a/b", writer('{"seconds": [1.0]}'), env={}, key="1")
    assert one["seconds"] == [1.0]
    assert bench.job("a/b", writer('{"seconds": [2.0]}'), env={}, key="1") == one
    assert bench.job("a/b", writer('{"seconds": [2.0]}'), env={}, key="2")["seconds"] == [2.0]


def test_a_job_that_fails_ends_the_run_or_is_noted(step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = a_bench(step, tmp_path, monkeypatch)
    broken = [sys.executable, "-c", "raise ValueError('no memory')"]
    with pytest.raises(SystemExit, match="no memory"):
        bench.job("a", broken, env={}, key="1")
    assert bench.job("a", broken, env={}, key="1", may_fail=True)["failed"] == 1
    assert step("table").read(tmp_path / "results", "a.json") == []


def test_an_unreadable_result_is_measured_again_with_a_sentence(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, path = a_bench(step, tmp_path, monkeypatch), tmp_path / "results" / "a.json"
    for broken in ('{"seconds": [', "[1]"):
        step("cell").write_json(path, {})
        path.write_text(broken, encoding="utf-8")
        assert step("table").read(tmp_path / "results", "*.json") == []
        assert "a.json cannot be read and is left out" in capsys.readouterr().err
        assert bench.job("a", writer('{"seconds": [2.0]}'), env={}, key="1")["seconds"] == [2.0]
        assert "a.json cannot be read; it is measured again" in capsys.readouterr().out


def test_every_result_names_the_commit_it_was_measured_at(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, machine = a_bench(step, tmp_path, monkeypatch), step("machine")
    machine.check(tmp_path / "results" / "machine.json")
    for name in ("old", "new"):
        monkeypatch.setattr(machine, "commit", lambda name=name: name)
        assert bench.job(name, writer('{"seconds": [1.0]}'), env={}, key="1")["commit"] == name
    assert "measured at commit new, old." in step("table").described(tmp_path / "results")


def test_id_files_are_named_by_what_they_hold(step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file of HH pairs, or another model of the same name, has ids of its own."""
    bench = a_bench(step, tmp_path, monkeypatch)
    found = []
    for words in (1000, 2000, 1000):
        step("cell").write_json(tmp_path / "model" / "config.json", {"vocab_size": words})
        found.append(dataclasses.replace(bench, model=str(tmp_path / "model")).ids("hh"))
    assert found[0] == found[2] != found[1]
    for path in found:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path.name == f"fixed-48-{content['sha256'][:12]}.json"
        assert len(content["pairs"]) == 8

    def written(command: list[str], **_: Any) -> None:
        step("cell").write_json(Path(command[3]) / "x.json", {"hh": command[-1]})

    monkeypatch.setattr(subprocess, "run", written)
    real = dataclasses.replace(bench, model=str(tmp_path / "model"), quick=False)
    files = []
    for text in ("one", "another"):
        (tmp_path / "hh").write_text(text, encoding="utf-8")
        files.append(dataclasses.replace(real, hh=tmp_path / "hh").ids("hh"))
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--what", "laddr"], "--what laddr: it may be compare, flops, ladder, scaling"),
        (["--mode", "lora,qlora"], "--mode qlora: it may be full, lora"),
        (["--only", "hhh"], "--only hhh: it may be hh, uf, tldr, rag"),
        (["--what", "ladder", "--hh", "nowhere.gz"], "--hh nowhere.gz: there is no such file"),
        (["--peers", "nowhere"], "or leave them out by --what flops,ladder,scaling"),
    ],
)
def test_options_that_name_nothing_end_the_run(
    words: list[str], said: str, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    with pytest.raises(SystemExit, match=said):
        step("bench").main()


def result(step: Any, *, seconds: list[float], contender: str) -> dict[str, Any]:
    """A result as a contender writes it."""
    spec = {"contender": contender, "pairs_per_step": 2, "micro_batch": 1, "attention": "sdpa", "memory": "huge pages"}
    return {
        "spec": spec,
        "seconds": seconds,
        "warm_up": 1.0,
        "naive_tokens": [100] * len(seconds),
        "losses": [0.69, 0.68],
        "grad_norms": [1.0, 2.0],
        "first_step": 13.0,
        "reference": {"seconds": 10.0, "tokens": 1000},
        "bytes": {"imports": 2**29, "peak": 2**31},
        "packages": {"torch": "1"},
    }


def test_table_of_a_block(step: Any, tmp_path: Path) -> None:
    table = step("table")
    for turn, speed in enumerate((1.0, 3.0)):
        for name, times in (("druthers", [2.0, 2.0]), ("trl-tuned", [8.0, 8.0])):
            row = result(step, seconds=[time * speed for time in times], contender=name)
            step("cell").write_json(tmp_path / "hh-full" / f"{name}-{turn}.json", row)
    text = table.whole(tmp_path)
    ours, theirs = (line for line in text.splitlines() if line.startswith(("| druthers |", "| TRL, tuned |")))
    assert ours.split(" | ")[:4] == ["| druthers", "2.000 (1.000 to 3.000)", "0.50", "25"]
    assert "4.00 (4.00 to 4.00)" in theirs
    assert "2.00 (1.50)" in theirs
    # 2 s to start; 1,000 pairs at 50 tokens, 0.01 s each to score, and 4 s to step
    assert theirs.endswith(f"| {(2 + 1000 * (0.5 + 4.0)) / 60:.1f} |")
    assert "Same work" in text


def test_table_goes_between_the_marks_of_the_page(step: Any, tmp_path: Path) -> None:
    table, page = step("table"), tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    table.insert(page, "new")
    table.insert(page, "newer")
    assert page.read_text(encoding="utf-8") == f"before\n{table.BEGIN}\n\nnewer\n\n{table.END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="no lines"):
        table.insert(page, "new")


def test_results_of_two_machines_are_not_mixed(step: Any, tmp_path: Path) -> None:
    machine, path = step("machine"), tmp_path / "machine.json"
    machine.check(path)
    machine.check(path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "cpu": "another"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="another"):
        machine.check(path)


def test_counted_operations_are_those_of_the_products(step: Any) -> None:
    """Our own attention and head do their products inside autograd functions, where a counter could miss them."""
    ids, druthers = step("ids"), step("run_druthers")
    model = tiny.model(vocab=300)
    model.set_attn_implementation(attention.NAME)
    pair = druthers.tokenized(TokenizedPair, ids.synthetic("fixed-32", count=1, words=300)[0], "")
    batch = collate([pair], pad_id=0, rung="shared")
    with druthers.counting(wanted=True) as flops:
        pair_logps(scorer_of(model), batch).sum().backward()
        found = flops()
    linear = sum(m.weight.numel() for m in model.model.modules() if type(m) is torch.nn.Linear)
    head, scored = model.lm_head.weight.numel(), len(batch.target_N)
    seen = 24 * 24 + 8 * 24  # queries by keys: prompt and chosen, then rejected over the prompt and itself
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    # Layers: forward and both halves of the backward. Head and attention: the first of their products once more.
    assert found == 6 * linear * 32 + 8 * head * scored + 7 * 2 * seen * width * layers


def run_precision(step: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """What the command ends with."""
    monkeypatch.setattr(sys, "argv", ["precision.py", *words])
    with pytest.raises(SystemExit) as end:
        step("precision").main()
    return end.value.code


def test_precision_holds_its_bars_and_too_few_pairs_pass_none(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pairs, out = tiny.folder(tmp_path / "model"), tmp_path / "pairs.jsonl", tmp_path / "out.json"
    storage.write(pairs, tiny.pairs(12))
    same = ["--model", str(model), "--device", "cpu", "--gradients", "3"]
    layouts = ["--layouts", "shared", "padding-free"]
    assert run_precision(step, monkeypatch, str(pairs), *same, *layouts, "--pairs", "12", "--out", str(out)) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["layout"] for row in found["float32"]] == layouts[1:]
    assert all(row["held"] and row["gradient"] > 0 for row in found["float32"])
    assert found["verdict"] in capsys.readouterr().out
    assert "fail" in found["verdict"]
    assert "--pairs 13, but" in run_precision(step, monkeypatch, str(pairs), *same, "--pairs", "13")


def test_every_bar_of_precision_counts(step: Any) -> None:
    precision = step("precision")
    wide = {"layout": "shared", "nats_a_token": 9e-6, "token": 9e-5, "gradient": 9e-6, "leak": 9e-7}
    plain = {"layout": "padded", "rms_nats_a_token": 0.04, "bias_of_pairs": 9.0, "bias_of_margins": 9.0}
    narrow = {"layout": "shared", "rms_nats_a_token": 0.05, "bias_of_pairs": 1.9, "bias_of_margins": 1.9}

    def said(change: dict[str, float], *, pairs: int = 64) -> str:
        rows = [{**row, **{key: change[key] for key in row if key in change}} for row in (wide, narrow)]
        return str(precision.verdict(*precision.held([rows[0]], [plain, rows[1]]), pairs=pairs))

    assert said({}) == "pass"
    assert said({}, pairs=63).startswith("fail: 63 pairs are too few")
    for name in ("nats_a_token", "token", "gradient", "leak"):
        assert said({name: 2 * wide[name]}) == "fail: shared in float32"
    for name in ("rms_nats_a_token", "bias_of_pairs", "bias_of_margins"):
        assert said({name: 1.1 * narrow[name]}) == "fail: shared in bfloat16"


def test_the_python_of_the_peers_may_be_named_from_here(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make bench` does; it runs in another folder."""
    monkeypatch.setattr(sys, "argv", ["bench.py", "--peers", ".bench/peers/bin/python"])
    assert Path(step("bench").options().peers) == Path.cwd() / ".bench/peers/bin/python"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of other parts of torch
def test_every_rung_of_the_ladder_is_the_same_step(step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model serves all of them: each begins at the weights that were loaded."""
    model, cell = tiny.folder(tmp_path / "model"), step("cell")
    pairs = step("ids").synthetic("fixed-32", count=3, words=250)
    rows = [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]
    cell.write_json(tmp_path / "ids.json", {"pairs": rows})
    words = ["equal", "--model", str(model), "--pairs-file", str(tmp_path / "ids.json"), "--threads", "2"]
    monkeypatch.setattr(sys, "argv", ["ladder.py", *words, "--pairs", "3", str(tmp_path / "out.json")])
    before = torch.get_num_threads()
    try:
        step("ladder").main()
    finally:
        torch.set_num_threads(before)
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(found["rungs"]) == set(cell.RUNGS)
    for rung in found["rungs"].values():
        assert rung["float32"]["loss"] < 1e-5
        assert rung["float32"]["gradient"] < 1e-5
    assert found["rungs"]["naive"]["float32"] == {"loss": 0.0, "gradient": 0.0}
    assert found["rungs"]["naive"]["bfloat16"]["gradient"] > 1e-4
