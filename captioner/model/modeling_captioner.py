"""The captioner: image encoder and caption decoder as one transformers model.

Shapes: B images, K captions an image, N = B * K sequences, T tokens, P image tokens, D width, V vocabulary.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_captioner import CaptionerConfig
from .decoder import CaptionerDecoder
from .encoder import CaptionerEncoder, create_trunk
from .heads import CaptionerHeads, ContrastiveHead
from .recording import Recording

IGNORE_INDEX = -100
"""The label of positions that count towards no loss, as in torch's cross-entropy."""


def shift_tokens_right(labels: Tensor, decoder_start_token_id: int, pad_token_id: int) -> Tensor:
    """Decoder inputs [N, T] for labels [N, T]: position t reads label t - 1, position 0 the start token.

    This is the only shift in the project: the logits at position t are scored against label t.
    """
    inputs = labels.roll(1, dims=1)
    inputs[:, 0] = decoder_start_token_id
    return inputs.masked_fill(inputs == IGNORE_INDEX, pad_token_id)


def caption_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits [..., T, V] against labels [..., T], each token's times its weight
    [..., T] if there are any, and the number of valid tokens.

    Sum and count are separate so that the mean over processes and accumulation steps is exact. Smoothing spreads its
    mass evenly over the vocabulary (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7).
    """
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum" if weights is None else "none",
        label_smoothing=label_smoothing,
    )
    if weights is not None:
        total = (total * weights.flatten()).sum()
    return total, (labels != IGNORE_INDEX).sum()


class CaptionerForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = CaptionerConfig
    base_model_prefix = "captioner"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # tells transformers' Trainer to pass `num_items_in_batch`
    _supports_sdpa = True
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012 - transformers' form
    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012 - transformers' form

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(config)
        self.encoder = CaptionerEncoder(config)
        self.decoder = CaptionerDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.heads = CaptionerHeads(config)
        for module in self.encoder.trunk.model.modules():
            module._is_hf_initialized = True  # timm has initialised it; transformers must not do so again
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContrastiveHead):
            init.constant_(module.logit_scale, ContrastiveHead.INITIAL_LOGIT_SCALE)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, then compute the trunk's non-persistent buffers (such as Swin's tables).

        transformers builds the model on the meta device, where these buffers have no values.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        trunk = model.encoder.trunk.model
        saved = set(trunk.state_dict())
        unsaved = [name for name, _ in trunk.named_buffers() if name not in saved]
        if unsaved:
            fresh = dict(create_trunk(model.config).named_buffers())
            for name in unsaved:
                buffer = trunk.get_buffer(name)
                trunk.get_submodule(name.rpartition(".")[0]).register_buffer(
                    name.rpartition(".")[2], fresh[name].to(buffer.device, buffer.dtype), persistent=False
                )
        return loaded

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.encoder

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        super().gradient_checkpointing_enable(*args, **kwargs)
        self.encoder.trunk.model.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        super().gradient_checkpointing_disable()
        self.encoder.trunk.model.set_grad_checkpointing(False)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return shift_tokens_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    def generate(
        self, *args: Any, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers. In addition, captions may begin with texts: `input_ids` [B, T] and their `attention_mask`
        from the processor, which transformers' image-text-to-text pipeline passes."""
        if input_ids is not None:
            kwargs |= self._beginnings(input_ids, attention_mask)
            longest = self.config.max_position_embeddings + 1 - kwargs["decoder_input_ids"].shape[1]
            settings = kwargs.get("generation_config") or self.generation_config
            if wanted := kwargs.get("max_new_tokens") or settings.max_new_tokens:
                kwargs["max_new_tokens"] = min(wanted, longest)
        return super().generate(*args, **kwargs)

    def _beginnings(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """Turn texts with an end-of-sequence token into decoder inputs: a start token first, padding on the left."""
        config = self.config
        kept = input_ids != config.eos_token_id
        if attention_mask is not None:
            kept &= attention_mask.bool()
        texts = [row[keep] for row, keep in zip(input_ids, kept, strict=True)]
        ids = input_ids.new_full((len(texts), 1 + max(map(len, texts))), config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            start = ids.shape[1] - len(text) - 1
            ids[row, start], ids[row, start + 1 :], mask[row, start:] = config.decoder_start_token_id, text, 1
        return {"decoder_input_ids": ids, "decoder_attention_mask": mask}

    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        trunk_features: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Encode the images (unless `encoder_outputs` is given) and decode captions against them.

        There is no `**kwargs`, so an unknown argument raises a TypeError. When transformers renamed `past_key_values`
        to `cache`, a silent `**kwargs` lost the cache.

        Args:
            pixel_values: [B, 3, height, width], from the processor.
            trunk_features: [B, P, C], the trunk's tokens instead of pixels (training caches them).
            decoder_input_ids: [B * K, T]: K captions for each image, in adjacent rows; default: from the labels, by
                `shift_tokens_right`.
            labels: [B * K, T], `IGNORE_INDEX` where nothing is predicted. The loss is the mean cross-entropy over valid
                tokens, or its sum divided by `num_items_in_batch`.
            return_dict: False returns a tuple of the fields that are not None. This and the next two default to the
                configuration.
            output_attentions: return attention weights. torch's fused kernels are then not used.
            output_hidden_states: return the input of every layer, and the output of the last one after its norm. The
                encoder's begin after the trunk.
            logits_to_keep: compute only the last logits, so many, or those at these positions; 0 means all.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                pixel_values=pixel_values,
                trunk_features=trunk_features,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("forward needs decoder_input_ids or labels")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        if output_attentions and config.image_prefix:
            raise ValueError("output_attentions is not supported with image_prefix")
        recorded = None
        if output_attentions or output_hidden_states:
            recorded = Recording(self.decoder.layers, output_attentions, output_hidden_states)
        with recorded or nullcontext():
            hidden_states = self.decoder(decoder_input_ids, encoder_outputs[0], decoder_attention_mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept])

        loss = None
        if labels is not None:
            total, count = caption_cross_entropy(logits, labels)
            loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=cache,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
            **(recorded.of_decoder(hidden_states) if recorded else {}),
        )
        return output if return_dict else output.to_tuple()


# So that save_pretrained copies this code into the folder, for trust_remote_code=True.
CaptionerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
