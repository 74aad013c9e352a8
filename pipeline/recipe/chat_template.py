"""The chat template that a recipe brings for models that have none.

`chat_template:` is Jinja text, or the name of a file with it, relative to the working folder as all
paths of a recipe are. What counts, in identities too, is the text.
"""

from __future__ import annotations

import re

from pipeline.errors import InputError
from pipeline.recipe.shipped import user_path

# transformers' own tag, which marks what the assistant says and writes nothing.
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")


def read_chat_template(given: str) -> str:
    """Return the text of a recipe's chat template.

    Raises:
        InputError: when there is no such file, or the text is no Jinja template.
    """
    text = given if "{" in given else _text_of(given)
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", text))
    except TemplateSyntaxError as error:
        raise InputError(f"is no Jinja template: line {error.lineno}: {error.message}") from None
    if "messages" not in text:
        raise InputError("does not write the messages: a template loops over `messages`")
    return text


def _text_of(name: str) -> str:
    path = user_path(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(
            f"{name[:80]!r} holds no Jinja, so it names a file, which cannot be read: {reason}"
        ) from None
