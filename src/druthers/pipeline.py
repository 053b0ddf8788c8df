"""The main job: curate, train, evaluate, report, in order, each skipped where its result already stands in the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError

from druthers import lowbit, models, storage
from druthers.allocation import release
from druthers.blocks import TokenizedPairs
from druthers.config import ModelSettings, Settings, override
from druthers.corpus import tokenized
from druthers.counsel import write_advice
from druthers.curate import curate, examination, fingerprint
from druthers.devices import ALONE, World
from druthers.evaluate import evaluate, make_along, underneath
from druthers.evaluate.along import SAMPLES, Along, Watch, measure
from druthers.judges import load_rubric
from druthers.memory import peak_gib
from druthers.models import Loaded
from druthers.objectives import described
from druthers.records import InputError, Pair, Prompt
from druthers.report import card, write_data_page, write_report
from druthers.run import CURATED, INPUTS, OF_CURATION, Run, differences, environment, note_code
from druthers.session import Screen, Session, session
from druthers.train import train
from druthers.train.checkpoint import best_weights
from druthers.train.loop import loss_of, make_schedule

SIDES = ("train", "heldout")


def align(settings: Settings, *, screen: Screen) -> dict[str, Any]:
    """curate -> train -> evaluate -> report in one run directory; returns the summary with the path of the report.

    Started by torchrun, all ranks curate (rank 0 does) and train; rank 0 then evaluates and reports alone, and the
    others return nothing.
    """
    prepare(settings)
    with session(settings, screen=screen) as here:
        here.world.first(lambda: check_evaluation(here.run, settings))
        policy = learn(here, settings)
        here.world.leave()
        if not here.world.leads:
            return {}
        evaluate_stage(here.run, settings, screen=here.screen, policy=policy)
        return report_stage(here.run, screen=here.screen)


def learn(here: Session, settings: Settings) -> Loaded | None:
    """curate -> train; the policy at its best checkpoint, or None where it must be loaded."""
    here.world.first(lambda: curate_stage(here.run, settings, screen=here.screen))
    return train_stage(here.run, settings, screen=here.screen, world=here.world)


def prepare(settings: Settings) -> None:
    """Threads as asked for, transformers' own bars off, and settings that exclude one another refused."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    models.quiet()
    models.device_named(settings.model.device)
    loss_of(settings)
    if settings.train.optimizer == "adamw-8bit":
        lowbit.check_narrow(settings.model)
    if settings.model.adapter == "qlora":
        lowbit.check_4bit(models.device_named(settings.model.device))


def load_model(settings: Settings) -> Loaded:
    """The model of a run before training, its weights in the type that the run holds them in."""
    held = torch.bfloat16 if settings.train.optimizer == "adamw-8bit" else torch.float32
    return models.load(settings.model, seed=settings.seed, held=held)


def check_evaluation(run: Run, settings: Settings) -> None:
    """Read the rubric and the prompts now: a fault in them must not wait until the training is done."""
    own = settings.evaluate
    if run.begun():
        return
    if own.rubric is not None:
        load_rubric(own.rubric)
    if own.prompts is not None:
        for _ in storage.read(own.prompts, Prompt):
            pass


def timed(run: Run, stage: str, *, since: float) -> None:
    """Note how long a stage took."""
    run.update_summary({"seconds": {stage: round(time.monotonic() - since, 1)}})


def curate_stage(run: Run, settings: Settings, *, screen: Screen, told: bool = True) -> dict[str, Any]:
    """data/ with both sides, what was refused, summary, quality and card; returns the summary.

    What came out is `told` in a few lines, unless whoever calls shows it.
    """
    if run.changed:
        screen.say(f"  changed since the last session: {'; '.join(run.changed)}")
    check_curated(run)
    if not run.has(CURATED) or outdated(run, settings, screen=screen):
        screen.stage("curate")
        since = time.monotonic()
        tokenizer = models.load_tokenizer(settings.model)
        models.check_model(settings.model)
        lost = examination.forget(run.path(CURATED).parent)
        curate(
            settings,
            out=run.path(CURATED).parent,
            tokenizer=tokenizer,
            workers=torch.get_num_threads(),
            beside=run.folder,
            today=datetime.now(UTC).date(),
            progress=screen.bar("rows"),
        )
        write_advice(run, bars=screen.bar)
        screen.clear()
        if lost:
            screen.say(f"  {lost}")
        storage.write_text(run.path("data/README.md"), card(run.folder))
        timed(run, "curate", since=since)
    found = run.json(CURATED)
    rejected = sum(found["rejected"].values())
    run.update_summary({"pairs": {"train": found["train"], "heldout": found["heldout"], "rejected": rejected}})
    if told:
        tell_curated(found, settings, screen=screen)
    return found


def tell_curated(found: dict[str, Any], settings: Settings, *, screen: Screen) -> None:
    """What came out of curation, in a few lines."""
    rejected = sum(found["rejected"].values())
    screen.say(
        f"{found['train']:,} training pairs, {found['heldout']:,} held out, {rejected:,} set aside "
        f"({found['format']} rows from {storage.listed(settings.data.pairs)})"
    )
    for reason, count in sorted(found["rejected"].items()):
        screen.say(f"  {count:,} {reason.replace('_', ' ')} (data/rejected.jsonl says why)")
    for reason, count in sorted(((found.get("graded") or {}).get("unpaired") or {}).items()):
        screen.say(f"  {count:,} comparisons gave no pair: {reason.replace('_', ' ')} (data/unpaired.jsonl has them)")
    if again := (found.get("held_before") or {}).get("prompts"):
        screen.say(f"  {again:,} prompts kept out of training, as they were held out before (data.held_before)")
    if sum(found["cut"].values()):
        cut = f"{found['cut']['chosen']:,} chosen, {found['cut']['rejected']:,} rejected responses"
        screen.say(f"  cut to {settings.data.max_response} tokens: {cut}")


def inspect_stage(
    run: Run, settings: Settings, *, prompts: str | None, encoder: str | None, most: int, screen: Screen
) -> dict[str, Any]:
    """Quality that takes embeddings or the model, in data/quality.json, its page and the card.

    Works before and after training, by the model as it is before it. Returns the findings, the verdict on all, and the
    paths of the page and of the prompts to collect ("" where there are none).
    """
    screen.stage("inspect")
    rubric = None if settings.evaluate.rubric is None else load_rubric(settings.evaluate.rubric)
    data = run.path(CURATED).parent
    examination.read_quality(data)  # a damaged file is said before minutes are spent
    loaded = load_reference(settings)
    check_same_model(run, loaded)
    found = examination.examine(
        data,
        settings,
        loaded=loaded,
        encoder=encoder or settings.data.encoder,
        prompts=prompts,
        rubric=rubric,
        outcomes=final_outcomes(run),
        most=most,
        bars=screen.bar,
    )
    screen.clear()
    whole = examination.write(found, data)
    write_advice(run, bars=screen.bar)
    screen.clear()
    storage.write_text(run.path("data/README.md"), card(run.folder))
    return {
        "run": str(run.folder),
        "verdict": whole["verdict"],
        "findings": [one.model_dump(mode="json") for one in found.findings],
        "page": str(write_data_page(run.folder)),
        "collect": str(data / examination.UNCOVERED) if found.wanted else "",
        "prompts": len(found.wanted),
    }


def inspection_settings(run: Run, overrides: Sequence[str]) -> Settings:
    """The settings of a run with some changed for one inspection; what curation used stays as it is.

    Raises InputError for a run without curated pairs, and for a setting that they rest on.
    """
    own = run.settings().model_copy(update={"run": str(run.folder)})
    asked = override(own, overrides)
    fixed = [change for key, change in differences(own, asked).items() if key.startswith(OF_CURATION)]
    if fixed:
        raise InputError(f"the pairs of {run.folder} were curated with another setting ({fixed[0]}); leave it out")
    if not all(run.has(name) for name in (CURATED, *(f"data/{side}.jsonl" for side in SIDES))):
        raise InputError(
            f"{run.folder} holds no curated pairs; run `druthers curate` with the settings of this run first"
        )
    return asked


def load_reference(settings: Settings) -> Loaded:
    """The model as it is before training, without an adapter, which changes nothing before the first step."""
    plain = (
        settings.model.model_copy(update={"adapter": "none"}) if settings.model.adapter == "lora" else settings.model
    )
    return load_model(settings.model_copy(update={"model": plain}))


def final_outcomes(run: Run) -> tuple[Path, int] | None:
    """The outcomes of a run that is trained to its end, and the step of its checkpoint."""
    outcomes = run.folder / "outcomes.parquet"
    if "train" not in run.summary() or not outcomes.is_file():
        return None
    return outcomes, int(run.summary()["train"]["best_step"])


def check_curated(run: Run) -> None:
    """Pairs that were trained on are not split anew, which could hold them out; raises InputError where they would be.

    Also for a data/summary.json that does not say what it must.
    """
    if run.begun() and not run.has(CURATED):
        raise InputError(
            f"{run.folder} has begun to train, but its {CURATED} is gone, and pairs that were trained on could come to "
            "be held out if they were curated again; restore the data folder, or start a new run with run=FOLDER"
        )
    wanted = {"train", "heldout", "rejected", "cut", "format", "source_sha256"}
    if run.has(CURATED) and (missing := wanted - run.json(CURATED).keys()):
        raise run.damaged(CURATED, f"{min(missing)} is missing in it")


def outdated(run: Run, settings: Settings, *, screen: Screen) -> bool:
    """Whether the pairs changed after they were curated and no step has used them yet."""
    if run.begun():
        return False
    with contextlib.suppress(InputError):
        if run.json(CURATED)["source_sha256"] != fingerprint(settings):
            screen.say(f"  {storage.listed(settings.data.pairs)} has changed since it was curated, so it is read again")
            return True
    return False


def read_pairs(run: Run, part: str, tokenizer: Any, settings: Settings, *, screen: Screen) -> TokenizedPairs:
    """One side of the curated data as token ids, on disk and mapped into memory."""
    return tokenized(
        run.path(f"data/{part}.jsonl"),
        tokenizer,
        max_prompt=settings.data.max_prompt,
        max_response=settings.data.max_response,
        workers=torch.get_num_threads(),
        progress=screen.bar(f"{part} pairs tokenized"),
    )


def read_sides(run: Run, policy: Loaded, settings: Settings, *, screen: Screen) -> list[TokenizedPairs]:
    """Training and held-out pairs."""
    return [read_pairs(run, side, policy.tokenizer, settings, screen=screen) for side in SIDES]


def train_stage(run: Run, settings: Settings, *, screen: Screen, world: World = ALONE) -> Loaded | None:
    """Checkpoints, metrics and outcomes; the policy at its best checkpoint.

    None when all that stood already, and with several ranks, whose weights are in parts.
    """
    if world.first(lambda: "train" in run.summary()):
        return None
    screen.stage("train")
    since = time.monotonic()
    check_along(settings, ranks=world.size)
    policy = load_model(settings)
    world.first(lambda: note_inputs(run, settings, policy, ranks=world.size))
    if world.size > 1:  # rank 0 makes what the others open
        world.first(lambda: [len(part) for part in read_sides(run, policy, settings, screen=screen)])
    pairs, heldout = read_sides(run, policy, settings, screen=screen)
    say_plan(settings, policy, pairs, screen=screen, ranks=world.size)
    section = train(
        run,
        settings,
        policy,
        pairs=pairs,
        heldout=heldout,
        note=watcher(screen, settings, len(pairs)),
        scoring=screen.bar("reference log-probs"),
        say=screen.say,
        watch=watch_along(run, settings, screen=screen),
        world=world,
    )
    screen.clear()
    world.first(lambda: note_training(run, section, since=since, screen=screen))
    if world.size > 1:
        del policy
        gc.collect()
        return None
    models.restore_trainable(policy, best_weights(run.folder))
    gc.collect()
    release()
    return policy


def note_training(run: Run, section: dict[str, Any], *, since: float, screen: Screen) -> None:
    """The training in the summary and on the screen."""
    run.update_summary({"train": section})
    timed(run, "train", since=since)
    screen.say(
        f"{section['steps']} steps at {section['pairs_per_second']:.2f} pairs/s; "
        f"best checkpoint: step {section['best_step']}"
    )


def note_inputs(run: Run, settings: Settings, policy: Loaded, *, ranks: int) -> None:
    """environment.json, inputs.json and code.diff; a run that is continued must be on the same weights and pairs."""
    check_same_model(run, policy)
    data = {side: storage.sha256(run.path(f"data/{side}.jsonl")) for side in SIDES}
    check_same_data(run, data)
    heldout = storage.locate(settings.data.pairs, settings.data.heldout).heldout
    note = {
        "pairs": {"path": storage.listed(settings.data.pairs), "sha256": data["train"]},
        "heldout": {"path": storage.listed(heldout), "sha256": data["heldout"]} if heldout else None,
        "data": data,
    }
    storage.write_json(run.path(INPUTS), note | note_model(policy))
    note_machine(run, policy, ranks=ranks)


def note_model(policy: Loaded) -> dict[str, Any]:
    """What inputs.json says of the model: its name, the hash of its base weights, how many, and its chat template."""
    added = sum(weight.numel() for weight in models.trainable(policy).values()) if policy.adapted else 0
    size = sum(map(lowbit.count, policy.causal.parameters())) - added
    return {
        "model": {"name": policy.name, "sha256": policy.sha, "parameters": size},
        "chat_template_sha256": hashlib.sha256(policy.tokenizer.chat_template.encode()).hexdigest(),
    }


def note_machine(run: Run, policy: Loaded, *, ranks: int) -> None:
    """environment.json and code.diff."""
    world = environment(
        device=str(policy.device),
        precision=str(policy.compute).removeprefix("torch."),
        attention=str(policy.causal.config._attn_implementation),
        layout=policy.layout.text,
        threads=torch.get_num_threads(),
        ranks=ranks,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
    )
    storage.write_json(run.path("environment.json"), world)
    note_code(run)


def say_plan(settings: Settings, policy: Loaded, pairs: TokenizedPairs, *, screen: Screen, ranks: int) -> None:
    """Print what follows from the settings before the first step."""
    t = settings.train
    trained = sum(weight.numel() for weight in models.trainable(policy).values())
    total = make_schedule(len(pairs), t).total
    used = min(len(pairs), total * t.pairs_per_step)
    tokens = float((pairs.facts.lengths_B3 @ (2, 1, 1)).mean())
    screen.say(
        f"{policy.name}: {trained / 1e6:.1f} M weights trained ({'LoRA' if policy.adapted else 'all'}), "
        f"{str(policy.compute).removeprefix('torch.')} compute on {policy.device}, {torch.get_num_threads()} threads"
    )
    screen.say(f"rows: {policy.layout.text}")
    if ranks > 1:
        screen.say(f"weights split over {ranks} processes, which share the pairs of every step")
    screen.say(
        f"{total:,} steps of {t.pairs_per_step} pairs: {used:,} of {len(pairs):,} pairs, {tokens:,.0f} tokens each; "
        f"{settings.loss.name} loss, learning rate {t.learning_rate:g}"
    )
    if settings.evaluate.along:
        points = len(make_schedule(len(pairs), t).evaluate) + 1
        screen.say(
            f"reward against KL at {points} points: {SAMPLES * settings.evaluate.along} answers each, of up to "
            f"{settings.evaluate.max_new_tokens} tokens (`druthers plan` says how long that takes)"
        )


def watcher(screen: Screen, settings: Settings, count: int) -> Callable[[dict[str, Any]], None]:
    """A callback that moves the training bar and says each evaluation."""
    bar, total = screen.bar("steps"), make_schedule(count, settings.train).total

    def note(row: dict[str, Any]) -> None:
        if row["split"] == "train":
            bar(row["step"], total)
        elif row["step"]:
            screen.say(
                f"step {row['step']}: held-out loss {row['loss']:.4f}, accuracy {row['rewards/accuracies']:.1%}, "
                f"margin {row['rewards/margins']:+.3f}"
            )

    return note


def check_along(settings: Settings, *, ranks: int) -> None:
    """Answers are made by one process, which with several ranks has only a part of the weights."""
    if settings.evaluate.along and ranks > 1:
        raise InputError(
            f"evaluate.along = {settings.evaluate.along} answers prompts in training, which {ranks} processes that "
            "split the weights cannot; use evaluate.along=0, and `druthers evaluate RUN --along N` afterwards"
        )


def watch_along(run: Run, settings: Settings, *, screen: Screen) -> Watch | None:
    """What training calls at its evaluations; None where nothing is to be measured there."""
    if not settings.evaluate.along:
        return None
    along = along_of(run, settings)

    def watch(policy: Loaded, step: int) -> None:
        line = measure(along, policy, step, keep=lambda other: other < step)
        screen.say(said_of(line))

    return watch


def along_of(run: Run, settings: Settings) -> Along:
    """What is measured at every checkpoint of the run."""
    base = functools.partial(reference_of, settings=settings)
    return make_along(run, settings=settings, base=base, cache=storage.cache_folder("answers"))


@contextlib.contextmanager
def reference_of(policy: Loaded, *, settings: Settings) -> Iterator[Loaded]:
    """The reference of a policy: the model beneath its adapter, or a load of its own that does not stay in memory."""
    if policy.adapted:
        with underneath(policy):
            yield policy
    else:
        yield load_model(settings)


def said_of(line: dict[str, Any]) -> str:
    """A point along training as one line on the screen."""
    reward, far = line["reward"]["value"], line["kl"]["k1"]["value"]
    worth = "" if reward is None else f"reward {reward:.3f}, win rate {line['win_rate']['value']:.1%}, "
    nats = "not known" if far is None else f"{far:.2f} nats"
    return f"step {line['step']}: {worth}KL {nats}, {line['length']:.0f} tokens ({line['seconds']:.0f} s)"


def along_stage(run: Run, settings: Settings, *, prompts: int, screen: Screen) -> list[dict[str, Any]]:
    """Points of the kept checkpoints of a trained run, and of the model it began with; returns their lines."""
    if not any(run.folder.glob(KEPT)):
        raise InputError(f"{run.folder} has kept no checkpoint; run `druthers train` or `druthers align` first")
    screen.stage("evaluate")
    own = settings.evaluate.model_copy(update={"along": prompts})
    along = along_of(run, settings.model_copy(update={"evaluate": own}))
    policy = load_model(settings)
    check_same_model(run, policy)
    lines = [measure(along, policy, 0, keep=always)]
    screen.say(said_of(lines[0]))
    for step, weights in kept_weights(run).items():
        models.restore_trainable(policy, weights)
        lines.append(measure(along, policy, step, keep=always))
        screen.say(said_of(lines[-1]))
    return lines


KEPT = "checkpoints/step-*/weights.safetensors"


def kept_weights(run: Run) -> dict[int, Path]:
    """The weights of every kept checkpoint, by step."""
    found = {int(file.parent.name.partition("-")[2]): file for file in run.folder.glob(KEPT)}
    return dict(sorted(found.items()))


def always(step: int) -> bool:
    """Every other line of the file stays."""
    return True


def load_policy(run: Run) -> Loaded:
    """The aligned model of a finished run: base weights with the best checkpoint on top."""
    weights = best_weights(run.folder)
    policy = load_model(run.settings())
    check_same_model(run, policy)
    models.restore_trainable(policy, weights)
    return policy


def check_same_model(run: Run, policy: Loaded) -> None:
    """Checkpoints and log-probs of a run belong to the base weights it began with; raises InputError for others."""
    began = began_with(run, "model", "sha256") or policy.sha
    if began != policy.sha:
        raise InputError(
            f"{run.folder} was begun with other weights of {policy.name!r} ({began[:12]}, now {policy.sha[:12]}); "
            "restore those weights, or start a new run with run=FOLDER"
        )


def check_same_data(run: Run, now: dict[str, str]) -> None:
    """The pairs of a run that has begun to train are those it began with; raises InputError for others."""
    if not run.begun():
        return
    for side, found in now.items():
        began = began_with(run, "data", side) or (began_with(run, "pairs", "sha256") if side == "train" else None)
        if began not in (None, found):
            raise InputError(
                f"{run.folder} was begun with another data/{side}.jsonl ({began[:12]}, now {found[:12]}); "
                "restore that file, or start a new run with run=FOLDER"
            )


def began_with(run: Run, part: str, key: str) -> str | None:
    """A hash in inputs.json; None where the run has none of it, InputError where the file is damaged."""
    if not run.has(INPUTS):
        return None
    note = run.json(INPUTS)
    if part == "data" and part not in note:  # a run of an older version
        return None
    group = note.get(part)
    value = group.get(key) if isinstance(group, dict) else None
    if not isinstance(value, str):
        raise run.damaged(INPUTS, f"holds no {part}.{key}")
    return value


def load_base(policy: Loaded, settings: Settings) -> Loaded:
    """The reference beside a policy: the same object under an adapter (switched off where needed), or a fresh load."""
    return policy if policy.adapted else load_model(settings)


def evaluate_stage(run: Run, settings: Settings, *, screen: Screen, policy: Loaded | None) -> None:
    """evaluation/ and the headline keys of the summary."""
    found = run.summary()
    if "verdict" in found:
        return
    if "train" not in found:
        raise InputError(f"{run.folder} is not trained to its end; run `druthers train` or `druthers align` first")
    screen.stage("evaluate")
    since = time.monotonic()
    policy = policy or load_policy(run)
    if run.has("data/heldout.jsonl"):  # a run on sampled answers has prompts alone
        check_same_data(run, {"heldout": storage.sha256(run.path("data/heldout.jsonl"))})
    cache = storage.cache_folder("answers")
    headline = evaluate(
        run,
        settings=settings,
        policy=policy,
        reference=load_base(policy, settings),
        progress=screen.bar("answers"),
        cache=cache,
    )
    screen.clear()
    run.update_summary(headline)
    timed(run, "evaluate", since=since)
    peak = max(found["train"]["peak_memory_gib"], round(peak_gib(policy.device), 3))
    run.update_summary({"train": {"peak_memory_gib": peak}})


def report_stage(run: Run, *, screen: Screen) -> dict[str, Any]:
    """report.html; returns the summary with the run directory and the path of the report."""
    screen.stage("report")
    since = time.monotonic()
    page = write_report(run.folder)
    write_data_page(run.folder)
    timed(run, "report", since=since)
    return {**run.summary(), "run": str(run.folder), "report": str(page)}


def export(run: Run, folder: Path) -> dict[str, Any]:
    """A merged Hugging Face folder of the aligned model with its card."""
    models.check_new(folder)
    prepare(run.settings())
    policy = load_policy(run)
    models.save_folder(policy, folder, card=model_card(run, policy))
    return {
        "folder": str(folder),
        "run": str(run.folder),
        "model": policy.name,
        "step": run.json("checkpoints/best.json")["step"],
    }


def model_card(run: Run, policy: Loaded) -> str:
    """README.md of an exported model: what it is, what it was trained on, what was measured, what is not known."""
    settings, summary = run.settings(), run.summary()
    win, heldout = summary.get("win_rate") or {}, summary.get("heldout", {})
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{summary.get('train', {}).get('method', 'dpo')}, preference-alignment, druthers]",
        "---",
        "",
        f"# {policy.name}, aligned with `{storage.listed(settings.data.pairs)}`",
        "",
        f"Base model: {policy.name} (weights SHA-256 `{policy.sha[:16]}`); its licence applies to this model too.",
        f"Method: {method_of(settings, summary)}, "
        f"{'LoRA adapter merged in float32' if policy.adapted else 'all weights trained'}, "
        f"learning rate {settings.train.learning_rate:g}, "
        f"checkpoint of step {run.json('checkpoints/best.json')['step']}.",
        data_of(summary),
        "",
        "| measured on held-out data | value | 95 % interval | n |",
        "|---|---|---|---|",
        *(
            card_row(name, found)
            for name, found in (
                ("win rate over the base model", win),
                ("implicit reward accuracy", heldout.get("accuracy", {})),
            )
        ),
        "",
        "The win rate is by the rule rubric of the run, not by people. "
        "Nothing here was measured about facts, safety or other languages than the data's.",
        "",
        f"Made with druthers {run.json('environment.json').get('druthers', '')}.",
        "",
    ]
    return "\n".join(lines)


def method_of(settings: Settings, summary: dict[str, Any]) -> str:
    """What moved the weights, in a few words of a card."""
    train = summary.get("train", {})
    if "method" not in train:
        return (
            f"Direct Preference Optimization ({described(settings.loss)}), {settings.train.pairs_per_step} pairs a step"
        )
    name = {"ppo": "Proximal Policy Optimization", "rloo": "REINFORCE leave-one-out"}[train["method"]]
    return f"{name} on sampled answers (reward `{settings.online.reward}`, beta {train['beta']:g} at the end)"


def data_of(summary: dict[str, Any]) -> str:
    """What it was trained on, in a sentence of a card."""
    train, counts = summary.get("train", {}), summary.get("pairs", {})
    if "method" in train:
        return f"Data: {train['answers']} answers of its own to {train['prompts']} prompts."
    return f"Data: {train.get('pairs')} of {counts.get('train')} training pairs, {counts.get('heldout')} held out."


def card_row(name: str, found: dict[str, Any]) -> str:
    """One line of the card's table."""
    if found.get("value") is None:
        return f"| {name} | not measured | | |"
    return f"| {name} | {found['value']:.1%} | {found['low']:.1%} to {found['high']:.1%} | {found['n']} |"


def sample(
    prompts: str,
    out: Path,
    *,
    model: ModelSettings,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    limit: int | None,
    screen: Screen,
    best_of: int = 1,
    reward: str | None = None,
) -> dict[str, Any]:
    """Responses of a model to a file of prompts, as unrated `Candidates`; each the best of some by a reward, if asked.

    Raises InputError where a reward and how many it chooses from do not come together.
    """
    from itertools import islice

    from druthers import rewards
    from druthers.generation import transformers_generator
    from druthers.records import Candidate, Candidates

    storage.check_apart(prompts, out)
    if (best_of > 1) != (reward is not None):
        raise InputError("--best-of N takes --reward, which says what is best, and --reward takes --best-of above 1")
    asked = list(islice(prompts_in(prompts), limit))
    loaded = models.load(model)
    score = None if reward is None else rewards.reward_named(reward, device=loaded.device)

    def rows() -> Iterator[Candidates]:
        """Sampled once the output file is open, so that a place that cannot be written costs no sampling."""
        generate = transformers_generator(loaded, batch_size=batch_size, model_name=loaded.name)
        if score is not None:
            generate = rewards.best_of(generate, score, count=best_of)
        answers = generate(
            [row.prompt for row in asked],
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=screen.bar("answers"),
        )
        screen.clear()
        for row, some in zip(asked, answers, strict=True):
            responses = tuple(Candidate(content=a.response, source=loaded.name) for a in some)
            yield Candidates(prompt=row.prompt, group=row.group, responses=responses)

    written = storage.write(out, rows())
    return dataclasses.asdict(written) | {"prompts": len(asked), "samples": samples, "model": loaded.name}


def prompts_in(path: str) -> Iterator[Prompt]:
    """The prompts of a file of prompts, or of one of pairs, each once; InputError for a line that is neither."""
    met: set[str] = set()
    for where, row in storage.rows(path):
        if "chosen" not in row:
            yield storage.parse(row, Prompt, where=where)
            continue
        pair = storage.parse(row, Pair, where=where)
        if pair.prompt_id not in met:
            met.add(pair.prompt_id)
            yield Prompt(prompt=pair.prompt, group=pair.group)


def judge(
    candidates: str,
    out: Path,
    *,
    rubric: str,
    margin_scale: float,
    most: int | None,
    length_cost: float,
    screen: Screen,
) -> dict[str, Any]:
    """Rated candidates to graded pairs; prompts that give none (all responses tie, or none is fit) are counted."""
    from druthers.curate import pairs_from_ranking
    from druthers.judges import rate
    from druthers.records import Candidates

    storage.check_apart(candidates, out)
    rules, without, prompts = load_rubric(rubric), 0, 0
    pairs: list[Pair] = []
    bar = screen.bar("prompts")
    for row in storage.read(candidates, Candidates):
        try:
            found = pairs_from_ranking(
                rate(rules, row), margin_scale=margin_scale, most=most, must=rules.musts, length_cost=length_cost
            )
        except ValidationError as error:
            why = storage.explain(error, Pair)
            raise InputError(f"{candidates}: prompt {row.prompt_id}: {why}; lower --margin-scale") from None
        pairs += found
        prompts, without = prompts + 1, without + (not found)
        bar(prompts, 0)
    screen.clear()
    if not pairs:
        raise InputError(
            f"{candidates}: the rubric {rubric!r} prefers no response to another in any of {prompts} prompts, "
            "so there is nothing to learn; sample more responses or sharpen the rubric"
        )
    written = storage.write(out, pairs)
    return dataclasses.asdict(written) | {"prompts": prompts, "prompts_without_pair": without, "rubric": rules.name}


def answer_both(run: Run, *, seed: int) -> Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[str, str]]:
    """A function from two conversations (base's and aligned's) to the next answer of each, for `chat`."""
    from druthers.generation import transformers_generator

    settings = run.settings()
    prepare(settings)
    policy = load_policy(run)
    base = load_base(policy, settings)
    own = settings.evaluate

    def one(loaded: Loaded, messages: tuple[Any, ...], name: str) -> str:
        generate = transformers_generator(loaded, batch_size=1, model_name=name)
        found = generate(
            [messages],
            samples=1,
            temperature=own.temperature,
            top_p=own.top_p,
            max_new_tokens=own.max_new_tokens,
            seed=seed,
        )
        return found[0][0].response

    def both(to_base: tuple[Any, ...], to_aligned: tuple[Any, ...]) -> tuple[str, str]:
        if policy.adapted:
            with models.adapter_off(policy):
                first = one(policy, to_base, "base")
            return first, one(policy, to_aligned, "aligned")
        return one(base, to_base, "base"), one(policy, to_aligned, "aligned")

    return both
