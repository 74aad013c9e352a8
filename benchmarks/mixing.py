"""How much faster BASH contexts are written by reading many positions at a time.

    python benchmarks/mixing.py --runs runs                      # after `bashrac run demo`
    python benchmarks/mixing.py --runs runs --data train.jsonl --rows 128 --betas 0.2

Takes the model of the demo's `sft` stage and mixes the same rows by both engines, `sequential` (one
position a pass, with a cache, rows ordered by length) and `parallel`, at each batch size, of which
the fastest counts. Prints, for each beta, seconds, their ratio, the share of tokens that differ
between the engines (rounding of 16-bit passes of other shapes) and of tokens the model changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.contexts import mix_contexts
from pipeline.data import load_examples
from pipeline.load import load_recipe
from pipeline.model import load_model, load_tokenizer
from pipeline.plan import make_plan
from pipeline.recipe import Source
from pipeline.render import Renderer


def main() -> None:
    """Measure and print JSON lines and a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", default="builtin:maths", help="rows with question and answer")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 0.7, 1.0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    model, prompts, references, excluded = load(given)
    options = {"seed": 0, "row_ids": range(len(prompts)), "excluded_ids": excluded}

    def measure(beta: float, engine: str, batch_size: int) -> tuple[float, list[list[int]]]:
        synchronize(given.device)
        start = time.perf_counter()
        found = mix_contexts(
            model, prompts, references, beta=beta, engine=engine, batch_size=batch_size, **options
        )
        synchronize(given.device)
        return time.perf_counter() - start, found

    mix_contexts(model, prompts[:4], references[:4], beta=0.2, seed=0, row_ids=range(4))  # warm up
    lines = []
    for beta in given.betas:
        timed = {
            engine: {size: measure(beta, engine, size) for size in given.batch_sizes}
            for engine in ("sequential", "parallel")
        }
        lines.append(describe(beta, timed, references))
        print(json.dumps(lines[-1]), flush=True)
    print(table(lines))
    tokens = sum(map(len, prompts)), sum(map(len, references))
    print(
        f"\n{len(prompts)} rows of {given.data}, {tokens[0]:,} prompt and {tokens[1]:,} answer "
        f"tokens, {given.dtype}, {device_words(given.device)}"
    )


def load(given: argparse.Namespace) -> tuple[Any, list[list[int]], list[list[int]], list[int]]:
    """The demo's SFT model, and rows as its stages see them."""
    plan = make_plan(load_recipe("demo"))
    weights = plan.models["sft", 0]
    assert weights.adapter is not None
    name = plan.recipe.model
    tokenizer = load_tokenizer(name)
    adapter = str(weights.adapter.directory(given.runs))
    model = load_model(name, adapter=adapter, dtype=given.dtype).to(given.device).eval()
    renderer = Renderer(tokenizer, plan.recipe.system)
    examples = load_examples(Source(source=given.data, split="train", limit=given.rows), "gsm8k")
    prompts = [renderer.prompt_ids(example) for example in examples]
    references = [renderer.answer_ids(example, example.reference) for example in examples]
    return model, prompts, references, sorted(tokenizer.all_special_ids)


def describe(beta: float, timed: dict[str, Any], references: list[list[int]]) -> dict[str, Any]:
    """Best seconds of each engine at a beta, their ratio, and what differs."""
    best = {
        engine: min(sizes.items(), key=lambda item: item[1][0]) for engine, sizes in timed.items()
    }
    one, other = (best[engine][1][1] for engine in ("sequential", "parallel"))
    return {
        "beta": beta,
        "sequential s": round(best["sequential"][1][0], 2),
        "sequential batch": best["sequential"][0],
        "parallel s": round(best["parallel"][1][0], 2),
        "parallel batch": best["parallel"][0],
        "sequential / parallel": round(best["sequential"][1][0] / best["parallel"][1][0], 2),
        "tokens that differ": round(differing(one, other), 4),
        "tokens changed": round(differing(other, references), 4),
    }


def differing(left: list[list[int]], right: list[list[int]]) -> float:
    """The share of tokens that differ between two sets of rows of the same lengths."""
    pairs = [(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([str(line[name]) for name in head] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def synchronize(device: str) -> None:
    """Wait for an accelerator to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_words(device: str) -> str:
    """What it ran on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads"


if __name__ == "__main__":
    main()
