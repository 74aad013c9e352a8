"""A recipe's own chat template, for a model that has none."""

import pytest
import yaml
from conftest import CHAT_TEMPLATE, ROOT, build_tokenizer, problems_of

from pipeline.data.render import Renderer
from pipeline.data.tasks import example_of
from pipeline.errors import InputError
from pipeline.models.load import load_tokenizer
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.chat_template import read_chat_template
from pipeline.steps import artifact

SHIPPED = ROOT / "recipes" / "alpaca-mistral-7b.yaml"
STAGES = {
    "sft": {"method": "sft"},
    "rac": {"method": "rac", "from": "sft"},
    "dpo": {"method": "dpo", "from": "rac"},
}


def rendering(step, runs):
    return artifact.read_record(step.directory(runs))["metrics"]["rendering"]


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
def test_a_model_without_a_template_learns_answers_and_is_saved_with_the_recipes(
    recipe_dict, plain_model, write_recipe, run_steps_here, lora
):
    from transformers import AutoTokenizer

    own = {"model": plain_model, "lora": lora, "stages": STAGES, "chat_template": CHAT_TEMPLATE}
    plan, runs = run_steps_here(write_recipe(recipe_dict | own))
    tokenizer = load_tokenizer(plain_model, chat_template=CHAT_TEMPLATE)
    rendered = [step for step in plan.steps if "chat_template" in step.options]
    assert {"train", "answers", "corrections"} <= {step.kind for step in rendered}
    assert {rendering(step, runs) for step in rendered} == {Renderer(tokenizer).digest()}
    (corrections,) = [step for step in rendered if step.kind == "corrections"]
    for row in artifact.read_rows(corrections.directory(runs) / "rows.jsonl"):
        assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>user\n")

    last = plan.models["dpo", 0]
    folder = (last.adapter or last.base).directory(runs) / "model"
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATE
    elsewhere = {key: recipe_dict[key] for key in ("task", "data", "launch", "generation")}
    elsewhere |= {"name": "elsewhere", "model": str(folder), "evaluate": ["gsm8k"]}
    elsewhere |= {"stages": {"base": {"method": "base"}}}
    other, _ = run_steps_here(write_recipe(elsewhere, "elsewhere.yaml"))
    answers = other.results["base", "gsm8k", 0].inputs["answers"]
    assert rendering(answers, runs) == Renderer(tokenizer).digest()


def test_a_model_with_a_template_keeps_it_and_the_report_says_so(
    recipe_dict, write_recipe, run_steps_here
):
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "chat_template": "{{ messages }}"}
    plan, runs = run_steps_here(write_recipe(recipe_dict), until=lambda step: step.kind == "train")
    step = plan.models["sft", 0].base
    assert rendering(step, runs) == Renderer(load_tokenizer(recipe_dict["model"])).digest()
    (warning,) = artifact.read_record(step.directory(runs))["metrics"]["warnings"]
    assert warning.startswith("the model has its own chat template, which is used")


def test_it_is_part_of_what_steps_are_known_by_only_where_given(
    recipe_dict, write_recipe, tmp_path
):
    def planned(**change):
        return make_plan(load_recipe(write_recipe(recipe_dict | change))).steps

    before, after = planned(), planned(chat_template=CHAT_TEMPLATE)
    assert not any("chat_template" in step.options for step in before)
    changed = {
        one.kind for one, other in zip(before, after, strict=True)
        if one.fingerprint != other.fingerprint
    }  # fmt: skip
    assert changed == {"train", "contexts", "answers", "gsm8k"}
    file = tmp_path / "turns.jinja"
    file.write_text(CHAT_TEMPLATE)
    from_file = planned(chat_template=str(file))
    assert [step.fingerprint for step in from_file] == [step.fingerprint for step in after]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "is no Jinja template: line 1: Unexpected end"),
        ("{{ messages }", "is no Jinja template"),
        ("{{ system }}", "loops over `messages`"),
        ("turns.jinja", "names a file, which cannot be read: No such file"),
    ],
)
def test_a_template_that_cannot_be_is_a_problem(recipe_dict, write_recipe, template, message):
    found = problems_of(write_recipe(recipe_dict | {"chat_template": template}))
    assert message in found["chat_template"] and len(found) == 1


def test_a_file_that_is_no_text_is_a_sentence(tmp_path):
    (tmp_path / "turns.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(InputError, match="not UTF-8"):
        read_chat_template(str(tmp_path / "turns.jinja"))


def test_what_transformers_adds_to_jinja_is_read():
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{%- generation -%}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert read_chat_template(template) == template


def test_the_shipped_template_ends_turns_with_any_models_end_token_and_begins_once():
    template = yaml.safe_load(SHIPPED.read_text())["chat_template"]
    tokenizer = build_tokenizer(template=False)
    tokenizer.bos_token, tokenizer.chat_template = "<|im_start|>", template
    renderer = Renderer(tokenizer)
    turns = [
        {"role": role, "content": text}
        for role, text in [("user", "Hi"), ("assistant", "Yes?"), ("user", "2 + 3?"), ("assistant", "5.")]
    ]  # fmt: skip
    example = example_of("chat", {"messages": turns})
    prompt, answer = renderer.prompt_ids(example), renderer.answer_ids(example, example.reference)
    assert tokenizer.decode(prompt + answer) == (
        "<|im_start|><|user|>\nHi<|im_end|>\n<|assistant|>\nYes?<|im_end|>\n"
        "<|user|>\n2 + 3?<|im_end|>\n<|assistant|>\n5.<|im_end|>"
    )
    assert renderer.end_of_turn_id == tokenizer.eos_token_id
    assert renderer.prompt_starts_dialogue()
