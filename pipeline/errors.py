"""Errors a user can act on. They print as sentences, without a traceback, and carry an exit code.

Anything else that is raised is a programmer's mistake and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


class BashracError(Exception):
    """Base of all errors meant for the user: a sentence that says what is wrong and the way out."""

    exit_code = EXIT_FAILED


class InputError(BashracError):
    """What the user gave cannot work: a recipe, a data file, a model name, an option."""

    exit_code = EXIT_INPUT


class StepFailedError(BashracError):
    """A step started and did not finish."""


class StepHeldError(StepFailedError):
    """Another process works on the step, so that nothing of it may be touched."""


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
