"""Test examples with every stage's answer, drawn at random so that they are not hand-picked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.results import GRADES
from pipeline.data.tasks import with_system
from pipeline.lazy import Mapped
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.steps.spec import StepSpec


@dataclass(frozen=True)
class StageAnswer:
    """What one stage answered.

    Attributes:
        verdict: the grader's or judge's, in words.
        cut_off: whether the answer ended at the token limit.
    """

    answer: str
    verdict: str
    cut_off: bool


@dataclass(frozen=True)
class SampleView:
    """One test example.

    Attributes:
        id: its position among the test rows, from 0.
        seed: the training seed whose answers these are.
        messages: the prompt, beginning with the system message and solved examples if all stages
            had the same.
        answers: by stage, in the recipe's order.
    """

    id: int
    seed: int
    messages: list[dict[str, str]]
    reference: str
    answers: dict[str, StageAnswer]


def collect_samples(
    plan: Plan, runs: Path, *, count: int = 20, seed: int = 0
) -> dict[str, list[SampleView]]:
    """Draw test examples at random from those that every finished stage was asked and answered.

    Args:
        plan: of a recipe; the answers are those of the first seed that any stage has finished.
        runs: the runs folder.
        count: most examples a benchmark; all where there are fewer.
        seed: seed of the draw. The same plan and seed give the same examples.

    Returns:
        By benchmark the examples in row order; a benchmark no stage has finished is left out.
    """
    drawn = {}
    for benchmark in plan.recipe.evaluate:
        finished = ((one, _finished(plan, runs, benchmark, one)) for one in plan.recipe.seeds)
        trained, steps = next(((one, steps) for one, steps in finished if steps), (0, {}))
        if steps:
            drawn[benchmark] = _draw(steps, runs, count, seed, trained)
    return drawn


def _finished(plan: Plan, runs: Path, benchmark: str, seed: int) -> dict[str, StepSpec]:
    """The grading steps of a training seed whose answers are there too, by stage."""
    steps = {stage: plan.results.get((stage, benchmark, seed)) for stage in plan.stages}
    return {
        stage: step
        for stage, step in steps.items()
        if step is not None
        and artifact.is_finished(step.directory(runs))
        and artifact.is_finished(step.inputs["answers"].directory(runs))
    }


def _draw(
    steps: dict[str, StepSpec], runs: Path, count: int, seed: int, trained: int
) -> list[SampleView]:
    samples, grades = {}, {}
    for stage, step in steps.items():
        answers = step.inputs["answers"].directory(runs)
        samples[stage] = _ById(artifact.StoredRows(answers / artifact.SAMPLES))
        grades[stage] = _ById(artifact.StoredRows(step.directory(runs) / GRADES))
    tables = [*samples.values(), *grades.values()]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    # In a sweep over data or prompts, rows of the same number may differ.
    asked = Mapped(lambda row: [samples[stage][row] for stage in steps], shared)
    common = [
        row
        for row, answers in zip(shared, asked, strict=True)
        if _same(answers, "messages") and _same(answers, "reference")
    ]
    chosen = sorted(random.Random(seed).sample(common, min(count, len(common))))
    first = next(iter(steps))
    systems = {step.inputs["answers"].options["system"] for step in steps.values()}
    system = systems.pop() if len(systems) == 1 else None
    return [
        SampleView(
            id=row,
            seed=trained,
            messages=_asked(asked[row], system),
            reference=samples[first][row]["reference"],
            answers={
                stage: StageAnswer(
                    answer=samples[stage][row]["answer"],
                    verdict=str(grades[stage][row]["verdict"]),
                    cut_off=not samples[stage][row]["finished"],
                )
                for stage in steps
            },
        )
        for row in chosen
    ]


class _ById(Mapping[int, dict[str, Any]]):
    """Stored rows by example id; the first of several samples of an example."""

    def __init__(self, rows: artifact.StoredRows):
        self.rows = rows
        self.places: dict[int, int] = {}
        for place, row in enumerate(rows):
            self.places.setdefault(row["id"], place)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __getitem__(self, example: int) -> dict[str, Any]:
        return self.rows[self.places[example]]


def _same(samples: list[dict[str, Any]], key: str) -> bool:
    return all(sample.get(key) == samples[0].get(key) for sample in samples)


def _asked(samples: list[dict[str, Any]], system: str | None) -> list[dict[str, str]]:
    """The messages as the model gets them (`pipeline.data.render`), as far as stages share them."""
    messages = samples[0]["messages"]
    if not _same(samples, "few_shot"):
        return messages
    if shots := samples[0].get("few_shot"):  # lm-eval's plain format, which leaves `system` aside
        return [{"role": "solved examples", "content": shots}, *messages]
    return with_system(messages, system)
