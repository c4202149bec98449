"""Finds a captioner and reads it: the bundled one, a folder, a training's folder, or one of the Hugging Face Hub.

What only a download or a model in torch needs is imported there: an exported model is found without.
"""

import hashlib
from pathlib import Path

from captioner.errors import CaptionerError

BUNDLED = Path(__file__).parents[1] / "assets" / "default"


def find_model(model: str | Path | None) -> tuple[Path, str]:
    """The folder of a model, and the name it goes by in outputs.

    Args:
        model: None or "default" for the bundled one; an existing folder is read as such, and a training's folder as
            its best checkpoint; any other `owner/name` is asked of the Hub, through its cache.

    Raises:
        CaptionerError: there is no such model; the message says where it was looked for.
    """
    if model is None or model == "default":
        if not (BUNDLED / "config.json").is_file():
            raise CaptionerError("this installation has no bundled model; name one (--model, or from_pretrained)")
        return BUNDLED, "default"
    return _find(model), str(model)


def _find(model: str | Path) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        trained = folder / "best"
        return trained if trained.is_dir() and not (folder / "config.json").exists() else folder
    if folder.exists():
        raise CaptionerError(f"{model}: a file; a model is a folder with config.json, weights and tokenizer")
    repository = str(model)
    missing = f"{model}: no such folder"
    if isinstance(model, Path) or repository.count("/") != 1:
        raise CaptionerError(missing)
    return _download(repository, missing)


def _download(repository: str, missing: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        # json, safetensors, ONNX, tokenizers and the card: nothing that would have to be unpickled or executed
        wanted = ["*.json", "*.safetensors", "*.onnx", "*.model", "merges.txt", "README.md"]
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
    except HFValidationError as error:
        raise CaptionerError(missing) from error
    except LocalEntryNotFoundError as error:
        raise CaptionerError(f"{missing}, not in the Hub's cache, and the Hub is offline or out of reach") from error
    except RepositoryNotFoundError as error:
        raise CaptionerError(f"{missing}, and no such public model on the Hugging Face Hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise CaptionerError(f"{missing}, and the Hub answered: {str(error).splitlines()[0]}") from error


def digest(folder: Path) -> str:
    """A word for what is in a model's files (its card aside): the same for the same model, wherever it lies."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "README.md":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b)
            whole.update(path.name.encode() + content.digest())
    return whole.hexdigest()
