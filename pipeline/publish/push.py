"""`bashrac push`: a finished stage as a repository on the hub; shown first, sent with --yes.

What is sent: the files of its `model/`, the card, the recipe of its chain, and those parts of its
record that name no machine, user or folder. Never: checkpoints, rows, answers, logs. Nothing on the
hub is removed. All of it is one commit (`upload_folder` may make several) of the files that the
dry run lists.
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
from pipeline.publish.config import CONFIG, corrected_config
from pipeline.publish.portable import portable_recipe
from pipeline.publish.stage import FinishedStage
from pipeline.steps import artifact
from pipeline.steps.identity import EMBEDDED_MODEL, cache_folder
from pipeline.steps.record import Record

CARD, RECIPE = "README.md", "recipe.yaml"
_ADAPTER = "adapter_config.json"
# Of a record: what was made, from what, with what, at what cost. Not: host, paths, settings.
_OF_RECORD = (
    "kind", "title", "fingerprint", "identity", "seed", "versions", "device", "processes",
    "git_commit", "started", "ended", "seconds", "peak_memory_bytes",
)  # fmt: skip
_TEXTS = (".json", ".md", ".yaml", ".jinja", ".txt")
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_SHORTEST_FOLDER = 4  # shorter ones, such as / or /w, occur in texts by chance

Files = dict[str, Path | bytes]


@dataclass(frozen=True)
class Remote:
    """What is known of a repository on the hub.

    Attributes:
        state: a clause that says it.
        files: paths it holds, None where it does not exist or could not be looked at.
        is_private: None where that is not known.
    """

    state: str
    files: list[str] | None = None
    is_private: bool | None = None


def push(found: FinishedStage, repository: str, *, private: bool, yes: bool, command: str) -> str:
    """Return what would be sent, or send it and return what was.

    Args:
        found: the stage.
        repository: hub id, user/name.
        private: whether a new repository is private.
        yes: whether to send.
        command: how to send, for the dry run.

    Raises:
        InputError: when the stage cannot be published as it is, the id is malformed, or there is
            no token.
        BashracError: when the hub refuses or cannot be reached.
    """
    from huggingface_hub import get_token

    _check_id(repository)
    files = package(found, repository)
    token = get_token()
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
        new = "private" if private else "public"
        becomes = f"; it will be {new}" if remote.files is None else ""
        return _dry_run(files, repository, remote, becomes, has_token=bool(token), command=command)
    assert token is not None
    artifact.verify(found.folder, weights=True)
    return _send(files, repository, found, private=private, token=token)


def package(found: FinishedStage, repository: str) -> Files:
    """Return what is sent: path in the repository -> a local file, or content.

    Raises:
        InputError: for an adapter whose base is not on the hub, or a file that names a folder of
            this machine.
    """
    record = artifact.read_record(found.folder)
    paths = sorted(path for path in record["files"] if path.startswith("model/"))
    files: Files = {path.removeprefix("model/"): found.folder / path for path in paths}
    if found.model.adapter is not None:
        files[_ADAPTER] = _adapter_config(found)
    elif config := corrected_config(found, artifact.read_json(found.folder / "model" / CONFIG)):
        files[CONFIG] = config
    files[CARD] = str(make_card(found, repository)).encode()
    files[RECIPE] = portable_recipe(found).encode()
    files[artifact.RECORD] = _public_record(record)
    _check_folders(files, found.runs)
    return files


def _adapter_config(found: FinishedStage) -> bytes:
    """The adapter's config with its base as a hub id, instead of a folder of this machine."""
    base = hub_base(found)
    if base is None or found.model.base is not None:
        raise InputError(
            f"{found.name} is an adapter on a model that is on this machine only: merge the two "
            "(`bashrac merge RECIPE:STAGE OUT`), and upload the folder (`hf upload user/name OUT`)"
        )
    config = artifact.read_json(found.folder / "model" / _ADAPTER)
    revision = None if found.plan.recipe.model == EMBEDDED_MODEL else found.revision
    config |= {"base_model_name_or_path": base, "revision": revision}
    return _json(config)


def _public_record(record: Record) -> bytes:
    metrics = {key: value for key, value in record["metrics"].items() if _is_numeric(value)}
    return _json({**{key: record[key] for key in _OF_RECORD}, "metrics": metrics})


def _is_numeric(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_numeric, value.values()))
    return value is None or isinstance(value, (int, float))


def _check_folders(files: Files, runs: Path) -> None:
    """Check that no text names a folder of this machine."""
    folders = {str(place.resolve()) for place in (Path.home(), Path.cwd(), runs, cache_folder())}
    patterns = [re.escape(one) for one in folders if len(one) >= _SHORTEST_FOLDER]
    pattern = re.compile(rf"(?<![\w/])(?:{'|'.join(patterns)})(?![\w-])")
    for name, held in files.items():
        if not patterns or name in _VOCABULARY or Path(name).suffix not in _TEXTS:
            continue
        content = held if isinstance(held, bytes) else held.read_bytes()
        if found := pattern.search(content.decode(errors="replace")):
            raise InputError(
                f"{name} would name the folder {found[0]} of this machine; nothing was sent. "
                "Remove it from the recipe's texts, or make it relative to where you run"
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


def look_at(repository: str, token: str | None) -> Remote:
    """Look at a repository on the hub; what goes wrong is part of the answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repository, token=token or False, timeout=10)
    except RepositoryNotFoundError:
        unseen = "" if token else ", or is private, which cannot be seen without a token"
        return Remote(f"does not exist yet{unseen}")
    except OfflineModeIsEnabled:
        return Remote("was not asked about: HF_HUB_OFFLINE is set")
    except Exception as error:
        return Remote(f"could not be asked about ({type(error).__name__})")
    files = sorted(one.rfilename for one in info.siblings or [])
    kind = "private" if info.private else "public"
    return Remote(f"exists and is {kind}", files, info.private)


def _dry_run(
    files: Files, repository: str, remote: Remote, becomes: str, *, has_token: bool, command: str
) -> str:
    from huggingface_hub import constants

    sizes = {name: _size(held) for name, held in files.items()}
    width = max(len(f"{size:,}") for size in sizes.values())
    lines = [
        "dry run: nothing is sent",
        f"to     {constants.ENDPOINT}/{repository}, which {remote.state}{becomes}",
    ]
    if remote.files:
        replaced = [name for name in remote.files if name in files]
        kept = [name for name in remote.files if name not in files]
        lines.append(f"       replaced there: {', '.join(replaced) or 'nothing'}")
        lines.append(f"       left as it is, never removed: {', '.join(kept) or 'nothing'}")
    token = "found, in HF_TOKEN or the stored login" if has_token else "none: set HF_TOKEN to send"
    lines += [f"token  {token}", f"files  {len(files)}, {sum(sizes.values()):,} bytes"]
    lines += [f"  {size:>{width},}  {name}" for name, size in sizes.items()]
    for name in (CARD, artifact.RECORD):
        held = files[name]
        assert isinstance(held, bytes)
        lines += ["", f"--- {name}", visible(held.decode()).rstrip(), f"--- end of {name}"]
    return "\n".join([*lines, "", f"to send it: {command}"])


def _send(files: Files, repository: str, found: FinishedStage, *, private: bool, token: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    message = f"{found.plan.recipe.name}: stage {found.name}, seed {found.seed}"
    operations = [CommitOperationAdd(name, held) for name, held in files.items()]
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message=message)
    except Exception as error:
        said = " ".join(str(error).split()).replace(token, "[token]")
        raise BashracError(
            f"the hub did not take {repository} ({type(error).__name__}: {said[:300]}); its "
            "content is unchanged, and the same command tries again"
        ) from error
    size = sum(map(_size, files.values()))
    return f"sent {len(files)} files, {size:,} bytes: {commit.commit_url}"


def _size(held: Path | bytes) -> int:
    return len(held) if isinstance(held, bytes) else os.path.getsize(held)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
