"""What scores answers, and the best of several as a generator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForSequenceClassification

from druthers.generation import transformers_generator
from druthers.judges import parse_rubric
from druthers.records import Exchange, InputError, user
from druthers.rewards import best_of, reward_named, rewards_of, rubric_reward
from tests import letters, tiny

CPU = torch.device("cpu")


def said(text: str, *, ids: tuple[int, ...] = ()) -> Exchange:
    return Exchange(
        prompt=user("A fruit?"), response=text, model="m", seed=0, temperature=1.0, tokens=3, finished=True, ids=ids
    )


def test_a_rubric_is_a_reward() -> None:
    rules = [{"name": "brief", "label": "at most 2 words", "kind": "word_count", "most": 2}]
    reward = rubric_reward(parse_rubric({"name": "short", "rules": rules}, where="example"))
    assert rewards_of(reward, [said("A plum."), said("A ripe plum.")]) == [1.0, 0.0]
    assert reward_named("brand-voice", device=CPU)([said("A plum.")])[0] is not None
    with pytest.raises(InputError, match="neither a file nor one of"):
        reward_named("nowhere.toml", device=CPU)


def test_the_best_of_n_follows_its_own_law() -> None:
    """10,000 times the best of 3 answers of one token, against the exact distribution."""
    policy, count, times = letters.policy(), 3, 10_000
    generate = best_of(transformers_generator(policy, batch_size=6000, model_name="m"), letters.REWARD, count=count)
    (found,) = generate([user("ab?")], samples=times, temperature=1.0, top_p=1.0, max_new_tokens=1, seed=0)
    answers = letters.every_answer(1)
    with torch.no_grad():
        prob = letters.logps(policy, "ab?", answers).exp()
    levels, level = torch.tensor([letters.worth(one) for one in answers]).unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64).index_add(0, level, prob).cumsum(0)
    expected = torch.diff(mass**count, prepend=torch.zeros(1, dtype=torch.float64))
    counts = Counter(letters.worth(answer.ids) for answer in found)
    assert len(found) == times
    seen = [sum(n for worth, n in counts.items() if abs(worth - level) < 1e-6) for level in levels.tolist()]
    assert chisquare(seen, (expected / expected.sum() * times).numpy()).pvalue > 1e-3


def test_the_best_of_one_is_the_answer_itself_and_greedy_answers_have_no_best() -> None:
    policy = letters.policy()
    plain = transformers_generator(policy, batch_size=4, model_name="m")
    how = {"samples": 2, "top_p": 1.0, "max_new_tokens": 3, "seed": 0}
    one = best_of(plain, letters.REWARD, count=1)
    prompts = [user("a?"), user("bc?")]
    assert one(prompts, temperature=1.0, **how) == plain(prompts, temperature=1.0, **how)  # type: ignore[arg-type]
    assert best_of(plain, letters.REWARD, count=2)([], temperature=1.0, **how) == []  # type: ignore[arg-type]
    with pytest.raises(InputError, match="temperature = 0 makes"):
        best_of(plain, letters.REWARD, count=2)(prompts, temperature=0.0, **how)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        best_of(plain, letters.REWARD, count=0)


def classifier(folder: Path, *, labels: int = 1) -> Path:
    """A tiny sequence classifier with the byte tokenizer."""
    made = tiny.tokenizer()
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=120,
        num_labels=labels,
        pad_token_id=2,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_classifier_scores_alone_as_in_a_batch_and_leaves_out_what_it_cannot_read(tmp_path: Path) -> None:
    reward = reward_named(str(classifier(tmp_path / "model")), device=CPU)
    answers = [said("A plum."), said("x" * 200), said("Something rather longer.")]
    together = rewards_of(reward, answers)
    assert together[1] is None
    assert [rewards_of(reward, [answers[i]])[0] for i in (0, 2)] == pytest.approx([together[0], together[2]], abs=1e-5)
    assert together[0] != together[2]


def test_a_model_that_gives_no_single_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 3 labels"):
        reward_named(str(classifier(tmp_path / "three", labels=3)), device=CPU)
    with pytest.raises(InputError, match="lacks the weights"):
        reward_named(str(tiny.folder(tmp_path / "causal")), device=CPU)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        reward_named(str(tmp_path / "bare"), device=CPU)
