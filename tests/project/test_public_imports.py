"""Import paths that code outside this repository uses: they stay, wherever a module moves."""

from importlib import import_module

import pytest

PUBLIC = [
    ("eval.alpaca", "preference_from_logprobs"), ("eval.alpaca", "read_annotations"),
    ("eval.alpaca", "score"), ("eval.gsm8k", "extract_answer"), ("eval.gsm8k", "grade"),
    ("eval.judge_openai", "OpenAIJudge"), ("eval.judge_openai", "read_logprobs"),
    ("eval.length_control", "length_controlled_win_rate"), ("eval.metrics", "GSM8KAccuracy"),
    ("pipeline.contexts", "mix_contexts"), ("pipeline.corrections", "correct"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=".".join)
def test_it_can_be_imported_from_where_it_always_was(module, name):
    assert callable(getattr(import_module(module), name))
