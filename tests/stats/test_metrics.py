"""The metrics of the `evaluate` library: values by hand, then what the library does with them."""

import csv
import json
import os
import pickle
import random
import subprocess
import sys

import evaluate
import pytest
from conftest import ROOT, imported_by
from scipy.stats import t as t_distribution

from eval.benchmarks.alpaca_files import (
    read_annotations,
    read_difficulties,
    read_gamed,
    read_model_outputs,
)
from eval.graders.length_control import length_controlled_win_rate
from eval.metrics import GSM8KAccuracy, LengthControlledWinRate, Rouge, WinRate

ALPACA = ROOT.parent / "shared" / "data" / "alpaca_eval2"
NAN = float("nan")

# Inputs that every metric can compute; each is right, preferred or equal in the first row.
ANSWERS = {
    "predictions": ["So 9 * 2 = 18.\n#### 18", "#### 17"],
    "references": ["So 9 * 2 = 18.\n#### 18", "#### 18"],
}
JUDGED = {
    "predictions": [{"output": "Hi.", "preference": 2.0}, {"output": "Yo.", "preference": 1.0}],
    "references": [
        {"instruction": "a", "output": "Hey."},
        {"instruction": "b", "output": "Hello."},
    ],
}
INPUTS = {
    GSM8KAccuracy: ANSWERS,
    WinRate: JUDGED,
    LengthControlledWinRate: JUDGED,
    Rouge: ANSWERS,
}

every_metric = pytest.mark.parametrize(
    ("metric", "inputs"), INPUTS.items(), ids=[metric.__name__ for metric in INPUTS]
)


# --- GSM8K ------------------------------------------------------------------------------------


def test_gsm8k_accuracy_counts_both_ways_of_reading():
    """Of four: strict reads 18, -, 17, 18 and is right twice; flexible 18, 18, 17, 2: also two.

    The Wilson interval of 2 in 4 is (0.5 + z²/8 ± z sqrt(1/16 + z²/64)) / (1 + z²/4) with
    z² = 3.8415: 0.5 ± 1.96 * 0.35002 / 1.96036 = 0.5 ± 0.34996.
    """
    result = GSM8KAccuracy().compute(
        predictions=["#### 18", "It is 18.", "#### 17", "#### 18 = 9 * 2"],
        references=["#### 18"] * 4,
    )
    assert (result["n"], result["level"]) == (4, 0.95)
    assert (result["accuracy_strict"], result["accuracy_flexible"]) == (0.5, 0.5)
    assert (result["unparsed_strict"], result["unparsed_flexible"]) == (1, 0)
    assert result["low"] == pytest.approx(0.15004, abs=2e-5)
    assert result["high"] == pytest.approx(0.84996, abs=2e-5)
    assert (result["low_flexible"], result["high_flexible"]) == (result["low"], result["high"])


def test_gsm8k_accuracy_takes_marker_and_truncated():
    result = GSM8KAccuracy().compute(
        predictions=["A: 18", "A: 18"],
        references=["#### 18", "#### 18"],
        marker="A:",
        truncated=[False, True],
    )
    assert (result["accuracy_strict"], result["truncated_strict"]) == (0.5, 1)
    assert (result["accuracy_flexible"], result["truncated_flexible"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": ["#### 18"], "references": ["none"]}, "reference has no answer"),
        ({**ANSWERS, "truncated": [False] * 3}, "truncated has 3 flags for 2 predictions"),
        ({**ANSWERS, "truncated": []}, "truncated has 0 flags for 2 predictions"),
        ({**ANSWERS, "marker": ""}, "marker is empty"),
    ],
    ids=["bad-reference", "too-many-flags", "no-flags", "empty-marker"],
)
def test_gsm8k_accuracy_refuses(inputs, message):
    with pytest.raises(ValueError, match=message):
        GSM8KAccuracy().compute(**inputs)


# --- win rates --------------------------------------------------------------------------------


def test_the_win_rate_by_hand():
    """Points 25 and 75 of two judged rows: mean 50, error 35.36 / sqrt(2) = 25.

    The interval counts 0, 0, 100 and 100 more: a variance of 1.125 / 5 over six, five degrees.
    """
    result = WinRate().compute(
        predictions=[
            {"output": "Hi.", "preference": 1.25},
            {"output": "Yo.", "preference": NAN},
            {"output": "No.", "preference": 1.75},
        ],
        references=[{"instruction": text, "output": "Hi."} for text in "abc"],
    )
    half = 100 * t_distribution.isf(0.025, 5) * (1.125 / 5 / 6) ** 0.5
    assert result == {
        "n": 2,
        "win_rate": 50.0,
        "standard_error": pytest.approx(25.0),
        "low": pytest.approx(50 - half),
        "high": pytest.approx(50 + half),
        "level": 0.95,
    }


def test_a_probability_given_for_a_preference_is_refused():
    """0 would be a tie of older files, and 1 a loss: both wrong without a word."""
    with pytest.raises(ValueError, match=r"a preference is 0, valid are .* a tie is 1\.5"):
        WinRate().compute(
            predictions=[{"output": "Hi.", "preference": 1.0}, {"output": "Yo.", "preference": 0}],
            references=[{"instruction": text, "output": "Hi."} for text in "ab"],
        )


def test_one_row_has_no_error():
    result = WinRate().compute(
        predictions=[{"output": "Hi.", "preference": 1.5}, {"output": "Yo.", "preference": None}],
        references=[{"instruction": text, "output": "Hi."} for text in "ab"],
    )
    assert (result["n"], result["win_rate"], result["standard_error"]) == (1, 50.0, None)
    assert (result["low"], result["high"]) == (0.0, 100.0)


@pytest.mark.parametrize("metric", [WinRate, LengthControlledWinRate])
@pytest.mark.parametrize(
    ("preferences", "instructions", "message"),
    [
        ([NAN, NAN], "ab", "none of 2 rows"),
        ([1.5, 2.5], "ab", "2.5, valid are"),
        ([1.5, 1.5], "aa", "2 entries have the instruction 'a'"),
    ],
    ids=["not-judged", "out-of-range", "instruction-twice"],
)
def test_a_win_rate_refuses(metric, preferences, instructions, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(
            predictions=[{"output": "Hi.", "preference": each} for each in preferences],
            references=[{"instruction": text, "output": "Hi."} for text in instructions],
        )


def test_the_length_controlled_win_rate_gives_a_reason_where_it_gives_no_number():
    result = LengthControlledWinRate().compute(**JUDGED, difficulties={"a": 0.0, "b": 1.0})
    assert (result["n"], result["win_rate"]) == (2, 50.0)
    assert result["lc_win_rate"] is None and "df_gamed.csv" in result["reason"]
    assert result["lc_low"] is None and result["lc_high"] is None and result["C"] is None
    result = LengthControlledWinRate().compute(**JUDGED, gamed=[(0.0, 0.0, 0.5)])
    assert result["lc_win_rate"] is None and "difficulties" in result["reason"]


def test_few_instructions_have_a_length_controlled_win_rate_only_if_it_is_forced():
    """As in reports: 199 judged are too few, of 200 or more, the unjudged not counted."""
    rng = random.Random(0)

    def compute(judged, **options):
        predictions = [
            {"output": "x" * rng.randint(1, 99), "preference": rng.choice([1.0, 2.0])}
            for _ in range(judged)
        ]
        predictions.append({"output": "Hi.", "preference": NAN})
        references = [{"instruction": str(i), "output": "Hey."} for i in range(len(predictions))]
        return LengthControlledWinRate().compute(
            predictions=predictions,
            references=references,
            difficulties={str(i): rng.random() for i in range(len(predictions))},
            gamed=[(1.0, 0.0, 0.9), (-1.0, 0.0, 0.1)],
            resamples=2,
            **options,
        )

    few = compute(199)
    assert few["lc_win_rate"] is few["lc_low"] is few["lc_high"] is few["C"] is None
    assert few["n"] == 199 and few["reason"].startswith("199 judged instructions are too few")
    for enough in (compute(200), compute(20, force=True)):
        assert enough["reason"] is None and 0 < enough["lc_win_rate"] < 100 and enough["C"] > 0
        assert enough["lc_low"] <= enough["lc_high"]


def test_the_length_controlled_win_rate_refuses_an_instruction_without_a_difficulty():
    with pytest.raises(ValueError, match="no difficulty for the instruction 'b'"):
        LengthControlledWinRate().compute(**JUDGED, difficulties={"a": 0.0})


@pytest.mark.skipif(
    not ALPACA.is_dir(), reason=f"no AlpacaEval data at {ALPACA} (it is not part of the repository)"
)
def test_the_length_controlled_win_rate_of_a_published_model():
    """2.764005231 % is published; LC from annotations equals LC from the tables of all models."""
    model = "text_davinci_001"
    outputs = read_model_outputs(ALPACA / "gpt4_1106_preview.model_outputs.json")
    difficulties = read_difficulties(
        ALPACA / "instruction_difficulty.csv", [row["instruction"] for row in outputs]
    )
    gamed = read_gamed(ALPACA / "df_gamed_recon.csv")

    def column(name, model):
        with (ALPACA / name).open(encoding="utf-8", newline="") as file:
            return [float(row[model] or "nan") for row in csv.DictReader(file)]

    expected = length_controlled_win_rate(
        column("preferences.csv", model),
        column("output_lengths.csv", model),
        column("output_lengths.csv", "gpt4_1106_preview(baseline)"),
        list(difficulties.values()),
        gamed,
    )
    metric = LengthControlledWinRate()
    annotations = read_annotations(ALPACA / f"{model}.annotations.json.gz")
    metric.add_batch(
        predictions=[
            {"output": row["output_2"], "preference": row["preference"]} for row in annotations
        ],
        references=[
            {"instruction": row["instruction"], "output": row["output_1"]} for row in annotations
        ],
    )
    result = metric.compute(difficulties=difficulties, gamed=gamed, resamples=20)
    assert result["win_rate"] == pytest.approx(2.764005231108344, abs=1e-6)
    assert (result["n"], result["C"], result["reason"]) == (803, expected.C, None)
    assert result["lc_win_rate"] == expected.lc_win_rate
    assert result["low"] < result["win_rate"] < result["high"]
    assert result["lc_low"] <= result["lc_win_rate"] <= result["lc_high"]


# --- ROUGE ------------------------------------------------------------------------------------


def test_rouge_is_a_plain_mean_in_percent_with_an_interval():
    """F of ROUGE-1, 2, L: 1, 1, 1 for the same text; 1, 4/5, 2/3 for "the mat sat on the cat".

    Two pairs that differ leave everything open, and two that are alike show no spread.
    """
    reference = "the cat sat on the mat"
    result = Rouge().compute(
        predictions=["The cat sat on the mat.", "the mat sat on the cat"],
        references=[reference, reference],
    )
    assert result == {
        "n": 2,
        "left_out": 0,
        "level": 0.95,
        "rouge1": 100.0,
        "rouge1_low": 100.0,
        "rouge1_high": 100.0,
        "rouge2": pytest.approx(90.0),
        "rouge2_low": 0.0,
        "rouge2_high": 100.0,
        "rougeL": pytest.approx(250 / 3),
        "rougeL_low": 0.0,
        "rougeL_high": 100.0,
    }


def test_rouge_leaves_out_what_it_cannot_read_and_counts_silence_as_0():
    """Of four pairs two references are unreadable; the others score 100 and, for silence, 0."""
    result = Rouge().compute(
        predictions=["a cat", "🐈 …", "", "a dog"],
        references=["a cat", "🐈 …", "a cat", "?"],
    )
    assert (result["n"], result["left_out"]) == (2, 2)
    assert (result["rouge1"], result["rouge2"], result["rougeL"]) == (50.0, 50.0, 50.0)
    assert (result["rouge1_low"], result["rouge1_high"]) == (0.0, 100.0)


def test_rouge_does_not_depend_on_a_seed():
    """`rouge_score`'s own aggregate is the median of random resamples."""
    predictions = ["a cat", "a dog", "the cat", "cat", ""]
    inputs = {"predictions": predictions, "references": ["a cat"] * 5}
    assert Rouge(seed=1).compute(**inputs) == Rouge(seed=2).compute(**inputs)


def test_rouge_refuses_references_of_which_it_can_read_none():
    with pytest.raises(ValueError, match="none of 2 references holds a letter or digit"):
        Rouge().compute(predictions=["a", "b"], references=["", "🐈 …"])


# --- what the library does with every metric --------------------------------------------------


@every_metric
def test_an_empty_evaluation_is_an_error(metric, inputs):
    with pytest.raises(ValueError, match="empty evaluation is an error"):
        metric().compute(predictions=[], references=[])


@every_metric
def test_batches_and_single_examples_add_up(metric, inputs):
    predictions, references = inputs["predictions"], inputs["references"]
    filled = metric()
    filled.add_batch(predictions=predictions[:1], references=references[:1])
    filled.add(prediction=predictions[1], reference=references[1])
    assert len(filled) == 2
    expected = metric().compute(**inputs)
    assert filled.compute() == expected and expected["n"] == 2


@every_metric
def test_a_metric_starts_anew_after_a_result_and_after_a_refusal(metric, inputs):
    used = metric()
    expected = used.compute(**inputs)
    with pytest.raises(ValueError, match="empty evaluation"):
        used.compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="Mismatch in the number"):
        used.compute(predictions=inputs["predictions"], references=inputs["references"][:1])
    assert used.compute(**inputs) == expected


@every_metric
def test_a_metric_survives_pickling(metric, inputs):
    copied = pickle.loads(pickle.dumps(metric()))
    assert type(copied) is metric
    assert copied.compute(**inputs) == metric().compute(**inputs)


@every_metric
def test_results_can_be_written_as_json(metric, inputs):
    result = metric().compute(**inputs)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@every_metric
def test_no_file_is_written_unless_asked_for(metric, inputs, tmp_path):
    def files():
        return [path for path in tmp_path.rglob("*") if path.is_file()]

    in_memory = metric(cache_dir=str(tmp_path))
    in_memory.add_batch(**inputs)
    assert files() == []
    on_disk = metric(keep_in_memory=False, cache_dir=str(tmp_path))
    on_disk.add_batch(**inputs)
    assert files() != []
    assert on_disk.compute() == in_memory.compute()


@every_metric
def test_a_metric_says_what_it_is_and_what_its_options_are(metric, inputs):
    one = metric()
    assert one.description.endswith(".") and "(20" in one.citation
    assert "ValueError" in one.inputs_description and "ValueError" in one.compute.__doc__


@pytest.mark.parametrize("metric", [GSM8KAccuracy, Rouge])
@pytest.mark.parametrize("name", ["predictions", "references"])
def test_a_text_that_is_not_there_is_an_error(metric, name):
    inputs = {**ANSWERS, name: ["#### 18", None]}
    with pytest.raises(ValueError, match=rf"{name}\[1\] has None for a text"):
        metric().compute(**inputs)


@pytest.mark.parametrize("metric", [WinRate, LengthControlledWinRate])
def test_an_answer_that_is_not_there_is_an_error(metric):
    predictions = [JUDGED["predictions"][0], {"output": None, "preference": 1.0}]
    with pytest.raises(ValueError, match=r"predictions\[1\] has None for a text"):
        metric().compute(predictions=predictions, references=JUDGED["references"])


def test_two_metrics_are_combined_under_their_names():
    """Both return `n` and `level`: the library puts the names before keys that are there twice."""
    both = evaluate.combine({"gsm8k": GSM8KAccuracy(), "rouge": Rouge()})
    both.add_batch(**ANSWERS)
    result = both.compute()
    assert result == both.compute(**ANSWERS)
    assert (result["gsm8k_n"], result["rouge_n"]) == (2, 2)
    assert result["accuracy_strict"] == 0.5
    assert result["rouge1"] == Rouge().compute(**ANSWERS)["rouge1"]


@pytest.mark.launches
def test_the_library_loads_the_file_of_the_metrics_offline(tmp_path):
    """It takes the first metric of the file that is not abstract."""
    code = (
        "import evaluate\n"
        f"metric = evaluate.load({str(ROOT / 'eval' / 'metrics.py')!r})\n"
        "print(type(metric).__name__, metric.compute(predictions=['#### 18'], references=['18']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GSM8KAccuracy {'n': 1,")


def test_grading_and_scoring_import_neither_the_library_nor_datasets():
    loaded = imported_by("eval.graders.gsm8k", "eval.benchmarks.alpaca", "eval.graders.rouge")
    assert not {"evaluate", "datasets", "numpy"} & loaded
