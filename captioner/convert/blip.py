"""The family of BLIP's captioners (Li et al. 2022, https://arxiv.org/abs/2201.12086): a ViT, and BERT as a decoder.

They were trained on captions that begin with "a picture of", and caption without it as well: it is a prefix like any
other.
"""

from pathlib import Path

from transformers import BlipConfig, BlipForConditionalGeneration, GenerationConfig

from captioner.convert import decoders, encoders
from captioner.convert.read import Checkpoint, SpecialTokens, read_checkpoint
from captioner.errors import CaptionerError

MODEL_TYPE = BlipConfig.model_type


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint of this family.

    Raises:
        CaptionerError: it is incomplete, not a captioner, or one that ours cannot compute.
    """
    config = BlipConfig.from_pretrained(folder, local_files_only=True)
    if "BlipForConditionalGeneration" not in (config.architectures or ["BlipForConditionalGeneration"]):
        raise CaptionerError(f"a {config.architectures[0]}, which writes no captions")
    text = config.text_config
    encoder = encoders.blip(config.vision_config, "vision_model")
    decoder = decoders.bert(text, "text_decoder")
    decoder.settings |= {"encoder_norm": False, "cross_attention_size": text.encoder_hidden_size}
    return read_checkpoint(folder, BlipForConditionalGeneration, config, text, encoder, decoder, _special_tokens)


def _special_tokens(config: BlipConfig, generation: GenerationConfig) -> SpecialTokens:
    """As its `generate` has them, whatever the generation settings say."""
    text = config.text_config
    return SpecialTokens(text.bos_token_id, text.sep_token_id, text.pad_token_id)
