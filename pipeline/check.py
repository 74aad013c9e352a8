"""Problems of a recipe that need more than one key, the installed libraries or the disk to see.

Nothing here imports torch, trl or datasets.
"""

from __future__ import annotations

import json
from pathlib import Path

from eval import benchmarks
from eval.benchmarks import BENCHMARKS
from pipeline import options, shipped
from pipeline.builtin import SPLITS
from pipeline.errors import InputError, Problem, suggest
from pipeline.identity import adapter_base
from pipeline.recipe import Recipe, Source, method_module, trainer_of
from pipeline.tasks import RowError, example_of, preference_of


def cross_check(recipe: Recipe, written: list[str]) -> list[Problem]:
    """Problems that need more than one key, or the file system, to see.

    `written` names the stages in the file, among them those that have problems of their own.
    """
    return [
        *_check_passed_through(recipe),
        *_check_starts(recipe, written),
        *_check_data(recipe),
        *_check_names(recipe, written),
    ]


def _check_passed_through(recipe: Recipe) -> list[Problem]:
    problems = []
    trainers = {trainer_of(stage.method) for stage in recipe.stages.values()}
    classes = sorted(trainer for trainer in trainers if trainer is not None)
    for name, value in recipe.trainer.items():
        # A shared option is right if any stage's trainer has it: DPO's beta may stand at the top.
        having = [kind for kind in classes if name in options.fields_of(kind)] or classes[:1]
        found = [options.problem_with(options_class, name, value) for options_class in having]
        wrong = [problem for problem in found if problem]
        if wrong:
            problems.append(Problem(f"trainer.{name}", wrong[0]))
    blocks = [("lora", "peft.LoraConfig", f"stages.{n}", s) for n, s in recipe.stages.items()]
    for name, stage in recipe.stages.items():
        if (trainer := trainer_of(stage.method)) is not None:
            blocks.append(("trainer", trainer, f"stages.{name}", stage))
    blocks += [("lora", "peft.LoraConfig", "", recipe)]
    for block, options_class, prefix, holder in blocks:
        for name, value in (getattr(holder, block) or {}).items():
            problem = options.problem_with(options_class, name, value)
            if problem:
                problems.append(Problem(f"{prefix}.{block}.{name}".strip("."), problem))
    return problems


def _check_starts(recipe: Recipe, written: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    for name, stage in recipe.stages.items():
        above = written[: written.index(name)]
        if stage.start is not None and stage.start not in above:
            hint = suggest(stage.start, above)
            known = f"; stages: {', '.join(above)}" if above else "; it is the first stage"
            message = f'no stage "{stage.start}" above it{hint}{known}'
            problems.append(Problem(f"stages.{name}.from", message))
        elif stage.start in recipe.stages:
            parent = recipe.lora_for(recipe.stages[stage.start])
            ours = recipe.lora_for(stage)
            if parent is not None and ours != parent and not stage.merge_adapter:
                what = "all weights" if ours is None else "another adapter"
                problems.append(
                    Problem(
                        f"stages.{name}.lora",
                        f"trains {what} but starts from {stage.start}, a LoRA adapter: repeat its "
                        "lora options, or write merge_adapter: true to merge it first",
                    )
                )
        problems += method_module(stage.method).check(name, stage, recipe)
    return problems


def _check_data(recipe: Recipe) -> list[Problem]:
    problems = []
    for role in ("train", "test", "preferences"):
        source = getattr(recipe.data, role)
        if isinstance(source, Source):
            problems += _check_source(f"data.{role}", source, role, recipe.task)
    for name, given in recipe.benchmarks.items():
        for role in given.model_fields_set:
            source = getattr(given, role)
            if isinstance(source, Source):
                key, task = f"benchmarks.{name}.{role}", benchmarks.task_of(recipe, name)
                has_rows = role in ("data", "shots")
                problems += _check_source(key, source, "test", task if has_rows else None)
    trains = any(trainer_of(stage.method) for stage in recipe.stages.values())
    if trains and recipe.data.train is None:
        problems.append(Problem("data.train", "is missing; stages train on its rows"))
    if trains and adapter_base(Path(recipe.model).expanduser()) is not None:
        message = "is a LoRA adapter: it can be evaluated but not trained on; merge it first"
        problems.append(Problem("model", message))
    return problems


def _check_source(key: str, source: Source, role: str, task: str | None) -> list[Problem]:
    """What is wrong with a source of rows of a task, or of AlpacaEval's own files (None)."""
    place = f"{key}.source"
    if source.file is not None and (source.builtin or source.path):
        return [Problem(f"{key}.file", "names a file inside a hub repository; source is none")]
    if source.builtin is not None and task in ("alpaca", None):
        return [Problem(place, "must be AlpacaEval's own file, here or on the hub")]
    if source.builtin is not None:
        if source.builtin not in SPLITS:
            known = ", ".join(f"builtin:{name}" for name in SPLITS)
            return [Problem(place, f"no built-in set {source.source!r}; there are {known}")]
        splits, split = SPLITS[source.builtin], source.split_for(role)
        message = f"{source.source} has no split {split!r}: {', '.join(splits)}"
        return [] if split in splits else [Problem(f"{key}.split", message)]
    if source.path is None:
        return []
    kind = {"alpaca": ".json", None: ".csv"}.get(task, source.path.suffix)
    if not source.path.exists():
        return [Problem(place, f"there is no file or folder {source.source}")]
    if source.path.suffix != kind:
        return [Problem(place, f"{source.source} must be AlpacaEval's own {kind} file")]
    if task is None or source.path.suffix != ".jsonl":
        return []
    message = _wrong_first_row(source.path, task, role)
    return [Problem(place, message)] if message else []


def _wrong_first_row(path: Path, task: str, role: str) -> str | None:
    """What is wrong with a file's first row: most often the file is another one than was meant.

    All rows are checked by the step that reads them.
    """
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError):
        return None  # the step names the line
    if not isinstance(row, dict):
        return None
    try:
        (preference_of if role == "preferences" else example_of)(task, row)
    except RowError as error:
        return f"{path}, first row: field {error.field!r} {error}"
    return None


def _check_judge(recipe: Recipe) -> list[Problem]:
    judged = [name for name in recipe.evaluate if name in BENCHMARKS and BENCHMARKS[name].judged]
    if judged and recipe.judge is None:
        message = (
            f"is missing, and {' and '.join(judged)} compare answers: openai:MODEL (with base_url "
            "for other endpoints), local:MODEL, or reference, for smoke runs only"
        )
        return [Problem("judge", message)]
    if recipe.judge is None:
        return []
    from eval.judging import engine_for, template_for

    problems = []
    try:
        engine_for(recipe.judge)
    except InputError as error:
        problems.append(Problem("judge", str(error)))
    for name in judged:
        try:
            template_for(recipe.judge, benchmarks.options_of(recipe, name))
        except InputError as error:
            problems.append(Problem(f"benchmarks.{name}.template", str(error)))
    return problems


def _check_names(recipe: Recipe, written: list[str]) -> list[Problem]:
    problems = []
    for name in recipe.evaluate:
        if name not in BENCHMARKS:
            hint = suggest(name, list(BENCHMARKS))
            known = ", ".join(BENCHMARKS)
            problems.append(Problem("evaluate", f"no benchmark {name!r}{hint}; there are {known}"))
        elif recipe.evaluate.count(name) > 1:
            problems.append(Problem("evaluate", f"{name} is given twice"))
        elif benchmarks.test_source(recipe, name) is None:
            problems.append(Problem("data.test", f"{name} needs held-out rows; add data.test"))
    for name in recipe.benchmarks:
        if name not in recipe.evaluate:
            problems.append(Problem(f"benchmarks.{name}", f"{name} is not in evaluate"))
    problems += _check_judge(recipe)
    for stage in recipe.published:
        if stage not in written:
            message = f"no stage {stage!r}{suggest(stage, written)}"
            problems.append(Problem(f"published.{stage}", message))
        for benchmark in recipe.published[stage] if stage in written else ():
            if benchmark not in recipe.evaluate:
                message = f"{benchmark!r} is not in evaluate{suggest(benchmark, recipe.evaluate)}"
                problems.append(Problem(f"published.{stage}.{benchmark}", message))
    if len(recipe.seeds) != len(set(recipe.seeds)):
        problems.append(Problem("seeds", f"{recipe.seeds} holds a seed twice"))
    model_path = Path(recipe.model).expanduser()
    if recipe.model.startswith(("./", "../", "/", "~")) and not model_path.is_dir():
        problems.append(Problem("model", f"there is no folder {recipe.model}"))
    try:
        launch = shipped.read_launch(recipe.launch)
    except InputError as error:
        problems.append(Problem("launch", str(error)))
    else:
        if recipe.batch_size % launch.processes:
            message = (
                f"{recipe.batch_size} is not a multiple of the {launch.processes} processes of "
                f"{recipe.launch}"
            )
            problems.append(Problem("batch_size", message))
    return problems
