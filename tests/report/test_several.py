"""Several recipes in one report, from results written to disk as steps write them."""

import csv
import io
import json
from dataclasses import replace

import pytest

from eval.benchmarks.gsm8k import grade_answers
from eval.report.collect import collect, part_of
from eval.report.comparable import reads_alike, why_not
from eval.report.data import csv_text, json_text
from eval.report.join import join, labels_of
from eval.report.markdown import markdown
from eval.report.page import html_page
from eval.report.samples import collect_samples
from pipeline.cli.main import main
from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec

RECORD = {
    "seconds": 10.0, "metrics": {"tokens_trained": 1000}, "device": "cpu", "host": "here",
    "versions": {"trl": "1.16.0"}, "files": {},
}  # fmt: skip
STAGES = {
    "sft": {"method": "sft"},
    "bash": {"method": "bash", "from": "sft"},
    "half": {"method": "bash", "from": "sft", "beta": 0.5},
}
SCORES = {"sft": [0] * 40, "bash": [1] * 16 + [0] * 24, "half": [1] * 6 + [0] * 34}


@pytest.fixture
def planned(recipe_dict, write_recipe):
    """Plan a recipe of these stages, with changes to the tiny recipe."""

    def plan(name, *stages, **change):
        given = {"name": name, "stages": {stage: STAGES[stage] for stage in stages}}
        return make_plan(load_recipe(write_recipe(recipe_dict | given | change, f"{name}.yaml")))

    return plan


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def finish(plan, runs, scores=SCORES):
    """Grade answers to test rows: 1 is a right one, 0 a wrong one. Returns the plan."""
    texts = {1: "#### 7", 0: "#### 8"}
    for (label, _, seed), step in plan.results.items():
        right = scores[plan.stages[label].name][: plan.recipe.data.test.limit]
        rows = [
            {"id": i, "sample": 0, "messages": [{"role": "user", "content": f"Q {i}?"}],
             "answer": texts[one], "reference": "#### 7", "ids": [1], "finished": True}
            for i, one in enumerate(right)
        ]  # fmt: skip
        answers = step.inputs["answers"]
        artifact.write_rows(answers.directory(runs) / artifact.SAMPLES, rows)
        grade_answers(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
        for done in [*plan.stage_steps[label, seed], answers, step]:
            artifact.write_record(done.directory(runs), RECORD)
    return plan


def rows_of(count):
    return {"train": {"source": "builtin:maths", "limit": 8},
            "test": {"source": "builtin:maths", "split": "test", "limit": count}}  # fmt: skip


ROWS = rows_of(40)


def unnamed(one):
    """A row or a cost without the names of recipes."""
    given = {"stage": one.stage.rpartition("/")[2]}
    return replace(
        one, **given, **({"start": one.start.rpartition("/")[2]} if hasattr(one, "start") else {})
    )


def test_stages_of_two_recipes_are_judged_as_those_of_one(planned, runs):
    whole = finish(planned("whole", "sft", "bash", "half", data=ROWS), runs)
    first = planned("first", "sft", "bash", data=ROWS)
    second = planned("second", "sft", "half", data=ROWS)
    report, together = collect(join([first, second]), runs), collect(whole, runs)
    assert [row.stage for row in report.rows] == ["first/sft", "first/bash", "second/half"]
    assert list(map(unnamed, report.rows)) == together.rows
    assert list(map(unnamed, report.costs)) == together.costs
    assert report.bill == together.bill, "a step that both share counts once"
    assert {row.difference.compared for row in report.rows[1:]} == {2}
    assert report.rows[2].start == report.baseline == "first/sft"
    assert report.joined.same == {"second/sft": "first/sft"}
    text = markdown(report)
    assert text.startswith("# first and second\n\nModel ")
    assert "The same steps, shown once: second/sft is first/sft." in text
    assert "| second/half | 15.0 % [" in text and "vs first/sft" in text


def test_one_recipe_is_reported_as_ever(planned, runs):
    plan = finish(planned("first", "sft", "bash", data=ROWS), runs)
    assert join([plan]) is plan
    saved = json.loads(json_text(collect(plan, runs)))
    assert "joined" not in saved and [row["stage"] for row in saved["rows"]] == ["sft", "bash"]


def test_every_form_names_both_recipes(planned, runs):
    plans = [
        finish(planned("first", "sft", "bash", data=ROWS), runs),
        finish(planned("second", "sft", "half", data=ROWS), runs),
    ]
    both = join(plans)
    commands = ["bashrac run first", "bashrac run second"]
    report = collect(both, runs, commands=commands)
    digits = {plan.recipe.name: plan.fingerprint for plan in plans}
    assert report.joined.fingerprints == digits
    lines = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert {(line["stage"].partition("/")[0], line["recipe_fingerprint"]) for line in lines} == set(
        digits.items()
    )
    saved = json.loads(json_text(report))
    assert saved["joined"]["fingerprints"] == digits and saved["made"]["commands"] == commands
    recipes = saved["made"]["recipe"].split("---\n")
    assert [one.split("\n")[0] for one in recipes] == ["name: first", "name: second"]
    assert all("/sft" not in one for one in recipes), "as they were run"
    page = html_page(report, collect_samples(both, runs))
    for words in (*digits.values(), *commands, "second/half (bash from first/sft)", "Q 3?"):
        assert words in page
    assert all(f"{one[:16]} ({name})" in page for name, one in digits.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": rows_of(30)}, "test.limit is 40 (30 here)"),
        ({"system": "Think."}, "system is Solve the problem. (Think. here)"),
        ({"generation": {"max_new_tokens": 9}}, "max_new_tokens is 8 (9 here)"),
        ({"benchmarks": {"gsm8k": {"temperature": 0.5}}}, "temperature is 0.0 (0.5 here)"),
        ({"chat_template": "{{ messages }}"}, "chat_template is not set ({{ messages }} here)"),
    ],
)
def test_other_questions_are_shown_and_not_compared(change, words, planned, runs, recipe_dict):
    settings = {"data": ROWS, "system": "Solve the problem.", "generation": {"max_new_tokens": 8}}
    first = finish(planned("first", "sft", "bash", **settings), runs)
    second = finish(planned("second", "sft", "bash", **settings | change), runs)
    report = collect(join([first, second]), runs)
    shown = {row.stage: (row.primary.value, row.difference) for row in report.rows}
    assert {stage: value for stage, (value, _) in shown.items()} == {
        "first/sft": 0.0, "first/bash": 40.0, "second/sft": 0.0,
        "second/bash": pytest.approx(100 * 16 / second.recipe.data.test.limit),
    }  # fmt: skip
    assert shown["first/bash"][1].compared == 1
    assert shown["second/sft"][1] is None and shown["second/bash"][1] is None
    sentence = f"gsm8k: not compared with first/sft, where {words}"
    assert report.warnings == {sentence: ["second/sft", "second/bash"]}
    assert f"- second/sft, second/bash: {sentence}" in markdown(report)


def test_precision_and_a_model_s_own_template_keep_nothing_apart(planned, runs, plain_model):
    first = planned("first", "sft", data=ROWS)
    second = planned("second", "sft", data=ROWS, precision="bfloat16")
    third = planned(
        "third", "sft", data=ROWS, model=str(plain_model), chat_template="{{ messages }}"
    )
    plan = join([first, second, third])
    assert [why_not(plan, label, "first/sft", "gsm8k") for label in plan.stages] == ["", "", ""]
    report = collect(plan, runs)
    assert report.model == f"{first.recipe.model} (first, second) and {plain_model} (third)"
    assert "not finished" in markdown(report)


def test_another_judge_and_another_prompt_of_it_are_told(planned, tmp_path):
    def judged(name, judge, **options):
        benchmarks = {"tldr": {"data": "builtin:posts", **options}}
        more = {"evaluate": ["tldr"], "judge": judge, "benchmarks": benchmarks}
        return planned(name, "sft", data=ROWS, **more)

    judge = {"engine": "openai", "model": "one", "base_url": "http://localhost:8000/v1"}
    wording = {
        "prompt": "{prompt} {first} {second}?",
        "labels": ["A", "B"],
        "label_request": "A or B?",
    }
    artifact.write_json(tmp_path / "prompt.yaml", wording)
    plan = join(
        [
            judged("first", judge),
            judged("patient", judge | {"max_errors": 5, "timeout_s": 9.0}),
            judged("model", judge | {"model": "two"}),
            judged("orders", judge | {"orders": "one"}),
            judged("wording", judge, template=str(tmp_path / "prompt.yaml")),
        ]
    )
    reasons = {
        label.partition("/")[0]: why_not(plan, label, "first/sft", "tldr") for label in plan.stages
    }
    assert reasons.pop("first") == reasons.pop("patient") == ""
    assert reasons.pop("model") == "where judge.model is one (two here)"
    assert reasons.pop("orders") == "where orders is both (one here)"
    assert "template.prompt is another one" in reasons.pop("wording") and not reasons


def test_seeds_are_paired_and_those_of_all_recipes_are_listed(planned, runs):
    first = finish(planned("first", "sft", seeds=[0, 1], data=ROWS), runs)
    second = finish(planned("second", "sft", "bash", seeds=[1, 2], data=ROWS), runs)
    third = finish(planned("third", "sft", "bash", seeds=[3], data=ROWS), runs)
    report = collect(join([first, second]), runs)
    assert report.seeds == [0, 1, 2]
    sft, bash = report.rows
    assert (sft.seeds, bash.seeds, bash.difference.seeds) == (3, 2, 2), "sft is one stage"
    apart = collect(join([first, third]), runs)
    (warning,) = apart.warnings
    assert "shares no seed: 0, 1 there, 3 here" in warning
    assert all(row.difference is None for row in apart.rows)


def test_a_benchmark_of_one_recipe_has_no_rows_of_the_other(planned, runs):
    first = finish(planned("first", "sft", data=ROWS), runs)
    second = planned("second", "sft", "bash", data=ROWS, evaluate=["rouge"])
    report = collect(join([first, second]), runs)
    shown = {(row.benchmark, row.stage) for row in report.rows}
    assert shown == {("gsm8k", "first/sft"), ("rouge", "first/sft"), ("rouge", "second/bash")}
    third = planned("third", "sft", data=ROWS, evaluate=["rouge"], seeds=[4])
    report = collect(join([first, third]), runs)
    assert "rouge: not compared with first/sft, which is not evaluated on it" in report.warnings


def test_gap_compares_slopes_of_the_same_model_and_fixed_ones_on_the_same_contexts(
    planned, plain_model, runs
):
    settings = {"data": ROWS, "evaluate": ["gap"]}
    first = planned("first", "sft", "bash", **settings)
    same = planned("same", "sft", "half", **settings)
    later = planned("later", "sft", "half", **settings, lora={"r": 2})
    other = planned("other", "sft", **settings, model=str(plain_model))
    plan = join([first, same, later, other])
    assert why_not(plan, "same/half", "first/sft", "gap") == ""
    assert why_not(plan, "later/half", "first/sft", "gap") == ""
    assert "where base." in why_not(plan, "other/sft", "first/sft", "gap")
    assert reads_alike(plan, "same/half", "first/sft")
    assert not reads_alike(plan, "later/half", "first/sft")
    concerned = {
        warning.partition(": ")[2]: stages
        for warning, stages in collect(plan, runs).warnings.items()
    }
    assert concerned["slope, fixed contexts, not compared with first/sft, which reads others"] == [
        "later/sft", "later/half",
    ]  # fmt: skip


def test_a_swept_recipe_beside_another(planned, runs):
    first = planned("first", "sft", "bash", data=ROWS)
    sweep = {"stages.half.beta": [0.2, 0.5]}
    second = planned("second", "sft", "half", data=ROWS, sweep=sweep)
    plan = join([first, second])
    assert list(plan.stages) == ["first/sft", "first/bash", "second/half@beta=0.5"]
    assert labels_of(plan, "second/half") == ["first/bash", "second/half@beta=0.5"]
    finish(first, runs)
    finish(planned("whole", "sft", "half", data=ROWS), runs)
    report = collect(plan, runs)
    assert report.joined.same["second/half@beta=0.2"] == "first/bash"
    (chart,) = [one for one in report.charts if one.benchmark and "sweep" in one.name]
    assert chart.title.endswith("(second)")
    found = {point.x: round(point.cell.value) for point in chart.curves[0].points}
    assert found == {0.2: 40, 0.5: 15}
    swept = collect(plan, runs, baseline="second/half")
    assert any("of which the sweep makes several" in warning for warning in swept.warnings)
    at_one = collect(plan, runs, baseline="second/half@beta=0.5").rows
    differences = [row.difference and round(row.difference.value) for row in at_one]
    assert differences == [-15, 25, None]


def test_a_part_of_several_recipes(planned, runs):
    first = finish(planned("first", "sft", "bash", data=ROWS), runs)
    second = finish(planned("second", "sft", "half", data=ROWS), runs)
    report = collect(part_of(join([first, second]), ["second/half"]), runs)
    assert [row.stage for row in report.rows] == ["first/sft", "second/half"]
    names = {step.name.rpartition("/seed")[0] for step in report.made.steps}
    assert names == {
        "first/sft/train", "first/sft/answers for gsm8k", "first/sft/grade gsm8k",
        "second/half/contexts", "second/half/train", "second/half/answers for gsm8k",
        "second/half/grade gsm8k", "first/sft/overlap with gsm8k",
    }  # fmt: skip


def test_the_command_takes_several_recipes(planned, runs, tmp_path, capsys):
    finish(planned("first", "sft", "bash", data=ROWS), runs)
    finish(planned("second", "sft", "half", data=ROWS), runs)
    files = [str(tmp_path / f"{name}.yaml") for name in ("first", "second")]
    given = ["report", *files, "--runs", str(runs)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert f"- `bashrac run {files[1]}`" in text and "vs first/sft" in text
    assert main([*given, "--baseline", "second/sft"]) == 0
    assert capsys.readouterr().out == text, "it is the same stage"
    assert main([*given, "--stage", "second/half", "--baseline", "first/bash"]) == 0
    text = capsys.readouterr().out
    assert "vs first/bash" in text and "| second/half" in text
    assert main([*given, "--baseline", "sft"]) == 2
    assert "--baseline sft: no such stage; stages: first/sft, first/bash" in capsys.readouterr().err
    assert main([*given, "--stage", "half"]) == 2
    assert "no stage 'half'" in capsys.readouterr().err


def test_recipes_of_one_name_cannot_be_told_apart(planned):
    plan = planned("first", "sft")
    with pytest.raises(InputError, match="2 of these recipes are called first"):
        join([plan, planned("second", "sft"), plan])
