"""Estimates: parameters, memory, tokens and hours against what really happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_tiny_model

from pipeline.errors import InputError
from pipeline.estimate import memory
from pipeline.estimate.memory import Memory, Shape, optimizer_bytes, sharded
from pipeline.estimate.step import Estimate
from pipeline.estimate.text import saved_bytes
from pipeline.recipe.shipped import FSDP2, REPLICATED, zero

LORA = {"r": 4, "target_modules": "all-linear"}


def planned(path, *overrides):
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan

    return make_plan(load_recipe(str(path), overrides))


def estimates_of(path, runs, *overrides, **options):
    """The estimates of a recipe's steps by stage and title."""
    from pipeline.estimate.estimate import estimate
    from pipeline.recipe.shipped import read_launch

    plan = planned(path, *overrides)
    found = estimate(plan, runs, read_launch(plan.recipe.launch), **options)
    return {f"{one.step.stage}: {one.step.title}": one for one in found}


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "mistral", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_loaded_model(tmp_path, architecture, tied):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.estimate.skeleton import build

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 100, "intermediate_size": 48, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(architecture, **sizes, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)

    skeleton = build(config, dtype="float32")
    assert skeleton.shape.total == loaded.num_parameters()
    assert skeleton.shape.trained == loaded.num_parameters(only_trainable=True)
    assert skeleton.weight_bytes == 4 * loaded.num_parameters()

    adapted = get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", **LORA))
    with_adapter = build(config, dtype="float32", lora=LORA)
    assert with_adapter.shape.total == skeleton.shape.total
    trained, everything = adapted.get_nb_trainable_parameters()
    assert with_adapter.shape.trained == trained
    assert with_adapter.weight_bytes == 4 * everything


def test_four_bit_linear_layers_take_half_a_byte_and_leave_embeddings_as_they_are(tiny_model):
    from pipeline.estimate.skeleton import build
    from pipeline.estimate.trace import TrainingPass, training_peak
    from pipeline.models.load import load_config

    plain = build(load_config(tiny_model), dtype="bfloat16", trains=False)
    linear = sum(one.numel() for name, one in plain.model.named_parameters() if "proj" in name)
    packed = build(load_config(tiny_model), dtype="bfloat16", lora=LORA, quantize="nf4")
    adapter = sum(one.nbytes for one in packed.trained)
    spared = 2 * (plain.shape.total - linear)
    assert packed.shape.total == plain.shape.total
    assert 0.5 * linear < packed.weight_bytes - spared - adapter < 0.54 * linear
    weights = packed.weight_bytes
    assert training_peak(packed, TrainingPass(rows=2, length=8)) > weights


def test_optimizer_states_are_those_that_torch_makes():
    import torch
    from transformers import Adafactor

    sizes = ((300, 20), (7, 3), (20,))
    weights = [torch.empty(size, device="meta") for size in sizes]
    for name, make in {
        "adamw_torch": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
        "adafactor": lambda given: Adafactor(given, scale_parameter=False, relative_step=False,
                                             lr=1e-3),
    }.items():  # fmt: skip
        given = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
        optimizer = make(given)
        for one in given:
            one.grad = torch.ones_like(one)
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        held = sum(one.nbytes for one in states if isinstance(one, torch.Tensor) and one.dim())
        assert optimizer_bytes(weights, name) == held, name


def test_8_bit_states_spare_embeddings_and_small_weights():
    import torch

    def weight(*size, dtype=torch.float32):
        return torch.empty(size, dtype=dtype, device="meta")

    large, small, embedding = weight(64, 256), weight(64, 63), weight(64, 256)
    assert optimizer_bytes([large], "adamw_8bit", embedding) == 2 * (64 * 256 + 4 * 64)
    assert optimizer_bytes([small], "paged_adamw_8bit", embedding) == 8 * 64 * 63
    assert optimizer_bytes([embedding], "adamw_8bit", embedding) == 8 * 64 * 256
    # AdamW of torch keeps states in the dtype of the weight, bitsandbytes' in float32.
    half = weight(10, dtype=torch.bfloat16)
    assert optimizer_bytes([half], "adamw_torch_fused") == 40
    assert optimizer_bytes([half], "paged_adamw_32bit") == 80


def test_defaults_are_those_of_the_libraries():
    from transformers import TrainingArguments

    from pipeline.estimate.tokens import _DEFAULT_EPOCHS

    assert TrainingArguments.default_optim == memory.DEFAULT_OPTIMIZER
    assert TrainingArguments.num_train_epochs == _DEFAULT_EPOCHS


def test_sharding_follows_the_figure_of_the_zero_paper():
    """Figure 1 of ZeRO: 7.5 B parameters on 64 GPUs, 16-bit weights and gradients, AdamW.

    Without sharding 120 GB, stage 1 31.4 GB, stage 2 16.6 GB, stage 3 1.9 GB. Here a single process
    keeps float32 weights, which DeepSpeed turns into 16 bits and a sharded float32 copy.
    """
    count = 7_500_000_000
    whole = Memory(weights=4 * count, gradients=4 * count, optimizer=8 * count)
    shape = Shape(count, count, largest_block=0, outside=0)
    found = {
        stage: sharded(whole, shape, pass_bytes=2, kind=zero(stage), processes=64)
        for stage in (1, 2, 3)
    }
    kept = {stage: (one.total - one.passes) / 1e9 for stage, one in found.items()}
    assert kept == pytest.approx({1: 31.4, 2: 16.6, 3: 1.9}, abs=0.05)


def test_fsdp_shards_everything_and_gathers_some_layers():
    whole = Memory(weights=800, gradients=800, optimizer=1600, reference=800, passes=50)
    shape = Shape(trained=200, total=200, largest_block=20, outside=10)

    def process(kind, processes):
        return sharded(whole, shape, pass_bytes=2, kind=kind, processes=processes)

    each = process(FSDP2, 8)
    assert (each.weights, each.gradients, each.optimizer, each.reference) == (100, 100, 200, 100)
    assert each.passes == 50 + 2 * (3 * 20 + 10)
    # Plain data parallelism keeps all, and gradients twice: in the buckets that are sent.
    assert process(REPLICATED, 8).total == whole.total + 800
    assert process(FSDP2, 1) == whole


def test_cache_is_that_of_the_reader(tiny_model):
    from pipeline.estimate.skeleton import build
    from pipeline.estimate.trace import WritingPass, writing_peak
    from pipeline.models.load import load_config

    config = load_config(tiny_model)
    skeleton = build(config, dtype="bfloat16", trains=False)
    weights = skeleton.weight_bytes
    most, cache = writing_peak(skeleton, WritingPass(slots=6, columns=40, prompt=30))
    heads = config.num_hidden_layers * config.num_key_value_heads
    # Keys and values of 8 numbers, 2 bytes each; one column more takes what is read beyond a row's end.
    assert cache == 2 * 6 * 41 * heads * 8 * 2
    assert most > weights + cache


@pytest.mark.parametrize("label", ["argmax", "sample"])
def test_labels_take_what_labelling_rows_takes(tiny_model, label):
    """What is alive while real rows are labelled, counted as the estimate counts fake tensors.

    Eight rows of up to 120 tokens go through one pass of the layers, which keeps no cache.
    """
    from pipeline.estimate.skeleton import build
    from pipeline.estimate.trace import Live, WritingPass, writing_peak
    from pipeline.models.load import load_config, load_model
    from pipeline.rows.corrections import Own, iter_labels

    rows = [Own([5] * 60, [6] * (60 - number), number) for number in range(8)]
    model = load_model(tiny_model, dtype="float32").eval()
    how = {"label": label, "min_confidence": 0.5, "seed": 0, "batch_size": 8}
    with Live() as live:
        for one in model.parameters():
            live.add(one)
        weights = live.now
        for _ in iter_labels(model, rows, **how):
            pass
    skeleton = build(load_config(tiny_model), dtype="float32", trains=False)
    given = WritingPass(0, columns=120, prompt=60, sampled=8 * (label == "sample"), labelled=8)
    most, cache = writing_peak(skeleton, given)
    assert cache == 0
    assert most - weights == pytest.approx(live.most - weights, rel=0.1)


def test_more_rows_or_longer_ones_need_more_and_checkpoints_less(tiny_model):
    from pipeline.estimate.skeleton import build
    from pipeline.estimate.trace import TrainingPass, training_peak
    from pipeline.models.load import load_config

    def peak(**given):
        return training_peak(build(load_config(tiny_model), dtype="float32"), TrainingPass(**given))

    least = peak(rows=2, length=64)
    assert least < peak(rows=4, length=64)
    assert least < peak(rows=2, length=128)
    assert peak(rows=2, length=64, checkpointing=True) < least
    # On a GPU the chunks of logits are worked on in place.
    assert peak(rows=2, length=64, on_gpu=True) < least


def test_every_step_that_loads_a_model_has_an_estimate(recipe_dict, write_recipe):
    """Sampled rows too: checking a sample for NaN reads a value, which a fake tensor has not."""
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "dpo": {"method": "dpo"},
    }
    recipe_dict |= {"evaluate": ["gsm8k", "gap"]}
    found = estimates_of(write_recipe(recipe_dict), Path("none"))
    computing = {name: one for name, one in found.items() if "dtype" in one.step.options}
    assert len(computing) >= 12
    assert {name: one.unknown for name, one in computing.items() if one.memory is None} == {}


def test_tokens_are_those_that_finished_steps_count(recipe_dict, write_recipe, run_steps_here):
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "dpo": {"method": "dpo"},
    }
    path = write_recipe(recipe_dict)
    before = estimates_of(path, Path("none"))
    _, runs = run_steps_here(path)
    after = estimates_of(path, runs)
    for name in ("sft: train", "bash: train", "dpo: train"):
        assert before[name].work.trained == after[name].work.trained > 0, name
    assert before["bash: contexts"].work.written == after["bash: contexts"].work.written > 0
    answers = "sft: answers for gsm8k"
    assert before[answers].work.at_most
    assert before[answers].work.written >= after[answers].work.written > 0
    for one in after.values():
        assert one.done and one.measured and one.memory is None


def test_seeds_share_a_line_as_long_as_they_are_equally_far(
    recipe_dict, write_recipe, run_steps_here
):
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": [], "seeds": [0, 1]}
    path = write_recipe(recipe_dict)
    (both,) = estimates_of(path, Path("none")).values()
    assert (both.times, both.done) == (2, False)
    plan, runs = run_steps_here(path, until=lambda step: step.kind == "train")
    from pipeline.estimate.estimate import estimate
    from pipeline.recipe.shipped import read_launch

    found = estimate(plan, runs, read_launch("cpu"))
    assert [(one.step.seed, one.times, one.done) for one in found] == [(0, 1, True), (1, 1, False)]


def test_hours_come_from_finished_steps_of_the_same_model_on_the_same_kind_of_device(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    recipe_dict["evaluate"] = []
    path = write_recipe(recipe_dict)
    _, runs = run_steps_here(path)
    record = json.loads(next(runs.glob("steps/train-*/record.json")).read_text())
    speed = record["metrics"]["tokens_trained"] / record["seconds"]
    other = ("trainer.learning_rate=0.002",)
    found = estimates_of(path, runs, *other)["sft: train"]
    assert not found.done
    assert found.seconds == pytest.approx(found.work.trained / speed)
    given = estimates_of(path, runs, *other, tokens_per_second=10)["sft: train"]
    assert given.seconds == pytest.approx(given.work.trained / 10)
    # Neither another model, nor an adapter, nor a GPU is as fast.
    stranger = save_tiny_model(tmp_path / "mistral", architecture="mistral")
    for change in (f"model={stranger}", "lora.r=4", "launch=single_gpu"):
        assert estimates_of(path, runs, *other, change)["sft: train"].seconds is None, change


def test_the_command_says_what_does_not_fit_and_what_to_do(
    recipe_dict, write_recipe, bashrac, capsys
):
    from pipeline.cli.main import main

    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    path = write_recipe(recipe_dict)
    runs = ["--runs", str(path.parent / "none")]
    assert main(["plan", str(path), *runs, "--gpu-memory=24", "--tokens-per-second=100"]) == 0
    ample = capsys.readouterr().out
    assert ample.endswith("fits 24 GB: all steps\n")
    assert "parameters" in ample and "time still to run: about" in ample
    gpus = ["--launch=ddp", "--set=batch_size=8", "--tokens-per-second=0.1"]
    assert main(["plan", str(path), *runs, *gpus, "--price-per-hour=2", "--currency=EUR"]) == 0
    hours, price = re.search(
        r"still to run: about .* h .*, (\d+\.\d) GPU-hours, ([\d,.]+) EUR", capsys.readouterr().out
    ).groups()
    assert float(price.replace(",", "")) == pytest.approx(2 * float(hours), rel=0.01)
    tight = bashrac("plan", path, "--gpu-memory", "0.0001")
    assert tight.returncode == 1, tight.stderr
    assert "does not fit 0.0001 GB: 4 of 4 steps" in tight.stdout
    assert "micro_batch_size 1" in tight.stdout and "--tokens-per-second N" in tight.stdout


def test_a_way_out_is_one():
    """Fewer rows per pass accumulate gradients, which may take more than the rows left out."""
    from types import SimpleNamespace

    from pipeline.estimate.text import _way_out
    from pipeline.estimate.tokens import Work

    def step(kind, **options):
        return SimpleNamespace(kind=kind, options=options, runtime_options={"batch_tokens": 8000})

    train = step("train", trainer={}, lora=None)
    held = Memory(weights=10**9, passes=10**9)
    for smallest, offered in ((15 * 10**8, True), (25 * 10**8, False)):
        one = Estimate(train, Work(), memory=held, rows=4, smallest=smallest)
        assert ("micro_batch_size 1" in _way_out(one, 10**9)) == offered
        assert "lora trains an adapter" in _way_out(one, 10**9)
    for passes, said in ((2 * 10**9, "lower max_length"), (10**8, "quantize: nf4")):
        one = Estimate(step("contexts"), Work(), memory=Memory(weights=10**9, passes=passes))
        assert said in _way_out(one, 10**9)


def test_memory_is_a_number_above_0():
    from pipeline.cli.parser import parse

    for wrong in ("-1", "0", "inf", "much"):
        with pytest.raises(InputError, match=f"--gpu-memory: '{wrong}' is not a number above 0"):
            parse(["plan", "demo", f"--gpu-memory={wrong}"])


@pytest.mark.slow
def test_the_estimate_is_within_a_fifth_of_what_training_takes():
    """One model by three methods, as benchmarks/memory.py measures all of them."""
    command = [sys.executable, "benchmarks/memory.py", "--models", "llama"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    worst = next(line for line in found.stdout.splitlines() if line.startswith("furthest"))
    assert float(worst.split()[-1]) < 1.2, found.stdout


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_disk_that_weights_take_is_that_of_the_files(
    recipe_dict, write_recipe, run_steps_here, bashrac, tmp_path, lora
):
    recipe_dict |= {"lora": lora, "evaluate": []}
    recipe_dict["stages"] = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "from": "sft"}}
    path = write_recipe(recipe_dict)
    before = estimates_of(path, Path("none"))
    total = max(one.total for one in before.values())
    told = bashrac("plan", path, "--estimate", "--runs", tmp_path / "none").stdout
    assert re.search(r"disk: about 0\.00 GB for the weights of 2 steps, and up to .* GB more", told)
    plan, runs = run_steps_here(path)
    for step in (step for step in plan.steps if step.kind == "train"):
        (file,) = (step.directory(runs) / "model").glob("*.safetensors")
        estimated = saved_bytes(before[f"{step.stage}: {step.title}"], total)
        assert 0 < file.stat().st_size - estimated < 8192, "the file has a header, too"


@pytest.fixture
def judging_model(tmp_path):
    """A model whose next token is nearly always m or M."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = save_tiny_model(
        tmp_path / "judge", architecture="gpt_neox", max_position_embeddings=2048
    )
    model = AutoModelForCausalLM.from_pretrained(name)
    ids = AutoTokenizer.from_pretrained(name).convert_tokens_to_ids(["m", "M"])
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.get_output_embeddings().weight[ids] += 1.0
    model.save_pretrained(name)
    return name


def judged_by(recipe_dict, judge):
    posts = {"source": "builtin:posts", "split": "test", "limit": 3}
    tldr = {"data": posts, "max_prompt_length": 400, "template": "alpaca_eval_2"}
    judged = {"evaluate": ["tldr"], "judge": judge, "benchmarks": {"tldr": tldr}}
    return recipe_dict | judged | {"stages": {"base": {"method": "base"}}}


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_judge_in_process_has_memory_and_tokens_and_later_its_measured_time(
    recipe_dict, write_recipe, run_steps_here, judging_model, quantize
):
    judge = {"engine": "local", "model": judging_model, "dtype": "bfloat16", "quantize": quantize}
    path = write_recipe(judged_by(recipe_dict, judge))
    before = estimates_of(path, Path("none"))["base: judge tldr"]
    assert before.memory is not None and before.memory.weights > 0 and before.memory.passes > 0
    assert before.work.at_most and before.seconds is None
    _, runs = run_steps_here(path)
    after = estimates_of(path, runs)["base: judge tldr"]
    # The estimate takes four characters of the template for a token; this judge's have two.
    assert after.done and before.work.read < after.work.read < 2 * before.work.read
    again = estimates_of(path, runs, "judge.max_errors=1")["base: judge tldr"]
    assert not again.done and again.work.read == before.work.read
    assert again.seconds == pytest.approx(again.work.read * after.seconds / after.work.read)


def test_an_endpoints_tokens_and_cost_are_estimated_with_its_reasoning(
    recipe_dict, write_recipe, serve, bashrac, tmp_path
):
    """6 calls of 1,064 tokens each, at 10 a million."""
    judge = {"engine": "openai", "model": "m", "base_url": serve().url, "reasoning": True}
    judge["price"] = {"per_million_output_tokens": 10.0}
    path = write_recipe(judged_by(recipe_dict, judge))
    done = bashrac("plan", path, "--estimate", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert re.search(r"judge m at .*: at most ~6 calls, ~[\d,]+ tokens to read and ~6,384 to write "
                     r"\(1,064 a reply with its reasoning: an assumption, none is measured\), "
                     r"cost 0\.06\.", done.stdout), done.stdout  # fmt: skip


def test_a_judge_whose_config_is_not_here_has_no_memory_and_says_so(
    recipe_dict, write_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    judge = {"engine": "local", "model": "nobody/nothing", "revision": "0" * 40}
    found = estimates_of(write_recipe(judged_by(recipe_dict, judge)), Path("none"))
    assert "the judge's config cannot be read" in found["base: judge tldr"].unknown
