"""Decoding, apart from the model: frozen options in, hypotheses with their log-probabilities out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from captioner.errors import CaptionerError
from captioner.infer.captured import CapturedStep, can_capture
from captioner.infer.diverse_beams import DiverseBeams
from captioner.infer.forced_words import ForcedBeams, holds
from captioner.infer.options import GenerationOptions
from captioner.infer.search import Beams, Captions
from captioner.infer.step_decoder import StepDecoder

CHECK_EVERY = 4
"""Steps between two looks at which images are done. An accelerator has to be waited for at each; a CPU looks always."""

CAPTURE_AFTER = 32
"""Steps before one is captured, where the device can: for a few images capturing takes longer than it saves."""


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
        For each of the B images its `num_return_sequences` hypotheses, best first; fewer where forced words leave
        fewer.

    Raises:
        CaptionerError: `min_new_tokens`, the prefix or the forced words are more than the model can hold; it has no
            such token; no caption keeps all the rules.
    """
    stream = GenerationStream(model, options)
    outputs = (
        encoder_inputs["encoder_outputs"] if "encoder_outputs" in encoder_inputs else model.encoder(**encoder_inputs)
    )
    return stream.add(outputs[0]) + stream.finish()


class GenerationStream:
    """Batch after batch of images through a decoder that stays full: as images are done, new ones take their places
    (iteration-level scheduling, Yu et al. 2022, https://www.usenix.org/conference/osdi22/presentation/yu).

    Hypotheses come in the order of the images, and are those that `generate` gives for each image alone.
    """

    def __init__(self, model: PreTrainedModel, options: GenerationOptions) -> None:
        """As in `generate`, and the same errors."""
        self.model = model
        self.options = options
        config = model.config
        self.longest = options.room(config.max_position_embeddings, config.vocab_size, config.eos_token_id)
        _check_forced(options, self.longest)
        self.decoding: _Decoding | None = None
        self.finished: dict[int, list[Hypothesis]] = {}
        self.added = self.given = 0

    @torch.inference_mode()
    def add(self, encoder_hidden_states: Tensor) -> list[list[Hypothesis]]:
        """Take in image tokens [B, P, D], and go on until all of them have a place: as many as the first B there are.

        Returns:
            The hypotheses, best first, of each image whose turn has come.
        """
        numbers = range(self.added, self.added + len(encoder_hidden_states))
        self.added = numbers.stop
        waiting = _Decoding(self.model, encoder_hidden_states, self.options, self.longest, numbers)
        if self.decoding is None:
            self.decoding = waiting
            return []
        while True:
            self.finished |= self.decoding.collect()
            self.decoding.refill(waiting)
            if not waiting.images:
                return self._in_turn()
            self.decoding.step()

    @torch.inference_mode()
    def finish(self) -> list[list[Hypothesis]]:
        """The hypotheses of all images that are left."""
        while self.decoding is not None:
            self.finished |= self.decoding.collect()
            if not self.decoding.images:
                break
            self.decoding.shrink()
            self.decoding.step()
        self.decoding = None
        return self._in_turn()

    def _in_turn(self) -> list[list[Hypothesis]]:
        groups = []
        while self.given in self.finished:
            groups.append(self.finished.pop(self.given))
            self.given += 1
        return groups


class _Decoding:
    """Images whose captions are in the making, at places of a batch, every one at a step of its own.

    Attributes:
        images: by place, the number of the image there; a place that is not among them is free.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder_hidden_states: Tensor,
        options: GenerationOptions,
        longest: int,
        numbers: Iterable[int],
    ) -> None:
        """Start with image tokens [B, P, D] of the images `numbers`: their captions have the first new token."""
        self.options = options
        self.longest = longest
        self.images = dict(enumerate(numbers))
        self.places = len(self.images)
        self.steps = [1] * self.places
        self.device = encoder_hidden_states.device
        prompt = torch.tensor([model.config.decoder_start_token_id, *options.prefix_ids], device=self.device)
        self.decoder = StepDecoder(model, encoder_hidden_states, options.num_captions, options.num_beams != 1, longest)
        logits = self.decoder.start(prompt)
        prefix = prompt[1:].expand(len(logits), -1)[..., None]
        prefix_log_probs = logits[:, :-1].log_softmax(-1).gather(-1, prefix)[..., 0]
        self.captions = self._captions(prompt, prefix_log_probs, model.config)
        self.captions.advance(logits[:, -1:].expand(-1, options.num_captions, -1), 1)
        self.since_check = 0
        self.taken = 0
        self.captured: CapturedStep | None = None

    def _captions(self, prompt: Tensor, prefix_log_probs: Tensor, config: PreTrainedConfig) -> Captions:
        arguments = self.options, prompt, prefix_log_probs, config.eos_token_id, self.longest
        if self.options.force_words_ids:
            return ForcedBeams(*arguments, config.vocab_size)
        if self.options.num_beam_groups > 1:
            return DiverseBeams(*arguments)
        return Captions(*arguments) if self.options.num_beams == 1 else Beams(*arguments)

    def step(self) -> None:
        """A token more for every caption."""
        if self.captured is not None:
            self.captured.replay()
        elif self.taken < CAPTURE_AFTER or not can_capture(self.device):
            self._advance(max(self.steps[place] for place in self.images))
        else:
            self._advance_at_full_length()
            self.captured = CapturedStep(self._advance_at_full_length, self.decoder.state() + self.captions.state())
        self.steps = [steps + 1 for steps in self.steps]
        self.since_check += 1
        self.taken += 1

    def _advance(self, oldest: int) -> None:
        """`oldest`: the number of this step to the image that came first."""
        logits = self.decoder.step(self.captions.tokens, self.captions.parents, oldest)
        self.captions.advance(logits, oldest + 1)

    def _advance_at_full_length(self) -> None:
        """In memory for the longest captions there may be, which makes all such steps alike."""
        self._advance(self.longest - 1)

    def collect(self) -> dict[int, list[Hypothesis]]:
        """Take out the images that are done: their hypotheses by number."""
        is_full = any(self.steps[place] >= self.longest for place in self.images)
        if self.device.type != "cpu" and self.since_check < CHECK_EVERY and not is_full:
            return {}
        self.since_check = 0
        is_done = self.captions.done.tolist()
        places = [place for place in self.images if is_done[place]]
        groups = _hypotheses(self.captions, places, self.options)
        return {self.images.pop(place): group for place, group in zip(places, groups, strict=True)}

    def refill(self, waiting: "_Decoding") -> None:
        """Move images that wait to the places that are free."""
        free = [place for place in range(self.places) if place not in self.images]
        moved = list(zip(free, list(waiting.images), strict=False))
        for place, other in moved:
            self.images[place], self.steps[place] = waiting.images.pop(other), waiting.steps[other]
        if moved:
            places, others = torch.tensor(moved, device=self.device).unbind(1)
            self.decoder.put(places, waiting.decoder, others)
            self.captions.put(places, waiting.captions, others)

    def shrink(self) -> None:
        """Give up the places that are free."""
        if self.captured is not None:
            return  # it has the places that it was captured with
        if 4 * (self.places - len(self.images)) < self.places:
            return  # for fewer it does not pay to move the others' keys and values
        kept = sorted(self.images)
        places = torch.tensor(kept, device=self.device)
        self.decoder.keep(places)
        self.captions.keep(places)
        self.images = dict(enumerate(self.images[place] for place in kept))
        self.steps = [self.steps[place] for place in kept]
        self.places = len(kept)


def _check_forced(options: GenerationOptions, longest: int) -> None:
    needed = sum(len(ids) for ids in options.force_words_ids if not holds(options.prefix_ids, ids))
    if needed > longest:
        raise CaptionerError(f"the forced words are {needed} tokens; a caption may have {longest} here")
    for banned in options.banned_ids:
        if any(holds(ids, banned) for ids in options.force_words_ids):
            raise CaptionerError(f"tokens {banned} are both banned and forced")


def _hypotheses(captions: Captions, rows: list[int], options: GenerationOptions) -> list[list[Hypothesis]]:
    """The captions of the images in these rows, best first."""
    sequences, log_probs, is_found = (tensor.tolist() for tensor in captions.written(rows))
    groups = [
        [_hypothesis(ids[1:], values, captions.end) for ids, values, found in zip(*image, strict=True) if found]
        for image in zip(sequences, log_probs, is_found, strict=True)
    ]
    if not all(groups):
        raise CaptionerError("found no caption that keeps all the rules: forced, banned and repeated words")
    if options.do_sample:  # beams arrive ranked, draws do not
        groups = [sorted(group, key=lambda hypothesis: -hypothesis.mean_log_prob) for group in groups]
    return groups


def _hypothesis(ids: list[int], log_probs: list[float], end: int) -> Hypothesis:
    if end not in ids:
        return Hypothesis(tuple(ids), tuple(log_probs), None)
    length = ids.index(end)
    return Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), log_probs[length])
