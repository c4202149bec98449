"""What captioning may be asked for: one frozen object, whoever computes it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from captioner.errors import CaptionerError

DEFAULT_NUM_BEAMS = 3

WHOLE_NUMBERS = (
    "max_new_tokens",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "top_k",
    "num_return_sequences",
)
NUMBERS = ("diversity_penalty", "length_penalty", "repetition_penalty", "temperature", "top_p")


@dataclass(frozen=True)
class GenerationOptions:
    """How captions are searched for or drawn.

    Attributes:
        num_beams: beam width, 1 is greedy; default 3 (at least `num_return_sequences`). Sampling goes without beams.
        max_new_tokens: tokens of the longest caption, end of sequence included; never above what the model can hold.
        min_new_tokens: the end of sequence is not chosen before this many tokens.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice; 0 switches it off.
        repetition_penalty: above 1, tokens that the caption already has, including its start token, become less
            probable: their scores are divided by it if positive, else multiplied (Keskar et al. 2019,
            arXiv:1909.05858). As in transformers, scores are logits, or log-probabilities in beam search.
        prefix_ids: tokens that every caption starts with; they do not count as new.
        bad_words_ids: sequences of tokens that no caption goes on with, one token of which may be all.
        merged_ids: pairs of tokens; the probability of the first is given to the second, which is written in its place:
            that of "man" to "person".
        force_words_ids: sequences of tokens that every caption holds, in any order; beam search alone can do that.
        num_beam_groups: groups of beams that differ from one another, for captions that do: it divides `num_beams`.
        diversity_penalty: taken off a token's log-probability for each beam of the groups before that has chosen it.
        length_penalty: beams are ranked by sum(log p) / length ** length_penalty; above 0 favours longer captions.
        early_stopping: when beam search leaves an image with `num_beams` finished captions. True: at once; False: when
            its best unfinished caption, if it ended now, would not rank above the worst of them; "never": when no
            continuation of it can.
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
    repetition_penalty: float = 1.0
    prefix_ids: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    merged_ids: tuple[tuple[int, ...], ...] = ()
    force_words_ids: tuple[tuple[int, ...], ...] = ()
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for names, kind, words in ((WHOLE_NUMBERS, Integral, "a whole number"), (NUMBERS, Real, "a number")):
            for name in names:
                self._require(isinstance(getattr(self, name), kind), name, words)
        for name in ("num_beams", "seed"):
            self._require(isinstance(getattr(self, name), (Integral, type(None))), name, "a whole number")
        for name, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("no_repeat_ngram_size", 0), ("top_k", 0)):
            self._require(getattr(self, name) >= low, name, f"at least {low}")
        self._require(self.num_return_sequences >= 1, "num_return_sequences", "at least 1")
        self._require(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", "at most max_new_tokens")
        self._require(-50 <= self.length_penalty <= 50, "length_penalty", "between -50 and 50")  # powers stay finite
        object.__setattr__(self, "prefix_ids", self._token_ids("prefix_ids", self.prefix_ids))
        for name in ("bad_words_ids", "merged_ids", "force_words_ids"):
            self._require(_is_list(getattr(self, name)), name, "sequences of token ids")
            object.__setattr__(self, name, tuple(self._token_ids(name, ids) for ids in getattr(self, name)))
        self._require(all(len(ids) == 2 for ids in self.merged_ids), "merged_ids", "pairs of tokens")
        merged, kept = ({ids[place] for ids in self.merged_ids} for place in (0, 1))
        is_simple = len(merged) == len(self.merged_ids) and merged.isdisjoint(kept)
        self._require(is_simple, "merged_ids", "pairs whose first tokens differ from all others")
        self._require(all(self.bad_words_ids), "bad_words_ids", "sequences of at least 1 token")
        self._require(all(self.force_words_ids), "force_words_ids", "sequences of at least 1 token")
        self._require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0")
        is_known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        self._require(is_known, "early_stopping", "True, False or 'never'")
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
        self._require(1 <= self.num_beam_groups <= self.num_beams, "num_beam_groups", "between 1 and num_beams")
        self._require(self.num_beams % self.num_beam_groups == 0, "num_beam_groups", "a divisor of num_beams")
        if self.num_beam_groups > 1:
            self._require(0 < self.diversity_penalty < math.inf, "diversity_penalty", "above 0 with num_beam_groups")
            self._require(not self.force_words_ids, "force_words_ids", "left out with num_beam_groups")
        else:
            self._require(self.diversity_penalty == 0, "diversity_penalty", "left out without num_beam_groups")
        if self.force_words_ids:
            self._require(self.num_beams > 1, "num_beams", "at least 2 with forced words")

    @property
    def num_captions(self) -> int:
        """Captions that an image has in the making."""
        assert self.num_beams is not None
        return max(self.num_beams, self.num_return_sequences)

    def max_steps(self, longest: int, vocab_size: int, end: int) -> int:
        """Return the most new tokens of a caption; the model has this vocabulary and writes at most `longest` tokens.

        Raises:
            CaptionerError: `min_new_tokens` or the prefix are more than it can hold; it has no such token.
        """
        steps = min(self.max_new_tokens, longest - len(self.prefix_ids))
        if steps < 1:
            raise CaptionerError(
                f"a prefix of {len(self.prefix_ids)} tokens leaves no room for a caption: "
                f"this model writes at most {longest} tokens"
            )
        if self.min_new_tokens > steps:
            raise CaptionerError(f"min_new_tokens is {self.min_new_tokens}; this model writes at most {steps} tokens")
        for ids in (self.prefix_ids, *self.bad_words_ids, *self.merged_ids, *self.force_words_ids):
            if not all(0 <= token < vocab_size for token in ids):
                raise CaptionerError(f"tokens {ids}: this model has those from 0 to {vocab_size - 1}")
        given = [("prefix_ids", self.prefix_ids), *(("force_words_ids", ids) for ids in self.force_words_ids)]
        for name, ids in given:
            if end in ids:
                raise CaptionerError(f"{name} {ids} hold the end of sequence, {end}")
        return steps

    def _token_ids(self, name: str, ids: Any) -> tuple[int, ...]:
        tokens = tuple(ids) if _is_list(ids) else (None,)
        is_valid = all(isinstance(token, Integral) for token in tokens)
        self._require(is_valid, name, "token ids" if name == "prefix_ids" else "sequences of token ids")
        return tuple(map(int, tokens))

    def _require(self, condition: bool, name: str, expectation: str) -> None:
        if not condition:
            raise CaptionerError(f"{name} must be {expectation}; it is {getattr(self, name)}")


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def word_options(
    encode: Callable[[str], Sequence[int]],
    start: int,
    prefix: str,
    banned_words: str | Iterable[str],
    forced_words: str | Iterable[str],
    replaced_words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Turn words into fields of `GenerationOptions`, with a tokenizer's `encode`. A string is one word or one phrase.

    A byte-level tokenizer such as GPT-2's gives a word other tokens after a space than at the start of a caption, after
    the token `start`. A banned word is banned in both places. A forced word comes after a space. The probability of a
    replaced word goes to the word in its place, if both are one token there; else the word is banned.

    Raises:
        CaptionerError: the prefix or a word is not text, or a word is blank.
    """

    def token_ids(text: str) -> tuple[int, ...]:
        return tuple(encode(text))

    if not isinstance(prefix, str):
        raise CaptionerError(f"prefix must be a string; it is {prefix!r}")
    begun = " ".join(prefix.split())
    banned = _phrases("banned_words", banned_words)
    at_start = [(start, *token_ids(phrase)) for phrase in banned if token_ids(phrase) != token_ids(f" {phrase}")]
    replaced = replaced_words or {}
    merged = _merged(replaced, token_ids)
    banned_ids = [token_ids(f" {phrase}") for phrase in banned]
    banned_ids += [ids for word in replaced for ids in (token_ids(f" {word}"), (start, *token_ids(word)))]
    fields = {
        "merged_ids": tuple(merged.items()),
        "prefix_ids": token_ids(begun) if begun else (),
        "bad_words_ids": tuple(ids for ids in (*banned_ids, *at_start) if ids[-1] not in merged),
        "force_words_ids": tuple(token_ids(f" {phrase}") for phrase in _phrases("forced_words", forced_words)),
    }
    return {name: ids for name, ids in fields.items() if ids}  # others may be given as ids


def _merged(replaced: Mapping[str, str], token_ids: Callable[[str], tuple[int, ...]]) -> dict[int, int]:
    """Tokens that are words to replace, and the tokens in their place."""
    merged = {}
    for word, neutral in replaced.items():
        for space in ("", " "):
            ours, theirs = token_ids(space + word), token_ids(space + neutral) if neutral else ()
            if len(ours) == len(theirs) == 1:
                merged[ours[0]] = theirs[0]
    return merged


def _phrases(name: str, words: str | Iterable[str]) -> list[str]:
    """Words or phrases without superfluous white space."""
    given = [words] if isinstance(words, str) or not isinstance(words, Iterable) else list(words)
    for word in given:
        if not isinstance(word, str) or not word.strip():
            raise CaptionerError(f"{name} must be words; {word!r} is none")
    return [" ".join(word.split()) for word in given]
