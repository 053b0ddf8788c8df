"""The online loop on a language whose every answer is known: the optimum, what it learns from, stopping, resuming.

`letters` has three letters and answers of at most three tokens, so what PPO and RLOO should reach is enumerated.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from druthers.config import Settings, load
from druthers.crew import crew_of
from druthers.models import Loaded, trainable
from druthers.records import Exchange, InputError, Prompt, user
from druthers.rewards import Reward
from druthers.run import Run
from druthers.tokens import encode_prompt
from druthers.train import Interrupted, checkpoint, online
from druthers.train.rollouts import Answers, Values, measure, over, reference_of, row_pairs, width_of
from tests import letters, tiny
from tests.calls import RUBRIC, druthers, jsonl
from tests.optimum import Case, Method, reach

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
Row = dict[str, Any]
PROMPTS = [Prompt(prompt=user(text)) for text in ("a?", "ab?", "abc?", "cb?", "c?")]
HELDOUT = [Prompt(prompt=user("bb?"))]


def settings(*changes: str) -> Settings:
    """Four steps of two prompts; a checkpoint after each second step."""
    few = ("prompts_per_step=2", "samples=4", "max_new_tokens=3", "least_entropy=0", "no_end_penalty=0.3")
    train = ("max_steps=4", "epochs=9", "evaluate_every=2", "learning_rate=1e-3", "token_budget=64")
    base = [*(f"online.{one}" for one in few), *(f"train.{one}" for one in train), "ppo.minibatches=2"]
    return load(overrides=[*base, *changes])


def run_to_end(
    folder: Path,
    *changes: str,
    policy: Loaded | None = None,
    reward: Reward = letters.REWARD,
    note: Callable[[Row], None] = lambda row: None,
    prompts: Sequence[Prompt] = PROMPTS,
) -> Row:
    own = letters.policy() if policy is None else policy
    return online.train(
        Run(folder), settings(*changes), own, prompts=prompts, heldout=HELDOUT, reward=reward, note=note
    )


def refusal(folder: Path, *changes: str, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        run_to_end(folder, *changes, **how)
    said = str(caught.value)
    assert "\n" not in said
    return said


def lines(folder: Path, name: str = "metrics.jsonl") -> list[Row]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- the optimum


@pytest.mark.parametrize(
    ("method", "steps", "rate", "adapter"),
    [("ppo", 30, 2e-3, "none"), ("rloo", 40, 5e-3, "none"), ("rloo", 40, 2e-2, "lora"), ("dpo", 60, 5e-3, "none")],
)
def test_every_method_reaches_the_optimum_of_a_bandit(
    tmp_path: Path, method: Method, steps: int, rate: float, adapter: str
) -> None:
    """benchmarks/optimum has longer answers and several seeds."""
    case = Case(longest=1, beta=0.5, seed=0, adapter=adapter)
    found = reach(tmp_path, case, method, steps=steps, samples=192, rate=rate)
    assert found.before > 0.15
    assert found.after <= 0.05
    assert found.share > 0.97


# ---------------------------------------------------------------- what it learns from


def answers_of(policy: Loaded) -> Answers:
    """Answers of all lengths to two prompts, one of them twice."""
    prompts = [tuple(encode_prompt(user(text), policy.tokenizer)) for text in ("ab?", "ab?", "ab?", "c?", "c?")]
    return Answers(prompts, [(2, 3, 0), (4,), (2, 3, 0), (0,), (3, 3, 3)])


def own_logps(policy: Loaded, answers: Answers) -> list[float]:
    """Token by token from the model's own forward, one row at a time: no layout, no packing."""
    found = []
    for prompt, response in zip(answers.prompts, answers.responses, strict=True):
        with torch.no_grad():
            logits = policy.causal(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        found += [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]
    return found


@pytest.mark.parametrize("rung", ["shared", "padded"])
def test_policy_and_reference_are_read_on_the_very_tokens(rung: str) -> None:
    policy, answers = letters.policy(rung=rung), answers_of(letters.policy())
    crew = crew_of(policy)
    frozen = reference_of(policy, crew)
    before = own_logps(policy, answers)
    with torch.no_grad():
        for weight in trainable(policy).values():
            weight.mul_(1.1)
    crew.follow()
    found = measure(answers, crew, frozen, None, token_budget=4)
    policy = replace(policy, model=letters.policy(rung="padded").model)  # an attention that takes plain rows
    assert found.reference_N.tolist() == pytest.approx(before, abs=1e-5)
    assert found.policy_N.tolist() != pytest.approx(before, abs=1e-2)
    assert found.length_S.tolist() == [3, 1, 3, 1, 3]


def test_an_adapter_switched_off_is_the_reference_and_comes_back_on() -> None:
    policy = letters.policy(adapter="lora")
    answers, crew = answers_of(policy), crew_of(policy)
    frozen = reference_of(policy, crew)
    with torch.no_grad():
        for name, weight in trainable(policy).items():
            if "lora_B" in name:
                weight.add_(0.3)
    found = measure(answers, crew, frozen, None, token_budget=64)
    plain = letters.policy()
    expected = measure(answers, crew_of(plain), reference_of(plain, crew_of(plain)), None, token_budget=64)
    assert torch.allclose(found.reference_N, expected.policy_N, atol=1e-5)
    assert not torch.allclose(found.policy_N, expected.policy_N, atol=1e-2)
    again = measure(answers, crew, frozen, None, token_budget=64)
    assert torch.equal(found.policy_N, again.policy_N)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_do_not_depend_on_the_micro_batches(threads: int) -> None:
    """Of the policy and of the value head, whoever reads what."""
    answers, target_N = answers_of(letters.policy()), torch.arange(11.0)

    def gradients(budget: int, members: int) -> list[torch.Tensor]:
        policy = letters.policy()
        torch.set_num_threads(members)
        try:
            crew = crew_of(policy)
            values = Values(width_of(policy), len(crew.members), device=policy.device)
            torch.nn.init.constant_(values.head.weight, 0.01)
            values.follow()

            def use(part: Any, member: int) -> None:
                loss = (part.logp_M * target_N[part.at_M]).sum()
                (loss + (values.of(part.hidden_MH, member) * target_N[part.at_M]).sum()).backward()
                crew.collect(member)

            over(answers, range(5), crew, use, token_budget=budget, learns="learn")
        finally:
            torch.set_num_threads(1)
        crew.gather()
        values.gather()
        return [weight.grad for weight in (*trainable(policy).values(), *values.head.parameters())]  # type: ignore[misc]

    whole, cut = gradients(1000, 1), gradients(8, threads)
    for a, b in zip(whole, cut, strict=True):
        assert a is not None
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(a.abs().max())))


def test_answers_are_laid_out_two_by_two_and_none_is_lost() -> None:
    answers = answers_of(letters.policy())
    found = row_pairs(answers, [4, 0, 2, 1])
    assert sorted(i for cells, _ in found for i in cells if i is not None) == [0, 1, 2, 4]
    for (first, second), pair in found:
        assert (pair.prompt, pair.chosen) == (answers.prompts[first], answers.responses[first])
        assert pair.rejected == (() if second is None else answers.responses[second])


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_answers_without_a_score_are_left_out_and_counted(tmp_path: Path, method: str) -> None:
    def some(answers: Sequence[Exchange]) -> list[float | None]:
        return [None if answer.ids[0] == 3 else letters.worth(answer.ids) for answer in answers]

    run_to_end(tmp_path, f"online.method={method}", "online.samples=8", reward=some)
    train = [row for row in lines(tmp_path) if row["split"] == "train"]
    rows = [row for row in lines(tmp_path, "rollouts.jsonl") if row["split"] == "train"]
    assert sum(row["unscored"] for row in train) == sum(row["reward"] is None for row in rows) > 0
    assert all(math.isfinite(row["loss"]) for row in train)


def test_an_answer_that_was_cut_off_pays_and_one_that_ended_does_not(tmp_path: Path) -> None:
    run_to_end(tmp_path, "online.no_end_penalty=10", reward=lambda answers: [1.0] * len(answers))
    rows = lines(tmp_path, "rollouts.jsonl")
    assert {(row["finished"], row["reward"]) for row in rows} == {(True, 1.0), (False, -9.0)}


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_step_says_what_it_saw(tmp_path: Path, method: str) -> None:
    found = run_to_end(tmp_path, f"online.method={method}")
    train = [row for row in lines(tmp_path) if row["split"] == "train"]
    heldout = [row for row in lines(tmp_path) if row["split"] == "heldout"]
    assert [row["step"] for row in heldout] == [0, 2, 4]
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    assert {"reward", "kl", "entropy", "clip_fraction", "beta", "length", "finished", "grad_norm"} <= train[0].keys()
    assert ({"value_loss", "explained_variance"} <= train[0].keys()) == (method == "ppo")
    assert train[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["reference"] == "copy"
    assert found["answers"] == 4 * (2 + 2 + 1 + 2)  # five prompts: the third step is the rest of an epoch
    assert (tmp_path / "checkpoints" / "step-000004" / "extra.safetensors").is_file()


def test_beta_is_steered_to_the_target_and_stays_without_one(tmp_path: Path) -> None:
    run_to_end(tmp_path / "a", "ppo.target_kl=5", "ppo.beta=0.1")
    betas = [row["beta"] for row in lines(tmp_path / "a") if row["split"] == "train"]
    assert betas == pytest.approx([0.1 * 0.98**i for i in range(4)])
    run_to_end(tmp_path / "b", "ppo.target_kl=none", "ppo.beta=0.1")
    assert {row["beta"] for row in lines(tmp_path / "b")} == {0.1}


# ---------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize(("method", "adapter"), [("ppo", "none"), ("rloo", "lora")])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, method: str, adapter: str) -> None:
    changes = (f"online.method={method}", "train.evaluate_every=3")
    whole = run_to_end(tmp_path / "whole", *changes, policy=letters.policy(adapter=adapter))

    def stop(row: Row) -> None:
        if row["split"] == "train" and row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at step 2 of 4"):
        run_to_end(tmp_path / "cut", *changes, policy=letters.policy(adapter=adapter), note=stop)
    again = run_to_end(tmp_path / "cut", *changes, policy=letters.policy(adapter=adapter))
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoints/best.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    for name in ("weights.safetensors", "extra.safetensors", "optimizer.pt"):
        ends = [(tmp_path / where / "checkpoints" / "step-000004" / name).read_bytes() for where in ("whole", "cut")]
        assert ends[0] == ends[1]
    assert {k: v for k, v in whole.items() if "second" not in k and "memory" not in k}.items() <= again.items()


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    run_to_end(tmp_path, "train.max_steps=2")
    (tmp_path / "checkpoints" / "step-000002" / "extra.safetensors").write_bytes(b"nothing")
    assert "is damaged" in refusal(tmp_path)


def test_a_policy_that_has_collapsed_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    said = refusal(tmp_path, "train.learning_rate=0.05", "online.most_kl=0.5", "train.checkpoint_every=1")
    kept = checkpoint.latest(tmp_path)
    assert kept is not None
    assert f"the last good checkpoint is {kept}" in said
    assert "nats an answer from the reference (online.most_kl = 0.5)" in said
    flat = refusal(tmp_path / "flat", "online.least_entropy=50")
    assert "step 1: the policy has collapsed, at an entropy of" in flat
    assert "no checkpoint was saved yet" in flat


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda answers: [math.nan] * len(answers), "is nan, but it must be a finite number"),
        (lambda answers: [1.0], "gave 1 values for"),
        (lambda answers: [None] * len(answers), "could score none of"),
        (lambda answers: [True] * len(answers), "is True, but it must be a finite number"),
        (lambda answers: ["good"] * len(answers), "is 'good', but it must be a finite number"),
    ],
)
def test_a_reward_that_is_none_is_one_sentence(tmp_path: Path, reward: Reward, words: str) -> None:
    assert words in refusal(tmp_path, reward=reward)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("online.max_new_tokens=5000", "exceed the 2048 tokens"),
        ("train.order=stratified", "train.order = 'stratified' is for pairs"),
        ("train.reference=cache", "train.reference = 'cache' does not fit"),
        ("train.reference=adapter", "train.reference = 'adapter' does not fit"),
        ("loss.beta=0.3", "the settings loss.* are for pairs"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path, change: str, words: str) -> None:
    assert words in refusal(tmp_path, change)


def test_one_answer_has_no_other_to_be_compared_with(tmp_path: Path) -> None:
    assert "use at least 2" in refusal(tmp_path, "online.method=rloo", "online.samples=1")


@pytest.mark.parametrize("target", ["0", "-1", "nan", "inf"])
def test_a_target_kl_must_be_above_0(target: str) -> None:
    with pytest.raises(InputError, match=r"ppo\.target_kl"):
        load(overrides=[f"ppo.target_kl={target}"])


# ---------------------------------------------------------------- the verb


def test_a_run_on_sampled_answers_is_a_run_directory_like_any_other(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"question {i}?"}]} for i in range(12)]
    prompts, model = jsonl(tmp_path / "prompts.jsonl", rows), tiny.folder(tmp_path / "model")
    (tmp_path / "rubric.toml").write_text(RUBRIC, encoding="utf-8")
    few = ("train.max_steps=1", "online.prompts_per_step=2", "online.max_new_tokens=4", "online.samples=2")
    small = ("evaluate.count=2", "evaluate.kl_prompts=2", "evaluate.max_new_tokens=4", "threads=1", "ppo.epochs=1")
    how = ("--model", model, "--run", tmp_path / "run", "--reward", tmp_path / "rubric.toml", "--json")
    found = druthers("reinforce", prompts, *how, *few, *small, "model.precision=float32").json
    assert found["train"]["method"] == "ppo"
    assert found["prompts"]["train"] + found["prompts"]["heldout"] == 12
    again = druthers("reinforce", prompts, *how, *few, *small, "model.precision=float32").json
    assert again == found
    assert druthers("evaluate", tmp_path / "run", "--json").json["verdict"] in (
        "better",
        "worse",
        "no difference shown",
    )
    druthers("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "PPO" in page
    assert "Reward of sampled answers" in page
    assert druthers("export", tmp_path / "run", tmp_path / "out", "--json").json["step"] == 1
    assert "Proximal Policy Optimization" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    said = druthers("reinforce", prompts, *how, *few, *small, "model.precision=float32", "ppo.target_kl=3").fault
    assert "holds another run (ppo.target_kl was 6.0, now 3.0)" in said


def test_sample_gives_the_best_of_n_and_asks_for_what_it_needs(tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "content": "question?"}]}])
    (tmp_path / "rubric.toml").write_text(RUBRIC, encoding="utf-8")
    model = tiny.folder(tmp_path / "model")
    how = ("--model", model, "--out", tmp_path / "out.jsonl", "-n", 2, "--max-new-tokens", 4)
    found = druthers("sample", prompts, *how, "--best-of", 3, "--reward", tmp_path / "rubric.toml", "--json").json
    assert found["samples"] == 2
    assert len(lines(tmp_path, "out.jsonl")[0]["responses"]) == 2
    assert "--best-of N takes --reward" in druthers("sample", prompts, *how, "--best-of", 3).fault
    assert "--reward takes --best-of" in druthers("sample", prompts, *how, "--reward", "brand-voice").fault


def test_bad_input_to_the_verb_is_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    run = ("--run", tmp_path / "run")
    assert "is empty" in druthers("reinforce", empty, "--reward", "brand-voice", *run).fault
    assert "nothing scores the answers" in druthers("reinforce", empty, *run).fault
    assert "ppo.target_kl" in druthers("reinforce", empty, "--reward", "brand-voice", *run, "ppo.target_kl=0").fault
