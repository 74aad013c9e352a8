"""Rows that would ruin a training are stopped and shown before weights are loaded."""

import json
import shutil

import pytest
from conftest import build_tokenizer, first_step

from pipeline.data.preflight import Row, check_rows
from pipeline.data.render import Renderer
from pipeline.errors import InputError
from pipeline.steps import artifact

PROMPT, ANSWER, END = [7, 8], [9, 10], 2


class Step:
    """The part of a StepContext that warnings go to."""

    def __init__(self):
        self.warnings = []

    def warn(self, sentence):
        self.warnings.append(sentence)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(build_tokenizer(template=True))


def row(**change):
    ids = {
        "name": "row 1",
        "prompt": PROMPT,
        "input_ids": [*PROMPT, *ANSWER, END],
        "labels": [-100, -100, *ANSWER, END],
        "whole": True,
    }
    return Row(**(ids | change))


def test_a_right_row_passes_without_a_word(renderer):
    step = Step()
    check_rows(step, [row()], renderer)
    assert step.warnings == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [7, 5, 9, 10, 2]}, "row 1 does not start with the prompt"),
        ({"labels": [-100, 8, 9, 10, 2]}, "row 1 has loss on its prompt"),
        ({"labels": [-100, -100, 9, 2, 10]}, "last label is not the end-of-turn token"),
        ({"labels": [-100, -100, 9, 10, 11], "whole": False}, "row 1 has no end-of-turn token"),
        ({"labels": [-100] * 5, "whole": False}, "row 1 has no label"),
        ({"wanted": False}, "row 1 has no end-of-turn token"),
    ],
)
def test_a_row_that_cannot_be_right_stops_the_run_and_is_shown(renderer, change, message):
    with pytest.raises(InputError, match=message) as caught:
        check_rows(Step(), [row(**change)], renderer)
    shown = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in shown] == ["prompt", "input", "labels"]
    assert repr(renderer.tokenizer.decode(PROMPT)) in shown[0]


def test_no_row_at_all_stops_the_run(renderer):
    with pytest.raises(InputError, match="there are no rows to train on"):
        check_rows(Step(), [], renderer)


def test_two_beginning_tokens_stop_the_run():
    tokenizer = build_tokenizer(template=True)
    tokenizer.bos_token = "<|im_start|>"
    begin = tokenizer.bos_token_id
    double = row(
        prompt=[begin, begin],
        input_ids=[begin, begin, *ANSWER, END],
    )
    with pytest.raises(InputError, match="two beginning tokens"):
        check_rows(Step(), [double], Renderer(tokenizer))


def test_an_end_token_inside_an_answer_is_counted(renderer):
    inside = row(input_ids=[*PROMPT, END, 9, END], labels=[-100, -100, END, 9, END], name="row 2")
    step = Step()
    check_rows(step, [row(), inside], renderer)
    assert len(step.warnings) == 1
    assert "1 of 2 rows" in step.warnings[0] and "row 2" in step.warnings[0]


def test_a_padding_token_that_ends_turns_is_warned_of():
    tokenizer = build_tokenizer(template=True)
    tokenizer.pad_token = tokenizer.eos_token
    step = Step()
    check_rows(step, [row()], Renderer(tokenizer))
    assert len(step.warnings) == 1 and "also an end token" in step.warnings[0]


def copy_model(model, folder, **settings):
    """A copy of a saved model with other tokenizer settings."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_a_tokenizer_that_ends_prompts_stops_every_training_step(
    plain_model, recipe_dict, write_recipe, run_steps_here, tmp_path
):
    """As tokenizers with add_eos_token do: the model would learn to answer after an end."""
    folder = copy_model(plain_model, tmp_path / "ends-prompts")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    end = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
        },
    }
    path.write_text(json.dumps(tokenizer))
    recipe_dict["model"] = str(folder)
    for name in ("sft", "sft-dpo"):
        body = dict(recipe_dict["stages"][name])
        body.pop("from", None)
        with pytest.raises(InputError, match="add_eos_token"):
            run_steps_here(write_recipe(recipe_dict | {"stages": {"only": body}}))


def test_answers_that_are_all_cut_stop_the_run_before_weights_are_loaded(
    recipe_dict, write_recipe, run_steps_here, tiny_model, tmp_path
):
    """The weights are taken away, so anything that loaded them first would say so instead."""
    from pipeline.data.tasks import Example
    from pipeline.models.load import load_tokenizer

    folder = copy_model(tiny_model, tmp_path / "no-weights")
    (folder / "model.safetensors").unlink()
    data = tmp_path / "train.jsonl"
    question, answer = "What is 1 + 1?", "1 + 1 = 2\n#### 2"
    data.write_text(json.dumps({"question": question, "answer": answer}) + "\n")
    recipe_dict["model"] = str(folder)
    prompt = [{"role": "user", "content": question}]
    renderer = Renderer(load_tokenizer(tiny_model))
    size = len(renderer.prompt_ids(Example("gsm8k", prompt, answer)))
    recipe_dict["trainer"]["max_length"] = size + 3
    recipe_dict["data"]["train"] = {"source": str(data)}
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    with pytest.raises(InputError, match="has no end-of-turn token as a label"):
        run_steps_here(write_recipe(recipe_dict))


def test_weights_saved_with_another_template_are_not_evaluated(
    recipe_dict, write_recipe, run_steps_here
):
    """A stage's folder is what the next step renders with; a template changed in it is noticed."""
    from pipeline.errors import StepFailedError

    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    path = write_recipe(recipe_dict)
    plan, runs = run_steps_here(path, until=lambda step: step.kind == "train")
    folder = first_step(plan).directory(runs)
    template = folder / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|>the "))
    written = {"files": artifact.written_files(folder)}  # as if the step had written it so
    artifact.write_record(folder, artifact.read_record(folder) | written)
    with pytest.raises(StepFailedError, match="another chat template"):
        run_steps_here(path)


def test_the_template_a_step_used_stands_in_its_record(recipe_dict, write_recipe, run_steps_here):
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    records = [artifact.read_record(step.directory(runs)) for step in plan.steps]
    templates = {r["metrics"]["rendering"] for r in records if "rendering" in r["metrics"]}
    assert len(templates) == 1
