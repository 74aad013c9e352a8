r"""GSM8K: read the final number of a solution and grade it against the reference.

What counts as a number, in both modes:

1. A maximal run of digits, commas and dots is one token. It is a number as a whole or not at
   all: `3.14.15`, `1.234,50` and `1,2` are not numbers, and no part of them is read instead.
   Trailing dots and commas are punctuation: `18.` and `18,` are 18. A superscript belongs to
   the token: `10²` is not 10.
2. A comma is only ever a thousands separator: one to three digits that do not start with 0,
   then groups of exactly three. So `1,234.50` is a number; `1,23`, `0,123`, `1234,567` and
   the Indian `1,00,000` are not. LaTeX's `1{,}234` and `1\,234`, and groups separated by a thin
   or no-break space, are `1,234`. An ordinary space separates two numbers.
3. Decimal digits of every script are read, with Arabic and fullwidth separators. Characters that
   cannot be seen (zero-width spaces, marks of direction) are left out.
4. `1e3` is 1000, with an exponent of at most three digits.
5. A minus sign is a hyphen, U+2212, an en dash or a fullwidth or small hyphen that touches the
   number or its currency sign and does not follow a word, number or closing bracket: `3-4` is 3
   and 4, `- 5` is a bullet.
6. Units and percent signs are ignored: `18%` and `18 dollars` are 18. Multiplier words are not
   units: `3 million`, `18k` and `2 dozen` are unparsed. NaN and infinities are not numbers.

`strict` reads what follows the last marker on the same line, past spaces, currency signs, `~`,
opening brackets, `x =`, `\boxed{`, `\text{` and Markdown emphasis. If nothing follows, it reads the
next line, or, at the end of the text, the line before, if that is just a number. `1/2`, `½` and
`\frac{1}{2}` are 0.5 in this mode, and `3 1/2` is 3.5. An answer of more than one number (`3-4`,
`1 234`, `18, 20`, `10:30`, `10 or 12`, `10x12`, `10 ± 2`, `2\sqrt{3}`, `3 hours and 30 minutes`) is
unparsed; an explanation (`18 = 9 * 2`, `18 (9 * 2)`, `18 of her 20 eggs`) is ignored. `flexible`
reads the last token of the text: of `1/2` that is 2, of `10:30` it is 30. If the last token is not
a number, the answer is unparsed, because an earlier number is not what the text ends with.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import NamedTuple

from eval.stats.types import Outcome

REFERENCE_MARKER = "####"

# In the patterns below, two adjacent parts never match the same character unless the first is
# possessive, so that matching takes time linear in the length of the text.
_ASCII_SIGNS = str.maketrans(
    dict.fromkeys("\u2212\u2013\uff0d\ufe63", "-")  # minus, en dash, fullwidth and small hyphen
    | {"\u066b": ".", "\uff0e": ".", "\u066c": ",", "\uff0c": ","}  # Arabic and fullwidth
)
# Characters of no width: a soft hyphen, joiners, and marks of the direction of writing.
_UNSEEN = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_NARROW_SPACE = "\u2009\u202f\u00a0"
_NARROW_GROUPS = re.compile(
    rf"(?<![\d.,{_NARROW_SPACE}])[1-9]\d{{0,2}}(?:(?:[{_NARROW_SPACE}]|\\,)\d{{3}})++(?![\d,])"
)
_SPACE = r"[^\S\r\n]"
# Unicode's currency symbols, and codes that precede an amount.
_SYMBOLS = "$\u00a2-\u00a5\u058f\u060b\u0e3f\u17db\u20a0-\u20cf\ufdfc\ufe69\uff04\uffe0-\uffe6"
_CURRENCY = rf"\\?[{_SYMBOLS}]"
_CODE = r"(?:US|AU?|CA?|HK|NT|R)(?=\$)|(?:USD|EUR|GBP|INR|Rs\.?)(?![^\W\d_])"
_VULGAR = "\u00bc-\u00be\u2150-\u215e"
_SUPERSCRIPTS = "\u00b2\u00b3\u00b9\u2070-\u2079"
# Starts at a digit, or at a single dot not after a word: "...5" and "No.5" are 5, ".5" is 0.5.
_RUN = rf"(?:(?<![\w.)])\.)?[\d{_VULGAR}][\d.,{_VULGAR}{_SUPERSCRIPTS}]*(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![^\W_])(?<![)\]}}%.\-])-)?(?:{_CURRENCY})?(?P<run>{_RUN})",
)
_WELL_FORMED = re.compile(
    r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
)
_OPENING = (
    rf"(?:{_SPACE}|[*_`=:+(\[{{~\u2248\u223c]|{_CURRENCY}|{_CODE}|\\[(\[,;! ]|\\(?:boxed|fbox|"
    r"approx|sim|text(?:bf|it|rm)?|math(?:bf|it|rm))(?![^\W\d_]))*+"
)
_DECORATION = re.compile(rf"{_OPENING}(?:[^\W\d_]\w{{0,20}}+{_SPACE}*+=(?!=){_OPENING})?")
_DENOMINATOR = re.compile(rf"{_SPACE}*/{_SPACE}*(?P<run>{_RUN})")
_MIXED = re.compile(rf"{_SPACE}++(?P<above>\d+)/(?P<below>\d+)(?!\d)")
_VULGAR_FRACTION = re.compile(rf"(?:(?P<whole>\d){_SPACE}?)?(?P<sign>[{_VULGAR}])")
_LATEX_FRACTION = re.compile(
    r"(?:(?P<whole>\d) ?)?\\[dt]?frac(?:\{(?P<a>-?[\d.,]+)\}\{(?P<b>[\d.,]+)\}|(?P<c>\d)(?P<d>\d))"
)
_NOTHING_ELSE = re.compile(rf"(?:{_SPACE}|[*_`)\]}}$%.]|\\[)\]])*+(?=[\r\n]|\Z)")

# What makes the number just read a part of something longer.
_GAP = rf"(?:{_SPACE}|[*_`$)\]}}]|\\text\{{|\\[,;! )\]])*+"
_SCALE = re.compile(
    rf"[kKMB](?![^\W_])|{_GAP}(?i:hundreds?|thousands?|millions?|billions?|trillions?|mil|mio|mn|bn|"
    r"lakhs?|crores?|dozens?|halves|thirds|fifths|sixths|tenths|hundredths|squared|cubed)(?![^\W_])"
)
_FIGURE = rf"[-+]?(?:{_CURRENCY})?\.?[\d{_VULGAR}]"
_AMOUNT = rf"{_OPENING}{_FIGURE}"
_AMOUNT_IN_WORDS = (
    r"(?i:(?:(?:an?|one) )?(?:half|quarter|third|hundred|dozen)|one|two|three|four|five|six|seven|"
    r"eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|"
    r"six|seven|eigh|nine)ty)(?![^\W_])"
)
_QUALIFIER = r"(?i:about|approximately|around|roughly|maybe|perhaps|possibly|even|then|else)"
_BETWEEN = (
    r"(?i:or|and(?:/or)?|to|plus|minus|times|versus|vs\.?|(?:divided|multiplied) by)(?![^\W_])"
)
_OPERATOR = (
    r"[-+*\u00d7\u00f7\u00b1\u2213\u00b7\u22c5\u2217~\u223c\uff5e\u2014\u2015\u2026\u3001,;|&]|"
    r"[-=]>|\u2192|\\(?:times|cdot|pm|mp|div|sim|to)(?![^\W\d_])"
)
_UNIT = rf"(?:{_GAP}(?:(?!{_BETWEEN})[^\W\d_]++\.?|\\?[%{_SYMBOLS}\u00b0])){{0,3}}+"
_SAME_KIND = (
    r"(?i:hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|yards?|pounds?|lbs?|"
    r"dollars?|euros?|miles?|meters?|metres?|kg|km|gallons?)"
)
_CONTINUATION = re.compile(
    "|".join(
        (
            # "3-4", "1 234", "18, 20", "10:30", "10^{2}"
            rf"{_SPACE}*+{_FIGURE}",
            rf"{_SPACE}*+(?:[-+*/^\u00d7\u00f7:'\u2019_\u2014]{{1,3}}|\\[,!;: ]){_SPACE}*+"
            rf"{_AMOUNT}",
            # "10x12", "2\sqrt{3}", "2π"
            rf"{_GAP}[xX]{_SPACE}*+{_AMOUNT}",
            rf"{_GAP}(?:\\(?:sqrt|pi|frac|log|ln)(?![^\W\d_])|[\u221a\u221b\u03c0])",
            # "10% - 12%", "18 eggs, 20 ducks", "10 or about 12", "3 and a half"
            rf"{_UNIT}{_GAP}(?:{_OPERATOR}){_SPACE}*+(?:{_QUALIFIER}{_SPACE}++)?{_AMOUNT}",
            rf"{_UNIT}{_GAP}[,;(]?{_SPACE}*+{_BETWEEN}{_GAP}(?:{_QUALIFIER}{_SPACE}++)?"
            rf"(?:{_AMOUNT}|{_AMOUNT_IN_WORDS})",
            rf"{_GAP}{_QUALIFIER}{_SPACE}++{_AMOUNT}",
            # "3 hours 30 minutes"
            rf"{_GAP}{_SAME_KIND},?{_SPACE}*+{_AMOUNT}",
            _SCALE.pattern,
        )
    )
)
# Characters after which more of the same number could have come.
_UNFINISHED = re.compile(r"[.,/:{eE+-]*")
# A quotient may not terminate; 50 digits distinguish any two fractions that a model writes.
_QUOTIENT = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX)

_LM_EVAL_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class _Reading(NamedTuple):
    """A number, and where its token ends in the text."""

    value: Decimal
    end: int


def extract_answer(
    text: str, *, how: str = "strict", marker: str = REFERENCE_MARKER
) -> Decimal | None:
    """Read the final number of a solution; the module docstring says what a number is.

    Args:
        text: A solution.
        how: "strict" for the number after the last marker, "flexible" for the last number.
        marker: The text that announces the answer under "strict"; "flexible" ignores it.

    Returns:
        The number, or None if there is none. Fractions are rounded to 50 digits.

    Raises:
        ValueError: If how is unknown or the marker is empty.
    """
    reading = _read(_normalize(text, how), how=how, marker=_normalize(marker))
    return None if reading is None else reading.value


def grade(
    text: str,
    reference: str,
    *,
    how: str = "strict",
    marker: str = REFERENCE_MARKER,
    truncated: bool = False,
) -> Outcome:
    """Grade one solution against its reference; equal decimals are correct.

    Args:
        text: The model's solution.
        reference: A GSM8K answer with its own `#### n`, or just a number.
        how: "strict" or "flexible", as for `extract_answer`; the reference is always strict.
        marker: The text that announces the answer; in the reference it is always `####`.
        truncated: Whether the generation stopped at its token limit.

    Returns:
        `CORRECT`, `WRONG` (another number), `UNPARSED` (no number), or `TRUNCATED`: the token
        limit was hit, and either no number was read or it is at the very end of the text, so that
        digits may be missing.

    Raises:
        ValueError: If the reference has no number (an error in the data, not the model's), how
            is unknown, or the marker is empty.
    """
    expected = _reference_answer(reference)
    text = _normalize(text, how)
    reading = _read(text, how=how, marker=_normalize(marker))
    if truncated and (reading is None or _UNFINISHED.fullmatch(text, reading.end)):
        return Outcome.TRUNCATED
    if reading is None:
        return Outcome.UNPARSED
    return Outcome.CORRECT if reading.value == expected else Outcome.WRONG


def lm_eval_extract(text: str, *, how: str = "strict") -> str | None:
    """Extract what lm-eval 0.4.13 would, so that its results can be compared with ours.

    Its two patterns are used unchanged, quirks included: strict is the first `#### n` and needs
    exactly one space; flexible is the last match, which may be `...` or `$.`. lm-eval compares the
    extracted strings, not numbers, and writes `[invalid]` for None.

    Args:
        text: A solution.
        how: "strict" (its `strict-match`) or "flexible" (its `flexible-extract`).

    Returns:
        The matched string, or None if nothing matches.

    Raises:
        ValueError: If how is unknown.
    """
    _check_how(how)
    if how == "strict":
        match = _LM_EVAL_STRICT.search(text)
        return None if match is None else match.group(1)
    matches = [match.group() for match in _LM_EVAL_FLEXIBLE.finditer(text)]
    return matches[-1] if matches else None


def lm_eval_correct(text: str, reference: str, *, how: str = "strict") -> bool:
    """Whether lm-eval 0.4.13 would count a solution as correct: it compares strings, not numbers.

    Args:
        text: A solution.
        reference: A GSM8K answer with its `#### n`.
        how: See `lm_eval_extract`.

    Raises:
        ValueError: If how is unknown.
    """
    found = lm_eval_extract(text, how=how) or "[invalid]"
    return _lm_eval_compared(found) == _lm_eval_compared(reference)


def _lm_eval_compared(text: str) -> str:
    """Normalise as lm-eval does: no commas, no dollars, nothing before the last `#### `.

    lm-eval's own pattern for the marker takes quadratic time on a text without one.
    """
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


def _check_how(how: str) -> None:
    if how not in ("strict", "flexible"):
        raise ValueError(f"how is {how!r}, valid are 'strict' and 'flexible'")


def _normalize(text: str, how: str = "strict") -> str:
    """Convert signs, digits and groups of digits to ASCII and, for strict, fractions to 1/2."""
    if not text.isascii():
        text = _UNSEEN.sub("", text).translate(_ASCII_SIGNS)
        text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = _NARROW_GROUPS.sub(lambda groups: re.sub(r"\D+", ",", groups[0]), text)
    text = text.replace("{,}", ",")
    if how == "strict":
        text = _LATEX_FRACTION.sub(_plain_fraction, text)
        text = _VULGAR_FRACTION.sub(_plain_vulgar_fraction, text)
    return text


def _plain_fraction(found: re.Match[str]) -> str:
    above, below = found["a"] or found["c"], found["b"] or found["d"]
    whole = f"{found['whole']} " if found["whole"] else ""
    return f"{whole}{above}/{below}"


def _plain_vulgar_fraction(found: re.Match[str]) -> str:
    whole = f"{found['whole']} " if found["whole"] else ""
    return whole + unicodedata.normalize("NFKC", found["sign"]).replace("\u2044", "/")


def _read(text: str, *, how: str, marker: str) -> _Reading | None:
    _check_how(how)
    if how == "flexible":
        return _read_last(text)
    if not marker:
        raise ValueError("marker is empty: strict needs the text that announces the answer")
    start = text.rfind(marker)
    if start < 0:
        return None
    after = start + len(marker)
    return _read_at(text, after) or _read_line_apart(text, start, after)


def _read_last(text: str) -> _Reading | None:
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    last = matches.pop()
    value = _to_decimal(last["run"], negative=last["sign"] is not None)
    return None if value is None or _SCALE.match(text, last.end()) else _Reading(value, last.end())


def _read_at(text: str, start: int) -> _Reading | None:
    """Read the single number at `start`, past decoration; a fraction is one number."""
    decoration = _DECORATION.match(text, start)
    number = _NUMBER.match(text, decoration.end() if decoration else start)
    if number is None:
        return None
    value = _to_decimal(number["run"], negative=number["sign"] is not None)
    end = number.end()
    if value is not None and (below := _DENOMINATOR.match(text, end)):
        denominator = _to_decimal(below["run"], negative=False)
        value = _QUOTIENT.divide(value, denominator) if denominator else None
        end = below.end()
    elif value is not None and number["run"].isdigit() and (part := _MIXED.match(text, end)):
        above, below = Decimal(part["above"]), Decimal(part["below"])
        if above >= below:
            return None
        value += _QUOTIENT.divide(above, below).copy_sign(value)
        end = part.end()
    if value is None or _CONTINUATION.match(text, end):
        return None
    return _Reading(value, end)


def _read_line_apart(text: str, marker_start: int, marker_end: int) -> _Reading | None:
    """Read a number alone on the line after the marker, or before a marker that ends the text."""
    line = text[marker_end:].lstrip()
    if line:
        start = len(text) - len(line)
        if "\n" not in text[marker_end:start]:
            return None
        reading = _read_at(text, start)
        is_alone = reading is not None and _NOTHING_ELSE.match(text, reading.end)
        return reading if is_alone else None
    before, newline, same_line = text[:marker_start].rpartition("\n")
    if not newline or same_line.strip():
        return None
    before = before.rstrip()
    reading = _read_at(before, before.rfind("\n") + 1)
    if reading is None or not _NOTHING_ELSE.match(before, reading.end):
        return None
    return _Reading(reading.value, len(text))


def _to_decimal(run: str, *, negative: bool) -> Decimal | None:
    run = run.rstrip(".,")
    if _WELL_FORMED.fullmatch(run) is None:
        return None
    return Decimal(("-" if negative else "") + run.replace(",", ""))


def _reference_answer(reference: str) -> Decimal:
    text = _normalize(reference).strip()
    reading = _read(text, how="strict", marker=REFERENCE_MARKER)
    if reading is None:
        reading = _read_at(text, 0)
        if reading is not None and reading.end != len(text):
            reading = None
    if reading is None:
        raise ValueError(
            f"reference has no answer: expected `{REFERENCE_MARKER} n` or just a number, "
            f"got {reference[-200:]!r}"
        )
    return reading.value
