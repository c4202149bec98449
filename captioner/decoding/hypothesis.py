"""A caption as tokens, whichever search found it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One caption as tokens.

    Attributes:
        token_ids: the caption without start and end of sequence.
        log_probs: log p(token | image, earlier tokens) of each token under the model itself, before temperature, top-k,
            top-p and constraints. A prefix's tokens are included.
        end_log_prob: the same of the end of sequence; None if `max_new_tokens` cut the caption.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    end_log_prob: float | None

    @property
    def mean_log_prob(self) -> float:
        """Mean over the tokens and the end of sequence: the log of the geometric mean probability."""
        values = self.log_probs if self.end_log_prob is None else (*self.log_probs, self.end_log_prob)
        return sum(values) / len(values)
