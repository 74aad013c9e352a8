"""The loss on held-out rows while a stage trains: by hand, without a trace in the weights."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, save_tiny_model
from helpers import hand_loss

from pipeline.data.load import load_examples, tokenise
from pipeline.data.render import Renderer
from pipeline.models.load import load_model, load_tokenizer
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run.worker import execute
from pipeline.stages.sft import training_row
from pipeline.steps import artifact
from pipeline.steps.artifact import SPEC
from pipeline.steps.context import StepContext, write_spec
from pipeline.train.held_out import HeldOutLoss
from pipeline.train.trainer import _Progress

HELD = {"source": "builtin:maths", "split": "train", "skip": 100, "limit": 5}
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.5}


@pytest.fixture
def training(recipe_dict, write_recipe, tmp_path):
    """The training step of a recipe of one stage, ready to run in a folder of its own."""

    def step(name="runs", *, processes=1, data=None, trainer=None, **change):
        trainer = {"logging_steps": 1, "max_steps": 6, "save_steps": 1, **(trainer or {})}
        given = {**recipe_dict, "stages": {"sft": {"method": "sft"}}, "evaluate": [], **change}
        given["trainer"] = {**recipe_dict["trainer"], **trainer}
        given["data"] = {**recipe_dict["data"], "validation": HELD, **(data or {})}
        (spec,) = [
            one for one in make_plan(load_recipe(write_recipe(given))).steps if one.kind == "train"
        ]
        return StepContext.read(
            write_spec(spec, tmp_path / name, processes=processes, use_cpu=True)
        )

    return step


def curve_of(step):
    return artifact.read_record(step.directory)["metrics"]["held_out"]["curve"]


def weights_of(step):
    files = artifact.read_record(step.directory)["files"]
    return {name: file["sha256"] for name, file in files.items() if "safetensors" in name}


def by_hand(model, *, adapter=None):
    """The mean loss over the answers of the held-out rows, one row at a time."""
    renderer = Renderer(load_tokenizer(model))
    rows, _ = tokenise(load_examples(HELD, "gsm8k"), renderer, max_length=256)
    rows = [training_row(row.prompt, row.answer, row.answer) for row in rows]
    tokens = sum(label != -100 for row in rows for label in row["labels"])
    return hand_loss(load_model(model, adapter=adapter), rows), tokens


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_loss_is_that_of_the_references_token_by_token(training, tiny_model, lora, capsys):
    """At the start that of the model, at the end that of the saved weights; passes of 2 rows."""
    step = training(
        trainer={"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}, lora=lora
    )
    execute(step)
    curve = curve_of(step)
    assert [(point["step"], point["epoch"]) for point in curve] == [(0, 0), (4, 2.0), (6, 3.0)]
    before, tokens = by_hand(tiny_model)
    saved = str(step.directory)
    after, _ = by_hand(tiny_model, adapter=saved) if lora else by_hand(f"{saved}/model")
    assert {point["tokens"] for point in curve} == {tokens}
    assert curve[0]["loss"] == pytest.approx(before, rel=1e-5)
    assert curve[-1]["loss"] == pytest.approx(after, rel=1e-5) and after != pytest.approx(before)
    line = f"optimizer step 4 of 6: held-out loss {curve[1]['loss']:.4f}, {tokens} tokens\n"
    assert line in capsys.readouterr().out
    counts = artifact.read_record(step.directory)["metrics"]["held_out"]["data"]
    assert counts == {"rows": 5, "dropped": 0, "cut": 0, "prompts_cut": 0}
    history = artifact.read_json(step.directory / "history.json")
    assert [one["step"] for one in history if "loss" in one] == [1, 2, 3, 4, 5, 6]
    assert [one["eval_loss"] for one in history if "eval_loss" in one] == [
        point["loss"] for point in curve
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": {"neftune_noise_alpha": 5}},
        {"lora": LORA},
        {"trainer": {"train_sampling_strategy": "random"}},
        {"precision": "bfloat16", "trainer": {"neftune_noise_alpha": 5}},
    ],
    ids=["neftune", "lora dropout", "random order", "bfloat16"],
)
def test_weights_are_bit_for_bit_those_of_a_training_without_it(training, tmp_path, change):
    """With noise in the embedding, dropout in attention and adapter, and rows in random order."""
    noisy = save_tiny_model(tmp_path / "noisy", attention_dropout=0.3)
    own = change.get("trainer", {})
    change = {**change, "model": noisy}
    plain = training("plain", **{**change, "trainer": own})
    asked = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    measured = training("measured", **{**change, "trainer": {**own, **asked}})
    assert plain.spec.fingerprint == measured.spec.fingerprint
    execute(plain)
    execute(measured)
    assert len(curve_of(measured)) == 7
    assert weights_of(plain) == weights_of(measured)
    losses = [
        [one["loss"] for one in artifact.read_json(step.directory / "history.json") if "loss" in one]
        for step in (plain, measured)
    ]  # fmt: skip
    assert losses[0] == losses[1]


def test_generators_are_put_back_whatever_a_model_draws(training, monkeypatch):
    sums = HeldOutLoss._sums

    def draws(self):
        torch.rand(3)
        return sums(self)

    execute(plain := training("plain", trainer={"neftune_noise_alpha": 5}))
    monkeypatch.setattr(HeldOutLoss, "_sums", draws)
    execute(step := training("drawn", trainer={"neftune_noise_alpha": 5, "eval_strategy": "epoch"}))
    assert weights_of(plain) == weights_of(step)


@pytest.mark.parametrize("number", [3, 5])
def test_a_killed_training_has_every_point_once(training, number):
    """Two optimizer steps an epoch; the checkpoint of step 2 or 4 is an epoch's end."""
    asked = {"eval_strategy": "epoch", "eval_on_start": True, "neftune_noise_alpha": 5}
    execute(unbroken := training("unbroken", trainer=asked))
    broken = training("broken", trainer=asked)
    told = _Progress.on_step_end

    def stop(self, args, state, control, **more):
        told(self, args, state, control, **more)
        if state.global_step == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Progress, "on_step_end", stop)
        execute(broken)
    execute(StepContext.read(broken.directory / SPEC))
    assert [point["step"] for point in curve_of(unbroken)] == [0, 2, 4, 6]
    assert curve_of(broken) == curve_of(unbroken)
    assert weights_of(broken) == weights_of(unbroken)


def test_a_stop_while_measuring_is_obeyed_and_the_point_made_up_for(training, capsys):
    asked = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 100}
    execute(unbroken := training("unbroken", trainer=asked))
    broken = training("broken", trainer=asked)
    batches, read = HeldOutLoss._batches, []

    def stop_in_the_middle(self):
        for batch in batches(self):
            read.append(batch)
            if len(read) == 5:  # the second of three, at step 4
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.signal(signal.SIGTERM, lambda *_: setattr(broken, "stop_asked", True))
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(HeldOutLoss, "_batches", stop_in_the_middle)
            execute(broken)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(read) == 5 and (broken.directory / "checkpoints/checkpoint-4").is_dir()
    execute(StepContext.read(broken.directory / SPEC))
    assert curve_of(broken) == curve_of(unbroken)
    assert [point["step"] for point in curve_of(broken)] == [2, 4, 6]


def test_two_processes_measure_what_one_measures(training):
    """5 rows in passes of 2: three passes, so that one process has to read one for nothing.

    8 rows to train on, so that the last batch of an epoch needs no row twice.
    """
    asked = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    data = {"train": {"source": "builtin:maths", "limit": 8}}
    execute(alone := training("alone", trainer=asked, data=data))
    two = training("two", processes=2, trainer=asked, data=data)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", "-m", "pipeline", "step", str(two.directory / SPEC)],
        capture_output=True, text=True, timeout=500, cwd=two.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("held-out loss") == 3
    first, second = curve_of(alone), curve_of(two)
    assert [point["tokens"] for point in first] == [point["tokens"] for point in second]
    assert [point["loss"] for point in first] == pytest.approx(
        [point["loss"] for point in second], rel=1e-4
    )


def test_held_out_rows_that_are_trained_on_are_counted(training, tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}\n#### {n + 1}"} for n in range(6)]
    for name, some in (("train", rows), ("held", [*rows[4:], {**rows[0], "question": "Else?"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    data = {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "held.jsonl")}
    step = training(trainer={"eval_strategy": "epoch", "max_steps": 1}, data=data)
    execute(step)
    (warning,) = artifact.read_record(step.directory)["metrics"]["warnings"]
    place = f"{tmp_path / 'held.jsonl'}:1"
    assert warning.startswith(f"2 of 3 held-out rows are trained on too, first held-out {place}:")
