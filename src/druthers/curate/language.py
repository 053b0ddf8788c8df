"""Which language a text is in, and whether an answer is in another than its prompt.

The script of the letters is looked at first, which settles the plainest cases for nothing; only then py3langid is asked
(97 languages; about 0.1 ms a text, so it is run on a sample of the pairs). It says nothing of short texts, of code, and
of prompts that speak of languages: an answer in French to "Say it in French" is no fault.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any, Protocol, cast

LEAST_PROMPT, LEAST_RESPONSE = 20, 60
"""Letters that a prompt and a response have at least, to be judged."""
SURE_PROMPT, SURE_RESPONSE = 0.95, 0.99
LONGEST = 1000
"""Characters that are looked at."""
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^>\n]{1,200}>", re.DOTALL)
SPOKEN_OF = re.compile(
    r"""translat|übersetz|tradu[ciz]|перевод|перевед|翻译|翻譯|翻訳|訳し|번역|vertaal|tłumacz|\blanguages?\b|\bsprache|\blangue
    |\b(?:english|french|german|spanish|italian|portuguese|dutch|polish|russian|ukrainian|chinese|mandarin|cantonese|japanese
    |korean|arabic|hebrew|hindi|urdu|bengali|turkish|greek|latin|swedish|danish|norwegian|finnish|czech|hungarian|romanian
    |vietnamese|thai|indonesian|malay|persian|farsi|swahili|tagalog|catalan|welsh|irish|esperanto
    |englisch|deutsch|französisch|spanisch|italienisch|français|anglais|allemand|espagnol|español|inglés|inglese|inglês
    |portugu[eê]s)\b|англий|русск|英文|英语|中文|日本語|英語|한국어|영어""",
    re.VERBOSE | re.IGNORECASE,
)
NEAR = "no nb nn da sv|hr sr bs sl mk bg|id ms jv|gl pt es ca an ast oc|cs sk|hi mr ne|af nl|ru uk be"
FAMILIES = tuple(frozenset(family.split()) for family in NEAR.split("|"))
"""Languages so near that a short text is taken for its neighbour."""
SCRIPTS: dict[str, str] = {
    "LATIN": "latin",
    "CYRILLIC": "cyrillic",
    "GREEK": "greek",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "DEVANAGARI": "devanagari",
    "BENGALI": "bengali",
    "TAMIL": "tamil",
    "TELUGU": "telugu",
    "THAI": "thai",
    "GEORGIAN": "georgian",
    "ARMENIAN": "armenian",
    "HANGUL": "hangul",
    "CJK": "han",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
}


class Identifier(Protocol):
    """What is used of py3langid's identifier."""

    def classify(self, text: str) -> tuple[str, float]:
        """Language (ISO 639-1) and its probability."""
        ...


def prose(text: str) -> str:
    """The start of a text without code, addresses and tags.

    >>> prose("Run `ls`, see https://a.example")
    'Run  , see  '
    """
    return CODE.sub(" ", text[: 2 * LONGEST])[:LONGEST]


def script(text: str) -> str:
    """The script of most of the letters, "" where there are none; Japanese is "kana" if a tenth of it is.

    >>> script("Hallo, мир"), script("Привет, world, как дела"), script("漢字とかな"), script("42")
    ('latin', 'cyrillic', 'kana', '')
    """
    letters = [sign for sign in text if sign.isalpha()]
    if not letters:
        return ""
    if text.isascii():
        return "latin"
    counts: dict[str, int] = {}
    for sign in letters:
        found = script_of(sign)
        counts[found] = counts.get(found, 0) + 1
    if counts.get("kana", 0) * 10 >= len(letters):
        return "kana"
    return max(counts, key=counts.__getitem__)


@functools.lru_cache(maxsize=1 << 14)
def script_of(sign: str) -> str:
    """The script of a letter, by its name in Unicode."""
    return SCRIPTS.get(unicodedata.name(sign, "").split(" ")[0].split("-")[0], "other")


@functools.cache
def identifier() -> Identifier:
    """py3langid with its own model, read once (half a second)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return cast(Identifier, cast(Any, LanguageIdentifier).from_model_file(MODEL_FILE, norm_probs=True))


def language(text: str) -> tuple[str, float]:
    """The language of a text (ISO 639-1) and how probable that is.

    >>> language("Das Wetter ist heute in Hamburg besser als in Berlin.")[0]
    'de'
    """
    found, sure = identifier().classify(prose(text))
    return found, float(sure)


def is_short(text: str, least: int) -> bool:
    """Whether a text has too few letters to be judged; of scripts other than Latin a quarter is enough."""
    letters = sum(map(str.isalpha, text))
    return letters < (least if script(text) == "latin" else max(1, least // 4))


def is_strange(prompt: str, response: str) -> bool:
    """Whether a response is surely in another language than its prompt, which does not speak of languages.

    >>> is_strange("Wie wird das Wetter morgen, und brauche ich einen Schirm?", "It will be sunny, with some wind from "
    ...     "the sea in the afternoon and clouds at night, so you need none.")
    True
    """
    asked, said = prose(prompt), prose(response)
    if is_short(asked, LEAST_PROMPT) or is_short(said, LEAST_RESPONSE) or SPOKEN_OF.search(prompt):
        return False
    scripts = {script(asked), script(said)} - {"", "other"}
    if len(scripts) == 2:
        return scripts != {"han", "kana"}
    (of_prompt, sure_prompt), (of_response, sure_response) = language(prompt), language(response)
    if of_prompt == of_response or any({of_prompt, of_response} <= family for family in FAMILIES):
        return False
    return sure_prompt >= SURE_PROMPT and sure_response >= SURE_RESPONSE
