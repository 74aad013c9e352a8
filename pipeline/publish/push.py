"""`bashrac push`: a finished stage as a repository on the hub, shown first and sent when asked to.

What goes: the files of its `model/`, the card, the recipe of its chain, and of its record what
names no machine, user or folder. What never goes: checkpoints, rows, answers, logs. Nothing on the
hub is removed. One commit holds all of it (`upload_folder` may make several), and it is the list
that the dry run prints.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BashracError, InputError, visible
from pipeline.publish.card import make_card
from pipeline.publish.card_metadata import hub_base
from pipeline.publish.portable import portable_recipe
from pipeline.publish.stage import FinishedStage
from pipeline.steps import artifact
from pipeline.steps.identity import EMBEDDED_MODEL, cache_folder

CARD, RECIPE = "README.md", "recipe.yaml"
_ADAPTER = "adapter_config.json"
# Of a record: what was made, from what, with what, at what cost. Not: host, places, settings.
_OF_RECORD = (
    "kind", "title", "fingerprint", "identity", "seed", "versions", "device", "processes",
    "git_commit", "started", "ended", "seconds", "peak_memory_bytes",
)  # fmt: skip
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_SHORTEST_FOLDER = 4  # of fewer characters, such as / or /w, texts may hold by chance

Files = dict[str, Path | bytes]


@dataclass(frozen=True)
class Remote:
    """What is known of a repository on the hub.

    Attributes:
        words: its state, for people.
        files: paths it holds, None where it is not there or could not be asked.
        is_private: None where that is not known.
    """

    words: str
    files: list[str] | None = None
    is_private: bool | None = None


def push(found: FinishedStage, repository: str, *, private: bool, yes: bool, command: str) -> str:
    """Show what would be sent, or send it; returns words for people.

    Args:
        found: the stage.
        repository: hub id, user/name.
        private: whether a repository that is made is private.
        yes: whether to send.
        command: how to send, for the dry run.

    Raises:
        InputError: when it cannot be handed on as it is, the id is none, or there is no token.
        BashracError: when the hub refuses or cannot be reached.
    """
    _check_id(repository)
    files = package(found, repository)
    token = _token()
    if yes and token is None:
        raise InputError(
            "there is no token: set HF_TOKEN in the environment, or log in once with "
            "`hf auth login`; nothing was sent"
        )
    remote = look_at(repository, token)
    if private and remote.is_private is False:
        raise InputError(
            f"{repository} exists and is public, and a push does not change that; make it private "
            "on the hub first, or choose another name"
        )
    if not yes:
        return _dry_run(files, repository, remote, private=private, token=token, command=command)
    assert token is not None
    artifact.verify(found.folder, weights=True)
    return _send(files, repository, found, private=private, token=token)


def package(found: FinishedStage, repository: str) -> Files:
    """Return what is sent: path in the repository -> a file here, or its content.

    Raises:
        InputError: for an adapter whose base the hub does not have, or a file that names a folder
            of this machine.
    """
    prefix = "model/"
    record = artifact.read_record(found.folder)
    names = [name.removeprefix(prefix) for name in record["files"] if name.startswith(prefix)]
    files: Files = {name: found.folder / prefix / name for name in sorted(names)}
    if found.model.adapter is not None:
        files[_ADAPTER] = _adapter_config(found)
    files[CARD] = str(make_card(found, repository)).encode()
    files[RECIPE] = portable_recipe(found).encode()
    files[artifact.RECORD] = _public_record(record)
    _check_folders(files, found.runs)
    return files


def _adapter_config(found: FinishedStage) -> bytes:
    """The adapter's config with the hub id of its base, instead of where it lay here."""
    base = hub_base(found)
    if base is None or found.model.base is not None:
        raise InputError(
            f"{found.name} is an adapter on a model that lies on this machine only: make one plain "
            "model of both (`bashrac merge RECIPE:STAGE OUT`), and send its folder "
            "(`hf upload user/name OUT`)"
        )
    config = artifact.read_json(found.folder / "model" / _ADAPTER)
    revision = None if found.plan.recipe.model == EMBEDDED_MODEL else found.revision
    config |= {"base_model_name_or_path": base, "revision": revision}
    return _json(config)


def _public_record(record: dict[str, Any]) -> bytes:
    metrics = {key: value for key, value in record["metrics"].items() if _is_figures(value)}
    return _json({**{key: record[key] for key in _OF_RECORD}, "metrics": metrics})


def _is_figures(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_figures, value.values()))
    return value is None or isinstance(value, (int, float))


def _check_folders(files: Files, runs: Path) -> None:
    """See that nothing that is read by people or programs names a folder of this machine."""
    folders = {str(place.resolve()) for place in (Path.home(), Path.cwd(), runs, cache_folder())}
    patterns = [re.escape(one) for one in folders if len(one) >= _SHORTEST_FOLDER]
    pattern = re.compile(rf"(?<![\w/])(?:{'|'.join(patterns)})(?![\w-])") if patterns else None
    for name, held in files.items():
        if pattern is None or Path(name).suffix not in (".json", ".md", ".yaml", ".jinja", ".txt"):
            continue
        if name in _VOCABULARY:
            continue
        content = held if isinstance(held, bytes) else held.read_bytes()
        if found := pattern.search(content.decode(errors="replace")):
            raise InputError(
                f"{name} would name the folder {found[0]} of this machine; nothing was sent. Take "
                "it out of the recipe's texts, or write it relative to where you run"
            )


def _check_id(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise InputError(
            f"--to {repository}: write it as user/name, with letters, digits, '-', '_' and '.'"
        ) from None


def _token() -> str | None:
    """The user's token: HF_TOKEN, else that of the last `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()


def look_at(repository: str, token: str | None) -> Remote:
    """Ask the hub what a repository holds; never raises."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repository, token=token or False, timeout=10)
    except RepositoryNotFoundError:
        unseen = "" if token else ", or is private, which without a token cannot be seen"
        return Remote(f"does not exist yet{unseen}")
    except OfflineModeIsEnabled:
        return Remote("was not asked about: HF_HUB_OFFLINE is set")
    except Exception as error:
        return Remote(f"could not be asked about ({type(error).__name__})")
    files = sorted(one.rfilename for one in info.siblings or [])
    kind = "private" if info.private else "public"
    return Remote(f"exists and is {kind}", files, info.private)


def _dry_run(
    files: Files,
    repository: str,
    remote: Remote,
    *,
    private: bool,
    token: str | None,
    command: str,
) -> str:
    from huggingface_hub import constants

    sizes = {name: _size(held) for name, held in files.items()}
    width = max(len(f"{size:,}") for size in sizes.values())
    becomes = (
        "" if remote.files is not None else f"; it will be {'private' if private else 'public'}"
    )
    lines = [
        "dry run: nothing is sent",
        f"to     {constants.ENDPOINT}/{repository}, which {remote.words}{becomes}",
    ]
    if remote.files:
        replaced = [name for name in remote.files if name in files]
        stay = [name for name in remote.files if name not in files]
        lines.append(f"       replaced there: {', '.join(replaced) or 'nothing'}")
        lines.append(f"       left as it is, never removed: {', '.join(stay) or 'nothing'}")
    known = "found, of HF_TOKEN or the stored login" if token else "none: set HF_TOKEN to send"
    lines += [f"token  {known}", f"files  {len(files)}, {sum(sizes.values()):,} bytes"]
    lines += [f"  {size:>{width},}  {name}" for name, size in sizes.items()]
    for name in (CARD, artifact.RECORD):
        held = files[name]
        assert isinstance(held, bytes)
        lines += ["", f"--- {name}", visible(held.decode()).rstrip(), f"--- end of {name}"]
    return "\n".join([*lines, "", f"to send it: {command}"])


def _send(files: Files, repository: str, found: FinishedStage, *, private: bool, token: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    recipe = found.plan.recipe.name
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        operations = [
            CommitOperationAdd(name, held if isinstance(held, bytes) else str(held))
            for name, held in files.items()
        ]
        message = f"{recipe}: stage {found.name}, seed {found.seed}"
        commit = api.create_commit(repository, operations, commit_message=message)
    except Exception as error:
        said = " ".join(str(error).split()).replace(token, "[token]")
        raise BashracError(
            f"the hub did not take {repository} ({type(error).__name__}: {said[:300]}); what it "
            "held is as it was, and the same command tries again"
        ) from error
    size = sum(map(_size, files.values()))
    return f"sent {len(files)} files, {size:,} bytes: {commit.commit_url}"


def _size(held: Path | bytes) -> int:
    return len(held) if isinstance(held, bytes) else os.path.getsize(held)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
