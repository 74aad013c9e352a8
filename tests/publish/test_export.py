"""`bashrac merge`: a stage as a plain model that anything reads, and that says the same."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, digests, save_tiny_model

from pipeline.errors import InputError
from pipeline.models.load import load_merged, load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.publish.export import write_model
from pipeline.publish.push import package
from pipeline.publish.stage import find_stage
from pipeline.steps import artifact
from pipeline.train.trainer import _finish_adapter_config

LORA = {"r": 8, "target_modules": "all-linear"}
IDS = torch.arange(3, 83).reshape(2, 40)


@pytest.fixture
def recipe_of_one(recipe_dict):
    """One SFT stage, with a learning rate that leaves a mark."""
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": [], "dtype": "float32"}
    recipe_dict["trainer"]["learning_rate"] = 0.01
    return recipe_dict


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


def plain(folder, dtype=torch.float32):
    """A model as somebody without bashrac loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def greedy(folder, prompt, count):
    """The tokens that transformers' own generate adds to a prompt."""
    ids = torch.tensor([prompt])
    made = plain(folder).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count)
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "quantize", [pytest.param(None, marks=pytest.mark.slow), "nf4"], ids=["lora", "qlora"]
)
def test_arms_of_adapters_hand_over_and_the_merged_model_answers_the_same(
    recipe_dict, write_recipe, bashrac, tmp_path, quantize
):
    """SFT, RAC, DPO by the command line; the run's own greedy answers are read again."""
    recipe_dict |= {"lora": LORA, "quantize": quantize, "dtype": "float32", "benchmarks": {}}
    recipe_dict["trainer"] |= {"learning_rate": 0.01, "logging_steps": 1}
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "rac-dpo": {"method": "dpo", "from": "rac", "trainer": {"beta": 0.5}},
    }
    path, out = write_recipe(recipe_dict), tmp_path / "merged"
    run = bashrac("run", path)
    assert run.returncode == 0, run.stdout + run.stderr
    steps = {}
    for file in (tmp_path / "runs").glob("steps/*/step.json"):
        step = json.loads(file.read_text())["spec"]
        steps[step["stage"], step["kind"]] = (file.parent, step)

    def adapter_read_by(stage, kind):
        return steps[stage, kind][1]["locations"].get("adapter")

    trained = {stage: str(steps[stage, "train"][0]) for stage in recipe_dict["stages"]}
    assert adapter_read_by("sft", "train") is None
    assert adapter_read_by("rac", "corrections") == trained["sft"]
    assert adapter_read_by("rac", "train") == trained["sft"]
    assert adapter_read_by("rac-dpo", "train") == trained["rac"]
    metrics = artifact.read_record(steps["rac-dpo", "train"][0])["metrics"]
    assert metrics["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(metrics["last_loss"] - 0.693147) > 1e-3  # its reference stays where it started

    merged = bashrac("merge", f"{path}:rac-dpo", out, "--dtype", "float32")
    assert merged.returncode == 0, merged.stderr
    assert "from_pretrained" in merged.stdout and not merged.stderr
    (answers,) = [
        at for (stage, kind), (at, _) in steps.items() if (stage, kind) == ("rac-dpo", "answers")
    ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = artifact.read_rows(answers / "samples.jsonl")
    assert len(rows) == 4 and any(len(row["ids"]) > 1 for row in rows)
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)
        assert greedy(out, prompt["input_ids"], 8) == row["ids"]


def test_merged_is_what_the_adapter_was_trained_on_in_4_bits_and_not_the_original(
    recipe_of_one, write_recipe, run_steps_here, tmp_path
):
    """Both sums are of float32: rounding of 2 layers leaves under 1e-4 of logits of size 10.

    The original weights differ from the 4-bit ones by several per cent, and so do the logits.
    """
    path = write_recipe(recipe_of_one | {"lora": LORA, "quantize": "nf4"})
    plan, runs = run_steps_here(path)
    model, adapter = recipe_of_one["model"], str(plan.models["sft", 0].adapter.directory(runs))
    write_model(find_stage(f"{path}:sft", runs), tmp_path / "out", dtype="float32")
    trained = logits(load_model(model, adapter=adapter, quantize="nf4"))
    assert (logits(plain(tmp_path / "out")) - trained).abs().max() < 1e-4
    assert (logits(load_merged(model, adapter=adapter)) - trained).abs().max() > 0.5
    assert (logits(load_model(model, quantize="nf4")) - trained).abs().max() > 0.01
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_merged_weights_have_the_dtype_of_the_base_and_stop_where_bashrac_stops(
    recipe_of_one, write_recipe, run_steps_here, tmp_path
):
    from transformers import GenerationConfig

    base = tmp_path / "base"
    save_tiny_model(base)
    plain(base).bfloat16().save_pretrained(base)
    GenerationConfig(eos_token_id=[7, 9], temperature=0.5, do_sample=True).save_pretrained(base)
    path = write_recipe(recipe_of_one | {"lora": LORA, "model": str(base)})
    plan, runs = run_steps_here(path)
    said = write_model(find_stage(f"{path}:sft", runs), tmp_path / "out")
    assert "bfloat16" in said and str(base) in said
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == [2, 7, 9] and generation.temperature == 0.5
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    adapter = str(plan.models["sft", 0].adapter.directory(runs))
    exact, rounded = load_model(str(base), adapter=adapter), plain(tmp_path / "out")
    assert (logits(exact) - logits(rounded)).abs().max() < 0.1 * logits(exact).abs().max()


def test_a_stage_that_trained_all_weights_is_copied(
    recipe_of_one, write_recipe, run_steps_here, tmp_path
):
    path = write_recipe(recipe_of_one)
    plan, runs = run_steps_here(path)
    write_model(find_stage(f"{path}:sft", runs), tmp_path / "new" / "out")
    step = plan.models["sft", 0].base.directory(runs) / "model"
    copied, own = digests(tmp_path / "new" / "out"), digests(step)
    assert copied["model.safetensors"] == own["model.safetensors"]
    assert set(copied) == set(own) and not list((tmp_path / "new").glob(".*"))
    write_model(find_stage(f"{path}:sft", runs), tmp_path / "half", dtype="bfloat16")
    assert load_model(str(tmp_path / "half"), dtype="bfloat16").dtype == torch.bfloat16


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    recipe_of_one, write_recipe, run_steps_here, tmp_path
):
    path = write_recipe(recipe_of_one | {"lora": LORA})
    plan, runs = run_steps_here(path)
    found, there = find_stage(f"{path}:sft", runs), tmp_path / "there"
    there.mkdir()
    with pytest.raises(InputError, match="nothing is overwritten"):
        write_model(found, there)
    assert not list(there.iterdir())
    adapter = plan.models["sft", 0].adapter.directory(runs) / "model"
    shutil.move(adapter / "tokenizer.json", tmp_path / "away")
    with pytest.raises(Exception, match="tokenizer"):
        write_model(found, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_adapters_config_names_its_base_for_others(tmp_path):
    """A hub id with the commit it was trained on; a folder by its whole path."""
    from types import SimpleNamespace

    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, base, expected in (
        ("some/model", {"hub": "some/model", "revision": commit}, ("some/model", commit)),
        (".", {"files": {}}, (str(tmp_path.cwd()), None)),
    ):
        file = tmp_path / "adapter_config.json"
        artifact.write_json(file, {"base_model_name_or_path": name, "target_modules": ["b", "a"]})
        step = SimpleNamespace(spec=SimpleNamespace(inputs={"base": base}))
        _finish_adapter_config(step, file)
        config = artifact.read_json(file)
        assert (config["base_model_name_or_path"], config.get("revision")) == expected
        assert config["target_modules"] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_embedded_model_in_4_bits_through_three_arms(bashrac, tmp_path):
    """SFT, RAC, DPO of the demo as QLoRA on a CPU; prints what docs/scaling.md says of it."""
    rows = ["data.train.limit=32", "data.test.limit=16", "data.preferences.limit=8"]
    stages = ("sft", "rac", "rac-dpo")
    chosen = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())["stages"]
    chosen = {name: chosen[name] for name in stages}
    values = [*rows, "quantize=nf4", f"stages={json.dumps(chosen)}"]
    values += ["trainer.optim=paged_adamw_8bit"]
    sets = [word for value in values for word in ("--set", value)]
    run = bashrac("run", "demo", *sets, timeout=3000)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    for file in sorted((tmp_path / "runs").glob("steps/*/record.json")):
        record = json.loads(file.read_text())
        metrics = {name: record["metrics"].get(name) for name in ("first_loss", "last_loss")}
        peak = record["peak_memory_bytes"] / 1e9
        print(f"{record['title']}: {record['seconds']:.0f} s, peak {peak:.2f} GB, {metrics}")
    plan = make_plan(load_recipe("demo", values))
    step = plan.models["rac-dpo", 0].adapter.directory(tmp_path / "runs")
    first = artifact.read_record(step)["metrics"]["first_loss"]
    assert first == pytest.approx(0.693147, abs=1e-4)
    merged = bashrac("merge", "demo:rac-dpo", "out", "--dtype", "float32", *sets)
    assert merged.returncode == 0, merged.stderr
    exact = load_model(plan.recipe.model, adapter=str(step), quantize="nf4")
    difference = (logits(exact) - logits(plain(tmp_path / "out"))).abs()
    print(
        f"merged against 4 bits and adapter: {difference.max():.1e} of {logits(exact).abs().max():.1f}"
    )
    assert difference.max() < 1e-3 * logits(exact).abs().max()


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_router_logits_are_published_as_the_base_has_them(
    recipe_of_one, write_recipe, run_steps_here, tmp_path, lora, in_base
):
    """An older bashrac saved a trained mixture of experts with them on, and `generate` failed."""
    sizes = {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": in_base}
    recipe_of_one["model"] = save_tiny_model(tmp_path / "base", architecture="mixtral", **sizes)
    if lora:
        lora = {"r": 2, "target_modules": ["q_proj"]}
    path = write_recipe(recipe_of_one | {"lora": lora})
    plan, runs = run_steps_here(path)
    if lora is None:
        folder = plan.models["sft", 0].base.directory(runs)
        config = json.loads((folder / "model/config.json").read_text())
        config["output_router_logits"] = not in_base
        (folder / "model/config.json").write_text(json.dumps(config))
        record = artifact.read_json(folder / artifact.RECORD)
        artifact.write_record(folder, record | {"files": artifact.written_files(folder)})
    found = find_stage(f"{path}:sft", runs)
    sent = []
    for dtype in (None, "float32"):
        write_model(found, tmp_path / f"out-{dtype}", dtype=dtype)
        sent.append((tmp_path / f"out-{dtype}/config.json").read_bytes())
    if lora is None:
        sent.append(package(found, "me/sft")["config.json"])
    assert [json.loads(one)["output_router_logits"] for one in sent] == [in_base] * len(sent)
    if not in_base:
        ids = torch.tensor([[5, 6]])
        assert plain(tmp_path / "out-None").generate(ids, max_new_tokens=2).shape == (1, 4)
