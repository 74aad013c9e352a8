"""The recipe's schema. After `pipeline.plan.load.load_recipe` a recipe is frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from pipeline.recipe import trl_fields
from pipeline.recipe.registry import trainer_of

if TYPE_CHECKING:
    from pipeline.steps.options import TemplateOptions, TurnOptions

# TRL's own default, in SFT and DPO, written down so that nothing need import trl (a test compares).
DEFAULT_MAX_LENGTH = 1024
# The day that chat templates print which ask for it; where Llama's have no clock, they print this.
TEMPLATE_DATE = "2024-07-26"
# What a recipe's `trainer:` goes over; written out, since it decides results.
TRAINER_DEFAULTS = {
    "max_length": DEFAULT_MAX_LENGTH,
    "train_sampling_strategy": "group_by_length",  # as pipeline.train.trainer does it
}
# Of files that hold rows (pipeline/data/files.py reads them).
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
PRECISION = Literal["auto", "bfloat16", "float16", "float32"]  # see pipeline.hardware.precision
SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
TrainerOptions = dict[str, Any]  # by their names in TRL (pipeline/recipe/trl_fields.py)
LoraOptions = dict[str, Any]  # by their names in peft.LoraConfig
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}  # what TRL's options stand for


class Reading(TypedDict):
    """How steps that write rows or answers read the model's weights, as options of theirs."""

    dtype: str  # a precision, or auto
    merge_for_reading: NotRequired[bool]  # whether an adapter is merged in memory


class Strict(BaseModel):
    """Unknown keys are errors, values are not coerced, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _plain_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class Source(Strict):
    """Where rows come from: a hub id, a local file or folder, or `builtin:NAME`.

    `file` is one file inside a hub repository, for those that `datasets` cannot load as a whole.
    `skip_unusable` leaves out rows that cannot be read, with a warning, where otherwise one stops
    the run: for sets that others made. `skip` leaves out the first rows, so that one file can give
    two sets; `limit` counts rows from there, before unusable ones are left out. `parts` are sources
    to mix, each with its `share` of the rows: what a list in place of a source stands for.
    """

    source: str = Field(min_length=1)
    file: str | None = None
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    skip_unusable: bool = False
    share: float | None = Field(default=None, gt=0, le=1)
    parts: list[Annotated[Source, BeforeValidator(_plain_source)]] | None = None

    @property
    def stop(self) -> int | None:
        """How many rows of it are read, those left out at the start included; None for all."""
        return None if self.limit is None else self.skip + self.limit

    @property
    def describe_rows(self) -> str:
        """Which rows of it are meant, such as 'from row 3,001 to 3,400', or '' for all."""
        if not self.skip:
            return "" if self.limit is None else f"the first {self.limit:,}"
        return (
            f"from row {self.skip + 1:,} to {'the last' if self.stop is None else f'{self.stop:,}'}"
        )

    @property
    def builtin(self) -> str | None:
        """The built-in set's name, or None."""
        named = self.source.startswith("builtin:") and self.parts is None
        return self.source.split(":", 1)[1] if named else None

    def limited(self, limit: int | None) -> Source:
        """The source's first `limit` rows."""
        if limit is None or (self.limit is not None and self.limit <= limit):
            return self
        return self.model_copy(update={"limit": limit})

    def split_for(self, role: str) -> str:
        """The split to read in a role, where the recipe names none: its own, else train.

        Hub sets and folders seldom have a split called preferences.
        """
        own = {"test", "validation"} | ({"preferences"} if self.builtin is not None else set())
        return self.split or (role if role in own else "train")

    @property
    def path(self) -> Path | None:
        """The local file or folder, or None for hub ids and built-in sets."""
        if self.builtin is not None or self.parts is not None:
            return None
        path = Path(self.source).expanduser()
        looks_local = path.exists() or path.suffix in ROW_FILES
        looks_local = looks_local or self.source.startswith(("./", "../", "/", "~"))
        return path if looks_local else None


def written_out(key: str, value: Any) -> Any:
    """What plain text under a top-level key of a recipe stands for: a source, or a judge."""
    if key != "judge" and isinstance(value, list):
        parts = [_plain_source(part) for part in value]
        named = [part.get("source") for part in parts if isinstance(part, dict)]
        return {"source": " + ".join(map(str, named)) or "nothing", "parts": parts}
    if not isinstance(value, str) or value == "self":
        return value
    if key != "judge":
        return {"source": value}
    engine, _, model = value.partition(":")
    return {"engine": engine, **({"model": model} if model else {})}


AnySource = Annotated[Source, BeforeValidator(partial(written_out, "data"))]


class Data(Strict):
    """Training rows (needed where a stage trains), held-out rows, and preference pairs.

    Test rows are answered and graded after training; the loss on validation rows is measured while
    a stage trains, where `eval_strategy` asks for it.
    """

    train: AnySource | None = None
    validation: AnySource | None = None
    test: AnySource | None = None
    preferences: AnySource | Literal["self"] | None = None


class Generation(Strict):
    """How answers are written, for evaluation and for self-generated rows.

    `batch_tokens` is how many tokens are held at once, in each process; only memory and speed.
    `merge_for_reading` merges a LoRA adapter into the weights that a step reads with, in memory:
    each layer computes less, and weights are rounded to the precision once more.
    """

    max_new_tokens: int = Field(default=256, ge=1)
    batch_tokens: int = Field(default=32768, ge=1)
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    dtype: PRECISION = "auto"  # over precision
    merge_for_reading: bool = False


Share = Annotated[float, Field(ge=0, le=1)]


class WarnAt(Strict):
    """Where a step that goes on warns; null switches a warning off. No result depends on it.

    Attributes:
        labels_changed: RAC labels other than the model's own token. Labels far from the generated
            tokens are how RAC collapses (Cen et al. 2025); on 192 word problems a fifth differ.
        tokens_changed: tokens of BASH contexts other than the reference's. The paper keeps beta
            small, and its 0.2 changes no more than a fifth (on those 3 %, at beta 0.7 31 %).
        loss_ratio: loss on self-generated over loss on reference rows, of the model that wrote
            them. Contexts too far from the reference train slowly (the same paper); after the
            SFT on those it is 3 at beta 0.2, 5 at 0.4 and 15 at 0.7, and 2 on RAC's rows.
        answers_cut: own answers cut at the token limit, which hold no end of turn to learn from:
            past a half, most of them.
        answers_empty: own answers without text, which hold nothing but an end: past a half, most.
        generation_rate: tokens written per second, over the rate of the step's own best seconds;
            warns below. A half leaves room for rows of different lengths.
    """

    labels_changed: Share | None = 0.5
    tokens_changed: Share | None = 0.25
    loss_ratio: Annotated[float, Field(gt=0)] | None = 5.0
    answers_cut: Share | None = 0.5
    answers_empty: Share | None = 0.5
    generation_rate: Share | None = 0.5


class Price(Strict):
    """What a judge costs, in any one currency."""

    per_call: float = Field(default=0.0, ge=0)
    per_million_input_tokens: float = Field(default=0.0, ge=0)
    per_million_output_tokens: float = Field(default=0.0, ge=0)

    def of(self, calls: int, input_tokens: float, output_tokens: float) -> float:
        """The cost of calls and their tokens."""
        by_token = (
            input_tokens * self.per_million_input_tokens
            + output_tokens * self.per_million_output_tokens
        )
        return calls * self.per_call + by_token / 1e6


class Judge(Strict):
    """Who says which of two answers is better.

    Plain text names it too: `reference`, `local:MODEL` or `openai:MODEL`. Everything below `orders`
    decides speed, cost and patience, not verdicts.
    """

    engine: Literal["openai", "local", "reference"]
    model: str | None = Field(default=None, min_length=1)
    base_url: str = "https://api.openai.com/v1"
    served_model: str | None = Field(default=None, min_length=1)  # as replies call it
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: Literal["nf4"] | None = None  # a local judge in 4 bits
    reasoning: bool = False  # an endpoint's model that reasons first: its verdicts are texts
    reads: Literal["label", "text"] = "label"
    request: dict[str, Any] = {}
    orders: Literal["both", "one"] = "both"
    price: Price | None = None
    concurrency: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=60.0, gt=0)
    max_retries: int = Field(default=5, ge=0)
    max_errors: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _reasoning_reads_text(cls, given: Any) -> Any:
        """A judge that reasons is read by its text, unless the recipe says something else."""
        is_implied = isinstance(given, dict) and given.get("reasoning") is True
        return {"reads": "text", **given} if is_implied else given


class StageOptions(Strict):
    """Keys every stage has. A method's own options class adds to them."""

    method: str
    start: str | None = Field(default=None, alias="from")
    trainer: TrainerOptions = {}
    lora: LoraOptions | None = None
    merge_adapter: bool = False
    batch_size: int | None = Field(default=None, ge=1)


class SamplingOptions(StageOptions):
    """Keys of stages that sample from the model."""

    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class RoundOptions(SamplingOptions):
    """Keys of stages whose model writes rows and trains on them, again and again."""

    rounds: int = Field(default=1, ge=1)


# A summary's prompt is cut to this many tokens where the recipe says nothing, as in the
# summarize-from-feedback work.
_PROMPT_LIMITS = {"tldr": 512}


# What a chat template is told by what renders with it, and no recipe.
_TOLD_TEMPLATES = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "conversations", "documents", "messages", "padding", "processor_kwargs", "return_dict",
    "return_assistant_tokens_mask", "return_tensors", "strftime_now", "tokenize",
    "tokenizer_kwargs", "tools", "truncation", "max_length",
}  # fmt: skip


def _not_ours(options: dict[str, Any]) -> dict[str, Any]:
    if ours := sorted(_TOLD_TEMPLATES & options.keys()):
        raise ValueError(f"{ours[0]} is set by bashrac: take it out")
    return options


def _day(value: Any) -> str:
    """A date as YAML reads it, or as text, in one spelling."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError(f"{str(value)[:40]!r} is no date: write YYYY-MM-DD") from None


class Recipe(Strict):
    """One recipe is one table: stages in order, each followed by its evaluation.

    With `sweep` it is several: it holds `points`, and is itself the first of them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    # A built-in one, or a Python file with one (pipeline/data/task_file.py).
    task: Literal["gsm8k", "tldr", "chat"] | Annotated[str, Field(pattern=r"\.py$")]
    model: str = Field(min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False  # whether Python code among the model's files may run
    pickled_weights: bool = False  # whether its weights may be pickled, which can hold code too
    precision: PRECISION = "auto"
    dtype: PRECISION = "auto"  # of a base under an adapter; over precision
    quantize: Literal["nf4"] | None = None  # a base frozen under an adapter, in 4 bits
    system: str | None = None
    chat_template: str | None = Field(default=None, min_length=1)  # for a model that has none
    chat_template_name: str | None = Field(default=None, min_length=1)  # of a model with several
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_not_ours)] = {}
    template_date: Annotated[str, BeforeValidator(_day)] = TEMPLATE_DATE  # printed by templates
    max_prompt_length: int | None = Field(default=None, ge=1)
    train_on: Literal["last", "all"] = "last"  # answers of a dialogue, for sft and bash
    data: Data = Data()
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    launch: str = "single_gpu"
    batch_size: int = Field(default=32, ge=1)
    micro_batch_size: int = Field(default=8, ge=1)
    lora: LoraOptions | None = None
    trainer: TrainerOptions = {}
    generation: Generation = Generation()
    keep: Literal["all", "final"] = "all"  # which weights stay on the disk
    warn_at: WarnAt = WarnAt()
    stages: dict[str, Any] = Field(min_length=1)
    evaluate: list[str] = []
    benchmarks: dict[str, Any] = {}
    judge: Annotated[Judge, BeforeValidator(partial(written_out, "judge"))] | None = None
    baseline: str | None = None  # the stage that a report compares the others with
    published: dict[str, dict[str, float | str]] = {}
    sweep: dict[str, list[Any]] = {}
    _points: tuple[SweepPoint, ...] = PrivateAttr(default=())

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """Every combination of the values in `sweep`; none where there is no sweep."""
        return self._points

    def swept(self, sweep: dict[str, list[Any]], points: Sequence[SweepPoint]) -> Recipe:
        """The recipe as the first point of a sweep."""
        recipe = self.model_copy(update={"sweep": sweep})
        recipe._points = tuple(points)
        return recipe

    @property
    def rendering(self) -> TemplateOptions:
        """What it tells the chat template, by key; nothing where it says what holds anyway."""
        told = {
            "chat_template": self.chat_template,
            "chat_template_name": self.chat_template_name,
            "chat_template_kwargs": self.chat_template_kwargs or None,
            "template_date": None if self.template_date == TEMPLATE_DATE else self.template_date,
        }
        return cast(
            "TemplateOptions", {key: value for key, value in told.items() if value is not None}
        )

    @property
    def trained_turns(self) -> TurnOptions:
        """The option of steps that may train on every answer; nothing where they take the last."""
        return {} if self.train_on == "last" else {"train_on": self.train_on}

    def prompt_limit(self, task: str) -> int | None:
        """The longest prompt in tokens: `max_prompt_length` is that of the recipe's own task."""
        given = "max_prompt_length" in self.model_fields_set and task == self.task
        return self.max_prompt_length if given else _PROMPT_LIMITS.get(task)

    def trainer_for(self, stage: StageOptions) -> TrainerOptions:
        """The recipe's trainer options that the stage's trainer knows, under the stage's own.

        `max_length`, the longest row in tokens, and `train_sampling_strategy`, the order of rows,
        are always among them, and `bf16` or `fp16` where the recipe names a precision.
        """
        trainer = trainer_of(stage.method)
        assert trainer is not None  # only stages that train ask
        known = trl_fields.fields_of(trainer)
        shared = {key: value for key, value in self.trainer.items() if key in known}
        given = {**TRAINER_DEFAULTS, **shared, **stage.trainer}
        if self.precision == "auto" or named_autocast(given):
            return given
        half = {key: True for key, name in AUTOCAST.items() if name == self.precision}
        return {**given, **(half or {"bf16": False})}

    @staticmethod
    def trains_on_references(stage: StageOptions) -> bool:
        """Whether a stage trains on rows of the recipe's task, not on pairs or not at all."""
        return trainer_of(stage.method) == "trl.SFTConfig"

    def held_out_for(self, stage: StageOptions) -> Source | None:
        """The rows whose loss is measured while a stage trains; None where nobody asks."""
        asked = {**self.trainer, **stage.trainer}.get("eval_strategy", "no") != "no"
        return self.data.validation if asked and self.trains_on_references(stage) else None

    def base_dtype_for(self, stage: StageOptions) -> str:
        """In what a stage's training keeps weights that are not trained: a name, or 'auto'."""
        if self.dtype != "auto" or self.lora_for(stage) is None:
            return self.dtype
        return self.precision

    @property
    def reading(self) -> Reading:
        """Options of steps whose model writes rows or answers: how its weights are read.

        `dtype` is the name of a precision, or 'auto'.
        """
        chosen = self.generation.dtype
        reading: Reading = {"dtype": self.precision if chosen == "auto" else chosen}
        if self.generation.merge_for_reading:
            reading["merge_for_reading"] = True
        return reading

    def batch_size_for(self, stage: StageOptions) -> int:
        """The global batch of a stage: its own when given, else the recipe's."""
        return stage.batch_size or self.batch_size

    def lora_for(self, stage: StageOptions) -> LoraOptions | None:
        """LoRA options of a stage: its own when given (null: all weights), else the recipe's."""
        return stage.lora if "lora" in stage.model_fields_set else self.lora


class SweepPoint(NamedTuple):
    """One combination of swept values, by key, and the recipe it makes."""

    values: dict[str, Any]
    recipe: Recipe


def named_autocast(trainer: Mapping[str, Any]) -> str | None:
    """What `bf16` and `fp16` of a trainer's options say to compute in; None where they say nothing.

    `fp16: false` alone says nothing: it is what stands there anyway.
    """
    for key, name in AUTOCAST.items():
        if trainer.get(key):
            return name
    return "float32" if trainer.get("bf16") is False else None
