"""The caption decoders of the families, each as `CaptionerDecoder` and its head.

What a captioner has no place for, but can compute otherwise, is folded into its embeddings: segment embeddings, of
which captions have one; positions that begin at an offset, or are sinusoids; embeddings that are scaled.
"""

import math
import re

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from captioner.convert.map import Part, Weights, activation, require_settings
from captioner.errors import CaptionerError

GPT2_LAYER = {
    "self_attn_norm": "ln_1",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.out_proj": "attn.c_proj",
    "cross_attn_norm": "ln_cross_attn",
    "cross_attn.q_proj": "crossattention.q_attn",
    "cross_attn.kv_proj": "crossattention.c_attn",
    "cross_attn.out_proj": "crossattention.c_proj",
    "mlp_norm": "ln_2",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
}
BERT_LAYER = {
    "self_attn.qkv_proj": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "self_attn.out_proj": ("attention.output.dense",),
    "self_attn_norm": ("attention.output.LayerNorm",),
    "mlp.0": ("intermediate.dense",),
    "mlp.2": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
BERT_CROSS_ATTENTION = {
    "cross_attn.q_proj": ("crossattention.self.query",),
    "cross_attn.kv_proj": ("crossattention.self.key", "crossattention.self.value"),
    "cross_attn.out_proj": ("crossattention.output.dense",),
    "cross_attn_norm": ("crossattention.output.LayerNorm",),
}
TROCR_LAYER = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj": ("self_attn.out_proj",),
    "self_attn_norm": ("self_attn_layer_norm",),
    "cross_attn.q_proj": ("encoder_attn.q_proj",),
    "cross_attn.kv_proj": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attn.out_proj": ("encoder_attn.out_proj",),
    "cross_attn_norm": ("encoder_attn_layer_norm",),
    "mlp.0": ("fc1",),
    "mlp.2": ("fc2",),
    "mlp_norm": ("final_layer_norm",),
}


def gpt2(config: PreTrainedConfig, prefix: str) -> Part:
    require_settings("decoder", config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    part = Part(
        {
            "vocab_size": config.vocab_size,
            "hidden_size": config.n_embd,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "intermediate_size": config.n_inner,
            "hidden_act": activation(config.activation_function),
            "dropout": float(config.resid_pdrop),
            "layer_norm_eps": config.layer_norm_epsilon,
            "initializer_range": config.initializer_range,
            "max_position_embeddings": config.n_positions,
            "tie_word_embeddings": config.tie_word_embeddings,
        }
    )
    body, head = f"{prefix}.transformer", f"{prefix}.lm_head.weight"
    embedding = f"{body}.wte.weight"
    layers = re.escape(f"{body}.h.")
    part.unused = (rf"{layers}\d+\.(attn|crossattention)\.(masked_)?bias", re.escape(head))  # causal masks of old files
    part.origins["decoder.embed_tokens.weight"] = (embedding,)
    part.origins["decoder.embed_positions.weight"] = (f"{body}.wpe.weight",)
    part.origins["lm_head.weight"] = (embedding if config.tie_word_embeddings else head,)
    part.add("decoder.norm", f"{body}.ln_f")
    for index in range(config.n_layer):
        for ours, theirs in GPT2_LAYER.items():
            part.add(f"decoder.layers.{index}.{ours}", f"{body}.h.{index}.{theirs}")

    def prepare(weights: Weights) -> None:
        if config.tie_word_embeddings:
            tie(weights, embedding, head)
        for name, tensor in weights.items():
            if name.startswith(f"{body}.h.") and tensor.ndim == 2:
                weights[name] = tensor.T  # GPT-2's matrices are [in, out]

    part.prepare = prepare
    return part


def bert(config: PreTrainedConfig, prefix: str) -> Part:
    """BERT, of which a `VisionEncoderDecoderModel` and BLIP make a decoder."""
    part = _bert(config, f"{prefix}.bert", BERT_LAYER | BERT_CROSS_ATTENTION)
    part.settings |= {"output_transform": True, "head_bias": True}
    head = f"{prefix}.cls.predictions"
    part.add("decoder.output.dense", f"{head}.transform.dense")
    part.add("decoder.output.norm", f"{head}.transform.LayerNorm")
    _add_head(part, config, f"{prefix}.bert.embeddings.word_embeddings.weight", f"{head}.decoder", f"{head}.bias")
    return part


def roberta(config: PreTrainedConfig, prefix: str) -> Part:
    """RoBERTa: its positions begin after that of padding."""
    require_settings("decoder", config, hidden_act="gelu")
    first = config.pad_token_id + 1
    part = _bert(config, f"{prefix}.roberta", BERT_LAYER | BERT_CROSS_ATTENTION, first)
    part.settings |= {"output_transform": True, "head_bias": True}
    head = f"{prefix}.lm_head"
    part.add("decoder.output.dense", f"{head}.dense")
    part.add("decoder.output.norm", f"{head}.layer_norm")
    _add_head(part, config, f"{prefix}.roberta.embeddings.word_embeddings.weight", f"{head}.decoder", f"{head}.bias")
    return part


def git(config: PreTrainedConfig, prefix: str, head: str) -> Part:
    """GIT's: BERT's layers without cross-attention, and a head of its own."""
    part = _bert(config, prefix, BERT_LAYER)
    part.settings |= {"image_prefix": True, "head_bias": True}
    embedding = f"{prefix}.embeddings.word_embeddings.weight"
    _add_head(part, config, embedding, head, f"{head}.bias")
    part.add("encoder.bridge.projection", f"{prefix}.visual_projection.visual_projection.0")
    part.add("encoder.bridge.norm", f"{prefix}.visual_projection.visual_projection.1")
    return part


def trocr(config: PreTrainedConfig, prefix: str) -> Part:
    """TrOCR's own decoder, BART's with options (Li et al. 2021, https://arxiv.org/abs/2109.10282)."""
    is_tied = config.tie_word_embeddings and not config.scale_embedding
    part = Part(
        {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.decoder_layers,
            "num_attention_heads": config.decoder_attention_heads,
            "intermediate_size": config.decoder_ffn_dim,
            "hidden_act": activation(config.activation_function),
            "dropout": float(config.dropout),
            "layer_norm_eps": 1e-5,
            "initializer_range": config.init_std,
            "max_position_embeddings": config.max_position_embeddings,
            "cross_attention_size": config.cross_attention_hidden_size,
            "tie_word_embeddings": is_tied,
            "post_norm": True,
            "embedding_norm": config.layernorm_embedding,
        }
    )
    body, head = f"{prefix}.model.decoder", f"{prefix}.output_projection.weight"
    embedding, positions = f"{body}.embed_tokens.weight", f"{body}.embed_positions.weight"
    scaled = f"{embedding} scaled" if config.scale_embedding else embedding
    part.unused = (rf"{re.escape(body)}\.(version|embed_positions\.(_float_tensor|weights))", re.escape(head))
    if config.scale_embedding:
        part.unused += (re.escape(embedding),)
    part.origins["decoder.embed_tokens.weight"] = (scaled,)
    part.origins["decoder.embed_positions.weight"] = (positions,)
    part.origins["lm_head.weight"] = (embedding if config.tie_word_embeddings else head,)
    if config.layernorm_embedding:
        part.add("decoder.norm", f"{body}.layernorm_embedding")
    for index in range(config.decoder_layers):
        for ours, theirs in TROCR_LAYER.items():
            part.add(f"decoder.layers.{index}.{ours}", *(f"{body}.layers.{index}.{name}" for name in theirs))

    def prepare(weights: Weights) -> None:
        if config.tie_word_embeddings:
            tie(weights, embedding, head)
        if config.scale_embedding and embedding in weights:
            weights[scaled] = weights[embedding] * config.d_model**0.5
        if not config.use_learned_position_embeddings:
            weights[positions] = sinusoids(config)
        elif positions in weights:
            weights[positions] = weights[positions][2:]  # an offset that BART has

    part.prepare = prepare
    return part


def tie(weights: Weights, *names: str) -> None:
    """One tensor that is saved under one of these names, or under several."""
    for name in names:
        if name in weights:
            for other in names:
                weights.setdefault(other, weights[name])
            return


def sinusoids(config: PreTrainedConfig) -> Tensor:
    """TrOCR's fixed positions [T, D], which begin after that of padding (Vaswani et al. 2017, section 3.5)."""
    half = config.d_model // 2
    first = config.pad_token_id + 1
    places = torch.arange(first, first + config.max_position_embeddings).float()
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _bert(config: PreTrainedConfig, prefix: str, names: dict[str, tuple[str, ...]], first: int = 0) -> Part:
    """What BERT and those that are made of it share; positions begin at the `first`."""
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise CaptionerError(
            f"its decoder has relative positions ({config.position_embedding_type}); a captioner has none"
        )
    embeddings = f"{prefix}.embeddings"
    positions, segments = f"{embeddings}.position_embeddings.weight", f"{embeddings}.token_type_embeddings.weight"
    part = Part(
        {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "hidden_act": activation(config.hidden_act),
            "dropout": float(config.hidden_dropout_prob),
            "layer_norm_eps": config.layer_norm_eps,
            "initializer_range": config.initializer_range,
            "max_position_embeddings": config.max_position_embeddings - first,
            "tie_word_embeddings": config.tie_word_embeddings,
            "post_norm": True,
        },
        unused=(
            rf"{re.escape(embeddings)}\.(position_ids|token_type_ids)",
            re.escape(segments),
            rf"{prefix}\.pooler\..*",
        ),
    )
    part.origins["decoder.embed_tokens.weight"] = (f"{embeddings}.word_embeddings.weight",)
    part.origins["decoder.embed_positions.weight"] = (positions,)
    part.add("decoder.norm", f"{embeddings}.LayerNorm")
    for index in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            part.add(f"decoder.layers.{index}.{ours}", *(f"{prefix}.encoder.layer.{index}.{name}" for name in theirs))

    def prepare(weights: Weights) -> None:
        for name in [name for name in weights if name.endswith((".gamma", ".beta"))]:  # layer norms of the first files
            weights[name.replace(".gamma", ".weight").replace(".beta", ".bias")] = weights.pop(name)
        if positions in weights:
            weights[positions] = weights[positions][first:] + (weights[segments][0] if segments in weights else 0)

    part.prepare = prepare
    return part


def _add_head(part: Part, config: PreTrainedConfig, embedding: str, head: str, bias: str) -> None:
    """The matrix of logits and its bias, both tied or not; what is tied is saved under either name or both."""
    is_tied = config.tie_word_embeddings
    weight, own_bias = f"{head}.weight", f"{head}.bias"
    part.origins["lm_head.weight"] = (embedding if is_tied else weight,)
    part.origins["lm_head.bias"] = (bias if is_tied else own_bias,)
    part.unused += tuple(map(re.escape, (weight, bias, own_bias)))
    before = part.prepare

    def prepare(weights: Weights) -> None:
        before(weights)
        tie(weights, *((bias, own_bias) if is_tied else (own_bias, bias)))
        if is_tied:
            tie(weights, embedding, weight)

    part.prepare = prepare
