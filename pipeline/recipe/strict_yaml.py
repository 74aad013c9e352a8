"""YAML as plain data, read strictly: text, numbers, true, false, null, lists, mappings by text.

Dates stay text. Tags, keys given twice and merges (`<<`) are refused, by line. An alias counts as
all that it stands for, so that a few lines cannot come to millions of values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError

Raw = dict[str, Any]  # a recipe, or a part of one, as it is written: nothing is checked yet
# Far above any recipe, judge template or launch config, and read in less than a second.
_MOST_KB = 256
_MOST_VALUES = 10_000
_MOST_LEVELS = 20
_MOST_DIGITS = 100
_AS_TEXT = tuple(f"tag:yaml.org,2002:{name}" for name in ("timestamp", "value", "merge"))


def read_yaml_file(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: when it cannot be read or is not plain YAML; it names the file and the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read((_MOST_KB << 10) + 1)
        if len(data) > _MOST_KB << 10:
            raise InputError(f"{path}: over {_MOST_KB} kB; such a file is a few kB: give that one")
        return read_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {describe_yaml_error(error)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with YAML, in a line; the place as line and column."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = getattr(error, "problem", None) or "cannot be read"
    hint = "; indent with spaces" if "'\\t'" in problem else ""
    context, begun = getattr(error, "context", None), getattr(error, "context_mark", None)
    if context and begun and begun.line < mark.line:
        problem = f"{context} (line {begun.line + 1}), {problem}"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"


def read_yaml(text: str) -> Any:
    """Read YAML.

    Raises:
        yaml.YAMLError: when it is not plain YAML; the message names the line.
    """
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    except (ValueError, OverflowError) as error:  # such as 0b_, which looks like a number
        raise yaml.YAMLError(f"not a value: {error}; write text in quotes") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


class _PlainLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.values = self.level = 0
        self.sizes: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node and count the values it stands for."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = f"line {event.start_mark.line + 1}"
        if tag := getattr(event, "tag", None):
            short = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.YAMLError(f"{line}: take the tag {short} out and write the value plainly")
        before = self.values
        self.values += 1
        self.level += 1
        if self.level > _MOST_LEVELS:
            raise yaml.YAMLError(f"{line}: nested too deeply: over {_MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self.level -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self.sizes:
                raise yaml.YAMLError(f"{line}: the alias *{event.anchor} stands inside itself")
            self.values = before + self.sizes[node]
        if self.values > _MOST_VALUES:
            raise yaml.YAMLError(
                f"{line}: over {_MOST_VALUES} values up to here, with those that aliases repeat; "
                "such a file holds a few hundred: give that one"
            )
        if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str"):
            size = len(node.value)
            if size > _MOST_DIGITS:
                raise yaml.YAMLError(f"{line}: a number of {size} characters; write a shorter one")
        self.sizes[node] = self.values - before
        return node


def _mapping(loader: _PlainLoader, node: yaml.MappingNode) -> Raw:
    seen = set()
    for key_node, _ in node.value:
        line = f"line {key_node.start_mark.line + 1}"
        if not key_node.tag.endswith(":str"):
            shown = f", not {key_node.value}" if isinstance(key_node, yaml.ScalarNode) else ""
            raise yaml.YAMLError(f"{line}: a key must be plain text{shown}: write it in quotes")
        if key_node.value == "<<":
            raise yaml.YAMLError(f"{line}: '<<' is not read: write out the keys that it stands for")
        if key_node.value in seen:
            raise yaml.YAMLError(f"{line}: '{key_node.value}' is given twice")
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)  # type: ignore[no-untyped-call]


_PlainLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
