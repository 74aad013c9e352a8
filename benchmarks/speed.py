"""What self-generation costs: every goal of docs/scaling.md, in one command.

    python benchmarks/speed.py [--gsm8k train.jsonl] [--posts train.jsonl] [--rows 128]

Runs the demo's sft, bash and rac stages on `--rows` rows of builtin:maths, in a fresh folder, and
takes from their records what steps took; beside the bash stage stands online scheduled sampling
(benchmarks/online.py). Then, with the model of the sft stage: contexts by both engines over beta
(benchmarks/mixing.py), and free answers beside transformers' `generate` in data-set order. Where
its file is given, the same after SFT on GSM8K rows, without the stages, and free answers to TL;DR
posts. Prints JSON lines and Markdown tables. Ratios are of one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from mixing import curve, now  # noqa: E402 - from this checkout

from pipeline.data.load import load_examples  # noqa: E402
from pipeline.data.render import Renderer  # noqa: E402
from pipeline.decoding.batching import pad_left  # noqa: E402
from pipeline.decoding.generate import Prompt, generate_answers  # noqa: E402
from pipeline.models.load import end_ids, load_model, load_tokenizer  # noqa: E402
from pipeline.plan.load import load_recipe  # noqa: E402
from pipeline.plan.plan import Plan, make_plan  # noqa: E402
from pipeline.recipe.schema import Source  # noqa: E402
from pipeline.run.launcher import CPU_ALLOCATOR  # noqa: E402
from pipeline.steps import artifact  # noqa: E402
from pipeline.steps.record import Record  # noqa: E402
from pipeline.steps.spec import StepSpec  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gsm8k", help="rows with question and answer")
    parser.add_argument("--posts", help="TL;DR rows")
    parser.add_argument("--no-maths", action="store_true", help="leave builtin:maths out")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.05, 0.2, 0.4, 1.0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, help="keep the runs here (default: nowhere)")
    given = parser.parse_args()
    if given.device == "cpu" and "MALLOC_MMAP_MAX_" not in os.environ:  # as `bashrac run` does
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **CPU_ALLOCATOR})
    with tempfile.TemporaryDirectory() as temporary:
        runs = (given.runs or Path(temporary)).resolve()
        for data in [*([] if given.no_maths else ["builtin:maths"]), given.gsm8k]:
            if data:
                measure(data, given, runs)
    where = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    print(f"\n{where}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}")


def measure(data: str, given: argparse.Namespace, runs: Path) -> None:
    """Print all tables of one data set."""
    name = "maths" if data.startswith("builtin:") else "gsm8k"
    recipe = write_recipe(name, data, given, runs)
    command = [sys.executable, "-m", "pipeline", "run", str(recipe), "--runs", str(runs)]
    subprocess.run(
        command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    plan = make_plan(load_recipe(str(recipe)))
    lines = [*from_records(plan, runs), online(plan, runs)] if name == "maths" else []
    weights = plan.models["sft", 0]
    assert weights.adapter is not None
    model = load_model(
        plan.recipe.model, adapter=str(weights.adapter.directory(runs)), dtype="bfloat16"
    )
    model = model.to(given.device).eval()
    renderer = Renderer(
        load_tokenizer(plan.recipe.model), plan.recipe.system, end_ids=end_ids(plan.recipe.model)
    )
    examples = load_examples(Source(source=data, split="train", limit=given.rows), "gsm8k")
    prompts = [renderer.prompt_ids(example) for example in examples]
    references = [renderer.answer_ids(example, example.reference) for example in examples]
    lines.append(free(f"{name} prompts", model, prompts, renderer, limit=256))
    if given.posts and name == "gsm8k":
        posts = load_examples(Source(source=given.posts, limit=given.rows), "tldr")
        asked = [renderer.prompt_ids(renderer.fit(post)) for post in posts]
        lines.append(free("TL;DR posts", model, asked, renderer, limit=64))
    print(f"\n## {len(prompts)} rows of {data}: {sum(map(len, prompts)):,} prompt tokens, "
          f"{sum(map(len, references)):,} answer tokens\n")  # fmt: skip
    show(lines)
    special = sorted(renderer.special_ids)
    show(
        curve(model, prompts, references, special, betas=given.betas, batch_sizes=given.batch_sizes)
    )


def write_recipe(name: str, data: str, given: argparse.Namespace, runs: Path) -> Path:
    """The demo's sft, bash and rac stages on the rows to measure."""
    demo = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    kept = ("sft", "bash", "rac") if name == "maths" else ("sft",)
    stages = {stage: demo["stages"][stage] for stage in kept}
    source = {"source": data, "split": "train", "limit": given.rows}
    demo |= {"name": f"speed-{name}", "stages": stages, "evaluate": [], "data": {"train": source}}
    demo["generation"]["max_new_tokens"] = 256
    demo["launch"] = "cpu" if given.device == "cpu" else "single_gpu"
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f"speed-{name}.yaml"
    path.write_text(yaml.safe_dump(demo, sort_keys=False))
    return path


def from_records(plan: Plan, runs: Path) -> list[dict[str, Any]]:
    """The ratios that the records of the stages' steps tell."""
    sft, bash, rac = (records(plan, runs, stage) for stage in ("sft", "bash", "rac"))
    seconds = {stage: {kind: one["seconds"] for kind, one in found.items()}
               for stage, found in (("sft", sft), ("bash", bash), ("rac", rac))}  # fmt: skip
    memory = [found["train"]["peak_memory_bytes"] / 1e9 for found in (sft, bash, rac)]
    epoch = seconds["sft"]["train"]
    return [
        line("BASH contexts / SFT epoch", seconds["bash"]["contexts"], epoch, "s", "<= 0.5"),
        line("RAC labels / RAC answers", seconds["rac"]["corrections"], seconds["rac"]["answers"],
             "s", "<= 0.15"),
        line("peak memory of BASH training / SFT", memory[1], memory[0], "GB", "<= 1.02"),
        line("peak memory of RAC training / SFT", memory[2], memory[0], "GB", "<= 1.02"),
    ]  # fmt: skip


def records(plan: Plan, runs: Path, stage: str) -> dict[str, Record]:
    """A stage's records by the kind of step."""
    steps: list[StepSpec] = plan.stage_steps[stage, 0]
    return {step.kind: artifact.read_record(step.directory(runs)) for step in steps}


def line(what: str, value: float, beside: float, unit: str, goal: str) -> dict[str, Any]:
    """One ratio of a table."""
    return {
        "benchmark": what,
        "value": f"{value:.2f} {unit}",
        "beside": f"{beside:.2f} {unit}",
        "ratio": round(value / beside, 3),
        "goal": goal,
    }


def online(plan: Plan, runs: Path) -> dict[str, Any]:
    """The BASH stage (contexts, then training) beside mixing inside every training step."""
    bash = records(plan, runs, "bash")
    offline = bash["contexts"]["seconds"] + bash["train"]["seconds"]
    spec = next(s for s in plan.stage_steps["bash", 0] if s.kind == "train").directory(runs)
    arguments = [sys.executable, str(ROOT / "benchmarks" / "online.py"), str(spec / "step.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=sys.stderr, env=environment)
    spent = time.perf_counter() - start
    return line("BASH stage / online scheduled sampling", offline, spent, "s", "<= 0.4")


def free(
    what: str, model: Any, prompts: list[list[int]], renderer: Renderer, *, limit: int
) -> dict[str, Any]:
    """Tokens per second of free, sampled answers beside `generate` in data-set order."""
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(prompts)]
    how = {"max_new_tokens": limit, "stop_ids": renderer.stop_ids, "temperature": 1.0}
    size = 64
    start = now(model)
    answers = generate_answers(model, asked, batch_size=size, **how)
    ours = sum(map(len, answers)) / (now(model) - start)
    start, tokens = now(model), 0
    for first in range(0, len(asked), size):
        tokens += plainly(model, prompts[first : first + size], renderer, limit)
    plain = tokens / (now(model) - start)
    return line(f"free answers to {what} / plain generate", ours, plain, "tokens/s", ">= 1.5")


@torch.no_grad()
def plainly(model: Any, prompts: list[list[int]], renderer: Renderer, limit: int) -> int:
    """Answer a batch by `generate` with its own sampling; returns the tokens up to the stops."""
    ids, mask = pad_left(prompts, model.device)
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=True, top_k=0,
        eos_token_id=list(renderer.stop_ids), pad_token_id=renderer.stop_ids[0],
    )[:, ids.shape[1] :]  # fmt: skip
    ends = torch.isin(found, torch.tensor(list(renderer.stop_ids), device=model.device))
    return int((ends.cumsum(dim=1) - ends.long() == 0).sum())


def show(lines: list[dict[str, Any]]) -> None:
    """Print lines as JSON and as a Markdown table."""
    for one in lines:
        print(json.dumps(one))
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([str(one[name]) for name in head] for one in lines)]
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
