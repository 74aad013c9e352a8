"""What a step is known by does not depend on where its function lies."""

import json

import pytest
from conftest import ROOT

from pipeline.errors import InputError
from pipeline.plan.load import load_recipe, variants_of
from pipeline.plan.plan import make_plan
from pipeline.steps import functions
from pipeline.steps.functions import Function, function_of, version_of

GOLDEN = json.loads((ROOT / "tests" / "golden" / "fingerprints.json").read_text())
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fingerprint_of(recipe, variant):
    """As `bashrac report` prints it; what lies on the hub is pinned to a commit."""
    roles = {
        "gsm8k-mistral-7b": ["revision", "data.train.revision", "data.test.revision"],
        "tldr-pythia-1b": [
            "revision", "data.train.revision", "data.test.revision", "data.preferences.revision",
        ],
    }  # fmt: skip
    pinned = [f"{key}='{COMMIT}'" for key in roles.get(recipe, [])]
    return make_plan(load_recipe(recipe, pinned, variant)).fingerprint[:16]


@pytest.mark.parametrize(
    ("recipe", "variant"),
    [
        (recipe, variant)
        for recipe in ("demo", "gsm8k-mistral-7b", "study-chat", "study-maths", "tldr-pythia-1b")
        for variant in variants_of(recipe) or [None]
    ],
)
def test_no_fingerprint_of_a_shipped_recipe_changes(recipe, variant):
    """Documents quote them, and people have results under them. A recipe's edit edits this list."""
    assert fingerprint_of(recipe, variant) == GOLDEN[f"{recipe} {variant}"]


@pytest.mark.parametrize("name", sorted(functions._FUNCTIONS))
def test_every_function_lies_where_the_table_says(name):
    assert callable(function_of(name))


def test_a_function_that_moves_keeps_its_steps_and_a_new_version_makes_them_anew(monkeypatch):
    name = "pipeline.stages.bash:write_contexts"
    before = [step for step in make_plan(load_recipe("demo")).steps if step.run == name]
    version = version_of(name)
    assert before and before[0].identity.get("version", 1) == version
    monkeypatch.setitem(functions._FUNCTIONS, name, Function("pipeline.elsewhere:write", version))
    moved = [step for step in make_plan(load_recipe("demo")).steps if step.run == name]
    assert [one.fingerprint for one in moved] == [one.fingerprint for one in before]
    monkeypatch.setitem(functions._FUNCTIONS, name, Function(name, version + 1))
    newer = [step for step in make_plan(load_recipe("demo")).steps if step.run == name]
    assert newer[0].identity["version"] == version + 1
    assert newer[0].fingerprint != before[0].fingerprint


def test_code_from_elsewhere_is_no_step():
    """A step.json is a file that anybody may have written."""
    with pytest.raises(InputError, match="outside bashrac"):
        function_of("os:remove")
