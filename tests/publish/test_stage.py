"""Stages as people name them."""

import pytest

from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.publish.stage import find_stage
from pipeline.steps import artifact


@pytest.fixture
def recipe_file(recipe_dict, write_recipe):
    return write_recipe({**recipe_dict, "seeds": [0, 3]})


def _finish(step, runs):
    (step.directory(runs) / "model").mkdir(parents=True)
    files = artifact.written_files(step.directory(runs))
    artifact.write_record(step.directory(runs), {"kind": step.kind, "metrics": {}, "files": files})


def test_a_stage_is_found_by_recipe_stage_and_seed(recipe_file, tmp_path):
    plan = make_plan(load_recipe(recipe_file))
    _finish(plan.models["sft", 3].base, tmp_path)
    found = find_stage(f"{recipe_file}:sft", tmp_path, seed=3)
    assert found.folder == plan.models["sft", 3].base.directory(tmp_path)
    assert found.base == str(found.folder) and found.name == "sft" and found.seed == 3


def test_an_adapter_stands_on_the_recipes_model(recipe_file, tmp_path):
    lora = ["lora={r: 2, target_modules: all-linear}"]
    plan = make_plan(load_recipe(recipe_file, lora))
    _finish(plan.models["sft", 0].adapter, tmp_path)
    found = find_stage(f"{recipe_file}:sft", tmp_path, overrides=lora)
    assert found.base == plan.recipe.model
    assert found.folder == plan.models["sft", 0].adapter.directory(tmp_path)


def test_a_stage_of_a_variant_is_found_by_it(recipe_dict, write_recipe, tmp_path):
    variants = {"small": {"batch_size": 2}, "large": {"batch_size": 8}}
    path = write_recipe({**recipe_dict, "variants": variants})
    _finish(make_plan(load_recipe(path, variant="large")).models["sft", 0].base, tmp_path)
    assert find_stage(f"{path}:sft", tmp_path, variant="large").plan.recipe.name == "tiny-large"
    with pytest.raises(InputError, match=r"recipe\.yaml --runs \S+` makes it"):
        find_stage(f"{path}:sft", tmp_path)
    with pytest.raises(
        InputError, match=r"recipe\.yaml --variant small --set batch_size=4 --runs \S+`"
    ):
        find_stage(f"{path}:sft", tmp_path, overrides=["batch_size=4"], variant="small")


@pytest.mark.parametrize(
    ("stage", "seed", "said"),
    [
        ("stf", None, "did you mean sft"),
        ("sft", 7, "no seed 7; seeds: 0, 3"),
        ("sft", None, "not finished"),
    ],
)
def test_a_stage_that_is_not_there_is_a_sentence(recipe_file, tmp_path, stage, seed, said):
    with pytest.raises(InputError, match=said):
        find_stage(f"{recipe_file}:{stage}", tmp_path, seed=seed)


@pytest.mark.parametrize("named", ["sft", ":sft"])
def test_a_stage_is_named_with_its_recipe(named, tmp_path):
    with pytest.raises(InputError, match="RECIPE:STAGE"):
        find_stage(named, tmp_path)
