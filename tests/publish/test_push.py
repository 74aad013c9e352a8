"""Finished stages on the hub: a real one of our own, and what others read from it."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, tiny_recipe
from hub_server import clients_of, problems_of_card, running_hub, sums
from huggingface_hub import ModelCard

from eval.report.collect import collect
from pipeline.publish.card import METHODS, below_runs, make_card
from pipeline.publish.stage import find_stage
from pipeline.recipe import registry
from pipeline.steps import artifact

TOKEN = "hf_of_this_test_only"
NASTY = "---\n```\n| <b>*Solve*</b> `it`. ---"
RECIPE = tiny_recipe("me/tiny") | {
    "name": "handed",
    "system": NASTY,
    "data": {
        "train": {"source": "me/rows"},
        "test": {"source": "private folder/questions.jsonl", "limit": 4},
    },
    "stages": {
        "base": {"method": "base"},
        "sft": {"method": "sft"},
        "adapter": {"method": "sft", "lora": {"r": 2, "target_modules": "all-linear"}},
    },
    "published": {"sft": {"gsm8k": 1.0}},
}


@pytest.fixture(scope="module")
def handed(tmp_path_factory, tiny_model):
    """A hub, and a recipe of its model and rows, whose stages are finished."""
    folder = tmp_path_factory.mktemp("handed")
    (folder / "private folder").mkdir()
    (folder / "private folder/questions.jsonl").write_bytes(sums(50))
    (folder / "mine.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with running_hub() as hub:
        hub.token = TOKEN
        hub.push_folder("models", "me/tiny", Path(tiny_model))
        hub.push("datasets", "me/rows", {"train.jsonl": sums(0)})

        def run(*command, token=TOKEN, cwd=folder):
            env = {**os.environ, "PYTHONPATH": str(ROOT), **clients_of(hub, folder)}
            env |= {"HF_TOKEN": token} if token else {}
            return subprocess.run(
                [sys.executable, "-P", *command], cwd=cwd, env=env, capture_output=True, text=True
            )

        done = run("-m", "pipeline", "run", "mine.yaml")
        assert done.returncode == 0, done.stdout + done.stderr

        def push(stage, to, *more, recipe="mine.yaml", **options):
            command = ["-m", "pipeline", "push", f"{recipe}:{stage}", "--to", to, *more]
            return run(*command, **options)

        yield SimpleNamespace(hub=hub, folder=folder, run=run, push=push)


def held(hub, name):
    """What main of a model's repository holds."""
    return hub.commits["models", name][hub.refs["models", name]["main"]]


def test_a_dry_run_shows_what_it_would_send_and_sends_nothing(handed):
    asked = len(handed.hub.requests)
    done = handed.push("sft", "me/shown")
    assert done.returncode == 0, done.stderr
    assert {method for method, _ in handed.hub.requests[asked:]} <= {"GET", "HEAD"}
    assert ("models", "me/shown") not in handed.hub.commits
    said = done.stdout
    assert f"to     {handed.hub.url}/me/shown, which does not exist yet; it will be public" in said
    assert "--- README.md\n---\nbase_model: me/tiny" in said and "model.safetensors" in said
    assert said.endswith("bashrac push mine.yaml:sft --to me/shown --yes\n")
    for secret in (TOKEN, str(handed.folder), "private folder", f'"{platform.node()}"', '"host"'):
        assert secret not in said


LOAD = """
import sys, torch
from pathlib import Path
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from pipeline.plan.load import load_recipe
from pipeline.models.load import load_model
from pipeline.plan.plan import make_plan

plain, adapter, base = sys.argv[1:]
ids = AutoTokenizer.from_pretrained("me/plain")("What is 3 + 4?", return_tensors="pt").input_ids
for sent, kept in (
    (AutoModelForCausalLM.from_pretrained("me/plain"), load_model(plain)),
    (AutoPeftModelForCausalLM.from_pretrained("me/adapter"), load_model(base, adapter=adapter)),
):
    assert torch.equal(sent(ids).logits, kept(ids).logits)
plan = make_plan(load_recipe("recipe.yaml"))
print([model.base.fingerprint for model in plan.models.values()])
"""


def test_what_was_sent_loads_as_it_was_trained_and_its_recipe_makes_it_again(handed, tmp_path):
    folders = {}
    for stage, to, count in (("sft", "me/plain", 9), ("adapter", "me/adapter", 8)):
        done = handed.push(stage, to, "--yes", "--private")
        assert done.returncode == 0 and f"sent {count} files" in done.stdout, done.stderr
        records = handed.folder.glob("runs/steps/train-*/record.json")
        folders[stage] = next(
            file.parent
            for file in records
            if json.loads(file.read_text())["fingerprint"]
            in held(handed.hub, to)["README.md"].decode()
        )
    assert len(handed.hub.commits["models", "me/plain"]) == 2, "its making, and one commit"
    assert "me/adapter" in handed.hub.private and "seed 0" in handed.hub.messages[-1]
    config = json.loads(held(handed.hub, "me/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/tiny"
    assert config["revision"] == handed.hub.refs["models", "me/tiny"]["main"]

    (tmp_path / "recipe.yaml").write_bytes(held(handed.hub, "me/plain")["recipe.yaml"])
    (tmp_path / "questions.jsonl").write_bytes(sums(50))
    done = handed.run("-c", LOAD, folders["sft"], folders["adapter"], "me/tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(
        [artifact.read_record(folders["sft"])["fingerprint"]]
    )


def test_a_repository_that_holds_files_keeps_them_and_a_dry_run_says_so(handed):
    weights = {"old.safetensors": b"old", "README.md": b"old", ".gitattributes": b""}
    handed.hub.push("models", "me/old", weights)
    said = handed.push("adapter", "me/old").stdout
    assert "replaced there: README.md\n" in said
    assert "left as it is, never removed: .gitattributes, old.safetensors\n" in said
    assert handed.push("adapter", "me/old", "--yes").returncode == 0
    assert held(handed.hub, "me/old")["old.safetensors"] == b"old"
    assert held(handed.hub, "me/old")["README.md"] != b"old"


def test_a_card_holds_numbers_with_n_and_interval_and_no_text_breaks_it(handed):
    said = handed.push("sft", "me/shown").stdout
    text = said.partition("--- README.md\n")[2].partition("\n--- end of README.md")[0]
    card = ModelCard(text)
    assert card.data.base_model == "me/tiny" and card.data.datasets == ["me/rows"]
    assert card.data.library_name == "transformers" and "license" not in card.data.to_dict()
    assert card.data.eval_results is None, "its test rows are on no hub"
    assert problems_of_card(text) == []
    (line,) = re.findall(r"^\| gsm8k \| strict \| (.*) \|$", card.text, re.M)
    value, versus, n, outcomes = line.split(" | ")
    assert re.fullmatch(r"[\d.]+ % \[[\d.]+, [\d.]+\]", value) and n == "4"
    assert re.match(r"[+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\] not significant", versus), versus
    assert sum(map(int, re.findall(r"\d+", outcomes))) == 4
    commit = handed.hub.refs["datasets", "me/rows"]["main"]
    assert f"commit `{commit}` | 6 |" in card.text
    assert "test, gsm8k | `questions.jsonl`" in card.text
    recipe = yaml.safe_load(card.text.partition("````yaml\n")[2].partition("\n````")[0])
    assert recipe["system"] == NASTY and list(recipe["stages"]) == ["sft"]
    assert recipe["data"]["train"]["revision"] == commit and "published" not in recipe


@pytest.mark.parametrize(
    ("arguments", "options", "code", "said"),
    [
        (("sft", "me/x", "--yes"), {"token": None}, 2, "there is no token: set HF_TOKEN"),
        (("sft", "x"), {}, 2, "write it as user/name"),
        (("sft", "me/a b"), {}, 2, "write it as user/name"),
        (("sft", "me/tiny", "--private"), {}, 2, "exists and is public"),
        (("sft", "me/x", "--yes"), {"token": "hf_another_token"}, 1, "the hub did not take me/x"),
        (("base", "me/x"), {}, 2, "trains nothing"),
        (("sft", "me/x", "--seed", "3"), {}, 2, "has no seed 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_sent_is_a_sentence(handed, arguments, options, code, said):
    done = handed.push(*arguments, **options)
    assert done.returncode == code and said in done.stderr
    assert "Traceback" not in done.stderr and "hf_" not in done.stderr
    assert ("models", "me/x") not in handed.hub.commits


def test_every_method_of_the_papers_has_its_two_sentences():
    """One that is added, and has none, is what its module says first."""
    assert {"sft", "neftune", "bash", "rac", "spin", "dpo"} == set(METHODS)
    assert set(METHODS) - {"neftune"} <= set(registry.METHODS)
    for sentences in METHODS.values():
        assert len(re.findall(r"\.(?: |$|\))", re.sub(r"et al\.|\(http.*?\)", "", sentences))) >= 2


def test_the_card_of_a_stage_that_nothing_comes_before_compares_it_with_nothing(
    recipe_dict, write_recipe, run_steps_here
):
    stages = {"sft": {"method": "sft"}, "other": {"method": "sft", "trainer": {"max_steps": 1}}}
    path = write_recipe(recipe_dict | {"stages": stages})
    plan, runs = run_steps_here(path)
    assert collect(plan, runs).rows[1].difference is not None
    text = str(make_card(find_stage(f"{path}:other", runs), "me/x"))
    assert "| gsm8k | strict |" in text and "vs `" not in text and "not significant" not in text


def test_an_adapter_on_a_folder_of_this_machine_is_refused_with_a_way_out(
    recipe_dict, write_recipe, run_steps_here, bashrac
):
    recipe = recipe_dict | {"lora": {"r": 2, "target_modules": "all-linear"}, "evaluate": []}
    path = write_recipe(recipe | {"stages": {"sft": {"method": "sft"}}})
    run_steps_here(path)
    done = bashrac("push", f"{path}:sft", "--to", "me/x", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert "bashrac merge RECIPE:STAGE OUT" in done.stderr, done.stderr


def test_a_text_that_names_a_folder_of_this_machine_is_not_sent(
    recipe_dict, write_recipe, run_steps_here, bashrac, tmp_path
):
    recipe = recipe_dict | {"system": f"Solve what is in {tmp_path}/sums.", "evaluate": []}
    path = write_recipe(recipe | {"stages": {"sft": {"method": "sft"}}})
    run_steps_here(path)
    done = bashrac("push", f"{path}:sft", "--to", "me/x", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert f"README.md would name the folder {tmp_path} of this machine" in done.stderr


def test_a_warning_that_names_a_file_of_a_step_does_not_stop_the_push(tmp_path):
    said = f"they are listed in {tmp_path}/kept/steps/overlap-1/overlaps.jsonl"
    shown = below_runs(said, tmp_path / "kept")
    assert shown == "they are listed in runs/steps/overlap-1/overlaps.jsonl"
