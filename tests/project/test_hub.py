"""A recipe whose model and rows lie on a hub: a real one of our own, the real command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import clients_of, running_hub, sums

from pipeline.plan import changes
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.shipped import read_launch
from pipeline.run.plan_text import explain
from pipeline.steps import identity

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def environment(hub, tmp_path):
    return clients_of(hub, tmp_path)


@pytest.fixture
def on_the_hub(hub, tiny_model, recipe_dict, write_recipe):
    """A recipe of repositories: rows that follow main, test rows of a tag, the tiny model."""
    hub.push("datasets", "me/rows", {"train.jsonl": sums(1), "README.md": b"Sums.\n"})
    hub.push("datasets", "me/questions", {"test.jsonl": sums(50)}, ref="v1")
    hub.push("datasets", "me/questions", {"test.jsonl": sums(60)})
    hub.push_folder("models", "me/tiny", Path(tiny_model))
    recipe_dict |= {
        "model": "me/tiny",
        "data": {"train": "me/rows", "test": {"source": "me/questions", "revision": "v1"}},
        "stages": {"base": {"method": "base"}, "sft": {"method": "sft"}},
    }
    return write_recipe(recipe_dict)


def states(plan_text):
    """'stage: title' -> state, of what `bashrac plan --commands` prints."""
    lines = [line.split(None, 1)[1] for line in plan_text.splitlines() if " - " in line]
    return dict(line.split(" - ", 1) for line in lines)


DONE = dict.fromkeys(
    (
        "base: overlap with gsm8k", "base: answers for gsm8k", "base: grade gsm8k",
        "sft: train", "sft: answers for gsm8k", "sft: grade gsm8k",
    ),
    "done",
)  # fmt: skip


@pytest.fixture
def ask(bashrac, environment, on_the_hub):
    """What a command about the recipe prints; keywords go over the environment."""

    def ask(command, *more, **env):
        done = bashrac(command, on_the_hub, *more, env={**environment, **env})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return ask


def test_when_a_data_set_moves_its_steps_run_again_and_no_others(hub, ask, injected):
    """The test rows' main moves too, but the recipe reads their tag v1."""
    first = hub.refs["datasets", "me/rows"]["main"]
    ask("run")
    assert states(ask("plan", "--commands")) == DONE
    old = ask("report")

    hub.push("datasets", "me/questions", {"test.jsonl": sums(70)})
    second = hub.push("datasets", "me/rows", {"train.jsonl": sums(2)})
    changed = "to run: changed since the last run: "
    moved = f"{changed}its input train is different: hub commit {first[:8]} -> {second[:8]}"
    assert states(ask("plan", "--commands")) == DONE | {
        "base: overlap with gsm8k": moved,
        "sft: train": moved,
        "sft: answers for gsm8k": f"{changed}its input base (sft: train) will be made again",
        "sft: grade gsm8k": f"{changed}its input answers (sft: answers for gsm8k) "
        "will be made again",
    }
    assert "not finished" in ask("report"), "numbers of the earlier rows are not this recipe's"
    ran = [line.removesuffix(": started") for line in ask("run").splitlines() if "started" in line]
    assert ran == [
        "base, overlap with gsm8k",
        "sft, train",
        "sft, answers for gsm8k",
        "sft, grade gsm8k",
    ]
    pinned = ["--set", f"data.train.revision={first}"]
    assert states(ask("plan", "--commands", *pinned)) == DONE, "the earlier results are still there"
    again, how = "## To reproduce", "--set data.train.revision="
    now = ask("report", *pinned)
    assert now.partition(again)[0] == old.partition(again)[0] and how in now.partition(again)[2]

    asked = len(hub.requests)
    for silent in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        assert states(ask("plan", "--commands", **silent)) == DONE
    other = ("--stage", "base", "--set", "generation.max_new_tokens=4")
    assert "base, answers for gsm8k: done" in ask("run", *other, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == asked
    injected("a hub's data set moved", "a commit to its main, then no hub", times=3,
             outcome="its steps ran again, no others; then what was fetched served")  # fmt: skip


@pytest.fixture
def plan_here(hub, on_the_hub, environment, monkeypatch):
    """The plan of the recipe, made in this process, as a command that starts now would make it."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("BASHRAC_CACHE", environment["BASHRAC_CACHE"])

    def make(*overrides):
        identity.hub_commit.cache_clear()
        return make_plan(load_recipe(on_the_hub, overrides))

    yield make
    identity.hub_commit.cache_clear()


def test_when_a_model_moves_the_steps_that_read_it_say_so(hub, plan_here, tmp_path):
    first = hub.refs["models", "me/tiny"]["main"]
    plan = plan_here()
    changes.remember(plan, tmp_path)
    second = hub.push("models", "me/tiny", {"config.json": b"{}"})
    moved = f"its input base is different: hub commit {first[:8]} -> {second[:8]}"
    now = states(explain(plan_here(), tmp_path, read_launch("cpu"), commands=True))
    assert [step for step, state in now.items() if moved in state] == [
        "base: answers for gsm8k",
        "sft: train",
    ]
    assert now["base: overlap with gsm8k"] == "to run: not finished yet", "it reads no model"
    pinned = plan_here(f"revision={first}")
    assert [s.fingerprint for s in pinned.steps] == [s.fingerprint for s in plan.steps]


def test_a_cache_that_cannot_be_written_to_is_no_silence_of_the_hub(
    hub, plan_here, tmp_path, monkeypatch
):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("BASHRAC_CACHE", str(tmp_path / "a file"))
    trained = next(step for step in plan_here().steps if step.kind == "train")
    assert trained.inputs["train"]["revision"] == hub.refs["datasets", "me/rows"]["main"]


def test_another_repository_is_named_and_not_its_commit(hub, plan_here, tmp_path):
    changes.remember(plan_here(), tmp_path)
    hub.push("datasets", "you/rows", {"train.jsonl": sums(9)})
    plan = plan_here("data.train=you/rows")
    now = states(explain(plan, tmp_path, read_launch("cpu"), commands=True))
    assert now["sft: train"].endswith("its input train is different: hub me/rows -> you/rows")


def test_a_repository_that_is_not_there_is_a_sentence(hub, bashrac, environment, write_recipe,
                                                      recipe_dict):  # fmt: skip
    recipe_dict["data"]["train"] = "me/nothing"
    done = bashrac("plan", write_recipe(recipe_dict), env=environment)
    assert done.returncode == 2
    assert (
        "data.train: data set 'me/nothing': no such folder here, and the hub answers" in done.stderr
    )


READ = """
import json, sys
from pipeline.data.load import load_examples
from pipeline.errors import InputError
for commit in sys.argv[1:]:
    try:
        rows = load_examples({"source": "me/rows", "split": "train", "revision": commit}, "gsm8k")
        print(rows[0].messages[0]["content"])
    except InputError as error:
        print(error)
"""


def test_without_the_hub_the_rows_are_those_of_the_very_commit_or_an_error(
    hub, environment, injected
):
    """datasets alone takes the newest rows in its cache, whichever commit was asked for."""
    first, second, third = (
        hub.push("datasets", "me/rows", {"train.jsonl": sums(n)}) for n in (1, 2, 3)
    )

    def read(*commits, **env):
        command = [sys.executable, "-c", READ, *commits]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment, **env}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    known = ["What is 0 + 1?", "What is 0 + 2?"]
    assert read(first, second) == known
    *found, refused = read(first, second, third, HF_HUB_OFFLINE="1")
    assert found == known
    assert (
        f"me/rows: commit {third} is not in the cache, and cannot be loaded from the hub" in refused
    )
    injected("the hub gone", "rows of 3 commits, 2 of them fetched", times=3,
             outcome="rows of the very commit, or a sentence")  # fmt: skip
