"""The options read from source must be exactly the dataclasses of the installed libraries."""

import dataclasses
import importlib
import re

import pytest

from pipeline.recipe.trl_fields import SOURCES, fields_of, problem_with
from pipeline.recipe.trl_rules import GONE, LORA_OWNED, OWNED, RANGES, RENAMED


@pytest.mark.parametrize("options_class", SOURCES)
def test_fields_read_from_source_equal_the_installed_dataclass(options_class):
    module, name = options_class.split(".")
    installed = getattr(importlib.import_module(module), name)
    assert set(fields_of(options_class)) == {field.name for field in dataclasses.fields(installed)}


@pytest.mark.parametrize("options_class", SOURCES)
def test_every_simple_default_passes_its_own_type_check(options_class):
    module, name = options_class.split(".")
    installed = getattr(importlib.import_module(module), name)
    checked = 0
    for field in dataclasses.fields(installed):
        owned = field.name in OWNED or field.name in LORA_OWNED
        if type(field.default) in (int, float, bool, str) and not owned:
            assert problem_with(options_class, field.name, field.default) is None
            checked += 1
    assert checked >= 10


def test_renamed_options_are_really_gone_and_none_is_also_owned():
    for name in (RENAMED | GONE).keys() - {"processing_class"}:
        assert name not in fields_of("trl.SFTConfig"), name
        assert name not in OWNED


def test_an_option_that_is_gone_is_not_to_be_replaced_by_nothing():
    words = problem_with("trl.DPOConfig", "reference_free", True)
    assert words.endswith("; it is gone from trl")


def test_of_many_choices_those_are_listed_that_begin_like_what_was_given():
    words = problem_with("trl.SFTConfig", "optim", "adamw")
    assert words.startswith("'adamw' is none of adamw_torch, ") and "sgd" not in words
    assert re.search(r"and \d+ others$", words)


def test_owned_options_exist_so_that_refusing_them_matters():
    assert set(OWNED) <= set(fields_of("trl.SFTConfig"))
    assert set(LORA_OWNED) <= set(fields_of("peft.LoraConfig"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rte", 0.1, "did you mean learning_rate?"),
        ("learning_rate", "5e-7", "YAML takes '5e-7' for text; write 5.0e-7"),
        ("learning_rate", "1.5E-5", "without quotes, 1.5e-05"),
        ("learning_rate", True, "expected a number"),
        ("learning_rate", "1.0e2", "write 1.0e+2"),
        ("learning_rate", "1e400", "not a finite number"),
        ("learning_rate", -1.0, "-1.0 must be 0 or more"),
        ("num_train_epochs", 0, "0 must be above 0"),
        ("max_steps", 0, "0 must be 1 or more, or -1 to train num_train_epochs"),
        ("max_length", -5, "1 or more"),
        ("optim", "adamw_torhc", "did you mean adamw_torch?"),
        ("lr_scheduler_type", "linaer", "did you mean linear?"),
        ("max_steps", 1.5, "expected a whole number"),
        ("max_steps", "12", "without quotes, 12"),
        ("max_steps", "1e3", "YAML takes '1e3' for text; write 1000"),
        ("max_steps", "1.5e0", "not a whole number"),
        ("max_seq_length", 512, "use max_length"),
        ("warmup_ratio", 0.1, "use warmup_steps"),
        ("per_device_train_batch_size", 4, "use batch_size"),
        ("bf16", "yes", "true or false"),
        ("loss_type", 3, "expected text"),
        ("train_sampling_strategy", "group_by_lenght", "did you mean group_by_length?"),
    ],
)
def test_a_wrong_trainer_option_is_named_with_a_way_out(name, value, expected):
    assert expected in problem_with("trl.SFTConfig", name, value)


@pytest.mark.parametrize(
    ("options_class", "name", "value", "expected"),
    [
        (
            "trl.SFTConfig",
            "lr_scheduler_kwargs",
            {"min_lr": "1e-6", "num_cycles": 0.5},
            "lr_scheduler_kwargs.min_lr: YAML takes '1e-6' for text; write 1.0e-6",
        ),
        (
            "trl.SFTConfig",
            "accelerator_config",
            {"gradient_accumulation_kwargs": {"num_steps": "2"}},
            "accelerator_config.gradient_accumulation_kwargs.num_steps: text '2': a number",
        ),
        ("trl.DPOConfig", "loss_weights", [1.0, "5e-1"], "loss_weights[1]: YAML takes '5e-1'"),
        ("peft.LoraConfig", "rank_pattern", {"q_proj": "4"}, "rank_pattern.q_proj: text '4'"),
        ("peft.LoraConfig", "alpha_pattern", {"q_proj": "1e1"}, "alpha_pattern.q_proj: YAML takes"),
        (
            "peft.LoraConfig",
            "trainable_token_indices",
            {"embed_tokens": [5, "6"]},
            "trainable_token_indices.embed_tokens[1]: text '6'",
        ),
        ("peft.LoraConfig", "layers_to_transform", ["1"], "layers_to_transform[0]: text '1'"),
    ],
)
def test_a_number_that_is_text_is_named_wherever_it_is_nested(options_class, name, value, expected):
    assert expected in problem_with(options_class, name, value)


@pytest.mark.parametrize(
    ("options_class", "name", "value"),
    [
        ("trl.SFTConfig", "lr_scheduler_kwargs", {"min_lr": 1.0e-6, "decay_type": "1-sqrt"}),
        ("peft.LoraConfig", "target_modules", ["0", "2"]),
        ("peft.LoraConfig", "use_bdlora", {"target_modules_bd_a": ["0"], "nblocks": 2}),
        ("trl.SFTConfig", "learning_rate", 5.0e-7),
        ("trl.SFTConfig", "learning_rate", 1),
        ("trl.SFTConfig", "lr_scheduler_type", "cosine"),
        ("trl.SFTConfig", "max_length", None),
        ("trl.SFTConfig", "max_steps", -1),
        ("trl.SFTConfig", "warmup_steps", 0.1),
        ("trl.SFTConfig", "optim", "adamw_8bit"),
        ("trl.DPOConfig", "loss_type", ["sigmoid", "sft"]),
        ("trl.DPOConfig", "loss_weights", [1, 0.5]),
        ("peft.LoraConfig", "target_modules", "all-linear"),
        ("peft.LoraConfig", "target_modules", ["q_proj", "v_proj"]),
        ("peft.LoraConfig", "init_lora_weights", "gaussian"),
        ("peft.LoraConfig", "bias", "none"),
    ],
)
def test_a_right_option_is_accepted(options_class, name, value):
    assert problem_with(options_class, name, value) is None


def test_a_beginning_at_random_and_an_adapter_that_trl_would_not_train_are_refused():
    assert "take it out" in problem_with("peft.LoraConfig", "init_lora_weights", False)
    for modules in ("lm_head", ["q_proj", "lm_head"]):
        assert "modules_to_save" in problem_with("peft.LoraConfig", "target_modules", modules)


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "olora", "loftq", "eva"])
def test_a_beginning_that_changes_the_base_is_refused(value):
    """Later steps read the base as it was: adapter and base would no longer belong together."""
    assert "a base stays as it is" in problem_with("peft.LoraConfig", "init_lora_weights", value)


@pytest.mark.parametrize(
    ("options_class", "name", "value", "expected"),
    [
        ("trl.DPOConfig", "beta", -1, "above 0"),
        ("peft.LoraConfig", "r", 0, "1 or more"),
        ("peft.LoraConfig", "lora_dropout", 2, "below 1"),
    ],
)
def test_what_no_number_of_its_kind_may_be_is_refused(options_class, name, value, expected):
    assert expected in problem_with(options_class, name, value)


def test_ranges_are_of_fields_that_there_are():
    fields = fields_of("trl.SFTConfig") | fields_of("trl.DPOConfig") | fields_of("peft.LoraConfig")
    assert set(RANGES) <= set(fields)


def test_literal_values_are_checked():
    assert "expected" in problem_with("peft.LoraConfig", "bias", "everything")
