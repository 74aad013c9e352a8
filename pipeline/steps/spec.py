"""What a step is, and what it is known by.

A step's identity is everything that decides its result: kind, options, seed, and the identities of
its inputs. Hardware, process counts, paths and library versions are not in it (they are recorded).
Two stages, or two recipes, that need the same step share its directory.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.steps import artifact
from pipeline.steps.functions import version_of

# Raised when the meaning of steps changes, so that results made before it are not taken for new.
FORMAT = 2
STEP_FOLDER = re.compile(r"[a-z0-9_-]+-[0-9a-f]{16}")  # what `step_folder` returns


def step_folder(kind: str, fingerprint: str) -> str:
    """The name of the directory that holds a step's results."""
    return f"{kind}-{fingerprint[:16]}"


@dataclass(frozen=True)
class StepSpec:
    """One directory of results to make: as it is planned, and as step.json hands it to a worker.

    Attributes:
        kind: what it makes: answers, contexts, corrections, pairs, train, merge, overlap,
            gap-contexts, gap-losses, or a benchmark's grades.
        run: the name of the function that makes it, given a `pipeline.steps.context.StepContext`
            (pipeline/steps/functions.py says where it lies).
        options: everything but the inputs that decides the result.
        inputs: name -> another step (in step.json its fingerprint), or the identity of data or a
            model from outside.
        locations: name -> where an input lies: a data source, a model's name, and in step.json the
            folder of another step. Not part of identity.
        title: words for people.
        runtime_options: settings that do not change the result.
        main_process_only: whether the main process does the work while the others of a launch wait.
    """

    kind: str
    run: str
    stage: str
    seed: int
    title: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    locations: dict[str, Any]
    runtime_options: dict[str, Any] = field(default_factory=dict)
    main_process_only: bool = False

    @property
    def of_every_seed(self) -> bool:
        """Whether all seeds of a recipe share the step, which has the first of them."""
        return self.kind == "overlap"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is taken of."""
        version = version_of(self.run)
        return {
            "format": FORMAT,
            "kind": self.kind,
            "run": self.run,
            **({"version": version} if version > 1 else {}),
            "options": self.options,
            "seed": self.seed,
            "inputs": self._known_inputs,
        }

    @property
    def _known_inputs(self) -> dict[str, Any]:
        return {
            name: value.fingerprint if isinstance(value, StepSpec) else value
            for name, value in self.inputs.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the identity, 64 hex digits."""
        return artifact.fingerprint(self.identity)

    def directory(self, runs: Path) -> Path:
        """The directory of this step's results."""
        return runs / "steps" / step_folder(self.kind, self.fingerprint)

    def as_json(self, runs: Path) -> dict[str, Any]:
        """The step as step.json holds it: what it reads of other steps lies in their folders."""
        folders = {
            name: str(value.directory(runs).resolve())
            for name, value in self.inputs.items()
            if isinstance(value, StepSpec)
        }
        flat = replace(self, inputs=self._known_inputs, locations={**self.locations, **folders})
        return asdict(flat)


@dataclass(frozen=True)
class Model:
    """Weights a step starts from: a base (outside model, or a step) and perhaps a LoRA adapter."""

    base: StepSpec | None
    adapter: StepSpec | None = None
