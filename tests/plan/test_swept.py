"""One file, several points: what they share, what they are called, and what cannot be swept."""

import json
import re
import shlex
import shutil

import pytest
from conftest import ROOT, problems_of

from eval.report.collect import collect
from pipeline.errors import InputError, RecipeError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.plan.swept import format_value, label_of
from pipeline.publish.portable import portable_recipe
from pipeline.publish.stage import find_stage
from pipeline.run.clean import find as leftovers
from pipeline.run.scheduler import select_steps

BETA = "stages.bash.beta"
LABELS = ["bash@beta=0.1", "bash@beta=0.8"]


@pytest.fixture
def swept(recipe_dict, write_recipe):
    """Write the recipe with a sweep; returns its path."""

    def write(sweep, **change):
        return write_recipe({**recipe_dict, **change, "sweep": sweep})

    return write


def identities(plan, stage):
    return [step.fingerprint for step in plan.all_steps[stage, 0] if step.kind != "overlap"]


def test_a_point_is_the_recipe_with_its_values_set(swept, recipe_dict, write_recipe):
    """Products, and keys of every kind: each point has the steps that --set of its values gives."""
    sweep = {BETA: [0.1, 0.3], "data.train.limit": [4, 6], "trainer.learning_rate": [0.001, 0.01]}
    recipe, plain = load_recipe(swept(sweep)), write_recipe(recipe_dict, "plain.yaml")
    plan = make_plan(recipe)
    assert len(recipe.points) == 8
    for values, point in recipe.points:
        alone = load_recipe(plain, [f"{key}={value}" for key, value in values.items()])
        assert alone == point
        expected = make_plan(alone)
        for name in recipe.stages:
            labels = [label for label, one in plan.stages.items() if one.name == name
                      and one.values.items() <= values.items()]  # fmt: skip
            assert len(labels) == 1
            assert identities(plan, labels[0]) == identities(expected, name)


def test_only_stages_that_a_key_matters_for_are_made_again(swept):
    plan = make_plan(load_recipe(swept({BETA: [0.1, 0.8]}, seeds=[0, 1])))
    assert list(plan.stages) == [
        "sft", *LABELS, "sft-dpo", "bash-dpo@bash.beta=0.1", "bash-dpo@bash.beta=0.8",
    ]  # fmt: skip
    trained = [step for step in plan.steps if step.kind == "train"]
    assert [step.stage for step in trained].count("sft") == 2, "once for each seed"
    assert plan.stages["bash-dpo@bash.beta=0.8"].start == "bash@beta=0.8"
    base = plan.models["bash-dpo@bash.beta=0.8", 1].base.inputs["base"]
    assert base.fingerprint == plan.models["bash@beta=0.8", 1].base.fingerprint


@pytest.mark.parametrize(
    ("sweep", "labels"),
    [
        ({"batch_size": [2, 4]}, ["sft@batch_size=2", "sft@batch_size=4"]),
        ({"data.train.limit": [4, 6]}, ["sft@data.train.limit=4", "sft@data.train.limit=6"]),
        ({"stages.sft.trainer.learning_rate": [1e-3, 1.0e-5]},
         ["sft@learning_rate=0.001", "sft@learning_rate=1e-05"]),
        ({"stages.sft.batch_size": [2, 4], "batch_size": [2, 4]},
         ["sft@batch_size=2", "sft@batch_size=4"]),
        ({"benchmarks.gsm8k.few_shot": [0, 1]},
         ["sft@benchmarks.gsm8k.few_shot=0", "sft@benchmarks.gsm8k.few_shot=1"]),
        ({"system": [None, "Think!"]}, ["sft@system=null", "sft@system=Think-"]),
        ({"stages.sft.lora.r": [2, 4], "stages.bash.lora.r": [2, 4]}, None),
    ],
)  # fmt: skip
def test_stages_are_called_by_what_matters_for_them(swept, sweep, labels):
    path = swept(sweep, stages={"sft": {"method": "sft"}, "bash": {"method": "bash"}})
    stages = list(make_plan(load_recipe(path)).stages)
    found = [label for label in stages if label.startswith("sft")]
    assert found == (labels or ["sft@r=2", "sft@r=4"])
    if labels is None:
        assert stages[2:] == ["bash@r=2", "bash@r=4"], "each its own key"


def test_two_keys_with_one_last_part_are_told_apart(swept):
    sweep = {"stages.bash.trainer.learning_rate": [0.1, 0.2], "trainer.learning_rate": [0.3, 0.4]}
    stages = list(make_plan(load_recipe(swept(sweep))).stages)
    assert stages[0] == "sft@trainer.learning_rate=0.3"
    assert stages[2] == "bash@learning_rate=0.1,trainer.learning_rate=0.3"
    sweep = {"stages.bash.trainer.seed": [1, 2], "stages.bash.lora.seed": [1, 2]}
    recipe = load_recipe(swept({BETA: [0.1, 0.2]})).model_copy(update={"sweep": sweep})
    values = {key: numbers[0] for key, numbers in sweep.items()}
    assert label_of(recipe, "bash", values) == "bash@bash.trainer.seed=1,bash.lora.seed=1"


def test_words_of_values_are_fit_for_files_and_shells_and_never_alike():
    values = ["a b/c", "a-b-c", {"schedule": "linear", "start": 0.1}, True, None, 5e-7, -1, ""]
    words = [format_value(values, value) for value in values]
    assert words == ["a-b-c", "a-b-c-2", "linear-0.1", "true", "null", "5e-07", "-1", "empty"]


def test_a_stage_is_compared_with_the_baseline_at_its_own_point(swept):
    plan = make_plan(load_recipe(swept({"stages.sft.trainer.learning_rate": [0.1, 0.2]})))
    bash = plan.stages["bash@sft.learning_rate=0.2"]
    assert bash.siblings["sft"] == "sft@learning_rate=0.2"
    plan = make_plan(load_recipe(swept({"stages.bash.beta": [0.1, 0.2]})))
    assert plan.stages["bash@beta=0.2"].siblings["sft"] == "sft"
    assert "bash" not in plan.stages["sft"].siblings, "it has several there"


@pytest.mark.parametrize(
    ("sweep", "key", "message"),
    [
        ([BETA], "sweep", "is a mapping of keys"),
        ({BETA: 0.1}, f"sweep.{BETA}", "is a list of values to try, such as [0.1, ...]"),
        ({BETA: []}, f"sweep.{BETA}", "has no value; give at least two"),
        ({BETA: [0.1]}, f"sweep.{BETA}", "has one value; give at least two"),
        ({BETA: [0.1, 0.2, 0.1]}, f"sweep.{BETA}", "holds 0.1 twice"),
        ({BETA: [1, 1.0]}, f"sweep.{BETA}", "holds 1.0 twice"),
        ({"stages.bsh.beta": [1, 2]}, "sweep.stages.bsh.beta", "did you mean bash?; stages: sft,"),
        ({"stages.bash.betta": [1, 2]}, "sweep.stages.bash.betta", "did you mean beta?"),
        ({"batch_sise": [1, 2]}, "sweep.batch_sise", "did you mean batch_size?"),
        ({"stages": [1, 2]}, "sweep.stages", "name a key of a stage"),
        ({"stages..beta": [1, 2]}, "sweep.stages..beta", "as --set does"),
        ({"model.name": [1, 2]}, "sweep.model.name", "which holds no keys"),
        ({"seeds": [[0], [1]]}, "sweep.seeds", "write `seeds: [0, 1, 2]` beside `sweep`"),
        ({"name": ["a", "b"]}, "sweep.name", "decides none of them"),
        ({"variants": [1, 2]}, "sweep.variants", "chosen with --variant"),
        ({"launch": ["cpu", "ddp"]}, "sweep.launch", "give it with --launch"),
        ({"stages.bash": [{}, {"method": "bash"}], BETA: [0.1, 0.2]}, f"sweep.{BETA}", "lies in"),
        ({"batch_size": list(range(2, 52)), BETA: [i / 99 for i in range(50)]},
         "sweep", "comes to 2500 points; at most 1000"),
        ({BETA: [0.1, 1.5]}, f"sweep.{BETA}", "less than or equal to 1 (where stages.bash.beta is 1.5)"),
        ({"trainer.learning_rate": [0.1, float("nan")]}, "sweep.trainer.learning_rate",
         "not a finite number; write a large one, such as 1.0e+9 (where trainer.learning_rate is nan)"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_a_sentence(swept, sweep, key, message):
    assert message in problems_of(swept(sweep))[key]


def test_all_problems_of_all_points_are_listed_once(swept):
    path = swept(
        {BETA: [0.1, 7, 8], "batch_size": [2, "many"], "seed": [1, 2]},
        modle="x",
        micro_batch_size=0,
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [(problem.key, problem.message) for problem in caught.value.problems] == [
        ("micro_batch_size", "0: should be greater than or equal to 1"),
        ("modle", "not a key bashrac knows; did you mean model?"),
        ("sweep.batch_size", "'many': must be a whole number (where batch_size is many)"),
        ("sweep.seed", "'seed' is not a key of a recipe; did you mean seeds?"),
        (f"sweep.{BETA}", f"7: should be less than or equal to 1 (where {BETA} is 7)"),
        (f"sweep.{BETA}", f"8: should be less than or equal to 1 (where {BETA} is 8)"),
    ]


def test_a_key_that_changes_nothing_is_refused(swept):
    for key, values in {"generation.batch_tokens": [128, 256], "micro_batch_size": [1, 2]}.items():
        recipe = load_recipe(swept({key: values, BETA: [0.1, 0.2]}))
        with pytest.raises(InputError, match=f"sweep.{key} +changes no step of any stage"):
            make_plan(recipe)
    stages = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    self_made = {"stages.dpo.prompts": [2, 6, 7]}
    stages["dpo"]["pairs"] = "self"
    recipe = load_recipe(swept(self_made, stages=stages))
    with pytest.raises(InputError, match="6 and 7 come to the very same steps; keep one"):
        make_plan(recipe)


def test_set_goes_into_a_sweep_and_takes_out_of_it(swept):
    path = swept({BETA: [0.1, 0.2], "batch_size": [2, 4]})
    assert len(load_recipe(path).points) == 4
    assert len(load_recipe(path, [f"sweep.{BETA}=[0.1, 0.2, 0.3]"]).points) == 6
    assert len(load_recipe(path, [f"sweep.{BETA}=null"]).points) == 2
    with pytest.raises(
        InputError, match=r"no such key in the sweep of .*recipe.yaml; did you mean"
    ):
        load_recipe(path, [f"sweep.{BETA}s=null"])
    with pytest.raises(InputError, match="its keys: none"):
        load_recipe("demo", [f"sweep.{BETA}=null"])
    alone = load_recipe(path, ["sweep=null", f"{BETA}=0.3"])
    assert not alone.points and alone.stages["bash"].beta == 0.3
    for key in (BETA, f"{BETA}.start"):
        with pytest.raises(InputError, match=rf"--set sweep.{BETA}=null takes it out"):
            load_recipe(path, [f"{key}=0.3"])


def test_a_variant_may_sweep(recipe_dict, write_recipe):
    variants = {"one": {}, "many": {"sweep": {BETA: [0.1, 0.2]}}}
    path = write_recipe({**recipe_dict, "variants": variants})
    assert not load_recipe(path).points
    assert len(load_recipe(path, variant="many").points) == 2


def test_a_key_from_the_environment_is_not_repeated(swept, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-twenty-characters")
    path = swept({"system": ["sk-secret-of-twenty-characters"] * 2})
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "holds the value of $OPENAI_API_KEY" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_the_section_on_sweeps_says_what_commands_print(bashrac, tmp_path):
    page = (ROOT / "docs" / "recipe.md").read_text().split("\n## Sweeps\n")[1]
    (tmp_path / "sweep.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    shown = re.findall(r"```\n\$ bashrac (check .*?)\n(.*?)```", page, re.DOTALL)
    for command, printed in shown:
        done = bashrac(*shlex.split(command))
        assert done.stdout + done.stderr == printed
    assert len(shown) == 2
    labels = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)[:3]
    said = [label for row in labels for label in re.findall(r"`(.*?)`", row)]
    assert said == list(make_plan(load_recipe(tmp_path / "sweep.yaml")).stages)


def test_check_and_plan_state_the_points(swept, bashrac):
    path = swept({BETA: [0.1, 0.8]})
    assert "no problems, 2 points, 6 stages, 21 steps" in bashrac("check", path).stdout
    planned = bashrac("plan", path)
    assert planned.stdout.startswith(f"sweep of {BETA} [0.1, 0.8]: 2 points\n"), planned.stderr
    unknown = bashrac("run", path, "--stage", "bash@beta=0.2")
    assert unknown.returncode == 2 and f"stages: sft, {LABELS[0]}, {LABELS[1]}" in unknown.stderr


def test_a_sweep_over_seeds_from_steps_to_charts(swept, run_steps_here, bashrac, tmp_path):
    """SFT once a seed; a curve over beta with intervals; one point run again, and handed on."""
    stages = {"sft": {"method": "sft"}, "bash": {"method": "bash", "from": "sft"}}
    path = swept({BETA: [0.8, 0.1]}, seeds=[0, 1], stages=stages)
    plan, runs = run_steps_here(path)
    assert sum(step.kind == "train" for step in plan.steps) == 2 + 2 * 2

    report = collect(plan, runs)
    assert [row.stage for row in report.rows] == ["sft", "bash@beta=0.8", "bash@beta=0.1"]
    assert {row.method for row in report.rows[1:]} == {"bash"}
    assert [row.difference is None for row in report.rows] == [True, False, False]
    chart, changed, _ = report.charts  # the last is quality against cost
    assert (chart.benchmark, chart.x_title, chart.is_log) == ("gsm8k", BETA, False)
    (curve,) = chart.curves
    assert curve.name == "bash" and [point.x for point in curve.points] == [0.1, 0.8]
    rows = {row.stage: row.primary for row in report.rows}
    assert [point.cell for point in curve.points] == [rows[label] for label in LABELS]
    assert all(point.cell.low <= point.cell.value <= point.cell.high for point in curve.points)
    assert "At every value: sft 0.0 ± 0.0 % [0.0, " in chart.note
    few, many = changed.curves[0].points
    assert few.cell.seeds == 2
    assert 0 < few.cell.value < many.cell.value and few.cell.spread is not None
    assert curve.points[1].label == f"{many.cell.value:.1f} % changed"

    # A step of one point is made again by a real run of its stage, and nothing else is.
    lost = plan.results[LABELS[1], "gsm8k", 0].directory(runs)
    shutil.rmtree(lost)
    chosen = [select_steps(plan, [stage]) for stage in (*LABELS, "bash")]
    assert [len(steps) for steps in chosen] == [8, 8, 16]
    made = bashrac("run", path, "--stage", LABELS[1])
    assert made.stdout.count(": started") == 1 and (lost / "record.json").is_file(), made.stderr
    assert (runs / "tiny" / "logs" / f"{LABELS[1]}-seed0.log").is_file()
    assert len(json.loads((runs / "tiny" / "report.json").read_text())["charts"]) == 3
    assert leftovers(runs) == [], "the steps of all points are kept"

    found = find_stage(f"{path}:{LABELS[1]}", runs, seed=1)
    handed = tmp_path / "handed.yaml"
    handed.write_text(portable_recipe(found).replace("model: llama", f"model: {plan.recipe.model}"))
    assert "sweep" not in handed.read_text() and "beta: 0.8" in handed.read_text()
    model = make_plan(load_recipe(handed)).models["bash", 1].base
    assert model.fingerprint == plan.models[LABELS[1], 1].base.fingerprint
    with pytest.raises(InputError, match=r"bash of .* is swept; choose one of bash@beta=0.8"):
        find_stage(f"{path}:bash", runs)
