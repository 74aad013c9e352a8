"""`bashrac --help`: every command once, below what a person wants to do."""

import re
import shlex

import pytest

from pipeline.cli.main import _COMMANDS as FUNCTIONS
from pipeline.cli.parser import make_parser


def test_commands_are_grouped_by_what_a_person_wants():
    text = make_parser().format_help()
    groups = re.findall(r"^(\w[\w ]*):\n((?:  .+\n)+)", text, re.MULTILINE)
    listed = {name: re.findall(r"^  (\w+) ", lines, re.MULTILINE) for name, lines in groups}
    listed.pop("options")
    assert list(listed) == ["begin", "run", "look", "hand over"]
    names = [name for commands in listed.values() for name in commands]
    assert sorted([*names, "step"]) == sorted(FUNCTIONS), "`step` is for launched processes"
    assert max(map(len, text.splitlines()[3:])) <= 60, (
        "below the summary a narrow terminal is enough"
    )


def test_each_command_says_what_it_does(bashrac):
    for name in FUNCTIONS:
        usage, words, *_ = bashrac(name, "--help").stdout.split("\n\n")
        assert usage.startswith(f"usage: bashrac {name} ")
        assert re.fullmatch(r"[A-Z][^.]+\.", words), name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("chek demo", "no command 'chek'; did you mean check?; commands: recipes, copy, check, "),
        ("plan demo --esimate", "`bashrac plan` takes no --esimate; did you mean --estimate?"),
        ("plan demo other", "`bashrac plan` takes no other; see `bashrac plan --help`"),
        ("plan", "the following arguments are required: RECIPE; see `bashrac plan --help`"),
        ("plan demo --gpu-memory no", "--gpu-memory: 'no' is not a number above 0, such as 24"),
        ('plan demo --through "srun \'a"', '--through: "srun \'a" is not a command (No closing '),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_not_the_usage(bashrac, words, sentence):
    done = bashrac(*shlex.split(words))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
