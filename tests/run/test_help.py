"""`bashrac --help`: every command once, below what a person wants to do."""

import re

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
    assert max(map(len, text.splitlines())) <= 80


def test_each_command_says_what_it_does(bashrac):
    for name in FUNCTIONS:
        usage, words, *_ = bashrac(name, "--help").stdout.split("\n\n")
        assert usage.startswith(f"usage: bashrac {name} ")
        assert re.fullmatch(r"[A-Z][^.]+\.", words), name
