"""An adapter merged into the weights that rows are written with, and nowhere else."""

import pytest
from conftest import problems_of

from pipeline.models import load
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact

ON = ("generation.merge_for_reading=true",)
WRITING = {"answers", "contexts", "corrections", "gap-contexts", "gap-losses"}


@pytest.fixture
def adapted(recipe_dict):
    """A stage that trains an adapter, and answers of it."""
    recipe_dict |= {"lora": {"r": 4, "target_modules": "all-linear"}, "precision": "float32"}
    return recipe_dict | {"stages": {"sft": {"method": "sft"}}, "evaluate": ["gsm8k"]}


def test_only_steps_that_write_with_a_model_know_of_it_and_only_where_it_is_on(
    adapted, write_recipe
):
    adapted["stages"] |= {name: {"method": name, "from": "sft"} for name in ("bash", "rac")}
    path = write_recipe(adapted | {"evaluate": ["gsm8k", "gap"]})
    known = {
        step.kind for step in make_plan(load_recipe(path, ON)).steps
        if step.options.get("merge_for_reading")
    }  # fmt: skip
    assert known == WRITING
    plain = make_plan(load_recipe(path)).steps
    assert not any("merge_for_reading" in step.options for step in plain)


def test_answers_are_the_same_in_float32_and_nothing_more_is_saved(
    adapted, write_recipe, run_steps_here, monkeypatch
):
    path, loaded, load_to_read = write_recipe(adapted), [], load.load_to_read
    for module in ("pipeline.models.load", "pipeline.rows.answers"):
        monkeypatch.setattr(
            f"{module}.load_to_read",
            lambda step: loaded.append(load_to_read(step)) or loaded[-1],
        )
    written = []
    for overrides in ((), ON):
        plan, runs = run_steps_here(path, *overrides, until=lambda step: step.kind == "answers")
        step = next(step for step in plan.steps if step.kind == "answers")
        folder = step.directory(runs)
        rows = artifact.read_rows(folder / artifact.SAMPLES)
        written.append(({file.name for file in folder.iterdir()}, rows))
    assert written[0] == written[1]
    adapters = [any("lora" in name for name, _ in model.named_modules()) for model in loaded]
    assert adapters == [True, False]


def test_vllm_reads_adapters_in_its_own_way(adapted, write_recipe):
    problems = problems_of(write_recipe(adapted), *ON, "generation.engine=vllm")
    assert "in its own way" in problems["generation.merge_for_reading"]
