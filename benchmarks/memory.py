"""Is the memory that `bashrac plan --estimate` foretells what training takes?

    python benchmarks/memory.py [--models llama,qwen3] [--methods full,lora] [--gpu]

Builds random models of 30 to 90 million weights and several architectures, estimates steps of
recipes for them, runs each step's own code in a fresh process, and prints estimate, measured peak,
and their ratio. With --gpu the peak is torch's count of allocated bytes, from the step's record.
Without, it is the resident memory that the step's record holds, less what the process held before:
it has trained a tiny model of the same architecture by then, so that libraries are loaded, and
freed memory goes back to the kernel at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
# Sizes of real small models, cut in layers; a vocabulary large enough to matter.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True},
    "gpt_neox": {"intermediate_size": 2048},
    "gemma": {"num_key_value_heads": 1, "head_dim": 128, "hidden_activation": "gelu_pytorch_tanh"},
    "mistral": {"num_key_value_heads": 2, "num_hidden_layers": 12},
}
SIZES = {
    "vocab_size": 16000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}
TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
EMBEDDED = "smollm2-135m-instruct"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"stages": {"train": {"method": "sft"}}},
    "lora": {"stages": {"train": {"method": "sft"}}, "lora": LORA},
    "dpo": {"stages": {"train": {"method": "dpo"}}},
    "dpo, lora": {"stages": {"train": {"method": "dpo"}}, "lora": LORA},
    "full, float32": {"stages": {"train": {"method": "sft", "trainer": {"bf16": False}}}},
    "full, checkpoints": {
        "stages": {"train": {"method": "sft", "trainer": {"activation_checkpointing": True}}}
    },
    "answers": {"stages": {"base": {"method": "base"}}, "evaluate": ["gsm8k"]},
}
MIB = 1 << 20


def main() -> None:
    """Print a table: estimate, measured, ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="llama,qwen3,gpt_neox,gemma,smollm2-135m-instruct")
    parser.add_argument("--methods", default="full,lora,dpo,answers")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "TINY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.one:
        print(json.dumps(measure(*map(Path, given.one))))
        return
    print(f"{'model':<22} {'weights':>8}  {'method':<18} {'estimate':>9} {'measured':>9}  ratio")
    worst = 1.0
    with tempfile.TemporaryDirectory() as name:
        _write_rows(Path(name))
        for model in given.models.split(","):
            for method in given.methods.replace(", ", "+").split(","):
                found = _compare(Path(name), model, method.replace("+", ", "), on_gpu=given.gpu)
                ratio = found["estimate"] / found["measured"]
                worst = max(worst, ratio, 1 / ratio)
                print(
                    f"{model:<22} {found['total'] / 1e6:>6.1f} M  {method.replace('+', ', '):<18} "
                    f"{found['estimate'] / MIB:>5.0f} MiB {found['measured'] / MIB:>5.0f} MiB  "
                    f"{ratio:.2f}",
                    flush=True,
                )
    print(f"furthest from 1: a factor of {worst:.2f}")
    print(_machine(on_gpu=given.gpu))


def _compare(folder: Path, model: str, method: str, *, on_gpu: bool) -> dict[str, Any]:
    """Estimate and measure one step."""
    from pipeline.estimate.estimate import estimate
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.recipe.shipped import read_launch

    paths = []
    for size in ("whole", "tiny"):
        name = "embedded" if model == EMBEDDED else model
        at = folder / f"{name}-{size}"
        if model == EMBEDDED and size == "whole":
            at = Path(model)
        elif not at.exists():
            _save_model(at, "llama" if model == EMBEDDED else model, tiny=size == "tiny")
        paths.append(folder / f"{name}-{size}-{method.replace(', ', '-')}.yaml")
        paths[-1].write_text(yaml.safe_dump(_recipe(str(at), method, folder, on_gpu=on_gpu)))
    plan = make_plan(load_recipe(str(paths[0])))
    estimates = estimate(plan, folder / "none", read_launch(plan.recipe.launch))
    found = next(one for one in estimates if one.memory)
    assert found.memory is not None
    command = [sys.executable, __file__, "--one", *map(str, paths)]
    # What torch frees goes back to the kernel at once, so that resident memory is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    output = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    measured = json.loads(output.splitlines()[-1])
    return {
        "estimate": found.memory.total,
        "measured": measured["peak"] - (0 if on_gpu else measured["before"]),
        "total": found.total,
        "memory": found.memory,
    }


def measure(recipe: Path, tiny: Path) -> dict[str, int]:
    """Run the step of a recipe in this process, after the same of a tiny model."""
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.run.worker import execute
    from pipeline.steps import artifact
    from pipeline.steps.context import StepContext, write_spec
    from pipeline.steps.record import reset_peak_memory

    found = {}
    for path in (tiny, recipe):
        plan = make_plan(load_recipe(str(path)))
        step = next(one for one in plan.steps if one.kind in ("train", "answers"))
        use_cpu = plan.recipe.launch == "cpu"
        runs = path.parent / f"runs-{path.stem}"
        running = StepContext.read(write_spec(step, runs, processes=1, use_cpu=use_cpu))
        reset_peak_memory(running)
        lines = Path("/proc/self/status").read_text().splitlines()
        resident = next(line for line in lines if line.startswith("VmRSS"))
        found["before"] = int(resident.split()[1]) * 1024
        execute(running)
        found["peak"] = artifact.read_record(running.directory)["peak_memory_bytes"]
    return found


def _write_rows(folder: Path) -> None:
    """Write sums as rows, short enough for a slow machine."""
    rows, pairs = [], []
    for number in range(100, 356):
        prompt = f"A box holds {number} eggs. How many eggs are in {number % 7 + 2} such boxes?"
        total = number * (number % 7 + 2)
        reply = f"There are {number} * {number % 7 + 2} = {total} eggs in them.\n#### "
        rows.append({"question": prompt, "answer": f"{reply}{total}"})
        pairs.append(
            {"prompt": prompt, "chosen": f"{reply}{total}", "rejected": f"{reply}{number}"}
        )
    for name, kept in (("train", rows[:16]), ("test", rows), ("preferences", pairs[:8])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))


def _recipe(model: str, method: str, folder: Path, *, on_gpu: bool) -> dict[str, Any]:
    return {
        "name": "memory",
        "task": "gsm8k",
        "model": model,
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "test", "preferences")},
        "launch": "single_gpu" if on_gpu else "cpu",
        "batch_size": 8,
        "micro_batch_size": 2 if "dpo" in method else 4,
        "trainer": {"learning_rate": 1e-6, "max_steps": 2},
        "generation": {"max_new_tokens": 16, "batch_tokens": 65536},
        **METHODS[method],
    }


def _save_model(folder: Path, architecture: str, *, tiny: bool) -> None:
    """Save a random model and a tokenizer whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<end>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", eos_token="<end>"
    )
    sizes = {**SIZES, **MODELS[architecture], **(TINY if tiny else {})}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **sizes, **ends)
    # In 16 bits, as models are published: a file is in memory too while it is read.
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _machine(*, on_gpu: bool) -> str:
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores"
    packages = ("torch", "transformers", "trl", "peft", "accelerate")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{platform.machine()}, {device}; {versions}"


if __name__ == "__main__":
    main()
