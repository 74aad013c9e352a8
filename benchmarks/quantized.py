"""What a base in 4 bits takes and what it costs, beside the same base in 16 and 32 bits.

    python benchmarks/quantized.py [--model smollm2-135m-instruct] [--rows 32] [--data test.jsonl]

Prints for each: bytes of the weights as they lie in memory (scales of the 4 bits included), the
mean loss per token of reference answers to word problems, how often the likeliest token is that of
float32, and tokens read per second.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.builtin.rows import builtin_rows  # noqa: E402 - from this checkout
from pipeline.data.files import rows_of_file  # noqa: E402
from pipeline.data.render import Renderer  # noqa: E402
from pipeline.data.tasks import example_of  # noqa: E402
from pipeline.models.load import load_model, load_tokenizer  # noqa: E402

BASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4, float32 arithmetic": {"dtype": "float32", "quantize": "nf4"},
    "nf4, bfloat16 arithmetic": {"dtype": "bfloat16", "quantize": "nf4"},
}


def main() -> None:
    """Print a row of a table for each base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--data", type=Path, help="rows with question and answer")
    given = parser.parse_args()
    logging.disable_progress_bar()
    rows = read_rows(given.model, given.data, given.rows)
    print("| base | weights | loss per token | same likeliest token | tokens/s |")
    print("| --- | --- | --- | --- | --- |")
    likeliest: torch.Tensor | None = None
    for name, how in BASES.items():
        model = load_model(given.model, **how).eval()
        loss, chosen, rate = read(model, rows)
        likeliest = chosen if likeliest is None else likeliest
        same = (chosen == likeliest).float().mean().item()
        size = f"{weight_bytes(model) / 1e6:.0f} MB"
        print(f"| {name} | {size} | {loss:.4f} | {100 * same:.1f} % | {rate:,.0f} |", flush=True)
    count = sum(len(ids) - start for ids, start in rows)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"({given.model}, {len(rows)} answers of {count:,} tokens, {machine})")


def read_rows(model: str, data: Path | None, limit: int) -> list[tuple[list[int], int]]:
    """Token ids of prompt and answer, and where the answer starts."""
    renderer = Renderer(load_tokenizer(model))
    found = builtin_rows("maths", "test", limit=limit)
    if data is not None:
        found = [row for _, row in islice(rows_of_file(data), limit)]
    rows = []
    for row in found:
        example = example_of("gsm8k", row)
        prompt = renderer.prompt_ids(example)
        rows.append((prompt + renderer.answer_ids(example, example.reference), len(prompt)))
    return rows


@torch.no_grad()
def read(model: Any, rows: list[tuple[list[int], int]]) -> tuple[float, torch.Tensor, float]:
    """Mean loss of answer tokens, the likeliest token at each, and tokens read per second."""
    losses, chosen = [], []
    model(torch.tensor([rows[0][0]]))  # what is done once is not timed
    began = time.monotonic()
    for ids, start in rows:
        scores = model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(
            scores, torch.tensor(ids[start:]), reduction="none"
        ))  # fmt: skip
        chosen.append(scores.argmax(-1))
    rate = sum(len(ids) for ids, _ in rows) / (time.monotonic() - began)
    return torch.cat(losses).mean().item(), torch.cat(chosen), rate


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, with the scales of those in 4 bits."""
    total = 0
    for weight in model.parameters():
        total += weight.numel() * weight.element_size()
        if (state := getattr(weight, "quant_state", None)) is not None:
            scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            total += sum(scale.numel() * scale.element_size() for scale in scales)
    return total


if __name__ == "__main__":
    main()
