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
    """What computes logits, with its caches."""

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        """The newest tokens [B, K] -> logits [B, K, V] of the next."""

    def reorder(self, beams: np.ndarray) -> None:
        """From now on row k of image b goes on from its row `beams[b, k]`."""


def search(decoder: Decoder, batch_size: int, options: SearchOptions, start: int, end: int) -> list[list[Beam]]:
    """Caption B images: for each its `num_return_sequences` captions, best first.

    One beam takes the most probable token each time. Several give what transformers' beam search gives: a caption
    counts as finished only where its end was among the best K continuations, and an image is done when K captions are
    finished and the best running one, were it to end now, is no better than the worst of them.
    """
    running = [[Beam()] for _ in range(batch_size)]
    finished: list[list[Beam]] = [[] for _ in range(batch_size)]
    tokens = np.full((batch_size, options.num_beams), start, dtype=np.int64)
    for length in range(1, options.max_new_tokens + 1):
        log_probs = log_softmax(decoder.step(tokens))
        if length <= options.min_new_tokens:
            log_probs[..., end] = -np.inf
        parents = np.zeros_like(tokens)
        for image in range(batch_size):
            if not running[image]:
                continue
            rows, extended = _extend(running[image], log_probs[image], 1 if options.num_beams == 1 else 2)
            ends = [beam.token_ids[-1] == end or length == options.max_new_tokens for beam in extended]
            for beam, is_over in zip(extended[: options.num_beams], ends, strict=False):
                if is_over:
                    score = beam.score / length**options.length_penalty
                    finished[image].append(beam._replace(score=score))
            finished[image] = sorted(finished[image], key=lambda beam: -beam.score)[: options.num_beams]
            alive = [index for index, is_over in enumerate(ends) if not is_over][: options.num_beams]
            running[image] = [extended[index] for index in alive]
            if _is_done(running[image], finished[image], length, options):
                running[image] = []
            for row, index in enumerate(alive):
                parents[image, row], tokens[image, row] = rows[index], extended[index].token_ids[-1]
        if not any(running):
            break
        if options.num_beams > 1:
            decoder.reorder(parents)
    return [beams[: options.num_return_sequences] for beams in finished]


def _extend(beams: list[Beam], log_probs: np.ndarray, factor: int) -> tuple[list[int], list[Beam]]:
    """The best `factor` * K one-token continuations of an image's beams under [K, V], best first, and their beams.

    Twice K leave K that go on, whichever end.
    """
    scores = log_probs[: len(beams)] + np.array([[beam.score] for beam in beams], dtype=np.float32)
    best = _largest(scores.ravel(), factor * len(log_probs))
    rows, tokens = np.divmod(best, scores.shape[1])
    extended = [
        Beam(
            (*beams[row].token_ids, int(token)),
            (*beams[row].log_probs, float(log_probs[row, token])),
            float(scores[row, token]),
        )
        for row, token in zip(rows, tokens, strict=True)
    ]
    return rows.tolist(), extended


def _is_done(running: list[Beam], finished: list[Beam], length: int, options: SearchOptions) -> bool:
    if not running or len(finished) < options.num_beams:
        return not running
    return running[0].score / length**options.length_penalty <= finished[-1].score


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of [N], in falling order."""
    count = min(count, len(values))
    chosen = np.sort(np.argpartition(values, -count)[-count:])
    return chosen[np.argsort(-values[chosen], kind="stable")]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
