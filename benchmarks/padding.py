"""How much of what training reads is padding, with rows at random and with rows grouped by length?

    python benchmarks/padding.py sft gsm8k train.jsonl
    python benchmarks/padding.py dpo chat preferences.jsonl --batch-size 32

Takes batches from the real trainers' samplers and collators, for one epoch; no model reads them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.render import renderer_for  # noqa: E402
from pipeline.plan.load import load_recipe  # noqa: E402 - from this checkout
from pipeline.plan.plan import make_plan  # noqa: E402
from pipeline.rows.pairs import read_pairs  # noqa: E402
from pipeline.stages import dpo, sft  # noqa: E402
from pipeline.steps.context import StepContext, write_spec  # noqa: E402


def main() -> None:
    """Print a row of a table for each size of pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("method", choices=("sft", "dpo"))
    parser.add_argument("task", choices=("gsm8k", "tldr", "chat"))
    parser.add_argument("data")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    given = parser.parse_args()
    print("| method | rows | rows a pass | random | grouped |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 4, 8):
            cells = []
            for strategy in ("random", "group_by_length"):
                step = training_step(given, size, strategy, Path(folder))
                trainer, rows = trainer_of(step, given.method)
                cells.append(f"{100 * padding_share(trainer):.1f} %")
            print(f"| {given.method} | {rows:,} | {size} | {' | '.join(cells)} |", flush=True)


def training_step(given: argparse.Namespace, size: int, strategy: str, folder: Path) -> StepContext:
    """The training step of a one-stage recipe."""
    source = {"source": given.data, **({"limit": given.limit} if given.limit else {})}
    builtin = {"gsm8k": "builtin:maths", "tldr": "builtin:posts", "chat": "builtin:chat"}
    data: dict[str, Any] = {"train": source}
    if given.method == "dpo":  # a recipe that trains needs training rows too
        data = {"train": builtin[given.task], "preferences": source}
    recipe = {
        "name": "padding",
        "task": given.task,
        "model": given.model,
        "data": data,
        "launch": "cpu",
        "batch_size": given.batch_size,
        "micro_batch_size": size,
        "lora": {"r": 1, "target_modules": "all-linear"},
        "trainer": {"train_sampling_strategy": strategy},
        "stages": {"one": {"method": given.method}},
    }
    path = folder / "padding.yaml"
    path.write_text(yaml.safe_dump(recipe))
    step = make_plan(load_recipe(str(path))).steps[-1]
    return StepContext.read(write_spec(step, folder, processes=1, use_cpu=True))


def trainer_of(step: StepContext, method: str) -> tuple[Any, int]:
    """The step's trainer, and how many rows it has."""
    renderer = renderer_for(step)
    if method == "dpo":
        pairs = read_pairs(step, renderer)
        return dpo.make_trainer(step, pairs, renderer.tokenizer), len(pairs)
    _, rows = sft.read_training_rows(step, renderer)
    return sft.make_trainer(step, rows, renderer.tokenizer), len(rows)


def padding_share(trainer: Any) -> float:
    """Padding among the positions of an epoch's batches."""
    positions = tokens = 0
    for batch in trainer.get_train_dataloader():
        positions += batch["input_ids"].numel()
        tokens += int(batch["attention_mask"].sum())
    return 1 - tokens / positions


if __name__ == "__main__":
    main()
