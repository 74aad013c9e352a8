"""DPO: the loss by hand, the reference model, pairs from a source and from own answers."""

import json
import math

import pytest
import torch
from conftest import save_tiny_model
from helpers import training_step

from pipeline.data.render import renderer_for
from pipeline.errors import InputError, StepFailedError
from pipeline.models.load import load_model
from pipeline.rows.pairs import read_pairs
from pipeline.rows.table import Answer, PairTable
from pipeline.stages import dpo
from pipeline.steps import artifact

LORA = {"r": 4, "target_modules": "all-linear"}


def sequence_log_probability(model, row):
    """log pi(answer | prompt): the sum over labelled positions, one row, no padding."""
    with torch.no_grad():
        log_probabilities = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    places = range(len(row.prompt), len(row.input_ids))
    return sum(log_probabilities[place - 1, row.input_ids[place]].item() for place in places)


def dpo_loss(policy, reference, pairs, beta):
    """Rafailov et al. (2023), equation 7: the mean of -log sigmoid of beta times the margin."""
    losses = []
    for pair in pairs:
        ratios = [
            sequence_log_probability(policy, side) - sequence_log_probability(reference, side)
            for side in pair
        ]
        losses.append(math.log1p(math.exp(-beta * (ratios[0] - ratios[1]))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_loss_on_hand_built_probabilities(tmp_path, recipe_dict, write_recipe, beta):
    """A model whose next token does not depend on anything before it.

    GPT-NeoX with a last layer norm of weight 0 and bias (1, 0, ...) gives logits W[:, 0] everywhere.
    Reference: W = 0, so 1/400 each. Policy: token 10 gets 1/2, 11 gets 1/4, the other 398 share 1/4.
    Chosen (10, end), rejected (11, end): the ends cancel, the margin is ln(1/2) - ln(1/4) = ln 2,
    and the loss -ln sigmoid(beta ln 2) = ln(1 + 2^-beta): ln 1.5 at beta 1.
    """
    folder = tmp_path / "unigram"
    model = load_model(save_tiny_model(folder, architecture="gpt_neox", template=False))
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.copy_(torch.eye(32)[0])
        model.lm_head.weight.zero_()
    model.save_pretrained(folder)
    recipe_dict |= {"model": str(folder), "evaluate": []}
    recipe_dict["trainer"]["beta"] = beta
    recipe_dict["stages"] = {"dpo": {"method": "dpo"}}
    step = training_step(write_recipe(recipe_dict), tmp_path / "runs")
    pairs = PairTable()
    for name in ("pair 1", "pair 2"):
        pairs.add(name, [5, 6], Answer([10, 2], whole=True), Answer([11, 2], whole=True))
    trainer = dpo.make_trainer(step, pairs, renderer_for(step).tokenizer)
    probability = torch.full((400,), 0.25 / 398)
    probability[10], probability[11] = 0.5, 0.25
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2))
    with torch.no_grad():
        trainer.model.lm_head.weight[:, 0] = probability.log()
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(math.log(1 + 2**-beta), rel=1e-5)


@pytest.mark.parametrize(
    ("lora", "quantize"), [(None, None), (LORA, None), (LORA, "nf4")], ids=["full", "lora", "qlora"]
)
@pytest.mark.parametrize("method", ["dpo", "spin"])
def test_the_second_loss_is_the_formula_and_the_reference_has_not_moved(
    recipe_dict, write_recipe, run_steps_here, lora, quantize, method
):
    """Step 2 sees the same pairs (one batch holds all), so its loss is the formula with the policy

    that one step gave and the reference that training started from.
    """
    recipe_dict |= {"lora": lora, "quantize": quantize, "dtype": "float32"}
    recipe_dict["batch_size"] = recipe_dict["micro_batch_size"] = 4
    recipe_dict["data"]["train"]["limit"] = 4
    recipe_dict["trainer"] |= {"learning_rate": 0.003, "logging_steps": 1}
    recipe_dict["trainer"]["lr_scheduler_type"] = "constant"
    recipe_dict["evaluate"] = []
    later = {"method": method, "from": "sft", "trainer": {"beta": 0.5}}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "later": later}
    paths = []
    for steps in (1, 2):
        later["trainer"]["max_steps"] = steps
        path = write_recipe(recipe_dict, f"{steps}.yaml")
        plan, runs = run_steps_here(path)
        paths.append(plan.models["later", 0])
    step = training_step(path, runs)
    pairs = read_pairs(step, renderer_for(step))

    def load(model):
        base = recipe_dict["model"] if model.base is None else str(model.base.directory(runs))
        adapter = model.adapter and str(model.adapter.directory(runs))
        return load_model(base, adapter=adapter, quantize=quantize).eval()

    expected = dpo_loss(load(paths[0]), load(plan.models["sft", 0]), pairs, 0.5)
    history = json.loads((step.directory / "history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[1] == pytest.approx(expected, rel=1e-3)
    assert abs(losses[1] - losses[0]) > 0.01


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_training_moves_the_policy_and_not_one_weight_of_the_reference(
    recipe_dict, write_recipe, run_steps_here, tmp_path, lora
):
    recipe_dict |= {"lora": lora, "evaluate": []}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    path = write_recipe(recipe_dict)
    run_steps_here(path, until=lambda step: step.kind == "train")
    step = training_step(path, tmp_path / "runs")
    renderer = renderer_for(step)
    trainer = dpo.make_trainer(step, read_pairs(step, renderer), renderer.tokenizer)

    def weights(kind):
        if lora is None:
            model = trainer.ref_model if kind == "ref" else trainer.model
            return {name: value.clone() for name, value in model.state_dict().items()}
        return {
            name.replace(f".{kind}.", "."): value.clone()
            for name, value in trainer.model.state_dict().items()
            if f".{kind}." in name
        }

    policy = "ref" if lora is None else "default"
    before = weights("ref")
    start = weights(policy)
    assert before and all(torch.equal(before[name], start[name]) for name in start)
    trainer.train()
    after = weights("ref")
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = weights("default")
    assert any(not torch.equal(moved[name], before[name]) for name in before)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("start", ["sft", "bash", "rac", "spin"])
def test_the_first_dpo_loss_is_ln_2(recipe_dict, write_recipe, run_steps_here, lora, start):
    """Policy = reference, so every log-ratio is 0 and the loss is -log sigmoid(0) = ln 2.

    The stage before has moved the weights, so a reference loaded from the base would show.
    """
    recipe_dict["lora"] = lora
    recipe_dict["trainer"]["learning_rate"] = 0.05
    stages = {"sft": {"method": "sft"}}
    if start != "sft":
        stages[start] = {"method": start, "from": "sft"}
    stages["later"] = {"method": "dpo", "from": start, "trainer": {"learning_rate": 0.05}}
    recipe_dict |= {"stages": stages, "evaluate": []}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    step = plan.models["later", 0].adapter or plan.models["later", 0].base
    history = json.loads((step.directory(runs) / "history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    record = artifact.read_record(step.directory(runs))
    assert record["metrics"]["first_loss"] == losses[0]
    names = {path.name for path in (step.directory(runs) / "model").iterdir()}
    assert ("adapter_config.json" in names) == (lora is not None)
    assert "training_args.bin" not in names and "ref" not in names


def test_a_wrong_reference_model_stops_the_run():
    callback = dpo._first_loss_check()
    state = type("State", (), {"global_step": 1})
    callback.on_log(None, state, None, logs={"loss": 0.6932})
    with pytest.raises(StepFailedError, match="not ln 2"):
        callback.on_log(None, state, None, logs={"loss": 0.58})


def test_in_float32_a_reference_that_is_slightly_off_stops_the_run(
    recipe_dict, write_recipe, tmp_path
):
    """Weights of the reference moved by some thousandths: a loss that 16 bits might round to."""
    recipe_dict |= {"stages": {"dpo": {"method": "dpo"}}, "evaluate": []}
    step = training_step(write_recipe(recipe_dict), tmp_path / "runs")
    pairs = read_pairs(step, renderer_for(step))
    trainer = dpo.make_trainer(step, pairs, renderer_for(step).tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))

    def loss():
        return trainer.compute_loss(trainer.model, batch).item()

    tolerance = dpo.ln2_tolerance(step, pairs.longest_answer)
    assert tolerance < 2e-4
    assert abs(loss() - math.log(2)) < tolerance / 10
    callback = dpo._first_loss_check(0.0, tolerance)
    state = type("State", (), {"global_step": 1})
    callback.on_log(None, state, None, logs={"loss": loss()})
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in trainer.ref_model.parameters():
            weight += 0.003 * weight.std() * torch.randn_like(weight)
    off = loss()
    assert tolerance < abs(off - math.log(2)) < 0.02
    with pytest.raises(StepFailedError, match="not ln 2"):
        callback.on_log(None, state, None, logs={"loss": off})
    with pytest.raises(StepFailedError, match="not ln 2"):
        callback.on_log(None, state, None, logs={"loss": math.nan})


def test_the_tolerance_grows_with_beta_and_length_and_is_that_of_16_bits_elsewhere(
    recipe_dict, write_recipe, tmp_path
):
    """1e-4 + 2 beta 1e-5 T: of 1,000 tokens at beta 0.1 it is 0.0021, and never more than 0.02."""
    recipe_dict |= {"stages": {"dpo": {"method": "dpo"}}, "evaluate": []}

    def tolerance(longest, **more):
        path = write_recipe(recipe_dict | more)
        return dpo.ln2_tolerance(training_step(path, tmp_path / "runs"), longest)

    assert tolerance(1000) == pytest.approx(0.0021)
    options = recipe_dict["trainer"]
    assert tolerance(1000, trainer={**options, "beta": 0.5}) == pytest.approx(0.0101)
    smooth = {"loss_type": ["robust"], "label_smoothing": 0.25}
    assert tolerance(1000, trainer={**options, **smooth}) == pytest.approx(0.0041)
    assert tolerance(100_000) == 0.02 == tolerance(10, precision="bfloat16")


def test_self_made_pairs_reject_wrong_answers_and_count_the_rest():
    def answer(text, finished=True):
        return {"id": 0, "messages": ["m"], "reference": "2 + 3 = 5\n#### 5", "answer": text,
                "ids": [7, 8], "finished": finished}  # fmt: skip

    pair, has_right = dpo.pair_of([answer("#### 4"), answer("2+3\n#### 5"), answer("#### 9")])
    assert has_right and (pair["chosen"], pair["rejected"]) == ("2+3\n#### 5", "#### 4")
    pair, has_right = dpo.pair_of([answer("#### 4"), answer("so it goes", finished=False)])
    assert not has_right and pair["chosen"] == "2 + 3 = 5\n#### 5"
    assert pair["rejected_finished"]
    pair, has_right = dpo.pair_of([answer("#### 5"), answer("#### 5")])
    assert pair is None and has_right


def test_pairs_told_by_rouge_take_the_nearest_finished_answer_over_the_farthest():
    def answer(text, finished=True, reference="a cat sat down"):
        return {"id": 0, "messages": ["m"], "reference": reference, "answer": text,
                "ids": [7, 8], "finished": finished}  # fmt: skip

    pair = dpo.pair_by_rouge([answer("a dog sat"), answer("birds"), answer("a cat sat")])
    assert pair is not None and (pair["chosen"], pair["rejected"]) == ("a cat sat", "birds")
    pair = dpo.pair_by_rouge([answer("a cat sat down", finished=False), answer("a"), answer("x")])
    assert pair is not None and (pair["chosen"], pair["rejected"]) == ("a", "x")
    assert dpo.pair_by_rouge([answer("a cat sat", finished=False), answer("x", False)]) is None
    assert dpo.pair_by_rouge([answer("a dog"), answer("a hen")]) is None, "equally near"
    assert dpo.pair_by_rouge([answer("a", reference="?"), answer("b", reference="?")]) is None


def test_posts_have_self_made_pairs_by_rouge(recipe_dict, write_recipe, run_steps_here):
    """What a model without training writes has no word in common with any summary."""
    recipe_dict["stages"] = {"dpo": {"method": "dpo", "pairs": "self", "samples": 2}}
    recipe_dict |= {"task": "tldr", "evaluate": []}
    recipe_dict["data"] = {"train": {"source": "builtin:posts", "limit": 2}}
    with pytest.raises(InputError, match="no answer to any of the 2 prompts is worse than another"):
        run_steps_here(write_recipe(recipe_dict))


def test_self_made_pairs_run_as_a_stage(recipe_dict, write_recipe, run_steps_here):
    recipe_dict["stages"] = {"dpo": {"method": "dpo", "pairs": "self", "samples": 3}}
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    assert [step.kind for step in plan.steps] == ["answers", "pairs", "train"]
    answers = artifact.read_rows(plan.steps[0].directory(runs) / artifact.SAMPLES)
    assert len(answers) == 6 * 3
    assert len({row["answer"] for row in answers if row["id"] == 0}) > 1, "samples share noise"
    figures = artifact.read_record(plan.steps[1].directory(runs))["metrics"]["figures"]
    assert figures["prompts"] == 6 == figures["prompts without a right answer"]
    assert figures["pairs"] + figures["prompts without a wrong answer"] == 6


def test_pairs_that_are_equal_once_they_are_cut_are_left_out_and_counted(
    tmp_path, recipe_dict, write_recipe
):
    shared = "word " * 40
    rows = [
        {"prompt": "Hi", "chosen": f"{shared}yes", "rejected": f"{shared}no"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe_dict["data"]["preferences"] = {"source": str(tmp_path / "pairs.jsonl")}
    recipe_dict |= {"stages": {"dpo": {"method": "dpo"}}, "evaluate": []}
    recipe_dict["trainer"]["max_length"] = 60
    step = training_step(write_recipe(recipe_dict), tmp_path / "runs")
    ((chosen, _),) = read_pairs(step, renderer_for(step))
    assert chosen.name == f"{tmp_path}/pairs.jsonl:2, chosen"
    assert step.metrics["data"]["equal"] == 1 and step.metrics["data"]["dropped"] == 0
    (said,) = step.metrics["warnings"]
    assert said.startswith("1 of 2 pairs left out: both answers are the same tokens")
    recipe_dict["data"]["preferences"]["limit"] = 1
    step = training_step(write_recipe(recipe_dict), tmp_path / "runs")
    with pytest.raises(InputError, match=r"1 of 1 pairs left out.*raise max_length"):
        read_pairs(step, renderer_for(step))
