"""Which prompts are held out: by a seeded hash of the prompt, so the choice never changes as data grows.

The hash is of the prompt with case and white space evened out, so two spellings of one prompt land on the same side and
a split of one source cannot leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from druthers.records import InputError, Message

WHOLE = 2**64


def draw(prompt: Iterable[Message], *, seed: int) -> int:
    r"""The number of a prompt in [0, 2**64): the same for all spellings that differ only in case and white space.

    >>> from druthers.records import user
    >>> draw(user("Name a fruit."), seed=0) == draw(user(" name  a FRUIT.\n"), seed=0)
    True
    """
    return draws(prompt, seed=seed)[0]


def draws(prompt: Iterable[Message], *, seed: int) -> tuple[int, int]:
    """The number of a prompt under a seed, and the one that it has under none, by which it is known in other runs."""
    text = evened(prompt)
    return hashed(f"{seed}\x1e{text}"), hashed(text)


def hashed(text: str) -> int:
    """A number in [0, 2**64)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def evened(messages: Iterable[Message]) -> str:
    """Roles and contents with case and white space evened out."""
    return "\x1e".join(f"{m.role}\x1f{' '.join(m.content.casefold().split())}" for m in messages)


def threshold(draws: Iterable[int], *, share: float, name: str, held: int = 0) -> int:
    """The bound below which a prompt is held out: `share` of the range, moved as little as lets neither side be empty.

    `held` are prompts that are held out already, beside those of the draws. Raises InputError when there are fewer than
    two prompts.

    >>> threshold([5, 9], share=0.1, name="pairs.jsonl")  # both lie in the first tenth; the greater one is trained on
    9
    """
    prompts = set(draws)
    if held and prompts:
        return min(int(share * WHOLE), max(prompts))
    if len(prompts) + held < 2:
        many = len(prompts) + held
        count = f"{many} usable prompt{'s' * (many != 1)} (those nearly the same count once)"
        raise InputError(
            f"{name}: holds {count}, but a split into training and held-out needs at least 2; "
            "give more prompts, or a held-out file as data.heldout"
        )
    if held:
        raise InputError(
            f"{name}: every prompt was held out before, so none is left to train on; give rows with other prompts, or "
            "split them anew with data.held_before=none"
        )
    bound = int(share * WHOLE)
    return min(max(bound, min(prompts) + 1), max(prompts))
