"""The data card: `README.md` beside the pairs, in the form of Hugging Face's dataset cards."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from druthers.config import Settings
from druthers.report import provenance, wording
from druthers.report.dataset import DataFiles, counts_by_reason, hash_of, read_data, source_names, whole_number
from druthers.report.findings import Found, fitted, shown
from druthers.report.reading import branch, number, text
from druthers.report.refused import BEYOND, ELSE, REASONS

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
POLICY = ("data", "grade")
"""The sections of the settings that decide what the data is."""
ALONE = ("seed", "model.path")
BIASES = ("D4", "D5", "D6", "D9", "D12")
MOST_FINDINGS, MOST_COLUMNS = 40, 20
NUMBER = re.compile(r"[\d−—]")


def card(run: Path, *, licence: str = "") -> str:
    """The data card of a run's pairs: what they are, how they were made, what is wrong with them.

    `licence` is an identifier of Hugging Face's list; where none is given the card says that it is unknown. Raises
    InputError where the run has no `data/summary.json`, or it cannot be read.
    """
    files = read_data(run)
    found = shown(files)
    parts = [
        front(files, licence=licence),
        f"# {md(name_of(files))}\n\nPreference pairs: a prompt with a chosen and a rejected response.",
        composition(files),
        sources(files),
        policy(files),
        quality(files, found),
        biases(files, found),
        left_out(files),
        f"## Licence\n\n{licence_text(licence)}",
        f"## Making it again\n\n```sh\n{command(files)}\n```\n\nThe same source and settings give the same bytes.",
    ]
    return "\n\n".join(parts) + "\n"


def name_of(files: DataFiles) -> str:
    """What the data is called."""
    return fitted(name_from(text(files.summary, "source")) or files.run.resolve().name, 120)


def name_from(source: str) -> str:
    """The name of a source: the file without the way to it, or its folder where the file's name says little.

    >>> name_from("/home/me/voice/pairs.jsonl.gz"), name_from("brand-voice"), name_from("hf://datasets/org/set")
    ('voice', 'brand-voice', 'set')
    """
    folder, _, file = source.rstrip("/").rpartition("/")
    stem = file.partition(".")[0]
    return folder.rpartition("/")[2] if stem in ("train", "pairs", "data") and folder else stem


def front(files: DataFiles, *, licence: str) -> str:
    """The YAML block that the hub reads; texts stand in it as JSON, which YAML reads too."""
    kept = whole_number(files.summary, "kept")
    lines = [
        f"pretty_name: {json.dumps(name_of(files), ensure_ascii=False)}",
        f"license: {json.dumps(licence or 'unknown')}",
        "task_categories:",
        "- text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("preference", "dpo", "rlhf", "druthers")),
        "size_categories:",
        f'- "{size_of(kept)}"',
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train.jsonl",
        "  - split: heldout",
        "    path: heldout.jsonl",
    ]
    return "\n".join(["---", *lines, "---"])


def size_of(pairs: int) -> str:
    """The size in Hugging Face's words.

    >>> size_of(838), size_of(10_000), size_of(20_000_000)
    ('n<1K', '10K<n<100K', '10M<n<100M')
    """
    return next((name for limit, name in SIZES if pairs < limit), "10M<n<100M")


def md(words: str) -> str:
    r"""A text in which Markdown finds nothing to act on, on one line.

    >>> md("a|b <script> [x](y)\n`c`")
    'a\\|b \\<script\\> \\[x\\](y) \\`c\\`'
    """
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(words.split()))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns of numbers hang right."""
    hangs = ["---:" if all(NUMBER.match(row[i]) for row in rows) else "---" for i in range(len(columns))]
    head = ["| " + " | ".join(columns) + " |", "| " + " | ".join(hangs) + " |"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


# ---------------------------------------------------------------- sections


def composition(files: DataFiles) -> str:
    """How many pairs of what length."""
    tree = files.summary
    prompts, tokens = branch(tree, "prompts"), branch(tree, "tokens")
    sides = [
        [side, wording.count(number(tree, side)), wording.count(number(prompts, side)), f"`{side}.jsonl`"]
        for side in ("train", "heldout")
    ]
    lengths = [
        [part, wording.decimal(number(tokens, f"{part}_mean"), 1), wording.count(number(tokens, f"{part}_max"))]
        for part in ("prompt", "chosen", "rejected")
    ]
    cut = (
        f"{wording.count(number(tree, 'cut.chosen'))} chosen and {wording.count(number(tree, 'cut.rejected'))} rejected"
    )
    graded = number(tree, "margin.max")
    margin = (
        f"Margins average {wording.decimal(number(tree, 'margin.mean'))}." if graded else "No pair carries a margin."
    )
    said = (
        f"The chosen response is the longer one in {wording.percent(number(tree, 'longer_chosen'))} of the pairs. "
        f"{cut} responses are cut in training. {margin}"
    )
    fields = (
        "Each line is one pair: `id`, `prompt`, `chosen`, `rejected` (lists of messages with `role` and `content`), "
        "and where they are set `p` (probability that chosen is better), `margin`, `weight`, `group`, `criterion`, "
        "`source`, `tools`."
    )
    tables = (table(["split", "pairs", "prompts", "file"], sides), table(["tokens", "mean", "most"], lengths))
    return "\n\n".join(["## Composition", tables[0], fields, tables[1], said])


def sources(files: DataFiles) -> str:
    """Where it came from, and the hashes of source and files."""
    tree, folder = files.summary, files.run / "data"
    split = text(tree, "heldout_source")
    apart = (
        f"`heldout` comes from a file of its own: {code(wording.last_part(split))}."
        if split
        else "`heldout` was split off by prompt, so no prompt stands on both sides."
    )
    rows = [
        [
            "source",
            code(" and ".join(source_names(files))),
            code(text(tree, "source_sha256") or "not hashed, because it is a URL"),
        ]
    ]
    rows += [
        [name, code(f"{name}.jsonl"), code(hash_of(folder / f"{name}.jsonl") or "missing")]
        for name in ("train", "heldout")
    ]
    form = f"{wording.count(number(tree, 'rows'))} rows were read as {code(text(tree, 'format'))}.{grading(files)}"
    left = list(branch(tree, "ignored_columns"))
    more = f" and {len(left) - MOST_COLUMNS} more" if len(left) > MOST_COLUMNS else ""
    form += f" Columns left aside: {', '.join(map(code, left[:MOST_COLUMNS]))}{more}." if left else ""
    return f"## Sources\n\n{form} {apart}\n\n{table(['what', 'where', 'sha256'], rows)}"


def grading(files: DataFiles) -> str:
    """What became of opinions, with the version of the policy; empty where rows were pairs themselves."""
    made = branch(files.summary, "graded")
    if not made:
        return ""
    reasons = branch(made, "reasons")
    names = sorted(reasons, key=lambda name: -(number(reasons, name) or 0))
    none = "; ".join(f"{wording.count(number(reasons, name))} {md(name.replace('_', ' '))}" for name in names[:12])
    return (
        f" What was said of {wording.count(number(made, 'items'))} prompts, "
        f"{wording.count(number(made, 'comparisons'))} comparisons of two responses, made "
        f"{wording.count(number(made, 'pairs'))} pairs by the policy of version {code(text(made, 'policy'))}"
        f"{f'; the others made none: {none}' if none else ''}."
    )


def code(words: str) -> str:
    """A text in code marks; the marks in it become quotes."""
    return (
        f"`{fitted(' '.join(words.split()), 300).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
        if words
        else wording.NONE
    )


def policy(files: DataFiles) -> str:
    """The settings that decided what is in it."""
    rows = [
        [f"`{key}`", code(" and ".join(source_names(files)) if key == "data.pairs" else wording.last_part(value))]
        for key, value in provenance.settings(files.tree("config.json"))
        if decides(key)
    ]
    shown_rows = (
        table(["setting", "value"], rows) if rows else "The run's config.json is missing, so its settings are unknown."
    )
    return f"## Policy\n\n{shown_rows}"


def decides(key: str) -> bool:
    """Whether a setting decides what the data is."""
    return key in ALONE or key.partition(".")[0] in POLICY


def quality(files: DataFiles, found: Sequence[Found]) -> str:
    """Every finding in a row, worst first."""
    if not files.quality:
        return "## Quality\n\nNot measured."
    rows = [
        [
            f"{md(one.title)}{f' ({md(one.about)})' if one.about else ''}",
            md(one.mark),
            md(one.value),
            md(one.interval),
            one.n,
            md(one.limits),
        ]
        for one in found
    ]
    more = len(files.findings) - MOST_FINDINGS
    rest = f"\n\n{more} more findings stand in `quality.json`." if more > 0 else ""
    verdict = f"Verdict: **{md(text(files.quality, 'verdict') or 'unknown')}**."
    columns = ["finding", "status", "value", "95 % interval", "n", "limits"]
    return f"## Quality\n\n{verdict}\n\n{table(columns, rows[:MOST_FINDINGS])}{rest}"


def biases(files: DataFiles, found: Sequence[Found]) -> str:
    """What a model trained on this may learn beside what was meant, in plain words."""
    told = [one for one in found if one.state in ("fail", "warn", "uncertain")]
    known = [one for one in told if one.id.partition(".")[0] in BIASES] or told
    lines = [f"- {md(one.text)}{f' {md(one.why)}' if one.why else ''}" for one in known]
    longer = number(files.summary, "longer_chosen")
    if longer is not None and not any(one.id.startswith("D4.length") for one in known):
        lines.append(f"- {length_bias(longer)}")
    lines += [f"- {md(one.title)} could not be computed: {md(one.why)}" for one in found if one.state == "undefined"][
        :12
    ]
    return "## Known biases and limits\n\n" + (
        "\n".join(lines) or "None was found, which is not to say that there is none."
    )


def length_bias(longer: float) -> str:
    """What the share of pairs whose chosen response is longer may teach.

    >>> length_bias(0.106)
    'The chosen response is the longer one in 10.6\u202f% of the pairs, so a model may learn to be brief from them.'
    """
    taught = "long" if longer > 0.5 else "brief"
    return (
        f"The chosen response is the longer one in {wording.percent(longer)} of the pairs, "
        f"so a model may learn to be {taught} from them."
    )


def left_out(files: DataFiles) -> str:
    """What was left out, and why."""
    counts = counts_by_reason(files)
    beyond = whole_number(files.summary, BEYOND)
    every = [*counts.items(), *([(BEYOND, beyond)] if beyond else [])]
    if not every:
        return "## What was left out\n\nNothing: every row became a pair."
    rows = [
        [md(REASONS.get(name, (name.replace("_", " "), ELSE))[0]), wording.count(n), code(name)]
        for name, n in every[:40]
    ]
    where = "Every row that was refused stands with its reason in `rejected.jsonl`."
    return f"## What was left out\n\n{table(['why', 'rows', 'code'], rows)}\n\n{where}"


def licence_text(licence: str) -> str:
    """The licence, or that nobody has said which."""
    if licence:
        return f"{md(licence)}."
    return "Unknown: nobody has said under which licence this data stands. Ask its source before you pass it on."


def command(files: DataFiles) -> str:
    """The command that makes the data again: the source, and every deciding setting that is not at its default.

    Files are named without the way to them: a card goes to others, who have them elsewhere.
    """
    default = dict(provenance.settings(Settings().model_dump(mode="json")))
    own = dict(provenance.settings(files.tree("config.json")))
    changes = [f"{key}={spelled(value)}" for key, value in own.items() if decides(key) and default.get(key) != value]
    given = [change for change in changes if not change.startswith(("data.pairs=", "model.path="))]
    model = wording.last_part(own.get("model.path", "default"))
    names = source_names(files)
    data = ["--data", *names] if len(names) == 1 else names
    words = ["druthers", "curate", *data, *(["--model", model] if model != "default" else [])]
    return " ".join(map(shlex.quote, [*words, "--run", "runs/again", *given]))


def spelled(value: str) -> str:
    """A value as the command line takes it."""
    return "none" if value == "unset" else value
