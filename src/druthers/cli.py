"""One verb per stage: load settings, open the run, call the stage, say where the result is."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from druthers.records import InputError
from druthers.streams import open_streams, said, takes_all

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from druthers.config import Settings

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
screen_console = Console(stderr=True, highlight=False)


def finite(option: typer.CallbackParam, value: float | None) -> float | None:
    """A number that is one: `inf` and `nan` pass for numbers, also between limits."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{option.opts[0]} = {value}: is no finite number; give one such as {option.default or 1.0}")
    return value


def gate_level(value: str | None) -> str | None:
    """A level at which findings stop a script; raises InputError for another word."""
    if value not in (None, "fail", "warn"):
        raise InputError(f"--gate = {value}: is no level; use fail, or warn, which lets neither pass")
    return value


Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A TOML file, or a packaged recipe: brand-voice, hh.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A model folder or hub id (model.path).")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="A file, folder, URL or packaged set of pairs (data.pairs).")
]
RunDir = Annotated[str | None, typer.Option("--run", help="The run directory (run).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]... [KEY=VALUE]...",
        help="Files, folders or URLs of preferences (data.pairs), and settings such as train.epochs=2.",
        show_default=False,
    ),
]
Gate = Annotated[
    str | None,
    typer.Option(
        "--gate", metavar="fail|warn", callback=gate_level, help="Exit with 3 where a finding is that bad, or worse."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


class Bars:
    """Progress on standard error, as rich bars in a terminal and plain lines elsewhere."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def stage(self, text: str) -> None:
        """A heading."""
        screen_console.print(f"[bold cyan]{text}[/]")

    def say(self, text: str) -> None:
        """One indented line."""
        screen_console.print(f"  {escape(text)}", soft_wrap=True)

    def bar(self, label: str) -> Callable[[int, int], None]:
        """A bar that appears with its first call."""
        task: TaskID | None = None
        tenth = 0

        def move(done: int, total: int) -> None:
            nonlocal task, tenth
            if not screen_console.is_terminal:
                if total and done * 10 // total > tenth:
                    tenth = done * 10 // total
                    self.say(f"{label}: {done:,} of {total:,}")
                return
            live = self.live()
            if task is None:
                task = live.add_task(label, total=total or None)
            live.update(task, completed=done, total=total or None)

        return move

    def live(self) -> Progress:
        """The display of the stage, started when first needed."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self.progress is None:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=screen_console, transient=True)
            self.progress.start()
        return self.progress

    def clear(self) -> None:
        """Take the bars away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


bars = Bars()


def settings_from(
    recipe: str | None, model: str | None, data: str | None, run: str | None, overrides: list[str] | None
) -> Settings:
    """Recipe, options, sources and overrides to settings; without recipe and data it is the packaged default recipe."""
    from druthers.config import load

    words = overrides or ()
    sources = [*([data] if data else []), *(known_source(word) for word in words if is_source(word))]
    named = recipe if recipe or sources else "brand-voice"
    extra = {"model.path": model, "data.pairs": sources[0] if len(sources) == 1 else sources or None, "run": run}
    if sources and not recipe and not run:
        extra["run"] = f"runs/{Path(sources[0]).name.split('.')[0] or 'align'}"
    return load(named, [word for word in words if not is_source(word)], extra)


def known_source(word: str) -> str:
    """A word that is a source; InputError for one that is nothing."""
    from druthers.storage import packaged

    if "://" not in word and not os.path.exists(word) and word not in packaged():
        raise InputError(
            f"{word!r} is neither a source (no such file or folder) nor a setting; write dotted.key=value, "
            "for example train.epochs=2"
        )
    return word


def is_source(word: str) -> bool:
    """Whether a word of the command line names a source, and not KEY=VALUE; an address may have a `=` behind its `?`.

    >>> is_source("my-pairs.jsonl"), is_source("train.epochs=2"), is_source("https://example.org/a.jsonl?key=1")
    (True, False, True)
    """
    key, sign, _ = word.partition("=")
    return not sign or "://" in key


def show(result: dict[str, Any], *, as_json: bool, table: Callable[[dict[str, Any]], Table]) -> None:
    """The result: JSON on standard output, or a table; InputError where that cannot be written."""
    with said():
        if as_json:
            sys.stdout.write(json.dumps(result, ensure_ascii=not takes_all(sys.stdout), indent=2) + "\n")
        else:
            Console(file=sys.stdout, highlight=False).print(table(result))
        sys.stdout.flush()


def facts(result: dict[str, Any]) -> Table:
    """Name and value of every entry."""
    table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for name, value in result.items():
        table.add_row(
            f"[dim]{escape(name)}[/]",
            escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
        )
    return table


def interval(found: dict[str, Any] | None) -> str:
    """A share with its interval, or why there is none."""
    if not found or found.get("value") is None:
        return f"not measured{': ' + found['undefined'] if found and found.get('undefined') else ''}"
    return f"{found['value']:.1%}  ({found['low']:.1%} to {found['high']:.1%}, n = {found['n']})"


def headline(result: dict[str, Any]) -> Table:
    """The table at the end of a run."""
    table = Table(Column(), Column(overflow="fold"), show_header=False, min_width=60, title_justify="left")
    table.title, table.title_style = escape(result.get("text", "")), "bold"
    heldout, train = result.get("heldout", {}), result.get("train", {})
    table.add_row("win rate, sampled answers", interval(result.get("win_rate")))
    table.add_row("win rate, greedy answers", interval(result.get("win_rate_greedy")))
    table.add_row("held-out pairs ranked right", interval(heldout.get("accuracy")))
    table.add_row("chosen log-prob fell", interval(heldout.get("chosen_fell")))
    for key, label in (
        ("length_ratio", "answer length, aligned / base"),
        ("perplexity_ratio", "perplexity under base, aligned / base"),
    ):
        table.add_row(label, f"{result[key]:.2f}" if result.get(key) is not None else "not measured")
    table.add_row(
        "trained",
        f"{train.get('pairs', 0):,} of {result.get('pairs', {}).get('train', 0):,} pairs, {train.get('steps')} steps, "
        f"{train.get('pairs_per_second')} pairs/s",
    )
    table.add_row("peak memory", f"{train.get('peak_memory_gib', 0):.2f} GiB")
    table.add_row("time", ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.get("seconds", {}).items()))
    page = Path(result["run"]) / "report.html"
    table.add_row("report", escape(str(page)) if page.exists() else "write it with `druthers report`")
    return table


@app.callback()
def about(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    """Align language models with people's preferences: collect pairs, train by DPO, prove what changed."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and context.invoked_subcommand not in (None, *TOGETHER):
        raise InputError(
            f"`druthers {context.invoked_subcommand}` runs in one process, only {' and '.join(TOGETHER)} in many; "
            "start it without torchrun"
        )
    if version:
        from druthers import __version__

        sys.stdout.write(f"druthers {__version__}\n")
        raise typer.Exit


@app.command()
def align(
    *,
    overrides: Overrides = None,
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    run: RunDir = None,
    as_json: Json = False,
) -> None:
    """Curate, train, evaluate and report in one go. Without options: the packaged model and pairs."""
    settings = settings_from(recipe, model, data, run, overrides)
    from druthers import pipeline

    if found := pipeline.align(settings, screen=bars):
        show(found, as_json=as_json, table=headline)


@app.command()
def plan(
    *,
    overrides: Overrides = None,
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    run: RunDir = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="What an hour of this machine costs, in any currency.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what `align` would take with the same options: memory, time and cost, measured here in about a minute."""
    settings = settings_from(recipe, model, data, run, overrides)
    from druthers.plan import plan as expected
    from druthers.plan.table import table_of

    show(expected(settings, price_per_hour=price_per_hour, screen=bars), as_json=as_json, table=table_of)


@app.command()
def curate(
    *,
    overrides: Overrides = None,
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    run: RunDir = None,
    gate: Gate = None,
    as_json: Json = False,
) -> None:
    """Read pairs, check every row, split; writes data/ of a run directory."""
    settings = settings_from(recipe, model, data, run, overrides)
    from druthers import pipeline
    from druthers.report import write_data_page
    from druthers.run import open_run

    with open_run(settings) as opened:
        found = pipeline.curate_stage(opened, settings, screen=bars, told=as_json)
        write_data_page(opened.folder)
    show({"run": settings.run, **found}, as_json=as_json, table=data_screen)
    stop_at(gate, Path(settings.run))


@app.command()
def inspect(
    *,
    run: RunArgument,
    overrides: Overrides = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Prompts that users asked, a JSON object a line: what the data should cover."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="What embeds texts: a folder, a hub id, or lexical; else the run's data.encoder."
        ),
    ] = None,
    most: Annotated[
        int, typer.Option("--most", min=20, help="Pairs at most that are looked at, a tenth of them by the model.")
    ] = 1500,
    gate: Gate = None,
    as_json: Json = False,
) -> None:
    """Measure what takes embeddings or the model: label noise, coverage, displacement, learnability, language."""
    from druthers import pipeline
    from druthers.run import Run, open_run

    settings = pipeline.inspection_settings(Run(run), overrides or ())
    pipeline.prepare(settings)
    with open_run(Run(run).settings().model_copy(update={"run": str(run)})) as opened:
        found = pipeline.inspect_stage(opened, settings, prompts=prompts, encoder=encoder, most=most, screen=bars)
    show(found, as_json=as_json, table=findings_screen)
    stop_at(gate, run)


NOT_PASSED = 3
"""The exit code of data that a gate stops: 1 is a fault of the input, 2 one of the command line."""


def stop_at(gate: str | None, run: Path) -> None:
    """Exit where the findings about the data of a run are as bad as `gate`, or worse, and say which."""
    if gate is None:
        return
    from druthers.counsel import MEASURED
    from druthers.run import Run

    bad = [one for one in Run(run).json(MEASURED)["findings"] if one.get("status") in ("fail", gate)]
    if bad:
        listed = ", ".join(dict.fromkeys(f"{one['id']} ({one['status']})" for one in bad))
        fail(f"the data does not pass --gate {gate}: {listed}; {run / 'data.html'} says why", code=NOT_PASSED)


def findings_screen(result: dict[str, Any]) -> Table:
    """What an inspection found, the worst first, and where it stands."""
    styles = {"fail": "red", "warn": "yellow", "undefined": "dim", "pass": ""}
    table = Table(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
    for found in sorted(result["findings"], key=lambda one: ("fail", "warn", "pass", "undefined").index(one["status"])):
        why = f" ({found['undefined']})" if found["undefined"] else ""
        table.add_row(found["status"], found["id"], escape(found["text"] + why), style=styles[found["status"]])
    if result["collect"]:
        table.add_row("", "collect", escape(f"{result['prompts']} prompts in {result['collect']}"))
    table.add_row("", "page", escape(result["page"]))
    return table


def data_screen(result: dict[str, Any]) -> Table:
    """One screen about curated data, in the words of the report, as wide as where it is shown."""
    from druthers.report import data_lines

    width = Console(file=sys.stdout).width
    table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for line in data_lines(Path(result["run"]), page=Path(result["run"]) / "data.html", width=width):
        table.add_row(f"[dim]{line.name}[/]", escape(line.text), style=line.style or None)
    return table


@app.command()
def advise(
    *,
    run: RunArgument,
    improvement: Annotated[
        float, typer.Option(min=0.1, max=50, metavar="POINTS", help="The improvement that should be seen, in points.")
    ] = 5.0,
    runs: Annotated[
        list[Path] | None, typer.Option("--runs", help="A run of another size, for a learning curve; again for more.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often data will be collected and a model trained.")] = 1,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Write the prompts to collect next there (.jsonl).")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 1000,
    as_json: Json = False,
) -> None:
    """Say what the data can teach: method, quantity, what to collect next; each answer with evidence and rule."""
    from druthers.counsel import counsel, table_of
    from druthers.run import Run

    found = counsel(
        Run(run),
        improvement=improvement / 100,
        rounds=rounds,
        others=[Run(other) for other in runs or ()],
        prompts=prompts,
        most=most,
        bars=bars.bar,
    )
    bars.clear()
    show(found, as_json=as_json, table=table_of)


@app.command()
def train(
    *,
    overrides: Overrides = None,
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    run: RunDir = None,
    as_json: Json = False,
) -> None:
    """Train on the pairs of the run (curated first where they are not); the same command continues a stopped run."""
    settings = settings_from(recipe, model, data, run, overrides)
    from druthers import pipeline
    from druthers.session import session

    pipeline.prepare(settings)
    with session(settings, screen=bars) as here:
        pipeline.learn(here, settings)
        if here.world.leads:
            show({"run": settings.run, **here.run.summary()}, as_json=as_json, table=facts)


@app.command()
def reinforce(
    *,
    prompts: Annotated[
        str, typer.Argument(help='Prompts, one JSON object a line: {"prompt": [{"role": "user", "content": "…"}]}.')
    ],
    reward: Annotated[
        str | None,
        typer.Option("--reward", help="What scores the answers: a rule rubric, or a reward model's folder."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as ppo.target_kl=6.", show_default=False),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="ppo or rloo (online.method).")] = None,
    recipe: Recipe = None,
    model: Model = None,
    run: RunDir = None,
    as_json: Json = False,
) -> None:
    """Train on the model's own answers by PPO or RLOO; the same command continues a stopped run."""
    from druthers.config import load
    from druthers.reinforcement import reinforce as learned

    extra = {
        "data.pairs": prompts,
        "online.reward": reward,
        "online.method": method,
        "model.path": model,
        "run": run or (None if recipe else f"runs/{Path(prompts).name.split('.')[0] or 'reinforce'}"),
    }
    settings = load(recipe, overrides or (), extra)
    show(learned(settings, screen=bars), as_json=as_json, table=facts)


@app.command()
def evaluate(
    *,
    run: RunArgument,
    along: Annotated[
        int, typer.Option(min=0, help="Also reward against KL of every kept checkpoint, on so many prompts.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Measure a trained run: held-out pairs, answers of base and aligned model, KL."""
    from druthers import pipeline
    from druthers.run import Run, open_run

    settings = Run(run).settings().model_copy(update={"run": str(run)})
    pipeline.prepare(settings)
    with open_run(settings) as opened:
        pipeline.evaluate_stage(opened, settings, screen=bars, policy=None)
        if along:
            pipeline.along_stage(opened, settings, prompts=along, screen=bars)
        show({**opened.summary(), "run": str(run)}, as_json=as_json, table=headline)


@app.command()
def report(*, run: RunArgument, as_json: Json = False) -> None:
    """Write report.html from the files of a run directory, and data.html where it holds curated pairs."""
    from druthers.report import write_data_page, write_report

    pages = {"report": str(write_report(run))}
    if (run / "data" / "summary.json").is_file():
        pages["data"] = str(write_data_page(run))
    show(pages, as_json=as_json, table=facts)


@app.command()
def compare(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or TRL output folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes (.html).")] = Path("compare.html"),
    as_json: Json = False,
) -> None:
    """Hold runs side by side: reward against KL, who beats whom with intervals, accuracy, length, time, memory."""
    from druthers.report import compared

    found = compared.compare(runs)
    page = compared.write_comparison(found, out)
    show({**found.as_dict(), "page": str(page)}, as_json=as_json, table=lambda _: comparison_table(found, page))


def comparison_table(found: Any, page: Path) -> Table:
    """One row a run, and what it comes to below."""
    from druthers.report.compared import COLUMNS, rows, sentences

    columns = (Column(name, justify="left" if name == "run" else "right", overflow="fold") for name in COLUMNS)
    table = Table(*columns, box=None, pad_edge=False, caption_justify="left")
    for row in rows(found):
        table.add_row(*map(escape, row))
    said_below = [*sentences(found), f"{len(found.remarks)} remarks and all numbers: {page}"]
    table.caption = escape("\n".join(said_below))
    return table


@app.command()
def sample(
    *,
    prompts: Annotated[
        str,
        typer.Argument(help='Prompts, one a line: {"prompt": "…"}, or messages in it, as in collect.jsonl; or pairs.'),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the candidates go (.jsonl, .jsonl.gz).")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model folder or hub id.")] = "default",
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Responses to each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, callback=finite, help="Nucleus.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses generated at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Root of every random draw.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    best_of: Annotated[int, typer.Option("--best-of", min=1, help="Each response is the best of N by --reward.")] = 1,
    reward: Annotated[
        str | None, typer.Option("--reward", help="What scores them: a rule rubric, or a reward model's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sample responses to prompts from a model, for people or a rubric to judge."""
    from druthers import pipeline
    from druthers.config import ModelSettings

    found = pipeline.sample(
        prompts,
        out,
        model=ModelSettings(path=model),
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        best_of=best_of,
        reward=reward,
        screen=bars,
    )
    then = f"have them judged, or druthers judge {shlex.quote(str(out))} --out PAIRS.jsonl --rubric RUBRIC.toml"
    show(found, as_json=as_json, table=lambda result: facts(result | {"next": then}))


@app.command()
def judge(
    *,
    candidates: Annotated[str, typer.Argument(help="Candidates, as `druthers sample` writes them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the pairs go (.jsonl, .jsonl.gz, .parquet).")],
    rubric: Annotated[
        str, typer.Option("--rubric", help="A rule rubric in TOML, or the packaged one.")
    ] = "brand-voice",
    margin_scale: Annotated[
        float, typer.Option(min=0, callback=finite, help="Margin, in units of reward, of one point of score.")
    ] = 1.0,
    most: Annotated[
        int | None, typer.Option(min=1, help="At most N pairs of a prompt, the clearest; 1 is best against worst.")
    ] = None,
    length_cost: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Score that a word costs by which the chosen response is shorter."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Judge sampled responses by a rule rubric and write graded pairs."""
    from druthers import pipeline

    found = pipeline.judge(
        candidates,
        out,
        rubric=rubric,
        margin_scale=margin_scale,
        most=most,
        length_cost=length_cost,
        screen=bars,
    )
    then = f"druthers curate {shlex.quote(str(out))}, also beside other sources"
    show(found, as_json=as_json, table=lambda result: facts(result | {"next": then}))


@app.command()
def chat(
    *,
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and leave.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Root of the random draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk to the aligned model and the base side by side."""
    from druthers import pipeline
    from druthers.records import assistant, user
    from druthers.run import Run

    if as_json and prompt is None:
        raise InputError("--json needs --prompt TEXT; without it chat is a conversation in the terminal")
    both = pipeline.answer_both(Run(run), seed=seed)
    if prompt is not None:
        base, aligned = both(user(prompt), user(prompt))
        return show({"prompt": prompt, "base": base, "aligned": aligned}, as_json=as_json, table=beside)
    screen_console.print("[dim]Type a message; an empty line or Ctrl-D leaves, /new starts over.[/]")
    to_base: tuple[Any, ...] = ()
    to_aligned: tuple[Any, ...] = ()
    while text := ask():
        if text == "/new":
            to_base = to_aligned = ()
            continue
        to_base, to_aligned = (*to_base, *user(text)), (*to_aligned, *user(text))
        base, aligned = both(to_base, to_aligned)
        show({"base": base, "aligned": aligned}, as_json=False, table=beside)
        to_base, to_aligned = (*to_base, *assistant(base)), (*to_aligned, *assistant(aligned))
    return None


def ask() -> str:
    """A line from the terminal; nothing at its end."""
    try:
        return screen_console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def beside(result: dict[str, Any]) -> Table:
    """Two answers in two columns."""
    table = Table("base", "aligned", expand=True)
    table.add_row(escape(result["base"]), escape(result["aligned"]))
    return table


@app.command()
def export(
    *,
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """Write the aligned model as a merged Hugging Face folder with a model card."""
    from druthers import pipeline
    from druthers.run import Run

    show(pipeline.export(Run(run), folder), as_json=as_json, table=facts)


@app.command()
def doctor(
    *,
    settings: Annotated[bool, typer.Option("--settings", help="List every setting with its default instead.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, what is missing, and the command that installs it."""
    from dataclasses import asdict

    from druthers import doctor as examination

    if settings:
        listed = list(examination.settings())
        return show({"settings": [asdict(s) for s in listed]}, as_json=as_json, table=lambda _: setting_table(listed))
    checks = examination.examine()
    show(
        {"ready": examination.ready(checks), "checks": [asdict(check) for check in checks]},
        as_json=as_json,
        table=check_table,
    )
    if not examination.ready(checks):
        raise typer.Exit(1)
    return None


def setting_table(listed: list[Any]) -> Table:
    """Every setting, a row each."""
    table = Table("setting", "default", "what it does", box=None, pad_edge=False)
    for s in listed:
        table.add_row(s.key, escape(s.default), escape(s.about))
    return table


def check_table(result: dict[str, Any]) -> Table:
    """Every check, a row each."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table("", "what", "found", Column("remedy", overflow="fold"), box=None, pad_edge=False)
    for check in result["checks"]:
        table.add_row(
            marks.get(check["state"], escape(check["state"])),
            check["name"],
            escape(check["value"]),
            escape(check["remedy"]),
        )
    return table


TOGETHER = ("align", "train")
"""What several processes, started by torchrun, can do together."""
STAGES = {"align", "curate", "train", "reinforce", "evaluate", "report"}
CTRL_C = 130
"""The exit code typer gives a KeyboardInterrupt."""


def main() -> None:
    """Entry point: a fault of the input is one sentence on standard error and a non-zero exit.

    SIGTERM ends the process as an exit does, so that temporary files are removed; training saves first.
    Tensors of 2 MiB or more lie in huge pages where Linux has them, unless the environment says 0: a training step
    spends less time on page faults (docs/benchmarks.md). torch reads the variable once, so it is set before that.
    """
    open_streams()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "WORLD_SIZE" in os.environ:  # a broken connection is said by us, without torch's own trace of it
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except InputError as error:
        fail(str(error), code=1)
    except SystemExit as end:
        if end.code != CTRL_C or os.environ.get("RANK", "0") != "0":  # rank 0 says it for all
            raise
        kept = "; what was finished is kept, and the same command continues"
        fail("stopped" + (kept if set(sys.argv[1:2]) <= STAGES else ""), code=CTRL_C)
    except RuntimeError as error:
        stop_or_raise(error)
    finally:
        bars.clear()


def fail(text: str, *, code: int) -> NoReturn:
    """One sentence and an exit code."""
    bars.clear()
    screen_console.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    sys.exit(code)


def stop_or_raise(error: RuntimeError) -> NoReturn:
    """A run that a signal stopped exits with the signal's code; any other fault is ours and keeps its traceback."""
    from druthers.train import Interrupted

    if isinstance(error, Interrupted):
        bars.clear()
        screen_console.print(f"[yellow]{escape(str(error))}[/]", soft_wrap=True)
        sys.exit(128 + error.signal)
    raise error
