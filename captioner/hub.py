"""Finds a captioner and reads it: the bundled one, a folder, a training's folder, or one of the Hugging Face Hub.

What only a download or a model in torch needs is imported there: an exported model is found without.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import CaptionerError

if TYPE_CHECKING:
    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
    from captioner.model.processing_captioner import CaptionerProcessor

HEADS = {"tags": "heads.tags.", "teacher_classes": "heads.teacher.", "contrastive_size": "heads.contrastive."}
"""Fields of the configuration that ask for a head, and where its weights are."""
BUNDLED = Path(__file__).parent / "assets" / "default"


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


def load_model(
    folder: Path, name: str, **config_changes: Any
) -> "tuple[CaptionerForConditionalGeneration, CaptionerProcessor]":
    """Read a model's folder, in float32, with these fields of its configuration (`dropout`, say) changed. Heads that
    these ask for and the folder has not are random.

    Raises:
        CaptionerError: no captioner, files that cannot be read, or weights that are missing or of another shape.
    """
    import torch
    from safetensors import SafetensorError

    from captioner.model.configuration_captioner import CaptionerConfig
    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
    from captioner.model.processing_captioner import CaptionerProcessor

    if not (folder / "config.json").is_file():
        raise CaptionerError(f"{name}: no config.json in this folder, so it is no model")
    try:
        config, _ = CaptionerConfig.get_config_dict(folder, local_files_only=True)
        if not isinstance(config, dict):
            raise ValueError("config.json is no JSON object")
        if config.get("model_type") != CaptionerConfig.model_type:
            raise CaptionerError(f"{name}: a {config.get('model_type')!r} model, not a {CaptionerConfig.model_type!r}")
        with quiet_transformers():
            model, report = CaptionerForConditionalGeneration.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **config_changes,
            )
        processor = CaptionerProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: timm, torch, sentencepiece
        raise CaptionerError(f"{name}: cannot be read as a model: {str(error).splitlines()[0]}") from error
    absent = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    new_heads = tuple(HEADS[field] for field in HEADS.keys() & config_changes.keys())
    if absent := [weight for weight in absent if not weight.startswith(new_heads)]:  # transformers leaves them random
        raise CaptionerError(f"{name}: weights missing or of another shape: {', '.join(absent[:5])}")
    return model, processor


def save_model(model: "CaptionerForConditionalGeneration", processor: "CaptionerProcessor", folder: Path) -> None:
    """Write a model's folder: configuration, weights, processor and tokenizer.

    Raises:
        OSError: it cannot be written, because the disk is full, say.
    """
    from safetensors import SafetensorError

    with quiet_transformers():
        try:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(str(error)) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off stderr, which belongs to our caller."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
