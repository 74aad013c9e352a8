"""Texts inside Markdown, read by a Markdown parser that people's pages are made with."""

import html
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.errors import visible
from pipeline.markdown import block, code, inline, table

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
NASTY = (
    "| `a` ``` <script>x</script> **b** _c_ [d](http://e) &amp; ~~f~~ $g$ \\| # h ![i](j) \x1b[0m"
)
texts = st.text(st.characters(codec="utf-8"), min_size=1) | st.just(NASTY)


def read(markdown):
    """What a page shows of Markdown, in one line."""
    page = re.sub(r"<[^>]*>", "", PARSER.render(markdown))
    return " ".join(html.unescape(page).split())


def line_of(text):
    return " ".join(visible(text).split())


@given(texts)
def test_a_text_in_a_line_reads_as_it_is(text):
    assert read("x " + inline(text)) == line_of("x " + text)


@given(texts)
@example(" ")
def test_a_text_as_code_reads_as_it_is_also_in_a_table(text):
    assert " ".join(read("x " + code(text).replace("\\|", "|")).split()) == line_of("x " + text)
    made = table(["head"], [[code("x " + text)]])
    assert read(made) == line_of("head x " + text)


@given(texts)
def test_a_block_ends_where_it_should(text):
    page = PARSER.render(block(text, "yaml") + "\n\nafter")
    assert page.count("<pre>") == 1 and page.endswith("<p>after</p>\n")


@pytest.mark.parametrize("text", [NASTY, "---\n# x\n```\n</pre>\n````"])
def test_nothing_in_a_text_becomes_a_tag(text):
    assert re.findall(r"<(\w+)", PARSER.render("x " + inline(text))) == ["p"]
    assert set(re.findall(r"<(\w+)", PARSER.render(block(text, "")))) == {"pre", "code"}
