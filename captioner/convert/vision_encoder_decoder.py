"""transformers' `VisionEncoderDecoderModel`: ViT, DeiT, BEiT or Swin with GPT-2, BERT, RoBERTa or TrOCR's decoder."""

from pathlib import Path

from transformers import PreTrainedModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

from captioner.convert import decoders, encoders
from captioner.convert.map import Part
from captioner.convert.read import Checkpoint, read_checkpoint, special_tokens
from captioner.errors import CaptionerError

MODEL_TYPE = VisionEncoderDecoderConfig.model_type
ENCODERS = {
    "vit": encoders.vision_transformer,
    "deit": encoders.vision_transformer,
    "beit": encoders.beit,
    "swin": encoders.swin,
}
DECODERS = {"gpt2": decoders.gpt2, "bert": decoders.bert, "roberta": decoders.roberta, "trocr": decoders.trocr}


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint of this family.

    Raises:
        CaptionerError: it is incomplete, or a captioner cannot compute what its configuration says.
    """
    config = VisionEncoderDecoderConfig.from_pretrained(folder, local_files_only=True)
    for part, known in {"encoder": ENCODERS, "decoder": DECODERS}.items():
        kind = getattr(config, part).model_type
        if kind not in known:
            raise CaptionerError(f"its {part} is {kind!r}; convert reads {', '.join(known)}")
    encoder = ENCODERS[config.encoder.model_type](config.encoder, "encoder")
    decoder = DECODERS[config.decoder.model_type](config.decoder, "decoder")
    decoder.settings["encoder_norm"] = False
    _connect(config, decoder)
    checkpoint = read_checkpoint(
        folder, VisionEncoderDecoderModel, config, config.decoder, encoder, decoder, special_tokens
    )
    restore_sinusoids(checkpoint.model)
    return checkpoint


def restore_sinusoids(model: PreTrainedModel) -> None:
    """Compute TrOCR's fixed positions anew, which transformers loses: it builds models on the meta device."""
    for module in model.modules():
        if isinstance(module, TrOCRSinusoidalPositionalEmbedding) and module.weights.is_meta:
            module.weights = module.get_embedding(len(module.weights), module.embedding_dim, module.padding_idx)


def _connect(config: VisionEncoderDecoderConfig, decoder: Part) -> None:
    """Image tokens are projected to the decoder's width, or its cross-attention reads theirs."""
    reads = decoder.settings.get("cross_attention_size")
    if reads is None and config.encoder.hidden_size != config.decoder.hidden_size:
        decoder.add("encoder.bridge.projection", "enc_to_dec_proj")
