"""Decoding, apart from the model: frozen options in, hypotheses with their log-probabilities out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captioner.errors import CaptionerError
from captioner.infer.search import Beams, Captions, StepDecoder

DEFAULT_NUM_BEAMS = 3
CHECK_EVERY = 4
"""Steps between two looks at which images are done. An accelerator has to be waited for at each; a CPU looks always."""


@dataclass(frozen=True)
class GenerationOptions:
    """How captions are searched for or drawn.

    Attributes:
        num_beams: beam width, 1 is greedy; default 3 (at least `num_return_sequences`). Sampling goes without beams.
        max_new_tokens: tokens of the longest caption, end of sequence included; never above what the model can hold.
        min_new_tokens: the end of sequence is not chosen before this many tokens.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice; 0 switches it off.
        prefix_ids: tokens that every caption starts with; they do not count as new.
        banned_ids: sequences of tokens that no caption goes on with, one token of which may be all.
        length_penalty: beams are ranked by sum(log p) / length ** length_penalty; above 0 favours longer captions.
        do_sample: draw tokens instead of searching for the most probable ones.
        temperature: logits are divided by it before drawing.
        top_k: draw from the k most probable tokens; 0 switches it off (Fan et al. 2018, arXiv:1805.04833).
        top_p: draw from the smallest set that holds this much probability (Holtzman et al. 2020, arXiv:1904.09751).
        seed: makes sampling repeatable: the same image, options and seed give the same caption whatever else is in
            the batch. None draws from torch's global generator.
        num_return_sequences: captions an image.

    Raises:
        CaptionerError: a value out of range, or one that would have no effect.
    """

    num_beams: int | None = None
    max_new_tokens: int = 40
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    prefix_ids: tuple[int, ...] = ()
    banned_ids: tuple[tuple[int, ...], ...] = ()
    length_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("no_repeat_ngram_size", 0), ("top_k", 0)):
            self._require(getattr(self, name) >= low, name, f"at least {low}")
        self._require(self.num_return_sequences >= 1, "num_return_sequences", "at least 1")
        self._require(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", "at most max_new_tokens")
        self._require(math.isfinite(self.length_penalty), "length_penalty", "a finite number")
        self._require(all(self.banned_ids), "banned_ids", "sequences of at least 1 token")
        self._require(0 < self.temperature < math.inf, "temperature", "above 0")
        self._require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")
        if not self.do_sample:
            for name in ("temperature", "top_k", "top_p", "seed"):
                default = type(self).__dataclass_fields__[name].default
                self._require(getattr(self, name) == default, name, "left out unless do_sample is on")
        if self.num_beams is None:
            beams = 1 if self.do_sample else max(DEFAULT_NUM_BEAMS, self.num_return_sequences)
            object.__setattr__(self, "num_beams", beams)
        assert self.num_beams is not None
        self._require(self.num_beams >= 1, "num_beams", "at least 1")
        if self.do_sample:
            self._require(self.num_beams == 1, "num_beams", "1 or left out with do_sample")
        else:
            self._require(self.num_return_sequences <= self.num_beams, "num_return_sequences", "at most num_beams")

    @property
    def num_captions(self) -> int:
        """Captions that an image has in the making."""
        assert self.num_beams is not None
        return max(self.num_beams, self.num_return_sequences)

    def _require(self, condition: bool, name: str, expectation: str) -> None:
        if not condition:
            raise CaptionerError(f"{name} must be {expectation}; it is {getattr(self, name)}")


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
