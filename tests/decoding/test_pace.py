"""Decoding at the pace of a GPU: fixed shapes, few looks, and the same tokens."""

import math

import pytest
import torch
from conftest import save_tiny_model
from helpers import greedy_by_definition

from benchmarks import decoding as counting
from pipeline.decoding import batching
from pipeline.decoding.generate import Prompt, generate_answers
from pipeline.decoding.graphs import Graphs
from pipeline.decoding.probe import can_read
from pipeline.errors import StepFailedError
from pipeline.models.load import load_model
from pipeline.rows.contexts import mix_contexts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("pace") / "model"))


@pytest.fixture
def as_on_gpu(monkeypatch):
    """What decoding does on a GPU, on whatever device there is."""

    def switch():
        monkeypatch.setattr(batching, "_PACES", {})

    return switch


def drawn(count, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(3, 400, (size,), generator=generator).tolist() for size in sizes]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("beta", [0.05, 0.2, 0.5, 1.0])
def test_contexts_have_the_same_tokens(model, as_on_gpu, beta, batch_size):
    prompts, references = drawn(23, 1, 30, 1), drawn(23, 1, 150, 2)
    how = {"beta": beta, "seed": 3, "row_ids": range(23), "excluded_ids": (0, 1, 2)}
    expected = mix_contexts(model, prompts, references, **how)
    as_on_gpu()
    assert mix_contexts(model, prompts, references, **how, batch_size=batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_end_where_they_did(model, as_on_gpu, temperature, batch_size):
    """Of some 40 end tokens, which end answers after any number of passes."""
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(drawn(23, 3, 30, 1))]
    how = {"max_new_tokens": 40, "stop_ids": list(range(5, 400, 10)), "temperature": temperature}
    expected = generate_answers(model, asked, **how)
    assert len({len(answer) for answer in expected}) > 5
    as_on_gpu()
    assert generate_answers(model, asked, **how, batch_size=batch_size) == expected


def test_an_answer_of_one_token_and_the_shortest_prompt(model, as_on_gpu):
    as_on_gpu()
    asked = [Prompt(row, 0, [7 + row]) for row in range(3)]
    expected = [greedy_by_definition(model, prompt.ids, 2, 1) for prompt in asked]
    assert generate_answers(model, asked, max_new_tokens=1, stop_ids=[2]) == expected


def test_the_host_waits_once_for_many_passes_which_are_of_few_shapes(model, as_on_gpu):
    """At most one wait a pass, refills and prompts included, and one shape per power of two."""
    as_on_gpu()
    prompts, references = drawn(40, 3, 30, 1), drawn(40, 100, 300, 2)
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(prompts)]
    how = {"beta": 0.2, "seed": 3, "row_ids": range(40), "excluded_ids": (0, 1, 2)}
    assert can_read(model, 330)  # tried once for a model
    for decode in (
        lambda: generate_answers(model, asked, max_new_tokens=300, stop_ids=[2], batch_size=16),
        lambda: mix_contexts(model, prompts, references, **how, batch_size=16),
    ):
        count = counting.Count()
        with count.passes_of(model), counting.Operators(count), counting.Values(count):
            decode()
        assert count.a_pass("waits") <= 1
        longest = max(shown for _, _, shown in count.shapes)
        assert longest <= 384 and len({shown for _, _, shown in count.shapes}) <= math.log2(longest)


def test_what_is_not_a_number_is_an_error_where_it_is_part_of_an_answer(model, as_on_gpu):
    """The model breaks off at column 16: an answer that ended before is none the worse."""
    as_on_gpu()

    def spoil(module, args, given):
        if (given["position_ids"] >= 16).any():
            spoilt.append(1)

    spoilt = []
    assert can_read(model, 40)  # found out before it is spoilt
    hook = model.register_forward_pre_hook(spoil, with_kwargs=True)
    head = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: output * float("nan") if spoilt else output
    )
    try:
        (first,) = generate_answers(model, [Prompt(0, 0, [7] * 13)], max_new_tokens=4, stop_ids=[])
        spoilt.clear()
        (ended,) = generate_answers(
            model, [Prompt(0, 0, [7] * 13)], max_new_tokens=20, stop_ids=[first[2]]
        )
        assert ended == first[: first.index(first[2]) + 1]
        spoilt.clear()
        with pytest.raises(StepFailedError, match="NaN or infinite"):
            generate_answers(model, [Prompt(0, 0, [7] * 13)], max_new_tokens=20, stop_ids=[])
    finally:
        hook.remove()
        head.remove()


def test_passes_run_as_they_are_without_cuda():
    ran = []
    graphs = Graphs(torch.device("cpu"))
    for number in range(9):
        graphs.run("shape", lambda number=number: ran.append(number))
    assert ran == list(range(9))


@pytest.mark.gpu
def test_captured_passes_write_the_same_tokens(model):
    """On a GPU, against the CPU, in float32; a failed capture would warn, which is an error here."""
    prompts, references = drawn(23, 1, 30, 1), drawn(23, 1, 150, 2)
    how = {"beta": 0.2, "seed": 3, "row_ids": range(23), "excluded_ids": (0, 1, 2)}
    expected = mix_contexts(model, prompts, references, **how)
    try:
        found = mix_contexts(model.to("cuda"), prompts, references, **how)
    finally:
        model.to("cpu")
    assert found == expected
