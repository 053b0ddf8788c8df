"""What went in, on what machine it ran, what the page cannot show, and every setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from druthers import storage
from druthers.report import wording
from druthers.report.parts import Fact, listed, with_unit
from druthers.report.reading import RunFiles, Tree, branch, number, text, undefined
from druthers.report.wording import NONE

LONGEST_VALUE = 400


def data(files: RunFiles) -> list[Fact]:
    """The pairs: where from, how many, how long; empty where the data was not summarised."""
    tree = files.tree("data/summary.json")
    if not tree:
        return []
    left_out = branch(tree, "rejected")
    reasons = listed(*(f"{name} {counted(left_out, name)}" for name in left_out))
    tokens = branch(tree, "tokens")
    lengths = [f"{side} {counted(tokens, f'{side}_mean')}" for side in ("prompt", "chosen", "rejected")]
    prompts = branch(tree, "prompts")
    longer = wording.percent(number(tree, "longer_chosen"))
    cut = f"{counted(tree, 'cut.chosen')} chosen, {counted(tree, 'cut.rejected')} rejected"
    beyond = f"{counted(tree, 'beyond_limit')} beyond data.limit" if number(tree, "beyond_limit") else ""
    rows = f"{counted(tree, 'rows')} read, {counted(tree, 'kept')} kept"
    return [
        Fact("Source", text(tree, "source") or NONE, hashed(files, "pairs.sha256")),
        Fact("Rows", rows, listed(f"read as {text(tree, 'format') or NONE}", beyond, f"left out: {reasons or 'none'}")),
        Fact(
            "Training", f"{counted(tree, 'train')} pairs", with_unit(wording.count, number(prompts, "train"), "prompts")
        ),
        Fact(
            "Held out",
            f"{counted(tree, 'heldout')} pairs",
            listed(with_unit(wording.count, number(prompts, "heldout"), "prompts"), hashed(files, "heldout.sha256")),
        ),
        Fact("Mean tokens", listed(*lengths), f"chosen is the longer one in {longer} of the pairs"),
        Fact("Cut to length", cut, "the end-of-turn token is kept"),
    ]


def counted(tree: Tree, key: str) -> str:
    """A count of a tree, or a dash."""
    return wording.count(number(tree, key))


def hashed(files: RunFiles, key: str) -> str:
    """A hash of inputs.json, or nothing."""
    found = text(files.tree("inputs.json"), key)
    return f"sha256 {found}" if found else ""


def machine(files: RunFiles) -> list[Fact]:
    """Where it ran and with what; empty where nothing was written down."""
    env, inputs = files.tree("environment.json"), files.tree("inputs.json")
    if not env and not inputs:
        return []
    said = {key: text(env, key) or NONE for key in ("device", "precision", "attention", "druthers", "torch", "python")}
    transformers, threads = text(env, "transformers") or NONE, number(env, "threads")
    software = f"torch {said['torch']}, transformers {transformers}, Python {said['python']}"
    return [
        Fact("Model weights", text(inputs, "model.name") or NONE, hashed(files, "model.sha256")),
        Fact("Chat template", "hash of its text", hashed(files, "chat_template_sha256")),
        Fact(
            "Machine",
            listed(said["device"], with_unit(wording.count, threads, "threads")),
            text(env, "cpu") or text(env, "platform"),
        ),
        Fact("Arithmetic", said["precision"], f"attention: {said['attention']}"),
        Fact("Software", f"druthers {said['druthers']}", software),
        Fact(
            "Code",
            (text(env, "commit") or NONE)[:12],
            "commit" + (", with the changes in code.diff" if files.code_changed else ""),
        ),
    ]


def limits(files: RunFiles) -> list[str]:
    """What this page cannot show, said plainly."""
    answers = files.tree("evaluation/answers.json")
    rubric = text(answers, "rubric")
    judge = f"The judge is the rule rubric “{rubric}”. It sees what its rules see, no more; read the samples."
    fluency = "Perplexity is the base model's view of fluency, so it also rises when answers are merely different."
    return [
        *([judge] if rubric else []),
        "One run with one seed: the intervals show the luck of the prompts, not of the training.",
        "Intervals are 95\u202f% and treat the prompt as the unit, because answers to one prompt share its luck.",
        *([fluency] if number(answers, "perplexity.ratio") is not None else []),
    ]


def undefined_numbers(files: RunFiles) -> list[tuple[str, str]]:
    """Every number a file marks undefined, with its reason."""
    return [(f"{file}: {key}", why) for file, tree in files.trees.items() for key, why in undefined(tree)]


def settings(tree: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of config.json as (dotted key, value).

    >>> list(settings({"train": {"epochs": 1.0, "max_steps": None}}))
    [('train.epochs', '1.0'), ('train.max_steps', 'unset')]
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from settings(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, "unset" if tree is None else wording.shorten(str(open_to_all(tree)), LONGEST_VALUE)[0]


def open_to_all(value: object) -> object:
    """A setting without the passwords and queries of the addresses in it: pages and cards go to others.

    >>> open_to_all(["a.csv", "https://me:secret@example.org/b.csv?key=1"])
    ['a.csv', 'https://example.org/b.csv']
    """
    if isinstance(value, list):
        return [open_to_all(item) for item in value]
    return storage.shown(value) if isinstance(value, str) else value
