"""DPO and SPIN without any noise of the model's own, whatever way the model makes it."""

import json
import math

import pytest
import torch
from conftest import save_tiny_model

from pipeline.errors import StepFailedError
from pipeline.models.load import load_model
from pipeline.stages import dpo
from pipeline.train.dropout import without_noise

LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.5}
NOISY = {
    "llama": {"attention_dropout": 0.5},  # a number that the attention reads
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},  # modules
    "mixtral": {"router_jitter_noise": 0.9, "num_key_value_heads": 2, "router_aux_loss_coef": 0.0},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("architecture", NOISY)
def test_a_model_in_training_computes_the_same_twice(tmp_path, architecture):
    model = load_model(save_tiny_model(tmp_path, architecture=architecture, **NOISY[architecture]))
    ids = torch.arange(20, 60).reshape(2, 20)
    model.train()
    with torch.no_grad():
        noisy = model(ids).logits
        assert not torch.equal(noisy, model(ids).logits)
        without_noise(model)
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert torch.equal(model(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("precompute", [False, True], ids=["", "precomputed"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_first_loss_of_a_model_with_dropout_is_ln_2(
    recipe_dict, write_recipe, run_steps_here, tmp_path, architecture, lora, precompute
):
    """TRL's own `disable_dropout` reaches only dropouts that are modules."""
    model = save_tiny_model(tmp_path / "model", architecture=architecture, **NOISY[architecture])
    recipe_dict |= {"model": model, "evaluate": [], "lora": lora}
    trainer = {"precompute_ref_log_probs": precompute}
    recipe_dict["stages"] = {
        "dpo": {"method": "dpo", "trainer": trainer},
        "spin": {"method": "spin", "from": "dpo", "trainer": trainer},
    }
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    for stage in ("dpo", "spin"):
        trained = plan.models[stage, 0].adapter or plan.models[stage, 0].base
        history = json.loads((trained.directory(runs) / "history.json").read_text())
        assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        if lora is None:
            saved = json.loads((trained.directory(runs) / "model" / "config.json").read_text())
            assert {key: saved[key] for key in NOISY[architecture]} == NOISY[architecture]


def test_a_first_loss_that_is_not_ln_2_names_both_causes():
    state = type("State", (), {"global_step": 1})
    with pytest.raises(
        StepFailedError, match=r"not the model that training starts from.*is random"
    ):
        dpo._first_loss_check().on_log(None, state, None, logs={"loss": 0.75})
