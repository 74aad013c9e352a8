"""Loads a task of one's own: a Python file that a recipe names in `task:`.

The file is run as the user's own code, wherever the recipe is checked and in every process of a
step that uses it. What it does is recorded by its content, without what it imports.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.abc import ExecutionLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from typing import Any

from pipeline.data.tasks import TASKS, RowError, Task, checked, task_key
from pipeline.errors import InputError
from pipeline.recipe.shipped import user_path


def load_task(file: str) -> str:
    """Run a task's file, once for each content, and return the name of its task in `TASKS`.

    Raises:
        InputError: when it cannot be read or run, or defines no task; file and line are named.
    """
    key = task_key(file)
    if key in TASKS:
        return key
    loader = _AsItIsNow(file)
    spec = spec_from_loader(key.replace("-", "_"), loader)
    assert spec is not None  # it is of a loader that is given
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for names in annotations
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(_place_of(error, file)) from None
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        what = "defines no TASK" if task is None else f"has a TASK of {type(task).__name__}"
        raise InputError(f"{file} {what}; write TASK = Task(read=..., ...), see docs/extending.md")
    grade = None if task.grade is None else _grader(task.grade, file)
    TASKS[key] = replace(task, read=_reader(task.read, file), grade=grade)
    return key


class _AsItIsNow(ExecutionLoader):
    """Compiles a file from its text: no bytecode of an earlier text is read, and none written."""

    def __init__(self, file: str):
        self.file = file

    def get_filename(self, fullname: str) -> str:
        """The file as the recipe names it, in tracebacks too."""
        del fullname
        return self.file

    def get_source(self, fullname: str) -> str:
        """Its text."""
        del fullname
        return decode_source(user_path(self.file).read_bytes())


def _reader(read: Callable[[Any], Any], file: str) -> Callable[[Mapping[str, Any]], Any]:
    def reads(row: Mapping[str, Any]) -> Any:
        try:
            found = read(row)
        except Exception as error:
            names = ", ".join(map(str, row))
            place = _place_of(error, file)
            raise RowError("", f"does not fit: {place}; the row has {names}") from None
        if not isinstance(found, tuple) or len(found) != 2:
            message = f"read in {file} returns {type(found).__name__}, expected (prompt, reference)"
            raise RowError("", message)
        try:
            return checked(*found)
        except RowError as error:
            raise RowError("", f"read in {file} returns a {error.field} that {error}") from None

    return reads


def _grader(grade: Callable[[str, str], Any], file: str) -> Callable[[str, str], bool]:
    def grades(answer: str, reference: str) -> bool:
        try:
            right = grade(answer, reference)
        except Exception as error:
            raise InputError(f"{_place_of(error, file)}, grading {answer[:60]!r}") from None
        if not isinstance(right, bool):
            raise InputError(f"grade in {file} returns {right!r}, expected True or False")
        return right

    return grades


def _place_of(error: BaseException, file: str) -> str:
    """An error in a task's file as a sentence: the file, the line of it, what was raised."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return f"{file}, line {lines[-1]}: {said}" if lines else f"{file}: {said}"
