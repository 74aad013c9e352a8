"""The config of a trained model: as it was loaded, whatever trainers set in it while they train."""

import json
import math

import pytest
import torch
from conftest import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import InputError
from pipeline.models.load import load_model

MIXTURES = {
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
OF_SAVING = ("dtype", "transformers_version", "architectures")


def config_in(folder):
    config = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in config.items() if key not in OF_SAVING}


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_trained_mixture_of_experts_writes_with_a_cache_and_starts_dpo_at_ln_2(
    recipe_dict, write_recipe, run_steps_here, tmp_path, architecture
):
    """TRL turns router logits on in the config it trains with, and a stock `generate` dies of them.

    The first DPO loss holds the auxiliary loss too: of 4 experts, 2 for each token, at least 2.
    """
    model = save_tiny_model(
        tmp_path / "model",
        architecture=architecture,
        router_aux_loss_coef=0.1,
        **MIXTURES[architecture],
    )
    recipe_dict |= {"model": model, "evaluate": []}
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "dpo": {"method": "dpo", "from": "bash"},
    }
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    for stage in ("sft", "bash", "dpo"):
        folder = plan.models[stage, 0].base.directory(runs) / "model"
        assert config_in(folder) == config_in(tmp_path / "model")
        exported = AutoModelForCausalLM.from_pretrained(folder)
        batch = AutoTokenizer.from_pretrained(folder)(
            ["2 + 3", "2"], return_tensors="pt", padding=True
        )
        batch.pop("token_type_ids", None)
        exported.generate(**batch, max_new_tokens=3, do_sample=False)
    history = json.loads((folder.parent / "history.json").read_text())
    assert history[0]["loss"] - 0.1 * history[0]["aux_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert history[0]["aux_loss"] > 1


def test_a_mixture_saved_with_router_logits_on_is_read_with_them_off(tmp_path):
    folder = save_tiny_model(
        tmp_path / "model", architecture="mixtral", output_router_logits=True, **MIXTURES["mixtral"]
    )
    model = load_model(folder)
    assert model.config.output_router_logits is False
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)


def test_a_trained_model_has_the_config_it_was_loaded_with(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    """Trainers turn the cache off while they train, which a saved config would hand on."""
    model = save_tiny_model(tmp_path / "model", attention_dropout=0.25)
    recipe_dict |= {"model": model, "evaluate": []}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    for stage in ("sft", "dpo"):
        saved = config_in(plan.models[stage, 0].base.directory(runs) / "model")
        assert saved == config_in(tmp_path / "model")
        assert saved["use_cache"] is True and saved["attention_dropout"] == 0.25


@pytest.mark.parametrize("added", ["pad", "template", "text"])
def test_tokens_beyond_the_embedding_stop_before_weights_are_loaded(
    recipe_dict, write_recipe, run_steps_here, tmp_path, added
):
    """An added token without a row ended in an IndexError, deep in the first forward pass."""
    folder = save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    if added == "pad":
        tokenizer.pad_token = "<|new|>"
    elif added == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|new|>")
    else:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"question": "What is <|new|>?", "answer": "2\\n#### 2"}\n')
        recipe_dict["data"]["train"] = {"source": str(rows)}
    tokenizer.save_pretrained(folder)
    recipe_dict |= {"model": folder, "evaluate": [], "stages": {"sft": {"method": "sft"}}}
    words = r"'<\|new\|>' \(400\), and the model's embedding has 400 rows.*resize_token_embeddings"
    with pytest.raises(InputError, match=words):
        run_steps_here(write_recipe(recipe_dict))
