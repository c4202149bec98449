"""Forced words: against a search written out in plain Python, and against all captions there are."""

import math
from itertools import product

import pytest
import torch
from uncached import log_probs_after

from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream, generate
from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

FORCED = {
    "a word": GenerationOptions(num_beams=4, force_words_ids=((11,),), num_return_sequences=2),
    "two phrases": GenerationOptions(num_beams=5, force_words_ids=((7, 8), (9, 4, 9)), max_new_tokens=10),
    "more tokens than beams": GenerationOptions(num_beams=2, force_words_ids=((7, 8), (8, 9, 10))),
    "phrases that overlap": GenerationOptions(num_beams=6, force_words_ids=((5, 6, 5, 7), (6, 5)), length_penalty=0.0),
    "just room enough": GenerationOptions(num_beams=3, force_words_ids=((7, 8), (9, 4)), max_new_tokens=4),
    "half of it in the prefix": GenerationOptions(num_beams=3, prefix_ids=(3, 7), force_words_ids=((7, 8), (3,))),
}


@pytest.fixture(scope="module")
def features(model: CaptionerForConditionalGeneration) -> torch.Tensor:
    return 2 * torch.randn(9, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))


def holds(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(tokens[start : start + len(phrase)] == phrase for start in range(len(tokens)))


def tokens_met(tokens: tuple[int, ...], phrases: tuple[tuple[int, ...], ...]) -> int:
    whole = [phrase for phrase in phrases if holds(tokens, phrase)]
    begun = [
        max(size for size in range(len(phrase)) if tokens[len(tokens) - size :] == phrase[:size])
        for phrase in phrases
        if phrase not in whole
    ]
    return sum(map(len, whole)) + max(begun, default=0)


def slow_search(model, image: torch.Tensor, options: GenerationOptions) -> list[tuple[int, ...]]:
    """Dynamic beam allocation, a list of continuations a step."""
    phrases, width, prefix, end = options.force_words_ids, options.num_beams, options.prefix_ids, 2
    every = sum(map(len, phrases))
    longest = min(options.max_new_tokens, model.config.max_position_embeddings - len(prefix))
    beams, finished = [(prefix, 0.0)], []
    for length in range(1, longest + 1):
        banks: dict[int, list[tuple[float, tuple[int, ...]]]] = {bank: [] for bank in range(every + 1)}
        for (tokens, score), row in zip(beams, log_probs_after(model, image, [beam[0] for beam in beams]), strict=True):
            complete = tokens_met(tokens, phrases) == every
            for token, log_prob in enumerate(row.tolist()):
                met = tokens_met((*tokens, token), phrases)
                if (token != end or complete) and every - met <= longest - length:
                    banks[met].append((score + log_prob, (*tokens, token)))
        for bank in banks.values():
            bank.sort(reverse=True)
        finished += [
            (score / length**options.length_penalty, tokens)
            for score, tokens in banks[every][:width]
            if tokens[-1] == end or length == longest
        ]
        finished = sorted(finished, reverse=True)[:width]
        running = {bank: [beam for beam in rows if beam[1][-1] != end] for bank, rows in banks.items()}
        turns = [
            (rank, every - bank, score, tokens)
            for bank, rows in running.items()
            for rank, (score, tokens) in enumerate(rows[:width])
        ]
        beams = [(tokens, score) for _, _, score, tokens in sorted(turns)[:width]]
        best = max((score for _, score in beams), default=-math.inf)
        if len(finished) == width and best / length**options.length_penalty <= finished[-1][0]:
            break
    return [tokens for _, tokens in finished][: options.num_return_sequences]


def fast_search(model, features: torch.Tensor, options: GenerationOptions) -> list[list[tuple[int, ...]]]:
    stream = GenerationStream(model, options)
    groups = [group for batch in features.split(4) for group in stream.add(batch)] + stream.finish()
    return [[h.token_ids + (() if h.end_log_prob is None else (2,)) for h in group] for group in groups]


@pytest.mark.parametrize("name", FORCED)
def test_captions_are_those_of_a_search_in_plain_python_and_hold_the_phrases(model, features, name):
    options = FORCED[name]
    groups = fast_search(model, features, options)
    assert groups == [slow_search(model, image[None], options) for image in features]
    for group in groups:
        assert all(holds(tokens, phrase) for tokens in group for phrase in options.force_words_ids)
    assert len({tokens for group in groups for tokens in group}) > 1, "the images make too little difference"


def test_beams_that_hold_every_beginning_find_the_best_of_all_captions(model, features):
    vocab, end = range(model.config.vocab_size), model.config.eos_token_id
    options = GenerationOptions(num_beams=400, force_words_ids=((11,),), max_new_tokens=3, length_penalty=0.0)
    captions = [
        tokens
        for size in (1, 2, 3)
        for tokens in product(vocab, repeat=size)
        if 11 in tokens and end not in tokens[:-1] and (size == 3 or tokens[-1] == end)
    ]
    for image, (found,) in zip(features[:4], fast_search(model, features[:4], options), strict=True):
        after = [log_probs_after(model, image[None], list(product(vocab, repeat=size))) for size in range(3)]
        after = [rows.reshape([len(vocab)] * (size + 1)) for size, rows in enumerate(after)]
        best = max(captions, key=lambda tokens: sum(float(after[n][tokens[: n + 1]]) for n in range(len(tokens))))
        assert found == best


def test_log_probs_are_the_models_own(model, features):
    options = FORCED["two phrases"]
    for image, (best,) in zip(features, generate(model, {"encoder_outputs": (features,)}, options), strict=True):
        rows = [
            log_probs_after(model, image[None], [best.token_ids[:place]])[0] for place in range(len(best.token_ids))
        ]
        expected = [float(row[token]) for row, token in zip(rows, best.token_ids, strict=True)]
        assert best.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"force_words_ids": ((),)}, "force_words_ids must be sequences of at least 1 token"),
        ({"force_words_ids": ((4,),), "num_beams": 1}, "num_beams must be at least 2 with forced words; it is 1"),
        ({"force_words_ids": ((4,),), "do_sample": True}, "num_beams must be at least 2 with forced words; it is 1"),
        (
            {"force_words_ids": ((4, 5), (6,)), "max_new_tokens": 2},
            "are 3 tokens; a caption may have 2",
        ),
        ({"force_words_ids": ((4, 2),)}, r"force_words_ids \(4, 2\) hold the end of sequence"),
        ({"force_words_ids": ((20,),)}, r"tokens \(20,\): this model has those from 0 to 19"),
        ({"force_words_ids": ((4, 5),), "bad_words_ids": ((5,),)}, r"tokens \(5,\) are both banned and forced"),
        ({"force_words_ids": ((4, 4),), "no_repeat_ngram_size": 1}, "found no caption that keeps all the rules"),
    ],
)
def test_what_cannot_be_is_refused(model, features, fields, message):
    with pytest.raises(CaptionerError, match=message):
        generate(model, {"encoder_outputs": (features[:1],)}, GenerationOptions(**fields))
