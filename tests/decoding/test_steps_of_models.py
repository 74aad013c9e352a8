"""Whole stages on models that are read in other ways than most, or write more ids than have tokens."""

import pytest
import torch
from conftest import build_tokenizer

from pipeline.rows.stored import ROWS
from pipeline.steps import artifact


def save_model(folder, architecture, **sizes):
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer(template=True)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture, vocab_size=448, hidden_size=32, num_hidden_layers=2, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("mamba", {"state_size": 4}),
        ("rwkv", {"attention_hidden_size": 32, "context_length": 512}),
        ("llama", {"intermediate_size": 64, "num_attention_heads": 4}),
    ],
)
def test_bash_rac_and_an_evaluation_run_to_their_end_and_write_no_id_without_a_token(
    recipe_dict, write_recipe, run_steps_here, tmp_path, architecture, sizes
):
    """448 ids and 400 tokens; Mamba and RWKV keep no keys and values."""
    recipe_dict |= {
        "model": save_model(tmp_path / architecture, architecture, **sizes),
        "stages": {
            "bash": {"method": "bash", "beta": 1.0},
            "rac": {"method": "rac", "label": "sample"},
        },
    }
    recipe_dict["trainer"]["max_steps"] = 1
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    ids = []
    for step in plan.steps:
        folder = step.directory(runs)
        assert artifact.is_finished(folder)
        for name, keys in ((ROWS, ("input_ids", "labels")), (artifact.SAMPLES, ("ids",))):
            if (folder / name).exists():
                rows = artifact.read_rows(folder / name)
                ids += [token for row in rows for key in keys for token in row[key]]
    assert len(ids) > 1000 and max(ids) < 400
