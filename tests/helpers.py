"""What the tests of several rooms need: losses by hand, steps by kind, models with a trait."""

import torch

from pipeline.decoding import noise
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


@torch.no_grad()
def last_logits(model, ids):
    """Logits after a row, from one pass over it alone, without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def greedy_by_definition(model, ids, stop, limit):
    """A greedy answer, one token after the other."""
    answer = []
    while len(answer) < limit and (not answer or answer[-1] != stop):
        answer.append(int(last_logits(model, ids + answer).argmax()))
    return answer


def mix_by_definition(model, prompt, reference, *, beta, seed, row_id, excluded, temperature=1.0):
    """One row, no cache, no batch: g_t is y_t or a sample given x and g_<t."""
    mixed = []
    for position, token in enumerate(reference):
        key = noise.keys(
            seed, torch.tensor([row_id]), torch.tensor([position]), stream=noise.REPLACE
        )
        last = position == len(reference) - 1
        if token in excluded or last or noise.uniform(key).item() >= beta:
            mixed.append(token)
            continue
        logits = last_logits(model, prompt + mixed) / temperature
        logits[list(excluded)] = float("-inf")
        key = noise.keys(seed, torch.tensor([row_id]), torch.tensor(position), stream=noise.SAMPLE)
        mixed.append(int((logits + noise.gumbel(key, len(logits))[0]).argmax()))
    return mixed


def labels_by_definition(model, shown, answer):
    """The likeliest token at each place of an answer."""
    return [
        int(last_logits(model, shown + answer[:place]).argmax()) for place in range(len(answer))
    ]


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
