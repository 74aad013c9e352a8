"""Keys, code that comes with models, recipes written to do harm: nothing runs, leaves or leaks."""

import ast
import base64
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import ROOT, problems_of
from judge_servers import completion

from pipeline.errors import InputError, RecipeError
from pipeline.models import load
from pipeline.models.trust import Trust
from pipeline.plan.check import SHARED_FOLDERS
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.trl_fields import fields_of, problem_with
from pipeline.recipe.trl_rules import LORA_OWNED, OWNED

SOURCES = sorted(
    path for folder in ("pipeline", "eval", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)

# A model with code of its own: importing it leaves a mark.
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("imported")


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


def generate(*arguments, **options):
    raise SystemExit("the model's own generate was called")
"""


class Payload:
    """Unpickling it without care leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


@pytest.fixture
def mark(tmp_path):
    """A file that code of a model's folder would write."""
    return tmp_path / "mark"


@pytest.fixture
def small(recipe_dict):
    """The smallest recipe that trains and answers."""
    stages = {"sft": {"method": "sft"}}
    return recipe_dict | {"stages": stages}


@pytest.fixture
def with_code(tiny_model, tmp_path, mark):
    """A copy of a model whose files name code of their own, under a model type."""

    def make(model_type: str) -> Path:
        folder = tmp_path / f"with-code-{model_type}"
        shutil.copytree(tiny_model, folder)
        (folder / "custom_generate").mkdir()
        for file in ("modeling_own.py", "custom_generate/generate.py"):
            (folder / file).write_text(CODE.format(mark=str(mark)))
        own = {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
        }
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": model_type, "auto_map": own}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def pickled(tiny_model, tmp_path, mark):
    """A copy of a model whose only weights are pickled: as they should be, or with a payload."""

    def make(*, payload: bool) -> Path:
        import torch
        from safetensors.torch import load_file

        folder = tmp_path / f"pickled-{payload}"
        shutil.copytree(tiny_model, folder)
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        if payload:
            (folder / "pytorch_model.bin").write_bytes(
                pickle.dumps({"a": Payload(mark)}, protocol=2)
            )
        else:
            torch.save(weights, folder / "pytorch_model.bin")
        return folder

    return make


# --- code of a model ----------------------------------------------------------------------------


def test_code_of_a_model_runs_only_where_the_recipe_says_so(
    bashrac, small, write_recipe, with_code, mark, tmp_path, injected
):
    path = write_recipe(small | {"model": str(with_code("own-llama"))})
    own = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    for command in ("check", "plan"):
        assert bashrac(command, path, env=own).returncode == 0
    refused = bashrac("run", path, env=own)
    assert refused.returncode == 2 and "write trust_remote_code: true" in refused.stderr
    assert not mark.exists()
    asked = bashrac("run", path, "--set", "trust_remote_code=true", env=own)
    assert asked.returncode == 0, asked.stderr
    assert mark.exists() and "100" not in asked.stderr
    before, after = load_recipe(path), load_recipe(path, ["trust_remote_code=true"])
    prints = [{step.fingerprint for step in make_plan(one).steps} for one in (before, after)]
    shared = {step.fingerprint for step in make_plan(before).steps if step.kind == "overlap"}
    assert prints[0] & prints[1] == shared, "another class may compute something else"
    injected("model with code of its own", "check, plan, run", 3, "never imported, a sentence")


def test_a_known_class_is_loaded_though_the_folder_offers_code(with_code, mark, injected):
    """Also guards against transformers asking on the terminal, as it does where nothing is said."""
    folder = str(with_code("llama"))
    loaded = load.load_model(folder)
    tokenizer, config = load.load_tokenizer(folder), load.load_config(folder)
    assert type(loaded).__module__.startswith("transformers.models.llama")
    assert (load.end_ids(folder), config.model_type) == ((2,), "llama")
    loaded.generate(**tokenizer("2 + 3", return_tensors="pt"), max_new_tokens=1)
    assert not mark.exists()
    injected("model with code of its own", "known class", 1, "never imported, loads")


def test_a_judge_is_trusted_with_nothing(
    recipe_dict, write_recipe, with_code, pickled, mark, injected
):
    from eval.judge.local import LocalJudge

    with pytest.raises(InputError, match="Python code"):
        _ = LocalJudge(str(with_code("own-llama")), device="cpu")._model
    pickled_folder = pickled(payload=True)
    with pytest.raises(InputError, match="only pickled weights"):
        LocalJudge(str(pickled_folder))
    judged = recipe_dict | {"evaluate": ["tldr"], "judge": f"local:{pickled_folder}"}
    assert "only pickled weights" in problems_of(write_recipe(judged))["judge"]
    assert not mark.exists()
    injected("judge with code or pickled weights", "check, load", 3, "never run, a sentence")


def test_vllm_is_told_what_is_trusted(tiny_model, pickled):
    from pipeline.decoding.vllm_engine import VllmEngine

    told = [
        VllmEngine(tiny_model)._settings["llm"],
        VllmEngine(tiny_model, trust=Trust(True, True)),
    ]
    assert (told[0]["trust_remote_code"], told[0]["load_format"]) == (False, "safetensors")
    trusting = told[1]._settings["llm"]
    assert (trusting["trust_remote_code"], trusting["load_format"]) == (True, "auto")
    with pytest.raises(InputError, match="only pickled weights"):
        VllmEngine(str(pickled(payload=False)))


# --- pickled weights ----------------------------------------------------------------------------


def test_pickled_weights_are_refused_before_anything_runs(
    small, write_recipe, pickled, mark, injected
):
    folder = str(pickled(payload=True))
    path = write_recipe(small | {"model": folder})
    found = problems_of(path)["model"]
    assert "holds only pickled weights (pytorch_model.bin), which can run code" in found
    assert "convert them to safetensors" in found and "pickled_weights: true" in found
    with pytest.raises(InputError, match="only pickled weights"):
        load.load_model(folder)
    assert not mark.exists()
    injected("pickled weights with a payload", "check, load", 2, "never read, a sentence")


def test_a_payload_does_not_run_even_where_pickled_weights_are_trusted(pickled, mark, injected):
    with pytest.raises(InputError, match="does not load"):
        load.load_model(str(pickled(payload=True)), trust=Trust(pickles=True))
    assert not mark.exists()
    injected("pickled weights with a payload", "trusted", 1, "never run, a sentence")


def test_trusted_pickled_weights_are_those_of_the_recipes_model_only(
    small, write_recipe, pickled, tiny_model, run_steps_here
):
    import torch

    folder = str(pickled(payload=False))
    path = write_recipe(small | {"model": folder, "pickled_weights": True})
    plan, runs = run_steps_here(path)
    kept = {file.suffix for file in runs.rglob("*") if file.is_file()}
    assert ".safetensors" in kept and not kept & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
    told = {
        step.stage + step.kind: "pickled_weights" in step.runtime_options for step in plan.steps
    }
    assert told["sfttrain"] and not told["sftanswers"], told
    expected, found = (
        load.load_model(tiny_model),
        load.load_model(folder, trust=Trust(pickles=True)),
    )
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(one, other)


def test_evaluate_takes_the_same_two_keys_with_set(pickled):
    from pipeline.plan.from_model import recipe_for
    from pipeline.plan.load import check_recipe

    where = {"data": "builtin:maths", "limit": 1, "task": None, "judge": None, "judge_url": None}
    raw = recipe_for(str(pickled(payload=False)), ["gsm8k"], **where)
    with pytest.raises(RecipeError, match="only pickled weights"):
        check_recipe(raw, [], name="evaluate")
    trusting = ["pickled_weights=true", "trust_remote_code=true"]
    (step, _) = make_plan(check_recipe(raw, trusting, name="evaluate")).steps
    assert (step.options["trust_remote_code"], step.runtime_options["pickled_weights"]) == (
        True,
        True,
    )


def test_an_index_or_a_config_that_names_a_pickle_is_refused(tiny_model, tmp_path, mark, injected):
    index = {"weight_map": {"lm_head.weight": "rest.bin"}}
    for name, content in (("model.safetensors.index.json", index), ("config.json", {"transformers_weights": "adapter_model.bin"})):  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        if name != "config.json":
            (folder / "model.safetensors").unlink()
        before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(before | content))
        for file in ("rest.bin", "adapter_model.bin"):
            (folder / file).write_bytes(pickle.dumps({"a": Payload(mark)}, protocol=2))
        with pytest.raises(InputError, match="only pickled weights"):
            load.load_model(str(folder))
    assert not mark.exists()
    injected("pickle named by an index or a config", "load", 2, "never read, a sentence")


def test_a_pickled_adapter_is_refused_and_read_where_it_is_trusted(
    tiny_model, tmp_path, mark, injected
):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    adapted = get_peft_model(
        load.load_model(tiny_model), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    safe, pickled = (
        tmp_path / "adapter" / f"adapter_model.{end}" for end in ("safetensors", "bin")
    )
    torch.save(load_file(safe), pickled)
    safe.unlink()
    adapter = str(tmp_path / "adapter")
    for where in ({"base": tiny_model, "adapter": adapter}, {"base": adapter}):
        with pytest.raises(InputError, match=r"only pickled weights \(adapter_model.bin\)"):
            load.load_model(**where)
        assert load.load_model(**where, trust=Trust(pickles=True)).peft_config["default"].r == 2
    pickled.write_bytes(pickle.dumps({"a": Payload(mark)}, protocol=2))
    with pytest.raises(InputError, match="does not load"):
        load.load_model(adapter, trust=Trust(pickles=True))
    assert not mark.exists()
    injected("pickled adapter", "load", 3, "never read, a sentence")


def test_a_hub_model_without_safetensors_is_refused(
    pickled, hub_cache, tmp_path, monkeypatch, mark
):
    """In a cache as the hub's client leaves it, with no hub to be reached."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(pickled(payload=True), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    with pytest.raises(InputError, match="no safetensors"):
        load.load_model("some/model", revision=commit)
    assert not mark.exists()


def test_a_script_among_the_rows_of_a_folder_is_not_run(tmp_path, mark, injected):
    from pipeline.data.load import load_examples
    from pipeline.recipe.schema import Source

    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(mark=str(mark)))
    (folder / "rows.jsonl").write_text('{"question": "2 + 3?", "answer": "#### 5"}\n')
    with pytest.raises(InputError, match="holds a Python script, which is not run"):
        load_examples(Source(source=str(folder), split="train"), "gsm8k")
    assert not mark.exists()
    injected("script in a folder of rows", "load", 1, "never run, a sentence")


# --- YAML, shells, paths ------------------------------------------------------------------------


def test_yaml_that_asks_for_python_is_refused(
    bashrac, small, write_recipe, tmp_path, mark, injected
):
    evil = f"!!python/object/apply:os.system ['touch {mark}']"
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: {evil}\n")
    template = tmp_path / "template.yaml"
    template.write_text(f"prompt: {evil}\n")
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"num_processes: {evil}\n")
    judged = small | {"evaluate": ["tldr"], "judge": "local:m", "benchmarks": {"tldr": {"template": str(template)}}}  # fmt: skip
    attempts = [
        ("check", path),
        ("check", "demo", "--set", f"name={evil}"),
        ("check", write_recipe(judged)),
        ("plan", write_recipe(small, "small.yaml"), "--launch", launch),
    ]
    for attempt in attempts:
        done = bashrac(*attempt)
        assert done.returncode == 2 and "YAML" in done.stderr, done
        assert "Traceback" not in done.stderr
    assert not mark.exists()
    injected(
        "YAML that asks for Python", "recipe, --set, template, launch", 4, "never run, a sentence"
    )


def test_text_for_a_shell_stays_text(bashrac, small, tiny_model, write_recipe, tmp_path, injected):
    """In every text that a recipe or the command line can hold and that may be any text."""
    evil = "a b; touch pwned1 $(touch pwned2) `touch pwned3` | touch pwned4 & '\" \n touch pwned5"
    folder = tmp_path / evil
    shutil.copytree(tiny_model, folder / "model")
    rows, bad, launch = (folder / name for name in ("rows.jsonl", "bad.jsonl", "launch.yaml"))
    row = json.dumps({"question": f"2 + 3? {evil}", "answer": f"{evil}\n#### 5"}) + "\n"
    rows.write_text(row + row)
    bad.write_text(row + "{}\n")
    launch.write_text((ROOT / "accelerate_configs" / "cpu.yaml").read_text())
    recipe = small | {
        "model": str(folder / "model"),
        "system": evil,
        "data": {role: {"source": str(rows)} for role in ("train", "test")},
        "launch": str(launch),
        "judge": {"engine": "local", "model": evil, "revision": evil},
        "stages": {"rac": {"method": "rac", "shown_prompt": f"{{prompt}} {{reference}} {evil}"}},
        "published": {"rac": {"gsm8k": evil}},
    }
    recipe["trainer"] |= {"run_name": evil, "project": evil, "optim_args": f"a={evil}"}
    path = write_recipe(recipe, f"{evil}.yaml")
    before = files_below(tmp_path)
    given = ("run", path, "--runs", folder / "runs", "--launch", launch)
    failing = bashrac(*given, "--set", f"data.train.source={json.dumps(str(bad))}")
    assert failing.returncode == 2 and "bad.jsonl:2" in failing.stderr, failing.stderr
    retry = failing.stderr.split("retry: ", 1)[1]
    pasted = ["sh", "-c", f'bashrac() {{ printf "%s\\0" "$@"; }}; {retry}']
    told = subprocess.run(pasted, cwd=tmp_path, capture_output=True, text=True)
    assert told.stdout.split("\0")[:2] == ["run", str(path)] and told.returncode == 0
    done = bashrac(*given, "--stage", "rac")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_below(tmp_path) == before
    injected("text for a shell", "places of a recipe and its command", 15, "nothing executed")


def files_below(folder):
    """Everything below a folder but what lies in a runs folder."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in found if "runs" not in path.parts}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": ".."}, "name"),
        ({"name": "../out"}, "name"),
        ({"name": "/tmp/out"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"name": "steps"}, "name"),
        ({"name": "Judge"}, "name"),
        ({"name": "trackers"}, "name"),
        ({"stages": {"../out": {"method": "sft"}}}, "stages.../out"),
        ({"stages": {"/out": {"method": "sft"}}}, "stages./out"),
        ({"stages": {"a\n": {"method": "sft"}}}, "stages.a\n"),
        ({"stages": {"sft": {"method": "../sft"}}}, "stages.sft.method"),
        ({"evaluate": ["../gsm8k"]}, "evaluate"),
        ({"benchmarks": {"../gsm8k": {}}}, "benchmarks.../gsm8k"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_name_cannot_leave_the_runs_folder(recipe_dict, write_recipe, change, key):
    assert key in problems_of(write_recipe(recipe_dict | change))


# Texts and mappings among the options of trl and peft that name no file, folder, repository or
# module that a step would write to, upload to or import; whoever raises a version looks at new ones.
NO_PLACE = (
    "accelerator_config activation_checkpointing_kwargs dataloader_multiprocessing_context "
    "ddp_backend debug eval_strategy f_divergence_type gradient_checkpointing_kwargs include_for_metrics "
    "include_num_input_tokens_seen label_names length_column_name liger_kernel_config log_level "
    "log_level_replica loss_type loss_weights lr_scheduler_kwargs lr_scheduler_type "
    "metric_for_best_model optim optim_args optim_target_modules packing_strategy "
    "pad_to_multiple_of project run_name save_strategy torch_compile_backend torch_compile_mode "
    "train_sampling_strategy "
    "alora_invocation_tokens alpha_pattern bias exclude_modules init_lora_weights kasa_config "
    "layer_replication layers_pattern layers_to_transform loftq_config modules_to_save "
    "monteclora_config rank_pattern runtime_config target_modules target_parameters task_type "
    "trainable_token_indices use_bdlora velora_config"
)
HARMLESS = set(NO_PLACE.split())


def test_every_text_option_is_refused_or_known_to_name_no_place():
    """`report_to` is neither: of trackers it takes only those that write below the runs folder."""
    for options_class in ("trl.SFTConfig", "trl.DPOConfig", "peft.LoraConfig"):
        owned = LORA_OWNED if options_class == "peft.LoraConfig" else OWNED
        for name, annotation in fields_of(options_class).items():
            words = {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}
            if words <= {"bool", "int", "float", "Optional"}:
                continue
            if name not in HARMLESS | {"report_to"}:
                problem = problem_with(options_class, name, "/tmp/out")
                assert name in owned and "is set by bashrac" in problem, (options_class, name)
    for tracker in ("all", "mlflow", "dvclive", ["wandb", "clearml"], "/tmp/out"):
        assert "give of none, tensorboard" in problem_with("trl.SFTConfig", "report_to", tracker)
    for tracker in ("none", ["none"], "tensorboard"):  # the others need be installed
        assert problem_with("trl.SFTConfig", "report_to", tracker) is None


def test_links_are_read_and_never_written_through(small, tmp_path, write_recipe, run_steps_here):
    """A link where a result belongs is replaced; what it points to stays as it was."""
    outside = tmp_path / "outside.txt"
    outside.write_text("as it was")
    rows = tmp_path / "real.jsonl"
    rows.write_text(json.dumps({"question": "2 + 3?", "answer": "#### 5"}) + "\n")
    (tmp_path / "link.jsonl").symlink_to(rows)
    link = {"source": str(tmp_path / "link.jsonl")}
    path = write_recipe(small | {"data": {"train": link, "test": link}})
    plan = make_plan(load_recipe(path))
    for step in plan.steps:
        for name in ("result.json", "history.json"):
            place = step.directory(tmp_path / "runs") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(outside)
    before = rows.read_text()
    run_steps_here(path)
    assert (outside.read_text(), rows.read_text()) == ("as it was", before)


# --- keys ---------------------------------------------------------------------------------------

CANARIES = {
    "BASHRAC_JUDGE_KEY": "sk-canary/judge+2b7e151628aed2a6==",
    "OPENAI_API_KEY": "sk-canary/openai+abf7158809cf4f3c==",
    "HF_TOKEN": "hf_canary_762e7160f38b4da56a784d90",
    "WANDB_API_KEY": "canary0wandb190cfef324e7738926cfbe5f4bf8d8d8c",
}


def forms(secret):
    """The bytes a key may hide in: as it is, URL-encoded, and in base64 at any of three offsets."""
    raw = secret.encode()
    shifted = (base64.b64encode(b"x" * offset + raw) for offset in range(3))
    found = {raw, quote(secret, safe="").encode(), quote_plus(secret).encode()}
    # The first and the last few characters of a base64 text depend on what stands beside it.
    return found | {text[4:-8] for text in shifted}


def leaks(folder, *outputs):
    texts = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts |= {f"output {number}": text.encode() for number, text in enumerate(outputs)}
    return [
        (name, place)
        for name, secret in CANARIES.items()
        for place, text in texts.items()
        for form in forms(secret)
        if form in text
    ], len(texts)


def test_no_key_leaves_the_environment(bashrac, small, write_recipe, tmp_path, serve, injected):
    """The server repeats it in verdicts and in errors; a step fails with a traceback."""
    fails = True

    def echo(body):
        key = server.authorizations[-1]
        if fails:
            error = {"message": f"Incorrect API key provided: {key}", "type": key, "code": None}
            return (401, 500)[server.asked % 2], {"error": error, "headers": {"Authorization": key}}
        text = f"Comparison: you sent {key}.\nPreferred: A"
        return 200, completion(text)

    server = serve(echo)
    recipe = small | {
        "stages": {"base": {"method": "base"}, "sft": {"method": "sft"}},
        "evaluate": ["tldr"],
        "benchmarks": {"tldr": {"data": {"source": "builtin:posts", "limit": 2}}},
        "judge": {"engine": "openai", "model": "m", "base_url": server.url, "max_retries": 0},
    }
    path, out = write_recipe(recipe), []

    def run(code, *arguments, command="run"):
        done = bashrac(command, path, *arguments, env=CANARIES)
        assert done.returncode == code, done.stdout + done.stderr
        out.extend((done.stdout, done.stderr))
        return done.stderr

    assert "Incorrect API key provided: Bearer [key]" in run(1, "--stage", "base")
    fails = False
    run(0, "--stage", "base", "--set", "judge.reads=text")
    run(0, "--set", "judge.reads=text", "--format", "html", command="report")
    odd = ("--set", "trainer.report_to=tensorboard", "--set", "trainer.optim=galore_adamw")
    odd += ("--set", "judge.reads=text")  # asked one question before the training
    assert "failed" in run(1, "--stage", "sft", *odd)
    logs = "".join(log.read_text() for log in tmp_path.glob("runs/tiny/logs/*.log"))
    assert "Traceback" in logs and "galore" in logs
    sent = [f"Bearer {CANARIES['BASHRAC_JUDGE_KEY']}"] * server.asked
    assert server.asked == 9 and server.authorizations == sent
    assert "[key]" in "".join(file.read_text() for file in tmp_path.glob("runs/judge/*"))
    beside = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert beside == {"tiny", *SHARED_FOLDERS}, "a recipe of such a name must be refused"
    found, looked = leaks(tmp_path / "runs", *out)
    assert found == []
    how = f"verdicts, errors, a traceback; {looked} files and outputs searched"
    injected("server that repeats the key", how, server.asked, "no key in any")


@pytest.mark.parametrize("key", ["model", "judge.request.user", "system", "trainer.run_name"])
def test_a_recipe_that_holds_a_key_is_refused_without_showing_it(
    recipe_dict, write_recipe, monkeypatch, key
):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    recipe_dict["judge"] = {"engine": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    path = write_recipe(recipe_dict)
    for name, value in CANARIES.items():
        with pytest.raises(RecipeError, match=rf"{key} +holds the value of \${name}") as caught:
            load_recipe(path, [f"{key}=with {value} inside"])
        assert value not in str(caught.value)


def test_a_key_among_the_options_is_refused_without_showing_it(recipe_dict, write_recipe):
    recipe_dict["trainer"]["hub_token"] = CANARIES["HF_TOKEN"]
    with pytest.raises(RecipeError, match="HF_TOKEN") as caught:
        load_recipe(write_recipe(recipe_dict))
    assert CANARIES["HF_TOKEN"] not in str(caught.value)


# --- our own source -----------------------------------------------------------------------------


def test_our_source_holds_no_pickle_no_eval_and_no_shell():
    """`model.eval()` of torch is a method; `load_state_dict` and the like read nothing themselves."""
    wrong, calls = [], 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for found in _dangers(node):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {found}")
            calls += isinstance(node, ast.Call)
    assert calls > 1000 and wrong == []


def _dangers(node):
    refused = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [alias.name for alias in node.names]
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"imports {name}" for name in names if name.split(".")[0] in refused)
    if isinstance(node, ast.Attribute) and re.fullmatch(r"yaml\.\w*Loader", ast.unparse(node)):
        yield from (f"yaml.{node.attr}" for _ in range(node.attr != "SafeLoader"))
    if not isinstance(node, ast.Call):
        return
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    called = ast.unparse(node.func)
    if called in ("eval", "exec", "compile", "__import__"):
        yield called
    if called in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
        yield called
    if "shell" in given:
        yield f"{called}(shell=...)"
    if called == "torch.load" and ast.unparse(given.get("weights_only", node)) != "True":
        yield "torch.load without weights_only=True"
    if called.startswith("yaml.") and "load" in called and called != "yaml.safe_load":
        yield called
