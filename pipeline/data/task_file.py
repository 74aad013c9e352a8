"""Loads a user's own task: a Python file that a recipe names in `task:`.

The file is run whenever the recipe is checked, and in every process of a step that uses it. Its
content is part of the step's identity; what it imports is not.
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
    """Run a task's file, once per content, and return the name of its task in `TASKS`.

    Raises:
        InputError: if it cannot be read or run, or defines no task; it names file and line.
    """
    key = task_key(file)
    if key in TASKS:
        return key
    loader = _SourceLoader(file)
    spec = spec_from_loader(key.replace("-", "_"), loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses resolve annotations through it
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


class _SourceLoader(ExecutionLoader):
    """Compiles a file from source: bytecode, which may be outdated, is neither read nor written."""

    def __init__(self, file: str):
        self.file = file

    def get_filename(self, fullname: str) -> str:
        """The file as named in the recipe; tracebacks show it too."""
        del fullname
        return self.file

    def get_source(self, fullname: str) -> str:
        """The file's text."""
        del fullname
        return decode_source(user_path(self.file).read_bytes())


def _reader(read: Callable[[Any], Any], file: str) -> Callable[[Mapping[str, Any]], Any]:
    def reads(row: Mapping[str, Any]) -> Any:
        try:
            found = read(row)
        except Exception as error:
            names = ", ".join(map(str, row))
            place = _place_of(error, file)
            raise RowError("", f"cannot be read: {place}; the row has {names}") from None
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
    """Describe an error in a task's file: file, line, and what was raised."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return f"{file}, line {lines[-1]}: {said}" if lines else f"{file}: {said}"
