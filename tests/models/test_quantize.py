"""Bases in 4 bits: what is refused, what is loaded, what is trained, and against what."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import problems_of
from helpers import training_step

from pipeline.data.render import renderer_for
from pipeline.errors import InputError
from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.shipped import FSDP2, zero
from pipeline.rows.pairs import read_pairs
from pipeline.rows.table import TokenTable, TrainingRows
from pipeline.stages import dpo, sft
from pipeline.steps import artifact
from pipeline.train.trainer import load_trainable

LORA = {"r": 8, "target_modules": "all-linear"}


@pytest.fixture
def qlora(recipe_dict):
    """SFT and DPO as adapters over a base in 4 bits."""
    recipe_dict |= {"lora": LORA, "quantize": "nf4", "dtype": "float32", "evaluate": []}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    return recipe_dict


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["lora=null"], "quantize", "as sft, dpo would; add lora:"),
        (["stages.sft.lora=null"], "quantize", "as sft would; add lora:"),
        (["stages.dpo.merge_adapter=true"], "stages.dpo.merge_adapter", "rounded to 4 bits again"),
        (["generation.engine=vllm"], "generation.engine", "different weights"),
        (["generation.merge_for_reading=true"], "generation.merge_for_reading", "to 4 bits again"),
        (["quantize=int4"], "quantize", "should be nf4"),
    ],
)
def test_what_4_bit_weights_cannot_do_is_a_problem(qlora, write_recipe, overrides, key, said):
    assert said in problems_of(write_recipe(qlora), *overrides)[key]


def test_every_step_that_reads_weights_knows_of_the_4_bits_and_only_where_asked(
    qlora, write_recipe
):
    path = write_recipe(qlora | {"evaluate": ["gsm8k"]})
    for overrides, expected in (((), "nf4"), (["quantize=null"], None)):
        steps = make_plan(load_recipe(path, overrides)).steps
        reading = [step for step in steps if "base" in step.inputs]
        assert {step.kind for step in reading} == {"train", "answers"}
        for step in steps:
            known = expected is not None and step in reading
            assert ("quantize" in step.options) == known
            assert step.options.get("quantize") == (expected if known else None)


def test_the_4_bits_do_not_depend_on_the_dtype_of_the_rest(tiny_model):
    from bitsandbytes.nn import Linear4bit

    models = [
        load_model(tiny_model, quantize="nf4", dtype=name) for name in ("float32", "bfloat16")
    ]
    layers = [
        [module for module in model.modules() if isinstance(module, Linear4bit)] for model in models
    ]
    assert len(layers[0]) == 14
    for one, other in zip(*layers, strict=True):
        assert torch.equal(one.weight.data, other.weight.data)
        assert torch.equal(one.weight.quant_state.absmax, other.weight.quant_state.absmax)
    assert [model.dtype for model in models] == [torch.float32, torch.bfloat16]
    assert models[1].lm_head.weight.dtype == torch.bfloat16


def test_reading_is_what_the_4_bits_mean_and_changes_nothing(tiny_model):
    """Some CPUs would read in bfloat16, and pack the weights so that no gradient passes any more."""
    ids = torch.arange(3, 43)[None]
    model = load_model(tiny_model, quantize="nf4").eval()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        read = model(ids).logits
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(model.dequantize()(ids).logits, read)


def adapter_weights(model, name):
    """Weights of one of a PeftModel's adapters, by name without it."""
    return {
        key.replace(f".{name}.", "."): weight
        for key, weight in model.named_parameters()
        if f".{name}." in key
    }


def test_dpo_starts_from_the_adapter_of_its_stage_to_the_last_bit_and_so_does_its_reference(
    qlora, write_recipe, run_steps_here, tmp_path
):
    """TRL rounds the adapter it trains, and not the reference, to bfloat16."""
    from safetensors.torch import load_file

    qlora["stages"]["dpo"]["trainer"] = {"max_steps": 1}
    path = write_recipe(qlora)
    plan, runs = run_steps_here(path)
    step = training_step(path, runs)
    metrics = artifact.read_record(step.directory)["metrics"]
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    renderer = renderer_for(step)
    trainer = dpo.make_trainer(step, read_pairs(step, renderer), renderer.tokenizer)
    start = plan.models["sft", 0].adapter.directory(runs) / "model" / "adapter_model.safetensors"
    saved = load_file(start)
    assert any(not torch.equal(weight, weight.bfloat16()) for weight in saved.values())
    for name in ("default", "ref"):
        held = adapter_weights(trainer.model, name)
        assert set(held) == set(saved)
        assert all(torch.equal(held[key], saved[key]) for key in saved)
        assert {weight.requires_grad for weight in held.values()} == {name == "default"}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_train_on_a_cpu(qlora, write_recipe, tmp_path, optimizer):
    """bitsandbytes keeps states of fewer than 4,096 numbers in 32 bits, so the rank is 64."""
    qlora["stages"] = {"sft": {"method": "sft"}}
    qlora["lora"] = {"r": 64, "target_modules": ["down_proj"]}
    qlora["trainer"] |= {"optim": optimizer}
    step = training_step(write_recipe(qlora), tmp_path / "runs")
    row = {"input_ids": [5, 6, 7, 2], "labels": [-100, 6, 7, 2]}
    table = TokenTable()
    table.add("row 1", 1, row, whole=True)
    trainer = sft.make_trainer(step, TrainingRows(table, [0] * 8), renderer_for(step).tokenizer)
    before = {
        name: weight.clone() for name, weight in adapter_weights(trainer.model, "default").items()
    }
    trainer.train()
    states = trainer.optimizer.optimizer.state.values()
    assert torch.uint8 in {state["state1"].dtype for state in states}
    after = adapter_weights(trainer.model, "default")
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("kind", [FSDP2, zero(1), zero(3)])
def test_a_launch_that_would_split_4_bit_weights_is_refused(qlora, write_recipe, tmp_path, kind):
    step = training_step(write_recipe(qlora), tmp_path / "runs")
    step.launch = replace(step.launch, kind=kind)
    with pytest.raises(InputError, match=f"cannot be sharded, as {kind} would"):
        load_trainable(step)
