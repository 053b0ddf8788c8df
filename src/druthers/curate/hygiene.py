"""What is wrong with a text as a text: cut off, unclosed, garbled, holding a chat template's tokens or personal data.

`faults` gives one number of bits for a text, so that the faults of millions fit an array; `named` reads it. The text
itself is never kept or written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from druthers.curate import pii
from druthers.curate.surface import LINE_START

TEXT_KINDS: tuple[str, ...] = ("empty", "cut", "fence", "control", "encoding", "template", "turn")
KINDS: tuple[str, ...] = (*TEXT_KINDS, *pii.KINDS)
"""What bit i of a number of `faults` stands for. empty: nothing but space; cut: stops in the middle of a sentence;
fence: a code fence stays open; control: characters that nobody types; encoding: replacement characters, or UTF-8 that
was read as another code; template: tokens of a chat template; turn: a turn written for somebody else; then the kinds of
personal data."""
BIT = {kind: 1 << place for place, kind in enumerate(KINDS)}
PERSONAL = sum(BIT[kind] for kind in pii.KINDS)
"""The bits of personal data and secrets."""

CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters but tab, line ends and NEL, marks that turn the direction of writing, and invisible tags."""
TURNED = re.compile("[\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff]")
LATER = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
"""The bytes 80 to BF as cp1252 and latin-1 show them."""
MOJIBAKE = re.compile(f"[\u00c2-\u00df]{LATER}|[\u00e0-\u00ef]{LATER}{{2}}|[\u00f0-\u00f4]{LATER}{{3}}")
FENCE = re.compile(r"`{3,}|~{3,}")
SURROGATE = re.compile("[\ud800-\udfff]")
TEMPLATE = re.compile(
    r"""<\|[A-Za-z0-9_\-./]{1,40}\|> | <｜[^｜\n]{1,40}｜> | \[/?INST\] | <</?SYS>>
    | </?(?:start|end)_of_(?:turn|utterance|image|text)>
    | \[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]
    | <(?:bos|eos|pad|unk|mask)> | \A\s*<s>(?!.*</s>.*\w) | (?<!\w)\[(?:CLS|SEP|PAD|UNK|MASK|EOS|BOS)\](?!\w)""",
    re.VERBOSE,
)
ROLE = re.compile(r"\s*\w{0,12}\s*")
"""What may stand behind the last token of a template: the name of a role."""
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""What a terminal takes for a colour."""
STRUCK = re.compile(r"<s>.*?</s>", re.DOTALL)
"""HTML's struck-out text, whose end is no token."""
TURN = re.compile(
    r"(?:\A|\n)[ \t]*(?:\*\*|#{1,6} )?(?:Human|User|Assistant|AI|(?<=### )(?:Instruction|Response))"
    r"(?:\*\*)?:(?:\*\*)?\s"
)


def faults(text: str, *, special: frozenset[str] = frozenset()) -> int:
    r"""What is wrong with a response, as bits of `KINDS`; `special` are the special tokens of the tokenizer at hand.

    Of a prompt the bits `cut` and `turn` mean nothing.

    >>> named(faults("Mail ann@example.org.<|im_end|>")), named(faults("It is warm and")), named(faults("\n"))
    (('template', 'mail'), ('cut',), ('empty',))
    """
    if not text or text.isspace():
        return BIT["empty"]
    bits = BIT["fence"] * unclosed(text) + BIT["template"] * templated(text, special) + BIT["turn"] * speaks_for(text)
    if not text.isprintable():
        bits |= BIT["control"] * controls(text)
    if not text.isascii():
        bits |= BIT["encoding"] * garbled(text)
    if not bits & BIT["fence"] and is_cut(said(text) if bits & (BIT["template"] | BIT["control"]) else text):
        bits |= BIT["cut"]
    for span in pii.spans(text):
        bits |= BIT[span.kind]
    return bits


def named(bits: int) -> tuple[str, ...]:
    """The kinds of fault that the bits of `faults` stand for."""
    return tuple(kind for kind in KINDS if bits & BIT[kind])


def unclosed(text: str) -> bool:
    r"""Whether a code fence that begins a line is never closed.

    >>> unclosed("```py\nx = 1\n```"), unclosed("Here:\n```py\nx = 1"), unclosed("Use ``` to open.")
    (False, True, False)
    """
    if "```" not in text and "~~~" not in text:
        return False
    opened = ""
    for line in text.split("\n"):
        start = line.strip(" \t\r>")
        run = FENCE.match(start)
        if run is None:
            continue
        if not opened and run[0][0] not in start[run.end() :]:
            opened = run[0]
        elif opened and start.startswith(opened) and start == run[0]:
            opened = ""
    return bool(opened)


def controls(text: str) -> bool:
    """Whether characters stand in it that nobody types; marks of direction are at home beside Arabic and Hebrew."""
    found = CONTROL.search(text)
    if found is None or not TURNED.match(found[0]):
        return found is not None
    return RIGHT_TO_LEFT.search(text) is None


def garbled(text: str) -> bool:
    r"""Whether characters were lost (U+FFFD, half of a surrogate pair) or UTF-8 was read as cp1252 or latin-1.

    >>> garbled("Itâ€™s"), garbled("schÃ¶n"), garbled("schön, it’s"), garbled("lost \ufffd")
    (True, True, False, True)
    """
    if "\ufffd" in text or SURROGATE.search(text):
        return True
    return any(decodes(found[0]) for found in MOJIBAKE.finditer(text))


def decodes(piece: str) -> bool:
    """Whether characters taken as the bytes they stand for are one character in UTF-8 that people write."""
    try:
        raw = b"".join(sign.encode("latin-1" if ord(sign) < 256 else "cp1252") for sign in piece)
        return raw.decode("utf-8").isprintable() or piece[0] == "\u00c2"
    except UnicodeError:
        return False


def templated(text: str, special: frozenset[str] = frozenset()) -> bool:
    """Whether tokens of a chat template stand in the text, of the usual ones or of the tokenizer's own.

    >>> templated("</s>"), templated("<s>old</s> new"), templated("a < b"), templated("<turn>", frozenset({"<turn>"}))
    (True, False, False, True)
    """
    if "<" not in text and "[" not in text and not special:
        return False
    if TEMPLATE.search(text) or ("</s>" in text and "</s>" in STRUCK.sub("", text)):
        return True
    own = own_tokens(special)
    return own is not None and own.search(text) is not None


@functools.lru_cache(maxsize=8)
def own_tokens(special: frozenset[str]) -> re.Pattern[str] | None:
    """One expression for a tokenizer's special tokens; those that ordinary text may hold, letters or two signs, not."""
    telling = [token for token in special if len(token) > 2 and not token.isalnum() and token not in ("<s>", "</s>")]
    return re.compile("|".join(map(re.escape, sorted(telling, key=len, reverse=True)))) if telling else None


def said(text: str) -> str:
    r"""The text without what is none at its end: tokens of a template and a role behind them, control characters.

    >>> said("It is warm.<|im_start|>user"), said("It is warm.\x1b[0m"), said("It is <pad> warm and")
    ('It is warm.', 'It is warm.', 'It is <pad> warm and')
    """
    text = CONTROL.sub("", ESCAPE.sub("", text))
    for found in reversed(list(TEMPLATE.finditer(text))):
        if not ROLE.fullmatch(text, found.end()):
            break
        text = text[: found.start()]
    return text


def speaks_for(text: str) -> bool:
    r"""Whether a turn of somebody else is written into the response, which a model does that runs past its end.

    >>> speaks_for("Fine.\n\nHuman: And you?"), speaks_for("The human: a study")
    (True, False)
    """
    return ":" in text and TURN.search(text) is not None


# ---------------------------------------------------------------- cut off

CLOSERS = "\"'”’»«“*_`)]}>）」』】》›~ "
OPEN_WORDS = frozenset(
    """a an the and or nor but of to for from with without into onto upon than that which who whom whose because
    although though if unless while whereas when where as is are was were be been being am has have had can
    could will would shall should may might must your my our their its his these those this every each some any
    such very more most i'm you're we're they're it's i've you've we've i'll you'll we'll don't doesn't isn't
    aren't can't won't der die das den dem des ein eine einen einem einer und oder aber mit für von zu zum zur
    im ist sind wird werden dass weil wenn ihre ihren le la les un une des du de et ou mais pour avec dans sur
    est sont que qui el los las una y o pero con por para en es son il lo gli uno e ma di da per che não os um
    uma dos das het een van""".split()
)
"""Words that a sentence rarely ends with, so a last word of these means a cut; the prepositions that English sentences
do end with (in, on, at, by, about) are left out."""
MAY_END = frozenset(
    """that this is are was were has have had can could will would should may might must be been am do those these some
    any most more each such as of to for from with y o e""".split()
)
"""Of these, the ones that do end sentences: they count only where the text ends its other sentences with marks."""
SENTENCE = re.compile(r"(?:(?<!\b\d)(?<!\b\d\d)\.|[!?…])[\"”'’)\]*_]*(?=\s)|[。！？।۔]")
STOPS = tuple(".!?…。！？।۔")
LEAST_LINE, LEAST_ITEM = 5, 3
"""Words that the last line, or item of a list, has at least, for a missing mark at its end to mean a cut."""
PEERS = 3
"""Items before the last one from which on, all ending with marks, a shorter one without is cut too."""
LONG_SENTENCE = 14
"""Words from which on one sentence with commas, begun with a capital and never ended, is a cut one."""


def is_cut(text: str) -> bool:
    r"""Whether a response stops in the middle of a sentence, as at a bound of tokens; made to be right when it says so.

    It looks at the last line. A line that ends in a mark, a closed bracket or quote, a sign or an emoji is whole, and
    so are headings, table rows and code. Else it is cut if its last word is one that no sentence ends with, or a comma;
    or if the text ends its other sentences with marks and the line is no short one (a name, a date) and, in a list,
    if the items before it do end with marks. A cut right behind a sentence cannot be seen.

    >>> is_cut("Water boils at 100 degrees. At the top of a mountain it boils at a lower tem"), is_cut("Plum")
    (True, False)
    >>> is_cut("Buy:\n- apples\n- ripe pears"), is_cut("Dear Ann,\n\nI shall come. Until then.\n\nYours,\nBob")
    (False, False)
    """
    body = text.rstrip()
    ending = body.rstrip(CLOSERS)
    if not ending or not (ending[-1].isalnum() or ending[-1] in ",，、-" or body[-1] in "(（[“„"):
        return False
    if len(ending) < len(body) and body[-1] not in "'’(（[“„" and ending[-1] not in ",，、":
        return False
    if ending[-1] == "-" and not ending[-2:-1].isalpha():
        return False
    *before, last = [line for line in body.split("\n") if line.strip()]
    kind = LINE_START.match("\n" + last)
    if (kind is not None and kind.lastindex in (3, 4, 5)) or "://" in last.split()[-1]:
        return False
    return breaks_off(last if kind is None else last[kind.end() - 1 :], before, item=kind is not None)


def breaks_off(last: str, before: list[str], *, item: bool) -> bool:
    """Whether a last line without a mark at its end breaks off, given the lines before it."""
    words = last.split()
    ended = SENTENCE.search(last) is not None
    peers = [line for line in before if LINE_START.match("\n" + line)] if item else before
    marked = sum(ends_sentence(line) for line in peers)
    punctuated = ended or (marked == len(peers) > 0 if item else 2 * marked > len(peers))
    tail = words[-1].lower().replace("’", "'").lstrip('"“„«*_(')
    if tail in OPEN_WORDS and len(words) > 2 and (punctuated or tail not in MAY_END):
        return True
    if last.rstrip()[-1] in ",，、-":
        return len(words) >= LEAST_LINE or (punctuated and len(words) > 1)
    if punctuated:
        least = LEAST_LINE if not item else LEAST_ITEM if marked < PEERS else 1
        return ended or len(words) >= least or unspaced(last)
    return not before and len(words) >= LONG_SENTENCE and "," in last and last.lstrip(CLOSERS)[:1].isupper()


def ends_sentence(line: str) -> bool:
    """Whether a line ends with the mark of a sentence, a colon, or an emoji in a mark's place."""
    end = line.rstrip().rstrip(CLOSERS + "\ufe0f")[-1:]
    return end in STOPS or end in (":", "：") or (end >= "\u2600" and not end.isalnum())


def unspaced(line: str) -> bool:
    """Whether a line of Chinese or Japanese, which have no spaces, is as long as a clause."""
    return len(line) >= 12 and any("\u3040" <= sign <= "\u9fff" for sign in line[-8:])


def count(masks: Iterable[int]) -> dict[str, int]:
    """How many of the texts have each fault, of the faults that occur.

    >>> count([faults("a\\x00b."), faults("\\x00c."), faults("Fine.")])
    {'control': 2}
    """
    tally = dict.fromkeys(KINDS, 0)
    for bits in masks:
        for kind in named(bits):
            tally[kind] += 1
    return {kind: seen for kind, seen in tally.items() if seen}
