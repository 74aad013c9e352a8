"""What does a stage cost beyond the same training in a bare script?

    python benchmarks/overhead.py [--rows 128] [--repeat 2]

Runs an SFT stage through `bashrac run` and a bare script that calls `trl.SFTTrainer` with the same
arguments on the same rows, in turn, each in a fresh process with the same environment, and prints
the ratio of wall times. The bare script reads the same rows, tokenises, trains and saves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BARE = """
import json, sys
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
import torch

settings = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16)
rows = []
for row in load_dataset("json", data_files=settings["data"], split="train"):
    chat = [{"role": "user", "content": row["question"]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    answer.append(tokenizer.eos_token_id)
    rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
arguments = SFTConfig(
    settings["out"], use_cpu=True, activation_checkpointing=False, report_to=[], disable_tqdm=True,
    seed=0, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_strategy="no",
    dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=False,
    **settings["trainer"],
)
trainer = SFTTrainer(
    model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
)
trainer.train()
trainer.save_model(settings["out"] + "/model")
"""


def main() -> None:
    """Print wall seconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pipeline.data.builtin.rows import builtin_rows
    from pipeline.models.locate import locate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        rows = builtin_rows("maths", "train", limit=given.rows)
        data.write_text("\n".join(map(json.dumps, rows)) + "\n")
        settings = {
            "model": locate("smollm2-135m-instruct"),
            "data": str(data),
            "trainer": {"learning_rate": 1e-3, "num_train_epochs": 1, "bf16": True},
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        }
        seconds: dict[str, list[float]] = {"bare": [], "stage": []}
        for number in range(given.repeat):
            for which, run in (("bare", _bare), ("stage", _stage)):
                began = time.perf_counter()
                run(settings, folder / f"{which}{number}")
                seconds[which].append(time.perf_counter() - began)
                print(f"{which} {number + 1}: {seconds[which][-1]:.1f} s", flush=True)
        ratio = statistics.median(seconds["stage"]) / statistics.median(seconds["bare"])
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        print(
            f"stage / bare = {ratio:.3f} (medians of {given.repeat}, {given.rows} rows, {machine})"
        )


def _environment() -> dict[str, str]:
    from pipeline.recipe.shipped import read_launch
    from pipeline.run.launcher import environment as stage_environment

    return {**stage_environment(read_launch("cpu")), "PYTHONPATH": str(ROOT)}


def _bare(settings: dict, out: Path) -> None:
    script = [sys.executable, "-c", BARE, json.dumps({**settings, "out": str(out)})]
    subprocess.run(script, check=True, env=_environment(), capture_output=True)


def _stage(settings: dict, out: Path) -> None:
    recipe = {
        "name": "overhead",
        "task": "gsm8k",
        "model": settings["model"],
        "data": {"train": settings["data"]},
        "launch": "cpu",
        "batch_size": 8,
        "micro_batch_size": 4,
        "lora": settings["lora"],
        "trainer": {
            **settings["trainer"],
            "save_strategy": "no",
            "train_sampling_strategy": "random",  # as in the bare script
        },
        "stages": {"sft": {"method": "sft"}},
    }
    out.mkdir(parents=True)
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "pipeline", "run", str(path), "--runs", str(out / "runs")]
    subprocess.run(command, check=True, env=_environment(), capture_output=True)


if __name__ == "__main__":
    main()
