"""The command line: every command and option, as argparse reads them."""

from __future__ import annotations

import argparse
import shlex
from itertools import chain
from pathlib import Path

from pipeline import __version__

_ABOUT = "Staged fine-tuning with self-generated tokens (BASH, RAC) and DPO."


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has `command`, the name of one, unless none was given."""
    listed = [
        "\n".join([f"{group}:", *(f"  {name:<10}{words}" for name, words, _ in commands)])
        for group, commands in _COMMANDS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="bashrac",
        usage="bashrac COMMAND ...",
        description="\n\n".join([_ABOUT, *listed]),
        epilog="`bashrac COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bashrac {__version__}")
    added = parser.add_subparsers(metavar="COMMAND", prog="bashrac", help=argparse.SUPPRESS)
    for name, words, add in chain(*_COMMANDS.values(), [_STEP]):
        command = added.add_parser(name, description=f"{words[0].upper()}{words[1:]}.")
        command.set_defaults(command=name)
        add(command)
    return parser


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="file or shipped name")
    _add_variant(parser, "only this variant (default: each)")
    _add_set(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_launch(parser)
    parser.add_argument(
        "--commands",
        action="store_true",
        help="list each step with its folder and command, for scripts",
    )
    parser.add_argument(
        "--estimate", action="store_true",
        help="also estimate parameters, memory, tokens and hours of each step; loads no weights",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-memory", type=_positive, metavar="GB",
        help="also estimate, and name the steps that need more than this (exit code 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens-per-second", type=_positive, metavar="N",
        help="also estimate, with hours at this speed instead of that of finished steps",
    )  # fmt: skip
    _add_price(parser, "also estimate, and say what the steps still to run will cost")


def _run(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_stages(parser, "only this stage (repeatable)")
    _add_launch(parser)
    _add_max_judge_calls(parser)
    _add_verify(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--format",
        choices=("md", "csv", "json", "html"),
        default="md",
        help="default: md",
    )
    parser.add_argument(
        "--baseline", metavar="STAGE",
        help="compare the other stages with this one (default: the recipe's, or its first SFT)",
    )  # fmt: skip
    _add_stages(parser, "only this stage, those it starts from, and the baseline (repeatable)")
    _add_price(parser, "also say what each stage has cost")


def _status(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_seed(parser, "only this seed (default: all)")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "named", metavar="RECIPE[:STAGE]", help="file or shipped name, such as my.yaml or demo:rac"
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on printing what is written, until Ctrl-C"
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=_count,
        default=40,
        metavar="N",
        help="how many to begin with (default: 40)",
    )
    _add_seed(parser, "only this seed (default: all)")
    _add_variant(parser)
    _add_set(parser)
    _add_runs(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a model, adapter or finished step, or a hub id"
    )
    parser.add_argument(
        "--benchmark", action="append", required=True, metavar="NAME", dest="benchmarks",
        help="gsm8k, alpaca, tldr, gap or rouge (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="test rows to use instead of the benchmark's own on the hub",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N test rows")
    parser.add_argument(
        "--task",
        choices=("gsm8k", "tldr", "chat"),
        help="what kind of rows gap and rouge are given, where the rows do not show it",
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


def _score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="annotations.json")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE",
        help="model_outputs.json of the baseline: AlpacaEval's instructions in order",
    )  # fmt: skip
    parser.add_argument(
        "--difficulty", type=Path, metavar="CSV", help="how difficult each instruction is"
    )
    parser.add_argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv")


def _merge(parser: argparse.ArgumentParser) -> None:
    _add_stage(parser)
    parser.add_argument("out", metavar="OUT", type=_place, help="a folder that does not exist yet")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="of the written weights (default: that of the base model)",
    )  # fmt: skip


def _recipes(parser: argparse.ArgumentParser) -> None:
    del parser  # it takes nothing


def _copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a recipe that `bashrac recipes` lists")
    parser.add_argument("file", metavar="FILE", type=_place, help="must not exist yet")


def _clean(parser: argparse.ArgumentParser) -> None:
    _add_runs(parser)
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def _push(parser: argparse.ArgumentParser) -> None:
    _add_stage(parser)
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="repository on the hub")
    parser.add_argument(
        "--private", action="store_true", help="create the repository as a private one"
    )
    parser.add_argument(
        "--yes", action="store_true", help="send it (default: only show what would be sent)"
    )


def _step(parser: argparse.ArgumentParser) -> None:
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
    _add_seed(parser, "one of the recipe's seeds (default: its first)")
    _add_variant(parser)
    _add_set(parser)
    _add_runs(parser)


def _add_seed(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help=words)


def _add_variant(
    parser: argparse.ArgumentParser,
    words: str = "one of the recipe's variants (default: its first)",
) -> None:
    parser.add_argument("--variant", metavar="NAME", help=words)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        type=_place,
        default=Path("runs"),
        metavar="DIR",
        help="folder of results (default: runs)",
    )


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch", metavar="NAME|FILE", help="use this accelerate config instead of the recipe's"
    )
    parser.add_argument(
        "--through", metavar="'COMMAND ...'", type=_words, default=(),
        help="prefix each step's command with this one, such as 'srun --nodes 2 on_node.sh'",
    )  # fmt: skip


def _add_stages(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument(
        "--stage", action="append", default=[], metavar="STAGE", dest="stages", help=words
    )


def _add_max_judge_calls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-judge-calls",
        type=_count,
        metavar="N",
        help="refuse to make more judge calls than this",
    )


def _add_price(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--price-per-hour", type=_positive, metavar="X",
        help=f"price of a GPU, or of a machine without one: {what}",
    )  # fmt: skip
    parser.add_argument("--currency", default="", metavar="WORD", help="of that price, such as EUR")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="check finished weights against their sha256 first"
    )


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a key, e.g. --set data.train.limit=64 (repeatable)",
    )  # fmt: skip


# What a person wants -> the commands for it: name, a line about it, what adds its options.
_COMMANDS = {
    "begin": [
        ("recipes", "list the recipes that come with bashrac", _recipes),
        ("copy", "write a shipped recipe to a file of your own, to edit", _copy),
        ("check", "list everything that is wrong with a recipe", _check),
    ],
    "run": [
        ("plan", "list the steps, why each will run, and how long it may take", _plan),
        ("run", "run every step that is not finished; resumes after a stop", _run),
        ("evaluate", "run benchmarks on any model, without a recipe", _evaluate),
        ("clean", "list results that no recipe needs any more, and remove them", _clean),
    ],
    "look": [
        ("status", "show what a run has done, is doing, and has left", _status),
        ("logs", "print the end of a run's newest log, or of a stage's", _logs),
        ("report", "print the tables of what is finished", _report),
        ("score", "compute win rates from AlpacaEval annotation files", _score),
    ],
    "hand over": [
        ("merge", "write a finished stage as a plain transformers model", _merge),
        ("push", "show what would be sent to the hub; send it with --yes", _push),
    ],
}
_STEP = ("step", "run prepared steps (what `run` launches)", _step)
