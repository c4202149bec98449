"""What an export is asked for it does as the torch engine does: the same tokens, the same log-probabilities."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import generate
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

from loading import load_exported  # noqa: E402

from captioner.decoding.numpy_search import search  # noqa: E402
from captioner.infer.exported_model import DecoderSteps, ExportedModel  # noqa: E402

OPTIONS = {
    "greedy": {"num_beams": 1},
    "greedy, prefix": {"num_beams": 1, "prefix_ids": (5, 9, 6), "no_repeat_ngram_size": 1},
    "greedy, banned words": {"num_beams": 1, "bad_words_ids": ((5,), (7, 8), (9, 4, 9))},
    "greedy, banned at the start": {"num_beams": 1, "bad_words_ids": tuple((1, token) for token in range(3, 12))},
    "greedy, at least": {"num_beams": 1, "min_new_tokens": 5, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3},
    "beams, short": {"num_beams": 2, "max_new_tokens": 4},
    "beams, for short": {"num_beams": 4, "length_penalty": -1.0, "num_return_sequences": 4},
    "beams, for the shortest": {"num_beams": 4, "length_penalty": -10, "num_return_sequences": 4},
    "beams, at the lower limit": {"num_beams": 3, "length_penalty": -50.0, "num_return_sequences": 3},
    "beams, by sums": {"num_beams": 4, "length_penalty": 0, "num_return_sequences": 4},
    "beams, for the longest": {"num_beams": 4, "length_penalty": 10.0, "num_return_sequences": 4},
    "beams, at the upper limit": {"num_beams": 3, "length_penalty": 50, "num_return_sequences": 3},
    "beams, for long": {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 2, "min_new_tokens": 6},
    "beams, no n-gram twice": {"num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
    "beams, banned words": {"num_beams": 4, "bad_words_ids": ((5,), (7, 8), (6,), (9, 4)), "num_return_sequences": 4},
    "beams, prefix": {"num_beams": 4, "prefix_ids": (5, 9), "no_repeat_ngram_size": 3, "min_new_tokens": 3},
    "greedy, repetition penalty": {"num_beams": 1, "repetition_penalty": 1.4, "prefix_ids": (5, 9)},
    "greedy, repetition bonus": {"num_beams": 1, "repetition_penalty": 0.8, "bad_words_ids": ((5,), (7, 8))},
    "beams, repetition penalty": {"num_beams": 3, "repetition_penalty": 1.7, "num_return_sequences": 3},
    "beams, repetition bonus": {"num_beams": 3, "repetition_penalty": 0.7, "no_repeat_ngram_size": 2},
    "beams, early stopping": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
    "beams, never early": {"num_beams": 4, "early_stopping": "never", "num_return_sequences": 4, "prefix_ids": (5, 9)},
    "beams, never early, for short": {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
    "draws, repetition penalty": {"do_sample": True, "seed": 5, "repetition_penalty": 1.5, "top_p": 0.9},
    "draws": {"do_sample": True, "seed": 5},
    "draws, warped": {"do_sample": True, "seed": 5, "temperature": 1.3, "top_k": 9, "top_p": 0.9},
    "draws, several": {"do_sample": True, "seed": 2**32 + 7, "top_p": 0.7, "num_return_sequences": 3},
    "draws, bound": {
        "do_sample": True,
        "seed": 0,
        "top_k": 4,
        "prefix_ids": (5, 9),
        "bad_words_ids": ((5,), (7, 8)),
        "min_new_tokens": 3,
        "no_repeat_ngram_size": 1,
        "num_return_sequences": 2,
    },
}


@pytest.fixture(scope="module")
def network(tagged_captioner: Path) -> CaptionerForConditionalGeneration:
    return load_model(tagged_captioner, "tiny")[0].eval()


@pytest.fixture(scope="module")
def runtime(exported: Path) -> ExportedModel:
    return load_exported(exported)


@pytest.fixture(scope="module")
def pixel_values() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, 3, 32, 32), dtype=np.float32)


def searched(runtime: ExportedModel, pixel_values: np.ndarray, options: GenerationOptions) -> list[list[Hypothesis]]:
    decoder, settings = runtime.steps(runtime.encode(pixel_values)[0]), runtime.settings
    longest = settings.max_steps(options)
    return search(decoder, len(pixel_values), options, longest, settings.start, settings.end)


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_and_log_probs_are_those_of_the_torch_engine(network, runtime, pixel_values, name):
    options = GenerationOptions(**OPTIONS[name])
    expected = generate(network, {"pixel_values": torch.from_numpy(pixel_values)}, options)
    found = searched(runtime, pixel_values, options)
    assert [[one.token_ids for one in group] for group in found] == [[h.token_ids for h in g] for g in expected]
    assert len({one.token_ids for group in found for one in group}) > 12, "the images make too little difference"
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert one.end_log_prob == pytest.approx(other.end_log_prob, abs=1e-4)


def test_a_draw_does_not_depend_on_its_batch_and_without_a_seed_no_two_are_the_same(runtime, pixel_values):
    seeded = GenerationOptions(do_sample=True, seed=3, num_return_sequences=2)
    together = searched(runtime, pixel_values, seeded)
    assert [searched(runtime, image[None], seeded)[0] for image in pixel_values[:9]] == together[:9]
    same = np.repeat(pixel_values[:1], 8, axis=0)
    free = GenerationOptions(do_sample=True, num_return_sequences=4)
    assert len({one.token_ids for group in searched(runtime, same, free) for one in group}) > 16


def test_draws_without_a_seed_follow_the_warped_distribution(runtime, pixel_values):
    """First tokens of many draws for one image: shares within 4 standard errors."""
    draws = 2000
    options = GenerationOptions(
        do_sample=True, temperature=1.5, top_k=5, top_p=0.8, num_return_sequences=draws, max_new_tokens=1
    )
    decoder = runtime.steps(runtime.encode(pixel_values[:1])[0])
    logits = decoder.logits(np.array([[runtime.settings.start]]), np.array([[0]]))[0, 0]
    best = np.argsort(-logits)[:5]
    shares = np.exp(logits[best] / 1.5)
    shares /= shares.sum()
    count = int((np.cumsum(shares) < 0.8).sum()) + 1
    expected = dict(zip(best[:count].tolist(), (shares[:count] / shares[:count].sum()).tolist(), strict=True))
    assert 1 < count < 5, "top_p makes no difference"
    first = [(*one.token_ids, runtime.settings.end)[0] for one in searched(runtime, pixel_values[:1], options)[0]]
    assert set(first) <= expected.keys()
    for token, share in expected.items():
        assert first.count(token) / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


@pytest.mark.parametrize("fields", [{"num_beams": 1}, {"num_beams": 2}, {"do_sample": True, "top_p": 0.5}])
def test_rules_that_no_caption_keeps_are_an_error(runtime, pixel_values, fields):
    everything = tuple((token,) for token in range(runtime.settings.vocab_size))
    with pytest.raises(CaptionerError, match="found no caption that keeps all the rules"):
        searched(runtime, pixel_values[:1], GenerationOptions(bad_words_ids=everything, **fields))


def test_a_plain_search_asks_for_no_more_candidates_than_it_needs(runtime, pixel_values, monkeypatch):
    counts, step = [], DecoderSteps.step

    def spy(decoder: DecoderSteps, tokens: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        counts.append((tokens.shape[1], count))
        return step(decoder, tokens, rows, count)

    monkeypatch.setattr(DecoderSteps, "step", spy)
    searched(runtime, pixel_values[:2], GenerationOptions(num_beams=1))
    assert set(counts) == {(1, 1)}
    counts.clear()
    searched(runtime, pixel_values[:2], GenerationOptions(num_beams=3))
    assert counts[0] == (1, 6) and set(counts[1:]) == {(3, 6)}, "the start is decoded once for all beams"
