"""Recipes and overrides become one frozen tree; what is unknown or wrong is said with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import config
from druthers.config import Settings
from druthers.objectives import IPOSettings, SigmoidSettings
from druthers.records import InputError


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        config.load(overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_is_every_default() -> None:
    assert config.load() == Settings()


def test_overrides_win_over_extra_and_extra_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("seed = 1\nrun = 'r'\n[train]\nepochs = 2\nlearning_rate = 1e-4\n", encoding="utf-8")
    extra = {"train.epochs": 3, "seed": 2, "data.heldout": None}
    settings = config.load(recipe, ["train.epochs=4", "model.adapter=lora"], extra)
    assert (settings.seed, settings.run, settings.train.epochs, settings.train.learning_rate) == (2, "r", 4.0, 1e-4)
    assert (settings.model.adapter, settings.data.heldout) == ("lora", None)


@pytest.mark.parametrize("name", config.recipe_names())
def test_the_packaged_recipes_load_by_name(name: str) -> None:
    assert config.load(name).run == f"runs/{name}"


def test_the_loss_owns_its_knobs_and_sigmoid_is_meant_when_none_is_named() -> None:
    assert config.load(overrides=["loss.beta=0.2"]).loss == SigmoidSettings(beta=0.2)
    assert config.load(overrides=["loss.name=ipo", "loss.beta=0.5"]).loss == IPOSettings(beta=0.5)
    assert refused("loss.smoothing=0.2") == (
        "'loss.smoothing' is a setting of 'cdpo', 'robust', 'exo', 'aot', 'aot-unpaired', not of 'sigmoid'; "
        "choose one of them with loss.name"
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.learning_rat=1", "unknown setting 'train.learning_rat'; did you mean 'train.learning_rate'?"),
        ("learning_rate=1", "unknown setting 'learning_rate'; did you mean 'train.learning_rate'?"),
        ("trian.epochs=1", "unknown setting 'trian.epochs'; did you mean 'train.epochs'?"),
        ("loss.betta=1", "unknown setting 'loss.betta'; did you mean 'loss.beta'?"),
        ("zzz=1", "unknown setting 'zzz'; `druthers doctor --settings` lists them all"),
        ("=1", "unknown setting ''; `druthers doctor --settings` lists them all"),
        ("train.epochs", "'train.epochs' is not a setting; write dotted.key=value, for example train.epochs=2"),
        ("train.epochs=many", "train.epochs = 'many': input should be a valid number"),
        ("train.epochs=0", "train.epochs = 0: input should be greater than 0"),
        ("train.epochs=nan", "train.epochs = nan: input should be a finite number"),
        ("train.epochs.x=1", "train.epochs = {'x': 1}: input should be a valid number"),
        ("train=5", "train = 5: input should be a valid dictionary"),
        ("data.bad_rows=skip", "data.bad_rows = 'skip': input should be 'stop' or 'drop'"),
        ("loss.name=dpo", "loss.name: 'dpo' is not a loss here; did you mean 'sigmoid'? The losses are 'sigmoid', "),
        ("loss=ipo", "loss = 'ipo': input should be a valid dictionary"),
        ("seed=99999999999999999999", "seed = 99999999999999999999: input should be less than or equal to 92233720368"),
        ("threads=1025", "threads = 1025: input should be less than or equal to 1024"),
        (
            "threads=100000000000000000000",
            "threads = 100000000000000000000: input should be less than or equal to 1024",
        ),
        ("seed=-1", "seed = -1: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_is_said_with_the_remedy(override: str, sentence: str) -> None:
    assert refused(override).startswith(sentence)


def test_a_group_and_a_value_under_one_name_are_refused() -> None:
    assert refused("train=5", "train.epochs=2") == "'train.epochs': 'train' is a value, not a group of settings"


def test_a_rule_of_ours_is_said_in_its_own_words() -> None:
    said = refused("train.compile=layers", "train.recompute=selective")
    assert said.startswith("train.compile = 'layers': train.recompute = 'selective' keeps matrix products")


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfseed = 7\n")
    assert config.load(tmp_path / "bom.toml").seed == 7


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text("seed = \n", encoding="utf-8")
    latin.write_bytes(b"run = '\xe9'\n")
    for recipe, sentence in (
        ("no-such", "recipe 'no-such' is neither a file nor one of brand-voice, hh"),
        (broken, f"{broken}: not valid TOML: "),
        (latin, f"{latin}: not valid TOML: "),
        (tmp_path, f"{tmp_path}: cannot be read: "),
    ):
        with pytest.raises(InputError) as caught:
            config.load(recipe)
        assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-5", 1e-5),
        ("false", False),
        ('"5"', "5"),
        ("[1, 2]", [1, 2]),
        ("None", None),
        ("", ""),
        ("s3://bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("2024-01-01", "2024-01-01"),
        ("12:00:00", "12:00:00"),
        ("1\nseed = 2", "1\nseed = 2"),
        ("C:\\data", "C:\\data"),
    ],
)
def test_values_of_the_command_line(text: str, value: object) -> None:
    assert config.parse_value(text) == value


def test_a_name_that_looks_like_a_number_or_a_date_is_a_name() -> None:
    assert config.load(overrides=["run=2024-01-01", "model.path=7"]).run == "2024-01-01"
    assert config.load(overrides=["model.path=7"]).model.path == "7"


def test_the_tree_is_complete_in_json_and_reads_back() -> None:
    settings = config.load("hh", ["loss.name=ipo", "data.limit=5", "threads=2"])
    written = json.loads(config.to_json(settings))
    assert config.validate(written) == settings
    assert set(written["train"]) == set(type(settings.train).model_fields)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load().seed = 3  # type: ignore[misc]


@settings(deadline=None)
@given(st.sampled_from(sorted(config.known_keys())), st.integers(0, 30))
def test_a_slip_of_one_letter_finds_the_setting_again(key: str, at: int) -> None:
    leaf = key.rpartition(".")[2]
    start = len(key) - len(leaf) + at % len(leaf)
    slip = key[:start] + key[start + 1 :]
    if len(leaf) > 4:
        assert config.nearest(slip) == key


@given(st.floats(1e-9, 1.0), st.integers(1, 10**6), st.sampled_from(["linear", "cosine", "constant"]))
def test_what_an_override_says_is_what_the_settings_hold(rate: float, steps: int, schedule: str) -> None:
    train = config.load(
        overrides=[f"train.learning_rate={rate!r}", f"train.max_steps={steps}", f"train.schedule={schedule}"]
    ).train
    assert (train.learning_rate, train.max_steps, train.schedule) == (rate, steps, schedule)


@pytest.mark.parametrize("key", ["seed", "train.epochs", "data.pairs", "loss.beta"])
def test_true_does_not_pass_for_a_number_or_a_name(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key} = true: no setting is true or false"):
        config.load(overrides=[f"{key}=true"])


def test_what_is_read_again_later_is_kept_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "voice.toml").touch()
    monkeypatch.chdir(tmp_path)
    settings = config.load(overrides=["model.path=model", "evaluate.rubric=voice.toml", "evaluate.prompts=owner/name"])
    assert settings.model.path == str(tmp_path / "model")
    assert (settings.evaluate.rubric, settings.evaluate.prompts) == (str(tmp_path / "voice.toml"), "owner/name")
    monkeypatch.chdir("/")
    assert config.load(overrides=["model.path=default", "evaluate.rubric=brand-voice"]).model.path == "default"


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_done() -> None:
    """As the shell hands it over: a byte that is no text is half of a surrogate pair."""
    assert "is not UTF-8; rename the file or folder" in refused("run=runs/\udcff")
    with pytest.raises(InputError, match=r"'runs/\\udcff' is not UTF-8"):
        config.load(extra={"run": "runs/\udcff"})
