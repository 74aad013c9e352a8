import json

import pytest
import torch
from helpers import greedy_by_definition

from pipeline.decoding.generate import Prompt, SamplingParams, generate_answers, iter_answers
from pipeline.decoding.probe import can_read
from pipeline.errors import InputError
from pipeline.models.load import load_model
from pipeline.steps import artifact


def prompts_of(count):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(3, 20, (count,), generator=generator).tolist()
    rows = [torch.randint(3, 400, (size,), generator=generator).tolist() for size in sizes]
    return [Prompt(row_id, 0, ids) for row_id, ids in enumerate(rows)]


@pytest.mark.parametrize("engine", ["auto", "transformers"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_greedy_answers_equal_one_token_after_the_other(
    tiny_model, plain_model, engine, batch_size
):
    for name in (tiny_model, plain_model):
        model = load_model(name)
        prompts = prompts_of(6)
        expected = [greedy_by_definition(model, prompt.ids, 2, 12) for prompt in prompts]
        answers = generate_answers(
            model, prompts, max_new_tokens=12, stop_ids=[2], engine=engine, batch_size=batch_size
        )
        assert answers == expected


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_an_answer_ends_with_its_stop_token_and_holds_nothing_after_it(tiny_model, engine):
    model = load_model(tiny_model)
    prompts = prompts_of(6)
    free = generate_answers(model, prompts, max_new_tokens=12, stop_ids=[2], engine=engine)
    stop = free[0][3]  # a token the first answer is known to reach
    answers = generate_answers(model, prompts, max_new_tokens=12, stop_ids=[stop], engine=engine)
    assert answers[0] == free[0][: free[0].index(stop) + 1]
    assert all(stop not in answer[:-1] for answer in answers)
    assert all(len(answer) == 12 or answer[-1] == stop for answer in answers)


def test_a_sample_depends_on_seed_row_and_number_not_on_its_batch_or_engine(tiny_model):
    model = load_model(tiny_model)
    prompts = prompts_of(9)
    options = {"max_new_tokens": 10, "stop_ids": [2], "temperature": 1.0, "seed": 3}
    together = generate_answers(model, prompts, **options)
    alone = [generate_answers(model, [prompt], **options)[0] for prompt in prompts]
    assert together == alone
    for more in ({"engine": "transformers"}, {"batch_size": 2}, {"batch_size": 5}):
        assert generate_answers(model, prompts, **options, **more) == together
    assert generate_answers(model, prompts, **{**options, "seed": 4}) != together
    second = [Prompt(prompt.row_id, 1, prompt.ids) for prompt in prompts]
    assert generate_answers(model, second, **options) != together


def test_what_all_prompts_begin_with_is_read_once(tiny_model):
    """And every other prompt token once too, but for padding to the longest of a pass."""
    model = load_model(tiny_model)
    start = list(range(10, 60))
    prompts = [Prompt(row, 0, start + [70 + row] * 4) for row in range(8)]
    read = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    assert can_read(model, 55)  # tried once for a model
    read.clear()
    answers = generate_answers(model, prompts, max_new_tokens=1, stop_ids=[2])
    handle.remove()
    assert answers == [greedy_by_definition(model, prompt.ids, 2, 1) for prompt in prompts]
    # The shared start, 3 more tokens of each prompt, and the last one of each, for its logits.
    assert read == [50, 8 * 3, 8]


def test_a_finished_answers_place_goes_to_a_waiting_one(tiny_model):
    """Answers of 1 token and of 12: the passes are those of the long ones, not of every batch."""
    model = load_model(tiny_model)
    (prompt,) = prompts_of(1)
    (whole,) = generate_answers(model, [prompt], max_new_tokens=12, stop_ids=[])
    passes = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: passes.append(tuple(inputs[0].shape))
    )
    # Prompts that hold all but the last of their answer, and prompts that hold none of it.
    prompts = [Prompt(row, 0, prompt.ids + whole[: 11 * (row % 2)]) for row in range(8)]
    answers = generate_answers(
        model, prompts, max_new_tokens=12, stop_ids=[whole[11]], batch_size=4
    )
    handle.remove()
    assert all(answer[-1] == whole[11] for answer in answers)
    decoding = [shape for shape in passes if shape[1] == 1]
    assert len(decoding) <= 2 * whole.index(whole[11]) + 3


def test_an_unknown_engine_is_named(tiny_model):
    with pytest.raises(ValueError, match="no engine 'fast'; engines: auto, transformers"):
        generate_answers(
            load_model(tiny_model), prompts_of(1), max_new_tokens=1, stop_ids=[2], engine="fast"
        )


def test_a_model_that_cannot_be_read_in_parallel_is_answered_all_the_same():
    from helpers import bloom

    model, prompts = bloom(), prompts_of(3)
    answers = generate_answers(model, prompts, max_new_tokens=5, stop_ids=[2])
    assert answers == [greedy_by_definition(model, prompt.ids, 2, 5) for prompt in prompts]


def test_a_models_own_generation_config_does_not_change_answers(tiny_model):
    model, other = load_model(tiny_model), load_model(tiny_model)
    other.generation_config.repetition_penalty = 5.0
    other.generation_config.min_new_tokens = 9
    prompts = prompts_of(4)
    answers = [generate_answers(m, prompts, max_new_tokens=8, stop_ids=[2]) for m in (model, other)]
    assert answers[0] == answers[1]


def test_samples_follow_the_models_distribution(tiny_model):
    """First token of 4000 samples of one prompt: shares within 5 standard errors of softmax."""
    model = load_model(tiny_model)
    ids = prompts_of(1)[0].ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    prompts = [Prompt(0, sample, ids) for sample in range(4000)]
    answers = generate_answers(
        model, prompts, max_new_tokens=1, stop_ids=[2], temperature=1.0, seed=0
    )
    shares = torch.bincount(torch.tensor([a[0] for a in answers]), minlength=len(expected)) / 4000
    errors = (expected * (1 - expected) / 4000).sqrt() + 1e-3
    assert expected.max() > 0.02 and ((shares - expected).abs() / errors).max() < 5


def recipe_with_long_rows(recipe_dict, folder):
    """Five questions, the third far over the tiny model's window of 512."""
    path = folder / "rows.jsonl"
    questions = ["one two three " * (400 if number == 2 else 2) for number in range(5)]
    rows = [{"question": question, "answer": "#### 1"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_dict["data"] = {"train": {"source": str(path)}, "test": {"source": str(path)}}
    return recipe_dict


def test_training_prompts_that_do_not_fit_are_left_out_and_counted(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    recipe_dict = recipe_with_long_rows(recipe_dict, tmp_path)
    recipe_dict |= {"stages": {"rac": {"method": "rac"}}, "evaluate": []}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    answers = artifact.read_rows(plan.steps[0].directory(runs) / artifact.SAMPLES)
    assert [row["id"] for row in answers] == [0, 1, 3, 4]
    records = [artifact.read_record(step.directory(runs))["metrics"] for step in plan.steps]
    place = f"{tmp_path / 'rows.jsonl'}:3"
    assert records[0]["warnings"][0].startswith(f"1 of 5 rows get no answer, first {place}: a pro")
    assert records[1]["figures"]["answers"] == 4
    assert records[2]["data"]["dropped"] == 1 and records[2]["data"]["self_generated_rows"] == 4


def test_a_test_prompt_that_does_not_fit_is_an_error(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    recipe_dict = recipe_with_long_rows(recipe_dict, tmp_path)
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    with pytest.raises(
        InputError, match=r"rows.jsonl:3: a prompt of .* exceed the model's window of 512"
    ):
        run_steps_here(write_recipe(recipe_dict))


def test_generating_leaves_the_model_as_it_was(tiny_model):
    model = load_model(tiny_model).train()
    model.generation_config.repetition_penalty = 9.0
    config = model.generation_config
    generate_answers(model, prompts_of(2), max_new_tokens=2, stop_ids=[2])
    assert model.training and model.generation_config is config


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_prompt_may_have_a_limit_of_its_own(tiny_model, engine):
    model = load_model(tiny_model)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
    limits = [3, None, 1, 5]
    how = SamplingParams(max_new_tokens=6, stop_ids=[2])
    whole = dict(iter_answers(model, [Prompt(i, 0, ids) for i, ids in enumerate(prompts)], how))
    asked = [
        Prompt(i, 0, ids, limit=limit)
        for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    found = dict(iter_answers(model, asked, how, engine=engine, batch_size=3))
    assert found == {i: ids[: limits[i]] for i, ids in whole.items()}
    assert [len(found[i]) for i in range(4)] == [3, len(whole[1]), 1, min(5, len(whole[3]))]
