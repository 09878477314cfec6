"""Models from the Hugging Face hub by name: safetensors, JSON and text, never a pickle."""

from __future__ import annotations

import re
from pathlib import Path

from pellucid.core.errors import MissingExtraError, ModelError
from pellucid.core.files import disk_errors

FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]  # in folders too, such as 1_Pooling/config.json
SECOND_COPIES = ["consolidated*.safetensors", "onnx/*", "openvino/*", "original/*"]  # the same model for other programs
HUB_ID = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}(@\w[\w./-]*)?", re.ASCII)
FORBIDDEN = re.compile(r"^[^@]*--|\.\.|[.-](/|@|$)|\.git(@|$)")


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form of a model's name on the hub: NAME or OWNER/NAME, and perhaps @REVISION."""
    return bool(HUB_ID.fullmatch(text)) and not FORBIDDEN.search(text)


def fetch_model(name: str, *, revision: str | None = None) -> Path:
    """The local folder of the model OWNER/NAME, NAME or OWNER/NAME@REVISION, downloaded unless the hub's cache has it.

    The cache, HF_HUB_OFFLINE, HF_ENDPOINT and the login are those of `huggingface_hub`.
    """
    if revision and "@" in name:
        raise ModelError(f"{name!r} and the revision {revision!r} are two revisions; give one")
    if not looks_like_hub_id(f"{name}@{revision}" if revision else name):
        asked = f"{name!r}, revision {revision!r}," if revision else repr(name)
        raise ModelError(f"{asked} is neither a model's folder nor a name on the hub; use OWNER/NAME or OWNER/NAME@REVISION")
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # that of the HTTP client it is built on
    except ImportError:
        raise MissingExtraError("a model from the hub", "hub") from None

    repository, _, suffix = name.partition("@")
    revision = revision or suffix or None
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, ignore_patterns=SECOND_COPIES))
    except (OSError, HTTPError) as error:
        raise ModelError(_what_went_wrong(error, repository, revision)) from None
    if any(folder.glob("*.safetensors")):
        return folder
    if constants.HF_HUB_OFFLINE:  # another program may have cached other files of it
        raise ModelError(_not_cached(repository, constants.HF_HUB_CACHE))
    raise ModelError(
        f"{repository} has no weights as safetensors, and pickles are not read; load it with transformers, "
        "write it with save_pretrained, and give that folder"
    )


def _not_cached(repository: str, cache: str) -> str:
    return (
        f"{repository} is not (or not in that revision) in the cache {cache}, and HF_HUB_OFFLINE forbids to download it; "
        "unset HF_HUB_OFFLINE, or give a model's folder"
    )


def _what_went_wrong(error: Exception, repository: str, revision: str | None) -> str:
    """One sentence for what `huggingface_hub` raises."""
    from huggingface_hub import constants, errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return _not_cached(repository, constants.HF_HUB_CACHE)
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; give one of its branches, tags or commits"
    if isinstance(cause, errors.RepositoryNotFoundError) and not isinstance(cause, errors.GatedRepoError):
        return f"{constants.ENDPOINT} has no model {repository}, or it is private; check the name, or run: hf auth login"
    if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"{repository} is given only to those who accept its terms; accept them at {page}, and run: hf auth login"
    reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
    return f"{repository} cannot be downloaded from {constants.ENDPOINT} ({reason}); try again, or give a model's folder"
