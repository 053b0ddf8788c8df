"""Diagnostics of pairs, answers and KL on planted numbers, and the whole stage on the tiny model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers import storage
from druthers.config import Settings, validate
from druthers.evaluate import answers, evaluate, kl, outcomes_of_step, pairs, scoring, underneath
from druthers.evaluate.answers import BothSides, Mode, Sampling, WinRate
from druthers.evaluate.pairs import PairResult, evaluate_pairs
from druthers.evaluate.verdict import verdict
from druthers.generation import Progress
from druthers.losses import LOSSES
from druthers.models import Loaded, attach_adapter, weights_sha
from druthers.records import Exchange, InputError, Judgement, Message, Outcome, Prompt, user
from druthers.run import Run
from druthers.stats import Estimate, Interval, Undefined
from druthers.tokens import encode_prompt, tokenize
from tests import tiny

Messages = tuple[Message, ...]


def value(found: Estimate) -> float:
    assert isinstance(found, Interval)
    return found.value


def outcome(i: int, *, a: float = 0.0, b: float = 0.0, base: float = 0.0, length: int = 10, step: int = 40) -> Outcome:
    """A pair whose log-ratios are a and b and whose reference prefers chosen by `base` nats."""
    return Outcome(
        pair_id=f"pair{i}",
        step=step,
        split="heldout",
        logp_chosen=-50 + base + a,
        logp_rejected=-50 + b,
        logratio_chosen=a,
        logratio_rejected=b,
        length_chosen=length,
        length_rejected=length + i % 3,
        loss=0.6,
    )


def measured(rows: Sequence[Outcome], *, per_prompt: int = 1, beta: float = 0.1) -> PairResult:
    prompts = {f"pair{i}": f"prompt{i // per_prompt}" for i in range(1000)}
    return evaluate_pairs(rows, prompts=prompts, beta=beta, seed=0)


# ---------------------------------------------------------------- pairs


def test_before_training_nothing_is_preferred_and_nothing_fell() -> None:
    found = measured([outcome(i, base=i - 3.5, step=0) for i in range(8)])
    assert (value(found.accuracy), value(found.margin), value(found.chosen_fell)) == (0.5, 0.0, 0.0)
    assert value(found.accuracy_base) == 0.5
    assert isinstance(found.length_correlation, Undefined)
    assert (found.flips, found.flips_p) == (pairs.Flips(kept=4, gained=0, lost=0, never=4), 1.0)


def test_planted_pairs_are_counted() -> None:
    rows = [outcome(0, a=1, b=-2, base=5), outcome(1, a=-1, b=-4, base=-1), outcome(2, a=-3, b=0, base=1, length=6)]
    found = measured(rows, beta=0.5)
    assert value(found.accuracy) == pytest.approx(2 / 3)
    assert value(found.margin) == pytest.approx(0.5 * (3 + 3 - 3) / 3)
    assert value(found.chosen_fell) == pytest.approx(2 / 3)
    assert value(found.chosen_change_per_token) == pytest.approx((0.1 - 0.1 - 0.5) / 3)
    assert found.flips == pairs.Flips(kept=1, gained=1, lost=1, never=0)
    assert (found.n, found.prompts, found.step) == (3, 3, 40)


numbers = st.floats(-20, 20).map(lambda x: round(x, 3))
tables = st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=30)


@settings(max_examples=30, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_order_and_repeated_rows_change_nothing(table: list[tuple[float, float, float]], order: random.Random) -> None:
    rows = [outcome(i, a=a, b=b, base=base) for i, (a, b, base) in enumerate(table)]
    mixed = [*rows, *rows[: len(rows) // 2]]
    order.shuffle(mixed)
    one, other = measured(rows), measured(mixed)
    assert one.flips == other.flips
    assert one.n == other.n == sum(vars(one.flips).values())
    assert value(one.accuracy) == value(other.accuracy)
    assert value(one.margin) == pytest.approx(value(other.margin), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(tables)
def test_swapped_labels_mirror_accuracy_and_margin(table: list[tuple[float, float, float]]) -> None:
    one = measured([outcome(i, a=a, b=b) for i, (a, b, _) in enumerate(table)])
    other = measured([outcome(i, a=b, b=a) for i, (a, b, _) in enumerate(table)])
    assert value(one.accuracy) + value(other.accuracy) == pytest.approx(1)
    assert value(one.margin) == pytest.approx(-value(other.margin), abs=1e-9)


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    rows = [outcome(i, a=1.0 if (i // 6) % 3 else -1.0) for i in range(120)]
    alone, together = measured(rows).accuracy, measured(rows, per_prompt=6).accuracy
    assert isinstance(alone, Interval)
    assert isinstance(together, Interval)
    assert together.value == alone.value
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_no_pairs_are_undefined_and_still_json() -> None:
    found = measured([])
    written = json.loads(json.dumps(found.as_dict()))
    assert written["accuracy"]["value"] is None
    assert written["accuracy"]["undefined"]
    assert "Nothing can be said" in pairs.explain(found)


def test_outcomes_of_another_run_or_of_two_steps_are_refused() -> None:
    with pytest.raises(InputError, match="mixes two runs"):
        evaluate_pairs([outcome(1)], prompts={}, beta=0.1, seed=0)
    with pytest.raises(ValueError, match="cannot be averaged"):
        measured([outcome(1, step=0), outcome(2, step=40)])


@pytest.mark.parametrize(
    ("a", "b", "word", "said"),
    [
        (2.0, 1.0, "better", "nothing to explain"),
        (-1.0, -3.0, "better", "did no harm"),
        (-1.0, -3.0, "no difference shown", "show no harm"),
        (-1.0, -3.0, "not judged", "Worry only if"),
        (-1.0, -3.0, "worse", "got worse as well"),
        (-9.0, -30.0, "better", "beyond 0.5 nats"),
        (-2.0, -1.0, "not judged", "without pulling ahead"),
    ],
)
def test_the_most_asked_question_is_answered_with_this_runs_numbers(a: float, b: float, word: str, said: str) -> None:
    found = measured([outcome(i, a=a + 0.01 * (i % 5), b=b) for i in range(40)])
    text = pairs.explain(found, verdict=word)
    assert said in text
    assert f"{value(found.chosen_change_per_token):+.3f} nats per token" in text
    assert ("Worry:" in text) == (said in ("got worse as well", "beyond 0.5 nats", "without pulling ahead"))


# ---------------------------------------------------------------- scoring


def loaded(seed: int = 0) -> Loaded:
    tokenizer = tiny.tokenizer()
    model = tiny.model(seed, vocab=len(tokenizer))
    return Loaded(model, tokenizer, "tiny", weights_sha(model), torch.float32, torch.device("cpu"))


def exchange(prompt: str, response: str, *, finished: bool = True, tokens: int = 3, model: str = "base") -> Exchange:
    return Exchange(
        prompt=user(prompt), response=response, model=model, seed=0, temperature=1.0, tokens=tokens, finished=finished
    )


def test_pairs_scored_now_equal_the_model_whatever_the_batch() -> None:
    policy, reference = loaded(1), loaded(0)
    rows = [tokenize(pair, policy.tokenizer, max_prompt=99, max_response=99) for pair in tiny.pairs(5)]
    one, other = (
        scoring.score_outcomes(
            rows,
            policy=policy,
            reference=reference,
            inside=underneath,
            loss=LOSSES["sigmoid"](beta=0.1),
            step=7,
            token_budget=budget,
        )
        for budget in (16, 4096)
    )
    for small, large, pair in zip(one, other, rows, strict=True):
        assert (small.pair_id, small.step, small.length_chosen) == (pair.id, 7, len(pair.chosen))
        assert small.logp_chosen == pytest.approx(large.logp_chosen, abs=1e-4)
        h = small.logratio_chosen - small.logratio_rejected
        assert small.loss == pytest.approx(math.log1p(math.exp(-0.1 * h)), abs=1e-6)


def test_outcomes_look_at_every_pair_once() -> None:
    """A pair that is read from the disk is made anew whenever it is asked for."""
    tokenizer, loss = tiny.tokenizer(), LOSSES["sigmoid"](beta=0.1)
    rows = [tokenize(pair, tokenizer, max_prompt=99, max_response=99) for pair in tiny.pairs(5)]
    rows = [replace(pair, p=0.9, margin=i / 4) for i, pair in enumerate(rows)]
    policy_CB, reference_CB = np.random.default_rng(0).normal(size=(2, 2, 5))
    found = scoring.outcomes_of(iter(rows), policy_CB=policy_CB, reference_CB=reference_CB, loss=loss, step=3)
    assert [(o.pair_id, o.length_chosen, o.length_rejected) for o in found] == [
        (pair.id, sum(pair.chosen_scored), sum(pair.rejected_scored)) for pair in rows
    ]
    h_B = (policy_CB - reference_CB)[0] - (policy_CB - reference_CB)[1]
    for outcome, pair, h in zip(found, rows, h_B, strict=True):
        wanted = sum(w * math.log1p(math.exp(-s * (0.1 * h - pair.margin))) for w, s in ((pair.p, 1), (1 - pair.p, -1)))
        assert outcome.loss == pytest.approx(wanted)


@torch.no_grad()
def plain_logps(one: Exchange, model: Loaded) -> list[float]:
    """The same through the model's own forward, one answer at a time."""
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": one.prompt[0].content}], tokenize=False, add_generation_prompt=True
    )
    end = [model.tokenizer.eos_token_id] if one.finished else []
    prompt, response = (model.tokenizer.encode(t, add_special_tokens=False) for t in (text, one.response))
    ids = torch.tensor([prompt + response + end])
    logps = model.model(input_ids=ids).logits[0].log_softmax(-1)
    found: list[float] = logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
    return found


def test_answers_are_scored_token_by_token_in_any_company() -> None:
    model = loaded()
    asked = [
        exchange("a?", "yes"),
        exchange("b?", "no, never", finished=False),
        exchange("a?", "perhaps not"),
        exchange("a?", ""),
        exchange("c?", "", finished=False),
        exchange("c?", "x<|im_end|>y"),
    ]
    found = scoring.answer_logps(asked, loaded=model, token_budget=64)
    for one, logps in zip(asked[:4], found[:4], strict=True):
        assert logps.tolist() == pytest.approx(plain_logps(one, model), abs=1e-5)
    assert [len(logps) for logps in found] == [4, 9, 12, 1, 0, 0]


def test_the_sampled_tokens_are_scored_where_they_are_known() -> None:
    """Text that would tokenise otherwise (half a letter, say) is no matter: one log-probability a sampled token."""
    model = loaded()
    known = exchange("a?", "never read").model_copy(update={"ids": (65, 66, 200, model.tokenizer.eos_token_id)})
    (found,) = scoring.answer_logps([known], loaded=model, token_budget=64)
    prompt = encode_prompt(known.prompt, model.tokenizer)
    ids = torch.tensor([[*prompt, *known.ids]])
    logps = model.model(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert found.tolist() == pytest.approx(logps.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist(), abs=1e-5)


# ---------------------------------------------------------------- answers


@dataclass
class FakeGenerator:
    """Answers with a fixed text and counts how often it was asked."""

    text: str = "fine"
    calls: list[dict[str, float]] = field(default_factory=list)

    def __call__(
        self,
        prompts: Sequence[Messages],
        *,
        samples: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Exchange]]:
        self.calls.append({"temperature": temperature, "top_p": top_p, "seed": seed, "samples": samples})
        if progress:
            progress(len(prompts) * samples, len(prompts) * samples)
        return [
            [
                Exchange(
                    prompt=prompt,
                    response=self.text,
                    model="?",
                    seed=seed,
                    temperature=temperature,
                    tokens=len(self.text),
                    finished=True,
                )
                for _ in range(samples)
            ]
            for prompt in prompts
        ]


SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=8, seed=0)


def test_prompts_are_chosen_by_id_whatever_the_order_of_the_file() -> None:
    asked = [Prompt(prompt=user(f"question {i % 7}")) for i in range(20)]
    chosen = answers.choose_prompts(asked, 4)
    assert chosen == answers.choose_prompts(asked[::-1], 4)
    assert len(set(chosen)) == 4
    assert len(answers.choose_prompts(asked, None)) == 7
    assert answers.choose_prompts(asked, 0) == []


def test_base_answers_are_made_once_for_the_same_model_prompts_and_sampling(tmp_path: Path) -> None:
    made = FakeGenerator()

    def ask(prompts: int = 3, sampling: Sampling = SAMPLING, sha: str = "x") -> tuple[Exchange, ...]:
        asked = [user(f"{i}?") for i in range(prompts)]
        return answers.answer_once(asked, generator=made, sampling=sampling, identity={"model": sha}, cache=tmp_path)

    first = ask()
    assert ask() == first
    assert {one.model for one in first} == {"base"}
    assert len(made.calls) == 1
    ask(prompts=4)
    ask(sampling=replace(SAMPLING, seed=1))
    ask(sampling=replace(SAMPLING, temperature=0.0))
    ask(sha="y")
    assert len(made.calls) == 5
    assert len(list(tmp_path.iterdir())) == 5


def test_a_damaged_cache_file_is_named(tmp_path: Path) -> None:
    asked = [user("?")]
    file = tmp_path / f"{answers.answers_key(asked, SAMPLING, {})}.jsonl"
    file.write_text('{"prompt": []}\n')
    with pytest.raises(InputError, match=r"\.jsonl:1: "):
        answers.answer_once(asked, generator=FakeGenerator(), sampling=SAMPLING, identity={}, cache=tmp_path)


def longer_wins(prompt: Messages, a: str, b: str) -> Judgement:
    """A judge that prefers the longer answer and checks two rules."""
    return Judgement(
        prompt_id=Prompt(prompt=prompt).prompt_id,
        judge="longer",
        a="base",
        b="aligned",
        outcome="tie" if len(a) == len(b) else "b" if len(b) > len(a) else "a",
        rules_a={"polite": float("please" in a)},
        rules_b={"polite": float("please" in b)},
    )


def both_answers(texts: Sequence[tuple[str, str]]) -> Mode:
    base = tuple(exchange(f"{i}?", a, tokens=len(a), finished=i > 0) for i, (a, _) in enumerate(texts))
    aligned = tuple(exchange(f"{i}?", b, tokens=len(b), model="aligned") for i, (_, b) in enumerate(texts))
    return Mode(base, aligned, answers.judge_answers(base, aligned, longer_wins))


def test_answers_are_counted() -> None:
    mode = both_answers([("no", "yes please"), ("no", "on"), ("never ever", "ok"), ("no", "please"), ("no", "yes")])
    found = answers.evaluate_answers(
        sampled=mode,
        greedy=mode,
        rubric="longer",
        labels={"polite": "Says please", "unknown": "Never scored"},
        base_logps=lambda rows: [np.full(len(row.response), -1.0 if row.model == "base" else -2.0) for row in rows],
        seed=0,
    )
    assert (found.sampled.wins, found.sampled.ties, found.sampled.losses) == (3, 1, 1)
    assert value(found.sampled.win_rate) == 0.7
    assert found.length == BothSides(base=18 / 5, aligned=23 / 5)
    assert found.unfinished == BothSides(base=0.2, aligned=0.0)
    assert found.perplexity.ratio == pytest.approx(math.e)
    assert list(found.rules) == ["polite"]
    assert (found.rules["polite"].base, found.rules["polite"].aligned) == (0.0, 0.4)
    assert value(found.rules["polite"].change) == pytest.approx(0.4)
    assert json.loads(json.dumps(found.as_dict()))["length"]["ratio"] == pytest.approx(23 / 18)


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_repetition_is_a_share_and_repeating_raises_it(words: list[str]) -> None:
    text = " ".join(words)
    assert 0 <= answers.repetition(text) < 1
    assert answers.repetition(f"{text} {text} {text}") >= answers.repetition(text)


@given(st.integers(1, 40), st.integers(2, 40))
def test_the_same_answer_wins_half(prompts: int, length: int) -> None:
    judged = answers.judged(both_answers([("x" * length, "y" * length)] * prompts).judgements, seed=0)
    assert value(judged.win_rate) == 0.5
    assert verdict(judged, rubric="longer", prompts=prompts).word == "no difference shown"


@pytest.mark.parametrize(
    ("rate", "rubric", "word"),
    [
        (Interval(0.9, 0.85, 0.95, 160), "voice", "better"),
        (Interval(0.1, 0.05, 0.15, 160), "voice", "worse"),
        (Interval(0.6, 0.5, 0.7, 160), "voice", "no difference shown"),
        (Interval(0.9, 0.85, 0.95, 160), None, "not judged"),
        (Undefined("no rubric judged the answers"), None, "not judged"),
    ],
)
def test_the_verdict_reads_the_interval_alone(rate: Estimate, rubric: str | None, word: str) -> None:
    found = verdict(WinRate(rate, 1, 0, 0, 9.9), rubric=rubric, prompts=160)
    assert found.word == word
    assert found.text.endswith(".")
    assert found.text.lower().startswith(word) or word == "not judged"


# ---------------------------------------------------------------- KL


def drawn_from(p: list[float], q: list[float], *, prompts: int, length: int, seed: int) -> tuple[list[Exchange], kl.KL]:
    """KL estimated from tokens drawn from p, two samples a prompt, scored by p and by q."""
    draw = np.random.default_rng(seed)
    samples = [exchange(f"{i // 2}?", "") for i in range(2 * prompts)]
    tokens = draw.choice(len(p), size=(len(samples), length), p=p)
    found = kl.evaluate_kl(
        samples,
        policy=lambda _: [np.log(np.array(p))[row] for row in tokens],
        reference=lambda _: [np.log(np.array(q))[row] for row in tokens],
        seed=0,
    )
    return samples, found


def test_kl_recovers_a_known_divergence() -> None:
    p, q = [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    _, found = drawn_from(p, q, prompts=300, length=20, seed=3)
    for estimate, truth in (
        (found.k1_token, exact),
        (found.k3_token, exact),
        (found.k1_sequence, 20 * exact),
        (found.k3_sequence, 20 * exact),
    ):
        assert isinstance(estimate, Interval)
        assert estimate.low <= truth <= estimate.high
    assert (found.samples, found.prompts) == (600, 300)
    assert "nats an answer" in found.text


def test_the_same_model_is_at_distance_zero() -> None:
    model = loaded()
    asked = [exchange(f"{i}?", "word " * i) for i in range(4)]

    def score(rows: Sequence[Exchange]) -> list[scoring.Floats]:
        return scoring.answer_logps(rows, loaded=model, token_budget=256)

    found = kl.evaluate_kl(asked, policy=score, reference=score, seed=0)
    assert value(found.k1_sequence) == value(found.k3_token) == 0.0


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20))
def test_k3_is_never_negative(terms: list[float]) -> None:
    assert kl.k3_sum(np.array(terms)) >= 0


def test_no_samples_have_no_kl() -> None:
    found = kl.evaluate_kl([], policy=lambda _: [], reference=lambda _: [], seed=0)
    assert isinstance(found.k1_sequence, Undefined)
    assert "evaluate.kl_prompts" in found.text


# ---------------------------------------------------------------- the stage


def prepared(folder: Path, **overrides: object) -> tuple[Run, Settings]:
    """A run directory with held-out pairs and small settings."""
    own = {"count": 3, "max_new_tokens": 6, "batch_size": 4, "kl_prompts": 2} | overrides
    chosen = validate({"run": str(folder), "evaluate": own})
    run = Run(folder)
    storage.write(run.path("data/heldout.jsonl"), tiny.pairs(5))
    return run, chosen


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "evaluation").iterdir())}


def test_the_stage_writes_what_it_promises_and_twice_the_same(tmp_path: Path) -> None:
    run, chosen = prepared(tmp_path / "run")
    seen: list[tuple[int, int]] = []
    arguments = {"settings": chosen, "policy": loaded(1), "reference": loaded(0), "cache": tmp_path / "cache"}
    storage.write(run.path("evaluation/judgements-greedy.jsonl"), [])
    head = evaluate(run, progress=lambda done, of: seen.append((done, of)), **arguments)  # type: ignore[arg-type]
    first = contents(run.folder)
    assert sorted(first) == ["answers-greedy.jsonl", "answers-sampled.jsonl", "answers.json", "kl.json", "pairs.json"]
    assert seen[-1] == (4 * 3 + 2 * 2, 4 * 3 + 2 * 2)
    assert seen == sorted(seen)
    sampled = list(storage.read(str(run.path("evaluation/answers-sampled.jsonl")), Exchange))
    assert [one.model for one in sampled] == ["base"] * 3 + ["aligned"] * 3
    assert [one.prompt_id for one in sampled[:3]] == [one.prompt_id for one in sampled[3:]]
    assert len({one.seed for one in sampled}) == 1

    assert set(head) == {
        "verdict",
        "text",
        "heldout",
        "win_rate",
        "win_rate_greedy",
        "length_ratio",
        "repetition_change",
        "perplexity_ratio",
        "kl_per_sequence",
    }
    assert (head["verdict"], head["win_rate"]["value"]) == ("not judged", None)
    assert head["kl_per_sequence"]["value"] != 0
    found = run.json("evaluation/pairs.json")
    assert {"step", "accuracy", "accuracy_base", "margin", "chosen_fell", "flips", "n", "text"} < set(found)
    assert (found["n"], found["accuracy"]["n"]) == (5, 5)
    kinds = run.json("evaluation/kl.json")
    assert (kinds["samples"], kinds["prompts"], kinds["temperature"]) == (4, 2, 1.0)

    evaluate(run, **arguments)  # type: ignore[arg-type]
    assert contents(run.folder) == first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_rubric_judges_the_answers(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.toml"
    rubric.write_text(
        'name = "short"\n[[rules]]\nname = "brief"\n'
        'label = "at most 1 word"\nkind = "word_count"\nleast = 0\nmost = 1\n'
    )
    run, chosen = prepared(tmp_path / "run", rubric=str(rubric), count=None, kl_prompts=0)
    head = evaluate(run, settings=chosen, policy=loaded(1), reference=loaded(0))
    for mode, key in (("sampled", "win_rate"), ("greedy", "win_rate_greedy")):
        judgements = list(storage.read(str(run.path(f"evaluation/judgements-{mode}.jsonl")), Judgement))
        found = run.json("evaluation/answers.json")[mode]
        assert {(j.a, j.b, j.judge) for j in judgements} == {("base", "aligned", "short")}
        assert found["wins"] + found["ties"] + found["losses"] == len(judgements) == 5
        assert found["wins"] == sum(j.outcome == "b" for j in judgements)
        assert head[key] == found["win_rate"]
    assert run.json("evaluation/answers.json")["rules"]["brief"]["label"] == "at most 1 word"
    assert head["verdict"] != "not judged"
    assert "judged by short" in head["text"]
    assert head["kl_per_sequence"]["undefined"]


def test_a_missing_rubric_stops_before_anything_is_generated(tmp_path: Path) -> None:
    run, chosen = prepared(tmp_path / "run", rubric="no-such-rubric")
    with pytest.raises(InputError, match="no-such-rubric"):
        evaluate(run, settings=chosen, policy=loaded(1), reference=loaded(0))
    assert not run.has("evaluation")


def test_prompts_may_come_from_a_file(tmp_path: Path) -> None:
    storage.write(tmp_path / "asked.jsonl", [Prompt(prompt=user(f"asked {i}?")) for i in range(2)])
    run, chosen = prepared(tmp_path / "run", prompts=str(tmp_path / "asked.jsonl"), kl_prompts=0)
    evaluate(run, settings=chosen, policy=loaded(1), reference=loaded(0))
    rows = storage.read(str(run.path("evaluation/answers-greedy.jsonl")), Exchange)
    assert {row.prompt[0].content for row in rows} == {"asked 0?", "asked 1?"}


def test_a_model_equals_itself(tmp_path: Path) -> None:
    run, chosen = prepared(tmp_path)
    head = evaluate(run, settings=chosen, policy=loaded(0), reference=loaded(0))
    assert head["heldout"]["accuracy"]["value"] == 0.5
    assert head["heldout"]["margin"]["value"] == head["kl_per_sequence"]["value"] == 0
    assert head["length_ratio"] == head["perplexity_ratio"] == 1
    assert head["repetition_change"] == 0


def test_outcomes_that_training_wrote_are_used(tmp_path: Path) -> None:
    run, chosen = prepared(tmp_path, kl_prompts=0, count=1)
    pair = tiny.pairs(5)[2]
    rows = [
        outcome(0, a=a, b=-1, step=step).model_copy(update={"pair_id": pair.id})
        for a, step in ((0, 0), (3, 8), (9, 16))
    ]
    trained = rows[1].model_copy(update={"split": "train"})
    storage.write(run.path("outcomes.parquet"), [*rows, trained])
    storage.write_json(run.path("checkpoints/best.json"), {"step": 8, "metric": "loss", "value": 0.5})
    assert outcomes_of_step(run, 8) == [rows[1]]
    evaluate(run, settings=chosen, policy=loaded(1), reference=loaded(0))
    found = run.json("evaluation/pairs.json")
    assert (found["step"], found["n"], found["flips"]) == (8, 1, {"kept": 0, "gained": 1, "lost": 0, "never": 0})
    assert found["margin"]["undefined"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers by the old name
def test_an_adapter_is_off_for_everything_the_base_does(tmp_path: Path) -> None:
    """Policy and reference may be one adapted model: the base numbers are then those of the plain model."""
    run, chosen = prepared(tmp_path / "one")
    with_adapter = chosen.model.model_copy(update={"adapter": "lora", "lora_rank": 2})
    adapted = attach_adapter(loaded(0), with_adapter)
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    other, _ = prepared(tmp_path / "two")
    one = evaluate(run, settings=chosen, policy=adapted, reference=adapted)
    two = evaluate(other, settings=chosen, policy=adapted, reference=loaded(0))
    assert one["kl_per_sequence"]["value"] != 0
    for name in ("answers-greedy.jsonl", "answers-sampled.jsonl"):
        assert contents(run.folder)[name] == contents(other.folder)[name]
    for key in ("perplexity_ratio", "length_ratio"):
        assert one[key] == pytest.approx(two[key], rel=1e-5)
    for key in ("value", "low", "high"):
        assert one["heldout"]["margin"][key] == pytest.approx(two["heldout"]["margin"][key], rel=1e-4)
        assert one["kl_per_sequence"][key] == pytest.approx(two["kl_per_sequence"][key], rel=1e-4)
