"""Fakes for tests: a byte tokenizer with a chat template and a two-layer random Llama, both real transformers ones."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from druthers.records import Pair, assistant, user

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerBase:
    """One token a byte, plus three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*control, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def model(
    seed: int = 0, *, vocab: int = 300, dtype: torch.dtype = torch.float32, **changes: object
) -> LlamaForCausalLM:
    """Two layers, width 32, random weights of a visible size (so that log-probs differ between answers)."""
    settings: dict[str, object] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = LlamaConfig(**(settings | changes))
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    made = LlamaForCausalLM(config).to(dtype)
    torch.random.set_rng_state(state)
    return made.eval()


def folder(path: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A local Hugging Face folder holding the tiny model and tokenizer, loadable by name like any other."""
    made = tokenizer(template)
    made.save_pretrained(path)
    model(seed, vocab=len(made)).save_pretrained(path)
    return path


def pairs(count: int, *, words: int = 6) -> list[Pair]:
    """Pairs whose chosen answers are polite and rejected ones rude, of varied lengths."""
    polite, rude = "thank you for asking me ", "no never go away now "
    return [
        Pair(
            prompt=user(f"question {i}?"),
            chosen=assistant((polite * 3)[: words + i % 7]),
            rejected=assistant((rude * 3)[: words + (i * 3) % 11]),
        )
        for i in range(count)
    ]
