"""RFT: which answers are kept, counted by hand, and what is trained on."""

import pytest
from conftest import problems_of, result_digests
from helpers import model_that_ends_turns, steps_of
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.stored import ROWS
from pipeline.stages import rft
from pipeline.steps import artifact

GSM8K = {"task": "gsm8k", "keep": "right", "distinct": "equations", "max_per_prompt": 4}


def answer(text, *, finished=True, reference="6 * 7 = 42\n#### 42", ids=None):
    ids = list(text.encode()) if ids is None else ids
    return {
        "id": 0, "sample": 0, "messages": [], "reference": reference,
        "answer": text, "ids": ids, "finished": finished,
    }  # fmt: skip


RIGHT = answer("6 * 7 = 42 eggs.\n#### 42")
SPACES = answer("6*7=42  eggs.\n#### 42")
OTHER = answer("7 * 3 = 21, 21 * 2 = 42.\n#### 42")
CUT = answer("7 + 7 + 28 = 42.\n#### 42", finished=False)
WRONG = answer("6 + 7 = 13.\n#### 13")


def test_right_finished_answers_with_other_equations_are_kept():
    assert rft.kept([RIGHT, SPACES, OTHER, CUT, WRONG], GSM8K) == [RIGHT, OTHER]
    assert rft.kept([WRONG, CUT], GSM8K) == []
    assert rft.kept([RIGHT, SPACES, OTHER], GSM8K | {"max_per_prompt": 1}) == [RIGHT]


def test_prompts_are_counted_by_how_often_they_are_solved():
    prompts = [[RIGHT, SPACES], [RIGHT, WRONG], [WRONG, WRONG], [WRONG, CUT]]
    assert rft.figures(prompts, GSM8K) == {
        "prompts": 4, "answers": 8, "answers cut": 1, "answers right": 3,
        "prompts solved never": 2, "prompts solved sometimes": 1, "prompts solved always": 1,
    }  # fmt: skip


def test_of_answers_with_the_same_equations_the_one_farthest_from_those_kept_is_taken():
    near = answer("7 * 6 = 42 eggs.\n#### 42")
    far = answer("Each box of the seven holds six of them, so 7*6=42 in all.\n#### 42")
    assert rft.kept([RIGHT, near, far], GSM8K) == [RIGHT, far]
    assert rft.kept([near, far, RIGHT], GSM8K) == [near, RIGHT], "the first is kept as it comes"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She has 48 / 2 = 24 left.", ("48/2=24",)),
        ("48/2 = <<48/2=24>>24 and 48+24 = <<48+24=72>>72", ("48/2=24", "48+24=72")),
        ("$1,200 x 3 = $3,600.", ("1200*3=3600",)),
        ("(3 + 4) \u00d7 2 = 14, 14 \u00f7 7 = 2", ("(3+4)*2=14", "14/7=2")),
        ("5 \u2212 8 = \u22123", ("5-8=-3",)),
        ("So x = 4, on page 3-4.", ()),
        ("", ()),
    ],
)
def test_equations_are_read_as_text_in_one_spelling(text, found):
    assert rft.equations(text) == found


def test_an_answer_without_equations_stands_for_itself_up_to_spaces():
    one, two = answer("It is 42.\n#### 42"), answer("It  is 42.\n#### 42")
    other = answer("Clearly 42.\n#### 42")
    assert rft.kept([one, two, other], GSM8K) == [one, other]
    by_text = GSM8K | {"distinct": "text"}
    assert rft.kept([RIGHT, SPACES, RIGHT], by_text) == [RIGHT, SPACES]


def test_best_keeps_the_finished_answer_closest_to_the_reference():
    rows = [
        answer(text, finished=finished, reference="the cat sat on the mat")
        for text, finished in (
            ("a dog ran", True), ("the cat sat on the mat", False), ("the cat sat", True),
            ("the cat", True),
        )
    ]  # fmt: skip
    assert rft.kept(rows, {"task": "tldr", "keep": "best"}) == [rows[2]]
    assert rft.kept(rows[1:2], {"task": "tldr", "keep": "best"}) == []


def levenshtein(left, right):
    """The definition, row by row."""
    row = list(range(len(right) + 1))
    for number, token in enumerate(left, start=1):
        new = [number]
        for place, other in enumerate(right, start=1):
            new.append(min(row[place] + 1, new[-1] + 1, row[place - 1] + (token != other)))
        row = new
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_edit_distance_is_levenshteins(left, right):
    assert rft.edit_distance(left, right) == levenshtein(left, right)


@pytest.fixture
def recipe(recipe_dict, tiny_model, tmp_path):
    """A model that ends some of its turns; none of its answers is right, so all are kept."""
    recipe_dict["model"] = model_that_ends_turns(tiny_model, tmp_path / "ends")
    recipe_dict["data"]["train"]["limit"] = 12
    recipe_dict["evaluate"] = []
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "rft": {"method": "rft", "samples": 3, "keep": "all", "max_per_prompt": 2},
    }
    return recipe_dict


def test_a_row_is_the_prompt_and_an_own_answer_that_is_its_own_label(
    recipe, write_recipe, run_steps_here
):
    plan, runs = run_steps_here(write_recipe(recipe), until=lambda step: step.kind == "kept")
    steps = steps_of(plan, "rft")
    rows = artifact.read_rows(steps["kept"].directory(runs) / ROWS)
    answers = artifact.read_rows(steps["answers"].directory(runs) / artifact.SAMPLES)
    finished = {(row["id"], tuple(row["ids"])) for row in answers if row["finished"]}
    assert 0 < len(finished) < len(answers) == 36, "the test needs both kinds"
    for row in rows:
        own = [label for label in row["labels"] if label != -100]
        assert row["labels"][-len(own) :] == own == row["input_ids"][-len(own) :] and own[-1] == 2
        assert (row["id"], tuple(own)) in finished
    record = artifact.read_record(steps["kept"].directory(runs))
    assert record["metrics"]["figures"]["answers kept"] == len(rows)
    assert record["metrics"]["figures"]["answers right"] == 0
    assert max(sum(row["id"] == one for row in rows) for one in range(12)) == 2


def test_lambda_0_is_sft_to_the_last_bit_and_without_references_only_own_answers_count(
    recipe, write_recipe, run_steps_here
):
    recipe["stages"] |= {
        "rft": recipe["stages"]["rft"] | {"lambda": 0},
        "own": recipe["stages"]["rft"] | {"references": False},
    }
    plan, runs = run_steps_here(write_recipe(recipe))
    trained = {stage: steps_of(plan, stage)["train"].directory(runs) for stage in plan.stages}
    weights = {
        name: found
        for name, found in result_digests(runs).items()
        if name.endswith("model.safetensors")
    }
    by_stage = {
        stage: weights[f"{folder.name}/model/model.safetensors"]
        for stage, folder in trained.items()
    }
    assert by_stage["sft"] == by_stage["rft"] != by_stage["own"]
    rows = artifact.read_rows(steps_of(plan, "rft")["kept"].directory(runs) / ROWS)
    metrics = artifact.read_record(trained["own"])["metrics"]
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert metrics["tokens_trained"] == pytest.approx(tokens * metrics["epochs"], abs=1)


def test_when_no_answer_is_right_the_step_says_so(recipe, write_recipe, run_steps_here):
    from pipeline.errors import InputError

    recipe["stages"]["rft"] |= {"keep": "right"}
    with pytest.raises(InputError, match="none of the 36 answers is kept: none is right"):
        run_steps_here(write_recipe(recipe))


def test_every_round_is_trained_from_the_stage_that_is_named(recipe, write_recipe):
    recipe["stages"] = {
        "base": {"method": "base"},
        "sft": {"method": "sft"},
        "rft": {"method": "rft", "from": "sft", "train_from": "base", "rounds": 2},
    }
    plan = make_plan(load_recipe(write_recipe(recipe)))
    steps = plan.stage_steps["rft", 0]
    assert [step.kind for step in steps] == ["answers", "kept", "train"] * 2
    sft = steps_of(plan, "sft")["train"]
    assert steps[0].inputs["base"] is sft
    assert steps[3].inputs["base"] is steps[2], "the second round's answers are the new model's"
    for train in (steps[2], steps[5]):
        assert train.inputs["base"] == sft.inputs["base"], "the untouched model"


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ({"keep": "best", "distinct": "text"}, "distinct", "does nothing beside keep: best"),
        ({"references": False, "lambda": 0}, "lambda", "nothing to train on"),
        ({"train_from": "sftt"}, "train_from", "did you mean sft?"),
        ({"samples": 0}, "samples", "greater than or equal to 1"),
    ],
)
def test_what_check_says(recipe, write_recipe, keys, key, said):
    recipe["stages"]["rft"] |= keys
    assert said in problems_of(write_recipe(recipe))[f"stages.rft.{key}"]


def test_a_task_without_a_grader_keeps_the_best(recipe, write_recipe):
    recipe |= {"task": "tldr", "data": {"train": {"source": "builtin:posts", "limit": 4}}}
    del recipe["stages"]["rft"]["keep"], recipe["stages"]["rft"]["max_per_prompt"]
    plan = make_plan(load_recipe(write_recipe(recipe)))
    assert steps_of(plan, "rft")["kept"].options["keep"] == "best"
    recipe["stages"]["rft"]["keep"] = "right"
    assert "needs a grader" in problems_of(write_recipe(recipe))["stages.rft.keep"]
