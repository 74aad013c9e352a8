"""SPIN as a stage: rounds, pairs, and exactly one end-of-turn token."""

import json
import math

import pytest
from conftest import problems_of
from helpers import model_that_ends_turns

from pipeline.data.render import renderer_for
from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.pairs import read_pairs
from pipeline.rows.stored import PAIRS
from pipeline.stages import spin
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec


@pytest.fixture
def recipe(recipe_dict):
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "spin": {
            "method": "spin",
            "from": "sft",
            "rounds": 3,
            "learning_rate": [0.02, 0.01, 0.005],
            "beta": [0.1, 0.2, 5.0],
            "trainer": {"lr_scheduler_type": "constant", "logging_steps": 1},
        },
    }
    recipe_dict["evaluate"] = []
    return recipe_dict


def losses_of(step, runs):
    history = json.loads((step.directory(runs) / "history.json").read_text())
    return [entry for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"]
)
def test_every_round_refers_to_the_iterate_before_and_has_its_own_rates(
    recipe, write_recipe, run_steps_here, lora
):
    """The learning rates move the weights, so any other reference would not give ln 2."""
    recipe["lora"] = lora
    plan, runs = run_steps_here(write_recipe(recipe))
    steps = [step for step in plan.steps if step.stage == "spin"]
    assert [step.kind for step in steps] == ["answers", "pairs", "train"] * 3
    trained = [step for step in steps if step.kind == "train"]
    for step, rate, beta in zip(trained, [0.02, 0.01, 0.005], [0.1, 0.2, 5.0], strict=True):
        losses = losses_of(step, runs)
        assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(losses[1]["loss"] - math.log(2)) > 1e-4, "the weights have not moved"
        assert losses[0]["learning_rate"] == rate
        assert step.options["trainer"]["beta"] == beta
    weights = "base" if lora is None else "adapter"
    assert [step.inputs[weights] for step in trained[1:]] == trained[:2]


def test_from_the_second_round_on_the_round_before_is_among_the_pairs(
    recipe, write_recipe, run_steps_here
):
    plan, runs = run_steps_here(write_recipe(recipe))
    steps = [step for step in plan.steps if step.stage == "spin"]
    answers = [
        [row["ids"] for row in artifact.read_rows(step.directory(runs) / artifact.SAMPLES)]
        for step in steps if step.kind == "answers"
    ]  # fmt: skip
    pairs = [
        [row["rejected_ids"] for row in artifact.read_rows(step.directory(runs) / PAIRS)]
        for step in steps if step.kind == "pairs"
    ]  # fmt: skip
    assert pairs == [answers[0], answers[1] + answers[0], answers[2] + answers[1]]
    assert answers[0] != answers[1] != answers[2]


def test_either_side_ends_its_turn_once_and_a_cut_negative_never(
    recipe, write_recipe, run_steps_here, tiny_model, tmp_path
):
    """The prompts of the pairs are also those that the answers were generated from."""
    recipe["model"] = model_that_ends_turns(tiny_model, tmp_path / "ends")
    recipe["data"]["train"]["limit"] = 24
    recipe["stages"] = {"spin": {"method": "spin"}}
    plan, runs = run_steps_here(write_recipe(recipe))
    step = StepContext.read(write_spec(plan.steps[-1], runs, processes=1, use_cpu=True))
    renderer = renderer_for(step)
    answers = artifact.read_rows(plan.steps[0].directory(runs) / artifact.SAMPLES)
    pairs = read_pairs(step, renderer)
    assert len(pairs) == len(answers) == 24
    ended = 0
    for own, (chosen, rejected) in zip(answers, pairs, strict=True):
        assert chosen.prompt == rejected.prompt
        assert chosen.labels.count(2) == 1 and chosen.labels[-1] == 2
        assert rejected.input_ids == [*rejected.prompt, *own["ids"]]
        assert rejected.labels.count(2) == own["finished"] == (rejected.labels[-1] == 2)
        ended += own["finished"]
    assert 0 < ended < 24, "the test needs both kinds"


def test_an_answer_that_is_the_reference_makes_no_pair():
    row = {
        "id": 0,
        "messages": [],
        "reference": "2",
        "answer": "2",
        "ids": [5, 2],
        "finished": True,
    }
    assert spin.pair_against_reference(row) is None
    assert spin.pair_against_reference(row | {"finished": False})["rejected_finished"] is False
    assert spin.pair_against_reference(row | {"answer": "3"})["chosen"] == "2"


def test_a_model_that_says_every_reference_has_nothing_to_reject(
    recipe, write_recipe, run_steps_here, tmp_path
):
    plan, runs = run_steps_here(write_recipe(recipe), until=lambda step: step.kind == "answers")
    answers, pairs = [step for step in plan.steps if step.stage == "spin"][:2]
    path = answers.directory(runs) / artifact.SAMPLES
    rows = [
        row | {"answer": row["reference"], "finished": True} for row in artifact.read_rows(path)
    ]
    artifact.write_rows(path, rows)
    step = StepContext.read(write_spec(pairs, runs, processes=1, use_cpu=True))
    with pytest.raises(InputError, match="all 6 own answers equal their reference"):
        spin.write_pairs(step)


def test_prompts_limits_a_round(recipe, write_recipe):
    recipe["stages"]["spin"]["prompts"] = 2
    steps = make_plan(load_recipe(write_recipe(recipe))).steps
    assert [s.locations["train"]["limit"] for s in steps if s.kind == "answers"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"beta": [0.1]}, "beta", "has 1 values for 3 rounds"),
        ({"learning_rate": [0.1, 0.1, -1.0]}, "learning_rate.2", "greater than 0"),
        ({"trainer": {"beta": 0.1}}, "trainer.beta", "also given in stages.spin.beta"),
        ({"trainer": {"loss_type": ["ipo"]}}, "trainer.loss_type", "SPIN's loss is [sigmoid]"),
        ({"rounds": 0}, "rounds", "greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_named(recipe, write_recipe, options, key, message):
    recipe["stages"]["spin"] |= options
    assert message in problems_of(write_recipe(recipe))[f"stages.spin.{key}"]
