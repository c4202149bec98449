"""The family of GIT (Wang et al. 2022, https://arxiv.org/abs/2205.14100): CLIP's ViT, whose tokens are a prefix of the
caption in the layers of a BERT."""

from pathlib import Path

from transformers import GitConfig, GitForCausalLM

from captioner.convert import decoders, encoders
from captioner.convert.map import require_settings
from captioner.convert.read import Checkpoint, read_checkpoint, special_tokens

MODEL_TYPE = GitConfig.model_type


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint of this family.

    Raises:
        CaptionerError: it is incomplete, made for videos, or one that ours cannot compute.
    """
    config = GitConfig.from_pretrained(folder, local_files_only=True)
    require_settings("configuration", config, num_image_with_embedding=None)
    encoder = encoders.clip(config.vision_config, "git.image_encoder.vision_model")
    decoder = decoders.git(config, "git", "output")
    return read_checkpoint(folder, GitForCausalLM, config, config, encoder, decoder, special_tokens)
