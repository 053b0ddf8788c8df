"""What is planted in texts: tokens of templates, personal data, breaks, and what looks like them in plain texts."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

Draw = random.Random

TOKENS = (
    "<|im_end|>", "<|im_start|>user", "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<|eot_id|>",
    "<|start_header_id|>", "<end_of_turn>", "<start_of_turn>model", "<｜end▁of▁sentence｜>", "<bos>", "<|assistant|>",
)  # fmt: skip
CONTROL = ("\x00", "\x1b[0m", "\u202e", "\x08")


# ---------------------------------------------------------------- personal data


def digits(draw: Draw, count: int, *, first: str = "123456789") -> str:
    """So many digits."""
    return draw.choice(first) + "".join(draw.choices(string.digits, k=count - 1))


def name(draw: Draw) -> str:
    """Some letters."""
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8)))


def mail(draw: Draw) -> str:
    """An address."""
    local = draw.choice((name(draw), f"{name(draw)}.{name(draw)}", f"{name(draw)}+{name(draw)}", f"{name(draw)}_7"))
    return f"{local}@{name(draw)}.{draw.choice(('com', 'org', 'de', 'co.uk', 'io', 'museum'))}"


def phone(draw: Draw) -> str:
    """A telephone number as people write them."""
    shapes = (
        f"+49 30 {digits(draw, 6)}",
        f"+44 20 {digits(draw, 4)} {digits(draw, 4)}",
        f"+1-{digits(draw, 3, first='23456789')}-{digits(draw, 3, first='23456789')}-{digits(draw, 4)}",
        f"({digits(draw, 3, first='23456789')}) {digits(draw, 3, first='23456789')}-{digits(draw, 4)}",
        f"{digits(draw, 3, first='23456789')}-{digits(draw, 3, first='23456789')}-{digits(draw, 4)}",
        f"0{digits(draw, 3, first='1')} {digits(draw, 7)}",
        "06 " + " ".join(digits(draw, 2) for _ in range(4)),
        f"+33 6 {' '.join(digits(draw, 2) for _ in range(4))}",
        f"call me on {digits(draw, 10, first='23456789')}",
    )
    return draw.choice(shapes)


def iban(draw: Draw) -> str:
    """One with the check digits of ISO 7064, in groups of four or in one piece."""
    country, length, letters = draw.choice((("DE", 22, 0), ("GB", 22, 4), ("FR", 27, 0), ("NL", 18, 4), ("ES", 24, 0)))
    body = "".join(draw.choices(string.ascii_uppercase, k=letters)) + digits(draw, length - 4 - letters)
    rest = int("".join(str(int(sign, 36)) for sign in f"{body}{country}00")) % 97
    whole = f"{country}{98 - rest:02}{body}"
    return draw.choice((whole, " ".join(whole[i : i + 4] for i in range(0, length, 4))))


def card(draw: Draw) -> str:
    """A card of 16 digits that passes Luhn's sum, in groups or in one piece."""
    body = draw.choice(("4", "51", "55", "2221", "6011"))
    body += digits(draw, 15 - len(body))
    summed = sum(sum(divmod(int(sign) * (2 - i % 2), 10)) for i, sign in enumerate(body))
    whole = body + str(-summed % 10)
    return draw.choice((whole, *(mark.join(whole[i : i + 4] for i in range(0, 16, 4)) for mark in " -")))


PERSONAL: tuple[Callable[[Draw], str], ...] = (mail, phone, iban, card)


# ---------------------------------------------------------------- breaks


MARKS = ".,;:!?\"'”’)"


def broken_off(text: str, draw: Draw) -> str:
    """A text that stops within a sentence after its first one, between two words or within one; one in five as the last
    item of a numbered list. A break right behind a sentence is none."""
    sentences = text.split(". ")
    last = sentences[-1].rstrip(".").split()
    if len(sentences) < 2 or len(last) < 3:
        sentences[-1:] = ["this is how it goes on for a while and"]
        last = sentences[-1].split()
    kept = last[: draw.randint(2, len(last) - 1)]
    if draw.random() < 0.5:
        kept[-1] = kept[-1][: max(1, len(kept[-1]) // 2)]
    whole = [f"{sentence}." for sentence in sentences[:-1]]
    broken = " ".join(kept).rstrip(MARKS)
    if draw.random() < 0.2:
        return "\n".join(f"{i}. {part}" for i, part in enumerate([*whole, broken], 1))
    return " ".join([*whole, broken])


# ---------------------------------------------------------------- plain texts that are no prose


def dressed(text: str, draw: Draw) -> str:
    """The text, or a part of it, as answers that are no prose have it; none of the planted faults."""
    words = text.rstrip(".").split()
    numbers = draw.choice(NUMBERS)
    shapes = (
        "You will need:\n" + "\n".join(f"- {word.strip('.,')}" for word in words[:6]),
        "\n".join(f"{i}. {part.rstrip('.')}." for i, part in enumerate(text.split(". "), 1)),
        f"{text}\n\n```py\nfor i in range({draw.randint(2, 99)}):\n    print(i)\n```",
        f"Dear {words[0].strip('.,').title()},\n\n{text}\n\nBest regards,\nAnn",
        f"# {' '.join(words[:4]).strip('.,')}\n\n{text}\n\n**{words[4].strip('.,')}:** {' '.join(words[5:9])}.",
        f"| a | b |\n|---|---|\n| {words[0]} | {draw.randint(1, 999)} |",
        f"{text} 🙂",
        f"{text} ({words[0].strip('.,')})",
        " ".join(word.strip(MARKS) for word in [*words[:3], str(draw.randint(0, 10**6))]),
        f"{text} {numbers}.",
        f"{numbers}. {text}",
        f"{text} {numbers}.",
    )
    return draw.choice(shapes)


NUMBERS = (
    "The meeting is on 2024-05-17 at 10:30",
    "Altogether it comes to $1,234,567.89",
    "Order 4711-2233 left on 17.05.2024",
    "Use version 10.2.14, not 10.2.13",
    "ISBN 978-3-16-148410-0 is the one",
    "Set the picture to 1920x1080",
    "The commit is 3f2a9c0d1177 of branch 2024.1",
    "Pi is 3.14159265358979",
    "In 1998, 2 345 678 people lived there",
    "A router is often at 192.168.0.1",
    "It lies at 52.5200, 13.4050",
    "The part has number 8834-2210-77",
    "See doi 10.1000/182 on page 1234",
    "From 1914 to 1918, and 1939 to 1945",
    "Write @ann or use #1234567 in the title",
    "The population was 83200000 in 2023",
    "Temperatures ran from -12 to 31.5 degrees in 365 days",
    "12:30:45 is the time, 86,400 the seconds of a day",
)
"""Numbers that are nobody's."""
