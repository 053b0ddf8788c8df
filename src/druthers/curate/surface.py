"""What can be seen on the surface of an answer without reading it: lengths, marks of format, tone, and how it opens.

The numbers feed the bias regression and the shortcut score: a preference that they alone predict is cheap to fake.
They are counts over the text as it stands. `surface` runs on every response of a data set, so it splits the text once,
looks at line starts with one regular expression, and for the rest counts.
"""

from __future__ import annotations

import re
import zlib

BUCKETS = 64
"""First words are told apart by a stable hash into so many buckets."""
GRAM = 4
"""So many words in a row are a repeat when they come again."""
OPENING = 240
"""Characters from the start within which an answer apologises or refuses."""

NAMES: tuple[str, ...] = (
    "characters",
    "words",
    "lines",
    "bullets",
    "numbered",
    "bold",
    "headings",
    "tables",
    "fences",
    "links",
    "emoji",
    "exclamations",
    "questions",
    "digits",
    "apology",
    "refusal",
    "first_word",
    "capitals",
    "repeats",
)
"""What the numbers of `surface` are, in their order; `first_word` is a bucket, the last two are shares, the others are
counts (`apology` and `refusal` 0 or 1)."""

LINE_START = re.compile(r"\n[ \t>]*(?:([-*•+‣▪–][ \t])|(\d{1,3}[.)][ \t])|(#{1,6}[ \t])|(\|)|(```|~~~))")
EMOJI = re.compile("[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u231a\u231b\u23e9-\u23f3\u2600-\u27bf\u2b50\u2b55]")
EMOJI_LEAD = re.compile(rb"\xe2[\x8c\x8f\x98-\x9e\xad]")
"""What the UTF-8 of an emoji outside the pictographs begins with."""
DIGITS = b"0123456789"

LEAD_IN = r"[\s\"'“„«*_>-]*(?:(?:oh|ah|hi|hello|hey|well|um+|hm+|no|unfortunately|actually)\b[\s,.!…-]*){0,2}"
APOLOGY = re.compile(
    LEAD_IN
    + r"""(?:
      (?:i'?m|i\ am|we're|we\ are)\ (?:(?:so|very|really|truly|terribly|deeply|extremely)\ ){0,2}(?:sorry|afraid)\b
    | (?:so\ |very\ )?sorry\b | (?:(?:my|our)\ )?(?:sincere(?:st)?\ )?apologies\b | (?:i|we)\ apologi[sz]e\b
    | (?:please\ )?forgive\ me\b | pardon\ me\b | (?:i|we)\ regret\b
    | (?:es\ )?tut\ (?:mir|uns)\ (?:(?:sehr|wirklich)\ )?leid\b | leider\ (?:kann|darf)\b | entschuldig | verzeih
    | (?:je\ suis\ |nous\ sommes\ )?(?:vraiment\ )?d[ée]sol[ée] | (?:toutes\ )?(?:mes|nos)\ excuses\b | excusez
    | lo\ (?:siento|lamento|lamentamos|sentimos)\b | (?:mis\ |mil\ )?disculp | perd[óo]n | lamento\b
    | (?:mi|ci)\ dispiace\b | scus[aio] | sinto\ muito\b | pe[çc]o\ desculpa | het\ spijt\ (?:me|ons)\b | excuses\b
    | przepraszam | przykro\ mi\b | beklager\b | undskyld\b | f[öo]rl[åa]t\b | anteeksi\b | üzgünüm | maalesef
    | извин | прости(?:те)?\b | к\ сожалению | вибач | 抱歉 | 很抱歉 | 非常抱歉 | 对不起 | 對不起 | 不好意思
    | 申し訳 | すみません | ごめん | 죄송 | 미안 | عذر | آسف
    )""",
    re.VERBOSE,
)
"""Openings that apologise, in lower case and with straight apostrophes."""

FILLER = r"(?:\ (?:really|simply|just|also|still|certainly|unfortunately|honestly|actually|personally|definitely))*"
UNABLE = r"""(?:
      \ can(?:no|')?t | \ can\ not | \ could(?:n't|\ not) | \ won't | \ will\ not | \ shouldn't | \ should\ not
    | (?:'m|\ am|'re|\ are)(?:\ really|\ just|\ simply)?\ (?:not\ (?:able|going|willing|allowed|permitted|supposed)
      |unable|forbidden)\ to
    | \ don't\ (?:want\ to|think\ (?:i|we)\ (?:can|should|want\ to)|know\ how\ to) | (?:\ woul|')d\ rather\ not
    | \ (?:am|must|have\ to|will\ have\ to)\ (?:decline|refuse)\ to | \ (?:decline|refuse)\ to
    )"""
SERVE = r"""(?:help|assist|answer|provide|do\ (?:that|this|so|it|any)|give\ (?:you|out|that|this|any)|tell\ you
    |comply|fulfil|create|generate|write|support|engage|participate|discuss|share|offer|recommend|respond
    |say\ (?:that|this|any)|talk\ about|encourage|condone|advise|continue\ (?:this|with)|explain|describe|suggest
    |teach|be\ (?:able|part)\b)"""
MACHINE = r"(?:ai|artificial|large\ language|language\ model|virtual|chat\s?bot)\b"
REFUSES = rf"""(?:{FILLER}{UNABLE}{FILLER}(?:\ (?:in\ good\ conscience|ethically|legally|directly|possibly))?
      \ {SERVE} | (?:(?:'m|\ am|'re|\ are)(?:\ really)?\ (?:not\ |un)|\ do(?:n't|\ not)\ (?:really\ )?feel\ )comfortable
      \ (?:help|answer|discuss|talk|giv|provid|with|do|writ|say|shar|assist|support|recommend|encourag)
    | \ (?:must|have\ to|will)\ (?:respectfully\ |politely\ )?(?:decline|refuse)\b
    | (?:'m|\ am)(?:\ just|\ only|\ merely)?\ an?\ {MACHINE})"""
ENGLISH = re.compile(
    rf"""i(?<!\wi){REFUSES} | we(?<!\wwe){REFUSES} | as\ an?\ {MACHINE}
    | against\ my\ (?:programming|guidelines|principles|ethic|values)""",
    re.VERBOSE,
)
"""Refusals as English-speaking assistants word them, in lower case and with straight apostrophes. Every branch begins
with a letter, by which the search skips ahead."""
OTHERS = re.compile(
    r"""\b(?:kann|darf|werde|können)\ (?:\w+\ ){0,4}?nicht\ (?:\w+\ ){0,3}?
      (?:helfen|beantworten|weiterhelfen|unterstützen|anbieten|dienen|geben|erstellen|schreiben|nachkommen)
    | \bals\ (?:ki|künstliche|sprachmodell)\b
    | \bne\ (?:peux|suis|pouvons)\ (?:malheureusement\ )?pas\ (?:\w+\ ){0,3}?
      (?:aider|répondre|fournir|donner|mesure|créer)
    | \ben\ tant\ qu(?:'ia|e\ modèle|'intelligence|'assistant)
    | \bno\ (?:puedo|podemos)\ (?:\w+\ ){0,2}?(?:ayudar|responder|proporcionar|dar|cumplir|hacer|crear)
    | \bcomo\ (?:una?\ |um\ |uma\ )?(?:ia|inteligencia|inteligência|modelo\ de\ l)
    | \bn[ãa]o\ (?:posso|consigo)\ (?:\w+\ ){0,2}?(?:ajud|respond|fornec|dar|criar)
    | \bnon\ (?:posso|possiamo)\ (?:\w+\ ){0,2}?(?:aiutar|rispondere|fornire|dare|creare)
    | \bcome\ (?:ia|intelligenza|modello)\b
    | \bkan\ ik\ (?:\w+\ ){0,3}?niet\ (?:\w+\ ){0,2}?(?:helpen|geven|beantwoorden)
    | не\ (?:могу|можу|можем)\ (?:\w+\ ){0,3}?(?:помочь|ответить|предостав|выполнить|дать|допомогти)
    | как\ (?:искусственный|языковая\ модель)
    | 我(?:们|們)?(?:无法|不能|無法)(?:为您|為您|为你)?(?:提供|帮助|協助|协助|回答|满足|给)
    | 作为(?:一个|一名)?(?:人工智能|ai|语言模型)
    | (?:お手伝い|お答え|提供)[^。]{0,8}?(?:できません|いたしかねます) | 도와드릴\ 수\ 없""",
    re.VERBOSE,
)
"""The same in German, French, Spanish, Portuguese, Italian, Dutch, Russian, Ukrainian, Chinese, Japanese, Korean."""
OTHER_WORDS = frozenset(
    """nicht puedo podemos posso possiamo consigo peux pouvons suis niet не как intelligenza inteligencia inteligência
    modello modelo ia ia, ki ki, künstliche sprachmodell tant""".split()
)
WIDE_HINTS = ("我", "作为", "できません", "かねます", "도와")
"""A refusal in those languages holds one of these; where none stands, the search is spared. The
last write no spaces."""


def surface(text: str) -> tuple[float, ...]:
    r"""The numbers of one response, in the order of `NAMES`.

    Lines are those with something on them; `repeats` is the share of runs of four words that stood earlier in the text,
    which is high where a model goes in circles.

    >>> seen = dict(zip(NAMES, surface("I'm sorry, but I can't help with that.\n\n- Try **this**!\n- Or that?")))
    >>> [name for name, value in seen.items() if value == 1]
    ['bold', 'exclamations', 'questions', 'apology', 'refusal']
    >>> seen["words"], seen["lines"], seen["bullets"]
    (14, 3, 2)
    """
    words = text.split()
    lined = "\n" + text
    bullets, numbered, headings, tables, fences = starts(lined)
    raw = text.encode("utf-8", "surrogatepass")
    exclamations, questions, emoji = raw.count(b"!"), raw.count(b"?"), 0
    if not text.isascii():
        exclamations, questions, emoji = wide(text, raw, exclamations, questions)
    opening = text[:OPENING].replace("’", "'").lower()
    return (
        len(text),
        len(words),
        lines(lined),
        bullets,
        numbered,
        (raw.count(b"**") if b"*" in raw else 0) // 2 + (raw.count(b"__") if b"_" in raw else 0) // 2,
        headings,
        tables,
        fences,
        links(raw) if b":" in raw or b"]" in raw else 0,
        emoji,
        exclamations,
        questions,
        len(raw) - len(raw.translate(None, DIGITS)),
        APOLOGY.match(opening) is not None,
        refuses(opening),
        bucket(words),
        capitals(words),
        repeats(words),
    )


def wide(text: str, raw: bytes, exclamations: int, questions: int) -> tuple[int, int, int]:
    """Exclamation and question marks with those of other scripts, and emoji, of a text also given as UTF-8.

    >>> wide("好！¿Sí? 🙂", "好！¿Sí? 🙂".encode(), 0, 1)
    (1, 1, 1)
    """
    if b"\xef\xbc" in raw:
        exclamations, questions = exclamations + text.count("！"), questions + text.count("？")
    found = len(EMOJI.findall(text)) if b"\xf0\x9f" in raw or EMOJI_LEAD.search(raw) else 0
    return exclamations, questions + (text.count("؟") if b"\xd8" in raw else 0), found


def links(raw: bytes) -> int:
    """Addresses and Markdown links of a text in UTF-8, one that is both counted once.

    >>> links(b"[a](https://b.example) and http://c.example, [d](/e)")
    3
    """
    return raw.count(b"://") + raw.count(b"](") - raw.count(b"](http")


def starts(lined: str) -> tuple[int, ...]:
    """Lines that begin as bullets, numbered items, headings, rows of a table and code fences; `lined` begins with one.

    >>> starts("\\n1. one\\n2) two\\n# three\\n| four |\\n```")
    (0, 2, 1, 1, 1)
    """
    if lined.count("\n") == 1 and lined[1:2] not in "-*•+‣▪–#|`~>0123456789 \t":
        return (0, 0, 0, 0, 0)
    kinds = [found.lastindex for found in LINE_START.finditer(lined)]
    return tuple(kinds.count(kind) for kind in range(1, 6))


def lines(lined: str) -> int:
    """Lines with something on them, of a text that begins with a line break."""
    if lined.count("\n") == 1:
        return 1 if lined.strip() else 0
    return sum(1 for line in lined.split("\n") if line.strip())


def refuses(opening: str) -> bool:
    """Whether an opening, in lower case and with straight apostrophes, refuses.

    >>> [refuses(text) for text in ("sorry, i can't help with that.", "as an ai, i", "i can't wait to help!")]
    [True, True, False]
    >>> [refuses(text) for text in ("dabei kann ich leider nicht helfen.", "das ist nicht schwer zu erstellen.")]
    [True, False]
    """
    if ENGLISH.search(opening) is not None:
        return True
    hinted = not OTHER_WORDS.isdisjoint(opening.split())
    hinted = hinted or (not opening.isascii() and any(map(opening.__contains__, WIDE_HINTS)))
    return hinted and OTHERS.search(opening) is not None


def bucket(words: list[str]) -> int:
    """The bucket of the first word, marks and case aside, the same on every machine; 0 where there is none.

    >>> bucket(["Sure,"]) == bucket(["sure!"]) != bucket(["No"])
    True
    """
    first = words[0].strip(".,!?:;*_\"'“”„«»()[]#-").lower() if words else ""
    return 1 + zlib.crc32(first.encode("utf-8", "surrogatepass")) % (BUCKETS - 1) if first else 0


def capitals(words: list[str]) -> float:
    """Share of the words that stand wholly in capitals, single letters apart."""
    loud = [word for word in words if word.isupper()]
    return sum([len(word) > 1 for word in loud]) / len(words) if loud else 0.0


def repeats(words: list[str]) -> float:
    """Share of the runs of `GRAM` words that stood earlier in the text.

    >>> repeats("so it goes on so it goes on so it goes on".split()), repeats("no run comes twice here".split())
    (0.5555555555555556, 0.0)
    """
    runs = len(words) - GRAM + 1
    if runs < 2:
        return 0.0
    return 1 - len(set(zip(words, words[1:], words[2:], words[3:], strict=False))) / runs
