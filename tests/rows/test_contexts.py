"""The mixer against a slow reference written from the definition, on three architectures."""

import pytest
import torch
from conftest import random_ids, save_tiny_model
from helpers import mix_by_definition

from pipeline.decoding import noise
from pipeline.decoding.sampling import default_excluded_ids
from pipeline.models.load import load_model
from pipeline.rows.contexts import mix_contexts, replaced_positions

ARCHITECTURES = ("llama", "mistral", "gpt_neox")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixer")
    return {
        name: load_model(save_tiny_model(folder / name, architecture=name))
        for name in ARCHITECTURES
    }


def make_rows(count=9):
    generator = torch.Generator().manual_seed(0)
    prompts = [random_ids(generator, 2, 15) for _ in range(count)]
    references = [[*random_ids(generator, 3, 30), 2] for _ in range(count)]
    return prompts, references


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
def test_mixing_in_batches_equals_the_definition(models, architecture, beta):
    prompts, references = make_rows()
    row_ids = list(range(100, 109))
    excluded = default_excluded_ids(models[architecture])
    expected = [
        mix_by_definition(
            models[architecture],
            prompt,
            reference,
            beta=beta,
            seed=5,
            row_id=row,
            excluded=excluded,
        )
        for prompt, reference, row in zip(prompts, references, row_ids, strict=True)
    ]
    changed = sum(
        a != b for e, r in zip(expected, references, strict=True) for a, b in zip(e, r, strict=True)
    )
    assert changed > 0
    for batch_size in (1, 4, 64):
        mixed = mix_contexts(
            models[architecture], prompts, references, beta=beta, seed=5, row_ids=row_ids,
            batch_size=batch_size,
        )  # fmt: skip
        assert mixed == expected


def test_a_row_does_not_depend_on_its_company_or_order(models):
    prompts, references = make_rows()
    model = models["llama"]
    options = {"beta": 0.5, "seed": 1}
    all_rows = mix_contexts(model, prompts, references, row_ids=list(range(9)), **options)
    alone = mix_contexts(model, prompts[3:4], references[3:4], row_ids=[3], **options)
    backwards = mix_contexts(
        model, prompts[::-1], references[::-1], row_ids=list(range(9))[::-1], **options
    )
    assert alone == all_rows[3:4]
    assert backwards == all_rows[::-1]


def test_beta_0_is_the_reference_and_beta_1_keeps_only_what_must_stay(models):
    prompts, references = make_rows()
    rows = list(range(9))
    model = models["llama"]
    assert mix_contexts(model, prompts, references, beta=0, seed=0, row_ids=rows) == references
    mixed = mix_contexts(model, prompts, references, beta=1, seed=0, row_ids=rows)
    assert [row[-1] for row in mixed] == [row[-1] for row in references]
    assert [len(row) for row in mixed] == [len(row) for row in references]


def test_excluded_tokens_are_neither_replaced_nor_sampled(models):
    """By default the end (2) and padding (0) ids; here the end token also stands mid-row."""
    model = models["llama"]
    assert default_excluded_ids(model) == (0, 2)
    prompts, references = make_rows()
    references = [[2, *row] for row in references]
    mixed = mix_contexts(model, prompts, references, beta=1, seed=0, row_ids=list(range(9)))
    for context, reference in zip(mixed, references, strict=True):
        assert context[0] == 2
        assert 2 not in context[1:-1] and 0 not in context
        assert context[-1] == reference[-1]
    likely = mix_contexts(
        model, prompts, references, beta=1, seed=0, row_ids=list(range(9)), excluded_ids=range(350)
    )
    sampled = [
        token
        for context, reference in zip(likely, references, strict=True)
        for token, old in zip(context, reference, strict=True)
        if token != old
    ]
    assert sampled and min(sampled) >= 350


def test_positions_replaced_at_a_small_beta_are_replaced_at_a_larger_one():
    _, references = make_rows()
    rows = list(range(9))

    def replaced(beta):
        chosen = [
            replaced_positions(reference, row, beta=beta, seed=0, excluded_ids=(2,))
            for row, reference in zip(rows, references, strict=True)
        ]
        return torch.cat(chosen)

    few, many = replaced(0.1), replaced(0.4)
    assert few.sum() > 0
    assert (many & few).equal(few) and many.sum() > few.sum()


def test_the_share_of_replaced_positions_is_beta():
    """n = 50 rows x 400 positions; the standard error of the share is 0.003."""
    chosen = sum(
        replaced_positions([5] * 401, row, beta=0.2, seed=3, excluded_ids=()).sum().item()
        for row in range(50)
    )
    assert abs(chosen / 20_000 - 0.2) < 0.015


def test_gold_context_samples_given_the_reference(models):
    """At each replaced position the draw is from pi(. | x, y_<t), computed here row by row."""
    model = models["llama"]
    prompts, references = make_rows(4)
    mixed = mix_contexts(
        model, prompts, references, beta=1, seed=2, row_ids=range(4), context="gold"
    )
    for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        for position in range(len(reference) - 1):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + reference[:position]])).logits[0, -1]
            logits[[0, 2]] = float("-inf")
            key = noise.keys(2, torch.tensor([row]), torch.tensor(position), stream=noise.SAMPLE)
            assert mixed[row][position] == int(
                (logits + noise.gumbel(key, 402)[0, : len(logits)]).argmax()
            )


def test_low_temperature_and_top_1_are_greedy(models):
    model = models["llama"]
    prompts, references = make_rows(3)
    common = {"beta": 1, "seed": 0, "row_ids": range(3)}
    cold = mix_contexts(model, prompts, references, temperature=1e-4, **common)
    top = mix_contexts(model, prompts, references, top_k=1, **common)
    nucleus = mix_contexts(model, prompts, references, top_p=1e-6, **common)
    assert cold == top == nucleus
    other_seed = mix_contexts(model, prompts, references, **{**common, "seed": 9}, top_k=1)
    assert other_seed == top


def test_mixing_leaves_the_model_in_the_mode_it_was_in(models):
    model = models["llama"].train()
    prompts, references = make_rows(2)
    mix_contexts(model, prompts, references, beta=1, seed=0, row_ids=[0, 1])
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 1.5}, "beta is 1.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"engine": "warp"}, "no engine 'warp'"),
        ({"context": "silver"}, "context is 'silver'"),
        ({"row_ids": [0]}, "each row needs one of each"),
        ({"prompt_ids": [[], [1]]}, "a prompt is empty"),
    ],
)
def test_wrong_arguments_are_named(models, change, message):
    arguments = {
        "prompt_ids": [[3], [4]], "reference_ids": [[5, 2], [6, 2]], "beta": 0.5, "seed": 0,
        "row_ids": [0, 1],
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        mix_contexts(models["llama"], **arguments)
