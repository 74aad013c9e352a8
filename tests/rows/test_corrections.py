"""RAC labels against a slow recomputation, one position at a time, on two architectures."""

import pytest
import torch
from conftest import random_ids

from pipeline.decoding import noise
from pipeline.models.load import load_model
from pipeline.rows.corrections import correct


@pytest.fixture(scope="module")
def models(tiny_model, plain_model):
    return {"llama": load_model(tiny_model), "gpt_neox": load_model(plain_model)}


def make_rows(count=7):
    generator = torch.Generator().manual_seed(4)
    prompts = [random_ids(generator, 2, 10) for _ in range(count)]
    shown = [prompt + random_ids(generator, 5, 20) for prompt in prompts]
    answers = [[*random_ids(generator, 1, 15), 2] for _ in range(count)]
    return prompts, shown, answers


def logits_by_definition(model, shown, answer):
    """Logits before each answer token: one pass a position, no batch, no cache, no padding."""
    with torch.no_grad():
        return [
            model(torch.tensor([shown + answer[:place]])).logits[0, -1]
            for place in range(len(answer))
        ]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_labels_equal_a_recomputation_position_by_position(models, architecture):
    model = models[architecture]
    prompts, shown, answers = make_rows()
    expected = [
        [int(logits.argmax()) for logits in logits_by_definition(model, s, a)]
        for s, a in zip(shown, answers, strict=True)
    ]
    for batch_size in (1, 3, 8):
        assert correct(model, prompts, shown, answers, batch_size=batch_size) == expected
    assert expected != answers


def test_with_the_plain_prompt_shown_labels_are_the_models_own_greedy_steps(models):
    """Greedy decoding appends argmax pi(. | x, yhat_<t); with r(x, y) = x that is c_t itself.

    So the labels of a greedy continuation are the continuation.
    """
    model = models["llama"]
    prompts, _, _ = make_rows()
    greedy = []
    for prompt in prompts:
        answer = []
        for _ in range(6):
            with torch.no_grad():
                answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].argmax()))
        greedy.append(answer)
    assert correct(model, prompts, prompts, greedy) == greedy


def test_company_order_and_padding_do_not_matter(models):
    model = models["llama"]
    prompts, shown, answers = make_rows()
    for options in ({}, {"label": "sample", "seed": 3}, {"min_confidence": 0.02}):
        rows = list(range(7))
        together = correct(model, prompts, shown, answers, row_ids=rows, **options)
        backwards = correct(
            model, prompts[::-1], shown[::-1], answers[::-1], row_ids=rows[::-1], **options
        )
        alone = correct(model, prompts[4:5], shown[4:5], answers[4:5], row_ids=[4], **options)
        assert backwards == together[::-1] and alone == together[4:5]


def test_sampled_labels_are_draws_with_noise_of_seed_row_and_position(models):
    model = models["llama"]
    prompts, shown, answers = make_rows(3)
    sampled = correct(model, prompts, shown, answers, label="sample", seed=9, row_ids=[10, 11, 12])
    for row, (s, a) in enumerate(zip(shown, answers, strict=True)):
        for place, logits in enumerate(logits_by_definition(model, s, a)):
            key = noise.keys(9, torch.tensor([10 + row]), torch.tensor(place), stream=noise.LABEL)
            assert sampled[row][place] == int((logits + noise.gumbel(key, len(logits))).argmax())
    assert sampled != correct(model, prompts, shown, answers)
    assert sampled != correct(
        model, prompts, shown, answers, label="sample", seed=8, row_ids=[10, 11, 12]
    )


@pytest.mark.parametrize("label", ["argmax", "sample"])
def test_labels_the_model_is_unsure_of_are_dropped(models, label):
    """The limit is the middle one of all confidences, so that about half the labels go."""
    model = models["llama"]
    prompts, shown, answers = make_rows()
    whole = correct(model, prompts, shown, answers, label=label)
    sure = [
        [logits.softmax(-1)[token].item() for logits, token in zip(steps, row, strict=True)]
        for steps, row in zip(
            map(logits_by_definition, [model] * 7, shown, answers), whole, strict=True
        )
    ]
    every = sorted(one for row in sure for one in row)
    limit = (every[len(every) // 2] + every[len(every) // 2 + 1]) / 2
    expected = [
        [token if one >= limit else -100 for token, one in zip(row, ones, strict=True)]
        for row, ones in zip(whole, sure, strict=True)
    ]
    thinned = correct(model, prompts, shown, answers, label=label, min_confidence=limit)
    assert thinned == expected != whole


def test_a_row_of_one_token_and_an_empty_answer_are_kept_in_place(models):
    model = models["llama"]
    labels = correct(model, [[5], [6], [7]], [[5, 8], [6, 8], [7, 8]], [[], [2], [9, 2]])
    assert [len(row) for row in labels] == [0, 1, 2]


def test_correcting_leaves_the_model_in_the_mode_it_was_in(models):
    model = models["llama"].train()
    correct(model, [[5]], [[5, 6]], [[7]])
    assert model.training


def test_one_forward_pass_a_batch_and_only_answer_positions_reach_the_output_layer(models):
    model = models["llama"]
    prompts, shown, answers = make_rows()
    passes = []
    handle = model.lm_head.register_forward_hook(
        lambda module, inputs, output: passes.append(tuple(inputs[0].shape[:2]))
    )
    correct(model, prompts, shown, answers, batch_size=4)
    handle.remove()
    lengths = sorted(map(len, answers), reverse=True)
    assert passes == [(4, lengths[0]), (3, lengths[4])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "best"}, "label is 'best'"),
        ({"min_confidence": 1.0}, "min_confidence is 1.0"),
        ({"shown_ids": [[3]]}, "each row needs one of each"),
        ({"shown_ids": [[3], []]}, "a prompt is empty"),
        ({"prompt_ids": [[], [3]]}, "a prompt is empty"),
        ({"row_ids": [1]}, "each row needs one of each"),
    ],
)
def test_wrong_arguments_are_named(models, change, message):
    rows = {"prompt_ids": [[3], [4]], "shown_ids": [[3, 5], [4, 5]], "answer_ids": [[5], [6]]}
    with pytest.raises(ValueError, match=message):
        correct(models["llama"], **(rows | change))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("options", [{}, {"label": "sample"}, {"min_confidence": 0.02}])
def test_long_answers_reach_the_output_layer_in_chunks_with_the_same_labels(
    models, architecture, options, monkeypatch
):
    model = models[architecture]
    prompts, shown, answers = make_rows()
    whole = correct(model, prompts, shown, answers, **options)
    places = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: places.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    limit = 8 * model.config.vocab_size
    monkeypatch.setattr("pipeline.rows.corrections._LOGITS", limit)
    assert correct(model, prompts, shown, answers, **options, batch_size=4) == whole
    handle.remove()
    assert max(places) <= 8 and len(places) > 2
