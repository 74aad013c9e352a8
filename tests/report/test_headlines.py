"""Headline sentences: what came out, and which differences are significant."""

from dataclasses import replace

import pytest
from report_by_hand import report_of

from eval.report.headlines import headline_note, headline_title, headlines
from eval.report.markdown import markdown
from eval.report.text import one_seed_note
from eval.report.types import Difference


@pytest.mark.parametrize(
    ("difference", "sentence", "verdict"),
    [
        (
            Difference(3.1, 0.4, 5.8, 400, 0.024, 3),
            "+3.1 points [+0.4, +5.8]",
            "better (p = 0.024)",
        ),
        (
            Difference(-0.5, -2.9, 1.8, 1319, 0.65, 1, detectable=3.4),
            "−0.5 points [−2.9, +1.8]",
            "not significant (p = 0.650, detectable: 3.4 points)",
        ),
        (
            Difference(50.0, 10.0, 90.0, 8, 0.0004, 1),
            "+50.0 points [+10.0, +90.0]",
            "ahead (p < 0.001)",
        ),
        (
            Difference(-0.25, -0.4, -0.1, 64, 0.01, 3, unit="nats", better="lower"),
            "−0.250 nats [−0.400, −0.100]",
            "better (p = 0.010, lower is better)",
        ),
        (
            Difference(0.25, -0.1, 0.6, 64, 0.2, 3, unit="nats", better="lower", detectable=0.5),
            "+0.250 nats [−0.100, +0.600]",
            "not significant (p = 0.200, detectable: 0.500 nats)",
        ),
        (
            Difference(3.1, 0.4, 5.8, 400, 0.008, 3, compared=3, p_adjusted=0.024),
            "+3.1 points [+0.4, +5.8]",
            "better (adjusted p = 0.024)",
        ),
    ],
)
def test_a_sentence_has_the_interval_and_the_verdict(difference, sentence, verdict):
    report = report_of(difference)
    (found,) = headlines(report, "gsm8k")
    assert (found.sentence, found.verdict) == (sentence, verdict)
    assert f"- **arm0** {sentence}: {verdict}" in markdown(report).splitlines()


def test_the_title_says_once_what_all_sentences_share():
    better = Difference(3.1, 0.4, 5.8, 400, 0.01, 3, compared=2)
    report = report_of(better, better, None)
    assert headline_title(report, "gsm8k") == (
        "gsm8k, strict: differences from sft (51.0 % [46.1, 55.9])",
        "paired, n = 400, 3 seeds, simultaneous 95 % intervals",
    )
    *_, alone = headlines(report, "gsm8k")
    assert alone.sentence == "51.0 % [46.1, 55.9], not compared with sft" and not alone.verdict
    nothing = headline_title(report_of(None), "gsm8k")
    assert nothing == ("gsm8k, strict: sft 51.0 % [46.1, 55.9]", "")


def test_sentences_say_themselves_what_they_do_not_share():
    whole = Difference(3.1, 0.4, 5.8, 400, 0.01, 3)
    report = report_of(whole, replace(whole, seeds=2), replace(whole, n=390))
    assert headline_title(report, "gsm8k")[1] == "paired, 95 % intervals"
    own = [one.sentence.partition("], ")[2] for one in headlines(report, "gsm8k")]
    assert own == [
        "n = 400, 3 seeds", "n = 400, 2 seeds", "n = 390, 3 seeds",
    ]  # fmt: skip
    by_seed = report_of(whole, replace(whole, seeds=2))
    assert headline_title(by_seed, "gsm8k")[1] == "paired, n = 400, 95 % intervals"
    assert [one.sentence[-9:] for one in headlines(by_seed, "gsm8k")] == [", 3 seeds", ", 2 seeds"]


def test_the_note_says_how_often_was_compared_and_what_detectable_is():
    better = Difference(3.1, 0.4, 5.8, 400, 0.01, 3, compared=2, p_adjusted=0.02)
    report = report_of(better, better)
    assert "the 2 of its primary measure are judged together;" in headline_note(report)
    assert "Detectable" not in headline_note(report)
    assert headline_note(report_of(replace(better, compared=1))) == ""
    assert headline_note(report_of(Difference(0.1, -1, 1, 9, 0.9, detectable=3.0))) == (
        "Detectable: a true difference of this size would be found 4 times in 5."
    )


def test_one_seed_is_said_to_compare_two_models():
    ahead = Difference(3.1, 0.4, 5.8, 400, 0.01, 1)
    assert one_seed_note(report_of(ahead)).startswith(
        "One seed compares two models, not two methods."
    )
    assert one_seed_note(report_of(replace(ahead, seeds=3))) == ""
    assert one_seed_note(report_of(None)) == ""
    assert "One seed compares two models" in markdown(report_of(ahead))
