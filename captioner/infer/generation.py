"""Decoding, apart from the model: frozen options in, hypotheses with their log-probabilities out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captioner.errors import CaptionerError
from captioner.infer.options import GenerationOptions
from captioner.infer.search import Beams, Captions, StepDecoder

CHECK_EVERY = 4
"""Steps between two looks at which images are done. An accelerator has to be waited for at each; a CPU looks always."""


@dataclass(frozen=True)
class Hypothesis:
    """One caption as tokens.

    Attributes:
        token_ids: the caption without begin and end of sequence.
        log_probs: log p(token | image, tokens before) of each, under the model itself: before temperature, top-k,
            top-p and all that forbids a token. Those of a prefix are among them.
        end_log_prob: the same of the end of sequence; None where `max_new_tokens` cut the caption.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    end_log_prob: float | None

    @property
    def mean_log_prob(self) -> float:
        """Mean over the tokens and the end of sequence: the log of the geometric mean probability."""
        values = self.log_probs if self.end_log_prob is None else (*self.log_probs, self.end_log_prob)
        return sum(values) / len(values)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, encoder_inputs: Mapping[str, Any], options: GenerationOptions
) -> list[list[Hypothesis]]:
    """Caption a batch of images.

    Args:
        model: a `CaptionerForConditionalGeneration` in evaluation mode.
        encoder_inputs: `pixel_values` [B, 3, H, W], or `trunk_features` [B, P, C], or `encoder_outputs`.

    Returns:
        For each of the B images its `num_return_sequences` hypotheses, best first.

    Raises:
        CaptionerError: `min_new_tokens` or the prefix is more than the model can hold; it has no such token.
    """
    longest = min(options.max_new_tokens, model.config.max_position_embeddings - len(options.prefix_ids))
    _check(model, options, longest)
    outputs = (
        encoder_inputs["encoder_outputs"] if "encoder_outputs" in encoder_inputs else model.encoder(**encoder_inputs)
    )
    start = model.config.decoder_start_token_id
    prompt = torch.tensor([start, *options.prefix_ids], device=outputs[0].device)
    return _search(model, outputs[0], options, prompt, longest)


def _check(model: PreTrainedModel, options: GenerationOptions, longest: int) -> None:
    if longest < 1:
        raise CaptionerError(
            f"a prefix of {len(options.prefix_ids)} tokens leaves no room for a caption: "
            f"this model writes at most {model.config.max_position_embeddings} tokens"
        )
    if options.min_new_tokens > longest:
        raise CaptionerError(f"min_new_tokens is {options.min_new_tokens}; this model writes at most {longest} tokens")
    for ids in (options.prefix_ids, *options.banned_ids):
        if not all(0 <= token < model.config.vocab_size for token in ids):
            raise CaptionerError(f"tokens {ids}: this model has those from 0 to {model.config.vocab_size - 1}")
    if model.config.eos_token_id in options.prefix_ids:
        raise CaptionerError(f"prefix_ids {options.prefix_ids} hold the end of sequence, {model.config.eos_token_id}")


def _search(
    model: PreTrainedModel, encoder_hidden_states: Tensor, options: GenerationOptions, prompt: Tensor, longest: int
) -> list[list[Hypothesis]]:
    """Captions for image tokens [B, P, D], step by step; images that are done leave the batch."""
    is_beam_search, end = options.num_beams != 1, model.config.eos_token_id
    decoder = StepDecoder(model, encoder_hidden_states, options.num_captions, is_beam_search)
    logits = decoder.start(prompt, longest - 1)
    prefix = prompt[1:].expand(len(logits), -1)[..., None]
    prefix_log_probs = logits[:, :-1].log_softmax(-1).gather(-1, prefix)[..., 0]
    captions = (Beams if is_beam_search else Captions)(options, prompt, prefix_log_probs, end)
    logits = logits[:, -1:].expand(-1, options.num_captions, -1)

    images = list(range(len(encoder_hidden_states)))
    finished: dict[int, list[Hypothesis]] = {}
    check_every = 1 if prompt.device.type == "cpu" else CHECK_EVERY
    for step in range(1, longest + 1):
        is_last = step == longest
        tokens, parents = captions.advance(logits, is_last)
        if is_last or step % check_every == 0:
            done = [row for row, is_done in enumerate(captions.done.tolist()) if is_done or is_last]
            if 4 * len(done) >= len(images):  # for fewer it does not pay to move the others' keys and values
                for row, group in zip(done, _hypotheses(captions, done, options, end), strict=True):
                    finished[images[row]] = group
                left = sorted(set(range(len(images))) - set(done))
                if not left:
                    break
                images = [images[row] for row in left]
                kept = torch.tensor(left, device=prompt.device)
                decoder.keep(kept)
                captions.keep(kept)
                tokens, parents = tokens[kept], parents[kept]
        logits = decoder.step(tokens, parents)
    return [finished[image] for image in sorted(finished)]


def _hypotheses(captions: Captions, rows: list[int], options: GenerationOptions, end: int) -> list[list[Hypothesis]]:
    """The captions of the images in these rows, best first."""
    sequences, log_probs = (tensor.tolist() for tensor in captions.written(rows))
    groups = [
        [_hypothesis(ids[1:], values, end) for ids, values in zip(*image, strict=True)]
        for image in zip(sequences, log_probs, strict=True)
    ]
    if options.do_sample:  # beams arrive ranked, draws do not
        groups = [sorted(group, key=lambda hypothesis: -hypothesis.mean_log_prob) for group in groups]
    return groups


def _hypothesis(ids: list[int], log_probs: list[float], end: int) -> Hypothesis:
    if end not in ids:
        return Hypothesis(tuple(ids), tuple(log_probs), None)
    length = ids.index(end)
    return Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), log_probs[length])
