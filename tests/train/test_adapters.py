"""Adapters under every option of peft: DPO's reference is the start, trained weights are float32."""

import math

import pytest
import torch
from conftest import problems_of, save_tiny_model
from helpers import training_step
from safetensors.torch import load_file
from trl.trainer.utils import use_adapter

from pipeline.data.render import renderer_for
from pipeline.models.load import load_merged, load_model
from pipeline.recipe.trl_fields import fields_of
from pipeline.recipe.trl_rules import LORA_OWNED
from pipeline.rows.pairs import read_pairs
from pipeline.stages import dpo

IDS = torch.arange(3, 43).reshape(2, 20)
LINEAR = {"r": 4, "target_modules": "all-linear"}
# Every option of peft that a recipe may set, at a value that changes what is trained.
KEPT = {
    "r": {"r": 2},
    "lora_alpha": {"lora_alpha": 3},
    "lora_dropout": {"lora_dropout": 0.5},
    "target_modules": {"target_modules": ["embed_tokens", "q_proj"]},
    "exclude_modules": {"exclude_modules": ["q_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": False},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "use_dora-embeddings": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "init_lora_weights": {"init_lora_weights": "orthogonal"},
    "init_lora_weights-mica": {"init_lora_weights": "mica"},
    "layers_to_transform": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "layers_pattern": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3}},
    "trainable_token_indices": {"trainable_token_indices": list(range(3, 200))},
    "velora_config": {"velora_config": {}},
    "lora_bias": {"lora_bias": True},
    "target_parameters": {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]},
    "use_bdlora": {
        "use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2, "match_strict": False}
    },
    "ensure_weight_tying": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "task_type": {"task_type": "CAUSAL_LM"},
}


def logits_of(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def reference_logits(trainer):
    adapter = "ref" if "ref" in trainer.model.peft_config else None
    with use_adapter(trainer.model, adapter):
        return logits_of(trainer.model)


def test_every_option_of_peft_is_tried_or_refused():
    tried = {name.partition("-")[0] for name in KEPT} | {"bias"}
    assert tried | set(LORA_OWNED) == set(fields_of("peft.LoraConfig"))
    assert not tried & set(LORA_OWNED)


@pytest.fixture(scope="module")
def biased_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("biased")
    return save_tiny_model(folder, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)


# What peft says of adapters on embeddings, of its own biases, and of a model that ties no weights.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.*invalid shape:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
@pytest.mark.parametrize("option", KEPT)
@pytest.mark.parametrize("start", ["new", "further"])
def test_the_reference_of_dpo_is_the_start_and_stays_it(
    biased_model, recipe_dict, write_recipe, run_steps_here, tmp_path, option, start
):
    """Of a new adapter the model without it, of one trained further a copy; what is saved is what

    was trained, read as it lies and merged.
    """
    recipe_dict |= {"model": biased_model, "evaluate": [], "lora": LINEAR | KEPT[option]}
    recipe_dict["trainer"]["learning_rate"] = 0.02
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    if start == "new":
        recipe_dict["stages"] = {"dpo": {"method": "dpo"}}
    path = write_recipe(recipe_dict)
    adapter = None
    if start == "further":
        plan, runs = run_steps_here(path, until=lambda step: step.kind == "train")
        adapter = str(plan.models["sft", 0].adapter.directory(runs))
    begun = logits_of(load_model(biased_model, adapter=adapter))
    step = training_step(path, tmp_path / "runs")
    renderer = renderer_for(step)
    trainer = dpo.make_trainer(step, read_pairs(step, renderer), renderer.tokenizer)
    assert torch.allclose(logits_of(trainer.model), begun, atol=1e-4)
    assert torch.allclose(reference_logits(trainer), begun, atol=1e-4)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert torch.allclose(reference_logits(trainer), begun, atol=1e-4)
    moved = logits_of(trainer.model)
    assert (moved - begun).abs().max() > 0.1
    trainer.model.save_pretrained(tmp_path / "saved", selected_adapters=["default"])
    saved = str(tmp_path / "saved")
    assert torch.allclose(logits_of(load_model(biased_model, adapter=saved)), moved, atol=1e-3)
    assert torch.allclose(logits_of(load_merged(biased_model, adapter=saved)), moved, atol=1e-3)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_base_are_not_trained_where_a_reference_shares_them(
    recipe_dict, write_recipe, bias
):
    recipe_dict["lora"] = LINEAR | {"bias": bias}
    found = problems_of(write_recipe(recipe_dict))
    assert set(found) == {"stages.sft-dpo.lora.bias", "stages.bash-dpo.lora.bias"}
    assert "reference model shares, so that it would move too" in found["stages.sft-dpo.lora.bias"]


SAVED = {"modules_to_save": ["lm_head"], "bias": "all", "trainable_token_indices": [20, 30]}


def test_whole_modules_beside_an_adapter_are_trained_in_float32(
    biased_model, recipe_dict, write_recipe, run_steps_here
):
    """In bfloat16 a weight of 0.3 moves in steps of 0.001: updates of 1e-6 would all be lost."""
    recipe_dict |= {"model": biased_model, "evaluate": [], "precision": "bfloat16"}
    recipe_dict["lora"] = LINEAR | SAVED
    recipe_dict["trainer"]["learning_rate"] = 1.0e-6
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "more": {"method": "sft", "from": "sft"}}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    base = load_model(biased_model).state_dict()
    saved = [
        load_file(plan.models[stage, 0].adapter.directory(runs) / "model/adapter_model.safetensors")
        for stage in ("sft", "more")
    ]
    assert {weight.dtype for one in saved for weight in one.values()} == {torch.float32}
    before = base["lm_head.weight"].bfloat16().float()  # in which the base is kept
    for one in saved:
        (after,) = (weight for name, weight in one.items() if "lm_head" in name)
        moved = (after - before).abs()
        assert (moved > 0).float().mean() > 0.9 and moved.max() < 1e-5
        before = after
