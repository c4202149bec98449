"""Finds a model's folder: the bundled model, a local folder, a training run, or a download from the Hugging Face Hub.

huggingface_hub is imported only for a download, because exported models run without it.
"""

import hashlib
from pathlib import Path

from captioner.errors import CaptionerError

BUNDLED = Path(__file__).parents[1] / "assets" / "default"

DOWNLOADED = ["*.json", "*.safetensors", "*.onnx", "*.model", "merges.txt", "README.md"]
"""Files to download: configuration, weights, tokenizers and the card. No pickles and no code."""


def find_model(
    model: str | Path | None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Path, str]:
    """Return the folder of a model, and the model's name for outputs.

    Args:
        model: None or "default" for the bundled model; a local folder (of a training run, its best checkpoint); else
            `owner/name` on the Hub, downloaded or taken from the cache.
        revision: branch, tag or commit on the Hub; only for a model of the Hub.
        token: the Hub's access token; None uses the saved one, False none.
        cache_dir: the folder that downloads are cached in; default: huggingface_hub's.

    Raises:
        CaptionerError: there is no such model, or the Hub cannot be reached.
    """
    if model is None or model == "default":
        if not (BUNDLED / "config.json").is_file():
            raise CaptionerError("this installation has no bundled model; name one (--model, or from_pretrained)")
        return BUNDLED, "default"
    folder = Path(model).expanduser()
    if folder.is_dir():
        best = folder / "best"
        return best if best.is_dir() and not (folder / "config.json").exists() else folder, str(model)
    if folder.exists():
        raise CaptionerError(f"{model}: a file; a model is a folder with config.json, weights and tokenizer")
    if isinstance(model, Path) or model.count("/") != 1:
        raise CaptionerError(f"{model}: no such folder")
    return _download(model, revision, token, cache_dir), model


def _download(repository: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    missing = f"{repository}: no such folder"
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=DOWNLOADED
        )
    except HFValidationError as error:
        raise CaptionerError(missing) from error
    except LocalEntryNotFoundError as error:
        raise CaptionerError(f"{missing}, not in the Hub's cache, and the Hub is offline or out of reach") from error
    except GatedRepoError as error:
        raise CaptionerError(
            f"{repository}: gated on the Hub; accept its terms there and log in or pass a token"
        ) from error
    except RepositoryNotFoundError as error:
        raise CaptionerError(f"{missing}, and the Hub has no such model that you may read") from error
    except RevisionNotFoundError as error:
        raise CaptionerError(f"{repository}: the Hub has no revision {revision!r} of it") from error
    except (HfHubHTTPError, OSError) as error:
        raise CaptionerError(f"{missing}, and the Hub answered: {str(error).splitlines()[0]}") from error
    return Path(folder)


def digest(folder: Path) -> str:
    """Hash a model's files, except its card: equal for the same model, wherever the folder is."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "README.md":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b)
            whole.update(path.name.encode() + content.digest())
    return whole.hexdigest()
