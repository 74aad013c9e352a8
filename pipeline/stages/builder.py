"""The builder with which stages and benchmarks add steps to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pipeline.data.tasks import task_key
from pipeline.errors import InputError
from pipeline.recipe.schema import (
    Recipe,
    RoundOptions,
    SamplingOptions,
    Source,
    StageOptions,
    TrainerOptions,
)
from pipeline.recipe.trl_rules import NEUTRAL
from pipeline.steps.identity import OutsideIdentity, data_identity, model_identity
from pipeline.steps.options import (
    AnswerOptions,
    DecodingRuntime,
    MixtureOptions,
    RenderedModelOptions,
    RenderingOptions,
    RuntimeOptions,
    Thresholds,
    TrainingRuntime,
    TrainOptions,
    WritingRuntime,
)
from pipeline.steps.spec import Model, Place, StepSpec


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan.

    Attributes:
        name: its name in the recipe.
        recipe: its recipe; for a sweep, that of the first of its points.
        values: the swept keys that affect the stage, and their values.
        siblings: stage name -> label of that stage at the same point of the sweep, if it has one.
    """

    name: str
    recipe: Recipe
    values: dict[str, Any]
    siblings: dict[str, str]

    @property
    def options(self) -> StageOptions:
        """The stage's keys in the recipe."""
        return self.recipe.stages[self.name]

    @property
    def start(self) -> str | None:
        """The label of the stage it starts from; None for the recipe's model."""
        return None if self.options.start is None else self.siblings[self.options.start]


class Builder:
    """Passed to a stage's `plan` function to add steps. One per stage and seed."""

    def __init__(self, planned: PlannedStage, label: str, seed: int, start: Model):
        self.planned = planned
        self.recipe = planned.recipe
        self.label = label
        self.stage: StageOptions = planned.options
        self.seed = seed
        self.start = start
        self.end = start  # the weights the stage ends with, once its own steps are planned
        self.others: dict[str, Builder] = {}  # label -> builder of that stage with the same seed
        self.steps: list[StepSpec] = []

    def sibling(self, stage: str) -> Builder:
        """The builder of another stage, at the same values of a sweep."""
        return self.others[self.planned.siblings[stage]]

    @property
    def train_rows(self) -> Source:
        """The recipe's training rows."""
        assert self.recipe.data.train is not None  # the recipe has been checked
        return self.recipe.data.train

    @property
    def writing(self) -> WritingRuntime:
        """Runtime options of steps in which the model generates rows; they do not change rows."""
        recipe = self.recipe
        return {
            "batch_tokens": recipe.generation.batch_tokens,
            "warn_at": cast(Thresholds, recipe.warn_at.model_dump()),
        }

    def rendering(
        self, task: str | None = None, *, max_prompt_length: int | None = None
    ) -> RenderingOptions:
        """Options of steps that turn rows of a task, by default the recipe's, into tokens."""
        task = task or self.recipe.task
        return {
            "task": task,
            "system": self.recipe.system,
            "max_prompt_length": max_prompt_length or self.recipe.prompt_limit(task),
            **self.recipe.rendering,
        }

    def step(
        self,
        kind: str,
        run: str,
        *,
        title: str,
        options: Mapping[str, Any] | None = None,
        model: Model | None = None,
        data: dict[str, Source] | None = None,
        steps: dict[str, StepSpec] | None = None,
        runtime_options: Mapping[str, Any] | None = None,
        main_process_only: bool = False,
        keys: dict[str, str] | None = None,
    ) -> StepSpec:
        """Add a step.

        Args:
            kind: the prefix of its directory.
            run: the name of its function (pipeline/steps/functions.py), which is not imported,
                since most functions need torch.
            title: shown to users after the stage's name.
            options: whatever determines the result (pipeline/steps/options.py); with `rendering`
                where it turns rows into tokens.
            model: the weights it loads.
            data: role -> source of the rows it reads.
            steps: name -> earlier step whose output it reads.
            runtime_options: settings that do not change the result.
            main_process_only: whether only the main process works.
            keys: role -> the recipe key of its source, for errors; by default under data.
        """
        inputs: dict[str, Any] = dict(steps or {})
        locations: dict[str, Any] = {}
        merged, runtime = dict(options or {}), dict(runtime_options or {})
        given_to_trainers = {**self.recipe.trainer, **self.stage.trainer}
        if (timeout := given_to_trainers.get("ddp_timeout")) is not None:
            # In every step: the first step that runs creates the process group.
            runtime["trainer"] = {"ddp_timeout": timeout, **runtime.get("trainer", {})}
        if model is not None:
            inputs["base"] = model.base or model_identity(self.recipe.model, self.recipe.revision)
            if model.base is None:
                locations["base"] = self.recipe.model
            if self.recipe.trust_remote_code:  # the repository's class may compute something else
                merged["trust_remote_code"] = True
            if self.recipe.quantize:
                merged["quantize"] = self.recipe.quantize
            if model.base is None and self.recipe.pickled_weights:
                runtime["pickled_weights"] = True
            if model.adapter is not None:
                inputs["adapter"] = model.adapter
        for name in ("task", "test_task"):
            if merged.get(name) == (file := self.recipe.task) and task_key(file) != file:
                merged[name] = task_key(file)
                runtime["task_file"] = file
        for role, source in (data or {}).items():
            key = (keys or {}).get(role, f"data.{role}")
            inputs[role], locations[role] = _identified(source, role, key)
        added = StepSpec(
            kind=kind,
            run=run,
            stage=self.label,
            seed=self.seed,
            title=title,
            options=merged,
            inputs=inputs,
            locations=locations,
            runtime_options=cast(RuntimeOptions, runtime),
            main_process_only=main_process_only,
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
        steps: dict[str, StepSpec] | None = None,
        trainer: TrainerOptions | None = None,
        more: MixtureOptions | None = None,
    ) -> Model:
        """Add a training step and return the weights it makes.

        `trainer` overrides the stage's trainer options, for options of a round; `more` is added to
        the step's options. With `merge_adapter: true` in the stage, a separate step merges the
        adapter first.
        """
        recipe, stage = self.recipe, self.stage
        lora = recipe.lora_for(stage)
        if model is self.start and model.adapter is not None and stage.merge_adapter:
            model = self.merge(model)
        trainer = {**recipe.trainer_for(stage), **(trainer or {})}
        result = {key: value for key, value in trainer.items() if key not in NEUTRAL}
        options: TrainOptions = {
            **self.rendering(),
            "trainer": result,
            "lora": lora,
            "dtype": recipe.base_dtype_for(stage),
            "batch_size": recipe.batch_size_for(stage),
            **(more or {}),
        }
        runtime = TrainingRuntime(
            trainer={key: trainer[key] for key in trainer.keys() - result.keys()},
            micro_batch_size=recipe.micro_batch_size,
        )
        if (held_out := recipe.held_out_for(stage)) is not None:
            identity, place = _identified(held_out, "validation", "data.validation")
            runtime["held_out"] = {"identity": identity, "place": place}
        if trainer.get("neftune_noise_alpha"):  # its noise scales with the padded batch
            options["micro_batch_size"] = recipe.micro_batch_size
        trained = self.step(
            "train",
            run,
            title=title,
            model=model,
            data=data,
            steps=steps,
            options=options,
            runtime_options=runtime,
        )
        return Model(base=trained) if lora is None else Model(base=model.base, adapter=trained)

    def in_round(self, title: str, number: int) -> str:
        """A step's title, with the round if the stage has several."""
        several = isinstance(self.stage, RoundOptions) and self.stage.rounds > 1
        return f"{title}, round {number}" if several else title

    def merge(self, model: Model) -> Model:
        """Add a step that merges an adapter into its base."""
        merged = self.step(
            "merge",
            "pipeline.model:merge",
            title="merge adapter",
            model=model,
            options=RenderedModelOptions(**self.rendering()),
        )
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
    ) -> StepSpec[AnswerOptions]:
        """Add a step in which the model answers every prompt of a source, greedily by default.

        The source's rows belong to `task`, by default the recipe's; `shots` are solved examples
        shown before each prompt.
        """
        generation = self.recipe.generation
        options: AnswerOptions = {
            **self.rendering(task, max_prompt_length=max_prompt_length),
            "max_new_tokens": max_new_tokens or generation.max_new_tokens,
            **self.recipe.reading,
            "samples": samples,
            "round": round_number,
            "temperature": sampling.temperature if sampling else temperature,
            "top_k": sampling.top_k if sampling else 0,
            "top_p": sampling.top_p if sampling else 1.0,
        }
        if (
            generation.engine == "vllm"
        ):  # its samples differ; the other engines differ in speed only
            options["engine"] = "vllm"
        if shots is not None:
            assert shots.limit is not None  # as many as the benchmark's few_shot
            options["few_shot"], options["max_prompt_length"] = shots.limit, None
        return self.step(
            "answers",
            "pipeline.answers:write_answers",
            title=title,
            model=model,
            data={role: source, **({} if shots is None else {"shots": shots})},
            options=options,
            runtime_options=DecodingRuntime(**self.writing, engine=generation.engine),
            keys=keys,
        )

    def own_answers(self, model: Model, source: Source, number: int) -> StepSpec[AnswerOptions]:
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


def _identified(source: Source, role: str, key: str) -> tuple[OutsideIdentity, Place]:
    """What decides the rows of a source, and where a step finds them; `key` is for errors."""
    try:
        identity = data_identity(source, role=role)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    return identity, _location(source, role, identity)


def _location(source: Source, role: str, identity: OutsideIdentity) -> Place:
    """Where a step finds a source, pinned to the commit in its identity."""
    place = cast(Place, {**source.model_dump(), "split": source.split_for(role)})
    if source.parts is not None:
        parts = zip(source.parts, identity["parts"], strict=True)
        place["parts"] = [_location(part, role, known) for part, known in parts]
    return {**place, "revision": identity.get("revision")}
