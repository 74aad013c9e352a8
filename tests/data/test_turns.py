"""`train_on: all`: every answer of a dialogue is trained on, after the turns before it."""

import json

import pytest
from conftest import build_tokenizer, problems_of, tiny_recipe

from pipeline.data.load import load_examples
from pipeline.data.render import Renderer
from pipeline.data.tasks import example_of
from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact


def turn(role, text):
    return {"role": role, "content": text}


DIALOGUE = [
    turn("system", "Be kind."),
    turn("assistant", "How can I help?"),
    turn("user", "1 + 1?"),
    turn("assistant", " 2 "),
    turn("user", "2 + 2?"),
    turn("assistant", "4"),
]
STAGES = {
    "sft": {"method": "sft"},
    "bash": {"method": "bash", "from": "sft", "beta": 1.0},
    "rac": {"method": "rac", "from": "sft"},
}


@pytest.fixture
def dialogues(tmp_path):
    rows = [{"messages": DIALOGUE}, {"messages": DIALOGUE[2:4]}]
    path = tmp_path / "dialogues.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"source": str(path)}


def test_every_answer_to_a_question_is_an_example(dialogues):
    found = load_examples(dialogues, "chat", train_on="all")
    assert [(len(one.messages), one.reference) for one in found] == [(3, "2"), (5, "4"), (1, "2")]
    assert found[0].messages == DIALOGUE[:3] and found[1].messages == DIALOGUE[:5]
    assert load_examples(dialogues, "chat") == found[1:]


def test_a_dialogue_is_left_out_whole(tmp_path):
    """One of its answers cannot be used, so that the numbers of rows stay those of dialogues."""
    tokenizer = build_tokenizer(template=True)
    tokenizer.chat_template += (
        "{% if messages | length == 3 %}{{ raise_exception('too short') }}{% endif %}"
    )
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": DIALOGUE}, {"messages": DIALOGUE[2:4]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    source, renderer, said = {"source": str(path), "skip_unusable": True}, Renderer(tokenizer), []
    with pytest.raises(InputError, match=r"rows.jsonl:1: .*too short"):
        load_examples({"source": str(path)}, "chat", print, renderer, train_on="all")
    (one,) = load_examples(source, "chat", said.append, renderer, train_on="all")
    assert one == example_of("chat", rows[1]) and "1 of 2 rows left out" in said[0]


def test_contexts_are_mixed_into_every_answer_and_rac_keeps_the_last(
    dialogues, tiny_model, write_recipe, run_steps_here
):
    data = {"train": dialogues}
    recipe = {**tiny_recipe(tiny_model), "task": "chat", "data": data, "stages": STAGES}
    recipe |= {"train_on": "all", "evaluate": []}
    plan, runs = run_steps_here(write_recipe(recipe))
    kinds = {(step.stage, step.kind): step for step in plan.steps}
    mixed = artifact.read_rows(kinds["bash", "contexts"].directory(runs) / "rows.jsonl")
    assert [row["id"] for row in mixed] == [0, 1, 2]
    labels = [[label for label in row["labels"] if label != -100] for row in mixed]
    decode = build_tokenizer(template=True).decode
    assert [decode(ids) for ids in labels] == ["2<|im_end|>", "4<|im_end|>", "2<|im_end|>"]
    counts = {
        stage: artifact.read_record(kinds[stage, "train"].directory(runs))["metrics"]["data"]
        for stage in STAGES
    }
    assert {stage: one["rows"] for stage, one in counts.items()} == {"sft": 3, "bash": 3, "rac": 2}
    assert counts["bash"]["self_generated_rows"] == 3


def test_the_answers_trained_on_are_part_of_identity_only_where_they_are_all(
    dialogues, tiny_model, write_recipe
):
    recipe = {**tiny_recipe(tiny_model), "task": "chat", "data": {"train": dialogues}}
    recipe |= {"stages": STAGES, "evaluate": []}
    path = write_recipe(recipe)
    plain, last, every = (
        {
            (step.stage, step.kind): step.options
            for step in make_plan(load_recipe(path, given)).steps
        }
        for given in ([], ["train_on=last"], ["train_on=all"])
    )
    assert plain == last
    having = {key for key, options in every.items() if "train_on" in options}
    assert having == {("sft", "train"), ("bash", "contexts"), ("bash", "train")}
    assert "is for dialogues" in problems_of(
        write_recipe(tiny_recipe(tiny_model)), "train_on=all"
    )["train_on"]  # fmt: skip
