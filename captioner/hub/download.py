"""Downloads a model's files from the Hugging Face Hub; every failure is one line that says what to do."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from captioner.errors import CaptionerError

FILES = ["*.json", "*.safetensors", "*.onnx", "*.model", "*.txt", "*.jinja", "README.md"]
"""Configuration, weights, tokenizers, chat templates, the card. No code; pickles only where there is nothing else."""
PICKLES = ["pytorch_model*.bin"]
IGNORED = ["*/*"]
"""Folders: other formats of the same model, and what its training left."""


def download(
    repository: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    with_code: bool = False,
) -> Path:
    """Return the folder of a model of the Hub in the cache, downloaded as far as it is not there.

    Raises:
        CaptionerError: there is no such model or revision, it may not be read, the Hub cannot be reached or answers
            with an error, or what arrives is cut or not what was announced.
    """

    def snapshot(patterns: list[str], commit: str | None) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=commit,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
                ignore_patterns=IGNORED,
            )
        )

    cache = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE)
    blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    before = _complete(blobs)
    try:
        with _quiet():
            folder = snapshot([*FILES, *(["*.py"] if with_code else [])], revision)
            if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.onnx")):
                snapshot(PICKLES, folder.name)
    except (HTTPError, HFValidationError, XetDownloadError, OSError, ValueError) as error:
        raise CaptionerError(f"{repository}: {_explained(error, revision)}") from error
    for blob in _complete(blobs) - before:
        _check_hash(blob, repository, folder)
    return folder


def _explained(error: Exception, revision: str | None) -> str:
    """What went wrong, and what to do.

    huggingface_hub reports most errors of the Hub as files that its cache lacks too, with the Hub's own as the cause.
    """
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    match cause:
        case HFValidationError():
            return "no such folder"
        case GatedRepoError():
            return "gated on the Hub; accept its terms there and log in or pass a token"
        case RepositoryNotFoundError():
            return "no such folder, and the Hub has no such model that you may read; a private one needs a token"
        case RevisionNotFoundError():
            return f"the Hub has no revision {revision!r} of it"
        case DisabledRepoError():
            return "the Hub has disabled it"
        case HfHubHTTPError():
            return _answered(cause)
        case IncompleteSnapshotError():
            return "only part of it is in the Hub's cache, and the Hub is offline or out of reach"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            return "no such folder, not in the Hub's cache, and the Hub is offline or out of reach"
        case FileMetadataError():
            return f"the Hub's answer is not one of the Hub: {_line(cause)}"
        case HTTPError() if isinstance(error, LocalEntryNotFoundError):
            return f"no such folder, not in the Hub's cache, and the Hub cannot be reached ({_line(cause)})"
        case HTTPError() | XetDownloadError():
            return f"its download broke off ({_line(cause)}); run the same command again to continue"
        case OSError() if cause.errno is not None:
            return f"cannot be written to the Hub's cache: {cause.strerror}: {cause.filename}"
    return f"its download failed: {_line(cause)}"


def _answered(error: HfHubHTTPError) -> str:
    status, headers = error.response.status_code, error.response.headers
    match status:
        case 401:
            return "the Hub does not know the access token (401); log in anew or pass another"
        case 403:
            return "the access token may not read it (403)"
        case 429:
            seconds = headers.get("Retry-After", "")
            wait = f"in {seconds} seconds" if seconds.isdecimal() else "later"
            return f"the Hub is asked too often from here (429); try again {wait}, or log in for a higher limit"
        case _ if status >= 500:
            return f"the Hub has a fault ({status}); try again later"
    return f"the Hub answered: {_line(error)}"


def _line(error: BaseException) -> str:
    lines = str(error).split("\n")
    text = next((line.strip() for line in lines if line.strip()), type(error).__name__)
    return text[:200].rstrip(".")


def _complete(blobs: Path) -> set[Path]:
    return {path for path in blobs.glob("*") if path.suffix != ".incomplete"}


def _check_hash(blob: Path, repository: str, folder: Path) -> None:
    """A blob's name is its ETag, which for the Hub is a hash of its content: SHA-256 of a large file, git's of others.

    Raises:
        CaptionerError: the content is another; it is removed.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    content = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with blob.open("rb") as file:
        while part := file.read(1 << 20):
            content.update(part)
    if content.hexdigest() == blob.name:
        return
    names = [path for path in folder.iterdir() if path.resolve() == blob.resolve()]
    for path in (*names, blob):
        path.unlink()
    raise CaptionerError(
        f"{repository}: what arrived as {', '.join(path.name for path in names)} is not what the Hub announced (its "
        "hash is another), and was removed; try again"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's warnings of each attempt off stderr."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
