"""Evidence that NEFTune's noise is in training, within its bound, and nowhere else."""

import pytest
import torch
from conftest import first_step
from datasets import Dataset
from helpers import hand_loss, steps_of
from transformers import TrainerCallback
from transformers.integrations.neftune import activate_neftune

from pipeline.data.render import renderer_for
from pipeline.decoding.generate import Prompt, generate_answers
from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.contexts import mix_contexts
from pipeline.rows.correction_inputs import read_correction_inputs
from pipeline.rows.corrections import correct
from pipeline.rows.stored import ROWS
from pipeline.run.worker import execute
from pipeline.stages import sft
from pipeline.steps import artifact
from pipeline.steps.artifact import SPEC
from pipeline.steps.context import StepContext, write_spec

ALPHA = 5
NEFTUNE = {"method": "sft", "trainer": {"neftune_noise_alpha": ALPHA}}
IDS = torch.tensor([[5, 90, 17, 230, 40]])
FULL_AND_LORA = pytest.mark.parametrize(
    "lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"]
)


@pytest.fixture
def neftune_trainer(recipe_dict, write_recipe, tmp_path):
    """The trainer of a NEFTune stage, with its rows."""

    def make(**recipe):
        recipe_dict["stages"] = {"sft": NEFTUNE}
        plan = make_plan(load_recipe(write_recipe(recipe_dict | recipe)))
        step = StepContext.read(
            write_spec(first_step(plan), tmp_path / "runs", processes=1, use_cpu=True)
        )
        renderer = renderer_for(step)
        rows = sft.read_training_rows(step, renderer)[1]
        return sft.make_trainer(step, rows, renderer.tokenizer), rows

    return make


def test_training_has_noise(recipe_dict, write_recipe, run_steps_here):
    """First losses over the same single batch: SFT's is that of the plain model, NEFTune's not."""
    recipe_dict["batch_size"] = recipe_dict["micro_batch_size"] = 6
    recipe_dict["trainer"]["max_steps"] = 1
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "neftune": NEFTUNE}
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    folders = {
        stage: steps_of(plan, stage)["train"].directory(runs) for stage in ("sft", "neftune")
    }
    losses = {
        stage: artifact.read_record(folder)["metrics"]["first_loss"]
        for stage, folder in folders.items()
    }
    step = StepContext.read(folders["sft"] / SPEC)
    rows = sft.read_training_rows(step, renderer_for(step))[1]
    plain = hand_loss(load_model(recipe_dict["model"]), rows)
    assert losses["sft"] == pytest.approx(plain, rel=1e-5)
    assert losses["neftune"] != pytest.approx(plain, rel=1e-3)


@FULL_AND_LORA
def test_the_noise_is_within_alpha_over_the_root_of_padded_length_times_size(neftune_trainer, lora):
    """|noise| <= 5 / sqrt(L 32), and the largest of L 32 uniform draws is within 1 % of it.

    Two rows a pass: L is the longer one's length, for both.
    """
    trainer, rows = neftune_trainer(lora=lora, dtype="float32")
    seen = []

    def measure(module, inputs, output):
        plain = torch.nn.functional.embedding(inputs[0], module.weight)
        seen.append((inputs[0].shape, (output - plain).detach()))

    class Measure(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **_):  # after the trainer's own hook
            model.get_input_embeddings().register_forward_hook(measure)

    trainer.add_callback(Measure())
    trainer.train()
    lengths = [len(row["input_ids"]) for row in rows]
    assert len(seen) == 3 and sum(2 * length for (_, length), _ in seen) > sum(lengths)
    for (count, length), noise in seen:
        assert count == 2 and length in lengths
        bound = ALPHA / (length * 32) ** 0.5
        largest = noise.abs().amax(dim=(1, 2))
        assert 0.99 * bound < largest.min() and largest.max() < 1.0001 * bound
        assert abs(noise.mean()) < 0.05 * bound
        assert not torch.equal(noise[0], noise[1])


def test_an_evaluation_amid_training_has_no_noise(neftune_trainer, recipe_dict):
    """After step 1 the trainer's evaluation gives the loss of the weights of that moment."""
    trainer, rows = neftune_trainer()
    weights, losses, noisy = {}, [], []

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 1:
                weights.update({key: value.clone() for key, value in model.state_dict().items()})
                data = Dataset.from_list(rows)
                losses.extend(trainer.evaluate(data)["eval_loss"] for _ in range(2))
                embed = model.get_input_embeddings()
                noisy.append(not torch.equal(embed(IDS), embed.weight[IDS]))
                model.train()
                noisy.append(not torch.equal(embed(IDS), embed.weight[IDS]))

    trainer.add_callback(Evaluate())
    trainer.train()
    assert trainer.state.global_step == 2 and noisy == [False, True]
    plain = load_model(recipe_dict["model"])
    before = hand_loss(plain, rows)
    plain.load_state_dict(weights)
    assert losses[0] == losses[1] == pytest.approx(hand_loss(plain, rows), rel=1e-5)
    assert losses[0] != pytest.approx(before, rel=1e-3)


def test_no_step_that_generates_has_noise(recipe_dict, write_recipe, run_steps_here):
    """Steps write, twice alike, what the saved weights give, even with the hook left on them."""
    recipe_dict["stages"] = {
        "sft": NEFTUNE,
        "rac": {"method": "rac", "from": "sft", "end_cut_answers": True},
        "bash": {"method": "bash", "from": "sft", "beta": 0.5},
    }
    recipe_dict["evaluate"] = []
    path = write_recipe(recipe_dict)
    plan, runs = run_steps_here(path, until=lambda step: step.kind == "contexts")
    steps = steps_of(plan, "rac") | {"contexts": steps_of(plan, "bash")["contexts"]}
    written = {}
    for kind in ("answers", "corrections", "contexts"):
        folder = steps[kind].directory(runs)
        file = folder / (artifact.SAMPLES if kind == "answers" else ROWS)
        once = file.read_bytes()
        file.unlink()
        (folder / artifact.RECORD).unlink()
        execute(StepContext.read(folder / SPEC))
        assert file.read_bytes() == once
        written[kind] = artifact.read_rows(file)

    step = StepContext.read(steps["corrections"].directory(runs) / SPEC)
    drafts = read_correction_inputs(step, renderer_for(step)).values()
    row_ids = [draft.row.row_id for draft in drafts]
    prompts = [draft.row.prompt for draft in drafts]
    shown, own = [draft.shown for draft in drafts], [draft.answer for draft in drafts]
    assert row_ids == [row["id"] for row in written["contexts"]] == list(range(6))
    neftune = str(steps_of(plan, "sft")["train"].directory(runs))
    saved, hooked = load_model(neftune), load_model(neftune)
    activate_neftune(hooked, ALPHA)
    assert not torch.equal(hooked.train()(IDS).logits, hooked(IDS).logits)
    for model in (saved, hooked):
        answers = generate_answers(
            model.train(), [Prompt(row, 0, prompt) for row, prompt in enumerate(prompts)],
            max_new_tokens=8, stop_ids=[2], temperature=1.0, seed=step.seed_of_round(),
        )  # fmt: skip
        assert answers == [row["ids"] for row in written["answers"]]
        labels = correct(model.train(), prompts, shown, own)
        assert labels == [
            row["labels"][len(prompt) :]
            for row, prompt in zip(written["corrections"], prompts, strict=True)
        ]
        contexts = mix_contexts(
            model.train(), prompts, [draft.row.answer for draft in drafts], beta=0.5,
            seed=step.seed_of_round(), row_ids=row_ids, excluded_ids=(0, 1, 2),
        )  # fmt: skip
        assert contexts == [
            row["input_ids"][len(prompt) :]
            for row, prompt in zip(written["contexts"], prompts, strict=True)
        ]


@FULL_AND_LORA
def test_a_saved_model_has_no_noise(recipe_dict, write_recipe, run_steps_here, lora):
    """Loaded twice it gives identical logits, even in training mode; nothing names NEFTune."""
    recipe_dict["lora"] = lora
    recipe_dict["stages"] = {"sft": NEFTUNE}
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    folder = first_step(plan).directory(runs)
    base, adapter = (str(folder), None) if lora is None else (recipe_dict["model"], str(folder))
    models = [
        load_model(base, adapter=adapter).train(train) for train in (False, False, True, True)
    ]
    logits = [model(IDS).logits for model in models]
    assert all(torch.equal(other, logits[0]) for other in logits)
    embeddings = models[0].get_input_embeddings()
    assert not embeddings._forward_hooks and not hasattr(embeddings, "neftune_noise_alpha")
    texts = {path.name: path.read_text() for path in (folder / "model").glob("*.json")}
    assert "tokenizer.json" in texts and not [name for name in texts if "neftune" in texts[name]]
