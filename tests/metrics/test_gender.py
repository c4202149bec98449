import numpy as np
import pytest

from captioner.metrics.gender import audit_gender
from captioner.metrics.gendered_words import neutralized


def images(*pairs):
    """(caption, references, times) each -> captions and references by image."""
    captions, references = {}, {}
    for caption, own, times in pairs:
        for _ in range(times):
            captions[len(captions)], references[len(references)] = caption, own
    return captions, references


def test_a_caption_contradicts_where_it_names_the_gender_that_no_reference_names() -> None:
    woman, man = ["a woman runs", "a lady is running", "a person runs"], ["a man runs", "a boy runs"]
    audit = audit_gender(
        *images(
            ("a man runs", woman, 3),
            ("a woman runs", woman, 1),
            ("a person runs", woman, 2),
            ("a man and a woman run", woman, 1),
            ("A man runs.", man, 4),
            ("a man runs", ["a woman runs", "a man runs", "a man runs"], 9),  # these do not agree
            ("a man runs", ["a woman runs", "a person runs"], 9),  # one is too few
        )
    )
    female, male = audit.contradictions["female"], audit.contradictions["male"]
    assert (female.images, female.gendered, female.contradicting) == (7, 5, 4)
    assert female.share == pytest.approx(0.8) and female.interval.low <= 0.8 <= female.interval.high
    assert (male.images, male.contradicting, male.share) == (4, 0, 0)


def test_words_are_whole_words() -> None:
    _, references = images(("", ["a human with a manual and a boyish mango"] * 2, 3))
    assert audit_gender({image: "a man" for image in references}, references) is None


def test_an_association_that_captions_exaggerate_is_found() -> None:
    man, woman = ["a man cooking in a kitchen"] * 2, ["a woman cooking in a kitchen"] * 2
    audit = audit_gender(
        *images(("a man cooking", man, 8), ("a woman cooking", woman, 16), ("a woman cooking", man, 8))
    )
    cooking, *others = audit.associations
    assert others == [], "no caption says kitchen"
    assert (cooking.word, cooking.gender) == ("cooking", "male")
    assert cooking.in_references == pytest.approx(0.5) and cooking.in_captions == pytest.approx(0.25)
    assert cooking.amplification == pytest.approx(-0.25) == pytest.approx(audit.mean_amplification)
    assert cooking.interval.low < -0.25 < cooking.interval.high < 0


def test_rare_words_are_left_out() -> None:
    audit = audit_gender(*images(("a man surfing", ["a man surfing"] * 2, 9)))
    assert audit.associations == [] and np.isnan(audit.mean_amplification) and audit.mean_interval is None


def test_gendered_words_become_neutral_ones() -> None:
    text = "Two men and a Woman watch her boys, a female dancer and a mango salesman"
    assert neutralized(text) == "Two people and a person watch their children, a dancer and a mango salesman"
