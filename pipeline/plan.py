"""From a recipe to steps: what runs, on what, under which fingerprint.

A step's identity is everything that decides its result: kind, options, seed, and the identities of
its inputs. Hardware, process counts, paths and library versions are not in it (they are recorded).
Two stages, or two recipes, that need the same step share its directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eval import benchmarks
from pipeline import artifact
from pipeline.errors import InputError, suggest
from pipeline.identity import data_identity, model_identity
from pipeline.option_names import NEUTRAL
from pipeline.planned import PlannedStage, planned_stages
from pipeline.recipe import (
    Recipe,
    RoundOptions,
    SamplingOptions,
    Source,
    StageOptions,
    method_module,
)

# Raised when the meaning of steps changes, so that results made before it are not taken for new.
FORMAT = 2


def step_folder(kind: str, fingerprint: str) -> str:
    """The name of the directory that holds a step's results."""
    return f"{kind}-{fingerprint[:16]}"


@dataclass(frozen=True)
class Step:
    """One directory of results to make.

    Attributes:
        kind: what it makes: answers, contexts, corrections, pairs, train, merge, overlap, or a
            benchmark's grades.
        run: 'module:function' that makes it, given a `pipeline.step.StepRun`.
        options: everything but the inputs that decides the result.
        inputs: name -> another step, or the identity of data or a model from outside.
        places: input name -> where it lies (a data source, a model name); not part of identity.
        title: words for people.
        alone: whether one process does the work and the others of a launch wait for it.
    """

    kind: str
    run: str
    stage: str
    seed: int
    title: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    places: dict[str, Any]
    neutral: dict[str, Any] = field(default_factory=dict)
    alone: bool = False

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is taken of."""
        inputs = {
            name: value.fingerprint if isinstance(value, Step) else value
            for name, value in self.inputs.items()
        }
        return {
            "format": FORMAT,
            "kind": self.kind,
            "run": self.run,
            "options": self.options,
            "seed": self.seed,
            "inputs": inputs,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the identity, 64 hex digits."""
        return artifact.fingerprint(self.identity)

    def directory(self, runs: Path) -> Path:
        """The directory of this step's results."""
        return runs / "steps" / step_folder(self.kind, self.fingerprint)


@dataclass(frozen=True)
class Model:
    """Weights a step starts from: a base (outside model, or a step) and perhaps a LoRA adapter."""

    base: Step | None
    adapter: Step | None = None


@dataclass
class Plan:
    """Every step of a recipe in the order they can run, each once."""

    recipe: Recipe
    # label -> stage; where there is no sweep, a stage's label is its name
    stages: dict[str, PlannedStage]
    steps: list[Step]
    # (label, benchmark, seed) -> the step that holds the result
    results: dict[tuple[str, str, int], Step]
    # benchmark -> the step that looks for its test rows among the training rows; of a sweep over
    # data several
    overlaps: dict[str, list[Step]]
    # (label, seed) -> the stage's own steps, for cost
    stage_steps: dict[tuple[str, int], list[Step]]
    # (label, seed) -> those and the steps of its evaluation
    all_steps: dict[tuple[str, int], list[Step]]
    # (label, seed) -> the weights the stage ends with
    models: dict[tuple[str, int], Model]

    @property
    def fingerprint(self) -> str:
        """One digest over all results that the recipe asks for, 64 hex digits.

        It says what was run on what, as a step's does, and does not depend on names of stages.
        """
        steps = self.results.values() or self.steps  # of a recipe without benchmarks all
        return artifact.fingerprint(sorted({step.fingerprint for step in steps}))

    def labels(self, stage: str) -> list[str]:
        """The labels that a name stands for: itself, or those of the recipe's stage.

        Raises:
            InputError: for an unknown name.
        """
        found = [label for label, one in self.stages.items() if stage in (label, one.name)]
        if not found:
            hint = suggest(stage, list(self.stages))
            raise InputError(f"no stage {stage!r}{hint}; stages: {', '.join(self.stages)}")
        return found


class Builder:
    """What a stage's `plan` function uses to add steps. One per stage and seed."""

    def __init__(self, planned: PlannedStage, label: str, seed: int, start: Model):
        self.planned = planned
        self.recipe = planned.recipe
        self.label = label
        self.stage: StageOptions = planned.options
        self.seed = seed
        self.start = start
        self.end = start  # the weights the stage ends with, once its own steps are planned
        self.others: dict[str, Builder] = {}  # label -> those of the seed
        self.steps: list[Step] = []

    def beside(self, stage: str) -> Builder:
        """The builder of another stage of the recipe, at this one's values of a sweep."""
        return self.others[self.planned.beside[stage]]

    @property
    def train_rows(self) -> Source:
        """The recipe's training rows."""
        assert self.recipe.data.train is not None  # the recipe's check has seen to it
        return self.recipe.data.train

    @property
    def writing(self) -> dict[str, Any]:
        """Settings of steps in which the model writes rows; none of them changes a row."""
        recipe = self.recipe
        return {
            "batch_tokens": recipe.generation.batch_tokens,
            "warn_at": recipe.warn_at.model_dump(),
        }

    def step(
        self,
        kind: str,
        run: str,
        *,
        title: str,
        options: dict[str, Any] | None = None,
        model: Model | None = None,
        data: dict[str, Source] | None = None,
        steps: dict[str, Step] | None = None,
        neutral: dict[str, Any] | None = None,
        alone: bool = False,
        renders: bool = True,
        keys: dict[str, str] | None = None,
    ) -> Step:
        """Add a step.

        Args:
            kind: the directory's prefix.
            run: 'module:function' that makes it; named, not imported: most need torch.
            title: words for people, after the stage's name.
            options: what decides the result; what decides how text becomes tokens is added to it.
            model: weights it reads.
            data: role -> source of rows it reads.
            steps: name -> earlier step it reads.
            neutral: settings that do not change the result.
            alone: whether one process does the work.
            renders: whether the step turns rows into tokens.
            keys: role -> where the recipe says its source, for errors; by default under data.
        """
        inputs: dict[str, Any] = dict(steps or {})
        places: dict[str, Any] = {}
        merged = dict(options or {})
        if renders and (model is not None or data):
            task = merged.setdefault("task", self.recipe.task)
            merged.setdefault("system", self.recipe.system)
            merged.setdefault("max_prompt_length", self.recipe.prompt_limit(task))
            if self.recipe.chat_template is not None:
                merged["chat_template"] = self.recipe.chat_template
        if model is not None:
            inputs["base"] = model.base or model_identity(self.recipe.model, self.recipe.revision)
            if model.base is None:
                places["base"] = self.recipe.model
            if self.recipe.trust_remote_code:  # another class may compute something else
                merged["trust_remote_code"] = True
            if self.recipe.quantize:
                merged["quantize"] = self.recipe.quantize
            if model.base is None and self.recipe.pickled_weights:
                neutral = {**(neutral or {}), "pickled_weights": True}
            if model.adapter is not None:
                inputs["adapter"] = model.adapter
        for role, source in (data or {}).items():
            try:
                identity = data_identity(source, role=role)
            except InputError as error:
                raise InputError(f"{(keys or {}).get(role, f'data.{role}')}: {error}") from None
            inputs[role] = identity
            revision = identity.get("revision")  # the commit, so that just this is loaded
            split = source.split_for(role)
            places[role] = {**source.model_dump(), "split": split, "revision": revision}
        added = Step(
            kind=kind,
            run=run,
            stage=self.label,
            seed=self.seed,
            title=title,
            options=merged,
            inputs=inputs,
            places=places,
            neutral=neutral or {},
            alone=alone,
        )
        self.steps.append(added)
        return added

    def train(
        self,
        run: str,
        *,
        title: str,
        model: Model,
        data: dict[str, Source] | None = None,
        steps: dict[str, Step] | None = None,
        trainer: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
    ) -> Model:
        """Add a training step and return the weights it makes.

        `trainer` goes over the stage's own trainer options, for a round of its own; `more` is added
        to the step's options. An adapter is merged first, as a step of its own, only where the
        stage says `merge_adapter: true`.
        """
        recipe, stage = self.recipe, self.stage
        lora = recipe.lora_for(stage)
        if model is self.start and model.adapter is not None and stage.merge_adapter:
            model = self.merge(model)
        trainer = {**recipe.trainer_for(stage), **(trainer or {})}
        result = {key: value for key, value in trainer.items() if key not in NEUTRAL}
        neutral = {"trainer": {key: trainer[key] for key in trainer.keys() - result.keys()}}
        micro = {"micro_batch_size": recipe.micro_batch_size}
        if trainer.get("neftune_noise_alpha"):  # its noise scales with the padded batch
            more = {**(more or {}), **micro}
        trained = self.step(
            "train",
            run,
            title=title,
            model=model,
            data=data,
            steps=steps,
            options={
                "trainer": result,
                "lora": lora,
                "dtype": recipe.dtype,
                "batch_size": recipe.batch_size_for(stage),
                **(more or {}),
            },
            neutral={**neutral, **micro},
        )
        return Model(base=trained) if lora is None else Model(base=model.base, adapter=trained)

    def in_round(self, title: str, number: int) -> str:
        """A step's title, with its round where the stage has several."""
        several = isinstance(self.stage, RoundOptions) and self.stage.rounds > 1
        return f"{title}, round {number}" if several else title

    def merge(self, model: Model) -> Model:
        """Add a step that merges an adapter into its base."""
        merged = self.step("merge", "pipeline.model:merge", title="merge adapter", model=model)
        return Model(base=merged)

    def answers(
        self,
        model: Model,
        *,
        source: Source,
        role: str,
        title: str,
        samples: int = 1,
        sampling: SamplingOptions | None = None,
        round_number: int = 0,
        task: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        max_prompt_length: int | None = None,
        shots: Source | None = None,
        keys: dict[str, str] | None = None,
    ) -> Step:
        """Add a step in which the model answers every prompt of a source, greedily by default.

        The source's rows are of `task`, by default the recipe's; `shots` are solved examples that
        stand before each prompt.
        """
        generation = self.recipe.generation
        options: dict[str, Any] = {
            "task": task or self.recipe.task,
            "max_new_tokens": max_new_tokens or generation.max_new_tokens,
            "dtype": generation.dtype,
            "samples": samples,
            "round": round_number,
            "temperature": sampling.temperature if sampling else temperature,
            "top_k": sampling.top_k if sampling else 0,
            "top_p": sampling.top_p if sampling else 1.0,
        }
        if generation.engine == "vllm":  # it draws other samples; the others differ in speed only
            options["engine"] = "vllm"
        if max_prompt_length is not None:
            options["max_prompt_length"] = max_prompt_length
        if shots is not None:
            options |= {"few_shot": shots.limit, "max_prompt_length": None}
        return self.step(
            "answers",
            "pipeline.answers:write_answers",
            title=title,
            model=model,
            data={role: source, **({} if shots is None else {"shots": shots})},
            options=options,
            neutral={**self.writing, "engine": generation.engine},
            keys=keys,
        )

    def own_answers(self, model: Model, source: Source, number: int) -> Step:
        """Add a step in which the model answers training prompts, sampled as the stage says."""
        assert isinstance(self.stage, RoundOptions)
        return self.answers(
            model,
            source=source,
            role="train",
            title=self.in_round("own answers", number),
            sampling=self.stage,
            round_number=number,
        )


def make_plan(recipe: Recipe) -> Plan:
    """Expand a checked recipe into steps.

    Raises:
        InputError: when a model or data source cannot be identified (hub not reachable and so on),
            or values of a sweep come to the same steps.
    """
    stages = planned_stages(recipe, make_plan)
    plan = Plan(
        recipe, stages, steps=[], results={}, overlaps={}, stage_steps={}, all_steps={}, models={}
    )
    known: dict[str, Step] = {}
    before = _add_overlaps(plan)
    for seed in recipe.seeds:
        builders: dict[str, Builder] = {}
        for label, planned in stages.items():
            start = builders[planned.start].end if planned.start else Model(base=None)
            builder = builders[label] = Builder(planned, label, seed, start)
            builder.others = builders
            builder.end = method_module(planned.options.method).plan(planned.options, builder)
            plan.models[label, seed] = builder.end
            plan.stage_steps[label, seed] = list(builder.steps)
        for label, builder in builders.items():
            for benchmark in recipe.evaluate:
                result = benchmarks.add_steps(benchmark, builder, builder.end)
                plan.results[label, benchmark, seed] = result
            plan.all_steps[label, seed] = [*before, *builder.steps]
            before = []
            for step in plan.all_steps[label, seed]:
                _add(plan, step, known)
    return plan


def _add(plan: Plan, step: Step, known: dict[str, Step]) -> None:
    """Add a step after those it reads, which may be of a stage further down."""
    if step.fingerprint in known:
        return
    for value in step.inputs.values():
        if isinstance(value, Step):
            _add(plan, value, known)
    known[step.fingerprint] = step
    plan.steps.append(step)


def _add_overlaps(plan: Plan) -> list[Step]:
    """Add the steps that look for test rows among training rows; returns them."""
    label, first = next(iter(plan.stages.items()))
    for recipe in [point.recipe for point in plan.recipe.points] or [plan.recipe]:
        builder = Builder(replace(first, recipe=recipe), label, recipe.seeds[0], Model(base=None))
        for benchmark in recipe.evaluate if recipe.data.train is not None else ():
            step = benchmarks.add_overlap(benchmark, builder)
            found = plan.overlaps.setdefault(benchmark, [])
            if step.fingerprint not in {one.fingerprint for one in found}:
                found.append(step)
    return [step for steps in plan.overlaps.values() for step in steps]
