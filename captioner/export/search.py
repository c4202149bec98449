"""Greedy and beam search in NumPy, apart from what computes the logits.

Shapes: B images, K beams an image, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from captioner.errors import CaptionerError


@dataclass(frozen=True)
class SearchOptions:
    """How captions are searched for: the fields of `GenerationOptions` that an exported model knows.

    Raises:
        CaptionerError: a value out of range.
    """

    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float
    num_return_sequences: int

    def __post_init__(self) -> None:
        if not (0 <= self.min_new_tokens <= self.max_new_tokens and self.max_new_tokens >= 1):
            raise CaptionerError("max_new_tokens must be at least 1, min_new_tokens between 0 and max_new_tokens")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise CaptionerError("num_return_sequences must be at least 1, num_beams at least num_return_sequences")


class Beam(NamedTuple):
    """A caption as tokens, the end of sequence among them where it was reached.

    `log_probs` are log p(token | image, tokens before) under the model itself; `score` is their sum until the caption
    ends, and then divided by length ** length_penalty.
    """

    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0


class Decoder(Protocol):
    """What tells the most probable next tokens, with its caches."""

    def step(self, token_ids: np.ndarray, beams: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """The newest tokens [B, K], each behind what row `beams[b, k]` has -> the most probable next tokens and their
        log-probabilities, both [B, K, `num_candidates`], best first."""

    def keep(self, images: list[int]) -> None:
        """Only these of the B images go on."""


@dataclass
class Search:
    """An image's captions in the making: the K best that run, best first, and those that have ended."""

    options: SearchOptions
    end: int
    running: list[Beam]
    finished: list[Beam]

    def advance(self, token_ids: np.ndarray, log_probs: np.ndarray, length: int) -> list[int]:
        """Go on with candidates [K, C] for the token at `length`; gives the row each running one goes on from."""
        num_beams, is_last = self.options.num_beams, length == self.options.max_new_tokens
        rows, extended = self._extend(token_ids, log_probs)
        ends = [beam.token_ids[-1] == self.end or is_last for beam in extended]
        for beam, is_over in zip(extended[:num_beams], ends, strict=False):
            if is_over:
                self.finished.append(beam._replace(score=beam.score / length**self.options.length_penalty))
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[:num_beams]
        alive = [index for index, is_over in enumerate(ends) if not is_over][:num_beams]
        self.running = [extended[index] for index in alive]
        if self._is_done(length):
            self.running = []
        return [rows[index] for index in alive[: len(self.running)]]

    def _is_done(self, length: int) -> bool:
        """Whether the best running caption, were it to end now, is no better than the worst of K finished ones."""
        if not self.running or len(self.finished) < self.options.num_beams:
            return not self.running
        return self.running[0].score / length**self.options.length_penalty <= self.finished[-1].score

    def _extend(self, token_ids: np.ndarray, log_probs: np.ndarray) -> tuple[list[int], list[Beam]]:
        """The best continuations by one token, best first, and the rows they go on from.

        Twice K leave K that go on, whichever end.
        """
        totals = log_probs[: len(self.running)] + np.array([[beam.score] for beam in self.running], dtype=np.float32)
        count = 1 if self.options.num_beams == 1 else 2 * self.options.num_beams
        best = np.argsort(-totals, axis=None, kind="stable")[:count]
        rows, columns = np.divmod(best, totals.shape[1])
        extended = [
            Beam(
                (*self.running[row].token_ids, int(token_ids[row, column])),
                (*self.running[row].log_probs, float(log_probs[row, column])),
                float(totals[row, column]),
            )
            for row, column in zip(rows, columns, strict=True)
        ]
        return rows.tolist(), extended


def search(decoder: Decoder, batch_size: int, options: SearchOptions, start: int, end: int) -> list[list[Beam]]:
    """Caption B images: for each its `num_return_sequences` captions, best first.

    One beam takes the most probable token each time. Several give what transformers' beam search gives: a caption
    counts as finished only where its end was among the best K continuations, and an image is done when K captions are
    finished and the best running one, were it to end now, is no better than the worst of them.
    """
    searches = [Search(options, end, [Beam()], []) for _ in range(batch_size)]
    left = searches
    tokens = np.full((batch_size, options.num_beams), start, dtype=np.int64)
    parents = np.zeros_like(tokens)
    for length in range(1, options.max_new_tokens + 1):
        candidates, log_probs = decoder.step(tokens, parents, 2 * options.num_beams + 1)
        if length <= options.min_new_tokens:
            log_probs = np.where(candidates == end, -np.inf, log_probs)
        tokens, parents = np.full_like(tokens, end), np.zeros_like(parents)
        for image, one in enumerate(left):
            if one.running:
                rows = one.advance(candidates[image], log_probs[image], length)
                parents[image, : len(rows)] = rows
                tokens[image, : len(rows)] = [beam.token_ids[-1] for beam in one.running]
        alive = [image for image, one in enumerate(left) if one.running]
        if not alive:
            break
        if 4 * (len(left) - len(alive)) >= len(left):  # for fewer it does not pay to move the others' caches
            decoder.keep(alive)
            left, tokens, parents = [left[image] for image in alive], tokens[alive], parents[alive]
    return [one.finished[: options.num_return_sequences] for one in searches]
