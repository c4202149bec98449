"""Decoding, apart from the model: frozen options in, hypotheses with their log-probabilities out."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captioner.decoding.cuda_graph import CapturedCall, CapturedStep, Captures
from captioner.decoding.diverse_beams import DiverseBeams
from captioner.decoding.forced_words import ForcedBeams, holds
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.search import Beams, Captions
from captioner.decoding.step_decoder import StepDecoder
from captioner.errors import CaptionerError

CHECK_EVERY = 4
"""Steps between two looks at which images are done. An accelerator has to be waited for at each; a CPU looks always."""


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    encoder_inputs: Mapping[str, Any],
    options: GenerationOptions,
    uniforms: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Caption a batch of images.

    Args:
        model: a `CaptionerForConditionalGeneration` in evaluation mode.
        encoder_inputs: `pixel_values` [B, 3, H, W], or `trunk_features` [B, P, C], or `encoder_outputs`.
        uniforms: with `do_sample`, numbers in [0, 1) to draw by, [B, num_return_sequences, max_new_tokens] or longer.

    Returns:
        For each of the B images its `num_return_sequences` hypotheses, best first (with `uniforms` in their order);
        fewer where forced words leave fewer.

    Raises:
        CaptionerError: `min_new_tokens`, the prefix or the forced words are more than the model can hold; it has no
            such token; no caption keeps all the rules.
    """
    stream = GenerationStream(model, options)
    outputs = (
        encoder_inputs["encoder_outputs"] if "encoder_outputs" in encoder_inputs else model.encoder(**encoder_inputs)
    )
    return stream.add(outputs[0], uniforms) + stream.finish()


class GenerationStream:
    """Batch after batch of images through a decoder that stays full: as images are done, new ones take their places
    (iteration-level scheduling, Yu et al. 2022, https://www.usenix.org/conference/osdi22/presentation/yu).

    Hypotheses come in the order of the images, and are those that `generate` gives for each image alone.

    Attributes:
        image_tokens: [B, P, D] of the batch that was added last, until the next; more rows, if there are, are void.
    """

    image_tokens: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        options: GenerationOptions,
        encode: Callable[[Tensor], Tensor] | None = None,
        captures: Captures | None = None,
    ) -> None:
        """As in `generate`, and the same errors.

        Args:
            encode: what is added -> image tokens [B, P, D]; None where these themselves are added.
            captures: on a CUDA device, where captured steps of this model are found, and left for the next stream.
        """
        self.plan = _Plan(model, options, encode)
        self.captures = captures
        self.decoding: _Decoding | None = None
        self.key: Hashable = None  # of the decoding, if it is captured
        self.calls: dict[Hashable, CapturedCall] = {}
        self.finished: list[_Finished] = []
        self.hypotheses: dict[int, list[Hypothesis]] = {}
        self.added = self.given = 0

    @torch.inference_mode()
    def add(self, inputs: Tensor, uniforms: Tensor | None = None) -> list[list[Hypothesis]]:
        """Take in a batch, and go on until all of it has a place: as many as the first batch has images.

        `uniforms` are as in `generate`, for every batch or for none.

        Returns:
            The hypotheses, best first, of each image whose turn has come.
        """
        numbers = range(self.added, self.added + len(inputs))
        self.added = numbers.stop
        waiting = self._begin(inputs, uniforms)
        waiting.seat(numbers)
        if self.decoding is None:
            self.decoding = waiting
            if self.captures is not None:
                waiting.prepare_capture(rounded_up(len(inputs)))
        while waiting is not self.decoding:
            self.finished += self.decoding.collect()
            self.decoding.refill(waiting)
            if not waiting.images:
                break
            self.decoding.step()
        self.decoding.run_ahead()
        return self._in_turn()

    def _begin(self, inputs: Tensor, uniforms: Tensor | None) -> "_Decoding":
        """The images' first tokens. Where what follows is to be captured, or was, `decoding` is of a batch before."""
        if self.captures is None:
            begun = self.plan.begin(inputs, uniforms)
        else:
            rows = rounded_up(len(inputs))
            shape = self.plan.options, rows, inputs.shape[1:], inputs.dtype
            if self.decoding is None:
                self.key = ("steps", *shape)
                self.decoding = self.captures.take(self.key)
            recurs = self.captures.recurs(shape)
            if recurs and self.decoding is not None and self.plan.is_repeatable:
                key = ("begin", *shape)
                if key not in self.calls:
                    self.calls[key] = self.captures.take(key) or CapturedCall(self.plan.begin, inputs, rows)
                begun = self.calls[key](inputs)
            else:
                begun = self.plan.begin(inputs, uniforms)
        self.image_tokens = begun.image_tokens
        return begun

    @torch.inference_mode()
    def finish(self) -> list[list[Hypothesis]]:
        """The hypotheses of all images that are left."""
        while self.decoding is not None:
            self.finished += self.decoding.collect()
            if not self.decoding.images:
                break
            self.decoding.shrink()
            self.decoding.step()
        if self.captures is not None:
            for key, call in self.calls.items():
                self.captures.give(key, call)
            if self.decoding is not None and self.decoding.captured is not None:
                self.captures.give(self.key, self.decoding)
        self.decoding, self.calls = None, {}
        return self._in_turn()

    def _in_turn(self) -> list[list[Hypothesis]]:
        for finished in self.finished:
            self.hypotheses |= finished.hypotheses(self.plan)
        self.finished = []
        groups = []
        while self.given in self.hypotheses:
            groups.append(self.hypotheses.pop(self.given))
            self.given += 1
        return groups


def rounded_up(images: int) -> int:
    """Places that are captured for so many images: powers of two, and from 16 on multiples of 16."""
    return -(-images // 16) * 16 if images > 16 else 1 << max(images - 1, 0).bit_length()


class _Plan:
    """What all images of a stream have in common."""

    def __init__(
        self, model: PreTrainedModel, options: GenerationOptions, encode: Callable[[Tensor], Tensor] | None
    ) -> None:
        config = model.config
        self.model = model
        self.options = options
        self.encode = encode
        self.longest = options.max_steps(config.max_position_embeddings, config.vocab_size, config.eos_token_id)
        _check_forced(options, self.longest)
        self.prompt = torch.tensor([config.decoder_start_token_id, *options.prefix_ids], device=model.device)
        self.search = self._search(config.eos_token_id, config.vocab_size)

    def _search(self, end: int, vocab_size: int) -> Captions:
        arguments = self.options, self.prompt, end, self.longest
        if self.options.force_words_ids:
            return ForcedBeams(*arguments, vocab_size)
        if self.options.num_beam_groups > 1:
            return DiverseBeams(*arguments)
        return Captions(*arguments) if self.options.num_beams == 1 else Beams(*arguments)

    @property
    def is_repeatable(self) -> bool:
        """Whether it takes no random numbers of torch's, whose order a capture's first call would change."""
        return not self.options.do_sample or self.options.seed is not None

    def begin(self, inputs: Tensor, uniforms: Tensor | None = None) -> "_Decoding":
        return _Decoding(self, inputs if self.encode is None else self.encode(inputs), uniforms)


class _Decoding:
    """Images whose captions are in the making, at places of a batch, every one at a step of its own.

    Attributes:
        image_tokens: [B, P, D] that it began with.
        images: by place, the number of the image there; a place that is not among them is free.
    """

    def __init__(self, plan: _Plan, image_tokens: Tensor, uniforms: Tensor | None) -> None:
        """Start with these images: their captions have the first new token. It does nothing that cannot be captured."""
        options, prompt = plan.options, plan.prompt
        self.plan = plan
        self.image_tokens = image_tokens
        self.device = image_tokens.device
        self.decoder = StepDecoder(plan.model, image_tokens, options.num_captions, plan.longest)
        logits = self.decoder.start(prompt)
        prefix = prompt[1:].expand(len(logits), -1)[..., None]
        self.captions = plan.search.of(logits[:, :-1].log_softmax(-1).gather(-1, prefix)[..., 0], uniforms)
        self.captions.advance(logits[:, -1:].expand(-1, options.num_captions, -1), 1)
        self.is_to_capture = False
        self.captured: CapturedStep | None = None
        self.since_check = 0
        self.seat(range(0))

    def seat(self, numbers: range) -> None:
        """Say which images these are, from the first place on."""
        self.images = dict(enumerate(numbers))
        self.places = len(self.captions.done)
        self.steps = [1] * self.places

    def prepare_capture(self, places: int) -> None:
        """Have so many places, and capture the first step."""
        self.is_to_capture = True
        if places > self.places:
            self._keep([*range(self.places), *[0] * (places - self.places)])

    def step(self) -> None:
        """A token more for every caption."""
        if self.captured is not None:
            self.captured()
        elif self.is_to_capture:
            # In memory for the longest captions there may be, which makes all steps alike.
            step = partial(_advance, self.decoder, self.captions, self.plan.longest - 1)
            step()
            self.captured = CapturedStep(step, self.decoder.state() + self.captions.state())
        else:
            _advance(self.decoder, self.captions, max(self.steps[place] for place in self.images))
        self.steps = [steps + 1 for steps in self.steps]
        self.since_check += 1

    def run_ahead(self) -> None:
        """Give an accelerator the steps to do until it is looked at again."""
        while self.images and not self._is_time_to_look():
            self.step()

    def _is_time_to_look(self) -> bool:
        steps = [self.steps[place] for place in self.images]
        if self.device.type == "cpu" or any(number >= self.plan.longest for number in steps):
            return True
        may_be_done = any(number > self.plan.options.min_new_tokens for number in steps)
        return may_be_done and self.since_check >= CHECK_EVERY

    def collect(self) -> list["_Finished"]:
        """Take out the images that are done."""
        if not self._is_time_to_look():
            return []
        self.since_check = 0
        is_done = self.captions.done.tolist()
        places = [place for place in self.images if is_done[place]]
        if not places:
            return []
        written = self.captions.written(torch.tensor(places, device=self.device))
        keeps_order = self.captions.uniforms is not None
        return [_Finished([self.images.pop(place) for place in places], written, keeps_order)]

    def refill(self, waiting: "_Decoding") -> None:
        """Move images that wait to the places that are free."""
        free = [place for place in range(self.places) if place not in self.images]
        moved = list(zip(free, list(waiting.images), strict=False))
        for place, other in moved:
            self.images[place], self.steps[place] = waiting.images.pop(other), waiting.steps[other]
        if moved:
            places, others = (_index(list(numbers), self.device) for numbers in zip(*moved, strict=True))
            self.decoder.put(places, waiting.decoder, others)
            self.captions.put(places, waiting.captions, others)

    def shrink(self) -> None:
        """Give up the places that are free."""
        if self.is_to_capture:
            return  # it has the places that it is captured with
        if 4 * (self.places - len(self.images)) < self.places:
            return  # for fewer it does not pay to move the others' keys and values
        kept = sorted(self.images)
        self._keep(kept)
        self.images = dict(enumerate(self.images[place] for place in kept))

    def _keep(self, places: list[int]) -> None:
        """Go on with what is at these places."""
        index = torch.tensor(places, device=self.device)
        self.decoder.keep(index)
        self.captions.keep(index)
        self.steps = [self.steps[place] for place in places]
        self.places = len(places)


def _advance(decoder: StepDecoder, captions: Captions, oldest: int) -> None:
    """`oldest`: the number of this step to the image that came first."""
    logits = decoder.step(captions.tokens, captions.parents, oldest)
    captions.advance(logits, oldest + 1)


class _Finished:
    """Images that are done, by number, and their captions on the way to the host."""

    def __init__(self, numbers: list[int], written: tuple[Tensor, Tensor, Tensor], keeps_order: bool) -> None:
        self.numbers = numbers
        self.keeps_order = keeps_order
        self.arrived: torch.cuda.Event | None = None
        on_cuda = written[0].is_cuda
        self.written = [tensor.to("cpu", non_blocking=on_cuda) for tensor in written]
        if on_cuda:  # the device goes on with other images meanwhile
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(written[0].device))

    def hypotheses(self, plan: _Plan) -> dict[int, list[Hypothesis]]:
        """By number, best first."""
        if self.arrived is not None:
            self.arrived.synchronize()
        sequences, log_probs, is_found = (tensor.tolist() for tensor in self.written)
        groups = [
            [_hypothesis(ids[1:], values, plan.search.end) for ids, values, found in zip(*image, strict=True) if found]
            for image in zip(sequences, log_probs, is_found, strict=True)
        ]
        if not all(groups):
            raise CaptionerError("found no caption that keeps all the rules: forced, banned and repeated words")
        if plan.options.do_sample and not self.keeps_order:  # beams arrive ranked, draws do not
            groups = [sorted(group, key=lambda hypothesis: -hypothesis.mean_log_prob) for group in groups]
        return dict(zip(self.numbers, groups, strict=True))


def _index(numbers: list[int], device: torch.device) -> Tensor | slice:
    """A slice, which costs less, where the numbers follow one another."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(numbers, device=device)


def _check_forced(options: GenerationOptions, longest: int) -> None:
    needed = sum(len(ids) for ids in options.force_words_ids if not holds(options.prefix_ids, ids))
    if needed > longest:
        raise CaptionerError(f"the forced words are {needed} tokens; a caption may have {longest} here")
    for banned in options.bad_words_ids:
        if any(holds(ids, banned) for ids in options.force_words_ids):
            raise CaptionerError(f"tokens {banned} are both banned and forced")


def _hypothesis(ids: list[int], log_probs: list[float], end: int) -> Hypothesis:
    if end not in ids:
        return Hypothesis(tuple(ids), tuple(log_probs), None)
    length = ids.index(end)
    return Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), log_probs[length])
