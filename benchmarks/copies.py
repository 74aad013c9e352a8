"""Does the harness report false differences? Copies of one model, and that model degraded.

    bashrac merge study-maths:sft OUT
    python benchmarks/copies.py OUT --recipe study-maths

The recipe's test rows are answered several times by the model, at temperature 1, and as often by
the model with noise added to its weights, all through `bashrac run`. A resampling deals the answers
to each row out anew, without replacement, to two arms of as many seeds as the recipe has, and
compares these as a report does. Between two arms of one model no difference should be significant.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.report.cells import difference_of, results_of  # noqa: E402 - from this checkout
from eval.report.types import NOT_SIGNIFICANT  # noqa: E402
from pipeline.plan.load import load_recipe  # noqa: E402
from pipeline.plan.plan import make_plan  # noqa: E402
from pipeline.steps import artifact  # noqa: E402
from pipeline.steps.identity import local_digest  # noqa: E402

RESAMPLINGS = 100
_VERDICTS = (NOT_SIGNIFICANT, "worse", "better")
# What of the recipe decides how its test rows are asked, beside their source.
_KEPT = ("task", "system", "chat_template", "max_prompt_length", "generation", "launch")


def main() -> None:
    """Print a row of a table for the model against itself and against each degraded copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a folder that holds a model and its tokenizer")
    parser.add_argument("--recipe", required=True, help="gives test rows, prompt, arms' seeds")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.05, 0.1])
    parser.add_argument("--limit", type=int, help="only the first test rows")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    seeds = len(load_recipe(given.recipe).seeds)
    healthy = answers_of(given, given.model, "copies", seeds)
    print(f"| compared with the model | right | mean difference | {' | '.join(_VERDICTS)} |")
    print("| --- | --- | --- | --- | --- | --- |")
    for noise in [0.0, *given.noise]:
        other, name = healthy, "itself"
        if noise:
            folder = given.runs / f"degraded-{noise:g}-{local_digest(Path(given.model))[:8]}"
            degrade(given.model, folder, noise)
            other, name = answers_of(given, str(folder), folder.name, seeds), f"noise {noise:g}"
        print(row_of(name, healthy, other, seeds), flush=True)
    n = len(healthy[0]["ids"])
    print(f"({RESAMPLINGS} resamplings, n = {n}, {seeds} seeds an arm, {given.model})")


def answers_of(given: Any, model: str, name: str, seeds: int) -> list[dict[str, Any]]:
    """Graded answers of a model to the recipe's test rows, twice as many times as an arm needs."""
    asked = load_recipe(given.recipe).model_dump(
        mode="json", exclude_unset=True, include={**dict.fromkeys(_KEPT, True), "data": {"test"}}
    )
    if given.limit is not None:
        asked["data"]["test"]["limit"] = given.limit
    asked |= {
        "name": f"protocol-{name}",
        "model": str(Path(model).resolve()),
        "seeds": list(range(2 * seeds)),
        "stages": {"model": {"method": "base"}},
        "evaluate": ["gsm8k"],
        "benchmarks": {"gsm8k": {"temperature": 1.0}},
    }
    file = given.runs / f"protocol-{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", str(file), "--runs", str(given.runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    plan = make_plan(load_recipe(str(file)))
    return cast(list[Any], list(results_of(plan, given.runs, "model", "gsm8k").values()))


def degrade(model: str, folder: Path, noise: float) -> None:
    """Write the model with Gaussian noise on every matrix: `noise` of its standard deviation."""
    import torch

    from pipeline.models.load import load_model, load_tokenizer

    if folder.exists():
        return
    loaded = load_model(model, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in loaded.parameters():
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator)
                weight += noise * weight.std() * drawn
    with artifact.atomic_folder(folder) as place:
        loaded.save_pretrained(place)
        load_tokenizer(model).save_pretrained(place)


def row_of(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], seeds: int) -> str:
    """What the report says of the other model, over all resamplings."""
    found = [
        difference_of(*dealt(ours, theirs, seeds, seed), "strict") for seed in range(RESAMPLINGS)
    ]
    verdicts = Counter(one.verdict for one in found if one is not None)
    mean = sum(one.value for one in found if one is not None) / len(found)
    right = 100 * float(np.mean([result["measures"]["strict"]["scores"] for result in theirs]))
    counts = " | ".join(str(verdicts[one]) for one in _VERDICTS)
    return f"| {name} | {right:.1f} % | {mean:+.1f} | {counts} |"


def dealt(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], seeds: int, seed: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Results of two arms, the other model's first: each row's answers dealt out at random."""
    rng = np.random.default_rng(seed)
    arms = []
    first = _order(rng, ours)
    second = first if theirs is ours else _order(rng, theirs)
    for results, order in ((theirs, second[seeds:]), (ours, first[:seeds])):
        scores_KN = np.array([one["measures"]["strict"]["scores"] for one in results])
        columns = np.take_along_axis(scores_KN, order, axis=0)
        arms.append({i: _with_scores(results[i], list(column)) for i, column in enumerate(columns)})
    return arms[0], arms[1]


def _order(rng: np.random.Generator, results: list[dict[str, Any]]) -> np.ndarray:
    """For each row its own order of the answers: int [K, N]."""
    shape = (len(results), len(results[0]["ids"]))
    return rng.permuted(np.broadcast_to(np.arange(shape[0])[:, None], shape), axis=0)


def _with_scores(result: dict[str, Any], scores: list[Any]) -> dict[str, Any]:
    primary = {**result["measures"]["strict"], "scores": [float(score) for score in scores]}
    return {**result, "measures": {"strict": primary}}


if __name__ == "__main__":
    main()
