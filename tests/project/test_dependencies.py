"""What is installed is what is declared, pinned, and under a licence that lets it be used. Offline."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.licences import (
    OF_CUDA,
    ROOT,
    closure,
    dependencies,
    extras,
    is_allowed,
    licence_of,
    licences,
)

# Their options or behaviour changed within memory in a way that changes results or breaks a call.
MOVING = (
    "datasets", "deepspeed", "huggingface_hub", "openai", "peft", "scikit-learn", "transformers",
    "trl", "vllm",
)  # fmt: skip


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): number for name, number in pairs}


@pytest.fixture(scope="module")
def needed():
    """Every requirement, ours and those of packages we need, for running and for development."""
    return list(closure([*dependencies(), *dependencies("dev")]))


def test_installed_packages_satisfy_what_they_ask_of_each_other(needed, injected):
    wrong = []
    for owner, requirement in needed:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{owner} needs {requirement}, installed is {found}")
    assert len(needed) > 100 and wrong == []
    injected("packages that do not fit together", "requirements compared", len(needed), "none")


def test_every_package_is_pinned_at_a_version_that_all_accept(needed):
    pinned, wrong = pins(), []
    for owner, requirement in needed:
        pin = pinned.get(canonicalize_name(requirement.name))
        if OF_CUDA.fullmatch(requirement.name):
            continue
        if pin is None or not requirement.specifier.contains(pin, prereleases=True):
            wrong.append(f"{owner} needs {requirement}, constraints.txt has {pin}")
    assert wrong == []


def test_the_versions_tested_here_are_the_pinned_ones(needed):
    pinned = pins()
    names = {canonicalize_name(requirement.name) for _, requirement in needed} & pinned.keys()
    assert len(names) > 80
    assert {name: Version(version(name)).public for name in names} == {
        name: pinned[name] for name in names
    }


@pytest.mark.parametrize("package", MOVING)
def test_what_is_known_to_move_has_an_upper_bound(package):
    known = [*dependencies(), *(one for extra in extras() for one in dependencies(extra))]
    bounds = {one.name: one.specifier for one in known}
    assert any(bound.operator in ("<", "~=") for bound in bounds[package])
    assert not bounds[package].contains("99.0")


def test_scikit_learn_stays_below_the_version_that_changes_its_l1_call():
    (bound,) = (one.specifier for one in dependencies() if one.name == "scikit-learn")
    assert bound.contains("1.9.9") and not bound.contains("1.10.0")


def test_every_package_needed_to_run_has_a_licence_that_lets_it_be_used(injected):
    found = licences()
    wrong = [f"{name}: {licence}" for name, licence in found.items() if not is_allowed(licence)]
    assert [line for line in wrong if not OF_CUDA.fullmatch(line.split(":")[0])] == []
    assert len(found) > 50
    injected("package under an unknown licence", "licences read", len(found), "none")


@pytest.mark.parametrize(
    "licence", ["unknown", "GPL-3.0-only", "MIT AND AGPL-3.0", "SSPL-1.0", "x"]
)
def test_other_licences_are_noticed(licence):
    assert not is_allowed(licence)
    assert is_allowed("(MIT OR Apache-2.0) AND BSD-3-Clause")


def test_the_list_of_licences_holds_everything_that_is_installed():
    """It may hold more: what other platforms and versions of Python need."""
    text = (ROOT / "docs/licences.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", text, re.M))
    found = {name: text for name, text in licences().items() if not OF_CUDA.fullmatch(name)}
    assert found.items() <= listed.items(), "python -m benchmarks.licences > docs/licences.md"


def test_every_direct_dependency_is_explained(injected):
    text = (ROOT / "docs/dependencies.md").read_text().lower()
    for extra in (None, *extras()):
        for one in dependencies(extra):
            assert re.search(rf"\b{re.escape(one.name)}\b", text), f"{one.name}: what is it for?"
    assert licence_of("trl") == "Apache-2.0"
    injected("dependency without a reason", "docs/dependencies.md", len(dependencies()), "none")
