"""A step of a plan, known by what decides its result.

A step's identity is everything that does: kind, options, seed, and the identities of its inputs.
Hardware, process counts, paths and library versions are not in it (they are recorded). Two stages,
or two recipes, that need the same step share its directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.functions import version_of

# Raised when the meaning of steps changes, so that results made before it are not taken for new.
FORMAT = 2
STEP_FOLDER = re.compile(r"[a-z0-9_-]+-[0-9a-f]{16}")  # what `step_folder` returns


def step_folder(kind: str, fingerprint: str) -> str:
    """The name of the directory that holds a step's results."""
    return f"{kind}-{fingerprint[:16]}"


@dataclass(frozen=True)
class Step:
    """One directory of results to make.

    Attributes:
        kind: what it makes: answers, contexts, corrections, pairs, train, merge, overlap,
            gap-contexts, gap-losses, or a benchmark's grades.
        run: the name of the function that makes it, given a `pipeline.step.StepRun`
            (pipeline/functions.py says where it lies).
        options: everything but the inputs that decides the result.
        inputs: name -> another step, or the identity of data or a model from outside.
        places: input name -> where it lies (a data source, a model name); not part of identity.
        title: words for people.
        alone: whether one process does the work and the others of a launch wait for it.
    """

    kind: str
    run: str
    stage: str
    seed: int
    title: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    places: dict[str, Any]
    neutral: dict[str, Any] = field(default_factory=dict)
    alone: bool = False

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is taken of."""
        inputs = {
            name: value.fingerprint if isinstance(value, Step) else value
            for name, value in self.inputs.items()
        }
        version = version_of(self.run)
        return {
            "format": FORMAT,
            "kind": self.kind,
            "run": self.run,
            **({"version": version} if version > 1 else {}),
            "options": self.options,
            "seed": self.seed,
            "inputs": inputs,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the identity, 64 hex digits."""
        return artifact.fingerprint(self.identity)

    def directory(self, runs: Path) -> Path:
        """The directory of this step's results."""
        return runs / "steps" / step_folder(self.kind, self.fingerprint)


@dataclass(frozen=True)
class Model:
    """Weights a step starts from: a base (outside model, or a step) and perhaps a LoRA adapter."""

    base: Step | None
    adapter: Step | None = None
