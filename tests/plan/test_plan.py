import json

import pytest

from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run.scheduler import select_steps
from pipeline.steps.functions import function_of

STAGES = {
    "sft": {"method": "sft"},
    "bash": {"method": "bash", "from": "sft"},
    "sft-dpo": {"method": "dpo", "from": "sft"},
    "bash-dpo": {"method": "dpo", "from": "bash"},
}


@pytest.fixture
def plan_of(recipe_dict, write_recipe):
    def plan(change=None, overrides=()):
        return make_plan(load_recipe(write_recipe(recipe_dict | (change or {})), overrides))

    return plan


def kinds(plan, stage):
    return [step.kind for step in plan.steps if step.stage == stage and step.kind != "overlap"]


def first_trained(plan):
    return next(step for step in plan.steps if step.kind == "train")


def test_test_rows_are_looked_for_in_the_training_rows_once_and_first(plan_of):
    plan = plan_of(overrides=["seeds=[0, 1]"])
    assert [step.kind for step in plan.steps].count("overlap") == 1
    assert [plan.steps[0]] == plan.overlaps["gsm8k"]
    assert plan.steps[0] in select_steps(plan, ["sft"]), "--stage sft brings it too"
    assert plan_of(overrides=["data.preferences.limit=3"]).steps[0].fingerprint != (
        plan.steps[0].fingerprint
    )


def test_a_plan_has_one_fingerprint_that_names_and_order_of_stages_leave_alone(plan_of):
    plan = plan_of()
    stages = {"warm" if name == "sft-dpo" else name: stage for name, stage in STAGES.items()}
    renamed = plan_of({"stages": dict(sorted(stages.items(), key=lambda one: one[0] == "warm"))})
    assert renamed.fingerprint == plan.fingerprint and len(plan.fingerprint) == 64
    assert plan_of(overrides=["micro_batch_size=1"]).fingerprint == plan.fingerprint
    for changed in ("stages.bash.beta=0.3", "seeds=[0, 1]", "data.test.limit=3", "evaluate=[]"):
        assert plan_of(overrides=[changed]).fingerprint != plan.fingerprint


def test_stages_expand_to_steps_each_model_followed_by_its_evaluation(plan_of):
    plan = plan_of()
    assert kinds(plan, "sft") == ["train", "answers", "gsm8k"]
    assert kinds(plan, "bash") == ["contexts", "train", "answers", "gsm8k"]
    assert kinds(plan, "sft-dpo") == ["train", "answers", "gsm8k"]


def test_each_round_writes_contexts_with_the_model_of_the_round_before(plan_of):
    plan = plan_of(overrides=["stages.bash.rounds=2"])
    steps = [step for step in plan.steps if step.stage == "bash"]
    assert [step.kind for step in steps] == [
        "contexts",
        "train",
        "contexts",
        "train",
        "answers",
        "gsm8k",
    ]
    sft = first_trained(plan)
    assert steps[0].inputs["base"] is sft
    assert steps[2].inputs["base"] is steps[1]
    assert steps[3].inputs["base"] is steps[1]


def test_a_stage_two_others_start_from_is_trained_once(plan_of):
    plan = plan_of()
    trained = [
        step.inputs["base"] for step in plan.steps if step.kind == "train" and step.stage != "sft"
    ]
    sft = first_trained(plan)
    assert trained.count(sft) == 2  # bash and sft-dpo; bash-dpo starts from bash
    assert len({step.fingerprint for step in plan.steps}) == len(plan.steps)


def test_two_stages_with_the_same_options_are_one_step(recipe_dict, plan_of):
    recipe_dict["stages"] = {"a": {"method": "sft"}, "b": {"method": "sft"}}
    plan = plan_of()
    assert [step.kind for step in plan.steps] == ["overlap", "train", "answers", "gsm8k"]
    assert plan.results["a", "gsm8k", 0].fingerprint == plan.results["b", "gsm8k", 0].fingerprint
    assert select_steps(plan, ["b"]) == plan.steps[1:], "--stage b must run what it shares with a"


def test_several_stages_are_chosen_in_the_order_of_the_recipe(recipe_dict, plan_of):
    plan = plan_of()
    chosen = select_steps(plan, ["bash", "sft"])
    assert list(dict.fromkeys(step.stage for step in chosen)) == ["sft", "bash"]
    assert select_steps(plan, []) == plan.steps
    with pytest.raises(InputError, match="no stage 'bsh'; did you mean bash"):
        select_steps(plan, ["sft", "bsh"])


@pytest.mark.parametrize(
    "override",
    [
        "micro_batch_size=1",
        "name=other",
        "generation.batch_tokens=2",
        "trainer.logging_steps=7",
        "trainer.gradient_checkpointing=true",
        "trainer.save_steps=3",
        "launch=single_gpu",
        "published={sft: {gsm8k: 1.0}}",
    ],
)
def test_hardware_and_logging_do_not_change_identity(plan_of, override):
    before, after = plan_of(), plan_of(overrides=[override])
    assert [s.fingerprint for s in before.steps] == [s.fingerprint for s in after.steps]


@pytest.mark.parametrize(
    ("override", "unchanged"),
    [
        ("batch_size=2", []),
        ("trainer.learning_rate=0.1", []),
        ("system=Think.", []),
        ("dtype=bfloat16", []),
        ("lora={r: 4}", []),
        ("data.train.limit=5", []),
        ("stages.bash.beta=0.4", ["sft", "sft-dpo"]),
        ("stages.bash.lambda=0.5", ["sft", "sft-dpo"]),
        ("data.preferences.limit=3", ["sft", "bash"]),
        ("stages.sft-dpo.trainer.beta=0.5", ["sft", "bash", "bash-dpo"]),
    ],
)
def test_an_option_changes_the_steps_it_decides_and_no_others(plan_of, override, unchanged):
    before, after = plan_of(), plan_of(overrides=[override])
    for stage in before.recipe.stages:
        old, new = (
            [s.fingerprint for s in plan.steps if s.stage == stage and s.kind != "overlap"]
            for plan in (before, after)
        )
        assert (old == new) == (stage in unchanged), stage


def test_the_number_of_test_rows_changes_answers_only(plan_of):
    before, after = plan_of(), plan_of(overrides=["data.test.limit=3"])
    for old, new in zip(before.steps, after.steps, strict=True):
        assert (old.fingerprint == new.fingerprint) == (old.kind in ("train", "contexts"))


def test_a_data_file_is_known_by_its_content_not_its_name(plan_of, tmp_path):
    row = json.dumps({"question": "q", "answer": "#### 1"})
    for name, content in (("a", row), ("b", row), ("c", row.replace("1", "2"))):
        (tmp_path / f"{name}.jsonl").write_text(content + "\n")
    plans = {
        name: plan_of(overrides=[f"data.train.source={tmp_path}/{name}.jsonl"]) for name in "abc"
    }
    first = {name: plan.steps[0].fingerprint for name, plan in plans.items()}
    assert first["a"] == first["b"] != first["c"]


def test_seeds_have_steps_of_their_own(plan_of):
    plan = plan_of(overrides=["seeds=[0, 1]"])
    trained = [step for step in plan.steps if step.stage == "sft" and step.kind == "train"]
    assert [step.seed for step in trained] == [0, 1]


def test_an_adapter_is_merged_only_in_a_step_of_its_own(recipe_dict, plan_of):
    recipe_dict["lora"] = {"r": 4}
    plan = plan_of()
    assert not [step for step in plan.steps if step.kind == "merge"]
    bash = next(step for step in plan.steps if step.stage == "bash" and step.kind == "train")
    assert bash.inputs["adapter"].stage == "sft"
    recipe_dict["stages"]["sft-dpo"] |= {"lora": None, "merge_adapter": True}
    plan = plan_of()
    assert kinds(plan, "sft-dpo")[:2] == ["merge", "train"]


def test_rounds_merge_the_parents_adapter_once_not_their_own(recipe_dict, plan_of):
    recipe_dict["lora"] = {"r": 4}
    recipe_dict["stages"]["bash"] |= {"rounds": 2, "lora": {"r": 8}, "merge_adapter": True}
    recipe_dict["stages"].pop("bash-dpo")
    made = kinds(plan_of(), "bash")
    assert made.count("merge") == 1


def test_neftune_noise_scales_with_the_padded_batch_so_micro_batches_count(plan_of):
    neftune = ["stages.sft.trainer={neftune_noise_alpha: 5}"]
    before, after = plan_of(overrides=neftune), plan_of(overrides=[*neftune, "micro_batch_size=1"])
    assert first_trained(before).fingerprint != first_trained(after).fingerprint


def test_a_hub_source_is_loaded_at_the_commit_in_its_identity(plan_of, hub_cache):
    hub_cache("some/data", "e53f048856ff4f594e959d75785d2c2d37b678ee")
    step = first_trained(plan_of(overrides=["data.train.source=some/data"]))
    assert step.inputs["train"]["revision"] == "e53f048856ff4f594e959d75785d2c2d37b678ee"
    assert step.locations["train"]["revision"] == step.inputs["train"]["revision"]


def test_every_function_that_a_step_names_exists(plan_of):
    plan = plan_of({"data": {"train": "builtin:maths", "test": "builtin:maths", "preferences": "self"},
                    "lora": {"r": 2}}, ["stages.sft-dpo.merge_adapter=true"])  # fmt: skip
    named = {step.run for step in plan.steps}
    assert {step.kind for step in plan.steps} >= {"train", "contexts", "answers", "pairs", "merge"}
    for run in named:
        assert callable(function_of(run))


def test_a_folder_of_preferences_is_read_from_its_train_split_unless_named(plan_of, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.jsonl").write_text("{}")
    plan = plan_of(overrides=[f"data.preferences.source={tmp_path}/pairs"])
    dpo = next(step for step in plan.steps if step.stage == "sft-dpo")
    assert dpo.locations["preferences"]["split"] == "train"


def test_every_step_knows_the_time_out_of_the_group_that_its_first_one_makes(
    recipe_dict, write_recipe
):
    """It is no part of an identity."""
    recipe_dict["stages"] = {"base": {"method": "base"}, **recipe_dict["stages"]}
    plain = make_plan(load_recipe(write_recipe(recipe_dict)))
    recipe_dict["trainer"]["ddp_timeout"] = 7200
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    given = {
        step.runtime_options["trainer"]["ddp_timeout"]
        for step in plan.steps
        if step.kind != "overlap"
    }
    assert given == {7200}
    assert [step.fingerprint for step in plan.steps] == [step.fingerprint for step in plain.steps]


def test_a_launch_of_the_command_line_must_share_the_batches_too(recipe_dict, write_recipe, capsys):
    """Eight processes and batches of 4 ended in a traceback of `--estimate`, and of the first step."""
    from pipeline.cli.main import main

    path = write_recipe(recipe_dict)
    for command in ("plan", "run"):
        assert main([command, str(path), "--launch=ddp", "--runs", str(path.parent / "runs")]) == 2
        said = capsys.readouterr()
        assert "batch_size  4 is not a multiple of the 8 processes of ddp" in said.err
        assert not said.out
    assert not (path.parent / "runs").exists()
    swept = ["--set=sweep.batch_size=[8, 4]", "--launch=ddp"]
    assert main(["plan", str(path), *swept]) == 2
    assert capsys.readouterr().err.count("is not a multiple") == 1


def test_a_batch_that_nothing_is_trained_with_is_no_problem(recipe_dict, write_recipe):
    """A recipe that only evaluates, and one whose stages all have batches of their own."""
    recipe_dict |= {"launch": "ddp", "batch_size": 4, "stages": {"base": {"method": "base"}}}
    del recipe_dict["data"]["train"], recipe_dict["data"]["preferences"]
    load_recipe(write_recipe(recipe_dict))
    recipe_dict["data"]["train"] = {"source": "builtin:maths"}
    recipe_dict["stages"] = {"sft": {"method": "sft", "batch_size": 8}}
    load_recipe(write_recipe(recipe_dict))
