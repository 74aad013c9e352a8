"""The command line: every command and option, as argparse reads them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

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
    for add in (
        _check,
        _plan,
        _run,
        _report,
        _evaluate,
        _score,
        _merge,
        _recipes,
        _copy,
        _clean,
        _push,
        _step,
    ):
        add(commands)
    return parser


def _command(commands: Commands, name: str, words: str) -> argparse.ArgumentParser:
    """A command's own parser; what it parses has `command`, this name."""
    parser = commands.add_parser(name, help=words)
    parser.set_defaults(command=name)
    return parser


def _check(commands: Commands) -> None:
    parser = _command(commands, "check", "list every problem of recipes")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="file or shipped name")
    _add_variant(parser, "only this variant (default: each)")
    _add_set(parser)


def _plan(commands: Commands) -> None:
    parser = _command(commands, "plan", "list the steps, and why each would run")
    _add_recipe(parser)
    _add_launch(parser)
    parser.add_argument(
        "--estimate", action="store_true",
        help="add parameters, memory, tokens and hours of each step, without loading weights",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-memory", type=_positive, metavar="GB",
        help="estimate, and say what does not fit (exit code 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens-per-second", type=_positive, metavar="N",
        help="estimate, with hours at this speed rather than at that of finished steps",
    )  # fmt: skip
    _add_price(parser, "estimate, and say what the time still to run costs")


def _run(commands: Commands) -> None:
    parser = _command(commands, "run", "run what is not finished, then print the table")
    _add_recipe(parser)
    _add_stages(parser, "only this stage (repeatable)")
    _add_launch(parser)
    _add_max_judge_calls(parser)
    _add_verify(parser)


def _report(commands: Commands) -> None:
    parser = _command(commands, "report", "print the table of what is finished")
    _add_recipe(parser)
    parser.add_argument("--format", choices=("md", "csv", "json", "html"), default="md")
    parser.add_argument(
        "--baseline", metavar="STAGE",
        help="compare the other stages with it; by default the recipe's baseline, or its first SFT",
    )  # fmt: skip
    _add_stages(parser, "only this one, what it starts from and the baseline (repeatable)")
    _add_price(parser, "adds what each stage has cost")


def _evaluate(commands: Commands) -> None:
    parser = _command(commands, "evaluate", "run benchmarks on a model, outside a recipe")
    parser.add_argument("model", metavar="MODEL", help="folder, adapter, step or hub id")
    parser.add_argument(
        "--benchmark", action="append", required=True, metavar="NAME", dest="benchmarks",
        help="gsm8k, alpaca, tldr, gap or rouge (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="SOURCE", help="test rows instead of the benchmark's own on the hub"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N test rows")
    parser.add_argument(
        "--task",
        choices=("gsm8k", "tldr", "chat"),
        help="what the rows of gap and rouge are, where they do not show it",
    )
    parser.add_argument(
        "--judge", metavar="JUDGE", help="openai:MODEL, local:MODEL, or reference (smoke runs)"
    )
    parser.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint")
    _add_set(parser)
    _add_runs(parser)
    _add_launch(parser)
    _add_max_judge_calls(parser)
    _add_verify(parser)


def _score(commands: Commands) -> None:
    parser = _command(commands, "score", "win rates of official AlpacaEval annotation files")
    parser.add_argument("files", nargs="+", type=Path, metavar="annotations.json")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE",
        help="model_outputs.json of the baseline: AlpacaEval's instructions in order",
    )  # fmt: skip
    parser.add_argument("--difficulty", type=Path, metavar="CSV", help="instruction difficulties")
    parser.add_argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv")


def _merge(commands: Commands) -> None:
    parser = _command(commands, "merge", "write a finished stage as a plain model")
    _add_stage(parser)
    parser.add_argument("out", metavar="OUT", type=_place, help="a folder that does not exist")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: that of the model an adapter lies on)",
    )  # fmt: skip


def _recipes(commands: Commands) -> None:
    _command(commands, "recipes", "list the shipped recipes")


def _copy(commands: Commands) -> None:
    parser = _command(commands, "copy", "write a shipped recipe to a file of yours")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", metavar="FILE", type=_place)


def _clean(commands: Commands) -> None:
    parser = _command(commands, "clean", "list and remove results no recipe points at")
    _add_runs(parser)
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def _push(commands: Commands) -> None:
    parser = _command(commands, "push", "show what a stage's page on the hub would be; send it")
    _add_stage(parser)
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="repository on the hub")
    parser.add_argument("--private", action="store_true", help="for a repository that is not there")
    parser.add_argument("--yes", action="store_true", help="send it (default: only show it)")


def _step(commands: Commands) -> None:
    parser = _command(commands, "step", "run prepared steps (what `run` launches)")
    parser.add_argument("specs", nargs="+", metavar="step.json", type=Path)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0, such as 24")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, such as 24 or 2.5")
    return number


def _words(text: str) -> tuple[str, ...]:
    from pipeline.recipe.shipped import find_script

    try:
        words = tuple(map(find_script, shlex.split(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a command ({error})") from None
    if not words:
        raise argparse.ArgumentTypeError("no command is given")
    return words


def _place(text: str) -> Path:
    from pipeline.errors import InputError
    from pipeline.recipe.shipped import user_path

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


def _add_stages(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument(
        "--stage", action="append", default=[], metavar="STAGE", dest="stages", help=words
    )


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
