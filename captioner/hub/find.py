"""Finds a model's folder: the bundled model, a local folder, a training run, or a download from the Hugging Face Hub.

huggingface_hub is imported only for a download, because exported models run without it.
"""

import hashlib
from pathlib import Path

from captioner.errors import CaptionerError

BUNDLED = Path(__file__).parents[1] / "assets" / "default"


def find_model(
    model: str | Path | None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    with_code: bool = False,
) -> tuple[Path, str]:
    """Return the folder of a model, and the model's name for outputs.

    Args:
        model: None or "default" for the bundled model; a local folder (of a training run, its best checkpoint); else
            `owner/name` or `owner/name@revision` on the Hub, downloaded or taken from the cache.
        revision: branch, tag or commit on the Hub; only for a model of the Hub.
        token: the Hub's access token; None uses the saved one, False none.
        cache_dir: the folder that downloads are cached in; default: huggingface_hub's.
        local_files_only: take it from the cache alone, as HF_HUB_OFFLINE=1 does for everything.
        with_code: download the model's Python files too.

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
    repository, _, at = str(model).partition("@")
    if isinstance(model, Path) or repository.count("/") != 1:
        raise CaptionerError(f"{model}: no such folder")
    if at and revision and at != revision:
        raise CaptionerError(f"{model}: named with another revision, {revision}")
    from captioner.hub.download import download

    return download(repository, at or revision, token, cache_dir, local_files_only, with_code), model


def digest(folder: Path) -> str:
    """Hash a model's files, except its card: equal for the same model, wherever the folder is."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "README.md":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b)
            whole.update(path.name.encode() + content.digest())
    return whole.hexdigest()
