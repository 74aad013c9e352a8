"""The `bashrac` command.

Exit codes: 0 done, 1 a step failed (or does not fit `plan --gpu-memory`), 2 the user's input, 130
interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pipeline.cli.parser import parse
from pipeline.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_STOPPED,
    BashracError,
    InputError,
    RecipeError,
    Stopped,
    suggest,
)
from pipeline.text import format_count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _write_any_text()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = parse(words)
        given.typed = shlex.join(["bashrac", *words])
        return _COMMANDS[given.command](given)
    except BashracError as error:
        print(f"error: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        by = stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT
        return EXIT_STOPPED + by
    except BrokenPipeError:  # the reader of our output has gone: `bashrac report | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if words[0] not in ("run", "evaluate"):
            return 0
        print("error: nobody reads the output any more, so the run has stopped", file=sys.stderr)
        return EXIT_FAILED
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:
            raise
        # Of a path whose name is not UTF-8; nothing else that is written has passed the reader.
        print(f"error: {_as_bytes(error)} is a name that is not UTF-8; rename it", file=sys.stderr)
        return EXIT_INPUT
    except OSError as error:
        from pipeline.steps.artifact import DISK_ERRNOS, disk_error

        if error.errno not in DISK_ERRNOS:
            raise
        print(f"error: {disk_error(Path(error.filename or '.'), error)}", file=sys.stderr)
        return EXIT_FAILED


def _as_bytes(error: UnicodeEncodeError) -> str:
    """The text that could not be written, in which bytes that are no UTF-8 are shown as such."""
    return error.object.encode(errors="surrogateescape").decode(errors="backslashreplace").strip()


def _write_any_text() -> None:
    """Print what a terminal cannot show as escapes, and UTF-8 into files and pipes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="backslashreplace")
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _load_plan(given: Any) -> Any:
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan

    return make_plan(load_recipe(*_source_of(given)))


def _source_of(given: Any) -> tuple[str, list[str], str | None]:
    """How to read the recipe of a command: file or name, overrides, variant."""
    return given.recipe, given.overrides, given.variant


def _launch_of(plan: Any, given: Any) -> Any:
    from pipeline.hardware.precision import refuse_float16
    from pipeline.plan.check import batch_problems
    from pipeline.recipe.shipped import read_launch
    from pipeline.steps.artifact import is_finished

    launch = read_launch(plan.recipe.launch if given.launch is None else given.launch)
    if given.launch is not None:  # the recipe's own has been checked with the recipe
        stages = plan.stages.values()  # in a sweep, each of its own recipe
        found = [one for stage in stages for one in batch_problems(stage.recipe, launch)]
        if found:
            raise RecipeError(f"{given.recipe} --launch {given.launch}", list(dict.fromkeys(found)))
    refuse_float16((s for s in plan.steps if not is_finished(s.directory(given.runs))), launch)
    return launch


def _check_price(given: Any) -> None:
    if given.currency and given.price_per_hour is None:
        raise InputError("--currency is of a price; give --price-per-hour too")


def _check(given: Any) -> int:
    from pipeline.plan.load import variants_of

    found: list[str | None] = []
    for source in given.recipes:
        try:
            variants = [given.variant] if given.variant else variants_of(source) or [None]
        except InputError as error:
            found.append(str(error))
        else:
            found += [_check_one(source, given.overrides, variant) for variant in variants]
    problems = list(filter(None, dict.fromkeys(found)))
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_INPUT if problems else 0


def _check_one(source: str, overrides: list[str], variant: str | None) -> str | None:
    """Say that there is nothing wrong with a recipe, or return what is."""
    from pipeline.hardware.precision import refuse_float16
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.recipe.shipped import read_launch

    try:
        plan = make_plan(load_recipe(source, overrides, variant))
        refuse_float16(plan.steps, read_launch(plan.recipe.launch))
    except RecipeError as error:
        return str(error)
    except InputError as error:
        return f"{source}: {error}"
    counts = [
        format_count(len(plan.stages), "stage"), format_count(len(plan.steps), "step"),
    ]  # fmt: skip
    if plan.recipe.points:
        counts.insert(0, format_count(len(plan.recipe.points), "point"))
    which = "" if variant is None else f" (variant {variant})"
    print(f"{source}{which}: no problems, {', '.join(counts)}")
    return None


def _plan(given: Any) -> int:
    from pipeline.run.plan_text import explain

    _check_price(given)
    plan = _load_plan(given)
    launch = _launch_of(plan, given)
    text = explain(plan, given.runs, launch, given.through, commands=given.commands, width=_width())
    print(text)
    asked = (given.estimate, given.gpu_memory, given.tokens_per_second, given.price_per_hour)
    if not any(asked):
        return 0
    from pipeline.estimate.text import estimate_plan

    text, fits = estimate_plan(
        plan, given.runs, launch, gpu_memory=given.gpu_memory, speed=given.tokens_per_second,
        price_per_hour=given.price_per_hour and (given.price_per_hour, given.currency),
    )  # fmt: skip
    print(f"\n{text}")
    return 0 if fits else EXIT_FAILED


def _width() -> int | None:
    """The columns of the terminal; None where output goes to a file or pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _run(given: Any) -> int:
    from pipeline.plan.load import command_for

    makes = command_for("run", *_source_of(given))
    return _run_plan(_load_plan(given), given, makes, given.stages)


def _run_plan(plan: Any, given: Any, makes: str, stages: Sequence[str] = ()) -> int:
    """Run a plan; `makes` is the command that its report names."""
    from eval.report.collect import collect
    from eval.report.files import write_report
    from pipeline.hardware.devices import deal_devices
    from pipeline.plan import changes
    from pipeline.run import upfront
    from pipeline.run.scheduler import (
        RunSettings,
        launched_by_accelerate,
        run_in_these_processes,
        run_plan,
    )
    from pipeline.run.worker import prepare_to_end

    launch = _launch_of(plan, given)
    upfront.check_judges(plan, given.runs, stages, given.max_judge_calls)
    upfront.check_engine(plan, given.runs, stages)
    retry = given.typed
    settings = RunSettings(
        given.runs, launch, retry, stages, given.max_judge_calls, given.verify, given.through
    )
    if given.jobs > 1 and launched_by_accelerate():
        raise InputError(
            "--jobs starts processes of its own, and these have been started by accelerate launch; "
            "leave one of them out"
        )

    def written() -> str:
        report = collect(plan, given.runs, commands=[makes])
        return write_report(report, plan, given.runs)

    if launched_by_accelerate():
        is_main = int(os.environ.get("RANK", "0")) == 0
        if is_main:
            changes.remember(plan, given.runs)
        code = run_in_these_processes(plan, settings)
        if is_main and code == 0:
            print(written())
        if code == 0:
            prepare_to_end()
        return code
    # The launched processes must end with us.
    for chosen in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(chosen, _interrupt)
    upfront.check_launch(launch, given.through)
    if given.jobs > 1:
        dealt = deal_devices(launch, given.jobs, elsewhere=bool(given.through))
        settings = replace(settings, jobs=dealt)
    changes.remember(plan, given.runs)
    if calls := upfront.describe_judge_calls(plan, given.runs, stages):
        print(calls, flush=True)
    run_plan(plan, settings)
    print(written())
    return 0


def _interrupt(signal_number: int, frame: Any) -> None:
    del frame
    raise Stopped(signal_number)


def _evaluate(given: Any) -> int:
    from pipeline.plan.from_model import recipe_for
    from pipeline.plan.load import check_recipe
    from pipeline.plan.plan import make_plan

    raw = recipe_for(
        given.model,
        given.benchmarks,
        data=given.data,
        limit=given.limit,
        task=given.task,
        judge=given.judge,
        judge_url=given.judge_url,
        overrides=given.overrides,
    )
    recipe = check_recipe(raw, given.overrides, name=f"bashrac evaluate {given.model}")
    return _run_plan(make_plan(recipe), given, given.typed)


def _score(given: Any) -> int:
    from eval.rescore import describe_scores

    print(describe_scores(given.files, given.reference, given.difficulty, given.gamed))
    return 0


def _report(given: Any) -> int:
    from eval.report.collect import collect, part_of
    from eval.report.files import report_text
    from eval.report.join import join, labels_of
    from pipeline.plan.load import command_for, load_recipe
    from pipeline.plan.plan import make_plan

    _check_price(given)
    sources = [(one, given.overrides, given.variant) for one in given.recipes]
    plan = join([make_plan(load_recipe(*source)) for source in sources])
    baseline = given.baseline
    if plan.parts and baseline is not None and len(labels := labels_of(plan, baseline)) == 1:
        (baseline,) = labels
    _check_baseline(plan, baseline)
    if given.stages:
        names = [label for one in given.stages for label in labels_of(plan, one)]
        plan = part_of(plan, names, baseline)
    report = collect(
        plan,
        given.runs,
        baseline=baseline,
        commands=[command_for("run", *source) for source in sources],
        price_per_hour=given.price_per_hour,
        currency=given.currency,
    )
    print(report_text(report, given.format, plan, given.runs))
    if report.bill is None:
        print(
            f"nothing of this report is finished under {given.runs}; if it was run with --set, "
            "--variant or --runs, give the same here",
            file=sys.stderr,
        )
    return 0


def _check_baseline(plan: Any, baseline: str | None) -> None:
    known = list(plan.recipe.stages)
    if baseline is None or baseline in (known if not plan.parts else [*known, *plan.stages]):
        return
    hint = suggest(baseline, known)
    if baseline in plan.stages:  # a label of a sweep
        name = plan.stages[baseline].name
        hint = f"; each stage is compared at its own point of the sweep: write {name}"
    raise InputError(f"--baseline {baseline}: no such stage{hint}; stages: {', '.join(known)}")


def _status(given: Any) -> int:
    from pipeline.plan.load import command_for
    from pipeline.recipe.shipped import read_launch
    from pipeline.run.status import status

    plan = _load_plan(given)
    launch = read_launch(plan.recipe.launch)

    def command(verb: str) -> str:
        return command_for(verb, *_source_of(given), given.runs)

    print(status(plan, given.runs, launch, seed=given.seed, command=command, width=_width()))
    return 0


def _logs(given: Any) -> int:
    from pipeline.plan.load import load_recipe
    from pipeline.run.logs import find_logs, log_text

    source, colon, stage = given.named.rpartition(":")
    if not colon or Path(given.named).exists():
        source, stage = given.named, None
    recipe = load_recipe(source, given.overrides, given.variant)

    def find() -> list[Path]:
        return find_logs(recipe, given.runs, stage=stage, seed=given.seed)

    try:
        for text in log_text(find, given.lines, follow=given.follow):
            print(text, end="", flush=True)
    except KeyboardInterrupt:  # the way to end it
        return EXIT_STOPPED + signal.SIGINT
    return 0


def _recipes(given: Any) -> int:
    del given
    from pipeline.plan.load import variants_of
    from pipeline.recipe import shipped

    for name in shipped.recipe_names():
        text = (shipped.folder("recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        print(f"{name:<20} {text.splitlines()[0].removeprefix('#').strip()}")
        if variants := variants_of(name):
            print(f"{'':<20} --variant {', '.join(variants)}")
    return 0


def _copy(given: Any) -> int:
    from pipeline.plan.load import variants_of
    from pipeline.recipe import shipped
    from pipeline.steps import artifact

    source = shipped.find_recipe(given.name)
    if given.file.exists():
        raise InputError(f"{given.file} exists; choose another name, nothing is overwritten")
    variants = variants_of(source)
    with artifact.atomic_file(given.file) as file:
        file.write(source.read_text(encoding="utf-8"))
    print(f"{given.file} written; edit it, then run `bashrac check {given.file}`")
    if variants:
        print(f"variants, the first by default: --variant {', '.join(variants)}")
    return 0


def _find(given: Any) -> Any:
    from pipeline.publish.stage import find_stage

    return find_stage(
        given.named, given.runs, overrides=given.overrides, variant=given.variant, seed=given.seed
    )


def _merge(given: Any) -> int:
    from pipeline.publish.export import write_model

    print(write_model(_find(given), given.out, dtype=given.dtype))
    return 0


def _clean(given: Any) -> int:
    from pipeline.run.clean import clean

    print(clean(given.runs, yes=given.yes))
    return 0


def _push(given: Any) -> int:
    from pipeline.publish.push import push

    command = f"{given.typed} --yes"
    print(push(_find(given), given.to, private=given.private, yes=given.yes, command=command))
    return 0


def _step(given: Any) -> int:
    from pipeline.run.worker import end_with_parent, prepare_to_end, run_steps

    end_with_parent()
    code = run_steps(given.specs)
    if code == 0:
        prepare_to_end()
    return code


_COMMANDS = {
    command.__name__.removeprefix("_"): command
    for command in (
        *(_recipes, _copy, _check, _plan, _run, _evaluate, _clean, _status, _logs, _report),
        *(_score, _merge, _push, _step),
    )
}
