"""The GSM8K grader: one trap a case, then every published flag and every reference."""

import json
import time
from decimal import Decimal
from pathlib import Path

import pytest

from eval.gsm8k import extract_answer, grade, lm_eval_extract
from eval.types import Outcome

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GSM8K = SHARED / "gsm8k"

needs_shared_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(), reason=f"no GSM8K data at {GSM8K} (it is not part of the repository)"
)


def read_jsonl(name):
    with (GSM8K / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- numbers both ways of reading agree on ----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("#### 18", "18", id="plain"),
        pytest.param("####18", "18", id="no-space"),
        pytest.param("####\t 18", "18", id="tab"),
        pytest.param("#### 18  \n", "18", id="trailing-space"),
        pytest.param("##### 18", "18", id="five-hashes"),
        pytest.param("#### 180", "180", id="180-is-not-18"),
        pytest.param("#### 0018", "18", id="leading-zeros"),
        pytest.param("#### 1,234", "1234", id="thousands"),
        pytest.param("#### 1,234,567", "1234567", id="millions"),
        pytest.param("#### 1,234.50", "1234.5", id="thousands-and-cents"),
        pytest.param("#### 1{,}234", "1234", id="latex-thousands"),
        pytest.param("#### 18.0", "18", id="trailing-zero"),
        pytest.param("#### 18.", "18", id="full-stop"),
        pytest.param("#### 18...", "18", id="ellipsis-after"),
        pytest.param("#### 18,", "18", id="comma-after"),
        pytest.param("#### 1,234,", "1234", id="comma-after-thousands"),
        pytest.param("#### .5", "0.5", id="no-leading-zero"),
        pytest.param("#### $18", "18", id="dollar"),
        pytest.param("#### $ 18", "18", id="dollar-space"),
        pytest.param("#### \\$18", "18", id="escaped-dollar"),
        pytest.param("#### €18", "18", id="euro"),
        pytest.param("#### $.50", "0.5", id="cents"),
        pytest.param("#### **18**", "18", id="bold"),
        pytest.param("**#### 18**", "18", id="bold-with-marker"),
        pytest.param("#### `18`", "18", id="code"),
        pytest.param("#### $18$", "18", id="math-mode"),
        pytest.param("#### \\(18\\)", "18", id="math-parentheses"),
        pytest.param("#### \\boxed{18}", "18", id="boxed"),
        pytest.param("#### $\\boxed{\\$1{,}234}$", "1234", id="boxed-dollar-thousands"),
        pytest.param("#### (18)", "18", id="parentheses-are-not-minus"),
        pytest.param("#### [18]", "18", id="brackets"),
        pytest.param("#### = 18", "18", id="equals"),
        pytest.param("#### +18", "18", id="plus"),
        pytest.param("#### -18", "-18", id="hyphen-minus"),
        pytest.param("#### \u221218", "-18", id="unicode-minus"),
        pytest.param("#### \u201318", "-18", id="en-dash-minus"),
        pytest.param("#### \uff0d18", "-18", id="fullwidth-minus"),
        pytest.param("#### -$5", "-5", id="minus-before-dollar"),
        pytest.param("#### $-5", "-5", id="minus-after-dollar"),
        pytest.param("#### -\\$5", "-5", id="minus-before-escaped-dollar"),
        pytest.param("#### **-5**", "-5", id="bold-minus"),
        pytest.param("#### -.5", "-0.5", id="minus-no-leading-zero"),
        pytest.param("#### -0", "0", id="minus-zero"),
        pytest.param("#### 18%", "18", id="percent-is-not-a-hundredth"),
        pytest.param("#### 18 %", "18", id="percent-with-space"),
        pytest.param("#### 18 dollars", "18", id="unit"),
        pytest.param("#### 18 apples", "18", id="noun"),
        pytest.param("#### 18cm", "18", id="glued-unit"),
        pytest.param("#### 18e", "18", id="e-without-exponent"),
        pytest.param("#### 1e3", "1000", id="exponent"),
        pytest.param("#### 1.5E-1", "0.15", id="negative-exponent"),
        pytest.param("She has 16 - 3 = 13.\n#### 13", "13", id="numbers-before"),
        pytest.param("#### 7\nNo, wrong.\n#### 18", "18", id="last-marker"),
    ],
)
def test_strict_and_flexible_read_the_same_number(text, expected):
    assert extract_answer(text) == Decimal(expected)
    assert extract_answer(text, how="flexible") == Decimal(expected)


# --- strict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("#### 1/2", "0.5", id="fraction"),
        pytest.param("#### 1 / 2", "0.5", id="fraction-with-spaces"),
        pytest.param("#### -1/2", "-0.5", id="negative-fraction"),
        pytest.param("#### $1/2", "0.5", id="fraction-of-a-dollar"),
        pytest.param("#### 1,000/8", "125", id="fraction-with-thousands"),
        pytest.param("#### 1000001/2", "500000.5", id="fraction-keeps-its-digits"),
        pytest.param("#### 1/2.", "0.5", id="fraction-full-stop"),
        pytest.param("#### 1/2 cup", "0.5", id="fraction-unit"),
        pytest.param("#### 0/5", "0", id="zero-over-five"),
        pytest.param("#### 18\n\nQuestion: I have 5 eggs", "18", id="goes-on-with-a-question"),
        pytest.param("#### 18 of her 20 eggs", "18", id="words-with-a-number"),
        pytest.param("#### 18 = 9 * 2", "18", id="equation-starts-with-the-answer"),
        pytest.param("#### 18 (9 * 2)", "18", id="explained-in-brackets"),
        pytest.param("#### 18\n5", "18", id="next-line-is-no-continuation"),
    ],
)
def test_strict_reads_what_follows_the_marker(text, expected):
    assert extract_answer(text) == Decimal(expected)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("The answer is 18.", id="no-marker"),
        pytest.param("### 18", id="three-hashes"),
        pytest.param("####", id="marker-only"),
        pytest.param("#### ", id="marker-and-space"),
        pytest.param("#### eighteen", id="word"),
        pytest.param("#### The answer is 18", id="sentence-before-the-number"),
        pytest.param("####\n18", id="number-on-the-next-line"),
        pytest.param("####\r\n18", id="number-on-the-next-windows-line"),
        pytest.param("#### 18 ####", id="nothing-after-the-last-marker"),
        pytest.param("#### 18\n#### none", id="last-marker-has-words"),
        pytest.param("#### $", id="dollar-only"),
        pytest.param("#### -", id="minus-only"),
        pytest.param("#### ...", id="dots-only"),
        pytest.param("#### ,", id="comma-only"),
        pytest.param("#### - 5", id="minus-apart"),
        pytest.param("#### --5", id="two-minuses"),
        pytest.param("#### nan", id="nan"),
        pytest.param("#### NaN", id="python-nan"),
        pytest.param("#### inf", id="inf"),
        pytest.param("#### -Infinity", id="minus-infinity"),
        pytest.param("#### \uff11\uff18", id="fullwidth-digits"),
        pytest.param("#### 1\uff18", id="ascii-then-fullwidth-digit"),
        pytest.param("#### \u0661\u0668", id="arabic-digits"),
        pytest.param("#### 1/0", id="division-by-zero"),
        pytest.param("#### 0/0", id="zero-by-zero"),
        pytest.param("#### 1/0.0", id="division-by-zero-point-zero"),
        pytest.param("#### 1/2/3", id="two-slashes"),
        pytest.param("#### 1/-2", id="negative-denominator"),
        pytest.param("#### 1 1/2", id="mixed-number"),
        pytest.param("#### 1 234", id="space-as-thousands-separator"),
        pytest.param("#### 1\u00a0234", id="no-break-space-as-thousands-separator"),
        pytest.param("#### 1'234", id="apostrophe-as-thousands-separator"),
        pytest.param("#### 1_234", id="underscore-as-thousands-separator"),
        pytest.param("#### 1\\,234", id="latex-thin-space"),
        pytest.param("#### 3-4", id="range"),
        pytest.param("#### 3\u20134", id="en-dash-range"),
        pytest.param("#### 3\u20144", id="em-dash-range"),
        pytest.param("#### $3-$4", id="dollar-range"),
        pytest.param("#### 18, 20", id="two-answers"),
        pytest.param("#### 10:30", id="time-of-day"),
        pytest.param("#### 2^3", id="power"),
        pytest.param("#### 2**3", id="python-power"),
        pytest.param("#### 3 + 4 = 7", id="sum"),
        pytest.param("#### 9*2", id="product"),
        pytest.param("#### 9 \u00d7 2", id="times-sign"),
    ],
)
def test_strict_leaves_unread(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("#### 1,2", id="decimal-comma"),
        pytest.param("#### 1,23", id="two-digits-after-comma"),
        pytest.param("#### 1,2345", id="four-digits-after-comma"),
        pytest.param("#### 1234,567", id="four-digits-before-comma"),
        pytest.param("#### 0,123", id="zero-before-comma"),
        pytest.param("#### 1,00,000", id="indian-grouping"),
        pytest.param("#### 1.234,50", id="european-grouping"),
        pytest.param("#### 1,,234", id="two-commas"),
        pytest.param("#### 3.14.15", id="two-points"),
        pytest.param("#### 3..4", id="two-points-together"),
        pytest.param("#### 1e9999", id="exponent-of-four-digits"),
        pytest.param("5 apples, then 1.2.3", id="earlier-number-is-not-taken"),
    ],
)
def test_malformed_number_is_unread_and_no_part_of_it_taken(text):
    assert extract_answer(text) is None
    assert extract_answer(text, how="flexible") is None


def test_other_marker():
    assert extract_answer("#### 7\nA: 18", marker="A:") == 18
    assert extract_answer("#### 7", marker="A:") is None


def test_marker_with_a_dash_is_found_although_dashes_become_minus():
    assert extract_answer("answer \u2013 18", marker="answer \u2013") == 18


def test_fraction_that_does_not_terminate_equals_itself_and_not_its_short_form():
    assert extract_answer("#### 1/3") == extract_answer("#### 2/6")
    assert extract_answer("#### 1/3") != extract_answer("#### 0.3333")


# --- flexible ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("The answer is 18.", "18", id="sentence"),
        pytest.param("First 7, then 18", "18", id="last-of-two"),
        pytest.param("#### 18\nCheck: 9 * 2", "2", id="marker-is-not-looked-at"),
        pytest.param("between 3-4", "4", id="range-hyphen-is-not-minus"),
        pytest.param("$3-$4", "4", id="dollar-range"),
        pytest.param("pages 3\u20134", "4", id="en-dash-range"),
        pytest.param("the answer is\u201418", "18", id="em-dash"),
        pytest.param("the answer is -18", "-18", id="minus-after-space"),
        pytest.param("x=-18", "-18", id="minus-after-equals"),
        pytest.param("(-18)", "-18", id="minus-after-bracket"),
        pytest.param("x-18", "18", id="hyphen-after-letter"),
        pytest.param("(2)-18", "18", id="hyphen-after-closing-bracket"),
        pytest.param("20%-18", "18", id="hyphen-after-percent"),
        pytest.param("is --18", "18", id="two-hyphens"),
        pytest.param("20 - 18", "18", id="minus-sign-apart"),
        pytest.param("- 5 apples", "5", id="bullet"),
        pytest.param("a loss of -$5", "-5", id="minus-before-dollar"),
        pytest.param("It is ...5", "5", id="ellipsis-before"),
        pytest.param("No.5", "5", id="abbreviation-point"),
        pytest.param("so .5 of it", "0.5", id="no-leading-zero"),
        pytest.param("1/2", "2", id="fraction-needs-the-marker"),
        pytest.param("at 10:30", "30", id="time-of-day"),
        pytest.param("18, 20", "20", id="list"),
        pytest.param("<<9*2=18>>18 eggs", "18", id="calculator-annotation"),
        pytest.param("18 m\u00b2", "18", id="superscript-is-no-digit"),
    ],
)
def test_flexible_reads_the_last_number(text, expected):
    assert extract_answer(text, how="flexible") == Decimal(expected)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("eighteen", id="word"),
        pytest.param("...", id="dots-only"),
        pytest.param("-$", id="no-digits"),
        pytest.param("inf nan", id="inf-nan"),
        pytest.param("5 or \uff11\uff18", id="fullwidth-digits-are-not-skipped"),
    ],
)
def test_flexible_leaves_unread(text):
    assert extract_answer(text, how="flexible") is None


def test_unknown_how_is_an_error():
    with pytest.raises(ValueError, match="'strict' and 'flexible'"):
        extract_answer("#### 18", how="Strict")
    with pytest.raises(ValueError, match="'strict' and 'flexible'"):
        lm_eval_extract("#### 18", how="first")


def test_empty_marker_is_an_error():
    with pytest.raises(ValueError, match="marker is empty"):
        extract_answer("18", marker="")


# --- long texts -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["strict", "flexible"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("#### " + "9" * 200_000, id="digits"),
        pytest.param("#### " + "9" * 100_000 + "/" + "7" * 100_000, id="fraction"),
        pytest.param("#### 1" + ",234" * 50_000 + "x", id="thousands"),
        pytest.param("#### " + "1," * 100_000, id="digit-comma"),
        pytest.param("#### " + "." * 200_000, id="dots"),
        pytest.param("#### " + "-" * 200_000, id="hyphens"),
        pytest.param("####" + " " * 200_000, id="spaces"),
        pytest.param("#### 1" + " " * 200_000 + "x", id="spaces-after-the-number"),
        pytest.param("#### 1" + " " * 100_000 + "/" + " " * 100_000, id="spaces-around-slash"),
        pytest.param("#### 1" + " " * 100_000 + "-" + " " * 100_000, id="spaces-around-minus"),
        pytest.param("#### 1" + "*" * 200_000, id="stars-after-the-number"),
        pytest.param("#### " + "-$" * 100_000, id="dollars"),
        pytest.param("#### " + "1e" * 100_000, id="exponents"),
        pytest.param("#### 1e" + "9" * 200_000, id="long-exponent"),
        pytest.param("#" * 200_000, id="markers"),
    ],
)
def test_long_texts_take_linear_time(text, how):
    """200,000 characters take under 0.1 s; two nested scans would make 2e10 steps, minutes."""
    start = time.process_time()
    extract_answer(text, how=how)
    assert time.process_time() - start < 3.0


def test_long_numbers_are_compared_to_the_last_digit():
    nines = "9" * 5000
    assert grade(f"#### {nines}", f"#### {nines}.0") is Outcome.CORRECT
    assert grade(f"#### {nines}", f"#### {nines[:-1]}8") is Outcome.WRONG


def test_fraction_beyond_the_default_decimal_range_does_not_overflow():
    """1,000,001 nines over 3 are 1,000,001 threes, 3.33e1000000: above the usual 1e999999."""
    answer = extract_answer("#### " + "9" * 1_000_001 + "/3")
    assert answer is not None
    assert answer.adjusted() == 1_000_000


# --- grade ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        pytest.param("#### 18", "9 * 2 = 18\n#### 18", Outcome.CORRECT, id="equal"),
        pytest.param("#### $18.00", "#### 18", Outcome.CORRECT, id="equal-as-decimals"),
        pytest.param("#### 1234", "#### 1,234", Outcome.CORRECT, id="comma-in-the-reference"),
        pytest.param("#### 1/2", "#### 0.5", Outcome.CORRECT, id="fraction"),
        pytest.param("#### 180", "#### 18", Outcome.WRONG, id="180-is-not-18"),
        pytest.param("#### 18", "#### -18", Outcome.WRONG, id="sign"),
        pytest.param("#### 0.18", "#### 18", Outcome.WRONG, id="percent-as-fraction"),
        pytest.param("18", "#### 18", Outcome.UNPARSED, id="right-number-without-marker"),
        pytest.param("", "#### 18", Outcome.UNPARSED, id="empty"),
        pytest.param("#### 18", "18", Outcome.CORRECT, id="reference-is-just-a-number"),
        pytest.param("#### 1234", " $1,234.0\n", Outcome.CORRECT, id="reference-with-dollar"),
    ],
)
def test_grade_strict(text, reference, expected):
    assert grade(text, reference) is expected


def test_grade_flexible_needs_no_marker():
    assert grade("It is 18.", "#### 18", how="flexible") is Outcome.CORRECT
    assert grade("It is 18, not 20.", "#### 18", how="flexible") is Outcome.WRONG


def test_reference_keeps_its_own_marker():
    assert grade("A: 18", "9 * 2\n#### 18", marker="A:") is Outcome.CORRECT


@pytest.mark.parametrize("how", ["strict", "flexible"])
@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("", id="empty"),
        pytest.param("eighteen", id="word"),
        pytest.param("####", id="marker-only"),
        pytest.param("18 ####", id="number-before-the-marker"),
        pytest.param("She has 18 eggs", id="number-in-a-sentence"),
        pytest.param("18 eggs", id="number-and-unit"),
        pytest.param("9 * 2\nA: 18", id="other-marker"),
        pytest.param("#### 1,2", id="malformed"),
    ],
)
def test_reference_without_a_number_is_an_error(reference, how):
    """Also where the prediction has none: it is an error in the data, not an unparsed answer."""
    with pytest.raises(ValueError, match="reference has no answer"):
        grade("none", reference, how=how)


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        pytest.param("9 * 2 = ", "strict", Outcome.TRUNCATED, id="no-marker-yet"),
        pytest.param("####", "strict", Outcome.TRUNCATED, id="no-number-yet"),
        pytest.param("#### -", "strict", Outcome.TRUNCATED, id="sign-only"),
        pytest.param("#### 18", "strict", Outcome.TRUNCATED, id="digits-may-follow"),
        pytest.param("#### 18.", "strict", Outcome.TRUNCATED, id="decimals-may-follow"),
        pytest.param("#### 18,", "strict", Outcome.TRUNCATED, id="thousands-may-follow"),
        pytest.param("#### 18/", "strict", Outcome.TRUNCATED, id="denominator-may-follow"),
        pytest.param("#### 18e", "strict", Outcome.TRUNCATED, id="exponent-may-follow"),
        pytest.param("#### 36/2", "strict", Outcome.TRUNCATED, id="denominator-digits-may-follow"),
        pytest.param("#### 18\n", "strict", Outcome.CORRECT, id="line-ended"),
        pytest.param("#### 18 eg", "strict", Outcome.CORRECT, id="unit-cut"),
        pytest.param("#### **18**", "strict", Outcome.CORRECT, id="bold-closed"),
        pytest.param("#### 17\n\nQuestion: 18", "strict", Outcome.WRONG, id="ran-on-after-it"),
        pytest.param("so 9 * 2 = 18", "flexible", Outcome.TRUNCATED, id="flexible-at-the-end"),
        pytest.param("so", "flexible", Outcome.TRUNCATED, id="flexible-no-number"),
        pytest.param("she has 18 eggs and", "flexible", Outcome.CORRECT, id="flexible-before-end"),
        pytest.param("she has 17 eggs and", "flexible", Outcome.WRONG, id="flexible-wrong"),
    ],
)
def test_truncated_generation(text, how, expected):
    assert grade(text, "#### 18", how=how, truncated=True) is expected


def test_the_same_ends_are_numbers_where_the_generation_was_complete():
    assert grade("#### 18", "#### 18", truncated=False) is Outcome.CORRECT
    assert grade("so 9 * 2 = 18", "#### 18", how="flexible") is Outcome.CORRECT


# --- lm-eval ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        pytest.param("#### 18", "18", "18", id="plain"),
        pytest.param("#### 7\n#### 18", "7", "18", id="strict-takes-the-first"),
        pytest.param("#### 18.", "18.", "18.", id="full-stop-stays"),
        pytest.param("#### 1,234", "1,234", "1,234", id="comma-stays"),
        pytest.param("####18", None, "18", id="needs-the-space"),
        pytest.param("#### $18", None, "$18", id="strict-knows-no-dollar"),
        pytest.param("#### \u221218", None, "18", id="no-unicode-minus"),
        pytest.param("#### 3-4", "3", "-4", id="hyphen-is-a-minus"),
        pytest.param("It is 5", None, "5", id="one-digit-by-the-second-group"),
        pytest.param("18 eggs ...", None, "...", id="dots-are-a-number"),
        pytest.param("none", None, None, id="nothing"),
    ],
)
def test_lm_eval_extract(text, strict, flexible):
    assert lm_eval_extract(text, how="strict") == strict
    assert lm_eval_extract(text, how="flexible") == flexible


# --- ground truth -----------------------------------------------------------------------------


@needs_shared_gsm8k
@pytest.mark.parametrize(
    ("model", "published_correct"), [("6b_finetuning", 286), ("6b_verification", 515)]
)
def test_strict_agrees_with_every_published_flag(model, published_correct):
    """Published accuracies, 21.68 % and 39.04 % of 1,319: 286 and 515 solutions are correct."""
    rows = read_jsonl("model_solutions_6b.jsonl")
    disagreements = []
    correct = 0
    for row in rows:
        reference = f"#### {row['ground_truth'].rsplit('A:', 1)[1].strip()}"
        outcome = grade(row[model]["solution"], reference, marker="A:")
        correct += outcome is Outcome.CORRECT
        if (outcome is Outcome.CORRECT) != row[model]["is_correct"]:
            disagreements.append((outcome, row[model]["solution"][-80:], reference))
    assert disagreements == []
    assert (len(rows), correct) == (1319, published_correct)


@needs_shared_gsm8k
@pytest.mark.parametrize(("name", "n"), [("train.jsonl", 7473), ("test.jsonl", 1319)])
def test_every_reference_is_read_alike_by_strict_and_flexible(name, n):
    """The answers are plain integers, so stripping commas is the whole of an independent reader."""
    answers = [row["answer"] for row in read_jsonl(name)]
    expected = [int(answer.split("#### ")[1].replace(",", "")) for answer in answers]
    assert len(answers) == n
    assert [extract_answer(answer) for answer in answers] == expected
    assert [extract_answer(answer, how="flexible") for answer in answers] == expected
    assert all(grade(answer, answer) is Outcome.CORRECT for answer in answers)


@needs_shared_gsm8k
def test_lm_eval_reads_the_same_number_from_every_test_reference():
    for row in read_jsonl("test.jsonl"):
        extracted = lm_eval_extract(row["answer"])
        assert extracted is not None
        assert Decimal(extracted.replace(",", "")) == extract_answer(row["answer"])
