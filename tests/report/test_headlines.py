"""Headline sentences: what came out, and which differences are significant."""

import pytest
from report_by_hand import report_of

from eval.report.headlines import headline_note, headline_title, headlines
from eval.report.markdown import markdown
from eval.report.types import Difference


@pytest.mark.parametrize(
    ("difference", "sentence", "verdict"),
    [
        (
            Difference(3.1, 0.4, 5.8, 400, 0.024, 3),
            "+3.1 points over sft, 95 % interval 0.4 to 5.8, paired, n = 400, 3 seeds",
            "better (p = 0.024)",
        ),
        (
            Difference(-0.5, -2.9, 1.8, 1319, 0.65, 1, detectable=3.4),
            "-0.5 points against sft, 95 % interval -2.9 to 1.8, paired, n = 1,319, 1 seed",
            "not significant (p = 0.650; a true difference of 3.4 points would be found 4 times in 5)",
        ),
        (
            Difference(50.0, 10.0, 90.0, 8, 0.0004, 1),
            "+50.0 points over sft, 95 % interval 10.0 to 90.0, paired, n = 8, 1 seed",
            "ahead (p < 0.001)",
        ),
        (
            Difference(-0.25, -0.4, -0.1, 64, 0.01, 3, unit="nats", better="lower"),
            "-0.250 nats against sft, 95 % interval -0.400 to -0.100, paired, n = 64, 3 seeds",
            "better (p = 0.010, lower is better)",
        ),
        (
            Difference(0.25, -0.1, 0.6, 64, 0.2, 3, unit="nats", better="lower", detectable=0.5),
            "+0.250 nats over sft, 95 % interval -0.100 to 0.600, paired, n = 64, 3 seeds",
            "not significant (p = 0.200; a true difference of 0.500 nats would be found 4 times in 5)",
        ),
    ],
)
def test_a_sentence_has_the_interval_n_seeds_and_the_verdict(difference, sentence, verdict):
    report = report_of(difference)
    (found,) = headlines(report, "gsm8k")
    assert (found.sentence, found.verdict) == (sentence, verdict)
    assert f"- **arm0** {sentence}: {verdict}" in markdown(report).splitlines()


def test_the_title_says_what_is_compared_and_the_note_how_often():
    better = Difference(3.1, 0.4, 5.8, 400, 0.01, 3, compared=2)
    report = report_of(better, better, None)
    assert headline_title(report, "gsm8k") == "gsm8k, strict: sft 51.0 % [46.1, 55.9]"
    assert "the 2 of its primary measure are judged together (Holm)" in headline_note(report)
    assert headline_note(report_of(better)) == ""
    *_, alone = headlines(report, "gsm8k")
    assert alone.sentence == "51.0 % [46.1, 55.9], not compared with sft" and not alone.verdict
