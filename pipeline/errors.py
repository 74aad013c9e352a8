"""Errors a user can act on. They print as sentences, without a traceback, and carry an exit code.

Anything else that is raised is a programmer's mistake and keeps its traceback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_STOPPED = 128  # and the signal's number: 130 after Ctrl-C, 143 after SIGTERM
# What would act on a terminal or a page rather than be read: C0 and C1 control characters but
# newline and tab, bidirectional overrides and isolates, and lone surrogates, which UTF-8 cannot
# hold.
_ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE = 2000


def visible(text: str) -> str:
    """Return a text with what would act as escapes: ESC becomes 4 characters."""
    return _ACTING.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class BashracError(Exception):
    """Base of all errors meant for the user: a sentence that says what is wrong and the way out."""

    exit_code = EXIT_FAILED

    def __str__(self) -> str:
        """The sentence, in which nothing that a user or a model wrote acts on a terminal."""
        lines = visible(super().__str__()).split("\n")
        return "\n".join(
            line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in lines
        )


class InputError(BashracError):
    """What the user gave cannot work: a recipe, a data file, a model name, an option."""

    exit_code = EXIT_INPUT


class StepFailedError(BashracError):
    """A step started and did not finish."""


class StepHeldError(StepFailedError):
    """Another process works on the step, so that nothing of it may be touched."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where it stands (dotted key) and what to do about it."""

    key: str
    message: str


class RecipeError(InputError):
    """All problems of one recipe at once."""

    def __init__(self, source: str, problems: list[Problem]):
        self.source = source
        self.problems = problems
        width = min(max(len(problem.key) for problem in problems), 44)
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [f"  {problem.key:<{width}}  {problem.message}" for problem in problems]
        super().__init__(f"{source}: {len(problems)} {noun}\n" + "\n".join(lines))


def suggest(word: str, choices: list[str]) -> str:
    """Return '; did you mean X?' for the nearest of `choices`, or '' when none is near."""
    import difflib

    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
