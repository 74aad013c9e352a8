"""Problems of a recipe that need more than one key, the installed libraries or the disk to see.

Nothing here imports torch, trl or datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from eval.benchmarks import registry
from eval.benchmarks.registry import BENCHMARKS, benchmark_of
from pipeline.data.builtin.rows import SIZES, SPLITS, TASK_OF, builtin_rows
from pipeline.data.files import READERS, rows_of_file
from pipeline.data.task_file import load_task
from pipeline.data.tasks import BUILT_IN, RowError, example_of, preference_of, task_named
from pipeline.errors import InputError, Problem, suggest
from pipeline.models.quantize import quantize_problems
from pipeline.models.trust import pickled_problem
from pipeline.plan.held_out import held_out_problems
from pipeline.recipe import shipped, trl_fields
from pipeline.recipe.registry import method_module, trainer_of
from pipeline.recipe.schema import Data, Recipe, Source, StageOptions
from pipeline.steps.identity import adapter_base

# What lies under runs beside the recipes' folders: see pipeline.steps.spec, eval.judge.step, and
# pipeline.train.trainer.
SHARED_FOLDERS = ("steps", "judge", "trackers")
_MOST_ROUNDS = 10_000  # over all stages and seeds
_LARGEST_SEED = 2**32 - 1  # numpy's


def cross_check(recipe: Recipe, written: list[str]) -> list[Problem]:
    """Problems that need more than one key, or the file system, to see.

    `written` names the stages in the file, among them those that have problems of their own.
    """
    if unusable := [*_check_paths(recipe), *_check_size(recipe)]:
        return unusable  # nothing below could look at it
    task = _check_task(recipe)
    return [
        *_check_passed_through(recipe),
        *held_out_problems(recipe),
        *quantize_problems(recipe),
        *_check_reading(recipe),
        *_check_names(recipe, written),
        *(task or _check_with_task(recipe, written)),
        *_check_judge(recipe),
        *_check_seeds(recipe),
        *_check_model(recipe),
        *_check_launch(recipe),
    ]


def _check_reading(recipe: Recipe) -> list[Problem]:
    """Whether adapters can be merged where it is asked for."""
    generation = recipe.generation
    if not generation.merge_for_reading or generation.engine != "vllm":
        return []
    message = "vllm reads adapters in its own way; leave merge_for_reading or engine: vllm out"
    return [Problem("generation.merge_for_reading", message)]


def _check_task(recipe: Recipe) -> list[Problem]:
    """What is wrong with a task's file, which is run here."""
    if recipe.task in BUILT_IN:
        return []
    try:
        load_task(recipe.task)
    except InputError as error:
        return [Problem("task", str(error))]
    return []


def _check_with_task(recipe: Recipe, written: list[str]) -> list[Problem]:
    """Problems that only a task can tell."""
    return [
        *_check_starts(recipe, written),
        *_check_data(recipe),
        *_check_evaluation(recipe),
    ]


def _check_paths(recipe: Recipe) -> list[Problem]:
    """Texts that stand for a file, a folder or a hub id, and that no file can be called."""
    texts = {"model": recipe.model, "launch": recipe.launch}
    if recipe.judge is not None and recipe.judge.model is not None:
        texts["judge.model"] = recipe.judge.model
    texts |= {f"{key}.source": source.source for key, source, _, _ in _sources(recipe)}
    problems = []
    for key, text in texts.items():
        try:
            shipped.user_path(text)
        except InputError as error:
            problems.append(Problem(key, str(error)))
    return problems


def _check_size(recipe: Recipe) -> list[Problem]:
    """A recipe of so many rounds that it could not even be planned."""
    rounds = sum(getattr(stage, "rounds", 1) for stage in recipe.stages.values())
    if rounds * len(recipe.seeds) <= _MOST_ROUNDS:
        return []
    message = (
        f"ask for {rounds * len(recipe.seeds)} rounds over all stages and seeds; a recipe can have "
        f"{_MOST_ROUNDS}: lower rounds, or split it"
    )
    return [Problem("stages", message)]


def _sources(recipe: Recipe) -> Iterator[tuple[str, Source, str, str | None]]:
    """Every source of a recipe: its key, itself, its role, and what its rows are of.

    None stands for AlpacaEval's own files.
    """
    for role in Data.model_fields:
        if isinstance(source := getattr(recipe.data, role), Source):
            for number, part in enumerate(source.parts or ()):
                yield f"data.{role}.parts.{number}", part, role, recipe.task
            if source.parts is None:
                yield f"data.{role}", source, role, recipe.task
    for name, given in recipe.benchmarks.items():
        for role in given.model_fields_set:
            if isinstance(source := getattr(given, role), Source):
                has_rows = role in ("data", "shots")
                task = registry.task_of(recipe, name) if has_rows else None
                yield f"benchmarks.{name}.{role}", source, "test", task


def _check_passed_through(recipe: Recipe) -> list[Problem]:
    """Options of trl and peft; those of a stage stand below it."""
    problems = [*_check_shared_options(recipe)]
    blocks = [("lora", "peft.LoraConfig", recipe.lora)]
    for name, stage in recipe.stages.items():
        blocks.append((f"stages.{name}.lora", "peft.LoraConfig", stage.lora))
        if (trainer := trainer_of(stage.method)) is not None:
            blocks.append((f"stages.{name}.trainer", trainer, stage.trainer))
    for key, options_class, options in blocks:
        for name, value in (options or {}).items():
            if problem := trl_fields.problem_with(options_class, name, value):
                problems.append(Problem(f"{key}.{name}", problem))
    for name, stage in recipe.stages.items():
        problems += _check_biases(recipe, name, stage)
        problems += _check_half_precision(recipe, name, stage)
    return list(dict.fromkeys(problems))


def _check_shared_options(recipe: Recipe) -> Iterator[Problem]:
    """Those at the top: right if any stage's trainer has them, as DPO's beta."""
    trainers = {trainer_of(stage.method) for stage in recipe.stages.values()}
    classes = sorted(trainer for trainer in trainers if trainer is not None)
    for name, value in recipe.trainer.items():
        having = [kind for kind in classes if name in trl_fields.fields_of(kind)] or classes[:1]
        found = [trl_fields.problem_with(options_class, name, value) for options_class in having]
        wrong = list(filter(None, found))
        if wrong and len(wrong) < len(found):
            both = " and ".join(having)
            wrong[0] += f"; {both} differ in it: write it below stages.NAME.trainer"
        if wrong:
            yield Problem(f"trainer.{name}", wrong[0])


def _check_biases(recipe: Recipe, name: str, stage: StageOptions) -> Iterator[Problem]:
    bias = (recipe.lora_for(stage) or {}).get("bias", "none")
    if trainer_of(stage.method) == "trl.DPOConfig" and bias in ("all", "lora_only"):
        message = (
            f"{bias} trains biases of the base, which {stage.method}'s reference model shares, "
            "so that it would move too; write none for this stage (and merge_adapter: true "
            "where it starts from an adapter with biases), or for all stages"
        )
        yield Problem(f"stages.{name}.lora.bias", message)


def _check_half_precision(recipe: Recipe, name: str, stage: StageOptions) -> Iterator[Problem]:
    trainer = {} if trainer_of(stage.method) is None else recipe.trainer_for(stage)
    if trainer and recipe.dtype == "float16" and recipe.lora_for(stage) is None:
        message = "would keep trained weights in float16 too; write precision: float16 instead"
        yield Problem("dtype", message)
    given = {**recipe.trainer, **stage.trainer}
    if recipe.precision == "float16" and given.get("fp16") is False:
        yield Problem("trainer.fp16", "is false beside precision: float16; keep one of them")
    if trainer.get("bf16") is True and trainer.get("fp16") is True:
        own = f"stages.{name}." if {"fp16", "bf16"} & stage.trainer.keys() else ""
        yield Problem(f"{own}trainer.fp16", "is true beside bf16: true; keep one of them")


def _check_starts(recipe: Recipe, written: list[str]) -> Iterator[Problem]:
    """What stages start from, and what their methods say of the rest."""
    for name, stage in recipe.stages.items():
        above = written[: written.index(name)]
        if stage.start is not None and stage.start not in above:
            if stage.start in written and stage.start != name:
                way_out = f"; {stage.start} comes later: move it above {name}"
            elif above:
                way_out = f"{suggest(stage.start, above)}; stages: {', '.join(above)}"
            else:
                way_out = "; it is the first stage"
            message = f'no stage "{stage.start}" above it{way_out}'
            yield Problem(f"stages.{name}.from", message)
        elif stage.start in recipe.stages and not stage.merge_adapter:
            parent, ours = recipe.lora_for(recipe.stages[stage.start]), recipe.lora_for(stage)
            if parent is not None and ours != parent:
                yield Problem(
                    f"stages.{name}.lora",
                    f"trains {'all weights' if ours is None else 'another adapter'} but starts "
                    f"from {stage.start}, a LoRA adapter: repeat its lora options, or write "
                    "merge_adapter: true to merge it first",
                )
        yield from method_module(stage.method).check(name, stage, recipe)


def _check_data(recipe: Recipe) -> list[Problem]:
    problems = list(_check_parts(recipe))
    for key, source, role, task in _sources(recipe):
        problems += _check_source(key, source, role, task)
    trains = any(trainer_of(stage.method) for stage in recipe.stages.values())
    if recipe.train_on == "all" and recipe.task in ("gsm8k", "tldr"):
        message = f"is for dialogues, and a row of {recipe.task} has one answer; take it out"
        problems.append(Problem("train_on", message))
    if trains and recipe.data.train is None:
        problems.append(Problem("data.train", "is missing; stages train on its rows"))
    if trains and adapter_base(Path(recipe.model).expanduser()) is not None:
        message = "is a LoRA adapter: it can be evaluated, but not trained on; merge it first"
        problems.append(Problem("model", message))
    return problems


def _check_parts(recipe: Recipe) -> Iterator[Problem]:
    """Several sources are for training rows, in shares that add up to all of them."""
    given = {f"data.{role}": getattr(recipe.data, role) for role in Data.model_fields}
    given |= {
        f"benchmarks.{name}.{role}": getattr(options, role)
        for name, options in recipe.benchmarks.items()
        for role in options.model_fields_set
    }
    for key, source in given.items():
        if not isinstance(source, Source):
            continue
        parts = source.parts
        if source.share is not None:
            yield Problem(f"{key}.share", "is for one of several sources; take it out")
        if parts is None:
            continue
        shares = [part.share for part in parts if part.share is not None]
        if key != "data.train":
            yield Problem(key, "takes one source; only data.train mixes several")
        elif len(parts) < 2 or any(part.parts is not None for part in parts):
            yield Problem(key, "must list two sources or more, each a source by itself")
        elif shares and len(shares) < len(parts):
            yield Problem(key, "gives a share to some sources only; give one to each, or to none")
        elif shares and abs(sum(shares) - 1) > 1e-9:
            yield Problem(key, f"has shares that add up to {sum(shares):g}; they must add up to 1")
        if source.skip or source.skip_unusable:
            yield Problem(
                key, "takes skip and skip_unusable in each of its sources, not beside them"
            )


def _check_source(key: str, source: Source, role: str, task: str | None) -> list[Problem]:
    """What is wrong with a source of rows of a task, or of AlpacaEval's own files (None)."""
    place = f"{key}.source"
    if source.file is not None and (source.builtin or source.path):
        message = "names a file inside a hub repository, which source is not; take it out"
        return [Problem(f"{key}.file", message)]
    if task is None and source.skip:
        message = "cannot be used: AlpacaEval's own table is read as a whole; take it out"
        return [Problem(f"{key}.skip", message)]
    if source.builtin is not None and task in ("alpaca", None):
        return [Problem(place, "must be AlpacaEval's own file, here or on the hub")]
    if source.builtin is not None:
        if source.builtin not in SPLITS:
            known = ", ".join(f"builtin:{name}" for name in SPLITS)
            return [Problem(place, f"no built-in set {source.source!r}; there are {known}")]
        splits, split = SPLITS[source.builtin], source.split_for(role)
        if split not in splits:
            message = f"{source.source} has no split {split!r}: {', '.join(splits)}"
            return [Problem(f"{key}.split", message)]
        if role != "preferences" and task in BUILT_IN and TASK_OF[source.builtin] != task:
            fitting = " or ".join(f"builtin:{name}" for name in SPLITS if TASK_OF[name] == task)
            message = f"{source.source} holds no rows of {task}; take {fitting}"
            return [Problem(place, message)]
        if source.skip >= SIZES[split]:
            message = f"leaves none of the {SIZES[split]} rows of {source.source}, {split}"
            return [Problem(f"{key}.skip", f"{message}; lower it")]
        if role == "preferences" or task is None or task in BUILT_IN:
            return []
        rows = builtin_rows(source.builtin, split, limit=source.skip + 1)
        placed = ((f"{source.source}, row {at}", row) for at, row in enumerate(rows, start=1))
        message = _wrong_first_row(source, placed, source.source, task, role)
        return [Problem(place, message)] if message else []
    if source.path is None:
        return []
    kind = {"alpaca": ".json", None: ".csv"}.get(task, source.path.suffix)
    if not source.path.exists():
        return [Problem(place, f"there is no file or folder {source.source}")]
    if source.path.suffix != kind:
        return [Problem(place, f"{source.source} must be AlpacaEval's own {kind} file")]
    if source.path.is_file() and source.path.suffix not in READERS:
        return [Problem(place, f"{source.source} is not a {', '.join(READERS)} file")]
    if task is None or source.path.suffix not in (".jsonl", ".csv") or source.path.is_dir():
        return []
    if source.skip_unusable:
        return []
    placed = rows_of_file(source.path)
    message = _wrong_first_row(source, placed, str(source.path), task, role)
    return [Problem(place, message)] if message else []


def _wrong_first_row(
    source: Source, placed: Iterable[tuple[str, Any]], path: str, task: str, role: str
) -> str | None:
    """What is wrong with a file's first row: most often the file is another one than was meant.

    All rows are checked by the step that reads them.
    """
    where = ""
    try:
        for place, row in islice(placed, source.skip, None):
            where = place if source.skip else f"{path}, first row"
            if role == "preferences":
                preference_of(task, row)
                return None
            reference = example_of(task, row).reference
            grade = None if task in (*BUILT_IN, "alpaca") else task_named(task).grade
            if grade is None or grade(reference, reference):
                return None
            return f"{where}: grade in {task} calls the reference {reference[:60]!r} itself wrong"
    except InputError as error:
        return str(error)
    except RowError as error:
        return f"{where}: {error.sentence}"
    return f"{path}: it has no rows" + (f" after skip {source.skip}" * bool(source.skip))


def _check_judge(recipe: Recipe) -> list[Problem]:
    judged = [name for name in recipe.evaluate if name in BENCHMARKS and benchmark_of(name).judged]
    if judged and recipe.judge is None:
        need = "needs one" if len(judged) == 1 else "need one"
        message = (
            f"is missing, and {' and '.join(judged)} {need}: openai:MODEL (with base_url for other "
            "endpoints), local:MODEL, or, for smoke runs only, reference"
        )
        return [Problem("judge", message)]
    if recipe.judge is None:
        return []
    from eval.judge.step import engine_for, template_for

    # Text in quotes may be meant: a server may want it.
    problems = [
        Problem(f"judge.{place}", hint)
        for place, _, hint in (
            found.partition(": ")
            for found in trl_fields.nested_hints(recipe.judge.request, "request")
        )
        if hint.startswith("YAML takes")
    ]
    try:
        engine_for(recipe.judge)
    except InputError as error:
        problems.append(Problem("judge", str(error)))
    for name in judged:
        try:
            template_for(recipe.judge, registry.options_of(recipe, name))
        except InputError as error:
            problems.append(Problem(f"benchmarks.{name}.template", str(error)))
    return problems


def _check_names(recipe: Recipe, written: list[str]) -> Iterator[Problem]:
    """Names of the recipe, its stages and benchmarks that stand for nothing."""
    if recipe.name.lower() in SHARED_FOLDERS:
        message = f"{recipe.name!r} is a folder that all recipes share; choose another name"
        yield Problem("name", message)
    for name in recipe.benchmarks:
        if name not in recipe.evaluate:
            yield Problem(f"benchmarks.{name}", f"{name} is not in evaluate")
    if recipe.baseline is not None and recipe.baseline not in written:
        message = f"no stage {recipe.baseline!r}{suggest(recipe.baseline, written)}"
        yield Problem("baseline", f"{message}; stages: {', '.join(written)}")
    for stage, benchmarks in recipe.published.items():
        if stage not in written:
            message = f"no stage {stage!r}{suggest(stage, written)}"
            yield Problem(f"published.{stage}", message)
            continue
        for benchmark in benchmarks:
            if benchmark not in recipe.evaluate:
                message = f"{benchmark!r} is not in evaluate{suggest(benchmark, recipe.evaluate)}"
                yield Problem(f"published.{stage}.{benchmark}", message)


def _check_evaluation(recipe: Recipe) -> Iterator[Problem]:
    for name in recipe.evaluate:
        if name not in BENCHMARKS:
            hint = suggest(name, list(BENCHMARKS))
            known = ", ".join(BENCHMARKS)
            yield Problem("evaluate", f"no benchmark {name!r}{hint}; there are {known}")
        elif recipe.evaluate.count(name) > 1:
            yield Problem("evaluate", f"{name} is given twice")
        elif registry.test_source(recipe, name) is None:
            yield Problem("data.test", f"{name} needs held-out rows; add data.test")
        else:
            yield from benchmark_of(name).check(recipe)


def _check_seeds(recipe: Recipe) -> Iterator[Problem]:
    if max(recipe.seeds) > _LARGEST_SEED:
        yield Problem("seeds", f"{max(recipe.seeds)} is over {_LARGEST_SEED}")
    if len(recipe.seeds) != len(set(recipe.seeds)):
        yield Problem("seeds", f"{recipe.seeds} holds a seed twice")


def _check_model(recipe: Recipe) -> Iterator[Problem]:
    path = Path(recipe.model).expanduser()
    if recipe.model.startswith(("./", "../", "/", "~")) and not path.is_dir():
        yield Problem("model", f"there is no folder {recipe.model}")
    elif not recipe.pickled_weights and (problem := pickled_problem(path)):
        yield Problem("model", problem)


def _check_launch(recipe: Recipe) -> Iterator[Problem]:
    try:
        launch = shipped.read_launch(recipe.launch)
    except InputError as error:
        yield Problem("launch", str(error))
    else:
        yield from batch_problems(recipe, launch)


def batch_problems(recipe: Recipe, launch: shipped.Launch) -> Iterator[Problem]:
    """Batches of training stages that the processes of a launch cannot share evenly."""
    sizes = {}
    for name, stage in recipe.stages.items():
        if trainer_of(stage.method) is not None:
            key = f"stages.{name}.batch_size" if stage.batch_size else "batch_size"
            sizes[key] = recipe.batch_size_for(stage)
    for key, size in sizes.items():
        if size % launch.processes:
            message = (
                f"{size} is not a multiple of the {launch.processes} processes of "
                f"{launch.path.stem}, which share each batch"
            )
            yield Problem(key, message)
