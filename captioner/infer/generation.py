"""Decoding, apart from the model: frozen options in, hypotheses with their log-probabilities out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.errors import CaptionerError

DEFAULT_NUM_BEAMS = 3


@dataclass(frozen=True)
class GenerationOptions:
    """How captions are searched for or drawn.

    Attributes:
        num_beams: beam width, 1 is greedy; default 3 (at least `num_return_sequences`). Sampling goes without beams.
        max_new_tokens: longest caption in tokens, end of sequence included; never above what the model can hold.
        min_new_tokens: the end of sequence is not chosen before this many tokens.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice; 0 switches it off.
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

    def _require(self, condition: bool, name: str, expectation: str) -> None:
        if not condition:
            raise CaptionerError(f"{name} must be {expectation}; it is {getattr(self, name)}")


@dataclass(frozen=True)
class Hypothesis:
    """One caption as tokens.

    Attributes:
        token_ids: the caption without begin and end of sequence.
        log_probs: log p(token | image, tokens before) of each, under the model itself: before temperature, top-k,
            top-p, n-gram blocking and minimum length.
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


def generate(
    model: PreTrainedModel, encoder_inputs: Mapping[str, Any], options: GenerationOptions
) -> list[list[Hypothesis]]:
    """Caption a batch of images.

    Args:
        model: a `CaptionerForConditionalGeneration` in evaluation mode.
        encoder_inputs: what `model.generate` encodes from: `pixel_values` [B, 3, H, W], or features computed before.

    Returns:
        For each of the B images its `num_return_sequences` hypotheses, best first.

    Raises:
        CaptionerError: `min_new_tokens` is more than the model can hold.
    """
    longest = min(options.max_new_tokens, model.config.max_position_embeddings)
    if options.min_new_tokens > longest:
        raise CaptionerError(f"min_new_tokens is {options.min_new_tokens}; this model writes at most {longest} tokens")
    output = model.generate(
        **encoder_inputs,
        **_sampling_arguments(options),
        num_beams=options.num_beams,
        num_return_sequences=options.num_return_sequences,
        max_new_tokens=longest,
        min_new_tokens=options.min_new_tokens,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        length_penalty=options.length_penalty,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens, log_probs, lengths = _chosen_log_probs(output)
    end = model.generation_config.eos_token_id
    hypotheses = [
        _hypothesis(ids[:length], values[:length], end)
        for ids, values, length in zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), strict=True)
    ]
    per_image = options.num_return_sequences
    grouped = [hypotheses[start : start + per_image] for start in range(0, len(hypotheses), per_image)]
    if options.do_sample:  # beams arrive ranked, draws do not
        grouped = [sorted(group, key=lambda hypothesis: -hypothesis.mean_log_prob) for group in grouped]
    return grouped


def _chosen_log_probs(output: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [N, T] after the begin of sequence, their log-probabilities [N, T], and how many of each row count [N]."""
    steps = len(output.logits)
    tokens = output.sequences[:, 1:][:, :steps]
    rows = output.get("beam_indices")  # which row of the step's logits each token was taken from; -1 after the end
    if rows is None:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    rows = rows[:, : tokens.shape[1]]
    log_probs = [
        output.logits[step].log_softmax(-1)[rows[:, step].clamp(min=0), tokens[:, step]]
        for step in range(tokens.shape[1])
    ]
    return tokens, torch.stack(log_probs, dim=1), (rows >= 0).sum(1)


def _hypothesis(ids: list[int], log_probs: list[float], end: int) -> Hypothesis:
    if end not in ids:
        return Hypothesis(tuple(ids), tuple(log_probs), None)
    length = ids.index(end)
    return Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), log_probs[length])


def _sampling_arguments(options: GenerationOptions) -> dict[str, Any]:
    if not options.do_sample:
        return {"do_sample": False}
    if options.seed is not None:
        draw = LogitsProcessorList([_SeededDraw(options)])
        return {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logits_processor": draw}
    return {"do_sample": True, "temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}


class _SeededDraw(LogitsProcessor):
    """Draws each next token itself, by the Gumbel-max trick, and leaves that token alone to choose from.

    argmax(logits + Gumbel noise) is a draw from softmax(logits) (Maddison et al. 2014, arXiv:1411.0030). The noise of
    a step, [num_return_sequences, V], is shared by the images of a batch, which makes an image's caption independent of
    its neighbours.
    """

    def __init__(self, options: GenerationOptions) -> None:
        assert options.seed is not None
        self.generator = torch.Generator().manual_seed(options.seed)
        self.draws = options.num_return_sequences
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(options.temperature))])
        if options.top_k > 0:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(options.top_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(self.draws, scores.shape[-1], generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-300))).to(scores)
        keys = self.warpers(input_ids, scores) + noise.repeat(len(scores) // self.draws, 1)
        drawn = keys.argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)
