"""The configuration of a captioner: everything needed to build the model, nothing about training."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class CaptionerConfig(PreTrainedConfig):
    """A timm trunk, an optional stack of Transformer layers over its tokens, and a Transformer caption decoder.

    Args:
        encoder_name: timm model name (ViT, DeiT, DINOv2, SigLIP, Swin, a CNN, a CNN-ViT hybrid, ...).
        encoder_kwargs: passed to `timm.create_model`, for example `{"dynamic_img_size": true}`.
        image_size: height and width that the trunk is built for, pixels.
        encoder_layer_norm_eps: epsilon of the trunk's layer norms; None keeps timm's.
        encoder_pooling: window of an average pooling over the trunk's token grid; 1 keeps every token.
        encoder_layers: Transformer encoder layers over the trunk's tokens. With a CNN as trunk, this is the hybrid ViT
            of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929), section 3.1.
        encoder_norm: add layer norms before the projection of the trunk's tokens and before the decoder.
        cross_attention_size: width of the image tokens for the decoder; default: hidden_size. The trunk's tokens are
            projected to it if their width differs.
        hidden_size: width of these layers and of the decoder.
        hidden_act: activation of their feed-forward layers, by its name in transformers.
        num_hidden_layers: decoder layers.
        post_norm: layer norms after each sum, as in BERT, instead of before each part of a layer.
        embedding_norm: with post_norm, add a layer norm after the embeddings.
        image_prefix: image tokens are a prefix of the decoder's self-attention, as in GIT, instead of the input of
            cross-attention. They are always projected, then normed with the trunk's epsilon.
        output_transform: add a dense layer, activation and norm between the decoder's last layer and its head, as in
            BERT.
        head_bias: give the head a bias for each token.
        max_position_embeddings: longest decoder sequence, including the start token.
        tags: the classes of the tag head; if empty, there is none. `problem_type` says whether an image has exactly one
            tag ("single_label_classification") or any number.
        contrastive_size: width of the contrastive embeddings; 0: no contrastive head.
        teacher_classes: number of the teacher's classes for distillation; 0: no such head.
    """

    model_type = "captioner"
    attribute_map = {"d_model": "hidden_size", "decoder_layers": "num_hidden_layers"}  # noqa: RUF012 - transformers' form

    encoder_name: str = "vit_small_patch16_224"
    encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    encoder_layer_norm_eps: float | None = None
    encoder_pooling: int = 1
    encoder_layers: int = 0
    encoder_norm: bool = True
    cross_attention_size: int | None = None
    vocab_size: int = 4000
    hidden_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    post_norm: bool = False
    embedding_norm: bool = True
    image_prefix: bool = False
    output_transform: bool = False
    head_bias: bool = False
    max_position_embeddings: int = 64
    tags: list[str] = field(default_factory=list)
    contrastive_size: int = 0
    teacher_classes: int = 0
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 1
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.encoder_layers and self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 4 for 2-D position embeddings")
        if self.encoder_layers and (self.image_prefix or self.cross_attention_size not in (None, self.hidden_size)):
            raise ValueError("encoder_layers go with neither image_prefix nor a cross_attention_size of its own")
        super().__post_init__(**kwargs)

    @property
    def image_token_size(self) -> int:
        """Width of the image tokens that the decoder reads."""
        return self.cross_attention_size or self.hidden_size


# So that save_pretrained copies this code into the folder, for trust_remote_code=True.
CaptionerConfig.register_for_auto_class()
