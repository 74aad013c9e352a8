"""Reads the rows of any source, checks every row, and cuts those that are too long."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.builtin import rows as builtin
from pipeline.data.files import READERS, rows_of_file, without_nulls
from pipeline.data.render import Renderer
from pipeline.data.tasks import Example, PreferencePair, RowError, example_of, preference_of
from pipeline.errors import InputError
from pipeline.recipe.schema import Source
from pipeline.steps import artifact
from pipeline.steps.identity import cache_folder, hub_commit, local_digest, local_file
from pipeline.steps.record import Metrics
from pipeline.steps.spec import Place

Read = TypeVar("Read", Example, PreferencePair)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as tokens.

    Attributes:
        row_id: position in the source, from 0.
        prompt: prompt ids.
        answer: ids of the reference answer with its end-of-turn token, perhaps cut at the end.
        example: the text it came from, its prompt perhaps cut.
        room: most answer tokens after this prompt.
        whole: whether the answer is complete.
    """

    row_id: int
    prompt: list[int]
    answer: list[int]
    example: Example
    room: int = sys.maxsize
    whole: bool = True


def load_examples(
    source: Place | Source,
    task: str,
    warn: Callable[[str], None] = print,
    renderer: Renderer | None = None,
    *,
    answered: bool = True,
    train_on: str = "last",
) -> list[Example]:
    """Read a source's rows as examples of a task.

    Args:
        source: the source, or its mapping in a recipe.
        task: the task's name.
        warn: called with the number of rows left out under `skip_unusable: true`, and with the
            number that have special tokens in their text.
        renderer: that of the model, whose chat template may refuse rows.
        answered: whether references will be tokenised.
        train_on: 'all' for one example per answer of a dialogue, 'last' for the last answer only.

    Raises:
        InputError: for a source that cannot be read, is empty, or has an unusable row; it names
            file, line and field.
    """
    source = _source(source)
    if source.parts is not None:
        read = partial(load_examples, task=task, warn=warn, renderer=renderer)
        read = partial(read, answered=answered, train_on=train_on)
        return _mixed(source, [(part, read(part)) for part in source.parts])

    def admit(example: Example) -> list[Example]:
        every = example.each_answer() if train_on == "all" else [example]
        if renderer is None:
            return every
        return [renderer.admit(each, answered=answered) for each in every]

    return _read_each(source, partial(example_of, task), admit, renderer, warn)


def warn_of_repeats(
    examples: Sequence[Example], source: Source, warn: Callable[[str], None]
) -> None:
    """Warn about test rows that repeat the prompt and reference of an earlier row.

    They are kept, since ids and published numbers depend on positions, so each counts towards n.
    """
    seen: set[str] = set()
    repeats = []
    for example in examples:
        text = json.dumps([example.messages, example.tools, example.reference], sort_keys=True)
        if text in seen:
            repeats.append(example.place)
        seen.add(text)
    if repeats:
        verb, them = ("repeats", "it") if len(repeats) == 1 else ("repeat", "them")
        warn(
            f"{source.source}: {len(repeats)} of {len(examples)} test rows {verb} an earlier row "
            f"(first: {repeats[0]}); each is counted, so intervals are narrower than they "
            f"should be: remove {them} from the data"
        )


def load_preferences(
    source: Place | Source,
    task: str,
    warn: Callable[[str], None] = print,
    renderer: Renderer | None = None,
) -> list[PreferencePair]:
    """Read a source's rows as preference pairs; see `load_examples`."""

    def admit(pair: PreferencePair) -> list[PreferencePair]:
        return [pair if renderer is None else renderer.admit_pair(pair)]

    return _read_each(_source(source), partial(preference_of, task), admit, renderer, warn)


def fit_prompt(
    example: Example, renderer: Renderer, *, max_length: int | None
) -> tuple[Example, list[int], int] | None:
    """Return the example, its prompt cut to fit, its prompt ids, and the room for answer tokens.

    None if the prompt still exceeds `max_prompt_length`, or leaves no room within `max_length`.
    """
    fitted = renderer.fit(example)
    prompt = renderer.prompt_ids(fitted)
    room = sys.maxsize if max_length is None else max_length - len(prompt)
    return (fitted, prompt, room) if room > 0 and renderer.fits(prompt) else None


def tokenise(
    examples: list[Example], renderer: Renderer, *, max_length: int | None
) -> tuple[list[TokenRow], dict[str, int]]:
    """Turn examples into token rows of at most `max_length` tokens.

    The renderer cuts prompts. A row whose prompt is still too long, or leaves no room for an answer
    token, is dropped; an answer that does not fit is cut, and so has no end-of-turn label.

    Returns:
        The rows, and counts: rows, dropped, cut, prompts_cut.

    Raises:
        InputError: when no row is left.
    """
    rows, prompts_cut = [], 0
    for row_id, whole in enumerate(examples):
        fitted = fit_prompt(whole, renderer, max_length=max_length)
        if fitted is None:
            continue
        example, prompt, room = fitted
        answer = renderer.answer_ids(example, example.reference)
        rows.append(TokenRow(row_id, prompt, answer[:room], example, room, len(answer) <= room))
        prompts_cut += example is not whole
    if not rows:
        raise InputError(
            f"all {len(examples)} prompts are too long (max_length {max_length}, max_prompt_length "
            f"{renderer.max_prompt_length}) and leave no room for an answer; raise these limits"
        )
    cut = sum(not row.whole for row in rows)
    dropped = len(examples) - len(rows)
    return rows, {"rows": len(rows), "dropped": dropped, "cut": cut, "prompts_cut": prompts_cut}


def describe_losses(
    counts: dict[str, int], *, max_length: int | None, max_prompt_length: int | None
) -> str | None:
    """Describe dropped and cut rows; None if there are none."""
    rows = counts["rows"]
    parts = []
    if counts["dropped"]:
        parts.append(
            f"{counts['dropped']} of {rows + counts['dropped']} rows dropped: the prompt exceeds "
            f"max_prompt_length ({max_prompt_length}) or leaves no room in max_length "
            f"({max_length})"
        )
    if counts["cut"]:
        parts.append(f"{counts['cut']} of {rows} rows cut in the answer at max_length {max_length}")
    if counts.get("chosen_cut"):
        parts.append(
            f"{counts['chosen_cut']} of these in the chosen answer, which then has no end of turn "
            "to prefer"
        )
    if counts["prompts_cut"]:
        parts.append(prompts_cut(counts["prompts_cut"], rows, max_prompt_length))
    return "; ".join(parts) or None


def prompts_cut(count: int, rows: int, max_prompt_length: int | None) -> str:
    """Return a sentence about cut prompts."""
    return f"{count} of {rows} prompts cut to max_prompt_length {max_prompt_length}"


def _mixed(source: Source, parts: list[tuple[Source, list[Example]]]) -> list[Example]:
    """Mix the rows of several sources in their shares, in order, until one source runs out.

    Without shares, all rows of all sources are used.
    """
    total = sum(len(rows) for _, rows in parts)
    shares = [
        Fraction(str(part.share)) if part.share else Fraction(len(rows), total)
        for part, rows in parts
    ]
    mixed: list[Example] = []
    taken = [0] * len(parts)
    while len(mixed) < min(total, source.limit or total):
        # From the source farthest behind its share, so that any first rows have these shares too.
        behind = [share * (len(mixed) + 1) - had for share, had in zip(shares, taken, strict=True)]
        place = behind.index(max(behind))
        part, rows = parts[place]
        if taken[place] == len(rows):
            break
        name = f"{part.source}, {part.describe_rows}" if part.describe_rows else part.source
        mixed.append(replace(rows[taken[place]], part=name))
        taken[place] += 1
    return mixed


def count_parts(examples: Iterable[Example]) -> Metrics:
    """The number of examples per source of a mixture, for the record; {} for a single source."""
    counts = Counter(example.part for example in examples)
    return {"sources": dict(counts)} if any(counts) else {}


def _source(source: Place | Source) -> Source:
    return source if isinstance(source, Source) else Source.model_validate(source)


def _read_each(
    source: Source,
    read: Callable[[Mapping[str, Any]], Read],
    admit: Callable[[Read], list[Read]],
    renderer: Renderer | None,
    warn: Callable[[str], None],
) -> list[Read]:
    items: list[Read] = []
    usable, unusable, marked = 0, [], []
    for place, row in islice(_placed_rows(source), source.skip, source.stop):
        try:
            item = read(row)
            items += [_at(place, admitted) for admitted in admit(item)]
            usable += 1
            if renderer is not None and (token := renderer.special_token_in(item)):
                marked.append(f"{token!r} at {place}")
        except RowError as error:
            unusable.append(f"{place}: {error.sentence}")
            if not source.skip_unusable:
                raise InputError(unusable[0]) from None
    if not items:
        if source.skip and not unusable:
            total = sum(1 for _ in _placed_rows(source))
            raise InputError(
                f"{source.source}: skip {source.skip} leaves none of its {total} rows; lower skip"
            )
        first = f"; the first of {len(unusable)}: {unusable[0]}" if unusable else ""
        raise InputError(f"{source.source}: it has no {'usable ' * bool(first)}rows{first}")
    if unusable:
        total = usable + len(unusable)
        warn(f"{len(unusable)} of {total} rows left out (skip_unusable), the first: {unusable[0]}")
    if marked:
        warn(
            f"{len(marked)} of {usable} rows have special tokens in their text, first "
            f"{marked[0]}: the model reads them as control tokens, such as the start or end of a "
            "turn; remove them if they are meant as text"
        )
    return items


def _at(place: str, item: Read) -> Read:
    """A row that knows where it stands."""
    if isinstance(item, Example):
        return replace(item, place=place)
    return replace(item, example=replace(item.example, place=place))


def _placed_rows(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A source's rows, each with its location."""
    if source.builtin is not None:
        rows = builtin.builtin_rows(source.builtin, source.split or "train", limit=source.stop)
        return _numbered(source, rows)
    path = source.path if source.file is None else local_file(source)
    if path is not None and not path.is_dir():
        return rows_of_file(path)
    return _from_datasets(source, path)


def _numbered(
    source: Source, rows: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        yield f"{source.source}, row {number}", without_nulls(dict(row))


def _from_datasets(source: Source, folder: Path | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a folder, whose files and splits `datasets` resolves, or of the hub."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    split = source.split or "train"
    try:
        if folder is None:
            yield from _numbered(source, _load_from_hub(source))
            return
        builder = _folder_builder(source, folder)
        files = [Path(str(file)) for file in (builder.config.data_files or {}).get(split, ())]
        if files and all(file.suffix in READERS for file in files):
            yield from chain.from_iterable(map(rows_of_file, files))
            return
        builder.download_and_prepare()
        yield from _numbered(source, builder.as_dataset(split=split))
    except (DatasetGenerationError, DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise InputError(f"{source.source}: {_cause(error)}") from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InputError(
            f"{source.source}: holds a Python script, which is not run; provide the rows as "
            f"{', '.join(READERS)}, or a folder without the script"
        ) from None


def _folder_builder(source: Source, folder: Path) -> Any:
    import datasets

    # datasets identifies cached files by path and time; this cache is named after their content.
    cache = str(cache_folder() / "rows" / local_digest(folder)[:16])
    return datasets.load_dataset_builder(str(folder), source.name, cache_dir=cache)


def _load_from_hub(source: Source) -> Any:
    """Load the rows of exactly the source's commit."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    commit = hub_commit(source.source, source.revision, repo_type="dataset")
    # If the hub does not answer, `datasets` returns the newest rows in its cache, of any commit. So
    # each commit has its own cache, and the shared one is tried last, with its commit checked.
    folder = artifact.fingerprint([source.source, source.name, commit])[:16]
    reason = ""
    for cache in (str(cache_folder() / "rows" / folder), None):
        try:
            builder = datasets.load_dataset_builder(
                source.source, source.name, revision=commit, cache_dir=cache
            )
        except DatasetNotFoundError:  # the hub does answer: it does not exist
            raise
        except (ConnectionError, HfHubHTTPError, FileNotFoundError) as error:
            reason = f" ({_cause(error)[:200]})"
            continue
        if builder.hash == commit:
            builder.download_and_prepare()
            return builder.as_dataset(split=source.split)
    raise InputError(
        f"{source.source}: commit {commit} is not in the cache, and cannot be loaded from the hub"
        f"{reason}; connect to the hub, pin revision: to a cached commit, or use a local file"
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
