"""Reads the files of a checkpoint: what a family's `read` returns, and what families share."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from captioner.errors import CaptionerError
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.processing_captioner import CaptionerProcessor

MALFORMED = (ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers and safetensors raise for files with unexpected content."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, ready to become a captioner.

    Attributes:
        model: the original, in float32. Its `forward` takes `pixel_values` and `decoder_input_ids` and returns logits.
        config: the captioner's configuration.
        weights: the captioner's state dict.
        processor: the captioner's processor.
    """

    model: PreTrainedModel
    config: CaptionerConfig
    weights: dict[str, Tensor]
    processor: CaptionerProcessor


def model_type(folder: Path) -> object:
    """Return the model type that config.json names."""
    require(folder, "config.json")
    return PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a checkpoint, from one safetensors file or from shards.

    Raises:
        CaptionerError: there are none, or only pickles.
    """
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        found = f"there is {pickles[0]}, but no model.safetensors" if pickles else "there is no model.safetensors"
        raise CaptionerError(
            f"{found}; a pickle can run code and is not read: if you trust it, load it with transformers and "
            "save_pretrained() it anew"
        )
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def require(folder: Path, *files: str) -> None:
    """Check that the folder has one of these files; transformers makes up a tokenizer if there is none.

    Raises:
        CaptionerError: it has none of them.
    """
    if not any((folder / file).is_file() for file in files):
        raise CaptionerError(f"there is no {' or '.join(files)} in it")
