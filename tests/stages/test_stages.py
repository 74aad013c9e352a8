"""Each training step against values computed by hand, on tiny real models."""

import json
import math

import pytest
import torch
from conftest import first_step
from helpers import hand_loss, steps_of

from pipeline.errors import StepFailedError
from pipeline.models.load import load_model, load_tokenizer
from pipeline.recipe.registry import METHODS
from pipeline.rows.stored import ROWS
from pipeline.stages import bash, sft
from pipeline.steps import artifact
from pipeline.train.sampler import micro_batches


def test_a_bash_row_is_x_plus_g_with_labels_y():
    row = sft.training_row([1, 2], [7, 8, 9], [3, 4, 5])
    assert row == {"input_ids": [1, 2, 7, 8, 9], "labels": [-100, -100, 3, 4, 5]}
    with pytest.raises(ValueError, match="3 context tokens but 2 labels"):
        sft.training_row([1], [7, 8, 9], [3, 4])


def test_the_bash_step_trains_the_loss_of_the_paper(recipe_dict, write_recipe, run_steps_here):
    """L = L_SFT(y | x, y) + lambda sum_t -log pi(y_t | x, g_<t), averaged over labelled tokens.

    With lambda 1, all rows of both kinds in one batch, and no update before it, the first loss
    that stock SFTTrainer logs is the token mean over rows (x + y, y) and rows (x + g, y).
    """
    recipe_dict["batch_size"] = recipe_dict["micro_batch_size"] = 12  # 6 + 6 rows: one batch
    recipe_dict["trainer"]["max_steps"] = 1
    recipe_dict["stages"] = {"bash": {"method": "bash", "beta": 0.5}}
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    steps = steps_of(plan, "bash")
    mixed = artifact.read_rows(steps["contexts"].directory(runs) / ROWS)
    gold = [
        {
            "input_ids": [
                label if label != -100 else token
                for token, label in zip(row["input_ids"], row["labels"], strict=True)
            ],
            "labels": row["labels"],
        }
        for row in mixed
    ]
    assert all(a["input_ids"] != b["input_ids"] for a, b in zip(mixed, gold, strict=True))
    expected = hand_loss(load_model(recipe_dict["model"]), gold + mixed)
    record = artifact.read_record(steps["train"].directory(runs))
    assert record["metrics"]["first_loss"] == pytest.approx(expected, rel=1e-4)
    assert record["metrics"]["data"]["self_generated_rows"] == 6


def test_the_sft_loss_is_on_the_answer_and_its_end_only(recipe_dict, write_recipe, run_steps_here):
    recipe_dict["batch_size"] = recipe_dict["micro_batch_size"] = 6
    recipe_dict["trainer"]["max_steps"] = 1
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    from pipeline.data.load import load_examples, tokenise
    from pipeline.data.render import Renderer

    renderer = Renderer(load_tokenizer(recipe_dict["model"]))
    examples = load_examples({"source": "builtin:maths", "split": "train", "limit": 6}, "gsm8k")
    rows, _ = tokenise(examples, renderer, max_length=256)
    by_hand = hand_loss(
        load_model(recipe_dict["model"]),
        [sft.training_row(row.prompt, row.answer, row.answer) for row in rows],
    )
    record = artifact.read_record(first_step(plan).directory(runs))
    assert record["metrics"]["first_loss"] == pytest.approx(by_hand, rel=1e-4)
    tokens = sum(len(row.prompt) + len(row.answer) for row in rows)
    assert record["metrics"]["tokens_trained"] == tokens


def test_lora_trains_on_from_the_adapter_of_the_stage_before(
    recipe_dict, write_recipe, run_steps_here
):
    """BASH from an SFT adapter starts at the SFT loss, not at the base model's."""
    recipe_dict["lora"] = {"r": 4, "target_modules": "all-linear"}
    recipe_dict["trainer"] |= {"learning_rate": 0.02, "max_steps": 20}
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft", "lambda": 0, "beta": 0.1},
    }
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    first = artifact.read_record(steps_of(plan, "sft")["train"].directory(runs))["metrics"]
    second = artifact.read_record(steps_of(plan, "bash")["train"].directory(runs))["metrics"]
    assert first["last_loss"] < first["first_loss"] - 0.5
    assert second["first_loss"] < first["first_loss"] - 0.5
    adapter = json.loads(
        (steps_of(plan, "bash")["train"].directory(runs) / "model/adapter_config.json").read_text()
    )
    assert adapter["r"] == 4


def test_merging_gives_plain_weights_that_answer_alike(recipe_dict, write_recipe, run_steps_here):
    recipe_dict["lora"] = {"r": 4, "target_modules": "all-linear"}
    recipe_dict["trainer"]["learning_rate"] = 0.05
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "dpo": {"method": "dpo", "from": "sft", "lora": None, "merge_adapter": True},
    }
    recipe_dict["evaluate"] = []
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    steps = {step.kind: step.directory(runs) for step in plan.steps}
    merged = load_model(str(steps["merge"]))
    adapted = load_model(
        recipe_dict["model"], adapter=str(steps_of(plan, "sft")["train"].directory(runs))
    )
    base = load_model(recipe_dict["model"])
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-2)
    record = artifact.read_record(steps_of(plan, "dpo")["train"].directory(runs))
    assert record["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    "lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"]
)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_saved_stage_gives_the_logits_it_had_when_training_ended(
    recipe_dict, write_recipe, tmp_path, lora, method
):
    """The trainer's own weights in memory against the folder it leaves, bit for bit."""
    from pipeline.data.preflight import check_rows
    from pipeline.data.render import renderer_for
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.rows.pairs import read_pairs
    from pipeline.stages import dpo
    from pipeline.steps.context import StepContext, write_spec
    from pipeline.train.trainer import fit

    recipe_dict |= {"lora": lora, "evaluate": [], "stages": {method: {"method": method}}}
    recipe_dict["dtype"] = "bfloat16" if lora else "auto"
    recipe_dict["trainer"]["learning_rate"] = 0.05
    step = make_plan(load_recipe(write_recipe(recipe_dict))).steps[-1]
    run = StepContext.read(write_spec(step, tmp_path / "runs", processes=1, use_cpu=True))
    renderer = renderer_for(run)
    if method == "sft":
        checked, rows = sft.read_training_rows(run, renderer)
        check_rows(run, checked, renderer)
        trainer = sft.make_trainer(run, rows, renderer.tokenizer)
    else:
        trainer = dpo.make_trainer(run, read_pairs(run, renderer), renderer.tokenizer)
    fit(run, trainer, tokens_per_epoch=1)
    folder = str(run.directory)
    if lora is None:
        loaded = load_model(folder)
    else:
        loaded = load_model(
            recipe_dict["model"], adapter=folder, dtype="bfloat16", trainable_adapter=True
        )
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        in_memory = trainer.model.eval()(ids).logits
        assert torch.equal(loaded.eval()(ids).logits, in_memory)
        base = load_model(recipe_dict["model"], dtype=str(loaded.dtype).removeprefix("torch."))
        assert not torch.allclose(base(ids).logits, in_memory, atol=1e-2)


def test_a_diverged_training_fails_and_is_no_result(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    """transformers logs a NaN loss as 0 unless told otherwise."""
    recipe_dict["trainer"] |= {"learning_rate": 1.0e30, "max_steps": 4, "max_grad_norm": 0.0}
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    with pytest.raises(StepFailedError, match="training diverged"):
        run_steps_here(write_recipe(recipe_dict))
    assert not list(tmp_path.glob("runs/steps/train-*/record.json"))
    assert not list(tmp_path.glob("runs/steps/*/model"))


def test_contexts_spare_the_templates_end_of_turn_though_the_generation_config_lacks_it(
    tiny_model, recipe_dict, write_recipe, run_steps_here, tmp_path
):
    import shutil

    folder = tmp_path / "base-with-template"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config.pop("eos_token_id")
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    weights = load_model(str(folder))
    with torch.no_grad():  # make the end of turn by far the likeliest token
        weights.model.norm.weight.fill_(0.01)
        weights.lm_head.weight[2] = 50 * weights.lm_head.weight[2].abs()
    weights.save_pretrained(folder)
    recipe_dict["model"] = str(folder)
    recipe_dict["stages"] = {"bash": {"method": "bash", "beta": 0.9}}
    plan, runs = run_steps_here(
        write_recipe(recipe_dict), until=lambda step: step.kind == "contexts"
    )
    for row in artifact.read_rows(first_step(plan).directory(runs) / ROWS):
        answers = [
            t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
        ]
        assert 2 not in answers[:-1] and answers[-1] == 2


def test_a_second_process_on_the_same_step_is_refused(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    from filelock import FileLock

    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan

    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    path = write_recipe(recipe_dict)
    directory = first_step(make_plan(load_recipe(path))).directory(tmp_path / "runs")
    directory.mkdir(parents=True)
    with FileLock(directory / "lock"), pytest.raises(StepFailedError, match="another process"):
        run_steps_here(path)
    run_steps_here(path)


def test_a_data_file_changed_since_the_plan_is_noticed(recipe_dict, write_recipe, tmp_path):
    from pipeline.errors import InputError
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.run.worker import execute
    from pipeline.steps.context import StepContext, write_spec

    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"question": "q", "answer": "#### 1"}) + "\n")
    recipe_dict["data"]["train"] = {"source": str(data)}
    step = first_step(make_plan(load_recipe(write_recipe(recipe_dict))))
    spec = write_spec(step, tmp_path / "runs", processes=1, use_cpu=True)
    data.write_text(json.dumps({"question": "q", "answer": "#### 2"}) + "\n")
    with pytest.raises(InputError, match="has changed since this run began"):
        execute(StepContext.read(spec))


def test_a_model_without_template_trains_too(
    plain_model, recipe_dict, write_recipe, run_steps_here
):
    recipe_dict["model"] = plain_model
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    assert all(artifact.is_finished(step.directory(runs)) for step in plan.steps)


@pytest.mark.parametrize("task", ["tldr", "chat"])
def test_posts_and_chats_run_through_every_method(recipe_dict, write_recipe, run_steps_here, task):
    train = {"tldr": "builtin:posts", "chat": "builtin:chat"}[task]
    recipe_dict |= {"task": task, "evaluate": []}
    recipe_dict["trainer"]["max_length"] = 400
    recipe_dict["data"] = {
        "train": {"source": train, "limit": 4},
        "preferences": {"source": "builtin:chat", "limit": 4},
    }
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    assert [step.kind for step in plan.steps] == ["train", "contexts", "train", "train", "train"]
    for step in plan.steps:
        record = artifact.read_record(step.directory(runs))
        data = record["metrics"].get("data", {"rows": 4, "dropped": 0})
        assert (data["rows"], data["dropped"]) == (4, 0), "no row may be lost"


def test_a_stopped_training_resumes_to_the_same_weights(recipe_dict, write_recipe, tmp_path):
    """Stopped at step 3 of 5 and run again, it ends with the weights of an unbroken run."""
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.run.worker import execute
    from pipeline.steps.context import StepContext, write_spec
    from pipeline.train.trainer import _Progress

    recipe_dict["trainer"] |= {"max_steps": 5, "save_steps": 1}
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    recipe_dict["evaluate"] = []
    step = first_step(make_plan(load_recipe(write_recipe(recipe_dict))))

    def run(folder):
        spec = write_spec(step, tmp_path / folder, processes=1, use_cpu=True)
        execute(StepContext.read(spec))

    run("unbroken")
    told = _Progress.on_step_end

    def stop_at_3(self, args, state, control, **more):
        told(self, args, state, control, **more)
        if state.global_step == 4:  # the checkpoint of step 3 is whole by now
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Progress, "on_step_end", stop_at_3)
        run("broken")
    broken = step.directory(tmp_path / "broken")
    assert not artifact.is_finished(broken) and not (broken / "model").exists()
    assert list((broken / "checkpoints").glob("checkpoint-*"))
    run("broken")
    assert not (broken / "checkpoints").exists()
    digests = [
        artifact.read_record(step.directory(tmp_path / name))["files"]["model/model.safetensors"]
        for name in ("unbroken", "broken")
    ]
    assert digests[0] == digests[1]


def test_contexts_stopped_midway_keep_their_rows(recipe_dict, write_recipe, tmp_path):
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.rows import contexts, shards
    from pipeline.run.worker import execute
    from pipeline.steps.context import StepContext, write_spec

    recipe_dict["stages"] = {"bash": {"method": "bash", "beta": 0.5}}
    recipe_dict["evaluate"] = []
    step = first_step(make_plan(load_recipe(write_recipe(recipe_dict))))

    def run(folder):
        execute(StepContext.read(write_spec(step, tmp_path / folder, processes=1, use_cpu=True)))
        return artifact.read_rows(step.directory(tmp_path / folder) / ROWS)

    unbroken = run("unbroken")
    mix, asked = contexts.iter_contexts, []

    def broken_once(model, rows, *arguments, **options):
        asked.append({row.row_id for row in rows})
        for number, done in enumerate(mix(model, rows, *arguments, **options), 1):
            if len(asked) == 1 and number == 4:
                raise KeyboardInterrupt
            yield done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "iter_contexts", broken_once)
        patch.setattr(shards, "_SECONDS_BETWEEN_SHARDS", 0)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
        written = list((step.directory(tmp_path / "broken") / "shards").glob("*.jsonl"))
        assert len(written) == 3
        assert run("broken") == unbroken
    # Three rows were done before the stop; the second run makes the others only.
    again = set().union(*asked[1:])
    assert len(again) == len(unbroken) - 3 and again < {row["id"] for row in unbroken}


@pytest.mark.parametrize(
    ("batch_size", "processes", "largest", "expected"),
    [(128, 1, 8, (8, 16)), (128, 8, 8, (8, 2)), (16, 1, 16, (16, 1)), (6, 1, 4, (3, 2)), (7, 1, 4, (1, 7))],
)  # fmt: skip
def test_the_global_batch_is_split_without_remainder(batch_size, processes, largest, expected):
    rows, passes = micro_batches(batch_size, processes, largest)
    assert (rows, passes) == expected and rows * passes * processes == batch_size


def test_a_batch_that_processes_do_not_divide_is_refused():
    with pytest.raises(StepFailedError, match="not a multiple of 3 processes"):
        micro_batches(128, 3, 8)


def test_lambda_is_a_ratio_of_rows():
    rows = [{"id": number} for number in range(10)]
    assert sft.repeated(rows, 1.0, seed=0) == rows
    assert sft.repeated(rows, 0.0, seed=0) == []
    assert sft.repeated(rows, 2.0, seed=0) == rows * 2
    half = sft.repeated(rows, 0.5, seed=0)
    assert len(half) == 5 and half == sft.repeated(rows, 0.5, seed=0)
    assert half != sft.repeated(rows, 0.5, seed=1)
    assert len(sft.repeated(rows, 1.3, seed=0)) == 13


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "linear", "start": 0.1, "end": 0.5}, [0.1, 0.3, 0.5]),
        ({"schedule": "exponential", "k": 0.5}, [0.5, 0.75, 0.875]),
        # k / (k + exp(r / k)) with k = 1: 1 / (1 + e^r)
        ({"schedule": "inverse_sigmoid", "k": 1.0}, [1 - 1 / (1 + math.exp(r)) for r in (1, 2, 3)]),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_beta_schedules_over_three_rounds(schedule, expected):
    parsed = bash.Schedule.model_validate(schedule)
    assert [parsed.at(number, 3) for number in (1, 2, 3)] == pytest.approx(expected)


def test_the_default_length_limits_are_trls_own():
    from dataclasses import fields

    from trl import DPOConfig, SFTConfig

    from pipeline.recipe.schema import DEFAULT_MAX_LENGTH

    for config in (SFTConfig, DPOConfig):
        default = next(field.default for field in fields(config) if field.name == "max_length")
        assert default == DEFAULT_MAX_LENGTH


def test_every_method_module_has_what_the_plan_calls():
    from pipeline.recipe.registry import method_module

    for method in METHODS:
        module = method_module(method)
        assert all(hasattr(module, name) for name in ("Options", "check", "plan"))
