"""The options of each kind of step: what plans write, step.json keeps, and step functions read.

A NotRequired key is left out at its default, so that fingerprints from before it existed stay as
they were. `StepSpec` and `StepContext` take the type of their options as a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from pipeline.recipe.schema import LoraOptions, TrainerOptions


class ModelOptions(TypedDict):
    """Of a step that loads a model; `Builder.step` adds them."""

    trust_remote_code: NotRequired[bool]
    quantize: NotRequired[str]


class TemplateOptions(TypedDict, total=False):
    """What a recipe tells the chat template."""

    chat_template: str
    chat_template_name: str
    chat_template_kwargs: dict[str, Any]
    template_date: str


class RenderingOptions(TemplateOptions):
    """Of a step that turns rows into tokens: `Builder.rendering`."""

    task: str
    system: str | None
    max_prompt_length: int | None
    few_shot: NotRequired[int]  # answers only: solved examples before each prompt


class RenderedModelOptions(ModelOptions, RenderingOptions):
    """Of a step that loads a model and turns rows into tokens, such as `merge`."""


class RoundOptions(TypedDict):
    """Of a step that writes the rows of a round."""

    round: int


class ComputingOptions(ModelOptions):
    """Of a step that runs the model, such as `gap-losses`."""

    dtype: str  # of the weights, or auto
    merge_for_reading: NotRequired[bool]  # whether an adapter is merged in memory


class TurnOptions(TypedDict, total=False):
    """Which answers of a dialogue are trained on, where it is not the last alone."""

    train_on: str


class RowOptions(ComputingOptions, RenderingOptions, TurnOptions):
    """Of a step that runs the model on rows which it turns into tokens."""


class AnswerOptions(RowOptions, RoundOptions):
    """Of `answers`; a temperature of 0 is greedy."""

    samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    engine: NotRequired[Literal["vllm"]]  # the other engines differ in speed only


class MixingOptions(RowOptions):
    """Of a step that mixes reference tokens with the model's own."""

    context: Literal["mixed", "gold"]
    temperature: float
    top_k: int
    top_p: float
    excluded_ids: list[int] | None
    max_length: int | None


class ContextOptions(MixingOptions, RoundOptions):
    """Of `contexts`."""

    beta: float


class GapContextOptions(MixingOptions):
    """Of `gap-contexts`."""

    rates: list[float]
    noise_seed: int


class BeginningOptions(RowOptions):
    """Of `recovery-beginnings`."""

    cuts: list[float]
    replaced: list[int]
    where: Literal["spread", "end"]
    noise_seed: int


class ContinuationOptions(RowOptions):
    """Of `recovery-answers`."""

    max_new_tokens: int


class CorrectionOptions(RowOptions, RoundOptions):
    """Of `corrections`."""

    correction: Literal["token", "sequence"]
    label: Literal["argmax", "sample"]
    min_confidence: float
    shown_prompt: str
    end_cut_answers: bool
    max_length: int | None
    max_new_tokens: int


class KeptOptions(RenderedModelOptions):
    """Of `kept`: which own answers are trained on."""

    keep: Literal["right", "best", "all"]
    distinct: NotRequired[Literal["equations", "text"]]  # not of the best, which is one
    max_per_prompt: NotRequired[int]
    max_length: int | None


class PairOptions(TypedDict, total=False):
    """Of `pairs`: what ranks answers; nothing for GSM8K's grader, and where nothing is ranked."""

    told_by: Literal["ROUGE-L"]
    task: str


_Lambda = TypedDict("_Lambda", {"lambda": NotRequired[float]})


class MixtureOptions(TurnOptions, _Lambda):
    """Which rows a stage trains on: how many self-generated ones, as a share of the others."""

    references: NotRequired[bool]  # whether on reference rows, too


class TrainOptions(RowOptions, MixtureOptions):
    """Of `train`."""

    trainer: TrainerOptions
    lora: LoraOptions | None
    batch_size: int
    micro_batch_size: NotRequired[int]  # only where the result depends on it


class OverlapOptions(TypedDict):
    """Of `overlap`."""

    n: int
    task: str
    test_task: str


class GradeOptions(TypedDict):
    """Of a benchmark's grades: the version of its grader."""

    grader: int


class TaskGradeOptions(GradeOptions):
    """Of grades that the task's own grader gives."""

    task: str


class GapGradeOptions(GradeOptions, RenderedModelOptions):
    """Of the grades of `gap`, which reads with the model's tokenizer."""


class JudgedBy(TypedDict):
    """All that determines a judge's verdicts."""

    judge: Mapping[str, Any]  # `Engine.identity`
    reads: str
    template: Mapping[str, Any] | None  # the fields of a `Template`
    orders: str
    max_errors: int


class JudgedGradeOptions(GradeOptions, JudgedBy):
    """Of grades that a judge gives."""


class Thresholds(TypedDict):
    """Where a step warns: `pipeline.recipe.schema.WarnAt`."""

    labels_changed: float | None
    tokens_changed: float | None
    loss_ratio: float | None
    answers_cut: float | None
    answers_empty: float | None
    generation_rate: float | None


Threshold = Literal[
    "labels_changed", "tokens_changed", "loss_ratio", "answers_cut", "answers_empty"
]


class WritingRuntime(TypedDict):
    """Runtime options of a step that writes rows."""

    batch_tokens: int
    warn_at: Thresholds


class DecodingRuntime(WritingRuntime):
    """Runtime options of a step that has a choice of engines."""

    engine: str


class HeldOutRows(TypedDict):
    """The rows to measure loss on while training: what they are, and the `Place` they are at."""

    identity: dict[str, Any]
    place: Any


class TrainingRuntime(TypedDict):
    """Runtime options of a step that trains; `trainer` holds those that change no result."""

    trainer: TrainerOptions
    micro_batch_size: int
    held_out: NotRequired[HeldOutRows]


class JudgingRuntime(TypedDict):
    """Runtime options of a step that asks a judge."""

    judge: dict[str, Any]  # `pipeline.recipe.schema.Judge`


class RuntimeOptions(DecodingRuntime, TrainingRuntime, JudgingRuntime):
    """All runtime options, of which a step has those of its kind, and these where they apply."""

    pickled_weights: NotRequired[bool]
    task_file: NotRequired[str]
