"""Online scheduled sampling, to compare with: contexts are mixed inside every training step.

    python benchmarks/online.py runs/steps/train-.../step.json

Takes the training step of a BASH stage and trains again on the same rows, but each batch's mixed
rows get contexts that the model being trained writes when the batch is drawn, one position a pass.
Called by benchmarks/speed.py; saves nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.data.render import renderer_for
from pipeline.rows.contexts import mix_contexts
from pipeline.stages.sft import make_trainer, read_training_rows
from pipeline.steps.context import StepContext

BETA = 0.2


def main() -> None:
    """Train."""
    step = StepContext.read(Path(sys.argv[1]))
    renderer = renderer_for(step)
    _, rows = read_training_rows(step, renderer)
    special = sorted(renderer.special_ids)
    with tempfile.TemporaryDirectory() as folder:
        step.directory, source = Path(folder), step.directory
        trainer = make_trainer(step, rows, renderer.tokenizer)
        collate = trainer.data_collator
        trainer.data_collator = lambda batch: collate(mixed(trainer.model, batch, special))
        trainer.train()
    print(f"trained {len(rows)} rows of {source.name}", flush=True)


def mixed(model: Any, batch: list[dict[str, Any]], special: list[int]) -> list[dict[str, Any]]:
    """The batch, its mixed rows (whose inputs are not their labels) with contexts of now."""
    places = [at for at, row in enumerate(batch) if is_mixed(row)]
    if not places:
        return batch
    starts = [batch[at]["labels"].count(-100) for at in places]
    references = [batch[at]["labels"][start:] for at, start in zip(places, starts, strict=True)]
    prompts = [batch[at]["input_ids"][:start] for at, start in zip(places, starts, strict=True)]
    contexts = mix_contexts(
        model, prompts, references, beta=BETA, seed=0, row_ids=range(len(places)),
        engine="sequential", excluded_ids=special,
    )  # fmt: skip
    batch = list(batch)
    for at, prompt, context in zip(places, prompts, contexts, strict=True):
        batch[at] = {**batch[at], "input_ids": prompt + context}
    return batch


def is_mixed(row: dict[str, Any]) -> bool:
    """Whether a label differs from its input."""
    return any(
        label not in (-100, token)
        for token, label in zip(row["input_ids"], row["labels"], strict=True)
    )


if __name__ == "__main__":
    main()
