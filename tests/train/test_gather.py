"""Models trained in pieces: FSDP2 and DeepSpeed in two gloo processes, saved whole.

accelerate shares models on GPUs only; `sharded_on_cpu.py` lets it take CPUs for such. The pieces,
their exchange, and what is gathered are torch's and DeepSpeed's own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT
from several import ENVIRONMENT, check_same, losses, results

from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.shipped import FSDP2, zero
from pipeline.run.worker import run_steps
from pipeline.steps import artifact
from pipeline.steps.context import write_spec

SCRIPT = ROOT / "tests" / "sharded_on_cpu.py"
LORA = {"r": 4, "target_modules": "all-linear"}
# As accelerate sets them from accelerate_configs/fsdp2.yaml, but for the loading in one process,
# which is its default, and which would give DPO's reference, and rows, weights of nothing.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs the package deepspeed"
)


def deepspeed(stage):
    """As accelerate sets them from accelerate_configs/zero2.yaml and zero3.yaml."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(stage == 3).lower(),
        "DS_ACCELERATOR": "cpu",
    }


def in_two_processes(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
         str(SCRIPT), *map(str, arguments)],
        cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(FSDP, id="FSDP2"),
        pytest.param(deepspeed(3), marks=[pytest.mark.slow, needs_deepspeed], id="ZeRO-3"),
    ],
)
def test_a_recipe_in_pieces_gives_what_one_process_gives(place, alone, tmp_path, environment):
    """SFT, BASH contexts, BASH, DPO, and every evaluation, all in one launch."""
    given = ("recipe.yaml", "--runs", tmp_path / "runs")
    done = in_two_processes(place, "run", *given, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    made = results(tmp_path / "runs")
    assert made.keys() == alone.keys()
    check_same(alone, made)


@pytest.fixture
def trained(recipe_dict, write_recipe, tmp_path):
    """Train SFT and DPO after it, in pieces or (environment None) in this process; the folders."""

    def train(name, environment, kind=FSDP2, **change):
        recipe_dict["trainer"] |= {"max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
        recipe_dict["trainer"] |= change.pop("trainer", {})
        # Two whole batches: several processes fill the last of an epoch with rows of its start.
        recipe_dict["data"]["train"]["limit"] = 8
        stages = {key: recipe_dict["stages"][key] for key in ("sft", "sft-dpo")}
        path = write_recipe({**recipe_dict, "stages": stages, "evaluate": [], **change})
        plan = make_plan(load_recipe(path))
        asked = {"processes": 1} if environment is None else {"processes": 2, "launch_kind": kind}
        specs = [write_spec(step, tmp_path / name, use_cpu=True, **asked) for step in plan.steps]
        if environment is None:
            assert run_steps(specs) == 0
            return [spec.parent for spec in specs]
        done = in_two_processes(tmp_path, "step", *specs, **environment)
        assert done.returncode == ("STOP_AT" in environment), done.stdout + done.stderr
        print(done.stdout)
        return [spec.parent for spec in specs]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "environment", "lora", "bf16", "tolerance"),
    [
        (FSDP2, FSDP, LORA, False, 1e-3),
        (FSDP2, FSDP, None, True, 0.1),
        # Under ZeRO-3 TRL keeps an adapter in its base's bfloat16.
        pytest.param(zero(3), deepspeed(3), LORA, False, 2e-2, marks=needs_deepspeed),
        pytest.param(zero(3), deepspeed(3), None, True, 0.1, marks=needs_deepspeed),
        pytest.param(zero(2), deepspeed(2), LORA, False, 1e-3, marks=needs_deepspeed),
        pytest.param(zero(2), deepspeed(2), None, True, 0.1, marks=needs_deepspeed),
    ],
)
def test_adapters_and_rounded_passes_come_out_whole(
    trained, tiny_model, kind, environment, lora, bf16, tolerance
):
    """The reference is right: the first loss of DPO is ln 2, or the step fails. Saved in float32."""
    change = {"lora": lora, "trainer": {"bf16": bf16}}
    before = trained("alone", None, **change)
    made = trained("pieces", environment, kind, **change)
    for one, other in zip(before, made, strict=True):
        assert losses(other) == pytest.approx(losses(one), rel=tolerance)
        # Rounded to bfloat16, ln 2 would be 0.6914.
        assert losses(other)[0] == pytest.approx(losses(one)[0], rel=2e-3)
        files = [{file.name for file in (folder / "model").iterdir()} for folder in (one, other)]
        assert files[0] == files[1]
        if lora is None:
            models = [load_model(str(folder)) for folder in (one, other)]
            configs = [artifact.read_json(folder / "model/config.json") for folder in (one, other)]
            assert configs[0] == configs[1]
        else:
            models = [load_model(tiny_model, adapter=str(folder)) for folder in (one, other)]
        first, second = (model.state_dict() for model in models)
        moved = load_model(tiny_model).state_dict()
        assert first.keys() == second.keys()
        for name, weight in first.items():
            assert (weight - second[name]).abs().max() < 0.02, name
        if lora is None:
            assert any((weight - moved[name]).abs().max() > 1e-3 for name, weight in second.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "environment"),
    [
        (FSDP2, FSDP),
        pytest.param(zero(3), deepspeed(3), marks=needs_deepspeed),
    ],
)
def test_training_in_pieces_goes_on_from_its_checkpoint(trained, kind, environment, capfd):
    before = trained("alone", None)
    (folder, _) = trained("pieces", {**environment, "STOP_AT": "2"}, kind)
    assert (folder / "checkpoints/checkpoint-2/trainer_state.json").is_file()
    assert not (folder / "record.json").exists()
    made = trained("pieces", environment, kind)
    assert "resuming from" in capfd.readouterr().out
    for one, other in zip(before, made, strict=True):
        assert losses(other) == pytest.approx(losses(one), rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_in_pieces_is_nothing_to_one_process(trained, capfd):
    (folder, _) = trained("pieces", {**FSDP, "STOP_AT": "2"})
    checkpoint = folder / "checkpoints/checkpoint-2"
    assert checkpoint.is_dir()
    trained("pieces", None)
    assert f"removing {checkpoint}: incomplete, or of another launch" in capfd.readouterr().out
    assert len(losses(folder)) == 4
    assert os.path.exists(folder / "model/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "environment"),
    [(FSDP2, FSDP), pytest.param(zero(3), deepspeed(3), marks=needs_deepspeed)],
)
def test_held_out_losses_in_pieces_are_those_of_one_process(trained, kind, environment):
    """5 rows in passes of 2: both processes gather weights for three, so one reads one again."""
    held = {"source": "builtin:maths", "split": "train", "skip": 100, "limit": 5}
    pairs, train = ({"source": "builtin:maths", "limit": limit} for limit in (4, 8))
    change = {
        "data": {"train": train, "preferences": pairs, "validation": held},
        "trainer": {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
    }
    before, made = trained("alone", None, **change), trained("pieces", environment, kind, **change)
    curves = [
        artifact.read_record(one[0])["metrics"]["held_out"]["curve"] for one in (before, made)
    ]
    assert [point["step"] for point in curves[1]] == [0, 2, 4]
    for one, other in zip(*curves, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
