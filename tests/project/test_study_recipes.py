"""The study's recipes: every arm gets the same, nothing is chosen on test rows, and all run."""

import json

import pytest

from pipeline.data.builtin.rows import builtin_rows
from pipeline.plan.load import load_recipe, variants_of
from pipeline.plan.plan import make_plan
from pipeline.recipe.registry import trainer_of
from pipeline.steps import artifact

STUDIES = ["study-chat", "study-maths", "study-posts"]
ARMS = {
    "sft": ("sft", None),
    "sft-more": ("sft", "sft"),
    "neftune": ("sft", "sft"),
    "bash": ("bash", "sft"),
    "rac": ("rac", "sft"),
    "spin": ("spin", "sft"),
    "sft-dpo": ("dpo", "sft"),
    "sft-more-dpo": ("dpo", "sft-more"),
    "bash-dpo": ("dpo", "bash"),
    "rac-dpo": ("dpo", "rac"),
}
TUNED = ["sft-more", "neftune", "bash", "rac", "spin", "sft-dpo"]


@pytest.fixture
def changes(tiny_model, tmp_path):
    """What makes a study small: a tiny model, two steps, few rows; posts as files."""
    for split in ("train", "test"):
        rows = builtin_rows("posts", split, limit=6)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)

    def small(name):
        sizes = {
            "data.train.limit": 6, "data.test.limit": 4, "model": tiny_model, "seeds": "[0]",
            "batch_size": 2, "micro_batch_size": 1, "lora.r": 2, "trainer.bf16": "false",
            "generation.max_new_tokens": 8, "generation.dtype": "float32",
        }  # fmt: skip
        sizes |= {f"stages.{arm}.trainer.max_steps": 2 for arm in ARMS}
        if name == "study-posts":
            files = {
                f"data.{split}.source": tmp_path / f"{split}.jsonl" for split in ("train", "test")
            }
            return [f"{key}={value}" for key, value in {**sizes, **files}.items()]
        return [f"{key}={value}" for key, value in {**sizes, "data.preferences.limit": 4}.items()]

    return small


def files_of(name, changes):
    return [one for one in changes(name) if name == "study-posts" and ".source=" in one]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_from_sft_trains_on_as_many_rows_as_the_control(name, changes):
    recipe = load_recipe(name, files_of(name, changes))
    assert {arm: (one.method, one.start) for arm, one in recipe.stages.items()} == ARMS
    assert recipe.baseline == "sft-more"
    rows = {}
    for arm, stage in recipe.stages.items():
        rows_a_step = recipe.batch_size_for(stage)
        if trainer_of(stage.method) == "trl.DPOConfig":
            rows_a_step *= 2  # a pair is two
        rows[arm] = recipe.trainer_for(stage)["max_steps"] * rows_a_step
    assert {count for arm, count in rows.items() if arm != "sft"} == {512}
    assert recipe.data.train.limit == 256, "BASH and RAC read every reference and own row once"


@pytest.mark.parametrize("arm", TUNED)
def test_every_arm_of_the_maths_study_is_tried_at_as_many_settings(arm):
    recipe = load_recipe("study-maths", variant=f"tune-{arm}")
    assert len(recipe.points) == 8
    assert all(key.startswith(f"stages.{arm}.") for key in recipe.sweep)


@pytest.mark.parametrize("variant", variants_of("study-maths")[1:])
def test_settings_are_chosen_on_rows_that_are_neither_trained_on_nor_tested(variant):
    recipe = load_recipe("study-maths", variant=variant)
    final = load_recipe("study-maths").data
    validation = recipe.data.test
    assert validation.split_for("test") == "train" != final.test.split_for("test")
    assert validation.skip >= final.train.limit and recipe.data.train == final.train


def run(name, arms, changes, tmp_path):
    from pipeline.run.worker import execute
    from pipeline.steps.context import StepContext, write_spec

    plan, runs = make_plan(load_recipe(name, changes(name))), tmp_path / "runs"
    for step in [step for arm in arms for step in plan.stage_steps[arm, 0]]:
        if not artifact.is_finished(step.directory(runs)):
            execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
    for arm in arms:
        record = artifact.read_record(plan.models[arm, 0].adapter.directory(runs))
        assert record["metrics"]["optimizer_steps"] == 2


@pytest.mark.parametrize("name", STUDIES)
def test_sft_and_bash_of_a_study_run_two_steps(name, changes, tmp_path):
    run(name, ("sft", "bash"), changes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study-chat", "study-maths"])
def test_all_arms_of_a_study_run_two_steps(name, changes, tmp_path):
    run(name, ARMS, changes, tmp_path)
