"""A task of one's own: what `check` says of its file, and what its rows become."""

import json
from dataclasses import replace

import pytest

from pipeline.data.task_file import load_task
from pipeline.data.tasks import TASKS, RowError, example_of
from pipeline.errors import InputError, RecipeError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.stored import PAIRS
from pipeline.steps.artifact import read_rows

GOOD = """from pipeline.data.tasks import Task

def read(row):
    return "Colour of " + row["thing"] + "?", row["colour"]

def grade(answer, reference):
    return answer == reference

TASK = Task(read=read, plain="{prompt} It is", grade=grade)
"""


@pytest.fixture
def own_recipe(recipe_dict, write_recipe, tmp_path, monkeypatch):
    """Write a recipe, its rows and its task's file; returns the recipe's path."""
    monkeypatch.chdir(tmp_path)

    def write(code, *, row=None, **keys):
        (tmp_path / "mine.py").write_text(code, encoding="utf-8")
        row = json.dumps(row or {"thing": "snow", "colour": "white"})
        (tmp_path / "rows.jsonl").write_text(row + "\n", encoding="utf-8")
        data = {"train": "rows.jsonl", "test": "rows.jsonl"}
        recipe = recipe_dict | {"task": "mine.py", "data": data, "evaluate": ["accuracy"]}
        return write_recipe(recipe | {"stages": {"sft": {"method": "sft"}}} | keys)

    return write


def problems(path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_row_is_read_and_written_as_the_file_says(own_recipe):
    own_recipe(GOOD)
    key = load_task("mine.py")
    example = example_of("mine.py", {"thing": "snow", "colour": " white\n", "weight": 2})
    assert example.task == key and example.reference == "white"
    assert example.plain_prompt == "Colour of snow? It is"
    assert example.messages == [{"role": "user", "content": "Colour of snow?"}]


def test_messages_may_be_returned_and_are_checked(own_recipe):
    code = GOOD.replace('"Colour of " + row["thing"] + "?"', 'row["said"]')
    own_recipe(code)
    load_task("mine.py")
    said = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")]
    example = example_of("mine.py", {"said": said, "colour": "white"})
    assert example.messages == said and len(example.shorter()) == 1
    with pytest.raises(RowError, match="prompt that must end with a user message"):
        example_of("mine.py", {"said": said[:2], "colour": "white"})


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("TASK =", "MINE =", "mine.py defines no TASK; write TASK = Task(read=..., ...)"),
        ("TASK = Task(", "TASK = dict(", "mine.py has a TASK of dict"),
        ("def grade(", "def grade", "mine.py, line 6: SyntaxError: "),
        ("return answer", "retrun = 1 / 0\nretrun = 1 / 0\nreturn answer", "SyntaxError"),
        ("def read", "1 / 0\ndef read", "mine.py, line 3: ZeroDivisionError: division by zero"),
        ("{prompt} It is", "It is", "mine.py, line 9: ValueError: plain lacks {prompt}"),
        ("read=read", "raed=read", "mine.py, line 9: TypeError: "),
        ("TASK =", "raise SystemExit(3)\nTASK =", "mine.py, line 9: SystemExit: 3"),
    ],
)
def test_a_file_that_holds_no_task_is_a_sentence(own_recipe, old, new, sentence):
    found = problems(own_recipe(GOOD.replace(old, new)))
    assert found.keys() == {"task"} and sentence in found["task"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('row["thing"]', 'row["thign"]', "mine.py, line 4: KeyError: 'thign'; the row has thing"),
        (', row["colour"]', "", "read in mine.py returns str, expected (prompt, reference)"),
        ('row["colour"]', "3", "read in mine.py returns a reference that is "),
        ('row["colour"]', '" "', "read in mine.py returns a reference that is empty"),
        ("answer == reference", "False", "grade in mine.py calls the reference 'white' itself"),
        ("answer == reference", "1.0", "grade in mine.py returns 1.0, expected True or False"),
        ("answer == reference", "1 / 0", "mine.py, line 7: ZeroDivisionError: division by zero"),
    ],
)
def test_the_first_row_is_tried(own_recipe, old, new, sentence):
    found = problems(own_recipe(GOOD.replace(old, new)))
    assert found.keys() == {"data.train.source", "data.test.source"}
    assert all(sentence in message for message in found.values())


def test_a_builtin_row_is_tried_too(own_recipe):
    found = problems(own_recipe(GOOD, data={"train": "builtin:maths", "test": "rows.jsonl"}))
    assert "the row has question, answer" in found["data.train.source"]


def test_other_problems_are_told_beside_a_broken_file(own_recipe):
    found = problems(own_recipe("1 / 0", seeds=[1, 1]))
    assert found.keys() == {"task", "seeds"}


def test_a_missing_file_and_a_misspelt_name(own_recipe):
    assert "there is no such file" in problems(own_recipe(GOOD, task="other.py"))["task"]
    found = problems(own_recipe(GOOD, task="gms8k"))["task"]
    assert "Python file" in found and "did you mean gsm8k?" in found


def test_accuracy_needs_a_grader(own_recipe):
    found = problems(own_recipe(GOOD.replace(", grade=grade", "")))
    assert "mine.py does not, use rouge" in found["evaluate"]


def test_the_file_counts_by_its_content(own_recipe, tmp_path):
    """Its name does not, and a step that reads no row of the task stays as it is."""
    first = make_plan(load_recipe(own_recipe(GOOD)))
    (tmp_path / "mine.py").rename(tmp_path / "theirs.py")
    moved = make_plan(load_recipe(tmp_path / "recipe.yaml", ["task=theirs.py"]))
    other = make_plan(load_recipe(own_recipe(GOOD + "# another\n")))
    prints = [[step.fingerprint for step in plan.steps] for plan in (first, moved, other)]
    assert prints[0] == prints[1] and not set(prints[0]) & set(prints[2])


@pytest.mark.launches
def test_a_file_edited_after_the_plan_stops_the_step(own_recipe, tmp_path):
    from pipeline.run.worker import execute
    from pipeline.steps.context import StepContext, write_spec

    step = make_plan(load_recipe(own_recipe(GOOD))).steps[0]
    spec = write_spec(step, tmp_path / "runs", processes=1, use_cpu=True)
    with (tmp_path / "mine.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    with pytest.raises(InputError, match=r"mine\.py has changed since this run began"):
        execute(StepContext.read(spec))


@pytest.mark.launches
def test_every_kind_of_step_works_on_a_task_of_ones_own(own_recipe, run_steps_here):
    """Contexts, pairs of own answers told apart by the grader, and gap, of a model without turns."""
    stages = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "dpo": {"method": "dpo", "from": "sft", "pairs": "self"},
    }
    gap = {"rates": [0.0, 0.5]}
    path = own_recipe(GOOD, stages=stages, evaluate=["accuracy", "gap"], benchmarks={"gap": gap})
    plan, runs = run_steps_here(path)
    (pairs,) = [step for step in plan.steps if step.kind == "pairs"]
    (row,) = read_rows(pairs.directory(runs) / PAIRS)
    assert row["chosen"] == "white" and row["prompt"][0]["content"] == "Colour of snow?"
    assert "told_by" not in pairs.options


def test_built_in_tasks_have_what_a_file_must_have():
    for task in list(TASKS.values()):
        assert replace(task) == task
    right = TASKS["gsm8k"].grade
    assert right("so\n#### 12", "#### 12") and not right("so\n#### 13", "#### 12")


def test_own_answers_are_paired_by_the_grader(own_recipe):
    from pipeline.stages.dpo import pair_of

    own_recipe(GOOD)
    key = load_task("mine.py")
    common = {"id": 0, "prompt": [], "reference": "white", "finished": True, "ids": [1]}
    rows = [{**common, "answer": answer} for answer in ("black", "white")]
    rows = [{**row, "messages": [{"role": "user", "content": "?"}]} for row in rows]
    pair, has_right = pair_of(rows, key)
    assert has_right and (pair["chosen"], pair["rejected"]) == ("white", "black")
