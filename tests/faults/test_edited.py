"""A recipe that is edited after it has run: what runs again, why, and what becomes of the rest."""

import json
import os
import shutil

import pytest
from conftest import digests

from eval.report.collect import collect
from eval.report.data import json_text
from eval.report.markdown import markdown
from pipeline.errors import InputError
from pipeline.plan import changes
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.shipped import read_launch
from pipeline.run.plan_text import explain
from pipeline.run.worker import execute
from pipeline.steps import artifact, identity
from pipeline.steps.context import StepContext, write_spec

OVERLAP = {"sft: overlap with gsm8k"}
EVALUATION = ("answers for gsm8k", "grade gsm8k")
STEPS = {
    "sft": ("train", *EVALUATION),
    "bash": ("contexts", "train", *EVALUATION),
    "sft-dpo": ("train", *EVALUATION),
    "bash-dpo": ("train", *EVALUATION),
}
EVALUATIONS = {f"{stage}: {title}" for stage in STEPS for title in EVALUATION}


def of(*stages):
    """The names of all steps of stages."""
    return {f"{stage}: {title}" for stage in stages for title in STEPS[stage]}


def write_rows(path, count, offset=0):
    made = [{"question": f"What is {i} + {offset}?", "answer": f"It is.\n#### {i + offset}"}
            for i in range(count)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture
def files(tmp_path, tiny_model, recipe_dict):
    """The recipe with its model and rows in this test's folder, where they can be edited."""
    write_rows(tmp_path / "train.jsonl", 6)
    write_rows(tmp_path / "test.jsonl", 4, offset=20)
    shutil.copytree(tiny_model, tmp_path / "model")
    recipe_dict["model"] = str(tmp_path / "model")
    recipe_dict["data"] |= {
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.jsonl"),
    }
    return tmp_path


@pytest.fixture
def plan_now(recipe_dict, write_recipe):
    """The plan that a command which starts now would make."""

    def plan():
        identity.forget()
        return make_plan(load_recipe(write_recipe(recipe_dict)))

    return plan


def states(plan, runs):
    """'stage: title' (', seed N' but for seed 0) -> state, as `bashrac plan` says it."""
    lines = explain(plan, runs, read_launch("cpu"), commands=True).splitlines()
    listed = [line.split(None, 1)[1].split(" - ", 1) for line in lines if " - " in line]
    names = [
        f"{step.stage}: {step.title}" + (f", seed {step.seed}" if step.seed else "")
        for step in plan.steps
    ]
    return dict(zip(names, (state for _, state in listed), strict=True))


def edit_train_file(folder, recipe):
    write_rows(folder / "train.jsonl", 6, offset=1)


def touch_train_file(folder, recipe):
    os.utime(folder / "train.jsonl", ns=(10**18, 10**18))
    (folder / "train.jsonl").rename(folder / "kept.jsonl")
    shutil.copy(folder / "kept.jsonl", folder / "train.jsonl")


def move_train_file(folder, recipe):
    (folder / "train.jsonl").rename(folder / "moved.jsonl")
    recipe["data"]["train"] = str(folder / "moved.jsonl")


def edit_test_file(folder, recipe):
    write_rows(folder / "test.jsonl", 4, offset=30)


def edit_model_file(folder, recipe):
    config = json.loads((folder / "model" / "generation_config.json").read_text())
    config["temperature"] = 0.9
    (folder / "model" / "generation_config.json").write_text(json.dumps(config))


def use_builtin_rows(folder, recipe):
    recipe["data"]["train"] = {"source": "builtin:maths", "limit": 6}


def add_stage(folder, recipe):
    recipe["stages"]["rac"] = {"method": "rac", "from": "sft"}


def rename_stage(folder, recipe):
    recipe["stages"] = {
        "dpo" if name == "sft-dpo" else name: stage for name, stage in recipe["stages"].items()
    }


def start_elsewhere(folder, recipe):
    recipe["stages"]["sft-dpo"]["from"] = "bash"
    del recipe["stages"]["bash-dpo"]


def option(*keys, value):
    def edit(folder, recipe):
        for key in keys[:-1]:
            recipe = recipe.setdefault(key, {})
        recipe[keys[-1]] = value

    return edit


MADE_AGAIN = "will be made again"
# What is edited -> the steps that run again, and of some of them why, all written out by hand.
EDITS = {
    "a stage's option": (
        option("stages", "bash", "beta", value=0.4), of("bash", "bash-dpo"),
        {"bash: contexts": "beta 0.2 -> 0.4",
         "bash: train": f"its input rows (bash: contexts) {MADE_AGAIN}",
         "bash: answers for gsm8k": f"its input base (bash: train) {MADE_AGAIN}",
         "bash-dpo: train": f"its input base (bash: train) {MADE_AGAIN}",
         "bash-dpo: grade gsm8k": f"its input answers (bash-dpo: answers for gsm8k) {MADE_AGAIN}"},
    ),
    "a trainer option": (
        option("trainer", "learning_rate", value=0.01), of(*STEPS),
        {"sft: train": "trainer.learning_rate 0.001 -> 0.01",
         "bash: contexts": f"its input base (sft: train) {MADE_AGAIN}",
         "sft-dpo: train": "trainer.learning_rate 0.001 -> 0.01; "
                           f"its input base (sft: train) {MADE_AGAIN}"},
    ),
    "one stage's trainer option": (
        option("stages", "sft-dpo", "trainer", "beta", value=0.5), of("sft-dpo"),
        {"sft-dpo: train": "trainer.beta not set -> 0.5"},
    ),
    "a generation option": (
        option("generation", "max_new_tokens", value=4), EVALUATIONS,
        {"sft: answers for gsm8k": "max_new_tokens 8 -> 4"},
    ),
    "the system prompt": (
        option("system", value="Think."), of(*STEPS),
        {"sft: train": "system not set -> Think."},
    ),
    "how often to log": (option("trainer", "logging_steps", value=7), set(), {}),
    "the micro batch": (option("micro_batch_size", value=1), set(), {}),
    "tokens at once": (option("generation", "batch_tokens", value=64), set(), {}),
    "the training file's content": (
        edit_train_file, OVERLAP | of(*STEPS),
        {"sft: train": "its input train is different: the file's content"},
    ),
    "a training file that is only touched": (touch_train_file, set(), {}),
    "a training file that only moved": (move_train_file, set(), {}),
    "the test file's content": (
        edit_test_file, OVERLAP | EVALUATIONS,
        {"bash: answers for gsm8k": "its input test is different: the file's content"},
    ),
    "another kind of source": (
        use_builtin_rows, OVERLAP | of(*STEPS),
        {"sft: train": "its input train is builtin:maths, no longer a local file"},
    ),
    "fewer preferences": (
        option("data", "preferences", "limit", value=3),
        OVERLAP | of("sft-dpo", "bash-dpo"),  # test rows are looked for in all that is trained on
        {"sft-dpo: train": "its input preferences is different: limit 4 -> 3"},
    ),
    "a file of the model": (
        edit_model_file, of(*STEPS),
        {"sft: train": "its input base is different: the content of generation_config.json"},
    ),
    "where a stage starts": (
        start_elsewhere, set(), {},  # the two swap names, and names decide no result
    ),
    "a stage renamed": (rename_stage, set(), {}),
}  # fmt: skip


@pytest.fixture
def finished(files, recipe_dict, plan_now):
    """A recipe that has run, as far as a plan can see; returns its runs folder."""
    runs, plan = files / "runs", plan_now()
    for step in plan.steps:
        folder = write_spec(step, runs, processes=1, use_cpu=True).parent
        artifact.write_json(folder / "record.json", {})
    changes.remember(plan, runs)
    assert set(states(plan, runs)) == OVERLAP | of(*STEPS)
    assert set(states(plan, runs).values()) == {"done"}
    return runs


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_makes_its_own_steps_run_again_and_says_why(
    what, files, finished, recipe_dict, plan_now, injected
):
    edit, again, reasons = EDITS[what]
    before = digests(finished)
    edit(files, recipe_dict)
    plan = plan_now()
    now = states(plan, finished)
    assert {name for name, state in now.items() if state != "done"} == again
    for name, reason in reasons.items():
        assert now[name] == f"to run: changed since the last run: {reason}"
    assert digests(finished) == before, "asking changes nothing"
    injected("a recipe edited", what, times=1,
             outcome="just the steps expected by hand are planned again, with the reason in words")  # fmt: skip


@pytest.mark.parametrize("what", ["a seed", "a stage"])
def test_what_is_added_is_new_and_the_rest_is_done(what, files, finished, recipe_dict, plan_now):
    if what == "a seed":
        recipe_dict["seeds"] = [0, 1]
        new = {f"{name}, seed 1" for name in of(*STEPS)}
    else:
        add_stage(files, recipe_dict)
        new = {f"rac: {title}" for title in ("own answers", "corrections", "train", *EVALUATION)}
    now = states(plan_now(), finished)
    assert {name for name, state in now.items() if state != "done"} == new
    assert {now[name] for name in new} == {"to run: new"}


def test_an_edit_that_is_taken_back_has_nothing_to_run(files, finished, recipe_dict, plan_now):
    recipe_dict["batch_size"] = 2
    edited = plan_now()
    assert "batch_size 4 -> 2" in states(edited, finished)["sft: train"]
    changes.remember(edited, finished)
    recipe_dict["batch_size"] = 4
    assert set(states(plan_now(), finished).values()) == {"done"}


def test_an_input_that_another_recipe_has_made_by_now_has_changed(files, finished, recipe_dict,
                                                                  plan_now):  # fmt: skip
    recipe_dict["batch_size"] = 2
    plan = plan_now()
    (sft,) = (step for step in plan.steps if (step.stage, step.kind) == ("sft", "train"))
    artifact.write_json(sft.directory(finished) / "record.json", {})
    now = states(plan, finished)
    assert now["sft: train"] == "done"
    assert now["sft: answers for gsm8k"].endswith("its input base (sft: train) has changed")


def test_a_damaged_memory_of_the_last_run_is_a_sentence(files, finished, write_recipe, recipe_dict,
                                                        bashrac):  # fmt: skip
    (finished / "tiny" / "plan.json").write_text('{"sft/train/seed 0": 5}')
    done = bashrac("plan", write_recipe(recipe_dict))
    assert done.returncode == 2
    assert "tiny/plan.json cannot be read" in done.stderr and "run that recipe" in done.stderr


def test_a_judge_that_changes_during_a_run_gives_no_verdicts(files, recipe_dict, write_recipe,
                                                            injected):  # fmt: skip
    """Its verdicts would stand under the fingerprint of the judge that the plan has seen."""
    shutil.copytree(files / "model", files / "judge")
    recipe_dict |= {
        "task": "tldr",
        "data": {"test": {"source": "builtin:posts", "limit": 2}},
        "stages": {"base": {"method": "base"}},
        "evaluate": ["tldr"],
        "judge": f"local:{files / 'judge'}",
    }
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    answers, judging = (
        StepContext.read(write_spec(step, files / "runs", processes=1, use_cpu=True))
        for step in plan.steps
    )
    execute(answers)
    (files / "judge" / "README.md").write_text("Trained further.")
    with pytest.raises(InputError, match=r"the judge .*/judge has changed since this run began"):
        execute(judging)
    assert not list((files / "runs").glob("judge/*"))
    injected("a judge edited", "between the plan and its verdicts", times=1,
             outcome="a sentence, no verdict")  # fmt: skip


def numbers(report):
    """Every number of a report's rows and costs, by stage."""
    found = json.loads(json_text(report))
    rows = {row["stage"]: (row["measures"], row["counts"], row["n"]) for row in found["rows"]}
    return rows, {cost["stage"]: cost["seconds"] for cost in found["costs"]}


def test_a_report_holds_its_own_fingerprints_only_while_an_edited_recipe_runs(
    files, recipe_dict, write_recipe, run_steps_here, bashrac, injected
):
    """BASH's rate is edited: SFT is shared, BASH is not finished until its own steps are."""
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
    }
    recipe_dict["trainer"]["max_steps"] = 1
    old_file = write_recipe(recipe_dict, "old.yaml")
    old_plan, runs = run_steps_here(old_file)
    printed = bashrac("report", old_file).stdout
    old, old_costs = numbers(collect(old_plan, runs))
    before = digests(runs)

    recipe_dict["stages"]["bash"]["beta"] = 0.9
    new_file = write_recipe(recipe_dict, "new.yaml")
    plan = make_plan(load_recipe(new_file))
    for until in ("nothing", "contexts", "train", "answers"):
        if until != "nothing":
            run_steps_here(new_file, until=lambda s, k=until: s.stage == "bash" and s.kind == k)
        report = collect(plan, runs)
        rows, costs = numbers(report)
        assert rows["sft"] == old["sft"] and costs["sft"] == old_costs["sft"]
        assert rows["bash"] == ({}, {}, None)
        assert "| bash  | not finished" in markdown(report)
        assert (costs["bash"] is None) == (until in ("nothing", "contexts"))
        mixed = [one.figures for one in report.rounds]
        assert len(mixed) == (until != "nothing"), "contexts of the old rate are not this recipe's"
    run_steps_here(new_file)
    assert numbers(collect(plan, runs))[0]["bash"][2] == 4

    made = {step.directory(runs).name for step in plan.steps if step.stage == "bash"}
    assert len(made) == 4
    after = digests(runs)
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[1] for path in after.keys() - before.keys()} == made
    assert bashrac("report", old_file).stdout == printed
    injected("a recipe edited", "its steps run one by one, a report after each", times=5,
             outcome="only its own results in each; earlier folders and report as before")  # fmt: skip
