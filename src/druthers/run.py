"""A run directory: opened by one process at a time, appended to, resumed; all that people read of a run lies in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from druthers import __version__
from druthers.config import Settings, to_json, validate
from druthers.records import InputError
from druthers.storage import SCRATCH, TEMPORARY, write_json, write_text

CONFIG = "config.json"
LOCK = ".lock"
CURATED = "data/summary.json"
TRAINING = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
INPUTS = "inputs.json"
MARKS = ("run", "data", "train")
"""What the settings of every run have, and the config.json of something else has not."""
COUNTED = ("step", "split", "loss", "pairs", "tokens")
"""What every line of metrics.jsonl has."""
FREE = ("run", "threads")
OF_CURATION = ("seed", "data.", "grade.", "model.path")
OF_TRAINING = (*OF_CURATION, "model.", "loss.", "train.", "online.", "ppo.", "rloo.")
ANY = ("",)


@dataclass(frozen=True)
class Run:
    """One run directory. Paths are relative to it; JSON files are replaced whole, `metrics.jsonl` is appended to."""

    folder: Path
    changed: tuple[str, ...] = ()
    """Settings that differ from those of the session before: 'key was this, now that'."""

    def path(self, name: str) -> Path:
        """A file or folder of the run; its parent folder is made."""
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def settings(self) -> Settings:
        """The settings the run was started with; InputError where config.json is damaged or of something else."""
        tree, place = self.json(CONFIG), self.folder / CONFIG
        if not tree.keys() >= set(MARKS):
            raise InputError(f"{place} is no druthers run; name another folder with run=FOLDER")
        try:
            return validate(tree)
        except InputError as error:
            raise InputError(f"{place} is no druthers run ({error}); name another folder with run=FOLDER") from None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; raises InputError when it is missing or broken."""
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.folder} has no {name}, so it is not a run directory or that stage has not run; "
                "name a finished run"
            ) from None
        except OSError as error:
            raise InputError(f"{self.folder / name}: cannot be read: {error.strerror}; name a run directory") from None
        except ValueError as error:
            raise self.damaged(name, f"not valid JSON ({error})") from None
        except RecursionError:
            raise self.damaged(name, "not valid JSON (it is nested too deeply)") from None
        if not isinstance(found, dict):
            raise self.damaged(name, "not a JSON object")
        return found

    def damaged(self, name: str, why: str) -> InputError:
        """What to say of a file that is not what was written; some no stage can make again once training has begun."""
        if name == CONFIG or (name in (CURATED, INPUTS) and self.begun()):
            remedy = "restore it from a copy, or name another folder with run=FOLDER"
        elif name.startswith(CHECKPOINTS):
            whole = self.folder / "summary.json"
            remedy = f"delete {whole} and run `druthers train` with the same settings, which writes it again"
        else:
            remedy = "delete the file and run the stage again"
        return InputError(f"{self.folder / name}: {why}; {remedy}")

    def has(self, name: str) -> bool:
        """Whether a file of that name was written."""
        return (self.folder / name).exists()

    def summary(self) -> dict[str, Any]:
        """The headline numbers so far."""
        return self.json("summary.json") if self.has("summary.json") else {}

    def update_summary(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """Merge keys into summary.json (nested objects are merged too) and return the whole."""
        whole = merge(self.summary(), section)
        write_json(self.path("summary.json"), whole)
        return whole

    def fixed(self) -> tuple[str, ...]:
        """How the dotted keys begin whose settings some stage has used."""
        if self.begun():
            return ANY if "verdict" in self.summary() else OF_TRAINING
        return OF_CURATION if self.has(CURATED) else ()

    def begun(self) -> bool:
        """Whether training has taken a step, which the files of curation do not tell: they may have been deleted."""
        return self.has(TRAINING) or any((self.folder / CHECKPOINTS).glob("step-*"))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; raises InputError for one that is damaged."""
        if not self.has(TRAINING):
            return []
        with (self.folder / TRAINING).open("rb") as file:
            return [metrics_of(line, where=f"{self.folder / TRAINING}:{i}") for i, line in enumerate(file, 1)]


def metrics_of(line: bytes, *, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl; raises InputError for one that is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and row.keys() >= set(COUNTED):
            return row
    raise InputError(f"{where}: is damaged: no line of metrics; {from_the_start(Path(where).parent)}")


def from_the_start(folder: Path) -> str:
    """What to do where a log of a run is damaged."""
    return (
        f"restore the file from a copy, or delete {folder / CHECKPOINTS} and run the same command again to train "
        "from the start"
    )


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`, going into objects that both have; a measured value with its interval is replaced whole.

    >>> merge({"a": {"x": 1}, "b": 2}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}, 'b': 2}
    """
    both = {
        k: merge(old[k], v) if isinstance(v, dict) and isinstance(old.get(k), dict) and "value" not in v else v
        for k, v in new.items()
    }
    return {**old, **both}


@contextlib.contextmanager
def open_run(settings: Settings) -> Iterator[Run]:
    """Start a run in `settings.run`, or open the same run again to continue it.

    A stage fixes the settings it has used: curation those of the data, the first training step those of the training,
    the verdict all; the others may still change, and `changed` says which did. Raises InputError when the folder holds
    something else, a run with other settings (the first difference is named), or is open in another process.

    Nothing is written into a folder, and nothing removed from it, before it has proved to be a run or empty.
    """
    folder = make_folder(settings.run)
    if os.path.exists(folder / CONFIG):
        Run(folder).settings()
    with locked(folder):
        sweep(folder)
        run = Run(folder)
        changes = differences(run.settings(), settings) if run.has(CONFIG) and run.fixed() else {}
        for key, change in changes.items():
            if key.startswith(run.fixed()):
                raise InputError(
                    f"run directory {folder} holds another run ({change}); repeat the settings it was begun with, "
                    "name another with run=FOLDER, or delete it"
                )
        if run.fixed() != ANY and not (run.has(CONFIG) and run.settings() == settings):
            write_text(run.path(CONFIG), to_json(settings))
        yield Run(folder, changed=tuple(changes.values()))


def make_folder(name: str) -> Path:
    """The folder of a run, made when it is not there; InputError when something else has the name."""
    folder = Path(name)
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from error
    return folder


def check_folder(folder: Path) -> None:
    """Raises InputError for a name under which something stands that is no run."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"run directory {folder} is a file; name another with run=FOLDER")
        inside = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise unusable(folder, error) from error
    own = {name for name in inside if name == LOCK or TEMPORARY.fullmatch(name)}
    if inside - own and CONFIG not in inside:
        raise InputError(f"run directory {folder} is not empty and holds no run; name another with run=FOLDER")


def unusable(folder: Path, error: OSError, *, done: str = "used") -> InputError:
    """What to say of a folder that cannot be made, read, written or locked."""
    return InputError(f"run directory {folder} cannot be {done}: {error.strerror}; name another with run=FOLDER")


def sweep(folder: Path) -> None:
    """Remove the temporary files of a process that was killed and its folder of them; call it with the lock held."""
    for left in [path for path in folder.rglob(".*.tmp") if TEMPORARY.fullmatch(path.name)]:
        if left.is_file():
            left.unlink(missing_ok=True)
        elif left.name.startswith(f".{SCRATCH}.") and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory for this process; the lock goes with the process, however it ends."""
    try:
        opened = (folder / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise unusable(folder, error, done="written") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"run directory {folder} is in use by process {holder(file)}; wait for it, "
                "or name another with run=FOLDER"
            ) from None
        except OSError as error:  # some network folders know no locks
            raise unusable(folder, error, done="locked") from error
        with contextlib.suppress(OSError):  # the lock holds without the number, for which a full disk has no room
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


def holder(file: BinaryIO) -> str:
    """The process that holds a lock, as far as it could write that down."""
    file.seek(0)
    return file.read().decode(errors="replace").strip() or "unknown"


def differences(was: Settings, now: Settings) -> dict[str, str]:
    """Per dotted key that differs, what it was and is; where a run lies and its number of threads do not count."""
    old, new = (flat(json.loads(to_json(tree))) for tree in (was, now))
    keys = sorted(key for key in old.keys() | new.keys() if key not in FREE and old.get(key) != new.get(key))
    return {key: f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in keys}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys.

    >>> flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def environment(
    *,
    device: str,
    precision: str,
    attention: str,
    layout: str,
    threads: int,
    ranks: int,
    torch_version: str,
    transformers_version: str,
) -> dict[str, Any]:
    """What the run ran on."""
    return {
        "druthers": __version__,
        "python": platform.python_version(),
        "torch": torch_version,
        "transformers": transformers_version,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": threads,
        "ranks": ranks,
        "device": device,
        "precision": precision,
        "attention": attention,
        "layout": layout,
        "commit": git("rev-parse", "HEAD").strip() or None,
    }


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """Output of a git command in the checkout of this code, or nothing where it was installed otherwise."""
    here = Path(__file__).parent
    if here.parent.name != "src" or not (here.parents[1] / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout if done.returncode == 0 else ""
    return ""


def note_code(run: Run) -> None:
    """Write the uncommitted changes of the code, so that the run can be read back to its source."""
    write_text(run.path("code.diff"), git("diff", "HEAD", "--", "."))
