r"""GSM8K: read the final number of a solution and grade it against the reference.

What counts as a number, decided once for both ways of reading:

1. A maximal run of digits, commas and dots is one token. It is a number as a whole or not at
   all: `3.14.15`, `1.234,50` and `1,2` are not numbers, and no part of them is taken instead.
   Dots and commas at its end are punctuation: `18.` and `18,` are 18.
2. A comma is a thousands separator and nothing else: one to three digits that do not start with
   0, then groups of exactly three. So `1,234.50` is a number; `1,23`, `0,123`, `1234,567` and
   the Indian `1,00,000` are not. LaTeX's `1{,}234` is `1,234`.
3. Digits are ASCII. Fullwidth or Arabic digits are neither accepted nor skipped: a token that
   holds one is not a number.
4. `1e3` is 1000, with an exponent of at most three digits.
5. Minus is a hyphen, U+2212, an en dash or a fullwidth or small hyphen, touching the number or
   its currency sign, and not glued to a word, number or closing bracket on its left: `3-4` is 3
   and 4, `- 5` is a bullet.
6. Units, percent signs and words such as "billion" are not read: `18%` and `18 dollars` are 18.
   NaN and infinities are not numbers.

`strict` reads what follows the last marker on the same line, past spaces, currency signs, opening
brackets, `\boxed{` and Markdown emphasis. There `1/2` is 0.5. Anything that makes it more than one
number (`3-4`, `1 1/2`, `1 234`, `3 + 4`, `18, 20`, `10:30`) leaves it unread. `flexible` reads the
last token of the text: of `1/2` that is 2, of `10:30` it is 30, and a last token that is not a
number leaves it unread, because an earlier one is not what the text ends on.
"""

from __future__ import annotations

import re
from collections import deque
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import TYPE_CHECKING, NamedTuple

from eval.stats.types import Outcome

if TYPE_CHECKING:
    pass

REFERENCE_MARKER = "####"

_DASHES_TO_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\uff0d\ufe63", "-"))
_SPACE = r"[^\S\r\n]"
_CURRENCY = r"\\?[$€£¥]"
# Starts at a digit, or at a single dot that ends no word: "...5" and "No.5" are 5, ".5" is 0.5.
# Here and below no two parts that can match the same character stand side by side, so that reading
# a text takes time linear in its length.
_RUN = r"(?:(?<![\w.)])\.)?\d[\d.,]*(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![^\W_])(?<![)\]}}%.\-])-)?(?:{_CURRENCY})?(?P<run>{_RUN})",
)
_WELL_FORMED = re.compile(
    r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
)
_DECORATION = re.compile(rf"(?:{_SPACE}|[*_`$€£¥=:+(\[{{]|\\[$(\[]|\\boxed)*")
_DENOMINATOR = re.compile(rf"{_SPACE}*/{_SPACE}*(?P<run>{_RUN})")
# What makes the number just read a part of something longer: "3-4", "1 1/2", "1 234", "18, 20".
_CONTINUATION = re.compile(
    rf"{_SPACE}*(?:(?:[-+*/^\u00d7\u00f7:'\u2019_\u2014]{{1,2}}|\\[,!;:]){_SPACE}*)?[-+]?(?:{_CURRENCY})?\.?\d"
)
# Characters after which more of the same number could have come.
_UNFINISHED = re.compile(r"[.,/:{eE+-]*")
# A quotient may not terminate. 50 digits tell any two fractions apart that a model writes.
_QUOTIENT = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX)

_LM_EVAL_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_LM_EVAL_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class _Reading(NamedTuple):
    """A number and where its token ends in the text it was read from."""

    value: Decimal
    end: int


def extract_answer(
    text: str, *, how: str = "strict", marker: str = REFERENCE_MARKER
) -> Decimal | None:
    """Read the final number of a solution; the module docstring says what a number is.

    Args:
        text: A solution.
        how: "strict" for the number after the last marker, "flexible" for the last number.
        marker: What announces the answer under "strict"; "flexible" does not look at it.

    Returns:
        The number, or None where there is none to read. Fractions are rounded to 50 digits.

    Raises:
        ValueError: If how is unknown or the marker is empty.
    """
    reading = _read(_normalize(text), how=how, marker=_normalize(marker))
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
        marker: What announces the answer in text; in the reference it is always `####`.
        truncated: Whether the generation stopped at its token limit.

    Returns:
        `CORRECT`, `WRONG` (another number), `UNPARSED` (no number), or `TRUNCATED`: the token
        limit was hit, and no number was read or the number read touches the end of the text, so
        that digits may be missing.

    Raises:
        ValueError: If the reference has no number (an error in the data, not the model's), how
            is unknown, or the marker is empty.
    """
    expected = _reference_answer(reference)
    text = _normalize(text)
    reading = _read(text, how=how, marker=_normalize(marker))
    if truncated and (reading is None or _UNFINISHED.fullmatch(text, reading.end)):
        return Outcome.TRUNCATED
    if reading is None:
        return Outcome.UNPARSED
    return Outcome.CORRECT if reading.value == expected else Outcome.WRONG


def lm_eval_extract(text: str, *, how: str = "strict") -> str | None:
    """Extract what lm-eval 0.4.13 would, so that its results can be compared with ours.

    Its two patterns are kept as they are, with what follows from them: strict is the first
    `#### n` and needs exactly one space, flexible is the last match, which may be `...` or `$.`.
    lm-eval compares the extracted strings, not numbers, and writes `[invalid]` for None.

    Args:
        text: A solution.
        how: "strict" (its `strict-match`) or "flexible" (its `flexible-extract`).

    Returns:
        The matched string, or None where nothing matches.

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
    """Whether lm-eval 0.4.13 would count a solution as right: it compares strings, not numbers.

    Args:
        text: A solution.
        reference: A GSM8K answer with its `#### n`.
        how: As for `lm_eval_extract`.

    Raises:
        ValueError: If how is unknown.
    """
    found = lm_eval_extract(text, how=how) or "[invalid]"
    return _lm_eval_compared(found) == _lm_eval_compared(reference)


def _lm_eval_compared(text: str) -> str:
    """A side as lm-eval compares it: no commas, no dollars, nothing before the last `#### `.

    Its own pattern for the marker takes time quadratic in the length of a text without one.
    """
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


def _check_how(how: str) -> None:
    if how not in ("strict", "flexible"):
        raise ValueError(f"how is {how!r}, valid are 'strict' and 'flexible'")


def _normalize(text: str) -> str:
    return text.translate(_DASHES_TO_MINUS).replace("{,}", ",")


def _read(text: str, *, how: str, marker: str) -> _Reading | None:
    _check_how(how)
    if how == "flexible":
        return _read_last(text)
    if not marker:
        raise ValueError("marker is empty: strict needs the text that announces the answer")
    start = text.rfind(marker)
    return None if start < 0 else _read_at(text, start + len(marker))


def _read_last(text: str) -> _Reading | None:
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    last = matches.pop()
    value = _to_decimal(last["run"], negative=last["sign"] is not None)
    return None if value is None else _Reading(value, last.end())


def _read_at(text: str, start: int) -> _Reading | None:
    """Read the one number that starts at start, past decoration; a fraction counts as one."""
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
    if value is None or _CONTINUATION.match(text, end):
        return None
    return _Reading(value, end)


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
