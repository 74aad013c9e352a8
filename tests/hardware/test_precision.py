"""What is computed in, on which hardware, and what is said of it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import first_step, problems_of

from pipeline.errors import InputError, StepFailedError
from pipeline.hardware import precision
from pipeline.hardware.precision import Hardware, Precision, choose, hardware, precision_to_resume
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run import worker
from pipeline.steps import artifact
from pipeline.steps import context as step_module
from pipeline.steps.context import StepContext, write_spec

LORA = {"r": 2, "target_modules": "all-linear"}
# Hardware for tests of the choice: name -> what `hardware` says of it.
T4 = Hardware("cuda", "float16", "Tesla T4 has no native bfloat16", ("float16", "float32"))
NEW_CPU = Hardware("cpu", "bfloat16", "this CPU has amx_bf16", ("bfloat16", "float32"))
OLD_CPU = Hardware("cpu", "float32", "this CPU has no native bfloat16", ("float32",))


@pytest.fixture
def gpu(monkeypatch):
    """Have torch see one GPU of a name and compute capability."""

    def pretend(name, major, minor):
        found = SimpleNamespace(name=name, major=major, minor=minor)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: found.name)

    return pretend


@pytest.fixture
def on(monkeypatch):
    """Have steps of this process find other hardware than there is."""

    def pretend(found):
        monkeypatch.setattr(step_module, "hardware", lambda device: found)
        monkeypatch.setattr(worker, "hardware", lambda device: found)

    return pretend


@pytest.mark.parametrize(
    ("name", "capability", "best"),
    [
        ("Tesla V100-SXM2-16GB", (7, 0), "float16"),
        ("Tesla T4", (7, 5), "float16"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "bfloat16"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "bfloat16"),
    ],
)
def test_a_gpu_that_emulates_bfloat16_takes_float16(gpu, name, capability, best):
    """Torch counts emulation unless it is asked not to."""
    gpu(name, *capability)
    assert torch.cuda.is_bf16_supported(including_emulation=False) == (best == "bfloat16")
    found = hardware("cuda")
    assert found.best == best and name in found.why
    assert ("bfloat16" in found.natively) == (best == "bfloat16") and "float16" in found.natively


@pytest.mark.parametrize(
    ("capabilities", "best"),
    [
        ({"architecture": "x86_64", "avx2": True}, "float32"),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bfloat16"),
        ({"architecture": "x86_64", "amx_bf16": True}, "bfloat16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, "float32"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_a_cpu_takes_bfloat16_only_where_it_has_it(monkeypatch, capabilities, best):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    found = hardware("cpu")
    assert found.best == best and ("bfloat16" in found.natively) == (best == "bfloat16")
    assert "float16" not in found.natively


def test_a_torch_that_does_not_tell_what_a_cpu_has_takes_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert hardware("cpu").best == "float32" and "does not report" in hardware("cpu").why


@pytest.mark.parametrize(("converts", "best"), [(True, "bfloat16"), (False, "float32")])
def test_an_xpu_takes_what_torch_says(monkeypatch, converts, best):
    found = SimpleNamespace(has_bfloat16_conversions=converts)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda *_: found)
    assert hardware("xpu").best == best


def test_mps_takes_float32_for_torch_does_not_say_what_is_native():
    assert hardware("mps").best == "float32" and "MPS" in hardware("mps").why


@pytest.mark.parametrize(
    ("found", "dtype", "trainer", "lora", "weights", "autocast"),
    [
        # auto: what is native, and float32 for weights that are trained
        (NEW_CPU, "auto", None, None, "bfloat16", None),
        (OLD_CPU, "auto", None, None, "float32", None),
        (T4, "auto", None, None, "float16", None),
        (NEW_CPU, "auto", {}, None, "float32", "bfloat16"),
        (OLD_CPU, "auto", {}, None, "float32", None),
        (T4, "auto", {}, None, "float32", "float16"),
        (NEW_CPU, "auto", {}, LORA, "bfloat16", "bfloat16"),
        (OLD_CPU, "auto", {}, LORA, "float32", None),
        (T4, "auto", {}, LORA, "float16", "float16"),
        # the older keys win, one by one
        (OLD_CPU, "auto", {"bf16": True}, LORA, "float32", "bfloat16"),
        (NEW_CPU, "auto", {"bf16": False}, LORA, "bfloat16", None),
        (NEW_CPU, "float32", {}, LORA, "float32", "bfloat16"),
        (T4, "auto", {"bf16": None, "fp16": None}, LORA, "float16", "float16"),
        (T4, "float32", {"bf16": False}, LORA, "float32", None),
        # fp16: false alone says nothing, and float16 is never trained in without loss scaling
        (NEW_CPU, "auto", {"fp16": False}, LORA, "bfloat16", "bfloat16"),
        (T4, "auto", {"bf16": False}, LORA, "float32", None),
        (T4, "auto", {"bf16": True}, LORA, "float32", "bfloat16"),
    ],
)
def test_the_choice(found, dtype, trainer, lora, weights, autocast):
    options = {"dtype": dtype} | ({} if trainer is None else {"trainer": trainer, "lora": lora})
    chosen = choose(options, found)
    assert (chosen.weights, chosen.autocast) == (weights, autocast)
    assert chosen.compute == (autocast or weights)


@pytest.mark.parametrize(
    ("named", "older"),
    [
        ("float32", {"dtype": "float32", "generation": "float32", "bf16": False}),
        ("bfloat16", {"dtype": "bfloat16", "generation": "bfloat16", "bf16": True}),
        ("float16", {"dtype": "float16", "generation": "float16", "fp16": True}),
    ],
)
def test_one_key_says_what_three_said(recipe_dict, write_recipe, named, older):
    recipe_dict |= {"lora": LORA, "launch": "single_gpu"}
    del recipe_dict["precision"]
    older_trainer = {key: older[key] for key in ("bf16", "fp16") if key in older}
    one = recipe_dict | {"precision": named}
    three = recipe_dict | {
        "dtype": older["dtype"],
        "generation": recipe_dict["generation"] | {"dtype": older["generation"]},
        "trainer": recipe_dict["trainer"] | older_trainer,
    }
    plans = [make_plan(load_recipe(write_recipe(each))) for each in (recipe_dict, one, three)]
    auto, short, long = (plan.fingerprint for plan in plans)
    assert short == long != auto


@pytest.mark.parametrize("named", ["bfloat16", "float16"])
def test_weights_that_are_trained_are_float32_in_every_precision(recipe_dict, write_recipe, named):
    """`dtype: bfloat16` would round them, as it says; `precision: bfloat16` does not."""
    path = write_recipe(recipe_dict | {"precision": named, "launch": "single_gpu"})
    train = next(step for step in make_plan(load_recipe(path)).steps if step.kind == "train")
    chosen = choose(train.options, T4)
    assert (chosen.weights, chosen.autocast) == ("float32", named)


def test_what_auto_comes_to_is_no_part_of_a_fingerprint(recipe_dict, write_recipe, monkeypatch):
    path = write_recipe(recipe_dict | {"precision": "auto"})

    def asked(device):
        raise AssertionError("a plan has asked the hardware")

    monkeypatch.setattr(precision, "hardware", asked)
    plan = make_plan(load_recipe(path))
    computing = [step for step in plan.steps if "dtype" in step.options]
    assert {step.options["dtype"] for step in computing} == {"auto"}
    assert not {"bf16", "fp16"} & {
        key for step in computing for key in step.options.get("trainer", ())
    }


@pytest.mark.parametrize(
    ("given", "hint"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("FP32", "float32"), ("bfloat", "bfloat16")],
)
def test_a_short_name_is_answered_with_the_long_one(recipe_dict, write_recipe, given, hint):
    problems = problems_of(write_recipe(recipe_dict | {"precision": given}))
    assert f"did you mean {hint}?" in problems["precision"]
    assert "auto" in problems["precision"]


@pytest.mark.parametrize(
    "asking",
    ["precision=float16", "generation.dtype=float16", "dtype=float16", "trainer.fp16=true"],
)
def test_float16_on_a_cpu_is_refused_before_anything_is_loaded(
    recipe_dict, write_recipe, bashrac, tmp_path, asking
):
    path = write_recipe(recipe_dict | {"lora": LORA, "precision": "auto"})
    for command in (["check"], ["plan"], ["run"]):
        done = bashrac(*command, path, "--set", asking)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "float16 is requested" in done.stderr and "precision: auto" in done.stderr
    assert not (tmp_path / "runs" / "steps").exists()
    # A GPU may have it, whatever the machine that plans has.
    assert bashrac("plan", path, "--set", asking, "--launch", "single_gpu").returncode == 0


def test_a_step_on_a_cpu_refuses_float16_too():
    """Where no parent has looked: processes that the user launches."""
    with pytest.raises(InputError, match="float16 is requested"):
        choose({"dtype": "float16"}, NEW_CPU)


@pytest.mark.parametrize("override", ["trainer.fp16=true", "precision=float16", "batch_size=4"])
def test_weights_that_are_trained_are_never_float16(recipe_dict, write_recipe, override):
    """torch: 'Attempting to unscale FP16 gradients', once everything is loaded."""
    recipe_dict["precision"] = "auto"
    path = write_recipe(recipe_dict | {"dtype": "float16", "launch": "single_gpu"})
    assert "write precision: float16 instead" in problems_of(path, override)["dtype"]


@pytest.mark.parametrize("options", [{"lora": None}, {"lora": LORA, "trainer": {"bf16": False}}])
def test_float16_weights_train_with_loss_scaling_only(options):
    with pytest.raises(
        InputError, match=r"replace it by precision: float16, which scales the loss"
    ):
        choose({"dtype": "float16", "trainer": {}} | options, T4)


def test_a_sixteen_that_is_false_beside_its_name_is_a_contradiction(recipe_dict, write_recipe):
    path = write_recipe(recipe_dict | {"precision": "float16", "launch": "single_gpu"})
    assert "keep one of them" in problems_of(path, "trainer.fp16=false")["trainer.fp16"]


@pytest.mark.parametrize(
    ("found", "dtype", "why"),
    [(OLD_CPU, "bfloat16", "set in the recipe"), (NEW_CPU, "bfloat16", NEW_CPU.why)],
)
def test_the_reason_is_of_what_decided(found, dtype, why):
    """Without autocast the base's dtype decides; else autocast, which is the hardware's."""
    assert choose({"dtype": dtype, "trainer": {}, "lora": LORA}, found).why == why


@pytest.mark.parametrize(
    ("trainer", "lora", "why"),
    [
        ({"bf16": False}, None, "set in the recipe"),  # as precision: float32 comes to
        ({"bf16": False}, LORA, NEW_CPU.why),  # the base's dtype is still the hardware's
        ({"bf16": True}, None, "set in the recipe"),
        ({}, None, NEW_CPU.why),
    ],
)
def test_the_reason_is_the_recipe_where_it_names_autocast(trainer, lora, why):
    assert choose({"dtype": "auto", "trainer": trainer, "lora": lora}, NEW_CPU).why == why


def test_every_step_says_what_it_computes_in_and_why(
    recipe_dict, write_recipe, run_steps_here, capsys, on
):
    on(NEW_CPU)
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "precision": "auto", "lora": LORA}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    lines = [line for line in capsys.readouterr().out.splitlines() if "precision" in line]
    assert lines == ["precision: bfloat16 (this CPU has amx_bf16)"] * 2  # train, answers
    records = {step.kind: artifact.read_record(step.directory(runs)) for step in plan.steps}
    assert records["train"]["precision"]["compute"] == "bfloat16"
    assert records["train"]["precision"]["why"] == "this CPU has amx_bf16"
    assert records["gsm8k"]["precision"] is None  # grading computes nothing


def test_plan_names_the_key_and_the_estimate_what_it_comes_to(recipe_dict, write_recipe, bashrac):
    path = write_recipe(recipe_dict | {"precision": "auto"})
    done = bashrac("plan", path, "--estimate")
    assert "precision: auto, chosen where it runs" in done.stdout, done.stderr
    best = hardware("cpu")
    assert f"({best.why})" in done.stdout and best.best in done.stdout
    assert "precision: float32" in bashrac("plan", path, "--set", "precision=float32").stdout


def test_an_estimate_for_a_gpu_that_is_not_here_says_so():
    found = precision.hardware_of_launch(use_cpu=False)
    assert "this machine has none to query" in found.why or torch.accelerator.is_available()


def test_what_is_asked_for_and_emulated_warns_with_its_cost(
    recipe_dict, write_recipe, run_steps_here, on
):
    on(OLD_CPU)
    recipe_dict |= {"precision": "bfloat16", "stages": {"sft": {"method": "sft"}}, "lora": LORA}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    for step in plan.steps:
        metrics = artifact.read_record(step.directory(runs))["metrics"]
        warned = [words for words in metrics.get("warnings", []) if "emulates" in words]
        assert len(warned) == ("dtype" in step.options)
        assert all("precision: auto chooses float32 here" in words for words in warned)


def test_what_cannot_even_be_emulated_is_a_sentence(gpu, monkeypatch):
    from transformers.utils import import_utils

    uncached = import_utils.is_torch_bf16_gpu_available.__wrapped__
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", uncached)
    gpu("Tesla K80", 3, 7)
    chosen = choose({"dtype": "bfloat16"}, hardware("cuda"))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert "takes more memory than float16" in (precision.warning(chosen, hardware("cuda")) or "")
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: False)
    with pytest.raises(InputError, match=r"precision: auto chooses float16"):
        precision.warning(chosen, hardware("cuda"))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("found", "expected"), [(OLD_CPU, "float32"), (NEW_CPU, "bfloat16"), (T4, "float16")]
)
def test_dpo_begins_at_ln_2_in_each_precision(
    recipe_dict, write_recipe, run_steps_here, on, found, expected, lora
):
    """Policy and reference agree, so the loss is ln 2 whatever rounds; the step itself checks 0.02.

    Without a GPU accelerate scales no loss, and float16 is that of the weights alone.
    """
    on(found)
    recipe_dict |= {"precision": "auto", "lora": lora, "evaluate": []}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    directory = plan.models["dpo", 0].adapter or plan.models["dpo", 0].base
    record = artifact.read_record(directory.directory(runs))
    assert record["precision"]["compute"] == expected
    assert record["precision"]["weights"] == (expected if lora else "float32")
    assert record["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=2e-3)


FLOAT32 = Precision("float32", "float32", None, "x")
BFLOAT16 = Precision("bfloat16", "bfloat16", "bfloat16", "x")
FLOAT16 = Precision("float16", "float16", "float16", "x")


@pytest.mark.parametrize(
    ("begun", "now", "found", "expected"),
    [
        (BFLOAT16, BFLOAT16, NEW_CPU, BFLOAT16),
        (FLOAT32, BFLOAT16, NEW_CPU, FLOAT32),  # resumes in the first attempt's
        (FLOAT16, FLOAT16, T4, FLOAT16),
        (FLOAT32, FLOAT16, T4, FLOAT32),
        (BFLOAT16, FLOAT32, OLD_CPU, None),  # emulated here: begins anew
        (BFLOAT16, FLOAT16, T4, None),
        (FLOAT16, BFLOAT16, NEW_CPU, None),
    ],
)
def test_a_step_goes_on_in_what_it_was_begun_in_or_begins_anew(begun, now, found, expected):
    kept = precision_to_resume(begun, now, found)
    assert (kept and kept.compute) == (expected and expected.compute)


@pytest.mark.parametrize(("here", "anew"), [(NEW_CPU, False), (OLD_CPU, True)])
def test_rows_of_two_precisions_are_never_mixed(
    recipe_dict, write_recipe, tmp_path, capsys, on, here, anew
):
    """A shard of a bfloat16 attempt is kept where bfloat16 is native, and else made again."""
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "precision": "auto"}
    recipe_dict["data"]["test"]["limit"] = 3
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    runs = tmp_path / "runs"
    for step in plan.steps[:2]:
        worker.execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
    answers = next(step for step in plan.steps if step.kind == "answers")
    directory = answers.directory(runs)
    spec = write_spec(answers, runs, processes=1, use_cpu=True)
    mark = {"id": 1, "sample": 0, "answer": "an earlier attempt wrote this", "ids": [5, 2]}
    mark |= {"finished": True, "messages": [], "reference": "1"}
    artifact.write_rows(directory / "shards" / "1-0.jsonl", [mark])
    progress = {"done": 1, "total": 3, "unit": "rows", "seconds": 1.0}
    progress["precision"] = vars(Precision("bfloat16", "bfloat16", None, "this CPU has amx_bf16"))
    artifact.write_json(directory / "progress.json", progress)
    on(here)
    capsys.readouterr()
    worker.execute(StepContext.read(spec))
    rows = artifact.read_rows(directory / "samples.jsonl")
    assert ("an earlier attempt wrote this" in [row["answer"] for row in rows]) != anew
    record = artifact.read_record(directory)
    assert record["precision"]["compute"] == ("float32" if anew else "bfloat16")
    said = capsys.readouterr().out
    assert ("begins anew in float32" in said) == anew
    assert any("begins anew" in words for words in record["metrics"].get("warnings", [])) == anew


def test_what_an_earlier_version_left_was_bfloat16(recipe_dict, write_recipe):
    """It noted no precision, and auto was bfloat16 on any hardware."""
    path = write_recipe(recipe_dict | {"precision": "auto", "lora": LORA})
    options = next(s for s in make_plan(load_recipe(path)).steps if s.kind == "train").options
    before = precision.of_earlier_version(options)
    assert before.short == "bfloat16"
    assert precision_to_resume(before, choose(options, NEW_CPU), NEW_CPU) == choose(
        options, NEW_CPU
    )
    assert precision_to_resume(before, choose(options, OLD_CPU), OLD_CPU) is None
    trained = {"dtype": "float16", "trainer": {"bf16": False}, "lora": None}
    assert precision.of_earlier_version(trained).short == "float16"  # refused now, done then


def test_a_training_that_was_stopped_in_another_precision_begins_anew(
    recipe_dict, write_recipe, tmp_path, on
):
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "precision": "auto", "evaluate": []}
    step = first_step(make_plan(load_recipe(write_recipe(recipe_dict))))
    runs = tmp_path / "runs"
    spec = write_spec(step, runs, processes=1, use_cpu=True)
    checkpoint = step.directory(runs) / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    progress = {"precision": vars(Precision("float16", "float32", "float16", "on a T4"))}
    artifact.write_json(step.directory(runs) / "progress.json", progress)
    on(OLD_CPU)
    worker.execute(StepContext.read(spec))  # it would fail to resume from that checkpoint
    assert artifact.read_record(step.directory(runs))["precision"]["compute"] == "float32"


class _Overflowing:
    """A real optimizer, scaler and accelerate wrapper over a weight whose gradient can overflow."""

    def __init__(self):
        from accelerate import Accelerator
        from accelerate.optimizer import AcceleratedOptimizer

        self.accelerator = Accelerator(cpu=True)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.scaler = torch.amp.GradScaler("cpu")
        plain = torch.optim.SGD([self.weight], lr=0.1)
        self.optimizer = AcceleratedOptimizer(plain, scaler=self.scaler, device_placement=False)
        self.accelerator._optimizers.append(self.optimizer)

    def step(self, gradient):
        self.optimizer.zero_grad()
        self.scaler.scale((self.weight * gradient).sum()).backward()
        self.optimizer.step()


@pytest.fixture
def loss_scale(tmp_path):
    from pipeline.train.trainer import _LossScale

    warned, metrics, state = [], {}, SimpleNamespace(stateful_callbacks={})
    step = SimpleNamespace(directory=tmp_path, metrics=metrics, warn=warned.append)
    training = _Overflowing()
    watch = _LossScale(step, training.accelerator)  # type: ignore[arg-type]

    def train(*gradients):
        for gradient in gradients:
            training.step(gradient)
            watch.on_step_end(SimpleNamespace(fp16=True), state, None)

    return SimpleNamespace(train=train, check=watch.check, warned=warned, metrics=metrics)


def test_float16_that_overflows_for_good_stops_and_names_the_way_out(loss_scale):
    loss_scale.train(1.0, 1.0, *[math.inf] * 19)
    with pytest.raises(
        StepFailedError, match=r"20 of 22 optimizer steps.*every loss scale.*precision: float32"
    ):
        loss_scale.train(math.inf)


def test_a_short_training_that_mostly_overflowed_is_no_result(loss_scale):
    """Of four steps, three left out: the model would be untrained, without a word."""
    loss_scale.train(math.inf, math.inf, math.inf, 1.0)
    with pytest.raises(StepFailedError, match=r"3 of 4 optimizer steps.*hardly trained"):
        loss_scale.check()


def test_steps_that_the_scaler_left_out_are_counted(loss_scale):
    loss_scale.train(math.inf, *[1.0] * 9)
    loss_scale.check()
    assert loss_scale.metrics == {"optimizer_steps_left_out": 1}
    assert len(loss_scale.warned) == 1 and "1 of 10 optimizer steps" in loss_scale.warned[0]
    loss_scale.train(*[1.0] * 90)
    loss_scale.warned.clear()
    loss_scale.check()  # one of a hundred is how float16 finds its scale
    assert not loss_scale.warned


def test_a_loss_that_overflows_float16_names_the_way_out(tmp_path):
    """A NaN loss is how float16 mostly fails; the learning rate may be right."""
    from pipeline.train.trainer import diverged

    for compute, named in (("float16", True), ("bfloat16", False)):
        step = SimpleNamespace(directory=tmp_path, precision=SimpleNamespace(compute=compute))
        sentence = str(diverged(step, "the loss is nan at optimizer step 3"))  # type: ignore[arg-type]
        assert ("precision: float32" in sentence) == named and "learning_rate" in sentence


def test_the_launched_run_says_it_once(recipe_dict, write_recipe, bashrac):
    path = write_recipe(recipe_dict | {"stages": {"sft": {"method": "sft"}}, "precision": "auto"})
    done = bashrac("run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("computing in ")]
    assert len(said) == len({*said}) == 1 + (hardware("cpu").best == "bfloat16"), said
    assert all(hardware("cpu").why in line for line in said)
    report = bashrac("report", path).stdout
    assert f"computed in {hardware('cpu').best}" in report
    assert "different precisions" not in report


def test_a_report_warns_where_stages_were_made_in_different_precisions(
    recipe_dict, write_recipe, run_steps_here, on
):
    from eval.report.collect import collect
    from eval.report.markdown import markdown

    recipe_dict |= {"precision": "auto", "baseline": "sft", "lora": LORA}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "more": {"method": "sft", "from": "sft"}}
    path = write_recipe(recipe_dict)
    on(NEW_CPU)
    run_steps_here(path, until=lambda step: step.stage == "sft" and step.kind == "gsm8k")
    on(OLD_CPU)
    plan, runs = run_steps_here(path)
    report = collect(plan, runs)
    (about_training, stages), (about_reading, _) = report.warnings.items()
    assert about_training.startswith("training was done in different precisions (bfloat16: sft; ")
    assert about_reading.startswith("reading was done in") and stages == ["sft", "more"]
    assert "bfloat16 and float32" in markdown(report)


@pytest.mark.parametrize("engine", ["auto", "transformers"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_nan_write_no_answer(tiny_model, engine, temperature):
    """argmax takes NaN for the largest, so that every token would be one and the same."""
    from pipeline.decoding.generate import Prompt, generate_answers
    from pipeline.models.load import load_model

    model = load_model(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[9] = math.nan
    with pytest.raises(StepFailedError, match=r"NaN or infinite.*precision: float32"):
        generate_answers(
            model, [Prompt(0, 0, [5, 6, 7])],
            engine=engine, max_new_tokens=4, stop_ids=[2], temperature=temperature,
        )  # fmt: skip


@pytest.mark.parametrize("label", ["argmax", "sample"])
def test_scores_that_are_nan_give_no_label(tiny_model, label):
    from pipeline.models.load import load_model
    from pipeline.rows.corrections import correct

    model = load_model(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[9] = math.inf
    with pytest.raises(StepFailedError, match="NaN or infinite"):
        correct(model, prompt_ids=[[5]], shown_ids=[[5, 6]], answer_ids=[[7, 8]], label=label)


def test_a_plan_says_what_is_asked_for_at_every_point_of_a_sweep(recipe_dict, write_recipe):
    assert precision.describe_asked([load_recipe("demo")]) == "auto, chosen where it runs"
    words = precision.describe_asked([load_recipe("study-maths")])
    assert words == "auto, chosen where it runs; trainer.bf16 true"
    recipe_dict["stages"] = {"sft": {"method": "sft", "trainer": {"bf16": False}}}
    recipe_dict["sweep"] = {"precision": ["bfloat16", "float32"]}
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    words = precision.describe_asked(one.recipe for one in plan.stages.values())
    assert words == (
        "bfloat16; stages.sft.trainer.bf16 false or float32; stages.sft.trainer.bf16 false"
    )
