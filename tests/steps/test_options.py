"""The types of options name just the keys that are planned: pyright checks functions by them."""

from typing import NotRequired, get_origin, get_type_hints

import pytest

from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import options

OF_KIND = {
    "answers": options.AnswerOptions,
    "contexts": options.ContextOptions,
    "corrections": options.CorrectionOptions,
    "pairs": options.PairOptions,
    "train": options.TrainOptions,
    "merge": options.RenderedModelOptions,
    "overlap": options.OverlapOptions,
    "gap-contexts": options.GapContextOptions,
    "gap-losses": options.ComputingOptions,
    "gap": options.GapGradeOptions,
    "accuracy": options.TaskGradeOptions,
    "gsm8k": options.GradeOptions,
    "rouge": options.GradeOptions,
    "tldr": options.JudgedGradeOptions,
}
ALL = [
    "evaluate=[gsm8k, rouge, accuracy, gap]", "benchmarks={gsm8k: {few_shot: 2}}",
    "stages.sft-dpo.merge_adapter=true", "trust_remote_code=true",
    "chat_template_kwargs={enable_thinking: false}", "template_date=2024-01-01",
    "stages.bash-dpo.pairs=self", "generation.engine=vllm", "trainer.ddp_timeout=60",
]  # fmt: skip
POSTS = [
    "task=tldr", "data={train: builtin:posts, test: builtin:posts}", "stages={sft: {method: sft}}",
    "evaluate=[tldr, rouge]", "judge=reference",
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("demo", [], {"answers", "contexts", "corrections", "pairs", "train", "overlap", "gsm8k"}),
        ("demo", ALL, OF_KIND.keys() - {"tldr"}),
        ("study-chat", ["train_on=all"], {"answers", "contexts", "train"}),
        ("demo", ["quantize=nf4"], {"train"}),
        ("demo", POSTS, {"tldr"}),
    ],
)
def test_steps_have_the_keys_of_their_kind(recipe, overrides, expected):
    plan = make_plan(load_recipe(recipe, overrides))
    assert {step.kind for step in plan.steps} >= expected
    runtime = get_type_hints(options.RuntimeOptions).keys()
    for step in plan.steps:
        known = get_type_hints(OF_KIND[step.kind], include_extras=True)
        free = {key for key, hint in known.items() if get_origin(hint) is NotRequired}
        free |= OF_KIND[step.kind].__optional_keys__
        assert known.keys() - free <= step.options.keys() <= known.keys(), step.title
        assert step.runtime_options.keys() <= runtime, step.title
