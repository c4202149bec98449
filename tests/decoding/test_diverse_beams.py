"""Diverse beams, against a search written out in plain Python."""

from collections import Counter

import pytest
import torch
from uncached import log_probs_after

from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream
from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

DIVERSE = {
    "groups of 2": GenerationOptions(num_beams=6, num_beam_groups=3, diversity_penalty=0.7, num_return_sequences=6),
    "groups of 1": GenerationOptions(num_beams=4, num_beam_groups=4, diversity_penalty=1.5, num_return_sequences=4),
    "constrained": GenerationOptions(
        num_beams=4, num_beam_groups=2, diversity_penalty=0.5, num_return_sequences=2, length_penalty=0.5,
        prefix_ids=(5,), bad_words_ids=((7,),), max_new_tokens=8,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def features(model: CaptionerForConditionalGeneration) -> torch.Tensor:
    return 2 * torch.randn(30, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))


def slow_search(model, image: torch.Tensor, options: GenerationOptions) -> list[tuple[int, ...]]:
    """Group after group, step by step; a group that is done chooses no more."""
    end, size = model.config.eos_token_id, options.num_beams // options.num_beam_groups
    longest = min(options.max_new_tokens, model.config.max_position_embeddings - len(options.prefix_ids))
    groups = [([(0.0, options.prefix_ids)], []) for _ in range(options.num_beam_groups)]
    is_done = [False] * len(groups)
    for length in range(1, longest + 1):
        chosen: Counter[int] = Counter()
        for number, (beams, finished) in enumerate(groups):
            if is_done[number]:
                continue
            rows = log_probs_after(model, image, [tokens for _, tokens in beams])
            rows[:, [ids[0] for ids in options.bad_words_ids]] = -torch.inf
            found = sorted(
                (
                    (score + log_prob - options.diversity_penalty * chosen[token], (*tokens, token))
                    for (score, tokens), row in zip(beams, rows.tolist(), strict=True)
                    for token, log_prob in enumerate(row)
                ),
                reverse=True,
            )
            over = [beam for beam in found[:size] if beam[1][-1] == end or length == longest]
            finished += [(score / length**options.length_penalty, tokens) for score, tokens in over]
            finished = sorted(finished, reverse=True)[:size]
            beams = [beam for beam in found if beam[1][-1] != end][:size]
            groups[number] = beams, finished
            chosen.update(tokens[-1] for _, tokens in beams)
            is_done[number] = len(finished) == size and found[0][0] / length**options.length_penalty <= finished[-1][0]
    together = sorted((caption for _, finished in groups for caption in finished), key=lambda caption: -caption[0])
    return [tokens for _, tokens in together][: options.num_return_sequences]


def fast_search(model, features: torch.Tensor, options: GenerationOptions) -> list[list[tuple[int, ...]]]:
    stream = GenerationStream(model, options)
    groups = [group for batch in features.split(4) for group in stream.add(batch)] + stream.finish()
    end = (model.config.eos_token_id,)
    return [[h.token_ids + (() if h.end_log_prob is None else end) for h in group] for group in groups]


@pytest.mark.parametrize("name", DIVERSE)
def test_captions_are_those_of_a_search_in_plain_python(model, features, name):
    groups = fast_search(model, features, DIVERSE[name])
    assert groups == [slow_search(model, image[None], DIVERSE[name]) for image in features]
    assert len({tuple(group) for group in groups}) > 5, "the images make too little difference"


def test_the_captions_of_an_image_differ_more_than_those_of_a_plain_search(model, features):
    def first_words(options: GenerationOptions) -> int:
        return sum(len({tokens[0] for tokens in group}) for group in fast_search(model, features, options))

    diverse = GenerationOptions(num_beams=4, num_beam_groups=4, diversity_penalty=5.0, num_return_sequences=4)
    assert first_words(diverse) > 1.5 * first_words(GenerationOptions(num_beams=4, num_return_sequences=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups must be a divisor of num_beams; it is 3"),
        ({"num_beams": 4, "num_beam_groups": 5}, "num_beam_groups must be between 1 and num_beams; it is 5"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty must be above 0 with num_beam_groups; it is 0"),
        ({"diversity_penalty": 1.0}, "diversity_penalty must be left out without num_beam_groups"),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words_ids": ((4,),)},
            "force_words_ids must be left out with num_beam_groups",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(CaptionerError, match=message):
        GenerationOptions(**fields)
