"""The one tree of settings: TOML and dotted overrides in, complete JSON out.

A recipe is sparse TOML; what it leaves out has the default below. `load` merges recipe and overrides, refuses unknown
keys with the nearest known name, and returns a frozen `Settings`.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from druthers import compat
from druthers.objectives import ALSO_CALLED, SECTIONS, LossSettings, Section, SigmoidSettings, listed, owners
from druthers.online_settings import OnlineSettings, PPOSettings, RLOOSettings
from druthers.records import InputError


class ModelSettings(Section):
    """Which model is trained, and how its weights are held."""

    path: str = Field(
        "default",
        description="'default' (SmolLM2-135M-Instruct, packaged), a local folder, or a hub id, with @ and a commit, "
        "branch or tag behind it where a certain one is meant",
    )
    adapter: Literal["none", "lora", "qlora"] = Field(
        "none",
        description="'none' trains every weight; 'lora' a low-rank adapter; 'qlora' one over weights held in 4 bits "
        "(CUDA and bitsandbytes)",
    )
    lora_rank: int = Field(16, ge=1, description="rank of the LoRA matrices")
    lora_alpha: float = Field(32.0, gt=0, description="LoRA scale numerator: the update is multiplied by alpha / rank")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type; master weights are float32, but for train.optimizer=adamw-8bit and "
        "model.adapter=qlora. 'auto' is bfloat16 where the machine multiplies it fast",
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    layout: Literal["auto", "shared", "padding-free", "padded"] = Field(
        "auto",
        description="rows of tokens: 'shared' computes a prompt once for all its responses, 'padding-free' once for "
        "each, 'padded' fills rows up; 'auto' is the first of them that this model computes exactly",
    )

    @field_validator("adapter", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if value is None else value


Form = Literal[
    "druthers",
    "candidates",
    "trl",
    "hh",
    "openai",
    "sagemaker",
    "ratings",
    "ranking",
    "votes",
    "unpaired",
    "ultrafeedback",
    "shp",
    "groundtruth",
    "labelstudio",
    "argilla",
]
"""Every form of rows; docs/data-formats.md shows a line of each."""


class DataSettings(Section):
    """Where the pairs come from and which of them are used."""

    pairs: str | tuple[str, ...] = Field(
        "brand-voice", description="a packaged set by name, or a file, folder or URL of preferences, or a list of them"
    )
    heldout: str | tuple[str, ...] | None = Field(
        None, description="preferences never trained on; when unset, a share of the prompts is held out"
    )
    heldout_share: float = Field(0.1, gt=0, lt=1, description="share of prompts held out when `heldout` is unset")
    held_before: str | tuple[str, ...] = Field(
        "auto",
        description="prompts that were held out once and are not trained on: of heldout-prompts.txt files or runs, one "
        "or a list; 'auto': of the runs beside this one with the same seed (with `heldout`, a finding only); 'none'",
    )
    clusters: str | None = Field(
        None,
        description="a file of prompts by what they mean, made where it is missing and added to: those that say nearly "
        "the same land on one side, and stay there in later curations with the same file",
    )
    encoder: str = Field(
        "default",
        description="what embeds texts for `clusters` and `druthers inspect`: 'default' (all-MiniLM-L6-v2), a folder "
        "or hub id of a sentence encoder, or 'lexical' (by wording, without weights; not for `clusters`)",
    )
    format: Literal["auto"] | Form = Field("auto", description="form of the rows; 'auto' detects and says")
    columns: dict[str, str] = Field(
        {},
        description="what columns of the source are here: data.columns.question=prompt, data.columns.note=ignore; "
        "with it, other columns the form does not know are left aside",
    )
    bad_rows: Literal["stop", "drop"] = Field(
        "stop", description="a bad row stops the run, or is dropped, counted and kept aside"
    )
    personal: Literal["keep", "redact", "drop"] = Field(
        "keep",
        description="personal data and secrets stay and are counted, are replaced by their kind ('[mail]'), or their "
        "pairs are set aside",
    )
    keep: str | None = Field(
        None,
        description="lines of a rejected.jsonl whose pairs are put back: no filter sets them aside again, but for what "
        "keeps the sides apart",
    )
    limit: int | None = Field(None, ge=1, description="use only the first N training pairs")
    least_margin: float = Field(
        0.0, ge=0, description="training pairs graded closer than this are set aside; the held-out ones all stay"
    )
    max_prompt: int = Field(1024, ge=8, description="longest prompt in tokens; a longer one is a bad row")
    max_response: int = Field(
        512, ge=2, description="longest response in tokens; a longer one is cut, its end-of-turn kept, and counted"
    )

    @field_validator("held_before", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        if isinstance(value, list | tuple) and "none" in value:
            raise ValueError("'none' stands beside other names; leave it out, or use it alone")
        return "none" if value is None else value

    @field_validator("pairs", "heldout", "held_before")
    @classmethod
    def _something_is_named(cls, value: object) -> object:
        """An empty list names nothing."""
        if value == ():
            raise ValueError("names no source; give a file, a folder or a URL")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _names_may_hold_dots(cls, value: object) -> object:
        """On the command line `data.columns.a.b=prompt` means the column 'a.b'."""
        return dict(_leaves(value)) if isinstance(value, Mapping) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class TrainSettings(Section):
    """The optimizer step and its schedule."""

    reference: Literal["auto", "cache", "adapter", "copy"] = Field(
        "auto",
        description="reference log-probs: scored once and cached, from the adapter switched off, or from a second copy",
    )
    epochs: float = Field(1.0, gt=0, description="passes over the training pairs")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    pairs_per_step: int = Field(16, ge=1, description="pairs in one optimizer step")
    order: Literal["shuffled", "stratified"] = Field(
        "shuffled",
        description="'shuffled' leaves the mix of a step to chance; 'stratified' gives each step a cross-section "
        "by how much longer chosen is than rejected",
    )
    token_budget: int = Field(
        2048,
        ge=16,
        description="most tokens a process takes at once, padding too: in one micro-batch, or in the two that a CPU "
        "runs side by side",
    )
    recompute: Literal["auto", "none", "layers", "selective"] = Field(
        "auto",
        description="activations made again in the backward to save memory: 'selective' all but matrix products, "
        "'layers' whole layers; 'auto' is the least of it that fits the free memory",
    )
    compile: Literal["none", "layers"] = Field(
        "none",
        description="'layers': decoder layers as compiled code; less memory and, where one micro-batch runs at a time, "
        "less time a step, for some time at the start of the run",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw",
        description="'adamw-8bit' holds weights in bfloat16, rounded at random, and optimizer states in 8 bits: "
        "6 bytes a weight instead of 16",
    )
    learning_rate: float = Field(5e-6, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="shape after warm-up")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps that warm up linearly")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    clip_norm: float = Field(1.0, gt=0, description="largest global gradient norm")
    evaluate_every: int | None = Field(None, ge=1, description="steps between evaluations; unset: four in a run")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; unset: at each evaluation")
    best_metric: Literal["loss", "accuracy", "margin"] = Field(
        "loss", description="held-out metric that picks the kept checkpoint"
    )

    @field_validator("recompute", "compile", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if value is None else value

    @field_validator("compile")
    @classmethod
    def _compiled_layers_are_whole(cls, value: str, info: ValidationInfo) -> str:
        """Of compiled layers the products cannot be told from the rest."""
        if value == "layers" and info.data.get("recompute") == "selective":
            raise ValueError(
                "train.recompute = 'selective' keeps matrix products, which compiled layers do not show; "
                "use train.recompute=layers, or train.compile=none"
            )
        return value


class GradeSettings(Section):
    """From what annotators said to graded pairs."""

    labels: Literal["auto", "majority", "dawid-skene", "bradley-terry"] = Field(
        "auto",
        description="how opinions become the probability that a response is better; 'auto': one opinion by its "
        "strength, several on two responses by Dawid-Skene, several on three and more by Bradley-Terry",
    )
    ties: Literal["drop", "soft"] = Field(
        "drop", description="a tie gives no pair, or one with p = 0.5; what is bad on both sides never gives one"
    )
    strength: Literal["auto", "p", "margin", "none"] = Field(
        "auto",
        description="what the strength of an answer becomes; 'auto': the margin of a single rating, otherwise p",
    )
    least_gap: float = Field(0.0, ge=0, description="ratings that lie closer than this are ties, in points")
    margin_scale: float | None = Field(
        None, ge=0, description="margin of one point, in units of the reward; unset: the median gap has a margin of 1"
    )
    pairs: Literal["all", "best-worst", "adjacent"] = Field(
        "all", description="which pairs of a prompt with several responses; 'adjacent': neighbours in their order"
    )
    most: int | None = Field(None, ge=1, description="most pairs of a prompt, the clearest kept")
    combine: Literal["sum", "apart"] = Field(
        "sum", description="criteria summed into one preference by their weights, or pairs of each criterion"
    )
    criteria: dict[str, float] = Field(
        {},
        description="weights of the criteria by name ('overall' for what was said without one); empty: overall where "
        "it was said, otherwise all alike",
    )
    gates: dict[str, float] = Field(
        {}, description="criteria by name with the least rating a chosen response must have, before all else"
    )
    weight: Literal["prompt", "competence"] = Field(
        "prompt", description="the pairs of a prompt weigh 1 together, or the competence of those who judged it"
    )
    good: float | None = Field(
        None, description="rating from which on a response is good; unset: whether chosen responses are is not said"
    )
    gold: str | None = Field(
        None,
        description="a file of rows in any form of data whose answers are right: those who judge are measured by them, "
        "and their items are neither trained on nor held out",
    )

    @field_validator("strength", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if value is None else value

    @field_validator("criteria", "gates", mode="before")
    @classmethod
    def _numbers_not_switches(cls, value: object) -> object:
        """`true` must not pass for 1."""
        if isinstance(value, Mapping):
            for name, number in value.items():
                if isinstance(number, bool):
                    raise ValueError(f"{name} = {str(number).lower()} is not a number; give one")
        return value

    @field_validator("criteria")
    @classmethod
    def _weights_weigh(cls, value: dict[str, float]) -> dict[str, float]:
        """A criterion that does not count is left out, and none counts against itself."""
        for name, weight in value.items():
            if weight <= 0:
                raise ValueError(f"the weight {weight:g} of {name!r} is not above 0; leave the criterion out")
        return value


class EvaluateSettings(Section):
    """Answers of base and aligned model to held-out prompts, and their judge."""

    prompts: str | None = Field(None, description="file of prompts; unset: the prompts of the held-out pairs")
    count: int | None = Field(160, ge=1, description="how many prompts; unset: all of them")
    rubric: str | None = Field(None, description="rule rubric (TOML) that judges the answers; unset: no win rate")
    temperature: float = Field(
        0.7, gt=0, description="temperature of the sampled answers (greedy ones are always made too)"
    )
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus of the sampled answers")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    batch_size: int = Field(96, ge=1, description="answers generated at once")
    kl_prompts: int = Field(
        64, ge=0, description="prompts sampled at temperature 1 to estimate the KL to the reference; 0: none"
    )
    along: int = Field(
        0, ge=0, description="prompts answered at every evaluation in training, for reward against KL; 0: none"
    )


class Settings(Section):
    """Everything a run depends on."""

    run: str = Field("runs/align", description="the run directory")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="root of every random draw")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; unset: all physical cores, or as many as torchrun gives"
    )
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    grade: GradeSettings = GradeSettings()
    loss: LossSettings = SigmoidSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    online: OnlineSettings = OnlineSettings()
    ppo: PPOSettings = PPOSettings()
    rloo: RLOOSettings = RLOOSettings()


def known_keys(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key a user can set, the knobs of each loss included; a loss inside another is one key.

    >>> "train.learning_rate" in set(known_keys())
    True
    """
    for name, field in section.model_fields.items():
        options = [] if prefix == "loss." else groups_of(field.annotation)
        for option in options:
            yield from known_keys(option, f"{prefix}{name}.")
        if not options:
            yield f"{prefix}{name}"


def groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that a field may hold; none for a list of them."""
    members = (annotation, *(() if get_origin(annotation) is tuple else get_args(annotation)))
    return [t for t in members if isinstance(t, type) and issubclass(t, BaseModel)]


def load(
    recipe: str | Path | None = None, overrides: Iterable[str] = (), extra: Mapping[str, Any] | None = None
) -> Settings:
    """Recipe (a TOML path or a packaged recipe's name), then `extra` dotted keys, then 'dotted.key=value' overrides.

    Raises InputError for an unknown key (the nearest known one is offered), a wrong type or an unreadable recipe.

    >>> load(overrides=["train.learning_rate=1e-5", "loss.name=ipo"]).loss.name
    'ipo'
    """
    tree = {} if recipe is None else read_recipe(recipe)
    for key, value in (extra or {}).items():
        if value is not None:
            check_text(str(value))
            plant(tree, key, value)
    return validate(anchored(overridden(tree, overrides)))


def override(settings: Settings, overrides: Iterable[str]) -> Settings:
    """Settings with some 'dotted.key=value' changed; raises InputError as `load` does.

    >>> override(load(), ["train.epochs=2", "threads=1"]).train.epochs
    2.0
    """
    return validate(anchored(overridden(settings.model_dump(mode="json"), overrides)))


def overridden(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The tree itself, with 'dotted.key=value' planted in it."""
    for given in overrides:
        check_text(given)
        key, sign, text = given.partition("=")
        if not sign:
            raise InputError(f"{given!r} is not a setting; write dotted.key=value, for example train.epochs=2")
        plant(tree, key.strip(), parse_value(text.strip()))
    return tree


def check_text(text: str) -> None:
    """Raises InputError for what is not UTF-8, as the name of a file may be: a run could not write it down."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{text!a} is not UTF-8; rename the file or folder") from None


READ_AGAIN = (
    ("model", "path"),
    ("data", "encoder"),
    ("evaluate", "prompts"),
    ("evaluate", "rubric"),
    ("online", "reward"),
)
"""Settings naming what a finished run is read with again, perhaps from another working directory."""


def anchored(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the full path of what lies in the working directory now and is read again later."""
    for section, key in READ_AGAIN:
        group = tree.get(section)
        value = group.get(key) if isinstance(group, dict) else None
        if isinstance(value, str) and value not in ("default", "lexical", *recipe_names()) and os.path.exists(value):
            tree[section] = {**tree[section], key: str(Path(value).absolute())}
    return tree


def validate(tree: Mapping[str, Any]) -> Settings:
    """A tree of plain values to Settings; InputError says which key is wrong and what it may be.

    A loss without a name is the default one, so `loss.beta=0.2` alone means what it says; one with `compat` is written
    in the names of another system, and translated.
    """
    loss = tree.get("loss")
    if isinstance(loss, Mapping):
        ours = compat.translate(loss).loss if "compat" in loss else {"name": SigmoidSettings().name, **loss}
        tree = {**tree, "loss": ours}
    _refuse_switches(tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def compat_notes(recipe: str | Path | None = None, overrides: Iterable[str] = ()) -> tuple[str, ...]:
    """What is to be said of a loss that `load` with the same arguments translates; empty where it is written in ours.

    >>> compat_notes(overrides=["loss.compat=trl-1", "loss.loss_type=sigmoid"])
    ()
    """
    loss = overridden({} if recipe is None else read_recipe(recipe), overrides).get("loss")
    return compat.translate(loss).notes if isinstance(loss, Mapping) and "compat" in loss else ()


def _refuse_switches(tree: Mapping[str, Any], prefix: str = "") -> None:
    """No setting is a switch, and `true` must not pass for 1."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _refuse_switches(value, f"{prefix}{name}.")
        elif isinstance(value, list) and prefix == "loss.":
            for i, part in enumerate(value):
                _refuse_switches(part if isinstance(part, Mapping) else {}, f"{prefix}{name}.{i}.")
        elif isinstance(value, bool) and (f"{prefix}{name}" in set(known_keys()) or prefix.count(".") > 1):
            raise InputError(
                f"{prefix}{name} = {str(value).lower()}: no setting is true or false; give a number or a name"
            )


def explain(error: ValidationError) -> str:
    """The first fault of a validation error as one sentence with the dotted key."""
    fault = error.errors()[0]
    key, loss = place(fault["loc"])
    if fault["type"] == "extra_forbidden":
        given = fault["input"]
        while isinstance(given, Mapping) and given:
            leaf, given = next(iter(given.items()))
            key = f"{key}.{leaf}"
        return unknown(key, loss)
    if fault["type"].startswith("union_tag"):
        tag = str(fault.get("ctx", {}).get("tag", "nothing"))
        near = ALSO_CALLED.get(tag.lower()) or next(iter(difflib.get_close_matches(tag, SECTIONS, n=1)), None)
        known = f"did you mean {near!r}? " if near else ""
        return f"{key}.name: {tag!r} is not a loss here; {known}The losses are {listed(list(SECTIONS))}"
    why = fault["msg"].removeprefix("Value error, ")
    return f"{key} = {fault['input']!r}: {why[0].lower()}{why[1:]}"


def place(loc: tuple[int | str, ...]) -> tuple[str, str]:
    """The dotted key of a fault as a user writes it, and the loss whose section it is in.

    >>> place(("loss", "mixed", "parts", 0, "loss", "cdpo", "betta"))
    ('loss.parts.0.betta', 'cdpo')
    """
    path: list[str] = []
    loss = ""
    for part in loc:
        if part in SECTIONS and path and (path[-1] in ("loss", "inner") or path[-1].isdigit()):
            loss = str(part)
        elif not (part == "loss" and path):
            path.append(str(part))
    return ".".join(path), loss


def unknown(key: str, loss: str) -> str:
    """What to say of a key that no setting has, or that the chosen loss does not have."""
    leaf = key.rpartition(".")[2]
    peers = [peer for peer, (options, _) in compat.PEERS.items() if leaf in options]
    if loss and peers and not owners(leaf):
        return f"{key!r} is an option of {listed(peers)}; name the one you mean with loss.compat"
    if loss and owners(leaf):
        return f"{key!r} is a setting of {listed(owners(leaf))}, not of {loss!r}; choose one of them with loss.name"
    if loss:
        close = difflib.get_close_matches(leaf, SECTIONS[loss].model_fields, n=1, cutoff=0.5)
        elsewhere = [knob for section in SECTIONS.values() for knob in section.model_fields]
        near = close or difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.75)
        found = f"{key.rpartition('.')[0]}.{near[0]}" if near else nearest(key)
    else:
        found = nearest(key)
    hint = f"did you mean {found!r}?" if found else "`druthers doctor --settings` lists them all"
    return f"unknown setting {key!r}; {hint}"


def nearest(key: str) -> str | None:
    """The known key most like `key`, by the whole path or by its last part."""
    keys = list(dict.fromkeys(known_keys()))
    group, _, leaf = key.rpartition(".")
    if not group and (exact := [k for k in keys if k.rpartition(".")[2] == leaf]):
        return exact[0]  # in the order of the tree: of `epochs` the training's before PPO's
    same_leaf = [k for k in keys if difflib.get_close_matches(leaf, [k.rpartition(".")[2]], cutoff=0.75)]
    found = difflib.get_close_matches(key, same_leaf or keys, n=1, cutoff=0.5)
    return found[0] if found else (same_leaf[0] if same_leaf else None)


def plant(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in a nested dict."""
    *branches, leaf = key.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
        if not isinstance(tree, dict):
            raise InputError(f"{key!r}: {branch!r} is a value, not a group of settings")
    tree[leaf] = value


def parse_value(text: str) -> object:
    """A value written on the command line: TOML if it parses, otherwise (and for dates) the text; 'none' is unset.

    >>> parse_value("1e-5"), parse_value("true"), parse_value("data/my pairs.jsonl"), parse_value("none")
    (1e-05, True, 'data/my pairs.jsonl', None)
    """
    if text.lower() in ("none", "null"):
        return None
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    plain = tree.keys() == {"value"} and isinstance(tree["value"], bool | int | float | str | list | dict)
    return tree["value"] if plain else text


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    folder = resources.files("druthers") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe file, or a packaged recipe by name, as a tree of plain values."""
    path = Path(recipe)
    if str(recipe) in recipe_names():
        path = Path(str(resources.files("druthers") / "recipes" / f"{recipe}.toml"))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"recipe {str(recipe)!r} is neither a file nor one of {', '.join(recipe_names())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{recipe}: cannot be read: {error.strerror}") from None


def to_json(settings: Settings) -> str:
    """Complete JSON, every default written out."""
    return json.dumps(settings.model_dump(mode="json"), indent=2) + "\n"
