"""Remembers the steps of a recipe's last run, and says in words why one is another now.

Each run leaves `runs/<recipe>/plan.json`: the identity of every step, under a name that stays the
same when its options change.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.tasks import OWN
from pipeline.errors import InputError
from pipeline.plan.plan import Plan
from pipeline.steps import artifact
from pipeline.steps.identity import OutsideIdentity
from pipeline.steps.spec import Identity, StepSpec

MEMORY = "plan.json"
_MOST_CHANGES = 4
_MOST_FILES = 3
_LONGEST_VALUE = 60
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What data or a model from outside can be, by the key that tells it (`pipeline.steps.identity`).
_KINDS = ("hub", "builtin", "package", "files", "file")


def step_names(steps: list[StepSpec]) -> dict[str, str]:
    """Fingerprint -> a name that stays the same when a step's options change, each name once."""
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for step in steps:
        name = f"{step.stage}/{step.title}/seed {step.seed}"
        taken[name] += 1
        names[step.fingerprint] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return names


def remember(plan: Plan, runs: Path) -> None:
    """Write the identities of a plan's steps: `plan` compares with them, `clean` keeps them."""
    names = step_names(plan.steps)
    identities = {names[step.fingerprint]: step.identity for step in plan.steps}
    artifact.write_json(runs / plan.recipe.name / MEMORY, identities)


def read_identities(file: Path) -> dict[str, Identity]:
    """Read what `remember` has written.

    Raises:
        InputError: when it is damaged.
    """
    try:
        identities = json.loads(file.read_text(encoding="utf-8"))
        whole = {"format", "kind", "run", "options", "inputs", "seed"}
        if all(identity.keys() >= whole for identity in identities.values()):
            return identities
        reason = "no list of steps"
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
    raise InputError(
        f"{file} cannot be read ({reason}), so what the last run of {file.parent.name} made is not "
        "known; run that recipe again, which writes it anew and keeps what is finished, or delete "
        "the file"
    )


class Memory:
    """What the last run of a recipe knew: step name -> identity."""

    def __init__(self, identities: dict[str, Identity], steps: list[StepSpec], runs: Path):
        self.identities = identities
        self.runs = runs
        self.earlier = {artifact.fingerprint(known): name for name, known in identities.items()}
        self.names = step_names(steps)

    def changes(self, step: StepSpec) -> list[str] | None:
        """What is different about a step, in words; None where its name is new."""
        before, now = self.identities.get(self.names[step.fingerprint]), step.identity
        if before is None:
            return None
        found = []
        if any(before.get(key) != now.get(key) for key in ("format", "kind", "run", "version")):
            found.append("bashrac itself makes it differently now")
        found += _differences(before["options"], now["options"], "")
        inputs = before["inputs"]
        for name in sorted(inputs.keys() | step.inputs.keys()):
            found += self._input_changes(name, inputs.get(name), step.inputs.get(name))
        return cut(found, _MOST_CHANGES)

    def _input_changes(self, name: str, before: Any, value: Any) -> list[str]:
        now = value.fingerprint if isinstance(value, StepSpec) else value
        if before == now:
            return []
        if now is None:
            return [f"it has no input {name} any more"]
        called = self._called(now)
        if before is None:
            return [f"it has a new input, {name} ({called})"]
        if isinstance(before, dict) and isinstance(now, dict) and _kind(before) == _kind(now):
            words = ", ".join(_outside_changes(before, now))
            return [f"its input {name} is different: {words}"]
        if called != self._called(before):
            return [f"its input {name} is {called}, no longer {self._called(before)}"]
        assert isinstance(value, StepSpec)  # only steps that change keep their name
        is_there = artifact.is_finished(value.directory(self.runs))
        what = "has changed" if is_there else "will be made again"
        return [f"its input {name} ({called}) {what}"]

    def _called(self, known: Any) -> str:
        """What people call an input: a step by its fingerprint, anything else by its identity."""
        if isinstance(known, str):
            name = self.names.get(known) or self.earlier.get(known) or "an unknown step"
            return ": ".join(name.split("/")[:2])
        kind = _kind(known)
        if kind == "builtin":
            return f"builtin:{known[kind]}"
        return {"file": "a local file", "files": "a local folder"}.get(kind) or str(known[kind])


def cut(words: list[str], most: int) -> list[str]:
    """The first few, and how many more there are."""
    more = len(words) - most
    return [*words[:most], f"{more} more"] if more > 0 else words


def _kind(known: OutsideIdentity) -> str:
    return next(kind for kind in _KINDS if kind in known)


def _outside_changes(before: OutsideIdentity, now: OutsideIdentity) -> list[str]:
    """What is different about data or a model from outside of one kind."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        was, is_now = before.get(key), now.get(key)
        if was == is_now or (key == "revision" and before["hub"] != now["hub"]):
            continue  # the commits of two repositories say nothing
        if key == "file" and "hub" not in now:
            found.append("the file's content")
        elif key == "files":
            found += _file_changes(was or {}, is_now or {})
        elif key == "revision":
            found.append(f"hub commit {_value(was)} -> {_value(is_now)}")
        elif key == "base" and was and is_now and _kind(was) == _kind(is_now):
            found += [f"the adapter's base: {words}" for words in _outside_changes(was, is_now)]
        else:
            found += _differences(was, is_now, key)
    return found


def _file_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Which files of a folder are different, new or gone."""
    other = [path for path in sorted(before.keys() & now.keys()) if before[path] != now[path]]
    kinds = (
        ("the content of", other),
        ("new", sorted(now.keys() - before.keys())),
        ("gone", sorted(before.keys() - now.keys())),
    )
    return [f"{words} {', '.join(cut(paths, _MOST_FILES))}" for words, paths in kinds if paths]


def _differences(before: Any, now: Any, key: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(before.keys() | now.keys()):
            found += _differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        return list(dict.fromkeys(found))
    if before != now and all(str(one).startswith(OWN) for one in (before, now)):
        return ["the content of the task's file"]
    return [] if before == now else [f"{key} {_value(before)} -> {_value(now)}"]


def _value(value: Any) -> str:
    """A value as people read it: digests and commits by their first eight digits."""
    if value is None:
        return "not set"
    text = str(value)
    if _DIGEST.fullmatch(text):
        return text[:8]
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
