"""Estimates every step of a plan: parameters, memory of a process, tokens and hours.

Of the model, only config and tokenizer are loaded.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.estimate import throughput
from pipeline.estimate.judging import engine_of, judge_rate
from pipeline.estimate.step import Estimate, MemoryEstimator
from pipeline.estimate.tokens import WRITING, Work, Workload
from pipeline.models.load import load_config
from pipeline.plan.plan import Plan
from pipeline.recipe.shipped import Launch
from pipeline.steps import artifact
from pipeline.steps.identity import model_identity
from pipeline.steps.record import Record
from pipeline.steps.spec import StepSpec


def estimate(
    plan: Plan, runs: Path, launch: Launch, *, tokens_per_second: float | None = None,
    limit: float = math.inf,
) -> list[Estimate]:  # fmt: skip
    """Estimate every step of a plan, each once for all seeds.

    Args:
        plan: of a recipe.
        runs: the folder of all results, whose finished steps say what was measured.
        launch: what it will run on.
        tokens_per_second: of all processes together, in place of measured rates.
        limit: bytes that a process may hold.

    Raises:
        InputError: when model or data cannot be read.
    """
    recipes = [stage.recipe for stage in plan.stages.values()]
    templates = {(one.chat_template, one.chat_template_name) for one in recipes}
    if len({(one.model, one.revision) for one in recipes}) > 1 or len(templates) > 1:
        raise InputError(
            "this recipe sweeps over the model, and an estimate is for one model: run the command "
            "once for each, with --set sweep=null --set model=NAME"
        )
    model, workload = plan.recipe.model, Workload(plan)
    rates = throughput.measured_rates(
        runs, model_identity(model, plan.recipe.revision), use_cpu=launch.use_cpu
    )
    terms = workload.terms
    estimator = MemoryEstimator(load_config(model, **terms), launch, terms["trust"])
    found: dict[tuple[str, str, bool], Estimate] = {}
    for step in plan.steps:
        directory = step.directory(runs)
        done = artifact.is_finished(directory)
        name = (step.stage, step.title, done)
        if name in found and step.seed != found[name].step.seed:
            found[name] = replace(found[name], times=found[name].times + 1)
        elif done:
            found[name] = _finished(step, artifact.read_record(directory))
        else:
            work = workload.of(step)
            measured = rates.get(throughput.key_of(step.identity), 0.0)
            rate = tokens_per_second or launch.processes * measured
            if engine_of(step) is not None:  # another model, in one process
                rate = judge_rate(runs, step, use_cpu=launch.use_cpu)
            tokens, _ = work.timed
            seconds = tokens / rate if rate and tokens else None
            found[name] = replace(estimator.of(step, work, limit), seconds=seconds)
    return list(found.values())


def _finished(step: StepSpec, record: Record) -> Estimate:
    """What a finished step measured."""
    counts = step.kind in ("train", *WRITING) or engine_of(step) == "local"
    count = throughput.tokens_of(record) if counts else 0
    if step.kind == "train":
        work = Work(trained=count)
    else:
        reads = step.kind == "gap-losses" or engine_of(step) == "local"
        work = Work(read=count) if reads else Work(written=count)
    return Estimate(
        step, work, done=True, measured=record["peak_memory_bytes"],
        seconds=record["seconds"],
    )  # fmt: skip
