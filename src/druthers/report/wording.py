"""Numbers as a reader meets them: rounded, with a true minus, and never a line break before the unit."""

from __future__ import annotations

import re

from druthers.stats import Estimate, Interval

MINUS, THIN, DASH = "\u2212", "\u202f", "\u2013"
NONE = "\u2014"
FORMS = {
    "druthers": "druthers pairs",
    "candidates": "rated responses",
    "trl": "TRL pairs",
    "hh": "Anthropic HH transcripts",
    "openai": "OpenAI preference pairs",
    "sagemaker": "SageMaker DPO pairs",
    "ratings": "a table of ratings",
    "ranking": "ranked responses",
    "votes": "votes between two responses",
    "unpaired": "thumbs up and down",
    "ultrafeedback": "UltraFeedback completions",
    "shp": "SHP comments with scores",
    "groundtruth": "a Ground Truth manifest",
    "labelstudio": "a Label Studio export",
    "argilla": "Argilla records",
}
"""What the forms of data are called."""


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with thousands separated.

    >>> decimal(-1234.5, 1), decimal(None), decimal(-0.001, 1)
    ('−1,234.5', '—', '0.0')
    """
    if value is None:
        return NONE
    written = f"{value:,.{digits}f}"
    return written.removeprefix("-") if float(written.replace(",", "")) == 0 else written.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A number that always shows its sign.

    >>> signed(0.5, 1), signed(-0.5, 1), signed(0, 1)
    ('+0.5', '−0.5', '0.0')
    """
    written = decimal(value, digits)
    return f"+{written}" if value is not None and any(c in "123456789" for c in written) and value > 0 else written


def count(value: float | None) -> str:
    """A whole number."""
    return decimal(value, 0)


def counted(value: float | None, one: str, many: str = "") -> str:
    """A whole number of things.

    >>> counted(1, "pair"), counted(2000, "pair"), counted(0, "row or prompt", "rows and prompts")
    ('1 pair', '2,000 pairs', '0 rows and prompts')
    """
    return f"{count(value)} {one if value == 1 else many or f'{one}s'}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent.

    >>> percent(0.9281) == "92.8\u202f%"
    True
    """
    return NONE if value is None else f"{decimal(100 * value, digits)}{THIN}%"


def points(value: float | None, digits: int = 1) -> str:
    """A change of a share in percentage points.

    >>> points(-0.021) == "−2.1\u202fpts"
    True
    """
    return NONE if value is None else f"{signed(100 * value, digits)}{THIN}pts"


def percent_range(estimate: Estimate, digits: int = 1) -> str:
    """The interval of a share.

    >>> percent_range(Interval(0.5, 0.4, 0.6, 90)) == "40.0–60.0\u202f%"
    True
    """
    if not isinstance(estimate, Interval):
        return NONE
    return f"{decimal(100 * estimate.low, digits)}{DASH}{percent(estimate.high, digits)}"


def decimal_range(estimate: Estimate, digits: int = 2, *, scale: float = 1.0) -> str:
    """The interval of a number that may be negative.

    >>> decimal_range(Interval(0.0, -0.25, 0.5, 9))
    '−0.25 to 0.50'
    """
    if not isinstance(estimate, Interval):
        return NONE
    return f"{decimal(scale * estimate.low, digits)} to {decimal(scale * estimate.high, digits)}"


def value_of(estimate: Estimate) -> float | None:
    """The number itself, or None where it is undefined."""
    return estimate.value if isinstance(estimate, Interval) else None


def duration(seconds: float | None) -> str:
    """A time span in its two largest units.

    >>> duration(0.6), duration(251), duration(7320), duration(None)
    ('0.6 s', '4 min 11 s', '2 h 2 min', '—')
    """
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{decimal(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def amount(value: float | None) -> str:
    """A large count in short.

    >>> amount(134_515_008), amount(1_710_000_000), amount(950)
    ('134.5 million', '1.7 billion', '950')
    """
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value is not None and value >= size:
            return f"{decimal(value / size, 1)} {name}"
    return count(value)


def shorten(words: str, limit: int) -> tuple[str, int]:
    """The beginning of a long text and how many characters were left away.

    >>> shorten("abcdef", 4), shorten("abc", 4)
    (('abcd', 2), ('abc', 0))
    """
    return words[:limit], max(0, len(words) - limit)


def capital(words: str) -> str:
    """The words with a capital at the beginning.

    >>> capital("has 40 to 85 words"), capital("")
    ('Has 40 to 85 words', '')
    """
    return words[:1].upper() + words[1:]


def last_part(name: str) -> str:
    """A file or folder without the way to it; any other name as it is.

    >>> last_part("/home/me/models/ours"), last_part("org/model"), last_part("hf://datasets/org/set")
    ('ours', 'org/model', 'hf://datasets/org/set')
    """
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "./", "../", "~")) else name


def whole(sentence: str) -> str:
    """A sentence in which no number is parted from its per cent sign at the end of a line.

    >>> whole("91.2 % won") == "91.2\u202f% won"
    True
    """
    return re.sub(r"(?<=\d) %", f"{THIN}%", sentence)
