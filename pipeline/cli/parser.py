"""The command line: every command and option, as argparse reads them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pipeline import __version__
from pipeline.errors import InputError, suggest

_ABOUT = "Staged fine-tuning with self-generated tokens (BASH, RAC) and DPO."


class _Argument(NamedTuple):
    """What `add_argument` is called with."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


def _argument(*flags: str, **settings: Any) -> _Argument:
    return _Argument(flags, settings)


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, in place of printing the usage, which hides it, and leaving."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line without its program's name; the result has `command`.

    Raises:
        InputError: when it is not one. SystemExit after `--help` and `--version`.
    """
    parser = make_parser()
    commands = {name: arguments for group in _COMMANDS.values() for name, _, arguments in group}
    name = words[0] if words else "--help"
    if not name.startswith("-") and name not in (*commands, "step"):
        near = suggest(name, list(commands))
        raise InputError(f"no command {name!r}{near}; commands: {', '.join(commands)}")
    given, unknown = parser.parse_known_args(words or [name])
    if unknown:
        flags = [flag for argument in commands.get(name, ()) for flag in argument.flags]
        near = suggest(unknown[0].partition("=")[0], flags)
        message = f"`bashrac {name}` takes no {unknown[0]}{near}"
        raise InputError(f"{message}; see `bashrac {name} --help`")
    return given


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    listed = [
        "\n".join([f"{group}:", *(f"  {name:<10}{summary}" for name, summary, _ in commands)])
        for group, commands in _COMMANDS.items()
    ]
    parser = _Parser(
        prog="bashrac",
        usage="bashrac COMMAND ...",
        description="\n\n".join([_ABOUT, *listed]),
        epilog="`bashrac COMMAND --help` lists its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"bashrac {__version__}", help="print the version"
    )
    parsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="bashrac", help=argparse.SUPPRESS, required=True
    )
    for name, summary, arguments in [*(c for group in _COMMANDS.values() for c in group), _STEP]:
        command = parsers.add_parser(name, description=f"{summary[0].upper()}{summary[1:]}.")
        for flags, settings in arguments:
            command.add_argument(*flags, **settings)
    return parser


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


def _command_words(text: str) -> tuple[str, ...]:
    from pipeline.recipe.shipped import find_script

    try:
        words = tuple(map(find_script, shlex.split(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a command ({error})") from None
    if not words:
        raise argparse.ArgumentTypeError("no command is given")
    return words


def _path(text: str) -> Path:
    from pipeline.recipe.shipped import user_path

    return user_path(text)


def _stage(help_text: str) -> _Argument:
    return _argument(
        "--stage", action="append", default=[], metavar="STAGE", dest="stages",
        help=f"{help_text}; repeatable",
    )  # fmt: skip


def _price(help_text: str) -> list[_Argument]:
    return [
        _argument("--price-per-hour", type=_positive, metavar="X",
                  help=f"{help_text} at this price for each GPU, or for a machine without one"),
        _argument("--currency", default="", metavar="WORD", help="of this price, such as EUR"),
    ]  # fmt: skip


_SET = _argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
    help="override a key, such as data.train.limit=64; repeatable",
)  # fmt: skip
_VARIANT = _argument("--variant", metavar="NAME", help="variant of the recipe; default: its first")
_RUNS = _argument("--runs", type=_path, default=Path("runs"), metavar="DIR",
                  help="folder of results; default: runs")  # fmt: skip
_SEED = _argument("--seed", type=int, metavar="N", help="only this seed")
_A_RECIPE = "a file, or the name of a shipped recipe"
_RECIPE = [_argument("recipe", metavar="RECIPE", help=_A_RECIPE), _VARIANT, _SET, _RUNS]
_FINISHED_STAGE = [
    _argument("named", metavar="RECIPE:STAGE", help="a finished stage, such as my.yaml:rac"),
    _VARIANT, _SET, _RUNS,
    _argument("--seed", type=int, metavar="N", help="seed of the recipe; default: its first"),
]  # fmt: skip
_LAUNCH = [
    _argument("--launch", metavar="NAME|FILE", help="an accelerate config, over the recipe's"),
    _argument("--through", metavar="COMMAND", type=_command_words, default=(),
              help="start each step with this, such as 'srun --nodes 2 on_node.sh'"),
]  # fmt: skip
_RUN = [
    *_LAUNCH,
    _argument("--jobs", type=_count, default=1, metavar="N",
              help="run stages and seeds N at a time, each on devices of its own; default: 1"),
    _argument("--max-judge-calls", type=_count, metavar="N",
              help="make no more than this many calls to a judge"),
    _argument("--verify", action="store_true",
              help="first compare finished weights with their sha256"),
]  # fmt: skip

# What a person wants -> the commands for it: name, a line about it, arguments. The lines fit 60
# columns.
_COMMANDS: dict[str, list[tuple[str, str, list[_Argument]]]] = {
    "begin": [
        ("recipes", "list the recipes that come with bashrac", []),
        ("copy", "copy one of these recipes to a file, to edit", [
            _argument("name", metavar="NAME", help="one that `bashrac recipes` lists"),
            _argument("file", metavar="FILE", type=_path, help="must not exist yet"),
        ]),
        ("check", "list every problem in a recipe", [
            _argument("recipes", nargs="+", metavar="RECIPE", help=_A_RECIPE),
            _argument("--variant", metavar="NAME", help="only this variant of it"),
            _SET,
        ]),
    ],
    "run": [
        ("plan", "list the steps: done, running, to run and why", [
            *_RECIPE, *_LAUNCH,
            _argument("--commands", action="store_true",
                      help="list each step's folder and command instead, for scripts"),
            _argument("--estimate", action="store_true",
                      help="add parameters, memory, tokens and hours; loads no weights"),
            _argument("--gpu-memory", type=_positive, metavar="GB",
                      help="add the estimate; exit with 1 where a step needs more"),
            _argument("--tokens-per-second", type=_positive, metavar="N",
                      help="add the estimate, with hours at this speed"),
            *_price("add the estimate, with the cost"),
        ]),
        ("run", "run what is not finished; resume after a stop", [
            *_RECIPE, _stage("run only this stage"), *_RUN,
        ]),
        ("evaluate", "run benchmarks on any model, without a recipe", [
            _argument("model", metavar="MODEL",
                      help="folder of a model, adapter or finished step, or a hub id"),
            _argument("--benchmark", action="append", required=True, metavar="NAME",
                      dest="benchmarks",
                      help="gsm8k, alpaca, tldr, gap, recovery, accuracy or rouge; repeatable"),
            _argument("--data", metavar="SOURCE",
                      help="test rows, in place of the benchmark's own from the hub"),
            _argument("--limit", type=_count, metavar="N", help="only the first N test rows"),
            _argument("--task", metavar="TASK",
                      help="what rows hold for gap, recovery, accuracy and rouge, where they "
                           "leave it open: gsm8k, tldr, chat, or a Python file that is run"),
            _argument("--judge", metavar="JUDGE",
                      help="openai:MODEL, local:MODEL, or reference (for smoke runs)"),
            _argument("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint"),
            _SET, _RUNS, *_RUN,
        ]),
        ("clean", "remove results that no recipe needs; asks first", [
            _RUNS, _argument("--yes", action="store_true", help="remove without asking"),
        ]),
    ],
    "look": [
        ("status", "show what is done, what is running, what is left", [*_RECIPE, _SEED]),
        ("logs", "print the end of a run's or stage's newest log", [
            _argument("named", metavar="RECIPE[:STAGE]", help="such as my.yaml or demo:rac"),
            _VARIANT, _SET, _RUNS, _SEED,
            _argument("-f", "--follow", action="store_true",
                      help="keep printing what is added, until Ctrl-C"),
            _argument("-n", "--lines", type=_count, default=40, metavar="N",
                      help="how many lines; default: 40"),
        ]),
        ("report", "print the tables of what is finished", [
            _argument("recipes", nargs="+", metavar="RECIPE",
                      help=f"{_A_RECIPE}; several go into one table, as RECIPE/STAGE"),
            _VARIANT, _SET, _RUNS,
            _argument("--format", choices=("md", "csv", "json", "html"), default="md",
                      help="default: md"),
            _argument("--baseline", metavar="STAGE",
                      help="compare with it (of several recipes: RECIPE/STAGE); default: the "
                           "first recipe's baseline, or its first SFT"),
            _stage("only this stage, those it starts from and the baseline"),
            *_price("add what each stage has cost"),
        ]),
        ("score", "compute win rates from AlpacaEval annotations", [
            _argument("files", nargs="+", type=Path, metavar="ANNOTATIONS",
                      help="AlpacaEval's annotations.json"),
            _argument("--reference", type=Path, metavar="FILE",
                      help="the baseline's model_outputs.json: all instructions, in order"),
            _argument("--difficulty", type=Path, metavar="CSV",
                      help="how difficult each instruction is"),
            _argument("--gamed", type=Path, metavar="CSV", help="AlpacaEval's df_gamed.csv"),
        ]),
    ],
    "hand over": [
        ("merge", "write a finished stage as a plain model", [
            *_FINISHED_STAGE,
            _argument("out", metavar="OUT", type=_path, help="a folder that does not exist yet"),
            _argument("--dtype", choices=("float32", "bfloat16", "float16"),
                      help="of the written weights; default: the base model's"),
        ]),
        ("push", "show what goes to the hub; upload it with --yes", [
            *_FINISHED_STAGE,
            _argument("--to", required=True, metavar="USER/NAME", help="repository on the hub"),
            _argument("--private", action="store_true", help="create it as a private one"),
            _argument("--yes", action="store_true", help="upload; without it nothing is sent"),
        ]),
    ],
}  # fmt: skip
_STEP = (
    "step",
    "run prepared steps (what `run` launches)",
    [_argument("specs", nargs="+", metavar="step.json", type=Path)],
)
