"""An output folder of TRL's DPOTrainer as a run in a comparison: what its JSON files say, nothing unpickled.

`trainer_state.json` (in the folder, or in its newest `checkpoint-N`) holds the log of the training: lines with `loss`
and `rewards/…`, lines of evaluations with `eval_…`, and a last one with `train_runtime`. `training_args.bin` is a
pickle and stays closed, so settings such as beta are not recorded. Format: transformers' TrainerState, speed_metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from druthers.records import InputError
from druthers.report.compared.entries import NOT_RECORDED, Entry, exactly
from druthers.report.reading import Tree, number, read_tree, text
from druthers.stats import Estimate, Undefined, wilson

STATE = "trainer_state.json"
RIGHT = "eval_rewards/accuracies"
NOT_IN_TRL = Undefined("not recorded in a TRL output folder")


def state_file(path: Path) -> Path | None:
    """Where the trainer's state is: in the folder, otherwise in the checkpoint of the highest number."""
    if (path / STATE).is_file():
        return path / STATE
    found = [file for file in path.glob(f"checkpoint-*/{STATE}") if re.fullmatch(r"checkpoint-\d+", file.parent.name)]
    return max(found, key=lambda file: int(file.parent.name.partition("-")[2]), default=None)


def read_trl(path: Path, *, name: str) -> Entry:
    """A TRL output folder; raises InputError where its trainer_state.json is damaged."""
    file = state_file(path)
    if file is None:
        raise InputError(f"{path}: is no TRL output folder, because it has no {STATE}; name one that has")
    state = read_tree(file)
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(line, dict) for line in log):
        raise InputError(f"{file}: log_history: is no list of lines, so it is not what a trainer wrote")
    kept = kept_step(state)
    settings = settings_of(path, log, state)
    return Entry(
        name=name,
        path=path,
        kind="trl",
        settings=settings,
        measures=measures(state, log, kept),
        kept=kept,
        remarks=remarks(state, log, file=file),
    )


def kept_step(state: Tree) -> float | None:
    """The step the trainer holds to be the best, otherwise its last."""
    best = re.search(r"checkpoint-(\d+)/?$", text(state, "best_model_checkpoint"))
    named = number(state, "best_global_step")
    return named if named is not None else float(best[1]) if best else number(state, "global_step")


def settings_of(path: Path, log: Sequence[Tree], state: Tree) -> dict[str, str]:
    """What can be told of the settings, under the names they have here."""
    rates = [rate for line in log if (rate := number(line, "learning_rate")) is not None]
    epochs = number(state, "num_train_epochs")
    known = {
        "model.path": base_model(path),
        "train.learning_rate": f"{max(rates):.3g} at most" if rates else "",
        "train.epochs": str(epochs) if epochs is not None else "",
    }
    return {key: value for key, value in known.items() if value}


def base_model(path: Path) -> str:
    """The model that was trained, by the adapter's own note or that of the model."""
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        for folder in (path, *sorted(path.glob("checkpoint-*"))):
            if (folder / name).is_file():
                try:
                    found = text(read_tree(folder / name), key)
                except InputError:
                    continue
                if found:
                    return found
    return card_base(path)


def card_base(path: Path) -> str:
    """The base model by the head of the model card."""
    try:
        card = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    head = card.split("---", 2)[1] if card.startswith("---") and card.count("---") > 1 else ""
    named = re.search(r"^base_model: *(\S+) *$", head, re.MULTILINE)
    return named[1] if named else ""


def measures(state: Tree, log: Sequence[Tree], kept: float | None) -> dict[str, Estimate]:
    """The rows a TRL folder has something for; the others say that it has not."""
    runtime = last(log, "train_runtime")
    return {
        "accuracy": accuracy(log, kept),
        **dict.fromkeys(("win_rate", "reward", "kl", "length", "length_ratio", "peak_memory_gib"), NOT_IN_TRL),
        "train_seconds": exactly(runtime),
        "seconds": exactly(runtime),
        "flop": exactly(number(state, "total_flos") or None, "the trainer counted no operations"),
        "pairs": exactly(pairs(state, log), "the trainer's log does not say how many pairs there were"),
        "steps": exactly(number(state, "global_step")),
    }


def last(log: Sequence[Tree], key: str) -> float | None:
    """The last value of a key in the log."""
    return next((value for line in reversed(log) if (value := number(line, key)) is not None), None)


def accuracy(log: Sequence[Tree], kept: float | None) -> Estimate:
    """Implicit-reward accuracy of the evaluation at the kept step, or of the last one.

    The number of pairs is not written; it follows from how long the evaluation took and how many it did a second.
    """
    looks = [line for line in log if number(line, RIGHT) is not None]
    if not looks:
        return Undefined("the trainer evaluated no held-out pairs")
    line = next((look for look in looks if number(look, "step") == kept), looks[-1])
    share, seconds, pace = (number(line, key) for key in (RIGHT, "eval_runtime", "eval_samples_per_second"))
    count = round(seconds * pace) if seconds is not None and pace is not None else 0
    if share is None or not 0 <= share <= 1:
        return Undefined(f"{RIGHT} is no share")
    return wilson(share * count, count) if count else exactly(share)


def pairs(state: Tree, log: Sequence[Tree]) -> float | None:
    """How many different pairs were learned from, by the pace of the training; about right, as times are rounded."""
    runtime, pace, epochs = last(log, "train_runtime"), last(log, "train_samples_per_second"), number(state, "epoch")
    if runtime is None or pace is None or epochs is None:
        return None
    return float(round(runtime * pace / max(1.0, epochs)))


def remarks(state: Tree, log: Sequence[Tree], *, file: Path) -> list[str]:
    """What a reader must know of numbers that come from a TRL folder."""
    found = [
        f"is a TRL output folder, read from {file.parent.name}/{file.name}: settings and answers are {NOT_RECORDED}"
    ]
    if last(log, RIGHT) is not None:
        found.append("its accuracy is the trainer's mean over batches, with pairs taken as independent")
    step, total = number(state, "global_step"), number(state, "max_steps")
    if step is not None and total is not None and step < total:
        found.append(f"is not trained to its end (step {step:.0f} of {total:.0f})")
    return found
