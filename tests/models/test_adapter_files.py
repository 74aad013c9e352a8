"""Adapter folders as peft alone writes them, and as they are after they have been moved."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.models.load import load_merged, load_model, load_tokenizer, vocabulary_of
from pipeline.steps.identity import forget, model_identity

# What peft says as it saves an embedding.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
IDS = torch.arange(3, 43).reshape(2, 20)


def save_adapter(base, folder, *, tokens=None, tokenizer=None, save=None, **options):
    """An adapter whose weights are not 0, saved by peft; returns its logits on the highest ids."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = load_model(base)
    if tokens:
        model.resize_token_embeddings(tokens)
    lora = {"r": 4, "lora_alpha": 64, "target_modules": "all-linear", "init_lora_weights": False}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora | options)).eval()
    adapted.save_pretrained(
        str(folder), **({} if save is None else {"save_embedding_layers": save})
    )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return adapted(IDS + (tokens or 400) - 43).logits


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tiny_model, tmp_path):
    save_adapter(tiny_model, tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == load_tokenizer(tiny_model).get_vocab()


def test_a_model_without_a_tokenizer_is_a_sentence_that_names_it(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("tokenizer*", "chat*"))
    with pytest.raises(InputError, match="holds no tokenizer; copy the files of its tokenizer"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("tokens", [390, 403])
@pytest.mark.parametrize(
    "how",
    [{"save": True}, {"modules_to_save": ["lm_head", "embed_tokens"]}],
    ids=["saved", "modules"],
)
def test_an_adapter_on_a_resized_embedding_loads_as_it_was_trained(
    tiny_model, tmp_path, tokens, how
):
    """Ids up to the last row, so that rows which are not the adapter's would show."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["<|a|>", "<|b|>", "<|c|>"])
    expected = save_adapter(tiny_model, tmp_path, tokens=tokens, tokenizer=tokenizer, **how)
    assert vocabulary_of(str(tmp_path)) == tokens
    read = load_model(str(tmp_path)), load_merged(tiny_model, adapter=str(tmp_path))
    with torch.no_grad():
        as_it_lies, merged = (model.eval()(IDS + tokens - 43).logits for model in read)
    assert torch.equal(as_it_lies, expected)
    assert torch.allclose(merged, expected, atol=1e-3)  # sums in another order


def test_an_adapter_without_the_rows_it_was_trained_on_is_a_sentence(tiny_model, tmp_path):
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    save_adapter(tiny_model, tmp_path, tokens=403, save=False, **lora)
    with pytest.raises(
        InputError, match=r"trained on 403 tokens, its base has 400.*save the adapter again"
    ):
        load_model(str(tmp_path))


@pytest.mark.parametrize("moved_to", ["/no/such/folder", "no/such"])
def test_a_base_that_has_moved_is_a_sentence_that_names_the_key(
    tiny_model, tmp_path, monkeypatch, moved_to
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_adapter(tiny_model, tmp_path)
    config = Path(tmp_path / "adapter_config.json")
    config.write_text(config.read_text().replace(tiny_model, moved_to))
    forget()
    with pytest.raises(
        InputError, match=r"adapter_config.json.*set base_model_name_or_path to where"
    ) as told:
        model_identity(str(tmp_path), None)
    assert moved_to in str(told.value) and "base_model_name_or_path" in str(told.value)
