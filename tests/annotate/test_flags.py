import numpy as np
import pytest
from PIL import Image

from captioner.annotate.flags import caption_flags, photo_flags, repeated_phrase
from captioner.infer.caption import Caption, Token
from captioner.infer.words import Word


def caption(text="a dog runs on grass", confidence=0.9, end_log_prob=-0.1, words=(), tokens=()):
    return Caption(text, confidence, tuple(tokens), end_log_prob=end_log_prob, words=tuple(words))


def test_a_good_caption_has_no_flags() -> None:
    assert caption_flags(caption()) == {}


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (caption(confidence=0.1), {"low_confidence": "0.10"}),
        (caption("a dog and a dog"), {"repeated_phrase": "a dog"}),
        (caption(end_log_prob=None), {"cut_off_ending": "grass"}),
        (caption("a dog runs in a"), {"cut_off_ending": "a"}),
        (caption(""), {"cut_off_ending": ""}),
        (caption("a d\ufffdg"), {"unknown_characters": ""}),
        (caption("a ⁇ dog"), {"unknown_characters": ""}),
        (caption("a \x1b[31mdog"), {"unknown_characters": ""}),
        (caption(tokens=[Token("<unk>", -1.0)]), {"unknown_characters": ""}),
        (
            caption(words=[Word("a", 0.9), Word("frisbee", 0.1), Word("red", 0.05)]),
            {"unsupported_words": "frisbee, red"},
        ),
    ],
)
def test_each_fault_has_its_flag(given, flags) -> None:
    assert caption_flags(given) == flags


def test_the_bound_of_low_confidence_is_the_callers() -> None:
    assert caption_flags(caption(confidence=0.4), 0.5) == {"low_confidence": "0.40", "abstained": "below 0.5"}
    assert caption_flags(caption(confidence=0.1), 0.05) == {"low_confidence": "0.10"}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a dog a dog runs", "a dog"),
        ("the man with the man", "the man"),
        ("a very very big dog", "very"),
        ("a man in a red shirt and a man in a blue shirt", ""),
        ("two dogs and two cats", ""),
        ("", ""),
    ],
)
def test_a_phrase_repeats_where_it_follows_itself(text, phrase) -> None:
    assert repeated_phrase(text.split()) == phrase


def test_dark_and_empty_photos_are_flagged_and_others_not() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    assert photo_flags(Image.fromarray(noise)) == {}
    assert photo_flags(Image.fromarray(noise // 40)) == {"near_black": ""}
    assert photo_flags(Image.new("RGB", (300, 200), "white")) == {"blank": ""}
    assert photo_flags(Image.new("RGB", (1, 1), "black")) == {"near_black": ""}
    sky = np.linspace(100, 180, 200, dtype=np.uint8)[:, None, None] * np.ones((1, 300, 3), np.uint8)
    assert photo_flags(Image.fromarray(sky)) == {}, "a gradient is a picture"
