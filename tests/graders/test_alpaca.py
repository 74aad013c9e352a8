"""AlpacaEval 2: values by hand, then every published model, then the files."""

import csv
import gzip
import json
import math
import random
from dataclasses import replace

import pytest
from conftest import SHARED, imported_by

from eval.benchmarks.alpaca_files import (
    read_annotations,
    read_difficulties,
    read_gamed,
    read_model_outputs,
    write_annotations,
    write_model_outputs,
)
from eval.graders.alpaca import official_order_is_flipped, preference_from_logprobs, score
from eval.graders.length_control import length_controlled_win_rate
from pipeline.errors import InputError

ALPACA = SHARED / "alpaca_eval2"
NAN = float("nan")
# A row of the gamed baseline that holds no information: p = 0.5 where every feature is 0.
NEUTRAL = [(0.0, 0.0, 0.5)]

needs_alpaca = pytest.mark.skipif(
    not ALPACA.is_dir(), reason=f"no AlpacaEval data at {ALPACA} (it is not part of the repository)"
)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_importing_the_module_imports_nothing_heavy():
    assert not {"numpy", "scipy", "sklearn", "datasets", "evaluate"} & imported_by(
        "eval.benchmarks.alpaca"
    )


# --- win rates by hand ------------------------------------------------------------------------


def test_the_raw_win_rate_and_its_standard_error_by_hand():
    """p = 0, 0.5, 1: mean 0.5, std(ddof=1) = sqrt((0.25 + 0 + 0.25) / 2) = 0.5."""
    result = length_controlled_win_rate([1, 1.5, 2], [3, 4, 5], [4, 4, 4], [0, 0, 0])
    assert (result.win_rate, result.n) == (50.0, 3)
    assert result.standard_error == pytest.approx(100 * 0.5 / math.sqrt(3))


def test_rows_without_a_verdict_are_left_out_of_everything():
    """Their lengths and difficulties may be missing too, and None is as good as NaN."""
    gamed = [(0.5, 1.0, 0.3), (-0.5, -1.0, 0.6)] * 5
    judged = length_controlled_win_rate(
        [1.2, 1.9, 1.4], [10, 30, 20], [20, 20, 21], [0.5, -1, 2], gamed
    )
    with_nan = length_controlled_win_rate(
        [1.2, NAN, 1.9, None, 1.4],
        [10, NAN, 30, 9999, 20],
        [20, 5, 20, NAN, 21],
        [0.5, NAN, -1, 7, 2],
        gamed,
    )
    assert with_nan == judged
    assert judged.n == 3


def test_one_row_has_a_win_rate_and_no_error_of_it():
    result = length_controlled_win_rate([1.25], [10], [20], [0.0], NEUTRAL)
    assert (result.win_rate, result.n, result.standard_error) == (25.0, 1, None)
    assert result.lc_win_rate is None and result.reason


@pytest.mark.parametrize(
    ("C", "expected"),
    [
        pytest.param(0.9, 50.0, id="below-the-threshold-b3-is-0"),
        pytest.param(4.0, 68.75, id="four"),
        pytest.param(1e4, 75.0, id="no-penalty"),
    ],
)
def test_the_penalty_is_l1_by_hand(C, expected):
    """Four rows of p = 0.75, equal lengths, difficulty 0: only b3 matters.

    The minimum of |b3| + C * loss has C * 4 * (0.75 - sigmoid(b3)) = 1, so sigmoid(b3) is
    0.75 - 1/(4C): 0.6875 at C = 4; at C < 1 that would be below 0.5, and b3 stays 0.
    """
    result = length_controlled_win_rate([1.75] * 4, [7] * 4, [7] * 4, [0] * 4, NEUTRAL, C=C)
    assert result.lc_win_rate == pytest.approx(expected, abs=0.02)
    assert (result.C, result.reason, result.win_rate) == (C, None, 75.0)


def test_an_unpenalised_fit_finds_the_coefficients_that_made_the_data():
    """p = sigmoid(2*x1 + 0.3*x2 - 0.4): LC is the mean of sigmoid(0.3*x2 - 0.4).

    Length differences are +-3, +-1 twice: their std(ddof=1) is sqrt(40 / 7).
    """
    deltas = [3, -3, 1, -1] * 2
    difficulty = [0, 1, -1, 2, -2, 0.5, -0.5, 1.5]
    spread = math.sqrt(40 / 7)
    p = [
        sigmoid(2 * math.tanh(d / spread) + 0.3 * x - 0.4)
        for d, x in zip(deltas, difficulty, strict=True)
    ]
    gamed = [(s, x, sigmoid(2 * math.tanh(s) + 0.3 * x)) for s, x in [(1, 1), (-2, 0.5), (0.3, -1)]]
    result = length_controlled_win_rate(
        [1 + value for value in p], [100 - d for d in deltas], [100] * 8, difficulty, gamed, C=1e6
    )
    expected = 100 * sum(sigmoid(0.3 * x - 0.4) for x in difficulty) / 8
    assert result.lc_win_rate == pytest.approx(expected, abs=0.01)
    assert abs(result.win_rate - expected) > 0.5


def test_a_gamed_row_weighs_a_tenth_of_a_models_row():
    """2 rows of the model and 10 gamed ones, all with p = 0.8 and x2 = 1, are 3 rows in weight.

    At C = 2 the penalty leaves C * 3 * (0.8 - sigmoid(b2)) = 1, so sigmoid(b2) = 0.8 - 1/6. b3 is
    0, as its own gain, C * 2 * 1/6, is below 1. Were the weights equal, LC would be 75.8.
    """
    result = length_controlled_win_rate([1.8, 1.8], [5, 5], [5, 5], [1, 1], [(0, 1, 0.8)] * 10, C=2)
    assert result.lc_win_rate == pytest.approx(100 * (0.8 - 1 / 6), abs=0.02)


def test_the_baseline_against_itself_is_50():
    result = length_controlled_win_rate([1.5] * 9, [20] * 9, [20] * 9, range(9), [(1, 2, 0.9)] * 9)
    assert (result.win_rate, result.lc_win_rate, result.standard_error) == (50.0, 50.0, 0.0)
    assert result.reason is None


@pytest.mark.parametrize("length", [20, 17], ids=["equal", "always-longer"])
def test_length_differences_without_spread_give_a_number(length):
    result = length_controlled_win_rate(
        [1.5, 1.9, 1.2], [20] * 3, [length] * 3, [0, 1, 2], [(1, 1, 0.4)] * 9, C=1
    )
    assert 0 < result.lc_win_rate < 100


def test_without_gamed_rows_or_difficulties_there_is_no_lc_and_a_reason():
    columns = ([1.2, 1.9], [10, 30], [20, 20])
    no_gamed = length_controlled_win_rate(*columns, [0, 1])
    assert no_gamed.lc_win_rate is None and no_gamed.C is None
    assert "df_gamed.csv" in no_gamed.reason
    no_difficulty = length_controlled_win_rate(*columns, None, NEUTRAL)
    assert no_difficulty.lc_win_rate is None and "difficulties" in no_difficulty.reason
    assert no_gamed.win_rate == no_difficulty.win_rate == pytest.approx(55.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"model_lengths": [10]}, "columns do not match", id="lengths-differ"),
        pytest.param({"preferences": [[1.5, 1.5]]}, "columns do not match", id="two-axes"),
        pytest.param({"preferences": [1.2, 0.9]}, r"preferences\[1\] is 0.9", id="below-1"),
        pytest.param({"preferences": [2.1, 1.9]}, r"preferences\[0\] is 2.1", id="above-2"),
        pytest.param({"preferences": [math.inf, 1.9]}, "preferences", id="infinite"),
        pytest.param({"preferences": [NAN, None]}, "none of 2 rows", id="nothing-judged"),
        pytest.param({"preferences": ["m", "M"]}, "preferences must be numbers", id="words"),
        pytest.param({"model_lengths": [10, -1]}, r"model_lengths\[1\]", id="negative-length"),
        pytest.param({"baseline_lengths": [10, NAN]}, r"baseline_lengths\[1\]", id="no-length"),
        pytest.param({"difficulty": [NAN, 1]}, r"difficulty\[0\] is nan", id="no-difficulty"),
        pytest.param({"gamed": []}, "pass None where there are none", id="no-gamed-rows"),
        pytest.param({"gamed": [(1.0, 2.0)]}, "gamed", id="gamed-two-columns"),
        pytest.param({"gamed": [(1, 2, 0.5), (1, 2)]}, "gamed must be", id="gamed-ragged"),
        pytest.param({"gamed": [(1, 2, 1.5)]}, r"preference in \[0, 1\]", id="gamed-in-1-2"),
        pytest.param({"gamed": [(NAN, 2, 0.5)]}, "all finite", id="gamed-nan"),
        pytest.param({"C": 0}, "C is 0", id="c-zero"),
        pytest.param({"C": NAN}, "C is nan", id="c-nan"),
        pytest.param({"resamples": 1}, "resamples is 1", id="one-resample"),
    ],
)
def test_wrong_columns_are_refused_in_words(change, message):
    columns = {
        "preferences": [1.2, 1.9],
        "model_lengths": [10, 30],
        "baseline_lengths": [20, 20],
        "difficulty": [0.0, 1.0],
        "gamed": NEUTRAL,
    }
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(**{**columns, **change})


def test_no_rows_at_all_are_refused():
    with pytest.raises(ValueError, match="none of 0 rows"):
        length_controlled_win_rate([], [], [], [], NEUTRAL)


# --- the published models ---------------------------------------------------------------------


def read_table(name):
    with (ALPACA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def published():
    """Model -> its row of published.csv with its preferences and lengths, NaN where missing."""
    preferences, lengths = read_table("preferences.csv"), read_table("output_lengths.csv")
    return {
        row["model"]: {
            "n": int(row["n"]),
            "win_rate": float(row["win_rate_published"]),
            "lc": float(row["length_controlled_winrate_published"]),
            "preferences": [float(line[row["model"]] or "nan") for line in preferences],
            "lengths": [float(line[row["model"]] or "nan") for line in lengths],
        }
        for row in read_table("published.csv")
    }


@pytest.fixture(scope="module")
def instructions():
    return [
        row["instruction"]
        for row in read_model_outputs(ALPACA / "gpt4_1106_preview.model_outputs.json")
    ]


@pytest.fixture(scope="module")
def baseline_lengths():
    return [float(row["gpt4_1106_preview(baseline)"]) for row in read_table("output_lengths.csv")]


@pytest.fixture(scope="module")
def difficulties(instructions):
    return read_difficulties(ALPACA / "instruction_difficulty.csv", instructions)


@pytest.fixture(scope="module")
def gamed():
    return read_gamed(ALPACA / "df_gamed_recon.csv")


@pytest.fixture(scope="module")
def annotations():
    return read_annotations(ALPACA / "text_davinci_001.annotations.json.gz")


@pytest.fixture(scope="module")
def results(published, baseline_lengths, difficulties, gamed):
    """Model -> its win rates; the 30 cross-validations take three seconds together."""
    return {
        model: length_controlled_win_rate(
            row["preferences"],
            row["lengths"],
            baseline_lengths,
            list(difficulties.values()),
            gamed,
        )
        for model, row in published.items()
    }


@needs_alpaca
def test_the_raw_win_rate_of_all_30_models_is_the_published_one(published, results):
    assert len(published) == 30
    assert {model: result.n for model, result in results.items()} == {
        model: row["n"] for model, row in published.items()
    }
    assert {model: result.win_rate for model, result in results.items()} == pytest.approx(
        {model: row["win_rate"] for model, row in published.items()}, abs=1e-6, rel=0
    )


@needs_alpaca
def test_lc_is_the_published_one_within_what_the_rebuilt_gamed_rows_allow(published, results):
    """26 models have all rows; where cross-validation picks their C, LC is equal to 1e-6."""
    errors = {
        model: abs(results[model].lc_win_rate - row["lc"])
        for model, row in published.items()
        if row["n"] == 805
    }
    assert len(errors) == 26
    assert {model: error for model, error in errors.items() if error > 0.16} == {}
    assert sum(error <= 0.01 for error in errors.values()) >= 2 / 3 * len(errors)
    assert sum(error <= 1e-6 for error in errors.values()) >= 18


@needs_alpaca
def test_where_lc_differs_the_published_one_is_the_fit_at_another_c(
    published, results, baseline_lengths, difficulties, gamed
):
    """So features, weights and fit are right for all 26, and only the choice of C is not certain."""
    others = [
        model
        for model, row in published.items()
        if row["n"] == 805 and abs(results[model].lc_win_rate - row["lc"]) > 1e-6
    ]
    for model in others:
        row = published[model]
        columns = (
            row["preferences"],
            row["lengths"],
            baseline_lengths,
            list(difficulties.values()),
        )
        over_grid = [
            length_controlled_win_rate(*columns, gamed, C=10 ** (-4 + 8 * k / 9)).lc_win_rate
            for k in range(10)
        ]
        assert min(abs(lc - row["lc"]) for lc in over_grid) < 1e-6, model


@needs_alpaca
def test_models_with_missing_rows_were_published_with_difficulties_of_other_instructions(
    published, results, baseline_lengths, difficulties, gamed
):
    """Leaving the missing rows out before looking up by position gives the published number."""
    by_position = {}
    for model, row in published.items():
        if row["n"] == 805:
            continue
        judged = [i for i, p in enumerate(row["preferences"]) if not math.isnan(p)]
        by_position[model] = length_controlled_win_rate(
            [row["preferences"][i] for i in judged],
            [row["lengths"][i] for i in judged],
            [baseline_lengths[i] for i in judged],
            list(difficulties.values())[: len(judged)],
            gamed,
        ).lc_win_rate
    assert {
        model: (
            round(value, 2),
            round(published[model]["lc"], 2),
            round(results[model].lc_win_rate, 2),
        )
        for model, value in by_position.items()
    } == {  # by position, as published, by instruction
        "alpaca-7b_verbose": (6.90, 6.82, 5.20),
        "minotaur-13b": (11.47, 11.47, 9.10),
        "phi-2": (4.40, 4.40, 3.89),
        "text_davinci_001": (9.03, 9.03, 6.48),
    }


@needs_alpaca
def test_the_published_baseline_against_itself_is_50(results):
    result = results["gpt4_1106_preview"]
    assert (result.win_rate, result.lc_win_rate, result.n) == (50.0, 50.0, 805)


@needs_alpaca
def test_without_gamed_rows_lc_would_be_off_and_is_not_given(
    published, baseline_lengths, difficulties
):
    row = published["gpt4_gamed"]
    result = length_controlled_win_rate(
        row["preferences"], row["lengths"], baseline_lengths, list(difficulties.values())
    )
    assert result.lc_win_rate is None and "13.7" in result.reason


@needs_alpaca
def test_swapping_the_answers_gives_100_minus_the_win_rate(published, baseline_lengths, results):
    for model, row in published.items():
        swapped = length_controlled_win_rate(
            [3 - p for p in row["preferences"]],
            baseline_lengths,
            [0 if math.isnan(length) else length for length in row["lengths"]],
            None,
        )
        assert swapped.win_rate == pytest.approx(100 - results[model].win_rate, abs=1e-10)
        assert swapped.standard_error == pytest.approx(results[model].standard_error, abs=1e-10)


@needs_alpaca
def test_a_bootstrap_interval_holds_lc_and_is_the_same_every_time(
    published, baseline_lengths, difficulties, gamed
):
    """With C fixed; its spread is of the size of the raw win rate's (claude-2: 1.17)."""
    row = published["claude-2"]
    columns = (row["preferences"], row["lengths"], baseline_lengths, list(difficulties.values()))
    result = length_controlled_win_rate(*columns, gamed, C=2.78, resamples=100)
    assert result == length_controlled_win_rate(*columns, gamed, C=2.78, resamples=100)
    assert result.lc_interval.low < result.lc_win_rate < result.lc_interval.high
    assert 1.2 < result.lc_standard_error < 2.2
    without = length_controlled_win_rate(*columns, gamed, C=2.78)
    assert without == replace(result, lc_interval=None, lc_standard_error=None, lc_replicates=())


# --- scoring annotations ----------------------------------------------------------------------


@needs_alpaca
def test_an_annotation_file_scores_as_the_table_made_from_it(
    annotations, difficulties, gamed, results
):
    assert len(annotations) == 803
    assert score(annotations, difficulties, gamed) == results["text_davinci_001"]


@needs_alpaca
def test_shuffled_annotations_give_the_same_answer(annotations, difficulties, gamed, results):
    shuffled = random.Random(1).sample(annotations, len(annotations))
    assert shuffled != annotations
    assert score(shuffled, difficulties, gamed) == results["text_davinci_001"]


@needs_alpaca
def test_200_annotations_give_the_aligned_answer(
    annotations, instructions, difficulties, gamed, published, baseline_lengths
):
    """The table's columns at the same 200 instructions, found by their place in the list."""
    subset = random.Random(2).sample(annotations, 200)
    at = sorted(instructions.index(row["instruction"]) for row in subset)
    row = published["text_davinci_001"]
    by_index = list(difficulties.values())
    aligned = length_controlled_win_rate(
        [row["preferences"][i] for i in at],
        [row["lengths"][i] for i in at],
        [baseline_lengths[i] for i in at],
        [by_index[i] for i in at],
        gamed,
    )
    result = score(subset, difficulties, gamed)
    assert result == aligned
    by_position = length_controlled_win_rate(
        [row["preferences"][i] for i in at],
        [row["lengths"][i] for i in at],
        [baseline_lengths[i] for i in at],
        by_index[:200],
        gamed,
    )
    assert result.n == 200 and abs(result.lc_win_rate - by_position.lc_win_rate) > 0.1


def entry(instruction="Say hi.", preference=1.25, **changes):
    return {
        "instruction": instruction,
        "output_1": "Hi there.",
        "generator_1": "baseline",
        "dataset": "made up",
        "output_2": "Hi.",
        "generator_2": "ours",
        "annotator": "judge",
        "preference": preference,
        "raw_completion": None,
        **changes,
    }


def test_scoring_leaves_out_null_and_counts_an_old_tie_as_half():
    result = score([entry("a", None), entry("b", 0), entry("c", 1)], None)
    assert (result.n, result.win_rate) == (2, 25.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([], "none of 0 rows", id="empty"),
        pytest.param([entry(), entry()], "2 entries have the instruction 'Say hi.'", id="twice"),
        pytest.param([entry("b")], "no difficulty for the instruction 'b'", id="not-alpacaeval"),
        pytest.param([entry(preference=None)], "none of 1 rows", id="not-judged"),
        pytest.param(
            [entry(), entry("a", generator_2="x")], "generator_2 has several", id="models"
        ),
        pytest.param([entry(), entry("a", annotator="x")], "annotator has several", id="judges"),
    ],
)
def test_annotations_that_are_no_evaluation_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        score(rows, {"Say hi.": 0.5, "a": 1.0}, NEUTRAL)


# --- preferences from log-probabilities -------------------------------------------------------


def completion(**logprobs):
    top = [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]
    return {"logprobs": {"content": [{"token": "m", "top_logprobs": top}]}}


def test_a_preference_is_one_plus_the_share_of_the_second_label():
    """P(m) = 0.2 and P(M) = 0.6 are 0.25 and 0.75 of what is on labels."""
    verdict = preference_from_logprobs(completion(m=math.log(0.2), M=math.log(0.6), The=-3.0))
    assert verdict.preference == pytest.approx(1.75)
    assert verdict.mass == pytest.approx(0.8) and verdict.reason is None


def test_a_flipped_order_mirrors_the_preference():
    reply = completion(m=math.log(0.2), M=math.log(0.6))
    flipped = preference_from_logprobs(reply, flipped=True)
    assert flipped.preference == pytest.approx(1.25)
    assert flipped.preference == 3 - preference_from_logprobs(reply).preference


def test_other_labels_can_be_named():
    reply = completion(A=math.log(0.5), B=math.log(0.5), m=-0.1)
    assert preference_from_logprobs(reply, labels=("A", "B")).preference == pytest.approx(1.5)


def test_one_label_alone_takes_it_all_and_its_mass_is_told():
    verdict = preference_from_logprobs(completion(M=math.log(0.01), The=math.log(0.9)))
    assert verdict.preference == 2.0
    assert verdict.mass == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(None, "no log-probabilities", id="no-reply"),
        pytest.param("m", "no log-probabilities", id="only-text"),
        pytest.param({"message": {"content": "m"}}, "no log-probabilities", id="no-logprobs"),
        pytest.param({"logprobs": None}, "no log-probabilities", id="null-logprobs"),
        pytest.param({"logprobs": {"content": None}}, "no log-probabilities", id="null-content"),
        pytest.param({"logprobs": {"content": []}}, "no log-probabilities", id="no-token"),
        pytest.param(
            {"logprobs": {"content": [{"token": "m"}]}}, "no log-probabilities", id="no-top"
        ),
        pytest.param(completion(m=None), "no log-probabilities", id="null-logprob"),
        pytest.param(completion(), "neither 'm' nor 'M' among the 0", id="empty-top"),
        pytest.param(completion(The=-0.1, A=-3.0), "neither 'm' nor 'M'", id="no-label"),
        pytest.param(completion(**{" m": -0.1, "MM": -2.0}), "neither", id="nearly-a-label"),
        pytest.param(completion(m=-9999.0, M=-9999.0), "neither", id="no-probability"),
        pytest.param(completion(m=NAN, M=-0.1), "are not log-probabilities", id="nan"),
        pytest.param(completion(m=0.7, M=0.3), "are not log-probabilities", id="probabilities"),
    ],
)
def test_a_reply_without_a_label_is_a_reason_and_never_a_score(reply, reason):
    verdict = preference_from_logprobs(reply)
    assert verdict.preference is None and verdict.mass == 0
    assert reason in verdict.reason


@needs_alpaca
def test_the_stored_preferences_follow_from_the_stored_logprobs(annotations):
    """Stored with 10 decimals, so equal to half a unit of the last; the order is the tool's coin.

    The 3 rows that were never sent to the judge have two equal answers, and were stored as 1.5.
    """
    asked = [row for row in annotations if row["raw_completion"] is not None]
    errors = [
        abs(
            preference_from_logprobs(
                row["raw_completion"], flipped=official_order_is_flipped(row["instruction"])
            ).preference
            - row["preference"]
        )
        for row in asked
    ]
    assert len(errors) == 800 and max(errors) < 5.1e-11
    assert sum(official_order_is_flipped(row["instruction"]) for row in asked) == 404
    others = [row for row in annotations if row["raw_completion"] is None]
    assert [(row["output_1"] == row["output_2"], row["preference"]) for row in others] == [
        (True, 1.5)
    ] * 3
    assert all(preference_from_logprobs(None).preference is None for _ in others)


@needs_alpaca
def test_in_two_official_replies_only_one_label_is_among_the_five_tokens(annotations):
    tokens = [
        {top["token"] for top in row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]}
        for row in annotations
        if row["raw_completion"] is not None
    ]
    assert sum(not {"m", "M"} <= found for found in tokens) == 2
    assert all({"m", "M"} & found for found in tokens)


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["annotations.json", "annotations.json.gz"])
def test_annotations_come_back_as_they_were_written(tmp_path, name):
    rows = [
        entry("Naïve 字 \ud800?\u2028", 1.0000001, price_per_example=0.01),
        entry("b", None, raw_completion=completion(m=-0.1)),
    ]
    write_annotations(tmp_path / name, rows)
    assert read_annotations(tmp_path / name) == rows
    assert list(read_annotations(tmp_path / name)[0]) == list(rows[0])
    first = (tmp_path / name).read_bytes()
    write_annotations(tmp_path / name, rows)
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_verdict_is_written_as_null(tmp_path):
    write_annotations(tmp_path / "a.json", [entry(preference=NAN)])
    assert json.loads((tmp_path / "a.json").read_text())[0]["preference"] is None


@needs_alpaca
def test_official_annotations_come_back_as_they_were(annotations, tmp_path):
    write_annotations(tmp_path / "a.json.gz", annotations)
    assert read_annotations(tmp_path / "a.json.gz") == annotations
    with gzip.open(tmp_path / "a.json.gz") as file:
        assert json.load(file) == annotations


@needs_alpaca
def test_official_model_outputs_come_back_as_they_were(tmp_path):
    official = read_model_outputs(ALPACA / "gpt4_1106_preview.model_outputs.json")
    assert len(official) == 805
    write_model_outputs(tmp_path / "model_outputs.json", official)
    assert read_model_outputs(tmp_path / "model_outputs.json") == official


def test_an_empty_list_of_outputs_is_a_file_too(tmp_path):
    write_model_outputs(tmp_path / "model_outputs.json", [])
    assert read_model_outputs(tmp_path / "model_outputs.json") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "a.json cannot be read: No such file", id="missing"),
        pytest.param(b"[{", "a.json must be a JSON file", id="cut"),
        pytest.param(b"\xff\xfe\xfa", "a.json must be a JSON file", id="binary"),
        pytest.param(b"\x1f\x8b\x08cut", "a.json must be a JSON file", id="damaged-gzip"),
        pytest.param(gzip.compress(b"[]" * 99)[:-9], "must be a JSON file", id="cut-gzip"),
        pytest.param(b'{"a": 1}', "a.json must be a list", id="no-list"),
        pytest.param(b"[3]", "entry 0 is '3'", id="no-object"),
        pytest.param([entry(), {"instruction": "a"}], "entry 1: output_1 is None", id="no-output"),
        pytest.param([entry(output_2=None)], "entry 0: output_2 is None", id="null-output"),
        pytest.param([entry(preference="m")], "entry 0: preference is m", id="word"),
        pytest.param([entry(preference=0.5)], "entry 0: preference is 0.5", id="no-preference"),
    ],
)
def test_a_wrong_annotation_file_is_named_with_its_entry(tmp_path, content, message):
    path = tmp_path / "a.json"
    if isinstance(content, list):
        content = json.dumps(content).encode()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


def test_an_annotation_without_a_preference_field_is_no_annotation(tmp_path):
    row = entry()
    del row["preference"]
    with pytest.raises(InputError, match="entry 0: preference is missing"):
        write_annotations(tmp_path / "a.json", [row])


@pytest.mark.parametrize(
    ("write", "row", "message"),
    [
        pytest.param(
            write_annotations, {"annotator": None}, "entry 1: annotator is None", id="judge"
        ),
        pytest.param(write_annotations, {"preference": 3}, "entry 1: preference is 3", id="range"),
        pytest.param(
            write_annotations,
            {"raw_completion": {"x": NAN}},
            "entry 1 cannot be written as JSON",
            id="nan",
        ),
        pytest.param(
            write_annotations,
            {"raw_completion": {1, 2}},
            "entry 1 cannot be written as JSON",
            id="set",
        ),
        pytest.param(write_model_outputs, {"output": None}, "entry 1: output is None", id="output"),
    ],
)
def test_a_wrong_entry_is_not_written_and_the_old_file_stays(tmp_path, write, row, message):
    path = tmp_path / "out.json"
    good = {**entry(), "output": "Hi.", "generator": "ours"}
    write(path, [good])
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        write(path, [good, {**good, **row}])
    assert path.read_bytes() == before


def test_difficulties_are_keyed_by_text_in_any_row_order(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("index,instruction_difficulty\n1,-0.5\n0,2\n")
    assert read_difficulties(path, ["a", "b"]) == {"a": 2.0, "b": -0.5}
    assert list(read_difficulties(path, ["a", "b"])) == ["a", "b"]


def test_an_index_column_without_a_name_is_pandas_index(tmp_path):
    (tmp_path / "d.csv").write_text(",instruction_difficulty\n0,1.5\n1,2.5\n")
    assert read_difficulties(tmp_path / "d.csv", ["a", "b"]) == {"a": 1.5, "b": 2.5}


@needs_alpaca
def test_the_gamed_file_holds_the_difficulties_as_well(instructions, difficulties, gamed):
    assert len(gamed) == 1610 and len(difficulties) == 805
    from_gamed = read_difficulties(ALPACA / "df_gamed_recon.csv", instructions)
    assert from_gamed == pytest.approx(difficulties, abs=1e-7)


@needs_alpaca
def test_a_subset_of_instructions_cannot_be_taken_for_all(instructions):
    with pytest.raises(InputError, match="has 805 difficulties, but there are 200 instructions"):
        read_difficulties(ALPACA / "instruction_difficulty.csv", instructions[:200])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "d.csv must be a CSV file", id="missing"),
        pytest.param("index,difficulty\n0,1\n", "valid are numbers in the columns", id="column"),
        pytest.param("index,instruction_difficulty\n0,hard\n", "d.csv:2: .*hard", id="word"),
        pytest.param(
            "index,instruction_difficulty\n0\n1,2\n", "an empty or infinite cell", id="empty-cell"
        ),
        pytest.param("index,instruction_difficulty\n0,1\n2,3\n", "2 difficulties", id="gap"),
        pytest.param("index,instruction_difficulty\n", "0 difficulties", id="no-rows"),
    ],
)
def test_a_wrong_difficulty_file_is_refused(tmp_path, content, message):
    path = tmp_path / "d.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_difficulties(path, ["a", "b"])


def test_the_same_instruction_twice_has_no_difficulty_of_its_own(tmp_path):
    (tmp_path / "d.csv").write_text("index,instruction_difficulty\n0,1\n1,2\n")
    with pytest.raises(InputError, match=r"2 instructions \(1 different\)"):
        read_difficulties(tmp_path / "d.csv", ["a", "a"])


GAMED_HEADER = "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"


def test_gamed_rows_are_read_in_order_and_unjudged_ones_are_left_out(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text(
        GAMED_HEADER + "v,0.75,0,-1.5,0.25,False\nv,,1,2,3,False\nc,0.125,0,2.5,0.25,False\n"
    )
    assert read_gamed(path) == [(-1.5, 0.25, 0.75), (2.5, 0.25, 0.125)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(GAMED_HEADER, "g.csv: gamed", id="no-rows"),
        pytest.param(GAMED_HEADER + "v,1.75,0,1,1,False\n", r"g.csv: .*\[0, 1\]", id="in-1-2"),
        pytest.param(GAMED_HEADER + "v,0.75,0,,1,False\n", "g.csv: .*all finite", id="gap"),
        pytest.param("index,preference\n0,1\n", "g.csv:2: 'std_delta_len'", id="columns"),
    ],
)
def test_a_wrong_gamed_file_is_refused(tmp_path, content, message):
    (tmp_path / "g.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_gamed(tmp_path / "g.csv")
