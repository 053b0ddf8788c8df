"""`druthers reinforce`: prompts and a reward to a run directory, trained on the policy's own answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from druthers import pipeline, storage
from druthers.config import Settings, override
from druthers.curate.split import draw, threshold
from druthers.models import Loaded
from druthers.records import InputError, Prompt
from druthers.rewards import Reward, reward_named
from druthers.run import INPUTS, Run
from druthers.session import Screen, session
from druthers.train import online

SIDES = ("prompts", "prompts-heldout")
"""Files of data/: what is trained on and what is never."""


def reinforce(settings: Settings, *, screen: Screen, reward: Reward | None = None) -> dict[str, Any]:
    """Train on sampled answers and return the summary; the same call continues a stopped run.

    `reward` scores the answers where it is given, otherwise what `online.reward` names. The run directory is that of an
    offline run, with prompts in place of pairs, so `evaluate`, `report`, `chat` and `export` work on it.
    """
    online.check_settings(settings)
    if reward is None and settings.online.reward is None:
        raise InputError("nothing scores the answers; name a rubric or the folder of a reward model with --reward")
    settings = judged_by_its_rubric(settings)
    pipeline.prepare(settings)
    with session(settings, screen=screen) as here:
        run = here.run
        if "train" not in run.summary():
            train_stage(run, settings, screen=here.screen, reward=reward)
        return {**run.summary(), "run": str(run.folder)}


def judged_by_its_rubric(settings: Settings) -> Settings:
    """A run whose reward is a rubric is judged by it too, where no other is named."""
    named = settings.online.reward
    if named is None or settings.evaluate.rubric is not None or os.path.isdir(named):
        return settings
    return override(settings, [f"evaluate.rubric={named}"])


def train_stage(run: Run, settings: Settings, *, screen: Screen, reward: Reward | None) -> None:
    """Prompts, notes, training, summary."""
    screen.stage("reinforce")
    since = time.monotonic()
    prompts, heldout = split_of(run, settings)
    policy = pipeline.load_model(settings)
    reward = reward or reward_named(str(settings.online.reward), device=policy.device)
    note_inputs(run, settings, policy)
    screen.say(f"{len(prompts):,} prompts, {len(heldout):,} held out; reward: {settings.online.reward or 'given'}")
    screen.say(online.settings_line(settings, settings.train, count=len(prompts)))
    section = online.train(
        run,
        settings,
        policy,
        prompts=prompts,
        heldout=heldout,
        reward=reward,
        note=watcher(screen, online.schedule_of(len(prompts), settings).total),
        say=screen.say,
    )
    screen.clear()
    run.update_summary({"train": section, "prompts": {"train": len(prompts), "heldout": len(heldout)}})
    pipeline.timed(run, "train", since=since)
    screen.say(
        f"{section['steps']} steps, {section['answers']:,} answers at {section['answers_per_second']:.2f} a second; "
        f"reward {section['reward']['first']:.3f} at first and {section['reward']['last']:.3f} at last, "
        f"KL {section['kl']:.2f} nats an answer"
    )


def split_of(run: Run, settings: Settings) -> tuple[list[Prompt], list[Prompt]]:
    """Both sides of the prompts, from data/ where training has begun, otherwise made anew from the source."""
    if not run.begun():
        for side, rows in zip(SIDES, split(settings), strict=True):
            storage.write(run.path(f"data/{side}.jsonl"), rows)
    missing = next((side for side in SIDES if not run.has(f"data/{side}.jsonl")), None)
    if missing:
        raise InputError(
            f"{run.folder} has begun to train, but its data/{missing}.jsonl is gone; restore it, or start a new run "
            "with run=FOLDER"
        )
    prompts, heldout = (list(storage.read(str(run.path(f"data/{side}.jsonl")), Prompt)) for side in SIDES)
    return prompts, heldout


def split(settings: Settings) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct prompts of the source in two: a seeded share of them, or those of `data.heldout`, are held out.

    Raises InputError for an empty file, more than one source, and where one side would be empty.
    """
    data = settings.data
    if not isinstance(data.pairs, str) or not isinstance(data.heldout, str | None):
        raise InputError("data.pairs names several sources, but prompts are read from one file; give one")
    rows = {row.prompt_id: row for row in islice(storage.read(data.pairs, Prompt), data.limit)}
    if data.heldout is not None:
        apart = {row.prompt_id: row for row in storage.read(data.heldout, Prompt)}
        kept = [row for key, row in rows.items() if key not in apart]
        if not kept:
            raise InputError(f"every prompt of {data.pairs} is also in {data.heldout}, so none is left to train on")
        return kept, list(apart.values())
    draws = {key: draw(row.prompt, seed=settings.seed) for key, row in rows.items()}
    bound = threshold(draws.values(), share=data.heldout_share, name=data.pairs)
    return [row for key, row in rows.items() if draws[key] >= bound], [
        row for key, row in rows.items() if draws[key] < bound
    ]


def note_inputs(run: Run, settings: Settings, policy: Loaded) -> None:
    """inputs.json, environment.json and code.diff; a run that is continued must be on the same weights and prompts."""
    pipeline.check_same_model(run, policy)
    data = {side: storage.sha256(run.path(f"data/{side}.jsonl")) for side in SIDES}
    pipeline.check_same_data(run, data)
    note = {
        "prompts": {"path": storage.listed(settings.data.pairs), "sha256": data["prompts"]},
        "reward": settings.online.reward,
        "data": data,
    }
    storage.write_json(run.path(INPUTS), note | pipeline.note_model(policy))
    pipeline.note_machine(run, policy, ranks=1)


def watcher(screen: Screen, total: int) -> Callable[[dict[str, Any]], None]:
    """A callback that moves the training bar and says each evaluation."""
    bar = screen.bar("steps")

    def note(row: dict[str, Any]) -> None:
        if row["split"] == "train":
            bar(row["step"], total)
            return
        screen.say(
            f"step {row['step']}: held-out reward {row['reward']:.3f}, KL {row['kl']:.2f} nats an answer, "
            f"entropy {row['entropy']:.2f} nats a token, {row['length']:.0f} tokens, {row['finished']:.0%} finished"
        )

    return note
