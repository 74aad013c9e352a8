"""Mixing many positions at a time gives what mixing one at a time gives."""

import random

import pytest
import torch
from conftest import save_tiny_model
from helpers import bloom

from pipeline.decoding.jacobi import _width
from pipeline.decoding.probe import can_read
from pipeline.models.load import load_model
from pipeline.rows.contexts import mix_contexts
from pipeline.rows.stored import ROWS
from pipeline.steps import artifact

EXCLUDED = (0, 1, 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models in float32, by architecture; each is made once."""
    made = {}

    def model(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp("parallel") / architecture
            made[architecture] = load_model(save_tiny_model(folder, architecture=architecture))
        return made[architecture]

    return model


def rows(count, *, seed=1, longest=50):
    """Prompts and references of many lengths, among them a reference of one token."""
    rng = random.Random(seed)

    def ids(low, high):
        return [rng.randrange(3, 400) for _ in range(rng.randrange(low, high))]

    prompts = [ids(1, 30) for _ in range(count)]
    references = [[*ids(0, longest), 2] for _ in range(count)]
    return prompts, [*references[:-1], [2]]


def mix(model, prompts, references, **options):
    settings = {"beta": 0.2, "seed": 3, "excluded_ids": EXCLUDED, "row_ids": range(len(prompts))}
    return mix_contexts(model, prompts, references, **{**settings, **options})


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox"])
@pytest.mark.parametrize("beta", [0.05, 0.2, 0.5, 1.0])
def test_the_tokens_are_those_of_one_at_a_time(models, architecture, beta):
    model = models(architecture)
    prompts, references = rows(23)
    expected = mix(model, prompts, references, beta=beta, engine="sequential", batch_size=8)
    assert expected != references
    for batch_size in (1, 2, 7, 64):
        found = mix(model, prompts, references, beta=beta, batch_size=batch_size)
        assert found == expected, batch_size


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.3}, {"top_k": 5}, {"top_p": 0.6}, {"seed": 9}, {"row_ids": range(7, 30)}],
    ids=str,
)
def test_so_they_are_however_they_are_sampled(models, options):
    prompts, references = rows(23)
    one, other = (
        mix(models("llama"), prompts, references, engine=engine, **options)
        for engine in ("sequential", "parallel")
    )
    assert one == other


def test_through_an_adapter(tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_model(tiny_model), config)
    prompts, references = rows(9)
    one, other = (
        mix(model, prompts, references, engine=engine) for engine in ("sequential", "parallel")
    )
    assert one == other != mix(load_model(tiny_model), prompts, references)


def test_what_the_model_would_say_anyway_is_read_in_few_passes(models):
    """References are the model's own mixes at beta 1, so no guess is wrong: 24 rows, 8 at a time."""
    model = models("llama")
    prompts, references = rows(24, longest=60)
    own = mix(model, prompts, references, beta=1.0)
    passes = {}
    for engine in ("sequential", "parallel"):
        calls = []
        hook = model.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert mix(model, prompts, own, beta=1.0, batch_size=8, engine=engine) == own
        hook.remove()
        passes[engine] = len(calls)
    assert passes["parallel"] * 4 < passes["sequential"], passes


def test_a_window_is_wider_where_less_is_corrected_and_where_passes_cost_more():
    def width(device, rows, rate, most=1000):
        return _width(device, rows, rate, most=most)

    assert width("cpu", 64, 0.5) < width("cpu", 64, 0.02) < width("cpu", 8, 0.02)
    assert width("cpu", 64, 0.02) < width("cuda", 64, 0.02)
    assert width("cuda", 1, 1.0) == 1 and width("cpu", 8, 0.02, most=3) == 3


def test_nothing_to_replace_leaves_the_references(models):
    prompts, references = rows(5)
    assert mix(models("llama"), prompts, references, beta=0.0) == references
    assert mix(models("llama"), [], []) == []


# --- models that cannot be read that way --------------------------------------------------------


def test_a_model_with_another_mask_is_mixed_one_at_a_time_and_says_so():
    model = bloom()
    prompts, references = rows(6)
    told = []
    found = mix(model, prompts, references, warn=told.append)
    assert found == mix(model, prompts, references, engine="sequential")
    assert len(told) == 1 and "one token at a time" in told[0]


def test_rows_longer_than_a_sliding_window_are_not_read_in_parallel(models):
    model = models("mistral")
    assert can_read(model, 37)
    model.config.sliding_window = 20
    try:
        assert not can_read(model, 37) and can_read(model, 17)
    finally:
        model.config.sliding_window = None


def test_the_model_is_left_as_it_was_also_after_an_error(models):
    model = models("llama")
    prompts, references = rows(5)
    model.train()

    def stop(*_):
        raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr("pipeline.decoding.sampling.Sampling.noisy", stop)
        mix(model, prompts, references)
    assert model.training and not model.get_output_embeddings()._forward_pre_hooks
    model.eval()


# --- as a step ----------------------------------------------------------------------------------


def test_the_engine_does_not_change_the_rows_of_a_stage(recipe_dict, write_recipe, tmp_path):
    """Nor is it part of the step's identity: a finished step is not run again for it."""
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.run.worker import run_steps
    from pipeline.steps.context import write_spec

    recipe_dict["stages"] = {"bash": {"method": "bash", "beta": 0.5}}
    recipe_dict["warn_at"] = {"tokens_changed": None}
    written, fingerprints = [], set()
    for engine in ("parallel", "sequential"):
        recipe_dict["stages"]["bash"]["engine"] = engine
        plan = make_plan(load_recipe(write_recipe(recipe_dict)))
        step = next(step for step in plan.steps if step.kind == "contexts")
        spec = write_spec(step, tmp_path / engine, processes=1, use_cpu=True)
        assert run_steps([spec]) == 0
        written.append((spec.parent / ROWS).read_bytes())
        fingerprints.add(step.fingerprint)
        assert "warnings" not in artifact.read_record(spec.parent)["metrics"]
    assert written[0] == written[1] and len(fingerprints) == 1
