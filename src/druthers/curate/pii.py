"""Personal data and secrets in a text: where they stand, and the text with placeholders in their place.

A span says what kind of thing stands where, never what it says: values are neither returned nor written anywhere.
Patterns are tight rather than wide, and what has a check digit must pass it: IBAN (ISO 13616, mod 97), payment card
(ISO/IEC 7812, Luhn), and of national numbers only those with a check: ES DNI and NIE, IT codice fiscale, FR NIR,
BR CPF, PL PESEL, DE tax number. An address of a private or reserved network belongs to nobody and is none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

KINDS: tuple[str, ...] = ("key", "mail", "iban", "card", "id", "ipv6", "ipv4", "phone")
"""What is looked for, in this order; of spans that overlap the earlier kind stands."""


@dataclass(frozen=True, order=True)
class Span:
    """Characters `start` to `end` of a text are of a kind."""

    start: int
    end: int
    kind: str


Check = Callable[[re.Match[str], str], bool]
"""Whether a match in its text is what it looks like."""

MAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_](?:[\w.+%-]{0,62}[\w+%-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w@-])"
)
KEY_LEADS = (
    "sk-", "sk_", "rk_", "AKIA", "ASIA", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "xox", "AIza",
    "hf_", "npm_", "pypi-", "SG.", "eyJ", "PRIVATE KEY", "Bearer ", "ya29.", "shpat_", "dop_v1_",
)  # fmt: skip
KEY = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      sk-(?:proj-|ant-|or-|live-|svcacct-)?[A-Za-z0-9_-]{20,200} | [sr]k_(?:live|test)_[A-Za-z0-9]{16,120}
    | A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Za-z0-9]) | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_[A-Za-z0-9_]{30,255}
    | glpat-[A-Za-z0-9_-]{20,64} | xox[abeprs]-[A-Za-z0-9-]{10,250} | AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])
    | hf_[A-Za-z0-9]{30,60} | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,250}
    | SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64} | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}
    | Bearer\ (?=[A-Za-z._~+/-]*[0-9])[A-Za-z0-9._~+/-]{20,}=* | ya29\.[A-Za-z0-9_-]{30,} | shpat_[a-f0-9]{32}
    | dop_v1_[a-f0-9]{64}
    ) | -----BEGIN\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----(?:[\s\S]*?-----END\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----)?""",
    re.VERBOSE,
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
    }.items()
    for country in countries.split()
}
"""Characters of an IBAN by country, from the SWIFT registry."""
CARD = re.compile(
    r"(?<![\w.,/-])(?<!\d )[2-6]\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{1,7}|([ -]?)\d{6}\2\d{4,5})(?![\w-])(?![.,/]\d)"
)
IPV4 = re.compile(r"(?<![\w./-])(?<!\w:)(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)(?!/\d{3})")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|:(?=:)){2,7}:?(?:[0-9A-Fa-f]{1,4})?(?![\w:])")
NATIONAL = re.compile(
    r"""(?<![\w.-])(?:
      (?P<dni>[0-9XYZ]\d{7}-?[A-HJ-NP-TV-Z])
    | (?P<fiscale>[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z])
    | (?P<nir>[12]\ ?\d{2}\ ?(?:0[1-9]|1[0-2])\ ?(?:\d{2}|2[AB])\ ?\d{3}\ ?\d{3}\ ?\d{2})
    | (?P<cpf>\d{3}\.\d{3}\.\d{3}-\d{2})
    | (?P<pesel>\d{11})
    | (?P<steuer>\d{2}\ \d{3}\ \d{3}\ \d{3})
    )(?![\w-])(?!\.\d)""",
    re.VERBOSE,
)
PHONE = re.compile(
    r"""(?<![\w.,$€£#=/+-])(?:
      (?:\+|00(?=[1-9]))[1-9]\d{0,2}[\ .()/-]{0,3}(?:\(0\)\ ?)?\d(?:[\ .()/-]{0,2}\d){5,13}
    | (?:1[\ .-])?(?:\([2-9]\d{2}\)\ ?|[2-9]\d{2}(?P<dash>[.\ -]))[2-9]\d{2}(?(dash)(?P=dash)|[-.\ ])\d{4}
    | \(?0[1-9]\d{1,3}\)?[\ /-]{1,3}\d{3,4}(?:[\ /-]?\d{2,4}){1,2}
    | 0[1-9](?P<pair>[\ .-])\d{2}(?P=pair)\d{2}(?P=pair)\d{2}(?P=pair)\d{2}
    | \d{8,12}
    )(?!\w)(?![.,]\d)(?!-\d)(?!\ ?[€$£%])""",
    re.VERBOSE,
)
CALLED = re.compile(
    r"""(?:\b(?:tel|phones?|telephone|mobile|cell|fax|whatsapp|(?:call|text|reach)(?:\ me)?(?:\ at|\ on)?|ring|dial
    |numbers?(?:\ is)?|telefon|handy|ruf\w*|móvil|teléfono|portable|téléphone)\b|☎|📞)[^.\n\d]{0,25}$""",
    re.IGNORECASE | re.VERBOSE,
)
"""What stands before a bare row of digits that is a telephone number."""
VERSION = re.compile(r"(?:\bv|\bversions?|\brelease|\bbuild|\bsection|\bchapter|§)\s?$", re.IGNORECASE)


def spans(text: str) -> list[Span]:
    """What stands in a text, from its start to its end, none overlapping another.

    >>> spans("Write to ann@example.org, not to @ann.")
    [Span(start=9, end=24, kind='mail')]
    """
    found: list[Span] = []
    for kind in candidates(text):
        pattern, check = LOOKED_FOR[kind]
        for match in pattern.finditer(text):
            start, end = match.span()
            if (check is None or check(match, text)) and not any(s.start < end and start < s.end for s in found):
                found.append(Span(start, end, kind))
    return sorted(found)


def candidates(text: str) -> Iterator[str]:
    """The kinds a text can hold at all, told by marks that are cheap to look for."""
    raw = text.encode("utf-8", "surrogatepass")
    digits = len(raw) - len(raw.translate(None, b"0123456789"))
    if any(map(text.__contains__, KEY_LEADS)):
        yield "key"
    if b"@" in raw:
        yield "mail"
    if digits >= 10:
        yield from ("iban", "card")
    if digits >= 7:
        yield "id"
    if digits and raw.count(b":") >= 2:
        yield "ipv6"
    if digits >= 4 and raw.count(b".") >= 3:
        yield "ipv4"
    if digits >= 7:
        yield "phone"


def redact(text: str) -> str:
    """The text with each span replaced by its kind in brackets; what was redacted stays as it is.

    >>> redact("Write to ann@example.org or call +49 30 901820.")
    'Write to [mail] or call [phone].'
    """
    for span in reversed(spans(text)):
        text = f"{text[: span.start]}[{span.kind}]{text[span.end :]}"
    return text


def is_iban(match: re.Match[str], _: str) -> bool:
    """Length of its country, and remainder 1 of the letters as numbers by 97."""
    plain = match[0].replace(" ", "").replace("-", "")
    if IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def is_card(match: re.Match[str], _: str) -> bool:
    """13 to 19 digits that are not all alike and pass Luhn's sum."""
    digits = [int(sign) for sign in match[0] if sign.isdigit()]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: list[int]) -> bool:
    """Luhn's sum: every second digit from the right doubled, its digits summed, and all of it divisible by 10.

    >>> luhn([4, 2, 4, 2, 4, 2, 4, 2, 4, 2, 4, 2, 4, 2, 4, 2]), luhn([1, 2])
    (True, False)
    """
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_ipv4(match: re.Match[str], text: str) -> bool:
    """A public address, and no version number."""
    if VERSION.search(text, max(0, match.start() - 12), match.start()):
        return False
    return is_public(match[0])


def is_ipv6(match: re.Match[str], _: str) -> bool:
    """A public address with a digit in it: `std::` is none."""
    return any(sign.isdigit() for sign in match[0]) and match[0].count(":") >= 2 and is_public(match[0])


def is_public(address: str) -> bool:
    """Whether an address can be that of somebody."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def is_national(match: re.Match[str], _: str) -> bool:
    """The check of the country whose form it has."""
    assert match.lastgroup is not None
    return NATIONAL_CHECKS[match.lastgroup](re.sub(r"[ .-]", "", match[0]))


def is_dni(plain: str) -> bool:
    """Spain: the letter is the number by 23; X, Y and Z of a NIE are 0, 1 and 2."""
    number = plain[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


ODD = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)) | dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)


def is_fiscale(plain: str) -> bool:
    """Italy: the last letter is the sum of the table's values by 26."""
    even = sum(int(sign) if sign.isdigit() else ord(sign) - 65 for sign in plain[1:15:2])
    return chr(65 + (sum(ODD[sign] for sign in plain[0:15:2]) + even) % 26) == plain[15]


def is_nir(plain: str) -> bool:
    """France: the last two digits are 97 less the number by 97; Corsica's 2A and 2B are 19 and 18."""
    return 97 - int(plain[:13].replace("2A", "19").replace("2B", "18")) % 97 == int(plain[13:])


def is_cpf(plain: str) -> bool:
    """Brazil: two check digits by 11."""
    digits = [int(sign) for sign in plain]
    return len(set(digits)) > 1 and all(
        sum((n + 1 - i) * digits[i] for i in range(n)) * 10 % 11 % 10 == digits[n] for n in (9, 10)
    )


def is_pesel(plain: str) -> bool:
    """Poland: weights 1 3 7 9, and a month and a day that exist. Germany's tax number has eleven digits as well."""
    digits = [int(sign) for sign in plain]
    summed = sum(weight * digit for weight, digit in zip((1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), digits, strict=True))
    dated = 1 <= int(plain[2:4]) % 20 <= 12 and 1 <= int(plain[4:6]) <= 31
    return (dated and summed % 10 == 0) or is_steuer(plain)


def is_steuer(plain: str) -> bool:
    """Germany: of the first ten digits one comes twice or thrice and no other so; ISO 7064 mod 11, 10."""
    counts = sorted(plain[:10].count(sign) for sign in set(plain[:10]))
    if plain[0] == "0" or counts[-1] not in (2, 3) or len(counts) < 8 or counts[-2] != 1:
        return False
    product = 10
    for sign in plain[:10]:
        product = ((int(sign) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(plain[10])


NATIONAL_CHECKS: dict[str, Callable[[str], bool]] = {
    "dni": is_dni,
    "fiscale": is_fiscale,
    "nir": is_nir,
    "cpf": is_cpf,
    "pesel": is_pesel,
    "steuer": is_steuer,
}


def is_phone(match: re.Match[str], text: str) -> bool:
    """7 to 15 digits with room between them, or a bare row of digits that the words before call a number."""
    digits = [sign for sign in match[0] if sign.isdigit()]
    if not 7 <= len(digits) <= 15 or len(set(digits)) < 3:
        return False
    if match[0].isdigit():
        return CALLED.search(text, max(0, match.start() - 60), match.start()) is not None
    return True


LOOKED_FOR: dict[str, tuple[re.Pattern[str], Check | None]] = {
    "key": (KEY, None),
    "mail": (MAIL, None),
    "iban": (IBAN, is_iban),
    "card": (CARD, is_card),
    "id": (NATIONAL, is_national),
    "ipv6": (IPV6, is_ipv6),
    "ipv4": (IPV4, is_ipv4),
    "phone": (PHONE, is_phone),
}
