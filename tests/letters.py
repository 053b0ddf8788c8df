"""A language so small that every answer can be enumerated: three letters, an end of the turn, at most three tokens.

So the distribution over answers of a policy, the optimum `ref exp(r / beta) / Z` and the distance between the two are
known exactly, not estimated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from druthers.batching import collate
from druthers.config import ModelSettings
from druthers.ladder import Found
from druthers.models import Loaded, attach_adapter, choose_layout, weights_sha
from druthers.records import Exchange, Message, user
from druthers.rewards import Reward
from druthers.tokens import TokenizedPair, encode_prompt
from tests import tiny

LETTERS = ("a", "b", "c")
END = 0
WORDS = ("<end>", "<pad>", *LETTERS, "?")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer() -> PreTrainedTokenizerBase:
    """One token a letter."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    made.chat_template = TEMPLATE
    return made


def policy(seed: int = 0, *, adapter: str = "none", rung: str = "shared") -> Loaded:
    """The tiny model over these words; `seed` is that of its weights."""
    made = tiny.model(seed, vocab=len(WORDS), eos_token_id=END, pad_token_id=1, bos_token_id=END)
    made.generation_config.eos_token_id = END
    plain = Loaded(made, tokenizer(), "letters", weights_sha(made), torch.float32, torch.device("cpu"))
    plain = choose_layout(plain, rung) if rung != "padded" else replace(plain, layout=Found("padded", native="sdpa"))
    return plain if adapter == "none" else attach_adapter(plain, ModelSettings(adapter="lora", lora_rank=8))


def every_answer(longest: int) -> list[tuple[int, ...]]:
    """All answers of at most so many tokens: ended before, or cut off there. Any word but the end may stand inside."""
    words = [i for i in range(len(WORDS)) if i != END]
    ended = [(*inside, END) for length in range(longest) for inside in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=longest))


def logps(loaded: Loaded, prompt: str, answers: Sequence[tuple[int, ...]]) -> Tensor:
    """Log-probabilities of whole answers through the engine, (S,), float64; they sum to 1 over all answers."""
    return loaded.logps(batch_of(loaded, prompt, answers))[0]


def batch_of(loaded: Loaded, prompt: str, answers: Sequence[tuple[int, ...]]):  # type: ignore[no-untyped-def]
    """One pair an answer, whose other side is empty."""
    ids = tuple(encode_prompt(user(prompt), loaded.tokenizer))
    pairs = [TokenizedPair("", ids, answer, (), (True,) * len(answer), ()) for answer in answers]
    return collate(pairs, pad_id=loaded.pad_id, rung=loaded.layout.rung)


def worth(ids: Sequence[int]) -> float:
    """What an answer is worth: every `a` counts, most in front, and a last `b`; a word that is no letter costs."""
    letters = [WORDS[i] for i in ids if i != END]
    value = sum(0.6 / (1 + place) for place, letter in enumerate(letters) if letter == "a")
    return value + 0.5 * (letters[-1:] == ["b"]) - 0.4 * sum(letter not in LETTERS for letter in letters)


def reward(answers: Sequence[Exchange]) -> list[float]:
    """The reward of answers as they were sampled."""
    return [worth(answer.ids) for answer in answers]


REWARD: Reward = reward


def optimum(reference_S: Tensor, reward_S: Tensor, *, beta: float) -> Tensor:
    """`ref exp(r / beta) / Z`, (S,)."""
    return (reference_S + reward_S / beta).softmax(0)


def distance(policy_S: Tensor, target_S: Tensor) -> float:
    """Total variation of two distributions."""
    return 0.5 * float((policy_S - target_S).abs().sum())


def asked(prompt: str) -> tuple[Message, ...]:
    """A prompt as messages."""
    return user(prompt)
