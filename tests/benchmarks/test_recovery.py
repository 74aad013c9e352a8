"""recovery: beginnings with replaced tokens, against token-by-token definitions, and their grades."""

import pytest
import torch
import yaml
from conftest import problems_of
from helpers import greedy_by_definition, last_logits, model_that_ends_turns

from eval.benchmarks.recovery import _measures, _right
from eval.report.collect import collect
from eval.report.markdown import markdown
from pipeline.data.render import Renderer
from pipeline.decoding import noise
from pipeline.estimate.tokens import Workload
from pipeline.models.load import load_model, load_tokenizer
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.stored import ROWS
from pipeline.run.worker import execute
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec

LIMIT = 12
KS = [1, 2, 4]


@pytest.fixture(scope="module")
def recipe(tiny_model, tmp_path_factory):
    """Two models, one of which continues what the other began, too."""
    return {
        "name": "recoveries",
        "task": "gsm8k",
        "model": model_that_ends_turns(tiny_model, tmp_path_factory.mktemp("m") / "ends"),
        "precision": "float32",
        "data": {
            "train": {"source": "builtin:maths", "limit": 6},
            "test": {"source": "builtin:maths", "limit": 14},
        },
        "launch": "cpu",
        "batch_size": 2,
        "trainer": {"learning_rate": 0.01, "max_steps": 1, "max_length": 256},
        "generation": {"max_new_tokens": LIMIT, "batch_tokens": 600},
        "stages": {"base": {"method": "base"}, "sft": {"method": "sft"}},
        "evaluate": ["recovery"],
        "benchmarks": {"recovery": {"limit": 12, "replaced": KS, "fixed": "base"}},
    }


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The recipe, run once for all tests that read: (plan, runs)."""
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan = make_plan(load_recipe(folder / "recipe.yaml"))
    for step in plan.steps:
        execute(StepContext.read(write_spec(step, folder / "runs", processes=1, use_cpu=True)))
    return plan, folder / "runs"


def read(done, stage, name, file=artifact.SAMPLES):
    plan, runs = done
    result = plan.results[stage, "recovery", 0]
    step = result.inputs[name]
    step = step.inputs["beginnings"] if file == ROWS else step
    return artifact.read_rows(step.directory(runs) / file)


def test_tokens_are_drawn_left_to_right_from_the_writers_own_distribution(done, recipe):
    """Never the token that stood there, never a special one; noise by row and position."""
    model, tokenizer = load_model(recipe["model"]), load_tokenizer(recipe["model"])
    renderer = Renderer(tokenizer, end_ids=(2,), vocabulary=400)
    special = sorted(renderer.special_ids | {2})
    beginnings = {(row["id"], row["cut"], row["k"]): row for row in read(done, "base", "own", ROWS)}
    assert len(beginnings) == 12 * 3 * 4
    changed = 0
    for (row, cut, _), found in beginnings.items():
        before = beginnings[row, cut, 0]["ids"]
        places = [at for at, token in enumerate(found["ids"]) if token != before[at]]
        assert len(places) == found["replaced"] <= found["k"], "every draw is another token"
        changed += len(places)
        ids = list(before)
        for at in places:
            logits = last_logits(model, found["prompt"] + ids[:at])
            logits[[*special, before[at]]] = float("-inf")
            key = noise.keys(0, torch.tensor([row]), torch.tensor([at]), stream=noise.SAMPLE)
            ids[at] = int((logits + noise.gumbel(key, len(logits))[0]).argmax())
        assert found["ids"] == ids
    assert changed > 30, "the test needs many"


def test_places_of_a_smaller_k_are_among_those_of_a_larger_one(done):
    beginnings = read(done, "base", "own", ROWS)
    by_key = {(row["id"], row["cut"], row["k"]): row["ids"] for row in beginnings}
    for (row, cut, k), ids in by_key.items():
        before = by_key[row, cut, 0]
        if 2 * k in KS:
            more = by_key[row, cut, 2 * k]
            places = [
                {at for at, token in enumerate(one) if token != before[at]} for one in (ids, more)
            ]
            assert places[0] <= places[1]


def test_the_last_tokens_are_replaced_where_asked(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    plan = make_plan(
        load_recipe(path, ["benchmarks.recovery.where=end", "benchmarks.recovery.fixed=null"])
    )
    result = plan.results["base", "recovery", 0]
    beginnings = result.inputs["own"].inputs["beginnings"]
    for step in (result.inputs["answers"], beginnings):
        execute(StepContext.read(write_spec(step, tmp_path / "runs", processes=1, use_cpu=True)))
    rows = artifact.read_rows(beginnings.directory(tmp_path / "runs") / ROWS)
    by_key = {(row["id"], row["cut"], row["k"]): row["ids"] for row in rows}
    for (row, cut, k), ids in by_key.items():
        kept = max(len(ids) - k, 0)
        before = by_key[row, cut, 0]
        assert ids[:kept] == before[:kept]
        assert all(one != other for one, other in zip(ids[kept:], before[kept:], strict=True))


@pytest.mark.parametrize(("stage", "whose"), [("base", "own"), ("sft", "own"), ("sft", "fixed")])
def test_continuations_are_greedy_and_k_0_gives_the_answer_again(done, stage, whose):
    plan, runs = done
    answers = artifact.read_rows(
        plan.results[stage, "recovery", 0].inputs["answers"].directory(runs) / artifact.SAMPLES
    )
    answers = {row["id"]: row["ids"] for row in answers}
    place = plan.models[stage, 0].base
    model = load_model(str(place.directory(runs) / "model") if place else plan.recipe.model)
    beginnings = {(row["id"], row["cut"], row["k"]): row for row in read(done, stage, whose, ROWS)}
    for row in read(done, stage, whose):
        began = beginnings[row["id"], row["cut"], row["k"]]
        room = LIMIT - len(began["ids"])
        more = greedy_by_definition(model, began["prompt"] + began["ids"], 2, room)
        assert row["ids"] == began["ids"] + more
        if whose == "own" and row["k"] == 0:
            assert row["ids"] == answers[row["id"]]


def test_the_report_tells_of_both_and_of_answers_that_were_not_continued_alike(done):
    plan, runs = done
    result = artifact.read_json(
        plan.results["sft", "recovery", 0].directory(runs) / artifact.RESULT
    )
    assert result["primary"] == "recovery" and result["n"] == 12
    assert list(result["measures"])[:5] == ["recovery", *(f"right at {k}" for k in (0, 1, 2, 4))]
    assert set(result["curves"]) == {"own", "fixed"}
    record = artifact.read_record(plan.results["sft", "recovery", 0].directory(runs))
    figures = record["metrics"]["figures"]
    assert figures == {
        "answers continued without a change": 36, "not continued to the same answer": 0
    }  # fmt: skip
    text = markdown(collect(plan, runs))
    assert "right at 4, fixed" in text and "written by base" in text


def test_the_work_is_counted(done):
    """12 answers of at most 12 tokens; cut at 3, 6 and 9; 0, 1, 2 and 4 tokens replaced."""
    plan, _ = done
    result = plan.results["base", "recovery", 0]
    work = Workload(plan)
    answers, beginnings = (result.inputs["answers"], result.inputs["own"].inputs["beginnings"])
    asked = work.of(answers)
    assert (asked.rows, asked.written) == (12, 12 * 12)
    found = work.of(beginnings)
    assert (found.rows, found.written) == (12 * 3 * 3, 12 * 3 * (1 + 2 + 4))
    assert found.read == (3 * asked.read + 12 * 18) * 3
    found = work.of(result.inputs["own"])
    assert found.rows == 12 * 3 * 4
    assert (found.written, found.read) == (12 * (9 + 6 + 3) * 4, (3 * asked.read + 12 * 18) * 4)


def answer_row(row, cut, k, answer, *, digits=False):
    return {
        "id": row, "cut": cut, "k": k, "replaced": k, "digits": digits, "answer": answer,
        "finished": True,
    }  # fmt: skip


def test_scores_by_hand():
    """Row 0 is right at k = 0 and stays so in one of two; row 1 is wrong, and mended in one."""
    answers = {
        row: {"id": row, "reference": "#### 7", "answer": "", "finished": True} for row in (0, 1)
    }
    rows = [
        answer_row(0, 0, 0, "#### 7"), answer_row(0, 0, 1, "#### 7", digits=True),
        answer_row(0, 0, 2, "#### 8"),
        answer_row(1, 0, 0, "#### 9"), answer_row(1, 0, 1, "#### 9"), answer_row(1, 0, 2, "#### 7"),
    ]  # fmt: skip
    found = {
        name: one["scores"] for name, one in _measures(_right(rows, answers, "gsm8k"), "").items()
    }
    assert found == {
        "recovery": [0.5, 0.5], "right at 0": [1, 0], "right at 1": [1, 0], "right at 2": [0, 1],
        "kept": [0.5, None], "repaired": [None, 0.5],
        "digits replaced": [1, None], "no digits replaced": [None, 0],  # at k = 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ({"cuts": [0.5, 0.25]}, "benchmarks.recovery.cuts", "must increase"),
        ({"replaced": [2, 2]}, "benchmarks.recovery.replaced", "must increase"),
        ({"temperature": 0.7}, "benchmarks.recovery.temperature", "are greedy"),
        ({"fixed": "bases"}, "benchmarks.recovery.fixed", "did you mean base?"),
    ],
)
def test_what_check_says(recipe, write_recipe, keys, key, said):
    assert said in problems_of(write_recipe(recipe | {"benchmarks": {"recovery": keys}}))[key]


def test_gap_does_not_take_recoverys_answers_for_those_of_its_own_rows(recipe, write_recipe):
    """Of the same source `recovery` answers the first rows only."""
    more = {"evaluate": ["recovery", "gap"], "benchmarks": {"recovery": {"limit": 2}}}
    plan = make_plan(load_recipe(write_recipe(recipe | more)))
    asked = [plan.results["base", name, 0].inputs["answers"] for name in ("recovery", "gap")]
    assert [step.locations["test"]["limit"] for step in asked] == [2, 14]


def test_a_task_without_a_grader_is_refused(recipe, write_recipe):
    posts = {"train": {"source": "builtin:posts"}, "test": {"source": "builtin:posts"}}
    found = problems_of(write_recipe(recipe | {"task": "tldr", "data": posts}))
    assert "needs a task that grades answers" in found["evaluate"]
