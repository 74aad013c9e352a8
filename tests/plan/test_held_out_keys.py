"""Where `eval_strategy` may stand, and that it is no part of what a step is."""

import json

import pytest
from conftest import problems_of

from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan

HELD = {"source": "builtin:maths", "split": "train", "skip": 100, "limit": 5}
BOTH = {"train": "builtin:maths", "test": "builtin:maths"}
EPOCH = {"eval_strategy": "epoch"}


def with_held_out(recipe, held=HELD, **trainer):
    return {
        **recipe,
        "data": {**recipe["data"], "validation": held},
        "trainer": {**recipe["trainer"], **trainer},
    }


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"trainer": EPOCH}, "trainer.eval_strategy", "add data.validation"),
        ({"stages": {"a": {"method": "rac", "trainer": EPOCH}}}, "stages.a.trainer.eval_strategy",
         "add data.validation"),
        ({"stages": {"a": {"method": "dpo", "trainer": EPOCH}}}, "stages.a.trainer.eval_strategy",
         "trains on pairs, of which none are held out"),
        ({"stages": {"a": {"method": "spin"}}, "trainer": EPOCH}, "trainer.eval_strategy",
         "trains on pairs, of which none are held out"),
        ({"trainer": {"eval_strategy": "epochs"}}, "trainer.eval_strategy", "none of no, steps, epoch"),
        ({"trainer": {"eval_steps": 10}}, "trainer.eval_steps", "does nothing without eval_strategy"),
        ({"trainer": {**EPOCH, "eval_steps": 0}}, "trainer.eval_steps", "above 0"),
        ({"trainer": {"eval_strategy": False}}, "trainer.eval_strategy", 'write "no", in quotes'),
        ({"trainer": {"evaluation_strategy": "epoch"}}, "trainer.evaluation_strategy",
         "use eval_strategy"),
        ({"trainer": {"load_best_model_at_end": True}}, "trainer.load_best_model_at_end",
         "the last weights are kept"),
        ({"trainer": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, "trainer.lr_scheduler_type",
         "choose another"),
        ({"data": {**BOTH, "validation": "builtin:maths"}}, "data.validation.split",
         "no split 'validation'"),
        ({"data": {**BOTH, "validation": HELD}}, "data.validation", "row 101 of builtin:maths is in"),
        ({"data": {**BOTH, "validation": [HELD, "builtin:maths"]}}, "data.validation",
         "only data.train mixes"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_the_way_out(
    recipe_dict, write_recipe, change, key, message
):
    assert message in problems_of(write_recipe({**recipe_dict, **change}))[key]


def test_rows_of_one_file_must_be_apart(recipe_dict, write_recipe, tmp_path):
    """Its last 2 of 10 rows, beside the first 8, the first 9, all, and all of a mixture."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2\\n#### 2"}\n' * 10)

    def found(train):
        recipe = with_held_out(recipe_dict, {"source": str(file), "skip": 8}, **EPOCH)
        recipe["data"]["train"] = train
        return write_recipe(recipe)

    load_recipe(found({"source": str(file), "limit": 8}))
    load_recipe(found({"source": "builtin:maths"}))
    for train in ({"source": str(file), "limit": 9}, str(file), ["builtin:maths", str(file)]):
        assert "row 9 of" in problems_of(found(train))["data.validation"]


def test_what_is_measured_is_no_part_of_what_a_step_is(recipe_dict, write_recipe):
    """So finished steps are kept; and stages that train on pairs are told nothing."""
    recipe_dict["stages"]["spin"] = {"method": "spin", "from": "sft"}
    plain = make_plan(load_recipe(write_recipe(recipe_dict)))
    asked = with_held_out(recipe_dict, eval_strategy="steps", eval_steps=0.5, eval_on_start=True)
    plan = make_plan(load_recipe(write_recipe(asked)))
    assert [step.fingerprint for step in plan.steps] == [step.fingerprint for step in plain.steps]
    measured = [step.stage for step in plan.steps if "held_out" in step.runtime_options]
    assert measured == ["sft", "bash"]
    assert "eval_steps" not in json.dumps([step.identity for step in plan.steps])
    off = with_held_out(recipe_dict, **EPOCH)
    off["stages"] = {
        **off["stages"],
        "bash": {"method": "bash", "trainer": {"eval_strategy": "no"}},
    }
    plan = make_plan(load_recipe(write_recipe(off)))
    assert [step.stage for step in plan.steps if "held_out" in step.runtime_options] == ["sft"]
