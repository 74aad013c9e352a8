"""The command line: every command and option, as argparse reads them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from pipeline import __version__

_EPILOG = """commands to begin with:
  bashrac recipes                 the recipes that come with bashrac
  bashrac copy demo my.yaml       start your own from one
  bashrac check my.yaml           everything wrong with it, at once
  bashrac run my.yaml             run it; run it again to go on where it stopped
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has `command`, the name of one, unless none was given."""
    parser = argparse.ArgumentParser(
        prog="bashrac",
        description="Staged fine-tuning with self-generated tokens (BASH, RAC) and DPO.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bashrac {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    check = commands.add_parser("check", help="list every problem of recipes")
    check.add_argument("recipes", nargs="+", metavar="RECIPE", help="file or shipped name")
    _add_variant(check, "only this variant (default: each)")
    _add_set(check)
    check.set_defaults(command="check")

    plan = commands.add_parser("plan", help="list the steps, and why each would run")
    _add_recipe(plan)
    _add_launch(plan)
    plan.add_argument(
        "--estimate", action="store_true",
        help="add parameters, memory, tokens and hours of each step, without loading weights",
    )  # fmt: skip
    plan.add_argument(
        "--gpu-memory", type=_positive, metavar="GB",
        help="estimate, and say what does not fit (exit code 1)",
    )  # fmt: skip
    plan.add_argument(
        "--tokens-per-second", type=_positive, metavar="N",
        help="estimate, with hours at this speed rather than at that of finished steps",
    )  # fmt: skip
    _add_price(plan, "estimate, and say what the time still to run costs")
    plan.set_defaults(command="plan")

    run = commands.add_parser("run", help="run what is not finished, then print the table")
    _add_recipe(run)
    run.add_argument("--stage", metavar="S", help="only this stage")
    _add_launch(run)
    _add_max_judge_calls(run)
    _add_verify(run)
    run.set_defaults(command="run")

    report = commands.add_parser("report", help="print the table of what is finished")
    _add_recipe(report)
    report.add_argument("--format", choices=("md", "csv", "json", "html"), default="md")
    report.add_argument(
        "--baseline", metavar="STAGE",
        help="compare the other stages with it; by default the recipe's baseline, or its first SFT",
    )  # fmt: skip
    report.add_argument(
        "--stage", action="append", default=[], metavar="STAGE", dest="stages",
        help="only this one, what it starts from and the baseline (repeatable)",
    )  # fmt: skip
    _add_price(report, "adds what each stage has cost")
    report.set_defaults(command="report")

    evaluate = commands.add_parser("evaluate", help="run benchmarks on a model, outside a recipe")
    evaluate.add_argument("model", metavar="MODEL", help="folder, adapter, step or hub id")
    evaluate.add_argument(
        "--benchmark", action="append", required=True, metavar="NAME", dest="benchmarks",
        help="gsm8k, alpaca, tldr, gap or rouge (repeatable)",
    )  # fmt: skip
    evaluate.add_argument(
        "--data", metavar="SOURCE", help="test rows instead of the benchmark's own on the hub"
    )
    evaluate.add_argument("--limit", type=_count, metavar="N", help="only the first N test rows")
    evaluate.add_argument(
        "--task",
        choices=("gsm8k", "tldr", "chat"),
        help="what the rows of gap and rouge are, where they do not show it",
    )
    evaluate.add_argument(
        "--judge", metavar="JUDGE", help="openai:MODEL, local:MODEL, or reference (smoke runs)"
    )
    evaluate.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint")
    _add_set(evaluate)
    _add_runs(evaluate)
    _add_launch(evaluate)
    _add_max_judge_calls(evaluate)
    _add_verify(evaluate)
    evaluate.set_defaults(command="evaluate")

    score = commands.add_parser("score", help="win rates of official AlpacaEval annotation files")
    score.add_argument("files", nargs="+", type=Path, metavar="annotations.json")
    score.add_argument(
        "--reference", type=Path, metavar="FILE",
        help="model_outputs.json of the baseline: AlpacaEval's instructions in order",
    )  # fmt: skip
    score.add_argument("--difficulty", type=Path, metavar="CSV", help="instruction difficulties")
    score.add_argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv")
    score.set_defaults(command="score")

    merge = commands.add_parser("merge", help="write a finished stage as a plain model")
    _add_stage(merge)
    merge.add_argument("out", metavar="OUT", type=_place, help="a folder that does not exist")
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: that of the model an adapter lies on)",
    )  # fmt: skip
    merge.set_defaults(command="merge")

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.set_defaults(command="recipes")

    copy = commands.add_parser("copy", help="write a shipped recipe to a file of yours")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("file", metavar="FILE", type=_place)
    copy.set_defaults(command="copy")

    clean = commands.add_parser("clean", help="list and remove results no recipe points at")
    _add_runs(clean)
    clean.add_argument("--yes", action="store_true", help="remove without asking")
    clean.set_defaults(command="clean")

    push = commands.add_parser("push", help="show what a stage's page on the hub would be; send it")
    _add_stage(push)
    push.add_argument("--to", required=True, metavar="USER/NAME", help="repository on the hub")
    push.add_argument("--private", action="store_true", help="for a repository that is not there")
    push.add_argument("--yes", action="store_true", help="send it (default: only show it)")
    push.set_defaults(command="push")

    step = commands.add_parser("step", help="run prepared steps (what `run` launches)")
    step.add_argument("specs", nargs="+", metavar="step.json", type=Path)
    step.set_defaults(command="step")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number above 0")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _words(text: str) -> tuple[str, ...]:
    from pipeline.shipped import find_script

    try:
        words = tuple(map(find_script, shlex.split(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a command ({error})") from None
    if not words:
        raise argparse.ArgumentTypeError("no command is given")
    return words


def _place(text: str) -> Path:
    from pipeline.errors import InputError
    from pipeline.shipped import user_path

    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="file or shipped name")
    _add_variant(parser)
    _add_set(parser)
    _add_runs(parser)


def _add_stage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "named", metavar="RECIPE:STAGE", help="a finished stage, such as my.yaml:rac"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="which of the recipe's seeds (default: its first)"
    )
    _add_variant(parser)
    _add_set(parser)
    _add_runs(parser)


def _add_variant(
    parser: argparse.ArgumentParser,
    words: str = "one of the recipe's variants (default: its first)",
) -> None:
    parser.add_argument("--variant", metavar="NAME", help=words)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=_place, default=Path("runs"), metavar="DIR", help="results (default: runs)"
    )


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch", metavar="NAME|FILE", help="accelerate config instead of the recipe's"
    )
    parser.add_argument(
        "--through", metavar="'COMMAND ...'", type=_words, default=(),
        help="start each step's command with this one, e.g. 'srun --nodes 2 on_node.sh'",
    )  # fmt: skip


def _add_max_judge_calls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-judge-calls", type=_count, metavar="N", help="refuse to put more questions to judges"
    )


def _add_price(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--price-per-hour", type=_positive, metavar="X",
        help=f"of one GPU, or of the machine where there is none: {what}",
    )  # fmt: skip
    parser.add_argument("--currency", default="", metavar="WORD", help="of that price, e.g. EUR")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="compare finished weights with their sha256 first"
    )


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a key, e.g. --set data.train.limit=64 (repeatable)",
    )  # fmt: skip
