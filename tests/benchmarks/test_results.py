"""What a benchmark stores: values, intervals, and one score an example."""

from types import SimpleNamespace

import pytest

from eval.benchmarks.results import store
from eval.stats.intervals import wilson_interval
from eval.stats.measures import measure, replicated
from eval.stats.seeds import mean_over_seeds
from eval.stats.types import Interval
from pipeline.steps import artifact


class Step:
    """The two things of a running step that storing a result looks at."""

    def __init__(self, directory):
        self.directory = directory
        self.spec = SimpleNamespace(kind="gsm8k")


def test_right_and_wrong_have_wilsons_interval_in_percent():
    found = measure([True, False, True, True])
    interval = wilson_interval(3, 4)
    assert (found["value"], found["n"], found["unit"]) == (75.0, 4, "%")
    assert (found["low"], found["high"]) == (100 * interval.low, 100 * interval.high)
    assert found["scores"] == [True, False, True, True]


def test_other_scores_have_the_interval_of_a_t_test():
    found = measure([0.25, 0.5, 1.0])
    interval = mean_over_seeds([[0.25, 0.5, 1.0]], shares=True)
    assert found["value"] == pytest.approx(175 / 3)
    assert (found["low"], found["high"]) == (100 * interval.low, 100 * interval.high)


def test_verdicts_are_kept_as_such_and_stay_within_0_and_100():
    found = measure([0.001] * 20, verdicts=True)
    assert found["verdicts"] is True and found["low"] == 0 and 15 < found["high"] < 25


def test_an_example_without_a_score_keeps_its_place_and_counts_nowhere():
    found = measure([1, None, 0, None])
    assert (found["value"], found["n"], found["scores"]) == (50.0, 2, [1, None, 0, None])


def test_another_unit_is_not_scaled():
    assert measure([10.0, 30.0], unit="characters")["value"] == 20.0


@pytest.mark.parametrize("scores", [[], [None, None]])
def test_no_score_at_all_is_an_error_and_not_0(scores):
    with pytest.raises(ValueError, match=r"not 0\.0"):
        measure(scores)


def test_a_number_that_is_no_mean_keeps_its_resamples():
    found = replicated(20.0, Interval(18.0, 22.0), 5, [18.0, 22.0])
    assert (found["low"], found["value"], found["high"]) == (18.0, 20.0, 22.0)
    assert found["replicates"] == [18.0, 22.0] and "scores" not in found


def test_the_first_measure_is_the_one_stages_are_compared_by(tmp_path):
    grades = [{"id": 3, "verdict": "right"}, {"id": 5, "verdict": "wrong"}]
    measures = {"strict": measure([1, 0]), "cut off": measure([0, 0])}
    store(Step(tmp_path), grades=grades, measures=measures, counts={"right": 1, "wrong": 1})
    result = artifact.read_json(tmp_path / artifact.RESULT)
    assert (result["benchmark"], result["primary"], result["n"]) == ("gsm8k", "strict", 2)
    assert result["ids"] == [3, 5]
    assert artifact.read_rows(tmp_path / "grades.jsonl") == grades


def test_outcomes_that_do_not_add_up_are_an_error_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="do not add up to 2 examples"):
        store(
            Step(tmp_path),
            grades=[{"id": 0}, {"id": 1}],
            measures={"strict": measure([1, 0])},
            counts={"right": 1},
        )
    assert not list(tmp_path.iterdir())
