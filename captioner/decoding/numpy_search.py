"""Greedy and beam search and sampling in NumPy, apart from what computes the log-probabilities.

Shapes: B images, K captions an image, J of them in the making, C candidates for the next token, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError


class Draft(NamedTuple):
    """A caption in the making.

    Attributes:
        token_ids: its tokens so far, including the prefix, and the end of sequence once that is reached.
        log_probs: log p(token | image, earlier tokens) of each under the model itself.
        score: the sum of its tokens' scores after the prefix; once the caption has ended, what captions are ranked by.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float = 0.0

    def extended(self, token: int, log_prob: float, score: float) -> "Draft":
        return Draft((*self.token_ids, token), (*self.log_probs, log_prob), self.score + score)

    def hypothesis(self, end: int) -> Hypothesis:
        if self.token_ids[-1] != end:
            return Hypothesis(self.token_ids, self.log_probs, None)
        return Hypothesis(self.token_ids[:-1], self.log_probs[:-1], self.log_probs[-1])


class Decoder(Protocol):
    """What tells the next tokens' probabilities, with its caches.

    Both of its calls take the newest tokens [B, K], each behind what row `rows[b, k]` of the call before has.
    """

    vocab_size: int

    def step(self, token_ids: np.ndarray, rows: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """The most probable next tokens and their log-probabilities, both [B, K, `num_candidates`], best first."""

    def logits(self, token_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """All logits [B, K, V]."""

    def keep(self, images: list[int]) -> None:
        """Only these of the B images go on."""


@dataclass(frozen=True)
class Candidates:
    """Next tokens to choose from, arrays [..., C], highest score first.

    Attributes:
        token_ids: the tokens.
        log_probs: log p of each under the model itself.
        scores: what a search goes by: logits, or log-probabilities for beams, after the constraints; -inf is forbidden.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    scores: np.ndarray

    def __getitem__(self, index: Any) -> "Candidates":
        return Candidates(self.token_ids[index], self.log_probs[index], self.scores[index])


class Captions(ABC):
    """An image's captions in the making.

    Attributes:
        running: those that go on, J of them; at first the prefix alone, of which all captions are made.
        finished: those that have ended.
        num_candidates: next tokens of a caption that have to be looked at, where none is forbidden.
    """

    num_candidates: int

    def __init__(self, options: GenerationOptions, longest: int, prefix: Draft, end: int) -> None:
        self.options = options
        self.longest = longest
        self.end = end
        self.running = [prefix]
        self.finished: list[Draft] = []

    @abstractmethod
    def advance(self, candidates: Candidates, length: int) -> list[int]:
        """Choose the new tokens at `length` from candidates [K, C], of which J rows count; return the rows that the
        captions then running continue."""

    def ends(self, caption: Draft, length: int) -> bool:
        return caption.token_ids[-1] == self.end or length == self.longest


class Beams(Captions):
    """The K best, best first. With K = 1 that is greedy search: the most probable token each time.

    More give what transformers' beam search gives: a caption counts as finished only if its end was among the best K
    continuations, and an image with K finished captions is done when `early_stopping` says so.
    """

    def __init__(self, options: GenerationOptions, longest: int, prefix: Draft, end: int) -> None:
        super().__init__(options, longest, prefix, end)
        self.count = options.num_captions
        self.num_candidates = 1 if self.count == 1 else 2 * self.count  # twice K leave K that go on, whichever end

    def advance(self, candidates: Candidates, length: int) -> list[int]:
        power = length**self.options.length_penalty
        going_on = []
        for place, (caption, row) in enumerate(self._best(candidates)):
            if not self.ends(caption, length):
                going_on.append((caption, row))
            elif place < self.count:
                self.finished.append(caption._replace(score=caption.score / power))
        self.finished = sorted(self.finished, key=lambda caption: -caption.score)[: self.count]
        if len(self.finished) == self.count and going_on and self._is_done(going_on[0][0].score, length):
            going_on = []
        self.running = [caption for caption, _ in going_on[: self.count]]
        return [row for _, row in going_on[: self.count]]

    def _is_done(self, best_score: float, length: int) -> bool:
        """Can no caption in the making, whose best score is this, be better than the worst of K finished ones?"""
        penalty = self.options.length_penalty
        if self.options.early_stopping is True:
            return True
        best_length = self.longest if self.options.early_stopping == "never" and penalty > 0 else length
        return best_score / best_length**penalty <= self.finished[-1].score

    def _best(self, candidates: Candidates) -> list[tuple[Draft, int]]:
        """The best continuations by one token, best first, each with the row of the caption that it continues."""
        sums = np.array([[caption.score] for caption in self.running], dtype=np.float32)
        running = candidates[: len(self.running)]
        totals = running.scores + sums
        best = np.argsort(-totals, axis=None, kind="stable")[: self.num_candidates]
        best = best[totals.flat[best] > -np.inf]
        rows = (best // totals.shape[1]).tolist()
        columns = (array.flat[best].tolist() for array in (running.token_ids, running.log_probs, running.scores))
        return [(self.running[row].extended(*token), row) for row, *token in zip(rows, *columns, strict=True)]


class Draws(Captions):
    """K captions, each drawn by temperature, top-k and top-p on its own.

    Ranked by the mean log-probability of their tokens, which is known when all have ended.
    """

    def __init__(self, options: GenerationOptions, longest: int, prefix: Draft, end: int, noise: "GumbelNoise") -> None:
        super().__init__(options, longest, prefix, end)
        self.noise = noise
        self.num_candidates = options.top_k or noise.vocab_size
        self.numbers = list(range(options.num_captions))  # of the captions that go on

    def advance(self, candidates: Candidates, length: int) -> list[int]:
        rows = [0] * len(self.numbers) if length == 1 else range(len(self.numbers))
        going_on = []
        for number, row in zip(self.numbers, rows, strict=True):
            allowed = candidates[row, candidates.scores[row] > -np.inf]
            if not allowed.scores.size:
                continue
            chosen = self._draw(allowed.scores, self.noise(length, number, allowed.token_ids))
            token, log_prob = int(allowed.token_ids[chosen]), float(allowed.log_probs[chosen])
            caption = self.running[row].extended(token, log_prob, log_prob)
            if self.ends(caption, length):
                self.finished.append(caption._replace(score=float(np.mean(caption.log_probs))))
            else:
                going_on.append((caption, row, number))
        self.finished.sort(key=lambda caption: -caption.score)
        self.running, self.numbers = [caption for caption, *_ in going_on], [number for *_, number in going_on]
        return [row for _, row, _ in going_on]

    def _draw(self, scores: np.ndarray, noise: np.ndarray) -> int:
        """Choose one of C candidates by the Gumbel-max trick: argmax(log p + Gumbel noise) is a draw from p (Maddison
        et al. 2014, https://arxiv.org/abs/1411.0030)."""
        scores = scores[: self.options.top_k or None] / np.float32(self.options.temperature)
        if self.options.top_p < 1:
            shares = np.exp(scores - scores[0])
            shares = shares[::-1].cumsum()[::-1] / shares.sum()  # of each and all that are less probable
            scores = scores[: max(1, np.count_nonzero(shares > 1 - self.options.top_p))]
        return int((scores + noise[: len(scores)]).argmax())


class GumbelNoise:
    """What draws depend on. Of a seed it is the noise that torch's generator gives for it, and the same for all images,
    whose captions do not depend then on their batch."""

    def __init__(self, options: GenerationOptions, vocab_size: int) -> None:
        self.shape = (options.num_captions, vocab_size)
        self.vocab_size = vocab_size
        self.seed = options.seed
        self.generator = np.random.RandomState(None if self.seed is None else self.seed % 2**32)
        self.steps = 0

    def __call__(self, step: int, number: int, token_ids: np.ndarray) -> np.ndarray:
        """For candidates [C] of the caption `number`, in its step: 1, 2 and so on."""
        if self.seed is None:
            return self.generator.gumbel(size=len(token_ids)).astype(np.float32)
        if step > self.steps:
            # Both libraries have the Mersenne twister MT19937. Of two words of it torch makes a number of 53 bits.
            words = self.generator.randint(2**32, size=(*self.shape, 2), dtype=np.uint32).astype(np.uint64)
            uniform = ((words[..., 0] << 32 | words[..., 1]) & (2**53 - 1)) * 2.0**-53
            self.noise = -np.log(-np.log(np.maximum(uniform, 1e-300))).astype(np.float32)
            self.steps = step
        return self.noise[number, token_ids]


class Constraints:
    """The repetition penalty; and what is forbidden: an early end, repeated n-grams, banned sequences."""

    def __init__(self, options: GenerationOptions, start: int, end: int) -> None:
        self.options = options
        self.start = start
        self.end = end

    def candidates(
        self, decoder: Decoder, token_ids: np.ndarray, rows: np.ndarray, images: list[Captions], length: int
    ) -> Candidates:
        """Take a step of the decoder; return candidates [B, K, C] for the new tokens at `length`: as many as the search
        looks at, and forbidden ones."""
        forbidden = [[self._forbidden(caption, length) for caption in image.running] for image in images]
        most = max(len(tokens) for image in forbidden for tokens in image)
        count = images[0].num_candidates + most
        if self.options.repetition_penalty == 1 and not self.options.merged_ids:
            next_ids, log_probs = decoder.step(token_ids, rows, count)
            found = Candidates(next_ids, log_probs, log_probs)
        else:
            found = self._rescored(decoder.logits(token_ids, rows), images, count)
        if most:
            is_forbidden = np.take_along_axis(_table(forbidden, found.scores, decoder.vocab_size), found.token_ids, -1)
            found = replace(found, scores=np.where(is_forbidden, -np.inf, found.scores))
        return found

    def _rescored(self, logits: np.ndarray, images: list[Captions], count: int) -> Candidates:
        """Logits [B, K, V] -> the `count` tokens with the best scores after merging and the repetition penalty."""
        logits = np.array(logits)
        for source, target in self.options.merged_ids:
            logits[..., target] = np.logaddexp(logits[..., target], logits[..., source])
            logits[..., source] = -np.inf
        penalty, log_probs = self.options.repetition_penalty, _log_softmax(logits)
        scores = log_probs if self.options.num_beams != 1 else logits
        used = [[{self.start, *caption.token_ids} for caption in image.running] for image in images]
        is_used = _table(used, scores, scores.shape[-1])
        scores = np.where(is_used, np.where(scores < 0, scores * penalty, scores / penalty), scores)
        token_ids = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
        return Candidates(token_ids, *(np.take_along_axis(array, token_ids, -1) for array in (log_probs, scores)))

    def _forbidden(self, caption: Draft, length: int) -> set[int]:
        """Tokens that cannot follow `caption` as its new token at `length`."""
        tokens = (self.start, *caption.token_ids)
        found = {self.end} if length <= self.options.min_new_tokens else set()
        for *before, last in self.options.bad_words_ids:
            if tokens[max(0, len(tokens) - len(before)) :] == tuple(before):
                found.add(last)
        size = self.options.no_repeat_ngram_size
        if 0 < size <= len(tokens):
            newest = tokens[len(tokens) - size + 1 :]
            places = range(size - 1, len(tokens))
            found |= {tokens[place] for place in places if tokens[place - size + 1 : place] == newest}
        return found


def lacks(options: GenerationOptions) -> str:
    """Say what `search` lacks of what the options ask for; empty if nothing."""
    if options.force_words_ids:
        return "forced words"
    return "diverse beams (num_beam_groups)" if options.num_beam_groups > 1 else ""


def search(
    decoder: Decoder, batch_size: int, options: GenerationOptions, longest: int, start: int, end: int
) -> list[list[Hypothesis]]:
    """Caption B images with at most `longest` new tokens: for each its `num_return_sequences` captions, best first.

    Raises:
        CaptionerError: no caption keeps all the rules.
    """
    tokens: np.ndarray = np.full((batch_size, 1), start, dtype=np.int64)
    rows: np.ndarray = np.arange(batch_size, dtype=np.int64)[:, None]
    prefixes = [Draft((), ())] * batch_size
    for token in options.prefix_ids:
        log_probs = _log_softmax(decoder.logits(tokens, rows)[:, 0])[:, token]
        prefixes = [one.extended(token, value, 0.0) for one, value in zip(prefixes, log_probs.tolist(), strict=True)]
        tokens = np.full_like(tokens, token)
    if options.do_sample:
        noise = GumbelNoise(options, decoder.vocab_size)
        captions: list[Captions] = [Draws(options, longest, prefix, end, noise) for prefix in prefixes]
    else:
        captions = [Beams(options, longest, prefix, end) for prefix in prefixes]
    constraints, left = Constraints(options, start, end), captions
    for length in range(1, longest + 1):
        candidates = constraints.candidates(decoder, tokens, rows, left, length)
        tokens = np.full((len(left), options.num_captions), end, dtype=np.int64)
        rows = np.full_like(tokens, candidates.scores.shape[1]) * np.arange(len(left))[:, None]
        for place, image in enumerate(left):
            if image.running:
                parents = image.advance(candidates[place], length)
                for number, (caption, parent) in enumerate(zip(image.running, parents, strict=True)):
                    tokens[place, number] = caption.token_ids[-1]
                    rows[place, number] += parent
        alive = [place for place, image in enumerate(left) if image.running]
        if not alive:
            break
        if 4 * (len(left) - len(alive)) >= len(left):  # for fewer it does not pay to move the others' keys and values
            decoder.keep(alive)
            left, tokens, rows = [left[place] for place in alive], tokens[alive], rows[alive]
    if not all(image.finished for image in captions):
        raise CaptionerError("found no caption that keeps all the rules: banned and repeated words")
    finished = (image.finished[: options.num_return_sequences] for image in captions)
    return [[caption.hypothesis(end) for caption in group] for group in finished]


def _table(found: list[list[set[int]]], like: np.ndarray, vocab_size: int) -> np.ndarray:
    """Which tokens of the vocabulary were `found` for each caption, [B, K, V], with B and K of `like`."""
    table = np.zeros((*like.shape[:2], vocab_size), dtype=bool)
    for place, image in enumerate(found):
        for number, tokens in enumerate(image):
            table[place, number, list(tokens)] = True
    return table


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] -> the same."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
