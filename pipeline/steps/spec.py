"""The specification of a step, and its identity.

A step's identity is everything that decides its result: kind, options, seed, and the identities of
its inputs. Hardware, process counts, paths and library versions are recorded, but not part of it.
Stages and recipes that need the same step share its directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast

from pipeline.steps import artifact
from pipeline.steps.functions import version_of
from pipeline.steps.options import RuntimeOptions

# Raised when the meaning of all steps changes, so that older results are not reused.
FORMAT = 2
# The type of a step's options: pipeline/steps/options.py
OptionsT = TypeVar("OptionsT", bound=Mapping[str, Any], covariant=True)
STEP_FOLDER = re.compile(r"[a-z0-9_-]+-[0-9a-f]{16}")  # what `step_folder` returns


def step_folder(kind: str, fingerprint: str) -> str:
    """The name of the directory of a step's results."""
    return f"{kind}-{fingerprint[:16]}"


class Place(TypedDict):
    """Where data from outside lies: the keys of a `Source`, pinned to the commit it was at."""

    source: str
    file: str | None
    name: str | None
    split: str
    revision: str | None
    skip: int
    limit: int | None
    skip_unusable: bool
    share: float | None
    parts: list[Place] | None


class Identity(TypedDict):
    """What a step is known by; its fingerprint is the digest of this."""

    format: int
    kind: str
    run: str
    version: NotRequired[int]
    options: Mapping[str, Any]
    seed: int
    inputs: dict[str, Any]


@dataclass(frozen=True)
class StepSpec(Generic[OptionsT]):
    """One directory of results to make: as it is planned, and as step.json hands it to a worker.

    Attributes:
        kind: what it makes: answers, contexts, corrections, pairs, train, merge, overlap,
            gap-contexts, gap-losses, or a benchmark's grades.
        run: the name of the function that makes it, given a `pipeline.steps.context.StepContext`;
            pipeline/steps/functions.py maps it to a module.
        title: shown to users.
        options: everything except the inputs that decides the result.
        inputs: name -> another step (its fingerprint in step.json), or the identity of external
            data or of an external model.
        locations: name -> where to find an input: the `Place` of data, a model's name or, in
            step.json, another step's folder. Not part of the identity.
        runtime_options: settings that do not change the result.
        main_process_only: whether the launch's other processes wait while the main one works.
    """

    kind: str
    run: str
    stage: str
    seed: int
    title: str
    options: OptionsT
    inputs: dict[str, Any]
    locations: dict[str, Any]
    runtime_options: RuntimeOptions = field(default_factory=lambda: cast(RuntimeOptions, {}))
    main_process_only: bool = False

    @property
    def of_every_seed(self) -> bool:
        """Whether all seeds of a recipe share the step, which has the first of them."""
        return self.kind == "overlap"

    @cached_property
    def identity(self) -> Identity:
        """What the fingerprint is computed from."""
        identity: Identity = {
            "format": FORMAT,
            "kind": self.kind,
            "run": self.run,
            "options": self.options,
            "seed": self.seed,
            "inputs": self._known_inputs,
        }
        if (version := version_of(self.run)) > 1:
            identity["version"] = version
        return identity

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
        """The step as written to step.json, with the folders of the steps it reads as locations."""
        folders = {
            name: str(value.directory(runs).resolve())
            for name, value in self.inputs.items()
            if isinstance(value, StepSpec)
        }
        flat = replace(self, inputs=self._known_inputs, locations={**self.locations, **folders})
        return asdict(flat)


@dataclass(frozen=True)
class Model:
    """A step's initial weights: a base (None: the recipe's model) and perhaps a LoRA adapter."""

    base: StepSpec | None
    adapter: StepSpec | None = None
