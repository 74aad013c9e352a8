"""What the tests of several rooms need: losses by hand, steps by kind, models with a trait."""

import torch

from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps.context import StepContext, write_spec


def hand_loss(model, rows):
    """Mean over labelled positions of -log p(label | everything before it), one row at a time."""
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_probabilities = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total -= log_probabilities[position - 1, label].item()
                count += 1
    return total / count


def steps_of(plan, stage):
    return {step.kind: step for step in plan.steps if step.stage == stage}


def training_step(recipe_path, runs):
    """The last training step of a recipe, ready to be taken apart."""
    step = [step for step in make_plan(load_recipe(recipe_path)).steps if step.kind == "train"][-1]
    return StepContext.read(write_spec(step, runs, processes=1, use_cpu=True))


def model_that_ends_turns(tiny_model, folder):
    """A model whose likeliest token is often the end of turn (2)."""
    import shutil

    shutil.copytree(tiny_model, folder)
    weights = load_model(str(folder))
    with torch.no_grad():
        weights.lm_head.weight[2] *= 4
    weights.save_pretrained(folder)
    return str(folder)


def bloom():
    """Its attention reads distances off a mask of two axes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model("bloom", **sizes, **ends, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config)
