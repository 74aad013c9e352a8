"""TL;DR: what a judge is shown of a post and its two summaries."""

import json

import pytest
from conftest import SHARED

from eval.benchmarks.tldr import comparison_of
from pipeline.data.load import load_examples
from pipeline.data.render import Renderer
from pipeline.recipe.schema import Source

POSTS = SHARED / "reddit_tldr" / "test.jsonl"
needs_posts = pytest.mark.skipif(not POSTS.exists(), reason=f"needs {POSTS}")


def test_a_judge_sees_the_post_without_its_last_line_and_the_human_summary_first():
    prompt = "SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c TL;DR: d\n\nTL;DR:"
    messages = [{"role": "user", "content": prompt}]
    sample = {"id": 7, "messages": messages, "reference": "human", "answer": "model"}
    found = comparison_of(sample)
    assert found.prompt == "SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c TL;DR: d"
    assert (found.id, found.a, found.b, found.reference) == ("7", "human", "model", "human")


@needs_posts
def test_real_posts_are_cut_to_their_limit_at_line_ends_and_keep_their_last_line(tiny_model):
    """447 posts; with the tiny tokenizer most are longer than 300 tokens."""
    from pipeline.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(tiny_model), max_prompt_length=300)
    examples = load_examples(Source(source=str(POSTS)), "tldr")
    rows = [json.loads(line) for line in POSTS.read_text().splitlines()]
    assert len(examples) == len(rows) == 447
    cut = 0
    for whole in examples:
        fitted = renderer.fit(whole)
        text, full = fitted.messages[0]["content"], whole.messages[0]["content"]
        assert len(renderer.prompt_ids(fitted)) <= 300 and text.endswith("\n\nTL;DR:")
        if fitted is not whole:
            cut += 1
            assert full.startswith(text.removesuffix("\n\nTL;DR:"))
        assert comparison_of(
            {"id": 0, "messages": fitted.messages, "reference": "r", "answer": "a"}
        ).prompt == text.removesuffix("\n\nTL;DR:")
    assert cut > 100
