"""The GSM8K grader: one trap a case, then every published flag and every reference."""

import json
import time
from decimal import Decimal

import pytest
from conftest import ROOT, SHARED

from eval.graders.gsm8k import extract_answer, grade, lm_eval_correct, lm_eval_extract
from eval.stats.types import Outcome

GSM8K = SHARED / "gsm8k"

needs_shared_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(), reason=f"no GSM8K data at {GSM8K} (it is not part of the repository)"
)


def read_jsonl(name):
    with (GSM8K / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- odd replies --------------------------------------------------------------------------------

# One odd reply a line, named for its trap, with the numbers that each way of reading must find.
GOLDEN = [
    json.loads(line)
    for line in (ROOT / "tests" / "golden" / "gsm8k_replies.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("how", ["strict", "flexible"])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["trap"])
def test_an_odd_reply_is_read_as_the_golden_file_says(case, how):
    expected = None if case[how] is None else Decimal(case[how])
    assert extract_answer(case["reply"], how=how) == expected


def test_the_golden_file_names_each_trap_once():
    assert len({case["trap"] for case in GOLDEN}) == len(GOLDEN) >= 40


def test_other_marker():
    assert extract_answer("#### 7\nA: 18", marker="A:") == 18
    assert extract_answer("#### 7", marker="A:") is None


def test_marker_with_a_dash_is_found_although_dashes_become_minus():
    assert extract_answer("answer \u2013 18", marker="answer \u2013") == 18


def test_fraction_that_does_not_terminate_equals_itself_and_not_its_short_form():
    assert extract_answer("#### 1/3") == extract_answer("#### 2/6")
    assert extract_answer("#### 1/3") != extract_answer("#### 0.3333")


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
        pytest.param("#### 1 " + "a" * 200_000, id="one-long-word-after-the-number"),
        pytest.param("#### 1 " + "a " * 100_000, id="words-after-the-number"),
        pytest.param("#### 1 or" + " " * 200_000, id="spaces-after-or"),
        pytest.param("#### " + "a" * 200_000, id="one-long-word"),
        pytest.param("#### x" + " " * 200_000, id="spaces-after-a-variable"),
        pytest.param("#### 1" + "\u2009234" * 50_000 + "5", id="thin-space-thousands"),
        pytest.param("#### 1" + "\\,234" * 50_000 + "5", id="latex-thousands"),
        pytest.param("#### " + "\\frac{1" * 30_000, id="latex-fractions"),
        pytest.param("#### " + "\\text{" * 30_000, id="latex-texts"),
        pytest.param("18" + "\n" * 200_000 + "####", id="lines-before-the-marker"),
        pytest.param("####" + "\n" * 200_000 + "x", id="lines-after-the-marker"),
        pytest.param("#### " + "½" * 100_000, id="vulgar-fractions"),
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
        pytest.param("#### 10 or 12", "#### 10", Outcome.UNPARSED, id="hedged"),
        pytest.param("#### 3 hours and 30 minutes", "#### 3", Outcome.UNPARSED, id="composite"),
        pytest.param("#### 3½", "#### 3", Outcome.WRONG, id="another-number"),
        pytest.param("#### 3 million", "#### 3000000", Outcome.UNPARSED, id="not-worked-out"),
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
        pytest.param("18\n####", "strict", Outcome.TRUNCATED, id="marker-after-the-number"),
        pytest.param("####\n18", "strict", Outcome.TRUNCATED, id="next-line-digits-may-follow"),
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


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        pytest.param("#### 1,234", True, True, id="commas-are-taken-out-of-both"),
        pytest.param("#### 1234.", True, True, id="a-full-stop-is-taken-off"),
        pytest.param("#### 1234.0", False, False, id="it-compares-strings"),
        pytest.param("#### 1234.,", True, True, id="commas-go-before-full-stops"),
        pytest.param("It is $1234", False, True, id="dollars-are-taken-out"),
        pytest.param("####1234", False, True, id="strict-needs-the-space"),
        pytest.param("#### 7\n#### 1234", False, True, id="strict-takes-the-first"),
        pytest.param("no number", False, False, id="invalid"),
        pytest.param("", False, False, id="empty"),
    ],
)
def test_lm_eval_counts_as_right(text, strict, flexible):
    reference = "1,200 + 34 = 1,234\n#### 1,234"
    assert lm_eval_correct(text, reference) == strict
    assert lm_eval_correct(text, reference, how="flexible") == flexible


@needs_shared_gsm8k
def test_lm_eval_reads_the_same_number_from_every_test_reference():
    for row in read_jsonl("test.jsonl"):
        extracted = lm_eval_extract(row["answer"])
        assert extracted is not None
        assert Decimal(extracted.replace(",", "")) == extract_answer(row["answer"])
